//! Chooses the HTTP proxy for an API server from the environment, by Go's rules.

use std::net::IpAddr;

use crate::net::{Cidr, parse_ip};

/// The proxy for `server`: `HTTPS_PROXY` or `HTTP_PROXY` by the server's scheme, upper case before lower
/// case, unless `NO_PROXY` names the server.
pub fn proxy_for(server: &http::Uri, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let environment = |name: &str| {
        let is_set = |text: &String| !text.is_empty();
        variable(name).filter(is_set).or_else(|| variable(&name.to_lowercase()).filter(is_set))
    };
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_https = server.scheme_str() != Some("http");
    let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    let no_proxy = environment("NO_PROXY").unwrap_or_default();
    let proxy = environment(if is_https { "HTTPS_PROXY" } else { "HTTP_PROXY" });
    proxy.filter(|_| !is_direct(host, port, &no_proxy))
}

/// Reads a proxy address; `http://` is optional, as in curl and Go.
pub fn proxy_url<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    text: &str,
) -> anyhow::Result<T> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Ok(text.parse()?)
}

/// Whether a server is reached without the proxy: its address is a loopback address, or `NO_PROXY` names it
/// (`*`, names, `.domains`, addresses and CIDRs, each with or without a port). Source: Go's
/// `golang.org/x/net/http/httpproxy`.
fn is_direct(host: &str, port: u16, no_proxy: &str) -> bool {
    let ip = parse_ip(host).ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(cidr) = Cidr::parse(entry) {
            return ip.is_some_and(|ip| cidr.contains(ip));
        }
        let (name, entry_port) = split_port(entry);
        if entry_port.is_some_and(|entry_port| entry_port != port) {
            return false;
        }
        match parse_ip(name) {
            Ok(entry_ip) => ip == Some(entry_ip),
            Err(_) => is_in_domain(host, name),
        }
    })
}

fn split_port(entry: &str) -> (&str, Option<u16>) {
    if entry.parse::<IpAddr>().is_ok() {
        return (entry, None);
    }
    match entry.rsplit_once(':').map(|(name, port)| (name, port.parse())) {
        Some((name, Ok(port))) => (name.trim_matches(['[', ']']), Some(port)),
        _ => (entry.trim_matches(['[', ']']), None),
    }
}

/// `example.org` matches itself and its subdomains; `.example.org` and `*.example.org` match subdomains
/// only.
fn is_in_domain(host: &str, name: &str) -> bool {
    let (host, name) = (host.to_ascii_lowercase(), name.to_ascii_lowercase());
    let name = name.strip_prefix('*').unwrap_or(&name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.ends_with(&format!(".{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_names_servers_as_in_go() {
        let check = |host: &str, no_proxy: &str, expected: bool| {
            assert_eq!(is_direct(host, 6443, no_proxy), expected, "{host} {no_proxy:?}");
        };
        check("10.96.0.1", "", false);
        check("127.0.0.1", "", true);
        check("::1", "", true);
        check("localhost", "", true);
        check("10.96.0.1", "10.96.0.0/12", true);
        check("10.96.0.1", "10.0.0.1, 10.96.0.1", true);
        check("fd00::1", "[fd00::1]:6443", true);
        check("fd00::1", "fd00::1", true);
        check("10.96.0.1", "10.96.0.1:443", false);
        check("api.example.org", "example.org", true);
        check("api.example.org", "API.example.org:6443", true);
        check("example.org", ".example.org", false);
        check("api.example.org", ".example.org", true);
        check("api.example.org", "*.example.org", true);
        check("badexample.org", "example.org", false);
        check("anything", "*", true);
    }

    #[test]
    fn the_servers_scheme_selects_the_environment_variable() {
        let check = |server: &str, variables: &[(&str, &str)], expected: Option<&str>| {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            let proxy = proxy_for(&server.parse().unwrap(), variable);
            assert_eq!(proxy.as_deref(), expected, "{server} {variables:?}");
        };
        let both = [("HTTPS_PROXY", "http://s:1"), ("HTTP_PROXY", "http://p:2")];
        check("https://10.0.0.1:6443", &both, Some("http://s:1"));
        check("http://10.0.0.1:8080", &both, Some("http://p:2"));
        check("http://127.0.0.1:8080", &both, None);
        check("https://10.0.0.1:6443", &[("https_proxy", "low")], Some("low"));
        check("https://10.0.0.1", &[("HTTPS_PROXY", "up"), ("https_proxy", "low")], Some("up"));
        check("https://10.0.0.1", &[("HTTPS_PROXY", ""), ("https_proxy", "low")], Some("low"));
        check("https://10.0.0.1", &[("HTTP_PROXY", "up")], None);
        check("https://10.96.0.1", &[("HTTPS_PROXY", "up"), ("NO_PROXY", "10.96.0.0/12")], None);
        check("https://[fd00::1]:6443", &[("HTTPS_PROXY", "up"), ("no_proxy", "fd00::/64")], None);
        check("https://a.b.c", &[("HTTPS_PROXY", "up"), ("NO_PROXY", ".b.c")], None);
        check("https://a.b.c", &[("HTTPS_PROXY", "up"), ("NO_PROXY", "x,a.b.c:444")], Some("up"));
        check("https://10.0.0.1", &[], None);
    }
}
