//! The checked configuration: the values that the rest of the program uses.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::effective::{Effective, EffectiveSetting};
use super::gates::Gates;
use crate::net::{Cidr, IpFamily, MasqueradeMark, UnixAddress};

/// The checked configuration of one run. `config::table` fills every field.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the Node: lower case, letters, digits, `-`, `.`, `_`. `None`: the host name.
    pub hostname_override: Option<String>,
    /// Overrides the address in the Node object; never an unspecified one.
    pub bind_address: Option<IpAddr>,
    /// CIDRs of the pods, at most one of each family, none of them /0. Only in the mode
    /// [`DetectLocal::ClusterCidr`]; empty otherwise.
    pub cluster_cidrs: Vec<Cidr>,
    /// How traffic of local pods is recognised.
    pub detect_local: DetectLocal,
    /// Which addresses of the node serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// The packet mark that asks for masquerading.
    pub mark: MasqueradeMark,
    /// Whether all traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// Whether node ports work on 127.0.0.1 (IPv4 only).
    pub localhost_node_ports: bool,
    /// Longest retry delay and canary interval; at least `min_sync_period` and 1 s.
    pub sync_period: Duration,
    /// From the end of one sync to the start of the next.
    pub min_sync_period: Duration,
    /// Whether external IPs of Services count (gate `AllowServiceExternalIPs`).
    pub allow_external_ips: bool,
    /// Conntrack sysctls.
    pub conntrack: Conntrack,
    /// How to reach the API server.
    pub client: Client,
    /// Where the health server listens; `None`: no health server.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where the metrics server listens; `None`: no metrics server.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Whether the process ends if the health or metrics server cannot bind its port.
    pub bind_address_hard_fail: bool,
    /// For `/proc/self/oom_score_adj`: -1000 to 1000.
    pub oom_score_adj: i32,
    /// kube-proxy's informer resync period; more than zero.
    pub config_sync_period: Duration,
    /// Whether profiles are served.
    pub enable_profiling: bool,
    /// Feature gates.
    pub gates: Gates,
    /// Logs.
    pub logging: Logging,
    /// Networks in `ipvs.excludeCIDRs`, without malformed ones; used for warnings only.
    pub ipvs_exclude_cidrs: Vec<Cidr>,
    /// `winkernel.sourceVip`, if well-formed; used for warnings only.
    pub winkernel_source_vip: Option<IpAddr>,
    /// Folders of manifests to read objects from; empty: from the API server.
    pub manifests: Vec<PathBuf>,
    /// The iptables back-end.
    pub backend: BackendChoice,
    /// The layout of the rules.
    pub layout: LayoutChoice,
    /// Interval of audits (reading the rules in force and comparing them); at least 1 s.
    pub audit_period: Duration,
    /// What is counted of connections.
    pub connection_metrics: ConnectionMetrics,
    /// Where the debug server listens; `None`: no debug server.
    pub debug_bind_address: Option<SocketAddr>,
    /// The Unix socket that answers questions about the rules; `None`: no socket.
    pub agent_socket: Option<UnixAddress>,
    /// Every setting with its origin, for the log and `/configz`.
    pub effective: Effective,
}

impl Config {
    /// The settings that file or flags changed from their defaults, in the order of the table.
    pub fn differences(&self) -> Vec<&EffectiveSetting> {
        self.effective.settings().iter().filter(|setting| !setting.is_default).collect()
    }
}

/// How traffic of local pods is recognised (config.md 7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Source in [`Config::cluster_cidrs`].
    ClusterCidr,
    /// Source in the Node's pod CIDRs.
    NodeCidr,
    /// Input interface has this name: 1 to 15 bytes of visible ASCII, without `/`, `:`, quotes and
    /// backslash.
    BridgeInterface(String),
    /// Name of the input interface begins so: 1 to 14 bytes, likewise.
    InterfaceNamePrefix(String),
}

/// Which addresses of the node serve node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All.
    All,
    /// The addresses of the Node object, one of each family.
    Primary,
    /// Those in these networks, in the order of the configuration; never empty. A family without a
    /// network serves node ports on all its addresses.
    Cidrs(Vec<Cidr>),
}

impl NodePortAddresses {
    /// The networks of `family`; `None` when all its addresses serve node ports: no network is of
    /// the family, or one is /0. [`NodePortAddresses::Primary`] must have been replaced.
    pub fn of(&self, family: IpFamily) -> Option<Vec<Cidr>> {
        let NodePortAddresses::Cidrs(cidrs) = self else { return None };
        let ours: Vec<Cidr> = cidrs.iter().filter(|cidr| cidr.family() == family).copied().collect();
        (!ours.is_empty() && !ours.iter().any(Cidr::is_everything)).then_some(ours)
    }

    /// [`NodePortAddresses::Primary`] replaced by the Node's addresses, without loopback (which means
    /// unknown); anything else as it is.
    pub fn with_primary(&self, node: impl IntoIterator<Item = IpAddr>) -> NodePortAddresses {
        if *self != NodePortAddresses::Primary {
            return self.clone();
        }
        let cidrs: Vec<Cidr> = node.into_iter().filter(|ip| !ip.is_loopback()).map(Cidr::host).collect();
        if cidrs.is_empty() { NodePortAddresses::All } else { NodePortAddresses::Cidrs(cidrs) }
    }
}

/// Conntrack sysctls; `None`: keep the kernel's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries for each CPU, more than zero.
    pub max_per_core: Option<u32>,
    /// Lower bound of all entries; only with `max_per_core`.
    pub min: u32,
    /// Timeout of established TCP connections.
    pub tcp_established_timeout: Option<Duration>,
    /// Timeout of TCP connections in CLOSE_WAIT.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Whether TCP packets outside the window are accepted; `false` does not reset it.
    pub tcp_be_liberal: bool,
    /// Timeout of UDP flows without an answer.
    pub udp_timeout: Option<Duration>,
    /// Timeout of UDP flows with answers.
    pub udp_stream_timeout: Option<Duration>,
}

impl Conntrack {
    /// More CPUs raise the number of entries up to this one.
    const CAP: u64 = 1_048_576;

    /// The value for `nf_conntrack_max` on a machine with `n_cpus` CPUs; `None`: keep the kernel's.
    /// Source: kube-proxy v1.36, `getConntrackMax`.
    pub fn max(&self, n_cpus: u32) -> Option<u64> {
        let scaled = u64::from(self.max_per_core?) * u64::from(n_cpus);
        Some(if scaled > Self::CAP { Self::CAP } else { scaled.max(u64::from(self.min)) })
    }

    /// Keys under `net/netfilter/` and their values, in the order in which kube-proxy writes them,
    /// without `nf_conntrack_max`. Timeouts are rounded down to seconds.
    pub fn sysctls(&self) -> Vec<(&'static str, u64)> {
        let seconds = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        let configured = [
            ("nf_conntrack_tcp_timeout_established", seconds(self.tcp_established_timeout)),
            ("nf_conntrack_tcp_timeout_close_wait", seconds(self.tcp_close_wait_timeout)),
            ("nf_conntrack_tcp_be_liberal", self.tcp_be_liberal.then_some(1)),
            ("nf_conntrack_udp_timeout", seconds(self.udp_timeout)),
            ("nf_conntrack_udp_timeout_stream", seconds(self.udp_stream_timeout)),
        ];
        configured.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// The kubeconfig; `None` and no `master`: as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the kubeconfig's.
    pub master: Option<String>,
    /// Requests each second; `None`: no limit.
    pub qps: Option<f32>,
    /// Requests at once.
    pub burst: u32,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// klog's text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// The format of log lines.
    pub format: LogFormat,
    /// 0 and up, as in runtime.md 14.
    pub verbosity: u32,
    /// Verbosity by source file; the first match counts.
    pub vmodule: Vec<VModule>,
}

/// Verbosity of the source files that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VModule {
    /// File name without its extension, or with `/` its path; `*` and `?` as in a shell.
    pub file_pattern: String,
    /// 0 and up.
    pub verbosity: u32,
}

/// The configured iptables back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// Detected as iptables-wrappers does.
    Auto,
    /// nf_tables.
    Nft,
    /// x_tables.
    Legacy,
}

/// What is counted of connections, for `/metrics/services` and `top --agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionMetrics {
    /// Nothing.
    Off,
    /// New connections of each service port.
    Service,
    /// New connections of each service port and each endpoint.
    Endpoint,
}

/// The configured layout (design.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutChoice {
    /// By the number of endpoints.
    Auto,
    /// kube-proxy's.
    Classic,
    /// Chainsmith's own, with fewer rules.
    Compact,
}
