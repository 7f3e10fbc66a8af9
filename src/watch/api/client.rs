//! The connection to the API server: which kubeconfig, which server, through which proxy.

#![allow(clippy::disallowed_methods, reason = "the proxy environment is the client's own")]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::body::Bytes;
use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig};
use tower::buffer::BufferLayer;
use tower::{BoxError, Service};
use tracing::{info, warn};

use super::observer::Observer;
use super::token::TokenFile;
use super::transport::{Limit, Transport};
use crate::net::{Cidr, parse_ip};

/// A connection to an API server.
#[derive(Clone)]
pub struct Connection {
    /// Sends requests.
    pub client: kube::Client,
    /// `addr:port` of the API server, as configured; for counting only.
    pub host: String,
    /// The file whose token requests carry, if it is one.
    pub token: Option<Arc<TokenFile>>,
}

impl Connection {
    /// Sends through `service` what `transport` lets pass.
    fn through<S, B>(
        builder: ClientBuilder<S>,
        transport: &Transport,
        host: String,
        token: Option<Arc<TokenFile>>,
    ) -> Connection
    where
        S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
        S::Error: Into<BoxError> + Send + Sync,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        // The buffer makes clones of what can only be had once.
        let builder = builder.with_layer(&BufferLayer::new(N_WAITING)).with_layer(transport);
        Connection { client: builder.build(), host, token }
    }

    /// Sends through `service` what a transport with this limit lets pass.
    #[cfg(test)]
    pub fn to<S, B>(service: S, limit: Limit, observer: Arc<dyn Observer>) -> Connection
    where
        S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
        S::Error: Into<BoxError> + Send + Sync,
        S::Future: Send + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
    {
        let host = "api.test:443".to_owned();
        let transport = Transport::new(host.clone(), limit, None, observer);
        Connection::through(ClientBuilder::new(service, "default"), &transport, host, None)
    }
}

/// How many requests may wait for the one before them to be taken.
const N_WAITING: usize = 64;

/// How long the server may be silent. It sends each watch a bookmark every minute, so after two the
/// connection is dead, even if nobody said so (a lost route, a load balancer that forgot it).
const SILENCE: Duration = Duration::from_secs(130);

/// How long it may take to reach the server.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection by kube-proxy's rules: exactly the file `kubeconfig` (neither `KUBECONFIG` nor
/// `~/.kube/config` count), its server replaced by `master` if given; with neither of them, what a
/// pod finds in its environment. JSON is asked for whatever the content types configured; lists
/// may come compressed.
///
/// Errors when a file or the environment is unusable; nobody is contacted yet.
pub async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    limit: Limit,
    observer: Arc<dyn Observer>,
) -> anyhow::Result<Connection> {
    let mut config = config(kubeconfig, master).await?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    config.connect_timeout = Some(CONNECT);
    // The client would try again by itself for minutes and nobody would hear of it; `follow` has a
    // back-off of its own.
    config.default_retry = false;
    let agent = format!("chainsmith/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push(("user-agent".parse()?, agent.parse()?));
    let token = token_file(&mut config.auth_info)?.map(Arc::new);
    let proxy = config.proxy_url.as_ref().and_then(http::Uri::host).map(str::to_owned);
    let Limit { qps, burst } = limit;
    info!(server = %config.cluster_url, ?proxy, ?qps, burst, content = "application/json", "API client");
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let transport = Transport::new(host.clone(), limit, token.clone(), observer);
    let builder = ClientBuilder::try_from(config).context("preparing the API client")?;
    Ok(Connection::through(builder, &transport, host, token))
}

/// Takes the token file over from kube, which reads it once a minute: one that was refused has to be
/// replaced sooner. As in client-go a file counts more than a token beside it, unless it is
/// unreadable.
fn token_file(auth: &mut AuthInfo) -> anyhow::Result<Option<TokenFile>> {
    let Some(path) = &auth.token_file else { return Ok(None) };
    match TokenFile::open(Path::new(path)) {
        Ok(file) => {
            *auth = AuthInfo { token: None, token_file: None, exec: None, ..std::mem::take(auth) };
            Ok(Some(file))
        }
        Err(error) if auth.token.is_some() => {
            warn!(error = %format!("{error:#}"), "using the token beside it");
            auth.token_file = None;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn config(kubeconfig: Option<&Path>, master: Option<&str>) -> anyhow::Result<Config> {
    let (mut config, named_proxy) = match (kubeconfig, master) {
        (Some(path), master) => from_file(path, master).await?,
        (None, Some(master)) => {
            let server = master.parse().with_context(|| format!("reading the server address {master:?}"))?;
            (Config::new(server), None)
        }
        (None, None) => {
            info!("neither kubeconfig nor master given, using the pod's service account");
            (Config::incluster_env().context("reading the pod's service account")?, None)
        }
    };
    // kube compares NO_PROXY with the proxy, not with the server, and knows no proxy in a pod.
    let proxy = named_proxy.or_else(|| proxy_for(&config.cluster_url, |name| std::env::var(name).ok()));
    config.proxy_url = match proxy {
        Some(proxy) => {
            Some(proxy_url(&proxy).with_context(|| format!("reading the proxy address {proxy:?}"))?)
        }
        None => None,
    };
    Ok(config)
}

/// The proxy that the environment names for `server`: `HTTPS_PROXY` or `HTTP_PROXY` by its scheme,
/// upper case before lower case, unless `NO_PROXY` names the server.
fn proxy_for(server: &http::Uri, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
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

/// The configuration of the current context of a file, and the proxy that the file names.
async fn from_file(path: &Path, master: Option<&str>) -> anyhow::Result<(Config, Option<String>)> {
    let reading = || format!("reading kubeconfig {}", path.display());
    let mut kubeconfig = Kubeconfig::read_from(path).with_context(reading)?;
    let context = kubeconfig.current_context.clone();
    let context = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context.as_ref());
    let cluster = context.and_then(|named| named.context.as_ref()).map(|context| context.cluster.clone());
    let cluster = kubeconfig
        .clusters
        .iter_mut()
        .find(|named| Some(&named.name) == cluster.as_ref())
        .and_then(|named| named.cluster.as_mut())
        .ok_or_else(|| anyhow!("its current context names no cluster"))
        .with_context(reading)?;
    if let Some(master) = master {
        cluster.server = Some(master.to_owned());
    }
    let proxy = cluster.proxy_url.clone().filter(|proxy| !proxy.is_empty());
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(reading)?;
    Ok((config, proxy))
}

/// `http://` may be left out, as in curl and Go.
fn proxy_url<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    text: &str,
) -> anyhow::Result<T> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    Ok(text.parse()?)
}

/// Whether a server is reached without the proxy: it is this machine, or named by `NO_PROXY`
/// (`*`, names, `.domains`, addresses and CIDRs, each with a port or without). Source: Go's
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
        let (name, wanted_port) = split_port(entry);
        if wanted_port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        match parse_ip(name) {
            Ok(wanted) => ip == Some(wanted),
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

/// `example.org` names itself and all below it, `.example.org` and `*.example.org` what is below.
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
    fn the_environment_names_the_proxy_by_the_servers_scheme() {
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

    #[tokio::test]
    async fn a_named_proxy_is_asked_for_a_tunnel() {
        use tokio::io::{AsyncBufReadExt, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let file = kubeconfig(&TWO_CLUSTERS.replace("http://proxy.example:3128", &proxy.to_string()));
        let connection = connect(Some(file.path()), None, LIMIT, Arc::new(())).await.unwrap();
        let asking = tokio::spawn(async move { connection.client.apiserver_version().await });
        let (stream, _) = listener.accept().await.unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.unwrap();
        assert_eq!(line.trim_end(), "CONNECT b.example:2 HTTP/1.1");
        assert!(asking.await.unwrap().is_err(), "the proxy hung up");
    }

    #[tokio::test]
    async fn an_unusable_proxy_is_named() {
        let file = kubeconfig(&TWO_CLUSTERS.replace("http://proxy.example:3128", "http://pro xy"));
        let error = config(Some(file.path()), None).await.expect_err("no address");
        let error = format!("{error:#}");
        assert!(error.contains(&file.path().display().to_string()) && error.contains("proxy url"), "{error}");
    }

    #[tokio::test]
    async fn a_token_file_counts_more_than_a_token_and_an_unreadable_one_less() {
        let token = kubeconfig("from the file");
        let named = |auth: &str| {
            let text = TWO_CLUSTERS.replace("{token: secret}", auth);
            let file = kubeconfig(&text);
            async move { connect(Some(file.path()), None, LIMIT, Arc::new(())).await }
        };
        let both = format!("{{token: secret, tokenFile: {:?}}}", token.path());
        let file = named(&both).await.unwrap().token.expect("the file counts");
        assert_eq!(file.header(), "Bearer from the file");
        assert!(named("{token: secret, tokenFile: /nonexistent/t}").await.unwrap().token.is_none());
        let error = named("{tokenFile: /nonexistent/t}").await.err().expect("no token at all");
        assert!(format!("{error:#}").contains("/nonexistent/t"), "{error:#}");
    }

    fn kubeconfig(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    const LIMIT: Limit = Limit { qps: Some(5.0), burst: 10 };

    const TWO_CLUSTERS: &str = "
current-context: b
contexts:
- {name: a, context: {cluster: a, user: u}}
- {name: b, context: {cluster: b, user: u}}
clusters:
- {name: a, cluster: {server: 'https://a.example:1'}}
- {name: b, cluster: {server: 'https://b.example:2', proxy-url: 'http://proxy.example:3128'}}
users:
- {name: u, user: {token: secret}}
";

    #[tokio::test]
    async fn the_current_contexts_server_and_proxy_count() {
        let file = kubeconfig(TWO_CLUSTERS);
        let config = config(Some(file.path()), None).await.unwrap();
        assert_eq!(config.cluster_url.to_string(), "https://b.example:2/");
        assert_eq!(config.proxy_url.unwrap().to_string(), "http://proxy.example:3128/");
    }

    #[tokio::test]
    async fn master_replaces_the_server_and_alone_suffices() {
        let file = kubeconfig(TWO_CLUSTERS);
        let both = config(Some(file.path()), Some("https://c.example:3")).await.unwrap();
        assert_eq!(both.cluster_url.to_string(), "https://c.example:3/");
        let alone = config(None, Some("http://127.0.0.1:8080")).await.unwrap();
        assert_eq!(alone.cluster_url.to_string(), "http://127.0.0.1:8080/");
        connect(None, Some("http://127.0.0.1:8080"), LIMIT, Arc::new(())).await.unwrap();
    }

    #[tokio::test]
    async fn an_unusable_kubeconfig_is_named() {
        for (text, expected) in [("contexts: [", "kubeconfig"), ("{}", "names no cluster")] {
            let file = kubeconfig(text);
            let error = config(Some(file.path()), None).await.expect_err("unusable");
            let error = format!("{error:#}");
            assert!(error.contains(&file.path().display().to_string()), "{error}");
            assert!(error.contains(expected), "{error}");
        }
        assert!(config(Some(Path::new("/nonexistent/kubeconfig")), None).await.is_err());
        assert!(config(None, Some("not a url")).await.is_err());
    }
}
