//! Fields to values with their grammar (config.md 4); every field that has none is reported.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::document::{ConntrackFields, KubeProxyConfiguration};
use super::duration::GoDuration;
use super::gates::Gates;
use super::origin::{Origin, Report, quoted};
use super::resolve::Effective;
use super::settings::Chainsmith;
use super::{BackendChoice, Client, Config, Conntrack, DetectLocal, LayoutChoice, NodePortAddresses};
use crate::net::{Cidr, IpFamily, MasqueradeMark, parse_ip};

/// The checked configuration, still without its [`Effective`] form; `None` only when something was
/// reported.
pub(super) fn check(
    d: &KubeProxyConfiguration,
    own: &Chainsmith,
    master: Option<String>,
    report: &mut Report,
) -> Option<impl FnOnce(Effective) -> Config + use<>> {
    let mut check = Check(report);
    let gates = Gates::read(&d.feature_gates, check.0);
    check.mode(&d.mode);
    let mark = check.mark(d.iptables.masquerade_bit.unwrap_or(14));
    let conntrack = check.conntrack(&d.conntrack);
    let oom_score_adj = check.in_range("oomScoreAdj", d.oom_score_adj.unwrap_or(-999), -1000, 1000);
    let burst = check.not_negative("clientConnection.burst", d.client_connection.burst);
    let config_sync_period = check.positive("configSyncPeriod", d.config_sync_period);
    let sync_period = check.positive("iptables.syncPeriod", d.iptables.sync_period);
    let min_sync_period = check.period("iptables.minSyncPeriod", d.iptables.min_sync_period);
    if sync_period < min_sync_period {
        let reason = format!("must be at least iptables.minSyncPeriod, {}", d.iptables.min_sync_period);
        check.0.refuse("iptables.syncPeriod", d.iptables.sync_period, reason);
    }
    let hostname_override = check.hostname(&d.hostname_override);
    let bind_address = check.address("bindAddress", &d.bind_address);
    let healthz_bind_address = check.server("healthzBindAddress", &d.healthz_bind_address);
    let metrics_bind_address = check.server("metricsBindAddress", &d.metrics_bind_address);
    let node_port_addresses = check.node_port_addresses(&d.node_port_addresses);
    check.hidden_metrics(&d.show_hidden_metrics_for_version);
    let detect_local = check.detect_local(d);
    let cluster_cidrs = match detect_local {
        Some(DetectLocal::ClusterCidr) => check.cluster_cidrs(&d.cluster_cidr),
        _ => Vec::new(),
    };
    let logging = d.logging.check(gates.is_on("LoggingAlphaOptions"), check.0);
    let content_type = &d.client_connection.content_type;
    if ![super::document::PROTOBUF, super::document::JSON].contains(&content_type.as_str()) {
        check.0.note("clientConnection.contentType", "Chainsmith asks the API server for JSON");
    }
    // As client-go takes them, which a flag can say as well as the file.
    let burst = if burst == 0 { DEFAULT_BURST } else { burst };
    let qps = match d.client_connection.qps {
        0.0 => Some(DEFAULT_QPS),
        qps => Some(qps).filter(|qps| *qps > 0.0),
    };
    let kubeconfig = Some(&d.client_connection.kubeconfig).filter(|path| !path.is_empty());
    let client =
        Client { kubeconfig: kubeconfig.map(PathBuf::from), master: check.master(master), qps, burst };

    let manifests = check.manifests(&own.manifests);
    let backend = check.word("chainsmith.iptablesBackend", &own.iptables_backend, &BACKENDS);
    let layout = check.word("chainsmith.layout", &own.layout, &LAYOUTS);
    let audit_period = check.positive("chainsmith.auditPeriod", own.audit_period);
    let (sync_period, audit_period) = (sync_period.max(SHORTEST_PERIOD), audit_period.max(SHORTEST_PERIOD));
    let debug_bind_address = check.server("chainsmith.debugBindAddress", &own.debug_bind_address);
    if debug_bind_address.is_some() {
        check.0.note("chainsmith.debugBindAddress", "has no effect yet");
    }

    let (detect_local, mark) = (detect_local?, mark?);
    let (backend, layout) = (backend?, layout?);
    let allow_external_ips = gates.is_on("AllowServiceExternalIPs");
    let (bind_address_hard_fail, enable_profiling) = (d.bind_address_hard_fail, d.enable_profiling);
    let masquerade_all = d.iptables.masquerade_all;
    let localhost_node_ports = d.iptables.localhost_node_ports.unwrap_or(true);
    Some(move |effective| Config {
        hostname_override,
        bind_address,
        cluster_cidrs,
        detect_local,
        node_port_addresses,
        mark,
        masquerade_all,
        localhost_node_ports,
        sync_period,
        min_sync_period,
        allow_external_ips,
        conntrack,
        client,
        healthz_bind_address,
        metrics_bind_address,
        bind_address_hard_fail,
        oom_score_adj,
        config_sync_period,
        enable_profiling,
        gates,
        logging,
        manifests,
        backend,
        layout,
        audit_period,
        debug_bind_address,
        effective,
    })
}

/// The shortest period for what no event announces: `iptables.syncPeriod`, at which the canary is looked at,
/// and `chainsmith.auditPeriod`. Shorter ones are raised to it, where kube-proxy spins.
pub(super) const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// What client-go makes of a `clientConnection.qps` of 0; source: `k8s.io/client-go/rest`, v0.36.
const DEFAULT_QPS: f32 = 5.0;
/// Likewise of `burst`.
const DEFAULT_BURST: u32 = 10;

const BACKENDS: [(&str, BackendChoice); 3] =
    [("auto", BackendChoice::Auto), ("nft", BackendChoice::Nft), ("legacy", BackendChoice::Legacy)];

const LAYOUTS: [(&str, LayoutChoice); 3] =
    [("auto", LayoutChoice::Auto), ("classic", LayoutChoice::Classic), ("compact", LayoutChoice::Compact)];

/// Checks of single fields; each reports and gives some value that is never used then.
struct Check<'a>(&'a mut Report);

impl Check<'_> {
    fn refuse(&mut self, path: &str, text: &str, reason: impl Into<String>) {
        self.0.refuse(path, quoted(text), reason);
    }

    fn mode(&mut self, mode: &str) {
        match mode {
            "iptables" => {}
            "ipvs" | "nftables" => self.refuse(
                "mode",
                mode,
                "Chainsmith is kube-proxy's iptables mode only: set the mode to \"iptables\" or leave it empty \
                 (what the other mode left on the node is removed), or go on with kube-proxy",
            ),
            _ => self.refuse("mode", mode, "must be iptables, or empty"),
        }
    }

    fn mark(&mut self, bit: i32) -> Option<MasqueradeMark> {
        let mark = u32::try_from(bit).ok().and_then(MasqueradeMark::from_bit);
        if mark.is_none() {
            self.0.refuse("iptables.masqueradeBit", bit, "must be 0 to 31");
        }
        mark
    }

    fn in_range<T: Copy + PartialOrd + fmt::Display>(&mut self, path: &str, value: T, min: T, max: T) -> T {
        if value < min || value > max {
            self.0.refuse(path, value, format!("must be {min} to {max}"));
        }
        value
    }

    fn not_negative(&mut self, path: &str, value: i32) -> u32 {
        u32::try_from(value).unwrap_or_else(|_| {
            self.0.refuse(path, value, "must not be negative");
            0
        })
    }

    fn period(&mut self, path: &str, value: GoDuration) -> Duration {
        value.to_std().unwrap_or_else(|| {
            self.0.refuse(path, value, "must not be negative");
            Duration::ZERO
        })
    }

    fn positive(&mut self, path: &str, value: GoDuration) -> Duration {
        match value.to_std() {
            Some(duration) if !duration.is_zero() => duration,
            _ => {
                self.0.refuse(path, value, "must be more than 0s");
                // Longer than what it could be compared with: one error, not two.
                Duration::MAX
            }
        }
    }

    fn conntrack(&mut self, c: &ConntrackFields) -> Conntrack {
        let mut timeout = |path: &str, value: GoDuration| {
            Some(self.period(&format!("conntrack.{path}"), value)).filter(|timeout| !timeout.is_zero())
        };
        let established = timeout("tcpEstablishedTimeout", c.tcp_established_timeout.unwrap_or_default());
        let close_wait = timeout("tcpCloseWaitTimeout", c.tcp_close_wait_timeout.unwrap_or_default());
        let udp_timeout = timeout("udpTimeout", c.udp_timeout);
        let udp_stream_timeout = timeout("udpStreamTimeout", c.udp_stream_timeout);
        let max_per_core = self.not_negative("conntrack.maxPerCore", c.max_per_core.unwrap_or_default());
        Conntrack {
            max_per_core: Some(max_per_core).filter(|max| *max > 0),
            min: self.not_negative("conntrack.min", c.min.unwrap_or_default()),
            tcp_established_timeout: established,
            tcp_close_wait_timeout: close_wait,
            tcp_be_liberal: c.tcp_be_liberal,
            udp_timeout,
            udp_stream_timeout,
        }
    }

    /// The name goes into selectors and comparisons; a Node cannot have any that is refused here.
    fn hostname(&mut self, text: &str) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        let name = text.trim().to_lowercase();
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        if name.is_empty() {
            self.refuse("hostnameOverride", text, "must not be white space only");
        } else if !is_name || name.len() > 253 || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            let reason = "is no name of a Node: a letter or digit, then letters, digits, '-', '.' and '_', 253 at most";
            self.refuse("hostnameOverride", text, reason);
        }
        Some(name)
    }

    /// `None` also for an unspecified address.
    fn address(&mut self, path: &str, text: &str) -> Option<IpAddr> {
        match parse_ip(text) {
            Ok(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
            Err(_) => {
                self.refuse(path, text, "must be an IP address");
                None
            }
        }
    }

    /// `<ip>:<port>`, IPv6 in brackets, or empty for no server.
    fn server(&mut self, path: &str, text: &str) -> Option<SocketAddr> {
        if text.is_empty() {
            return None;
        }
        let address = socket_address(text);
        if address.is_none() {
            self.refuse(path, text, "must be <ip>:<port>, an IPv6 address in brackets, the port 1 to 65535");
        }
        address
    }

    fn node_port_addresses(&mut self, texts: &[String]) -> NodePortAddresses {
        let path = "nodePortAddresses";
        if texts.is_empty() {
            return NodePortAddresses::All;
        }
        if texts.iter().any(|text| text == "primary") {
            if texts.len() > 1 {
                self.refuse(path, &texts.join(","), "\"primary\" must be the only element");
            }
            return NodePortAddresses::Primary;
        }
        let mut cidrs = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match Cidr::parse(text) {
                Ok(cidr) => cidrs.push(cidr),
                Err(_) => self.refuse(&format!("{path}[{i}]"), text, "must be a CIDR, or \"primary\" alone"),
            }
        }
        NodePortAddresses::Cidrs(cidrs)
    }

    /// Chainsmith follows kube-proxy 1.36; only the release before has metrics that could be hidden.
    fn hidden_metrics(&mut self, version: &str) {
        if !["", "1.35"].contains(&version) {
            self.refuse("showHiddenMetricsForVersion", version, "must be empty or \"1.35\"");
        }
    }

    fn detect_local(&mut self, d: &KubeProxyConfiguration) -> Option<DetectLocal> {
        match d.detect_local_mode.as_str() {
            "ClusterCIDR" => Some(DetectLocal::ClusterCidr),
            "NodeCIDR" => Some(DetectLocal::NodeCidr),
            "BridgeInterface" => {
                let name = &d.detect_local.bridge_interface;
                self.interface("detectLocal.bridgeInterface", name, 15);
                Some(DetectLocal::BridgeInterface(name.clone()))
            }
            "InterfaceNamePrefix" => {
                let prefix = &d.detect_local.interface_name_prefix;
                // The rule says `<prefix>+`, and iptables counts the plus.
                self.interface("detectLocal.interfaceNamePrefix", prefix, 14);
                Some(DetectLocal::InterfaceNamePrefix(prefix.clone()))
            }
            other => {
                let reason = "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.refuse("detectLocalMode", other, reason);
                None
            }
        }
    }

    /// The text goes into rules as it stands.
    fn interface(&mut self, path: &str, text: &str, max: usize) {
        let is_visible = text.bytes().all(|b| b.is_ascii_graphic() && !b"/:'\"`\\".contains(&b));
        if text.is_empty() {
            self.refuse(path, text, "must be set in this detectLocalMode");
        } else if !is_visible
            || text.len() > max
            || [".", "..", "+"].contains(&text)
            || text.starts_with(['-', '!'])
        {
            self.refuse(path, text, format!("is no interface name: at most {max} visible ASCII characters"));
        }
    }

    fn cluster_cidrs(&mut self, text: &str) -> Vec<Cidr> {
        let path = "clusterCIDR";
        if text.is_empty() && matches!(self.0.origins.of(path), Origin::Default | Origin::File) {
            return Vec::new();
        }
        let mut cidrs: Vec<Cidr> = Vec::new();
        for part in text.split(',') {
            match Cidr::parse(part) {
                // kube-proxy takes it, and then every sync fails.
                Ok(cidr) if cidr.is_everything() => {
                    self.refuse(path, part, "matches every address, which cannot tell pods from others");
                }
                Ok(cidr) => cidrs.push(cidr),
                Err(_) => self.refuse(path, part, "must be a CIDR"),
            }
        }
        let n_of = |family| cidrs.iter().filter(|cidr| cidr.family() == family).count();
        if text.split(',').count() > 2 || IpFamily::BOTH.into_iter().any(|family| n_of(family) > 1) {
            self.refuse(path, text, "must be one CIDR, or one of each family");
        }
        cidrs
    }

    fn master(&mut self, master: Option<String>) -> Option<String> {
        let text = master?;
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            self.refuse("--master", &text, "must be a URL");
        }
        Some(text)
    }

    fn manifests(&mut self, texts: &[String]) -> Vec<PathBuf> {
        for text in texts.iter().filter(|text| text.is_empty() || text.contains('\0')) {
            self.refuse("chainsmith.manifests", text, "must name a folder");
        }
        texts.iter().map(PathBuf::from).collect()
    }

    fn word<T: Copy>(&mut self, path: &str, text: &str, words: &[(&str, T)]) -> Option<T> {
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(path, text, format!("must be one of {}", words.join(", ")));
        }
        found.map(|(_, value)| *value)
    }
}

/// `1.2.3.4:80` or `[::1]:80`; the port is 1 to 65535.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(host) => parse_ip(host?).ok()?,
        None if host.contains(':') => return None,
        None => parse_ip(host).ok()?,
    };
    let is_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = is_number.then(|| port.parse().ok())??;
    (port > 0).then(|| SocketAddr::new(ip, port))
}
