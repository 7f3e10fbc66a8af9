//! The report of a comparison.

use serde::{Deserialize, Serialize};

/// What differs between two sets of rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DiffReport {
    /// The name of the first, as in `old.save` or `objects:old.yaml`.
    pub before: String,
    /// The name of the second.
    pub after: String,
    /// Whether nothing differs: no chain, or in a comparison of packets, no packet.
    pub is_same: bool,
    /// Each family that both have.
    pub families: Vec<FamilyDiff>,
    /// What was not compared, one line each.
    pub notes: Vec<String>,
}

/// What differs in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FamilyDiff {
    /// `ipv4` or `ipv6`.
    pub family: String,
    /// How many chains differ.
    pub n_different_chains: usize,
    /// The Services that these chains or their rules belong to, `<ns>/<name>`, sorted.
    pub services: Vec<String>,
    /// The chains that differ, by table and name; empty in a comparison of packets.
    pub chains: Vec<ChainDiff>,
    /// What fares differently, if packets were compared.
    pub packets: Option<PacketDiff>,
}

/// A chain that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ChainDiff {
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// What it is for, as in `shop/db: endpoints of all nodes`.
    pub label: String,
    /// Whether the chain itself was added or removed.
    pub edit: EditKind,
    /// The policies before and after, where these differ.
    pub policies: Option<[String; 2]>,
    /// How many rules were added.
    pub n_added: usize,
    /// How many rules were removed.
    pub n_removed: usize,
    /// The rules that differ, each group with up to three rules before and behind it.
    pub hunks: Vec<Vec<RuleLine>>,
}

/// A rule in a group of rules that differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RuleLine {
    /// Whether it was added or removed.
    pub edit: EditKind,
    /// Its text, as in `-d 10.0.0.1/32 -j DROP`.
    pub rule: String,
}

/// Whether something was added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum EditKind {
    /// It is in both.
    Kept,
    /// It is only in the second.
    Added,
    /// It is only in the first.
    Removed,
}

/// The packets that fare differently.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PacketDiff {
    /// How many packets were compared.
    pub n_packets: usize,
    /// How many of them fare differently.
    pub n_different: usize,
    /// How many fare alike except for rules that cannot be decided, which are the same in both.
    pub n_undecided: usize,
    /// To how many destinations the packets are from a sample of the sources that rules tell apart: 128 of them.
    pub n_sampled_destinations: usize,
    /// Rules that cannot be decided, and what they may do; at most 10.
    pub undecided_rules: Vec<String>,
    /// The packets by Service; those of no Service last.
    pub services: Vec<ServiceTraffic>,
    /// Source addresses that stand for unknown ones, one line each.
    pub stand_ins: Vec<String>,
}

/// What changes for packets to one service port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServiceTraffic {
    /// `<ns>/<name>[:<port>]`; `None` for packets to no known Service.
    pub service_port: Option<String>,
    /// Its changes, those of most packets first.
    pub changes: Vec<TrafficChange>,
}

/// One change, and the packets that it concerns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TrafficChange {
    /// What changes.
    pub shifts: Vec<TrafficShift>,
    /// How many of the packets compared.
    pub n_packets: usize,
    /// Their destinations, as in `cluster IP 10.96.0.10:53/UDP`; at most 20.
    pub to: Vec<String>,
    /// How many more destinations there are.
    pub n_more_to: usize,
    /// Their sources, as in `pod here`; at most 20.
    pub from: Vec<String>,
    /// How many more sources there are.
    pub n_more_from: usize,
    /// One of them.
    pub example: PacketExample,
}

/// What changes for a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", tag = "what")]
pub enum TrafficShift {
    /// Other endpoints answer, or answer other shares of the packets.
    Endpoints {
        /// The endpoints whose share changes.
        endpoints: Vec<ShareShift>,
    },
    /// Other shares of the packets are answered, pass, are rejected or dropped.
    Verdict {
        /// The shares before; they add up to 1.
        before: Vec<VerdictShare>,
        /// The shares after.
        after: Vec<VerdictShare>,
    },
    /// The source is masqueraded, or is not any more.
    Masquerade {
        /// The share that is masqueraded before.
        before: f64,
        /// The share after.
        after: f64,
    },
    /// Clients stay with their endpoint, or do not any more.
    Affinity {
        /// The share that is remembered before.
        before: f64,
        /// The share after.
        after: f64,
    },
    /// Rules that cannot be decided are only in one of both, or differ.
    Undecided {
        /// Those before, with what they may do.
        before: Vec<String>,
        /// Those after.
        after: Vec<String>,
    },
    /// The packet leaves with another source, destination or mark.
    Packet {
        /// Source, destination and mark before.
        before: Vec<String>,
        /// Source, destination and mark after.
        after: Vec<String>,
    },
}

/// The share of an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ShareShift {
    /// `<ip>:<port>`.
    pub endpoint: String,
    /// From 0, not used, to 1.
    pub before: f64,
    /// The same after.
    pub after: f64,
}

/// A verdict with the share of the packets that meet it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VerdictShare {
    /// `answered` (its destination is translated), `passed` (it is not), `rejected`, `dropped` or `undecided`.
    pub verdict: String,
    /// More than 0, up to 1.
    pub share: f64,
    /// The rule that drops or rejects, or cannot be decided, as in `filter FORWARD rule 1: -s 10.0.0.1/32 -j DROP`.
    pub rule: Option<String>,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PacketExample {
    /// Where it comes from, as in `pod here`.
    pub from: String,
    /// Its source address.
    pub source: String,
    /// Its destination, `<ip>:<port>`.
    pub destination: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}
