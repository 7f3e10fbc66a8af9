//! The report on one Service, as plain values.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::model::NotProxied;
use crate::policy::{EndpointUse, HintsUse};

/// One Service as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ExplainReport {
    /// `<namespace>/<name>`.
    pub service: String,
    /// The name of the node; `None` if unknown.
    pub node: Option<String>,
    /// The zone of the node; `None` if it has none or is unknown.
    pub zone: Option<String>,
    /// Where the rules come from, as in `desired rules`.
    pub rules: String,
    /// Why kube-proxy does not serve the Service; then it has no rules and `ports` is empty.
    pub not_proxied: Option<NotProxied>,
    /// What the Service says about its traffic; `None` if its object is unknown.
    pub policies: Option<ServicePolicies>,
    /// Its ports in each family, families together.
    pub ports: Vec<PortExplanation>,
    /// Ports that are left out of `ports`, which is bounded.
    pub n_more_ports: usize,
    /// The places from which packets come.
    pub vantages: Vec<VantageExplanation>,
    /// Problems of the Service and its slices, one line each.
    pub problems: Vec<String>,
    /// What the input does not tell, one line each.
    pub unknown: Vec<String>,
    /// What only a running agent knows.
    pub agent: Option<ServiceSyncState>,
}

/// Fields of a Service that decide about its traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServicePolicies {
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`; `Cluster` where the type of the Service does not make it reachable from outside.
    pub external_traffic_policy: String,
    /// Duration of ClientIP affinity in seconds; `None` without affinity.
    pub affinity_seconds: Option<u32>,
    /// The health check node port.
    pub health_check_node_port: Option<u16>,
}

/// One port of the Service in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PortExplanation {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `<namespace>/<name>[:<port name>]`.
    pub service_port: String,
    /// The name of the port, often empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The port of the cluster IP; `None` if unknown.
    pub port: Option<u16>,
    /// The kernel's message, if its rules were rejected and it is kept out.
    pub quarantined: Option<String>,
    /// The addresses and ports on which it answers.
    pub frontends: Vec<FrontendExplanation>,
    /// The sources that may use load balancer IPs; empty for all.
    pub source_ranges: Vec<String>,
    /// Its endpoints, by address.
    pub endpoints: Vec<EndpointExplanation>,
    /// Endpoints that are left out of `endpoints`, which is bounded.
    pub n_more_endpoints: usize,
    /// Number of endpoints that serve traffic under policy Cluster; `None` if there is no such traffic or it is unknown.
    pub n_cluster: Option<usize>,
    /// Number of endpoints that serve traffic under policy Local; `None` if there is no such traffic or it is unknown.
    pub n_local: Option<usize>,
    /// Whether topology hints choose among the endpoints; `None` if unknown.
    pub hints: Option<HintsUse>,
    /// Entries of slices that are no endpoints of this port.
    pub other_entries: Vec<SliceEntryExplanation>,
    /// Its chains.
    pub chains: Vec<ChainExplanation>,
    /// Chains of endpoints that are left out of `chains`, which is bounded.
    pub n_more_chains: usize,
    /// The entries of its frontends in chains that Services share.
    pub entries: Vec<EntryExplanation>,
    /// What packets to each frontend meet, by vantage and then frontend.
    pub truth_table: Vec<TruthCell>,
}

/// The kinds of frontends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum FrontendClass {
    /// The cluster IP.
    ClusterIp,
    /// The node port.
    NodePort,
    /// A load balancer IP.
    LoadBalancerIp,
    /// An external IP.
    ExternalIp,
    /// An external IP or load balancer IP: rules alone do not tell which.
    External,
}

impl FrontendClass {
    /// As reports show it.
    pub fn as_str(self) -> &'static str {
        match self {
            FrontendClass::ClusterIp => "cluster IP",
            FrontendClass::NodePort => "node port",
            FrontendClass::LoadBalancerIp => "load balancer IP",
            FrontendClass::ExternalIp => "external IP",
            FrontendClass::External => "external address",
        }
    }
}

/// An address and port on which a service port answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FrontendExplanation {
    /// Its kind.
    pub kind: FrontendClass,
    /// Its address; `None` for a node port.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// For a node port: the addresses of the node on which it answers; `None` for every address.
    pub node_addresses: Option<Vec<IpAddr>>,
    /// The service port of another Service that owns the frontend: this one does not answer on it.
    pub owned_by: Option<String>,
    /// Service ports that claim the frontend too, and do not answer on it.
    pub claimed_by: Vec<String>,
}

impl FrontendExplanation {
    /// `cluster IP 10.0.0.1:80`, `node port 30080`
    pub fn text(&self) -> String {
        match self.address {
            Some(address) => format!("{} {}", self.kind.as_str(), SocketAddr::new(address, self.port)),
            None => format!("{} {}", self.kind.as_str(), self.port),
        }
    }
}

/// An endpoint, and whether it serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointExplanation {
    /// Its address and port.
    pub address: SocketAddr,
    /// The name of its slice, without the namespace; `None` if unknown.
    pub slice: Option<String>,
    /// The name of its node; `None` if unknown.
    pub node: Option<String>,
    /// The zones of its hints.
    pub hinted_zones: Vec<String>,
    /// The nodes of its hints.
    pub hinted_nodes: Vec<String>,
    /// Whether it serves traffic under policy Cluster; `None` if there is no such traffic or it is unknown.
    pub cluster: Option<EndpointUse>,
    /// Whether it serves traffic under policy Local; `None` if there is no such traffic or it is unknown.
    pub local: Option<EndpointUse>,
}

/// An entry of a slice that is no endpoint of the port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", tag = "reason")]
pub enum SliceEntryExplanation {
    /// Another entry has the same address.
    #[serde(rename_all = "camelCase")]
    Superseded {
        /// The address.
        address: SocketAddr,
        /// The slice of the entry.
        slice: String,
        /// The slice of the other entry, which is used.
        by: String,
    },
    /// No port of the Service has the name and the protocol of the slice's port.
    #[serde(rename_all = "camelCase")]
    NoSuchPort {
        /// The slice.
        slice: String,
        /// The name of its port.
        port_name: String,
        /// The protocol of its port.
        protocol: String,
        /// Endpoints in the slice.
        n_endpoints: usize,
    },
    /// The slice is of the other family.
    #[serde(rename_all = "camelCase")]
    OtherFamily {
        /// The slice.
        slice: String,
        /// `IPv4` or `IPv6`.
        family: String,
        /// Endpoints in the slice.
        n_endpoints: usize,
    },
}

/// A chain of the service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ChainExplanation {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// What it is for, as in `endpoints of all nodes`.
    pub role: String,
    /// Number of its rules.
    pub n_rules: usize,
    /// Rules that lead to it; at most a few.
    pub reached_from: Vec<ChainCaller>,
    /// Further rules that lead to it.
    pub n_more_callers: usize,
    /// Whether it is the chain of one endpoint.
    pub is_endpoint: bool,
}

/// A rule of the same table that leads to a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ChainCaller {
    /// Its chain.
    pub chain: String,
    /// Its number, from 1.
    pub rule: usize,
}

/// An entry in a chain that Services share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EntryExplanation {
    /// Where it stands, as in `nat KUBE-SERVICES rule 3`.
    pub at: String,
    /// The packets that it is for, as in `10.0.0.1:80/TCP`.
    pub packets: String,
    /// What it does, as in `to KUBE-SVC-2CMXP7HKUVJN7L6M` or `reject`.
    pub action: String,
}

/// A place from which packets come, in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VantageExplanation {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The place, as in `pod elsewhere`.
    pub from: String,
    /// The source address of its packets.
    pub source: IpAddr,
    /// What `source` stands for, if it is no address that is known to exist.
    pub stands_for: Option<String>,
}

/// What packets from one place to one frontend meet on this node, by the rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TruthCell {
    /// The place, as in `pod elsewhere`.
    pub from: String,
    /// The index of the frontend in `frontends`.
    pub frontend: usize,
    /// Source address of the packet.
    pub source: IpAddr,
    /// Destination of the packet.
    pub destination: SocketAddr,
    /// Whether such packets reach the rules of this node.
    pub reach: PacketReach,
    /// What can happen to it; one unless the rules leave a choice.
    pub fates: Vec<CellFate>,
}

/// Whether packets from a place to a frontend reach the rules of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum PacketReach {
    /// They do.
    ThisNode,
    /// The node of the pod handles them by its own rules.
    OwnNode,
    /// Networks outside the cluster have no route to cluster IPs; if one is added, the fates apply.
    NotRouted,
}

/// What happens to a packet, in some or all cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CellFate {
    /// How it ends.
    pub verdict: CellVerdict,
    /// Its probability, more than 0 and at most 1.
    pub probability: f64,
    /// Why it is rejected or dropped, or which rule cannot be decided.
    pub reason: Option<String>,
    /// Which endpoints answer.
    pub group: Option<EndpointGroup>,
    /// The endpoints that answer; at most the first few hundred.
    pub endpoints: Vec<AnsweringEndpoint>,
    /// Number of endpoints that answer.
    pub n_endpoints: usize,
    /// Whether its source becomes an address of the node.
    pub is_masqueraded: bool,
    /// Whether no reply can come back: it leaves the node with a loopback source.
    pub is_unanswerable: bool,
    /// Rules that could change this and cannot be decided, one line each; the rest holds if they do not match.
    pub undecided: Vec<String>,
    /// The service port of another Service that answers.
    pub other_service_port: Option<String>,
}

/// How a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CellVerdict {
    /// An endpoint gets it.
    Endpoint,
    /// No rule changes its destination; a program of the node gets it, if one listens there.
    ToNode,
    /// No rule changes its destination; it leaves the node.
    Untranslated,
    /// It is rejected, with an error to its sender.
    Rejected,
    /// It is dropped.
    Dropped,
    /// A rule cannot be decided.
    Unknown,
}

/// A set of endpoints, by what they have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum EndpointGroup {
    /// All that serve traffic under policy Cluster.
    All,
    /// All that serve traffic under policy Cluster, which are fewer because of hints for zones.
    Zone,
    /// All that serve traffic under policy Cluster, which are fewer because of hints for nodes.
    NodeHint,
    /// All that serve traffic under policy Local.
    Local,
    /// Some.
    Some,
}

/// An endpoint with the probability that a connection goes to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AnsweringEndpoint {
    /// Its address and port.
    pub address: SocketAddr,
    /// The probability.
    pub probability: f64,
}

/// What a running agent knows of a Service beside objects and rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSyncState {
    /// When the Service or its slices last changed, as in `3 min ago`; `None` if not since the agent started.
    pub last_change: Option<String>,
    /// When its rules were last written, as in `3 min ago`.
    pub last_sync: Option<String>,
    /// Whether a change waits to be written.
    pub is_pending: bool,
    /// Endpoints whose affinity list is full: its oldest clients lose affinity.
    pub full_affinity_lists: Vec<String>,
}
