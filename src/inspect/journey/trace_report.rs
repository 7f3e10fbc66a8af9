//! The answer to a question about a packet, as plain values.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The answer: one journey for each family and port that the question names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TraceReport {
    /// Where the rules come from.
    pub rules: String,
    /// The node, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Never empty.
    pub journeys: Vec<Journey>,
    /// What the reader should know of the whole answer: stand-ins, facts that are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A packet from one source to one destination, and all that may become of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Journey {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where it comes from.
    pub source: JourneySource,
    /// Where it goes to.
    pub destination: JourneyDestination,
    /// The answer in a sentence without a subject, as in `goes to one of 3 endpoints, not masqueraded`.
    pub summary: String,
    /// What it meets first, whatever becomes of it.
    pub path: Vec<PathPart>,
    /// What may become of it, the most probable first. Their shares add up to 1.
    pub ends: Vec<JourneyEnd>,
    /// Endpoints of the Service that get none of this traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOutEndpoint>,
    /// What the reader should know beside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Where a packet comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct JourneySource {
    /// `pod shop/cart`, `node`, `outside`, ...
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `sent by the node`, `arrives on eth0`, `arrives on an unknown interface`.
    pub enters: String,
    /// What the address stands for, if it is none that an object, the host or the question has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<String>,
}

/// Where a packet goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct JourneyDestination {
    /// `shop/db:sql`, `pod shop/db-0`, `node`; `None` for an address that nothing known has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `cluster IP`, `node port`, ... if it is one of a Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    /// Address and port.
    pub address: SocketAddr,
    /// What the address stands for, if it is none that an object, the host or the question has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<String>,
}

/// A probability, exact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// For people: `1/3`, or where the shares are not as equal as the kernel can make them, `33.40 %`. Percentages
    /// of one list add up to 100.
    pub text: String,
    /// The nearest 64-bit floating-point number.
    pub probability: f64,
    /// The exact number, `<numerator>/2^<bits>`. Absent behind more than 64 rules with chance in a row, where it has
    /// more than 600 digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
}

/// A part of a packet's way, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum PathPart {
    /// It enters a chain. What it meets in chains that this one calls follows as parts of their own.
    Chain(Box<ChainVisit>),
    /// The kernel decides where it goes.
    Routing(String),
}

/// One visit to a chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ChainVisit {
    /// `PREROUTING`, `INPUT`, `FORWARD`, `OUTPUT` or `POSTROUTING`.
    pub hook: String,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The service port that it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_port: Option<String>,
    /// What it is for.
    pub role: String,
    /// The source on entering.
    pub source: SocketAddr,
    /// The destination on entering.
    pub destination: SocketAddr,
    /// The mark on entering.
    pub mark: u32,
    /// Rules that were compared with the packet; if that depends on the endpoint, for the last one.
    pub rules_tested: usize,
    /// Rules in the chain.
    pub rules_in_chain: usize,
    /// Whether further rules match, which depend on the endpoint: they are in [`EndpointShare::rules`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chooses: bool,
    /// Numbers of rules that cannot be decided; they count as not matching.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecided: Vec<usize>,
    /// The rules that matched.
    pub matched: Vec<MatchedRule>,
    /// `ACCEPT` or `DROP`, if the packet met the policy of a built-in chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

/// A rule that the packet matched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MatchedRule {
    /// Its number, from 1.
    pub rule: usize,
    /// What it does to the packet, with names.
    pub effect: String,
    /// Its text, without the chain.
    pub text: String,
}

/// What may become of the packet; packets that differ only in their endpoint have one end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct JourneyEnd {
    /// How probable it is.
    pub share: Share,
    /// What becomes of the packet, in a sentence without a subject.
    pub summary: String,
    /// Whether it passes.
    pub verdict: EndVerdict,
    /// Whether its source becomes an address of the node; absent unless it passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<MasqueradeAnswer>,
    /// The addresses that it is sent to in place of its destination; empty if its destination stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointShare>,
    /// What it meets behind the choice of the endpoint.
    pub path: Vec<PathPart>,
    /// If the ways of the endpoints differ: the endpoint whose way `path` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_of: Option<SocketAddr>,
    /// The most rules that it is compared with.
    pub rules_tested: usize,
    /// Rules on the way that cannot be decided; the answer is right if none of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecided: Vec<UndecidedNote>,
    /// The way of the reply, or what the client sees instead.
    pub reply: String,
}

/// Whether a packet passes, and why not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndVerdict {
    /// What happens to it.
    pub kind: EndKind,
    /// Why.
    pub code: VerdictReason,
    /// The same in words.
    pub reason: String,
    /// The rule or policy that decided it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<NamedRule>,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum EndKind {
    /// It leaves on an interface, to a pod or away.
    Forwarded,
    /// A program of the node gets it.
    Local,
    /// It is rejected: its sender gets an error.
    Rejected,
    /// It is dropped: its sender gets nothing.
    Dropped,
    /// It cannot be told.
    Unknown,
}

/// Why a packet fares as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum VerdictReason {
    /// An endpoint of a Service serves it.
    Served,
    /// No rule of a Service is for it.
    NoService,
    /// A rule of another program sends it elsewhere.
    SentElsewhere,
    /// The Service has no endpoints.
    NoEndpoints,
    /// The Service has no endpoint on this node, and its traffic policy is Local.
    NoLocalEndpoint,
    /// The source is in none of the Service's source ranges.
    SourceRange,
    /// conntrack calls the packet INVALID.
    Invalid,
    /// A packet to 127.0.0.0/8 from outside.
    Martian,
    /// The policy of a built-in chain.
    Policy,
    /// A rule of another program.
    ForeignRule,
    /// A rule that cannot be decided.
    Undecided,
}

/// A rule, or the policy of a built-in chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NamedRule {
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Its number, from 1; absent for the chain's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// Its text without the chain, or the policy.
    pub text: String,
}

/// Whether the source becomes an address of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MasqueradeAnswer {
    /// Whether it does.
    pub is_masqueraded: bool,
    /// Why, or why not.
    pub code: MasqueradeReason,
    /// The same in words.
    pub reason: String,
    /// The source at the end; several if it depends on the endpoint.
    pub sources: Vec<IpAddr>,
}

/// Why a packet is masqueraded or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum MasqueradeReason {
    /// Masqueraded: to a cluster IP, and not from a pod of this node.
    NotFromPod,
    /// Masqueraded: all traffic to cluster IPs is.
    MasqueradeAll,
    /// Masqueraded: to an external address or a node port under policy Cluster.
    External,
    /// Masqueraded: the node itself uses an external address or a node port.
    SentByNode,
    /// Masqueraded: the client is the endpoint.
    Hairpin,
    /// Masqueraded, or given another source, by a rule of another program.
    ForeignRule,
    /// Not masqueraded: from a pod of this node.
    FromPod,
    /// Not masqueraded: policy Local keeps the client's address.
    LocalPolicy,
    /// Not masqueraded: the rules cannot tell pods from other clients.
    NoDetection,
    /// Not masqueraded: no rule of a Service is for it.
    NoService,
}

/// An endpoint with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct EndpointShare {
    /// Its address.
    pub address: SocketAddr,
    /// Its share of all packets.
    pub share: Share,
    /// Its Pod, if the objects name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node, if the objects name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The rules that choose it, `<table> <chain> rule <n>`; empty if it is the only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
}

/// An endpoint that gets none of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LeftOutEndpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Its node, if the slice names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why.
    pub reason: String,
}

/// A rule that cannot be decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct UndecidedNote {
    /// The rule.
    pub rule: NamedRule,
    /// Why it cannot be decided.
    pub why: Vec<String>,
    /// What it may do, as in `drop at filter FORWARD rule 3`.
    pub may: Vec<String>,
}
