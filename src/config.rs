//! Flags and the text of a `KubeProxyConfiguration` to one checked [`Config`].
//!
//! The way: `file` (text to fields, with `document` and `settings` naming them), `flags` (the
//! command line), `resolve` (which of the two counts, defaults), `validate` (fields to values with
//! their grammar). Every error is reported at once. Nothing here reads files, the clock or the
//! environment: what only the machine knows (host name, CPUs, addresses) comes in later.

pub mod document;
mod duration;
mod file;
mod flags;
mod gates;
mod logging;
mod origin;
mod resolve;
mod settings;
mod tree;
mod validate;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use duration::GoDuration;
pub use flags::{FLAGS, Flag, Flags, RuleFlags, Scope, normalise};
pub use gates::Gates;
pub use logging::{FlushFrequency, FormatOptions, LoggingFields, Quantity, StreamOptions};
use origin::Report;
pub use origin::{ConfigError, ConfigErrors, Origin, Origins, Warning};
pub use resolve::{Effective, Setting};
pub use settings::Chainsmith;

use crate::net::{Cidr, IpFamily, MasqueradeMark};

/// The checked configuration of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of the Node: lower case, letters, digits, `-`, `.`, `_`. `None`: the host name.
    pub hostname_override: Option<String>,
    /// The Node's address, instead of what the Node object says; never an unspecified one.
    pub bind_address: Option<IpAddr>,
    /// CIDRs of the pods, at most one of each family, none of them everything. Only in the mode
    /// [`DetectLocal::ClusterCidr`]; empty otherwise.
    pub cluster_cidrs: Vec<Cidr>,
    /// How traffic of local pods is recognised.
    pub detect_local: DetectLocal,
    /// Which addresses of the node serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// The packet mark that asks for masquerading.
    pub mark: MasqueradeMark,
    /// Whether everything sent to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// Whether node ports work on 127.0.0.1 (IPv4 only).
    pub localhost_node_ports: bool,
    /// How often what no event announces is checked; at least `min_sync_period`.
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
    /// Whether a port that one of the two servers cannot bind ends the process.
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
    /// Folders of manifests to take objects from; empty: from the API server.
    pub manifests: Vec<PathBuf>,
    /// The iptables back-end.
    pub backend: BackendChoice,
    /// The layout of the rules.
    pub layout: LayoutChoice,
    /// How often the kernel is compared with what was written; more than zero.
    pub audit_period: Duration,
    /// Where the debug server listens; `None`: no debug server.
    pub debug_bind_address: Option<SocketAddr>,
    /// The same as fields, with the origin of each: for the log and `/configz`.
    pub effective: Effective,
}

/// How traffic of local pods is recognised (config.md 7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Source in [`Config::cluster_cidrs`].
    ClusterCidr,
    /// Source in the Node's pod CIDRs.
    NodeCidr,
    /// Came in through the interface of this name: 1 to 15 bytes of visible ASCII, without `/`, `:`,
    /// quotes and backslash.
    BridgeInterface(String),
    /// Came in through an interface whose name begins so: 1 to 14 bytes, likewise.
    InterfaceNamePrefix(String),
}

/// Which addresses of the node serve node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All.
    All,
    /// The addresses of the Node object, one of each family.
    Primary,
    /// Those in these networks, in the order of the configuration; never empty. A family that none
    /// is of serves node ports on all its addresses.
    Cidrs(Vec<Cidr>),
}

/// Conntrack sysctls; `None`: leave what the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries for each CPU, more than zero.
    pub max_per_core: Option<u32>,
    /// Entries at least; counts only with `max_per_core`.
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
    /// Above this many entries no more are added for more CPUs.
    const CAP: u64 = 1_048_576;

    /// What `nf_conntrack_max` is to be on a machine with `n_cpus` CPUs; `None`: leave it. Source:
    /// kube-proxy v1.36, `getConntrackMax`.
    pub fn max(&self, n_cpus: u32) -> Option<u64> {
        let scaled = u64::from(self.max_per_core?) * u64::from(n_cpus);
        Some(if scaled > Self::CAP { Self::CAP } else { scaled.max(u64::from(self.min)) })
    }

    /// Keys under `net/netfilter/` and their values, in the order in which kube-proxy writes them,
    /// without `nf_conntrack_max`. Timeouts are whole seconds, cut.
    pub fn sysctls(&self) -> Vec<(&'static str, u64)> {
        let seconds = |timeout: Option<Duration>| timeout.map(|timeout| timeout.as_secs());
        let wanted = [
            ("nf_conntrack_tcp_timeout_established", seconds(self.tcp_established_timeout)),
            ("nf_conntrack_tcp_timeout_close_wait", seconds(self.tcp_close_wait_timeout)),
            ("nf_conntrack_tcp_be_liberal", self.tcp_be_liberal.then_some(1)),
            ("nf_conntrack_udp_timeout", seconds(self.udp_timeout)),
            ("nf_conntrack_udp_timeout_stream", seconds(self.udp_stream_timeout)),
        ];
        wanted.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// How to reach the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Client {
    /// The kubeconfig; `None` and no `master`: as a pod.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's.
    pub master: Option<String>,
    /// Requests each second; `None`: no limit.
    pub qps: Option<f32>,
    /// Requests at once.
    pub burst: u32,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// The form of log lines.
    pub format: LogFormat,
    /// 0 and up, as in runtime.md 14.
    pub verbosity: u32,
    /// Verbosity by file, first match counts.
    pub vmodule: Vec<VModule>,
}

/// Verbosity of the files that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VModule {
    /// File name without its extension, or with `/` its path; `*` and `?` as in a shell.
    pub file_pattern: String,
    /// 0 and up.
    pub verbosity: u32,
}

/// The iptables back-end asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// Found as iptables-wrappers does.
    Auto,
    /// nf_tables.
    Nft,
    /// The old tables.
    Legacy,
}

/// The layout asked for (design.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutChoice {
    /// By the number of endpoints.
    Auto,
    /// kube-proxy's.
    Classic,
    /// The short one.
    Compact,
}

impl NodePortAddresses {
    /// The networks of `family`; `None` when all its addresses serve node ports: no network is of
    /// the family, or one is everything. [`NodePortAddresses::Primary`] must have been replaced.
    pub fn of(&self, family: IpFamily) -> Option<Vec<Cidr>> {
        let NodePortAddresses::Cidrs(cidrs) = self else { return None };
        let ours: Vec<Cidr> = cidrs.iter().filter(|cidr| cidr.family() == family).copied().collect();
        (!ours.is_empty() && !ours.iter().any(Cidr::is_everything)).then_some(ours)
    }

    /// [`NodePortAddresses::Primary`] replaced by the Node's addresses, loopback (which means
    /// unknown) left out; anything else as it is.
    pub fn with_primary(&self, node: impl IntoIterator<Item = IpAddr>) -> NodePortAddresses {
        if *self != NodePortAddresses::Primary {
            return self.clone();
        }
        let cidrs: Vec<Cidr> = node.into_iter().filter(|ip| !ip.is_loopback()).map(Cidr::host).collect();
        if cidrs.is_empty() { NodePortAddresses::All } else { NodePortAddresses::Cidrs(cidrs) }
    }
}

/// What kube-proxy does without a file and without flags.
impl Default for Config {
    fn default() -> Config {
        let (config, _) = Config::resolve(None, &Flags::default()).expect("the defaults are valid");
        config
    }
}

#[cfg(test)]
mod tests;
