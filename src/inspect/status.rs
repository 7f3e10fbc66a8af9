//! The state of a running agent: what it runs with, what is in force, what it did last, what is wrong.
//!
//! A field that the sender does not know has its default, so that a program reads what an older agent sends.

use serde::{Deserialize, Serialize};

/// The state of an agent at one moment. Ages are seconds before that moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct StatusReport {
    /// Chainsmith's release.
    pub release: String,
    /// The release of kube-proxy that it replaces.
    pub replaces: String,
    /// The Node's name.
    pub node: String,
    /// The moment, in UTC, as RFC 3339 writes it.
    pub time: String,
    /// How long the agent has been running.
    pub uptime_seconds: f64,
    /// Where objects come from: `API server`, or the folders of manifests.
    pub source: String,
    /// Settings that differ from the defaults.
    pub settings: Vec<SettingInForce>,
    /// Objects that the agent knows.
    pub objects: ObjectCounts,
    /// Each watched kind; empty without an API server.
    pub watches: Vec<WatchAge>,
    /// Changes that are not in force yet.
    pub pending: PendingCounts,
    /// What the agent found about its node, each once.
    pub findings: Vec<NodeFinding>,
    /// The families that are proxied.
    pub families: Vec<FamilyState>,
    /// Unusable fields in all objects.
    pub n_problems: usize,
    /// The first problems of each kind of objects.
    pub problems: Vec<ObjectProblem>,
}

/// A setting that differs from its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct SettingInForce {
    /// Its path in the configuration file, or `--<flag>`.
    pub path: String,
    /// Its value, as in the file.
    pub value: serde_json::Value,
    /// `file`, or the flag.
    pub set_by: String,
}

/// How many objects there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct ObjectCounts {
    /// Services that are proxied.
    pub services: usize,
    /// EndpointSlices of Services.
    pub endpoint_slices: usize,
    /// Whether the Node is known.
    pub has_node: bool,
}

/// How current the objects of one kind are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct WatchAge {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: String,
    /// How long there has been no open watch; 0 while there is one.
    pub stale_seconds: f64,
    /// Whether that is so long that the agent counts as unhealthy.
    pub is_stale: bool,
}

/// Changes that no sync has taken up yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct PendingCounts {
    /// Changed Services.
    pub services: usize,
    /// Changed EndpointSlices.
    pub endpoint_slices: usize,
}

/// Something about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct NodeFinding {
    /// The name of its kind, as in metrics and events.
    pub kind: String,
    /// Whether the operator has to act.
    pub is_warning: bool,
    /// A sentence.
    pub message: String,
}

/// A field of an object that is not usable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct ObjectProblem {
    /// `Service`, `EndpointSlice` or `Node`.
    pub kind: String,
    /// `<namespace>/<name>` as given, or the name of a Node.
    pub object: String,
    /// The field, its text and what is wrong with it; printable.
    pub message: String,
}

/// The state of one IP family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct FamilyState {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// `nft` or `legacy`.
    pub backend: String,
    /// `classic` or `compact`; `None` before the first sync.
    pub layout: Option<String>,
    /// Rules, chains, service ports and endpoints in force.
    pub in_force: InForceCounts,
    /// What is known of the kernel's tables; `None` while the loop that knows is busy.
    pub drift: Option<DriftState>,
    /// The last read of the kernel by a sync.
    pub last_read: Option<KernelRead>,
    /// How long ago a sync succeeded last; `None` before the first one.
    pub last_success_seconds: Option<f64>,
    /// Failed syncs since then.
    pub n_failures: u64,
    /// The sync that is running: for how long.
    pub syncing_seconds: Option<f64>,
    /// All syncs since the start.
    pub n_syncs: u64,
    /// The last syncs, newest first.
    pub syncs: Vec<SyncRecord>,
    /// How many service ports are quarantined.
    pub n_quarantined: usize,
    /// The first of them, by name.
    pub quarantined: Vec<QuarantinedPort>,
    /// Endpoints whose affinity lists are full.
    pub affinity_lists_full: usize,
    /// The input that iptables-restore received last.
    pub last_restore: Option<RestoreSummary>,
    /// The input that iptables-restore rejected last, or at which it failed.
    pub failed_restore: Option<RestoreSummary>,
}

/// What is in force after the last sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct InForceCounts {
    /// Service ports that have a cluster IP in the family.
    pub service_ports: usize,
    /// Their endpoints, whatever their conditions.
    pub endpoints: usize,
    /// Our rules in filter.
    pub filter_rules: usize,
    /// Our rules in nat.
    pub nat_rules: usize,
    /// Our chains in both tables.
    pub chains: usize,
    /// Entries left out because their frontends belong to other Services.
    pub overlaps: usize,
    /// Service ports that drop packets for their cluster IP: policy Local, and no endpoint on this node.
    pub dropped_internal: usize,
    /// Service ports that drop packets from outside, for the same reason.
    pub dropped_external: usize,
}

/// What the agent knows of the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct DriftState {
    /// `unknown`, `trusted`, `suspect`, `scanning` or `unverified`.
    pub state: String,
    /// Why, where there is a reason: as in `chainsmith_kernel_reads_total`.
    pub reason: Option<String>,
    /// Chains that a scan has still to compare.
    pub n_left: Option<usize>,
}

/// A read of the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct KernelRead {
    /// Why, as in `chainsmith_kernel_reads_total`.
    pub reason: String,
    /// How long ago the sync that read ended.
    pub seconds_ago: f64,
}

/// One sync of one family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct SyncRecord {
    /// How long ago it ended.
    pub seconds_ago: f64,
    /// Its duration.
    pub seconds: f64,
    /// Whether it compiled every Service.
    pub is_full: bool,
    /// How many Services it compiled, if not all.
    pub n_services: usize,
    /// The first of them, by name.
    pub services: Vec<String>,
    /// How long each stage took.
    pub stages: StageSeconds,
    /// What it sent to the kernel.
    pub sent: SentCounts,
    /// Why it read the kernel, for each read.
    pub reads: Vec<String>,
    /// The chains that another process had changed.
    pub drift: Option<String>,
    /// Chains and jumps that it repaired.
    pub n_repaired: usize,
    /// Failed restores; it may have succeeded with a later one.
    pub n_failed_restores: usize,
    /// Why it failed; `None` if it succeeded.
    pub error: Option<String>,
}

/// How long each stage of a sync took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct StageSeconds {
    /// Reading the kernel's tables.
    pub read: f64,
    /// Compiling rules.
    pub compile: f64,
    /// Comparing, ordering, writing text.
    pub plan: f64,
    /// Waiting for the xtables lock.
    pub lock_wait: f64,
    /// iptables-restore.
    pub restore: f64,
}

/// What a sync sent to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct SentCounts {
    /// iptables-restore processes.
    pub processes: usize,
    /// Lines of input.
    pub lines: usize,
    /// Bytes of input.
    pub bytes: usize,
    /// Rules written.
    pub rules: usize,
    /// Chains written.
    pub chains: usize,
    /// Chains deleted.
    pub deleted: usize,
}

/// A service port whose rules the kernel rejects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct QuarantinedPort {
    /// `<namespace>/<name>:<port>`.
    pub service_port: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The rejected line, if it is known.
    pub rule: Option<String>,
    /// What iptables-restore said.
    pub message: String,
}

/// An input of iptables-restore, without its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct RestoreSummary {
    /// How long ago the sync that sent it ended.
    pub seconds_ago: f64,
    /// Its lines.
    pub lines: usize,
    /// Its bytes.
    pub bytes: usize,
    /// Why it failed; `None` if it succeeded.
    pub error: Option<String>,
}

/// The inputs of iptables-restore that an agent sent last, or that failed last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct RestoreReport {
    /// Of each family that has one.
    pub inputs: Vec<KeptRestore>,
}

/// An input of iptables-restore, of which a long one is kept only in parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct KeptRestore {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// Its size and outcome.
    pub summary: RestoreSummary,
    /// What is kept: all of a short input; of a long one its beginning, its end and the lines around the rejected line.
    pub pieces: Vec<KeptLines>,
}

/// Lines that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
pub struct KeptLines {
    /// Number of the first line, from 1.
    pub first_line: usize,
    /// The lines, each with its line feed.
    pub text: String,
}
