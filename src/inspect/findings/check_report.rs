//! The report of `check`: plain data.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether a node's rules are those that its objects ask for, and what differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// The result.
    pub result: CheckResult,
    /// The rules that were compared, as in `rules in force`.
    pub rules: String,
    /// The name of the node.
    pub node: String,
    /// What was compared, one for each family.
    pub families: Vec<FamilyChecked>,
    /// What was found: the most severe first, then by family and chain.
    pub findings: Vec<CheckFinding>,
    /// How many findings are left out of `findings` because there are too many.
    pub omitted: usize,
    /// Packets of the service ports whose rules differ that fare otherwise than they should.
    pub traffic: Vec<TrafficDifference>,
    /// How many more there are.
    pub omitted_traffic: usize,
    /// Why a part could not be checked, one line each.
    pub unknown: Vec<String>,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum CheckResult {
    /// No finding is an error or a warning.
    Same,
    /// There is an error or a warning.
    Different,
    /// A part could not be checked, and the rest has neither errors nor warnings.
    Unknown,
}

/// What was compared of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FamilyChecked {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `nft` or `legacy`; `null` for rules from text.
    pub backend: Option<String>,
    /// The layout of the rules, as in `classic` or `compact`: the one that they were compared in.
    pub layout: String,
    /// How many chains were compared.
    pub chains: usize,
    /// How many of them have other rules, are missing, or are in excess.
    pub differing_chains: usize,
    /// How many service ports the objects have.
    pub service_ports: usize,
    /// How many of them have a chain or a rule that differs.
    pub affected_service_ports: usize,
    /// How many packets were traced through both sets of rules, to see what a difference does to traffic.
    pub packets: usize,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CheckFinding {
    /// How bad it is.
    pub severity: FindingSeverity,
    /// What it is.
    pub kind: FindingKind,
    /// `IPv4` or `IPv6`; `null` where it is about both.
    pub family: Option<String>,
    /// The table, as in `nat`.
    pub table: Option<String>,
    /// The chain.
    pub chain: Option<String>,
    /// The number of the rule, from 1: in the rules in force, for a missing rule in the desired rules.
    pub rule: Option<usize>,
    /// In a sentence, without the text of rules.
    pub summary: String,
    /// The rules that should be there, or whose place is wrong.
    pub desired: Vec<String>,
    /// The rules in force in their stead.
    pub in_force: Vec<String>,
    /// What it means for traffic.
    pub effect: String,
    /// The service ports concerned, `<ns>/<name>[:<port>]`; all, if empty and `servicePorts` is not 0.
    pub services: Vec<String>,
    /// How many service ports are concerned; at least as many as `services` has.
    pub service_ports: usize,
    /// A command that shows more; empty if there is none.
    pub next: String,
}

/// A packet that fares otherwise than it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TrafficDifference {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its service port, `<ns>/<name>[:<port>]`.
    pub service_port: String,
    /// The place it comes from, as in `pod here`.
    pub from: String,
    /// Its destination, `<ip>:<port>/<protocol>`.
    pub to: String,
    /// How it should fare.
    pub desired: String,
    /// How it fares.
    pub in_force: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum FindingSeverity {
    /// Packets fare otherwise than the objects ask for.
    Error,
    /// They may, or soon will.
    Warning,
    /// No packet fares otherwise; does not count for the result.
    Notice,
}

/// `error`, `warning`, `notice`
impl fmt::Display for FindingSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FindingSeverity::Error => "error",
            FindingSeverity::Warning => "warning",
            FindingSeverity::Notice => "notice",
        })
    }
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemas", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum FindingKind {
    /// A table has none of the chains.
    TableEmpty,
    /// A chain does not exist.
    ChainMissing,
    /// A chain exists without any of its rules.
    ChainFlushed,
    /// A chain that should not be there, and to which rules lead.
    ChainAdded,
    /// Chains without use, to which no rule leads.
    ChainUnused,
    /// A rule is missing.
    RuleMissing,
    /// A rule that should not be there.
    RuleAdded,
    /// A rule has other matches or another target.
    RuleChanged,
    /// The rules of a chain are in another order.
    OrderChanged,
    /// A built-in chain does not jump to one of ours.
    JumpMissing,
    /// A rule of another program decides about traffic of Services before our rules do.
    ForeignRule,
    /// The rules in force were made for another configuration.
    Configuration,
    /// A sysctl has another value than the rules need.
    Sysctl,
    /// Rules of kube-proxy or Chainsmith are in both back-ends.
    BothBackends,
    /// Something that another mode of kube-proxy left.
    Leftover,
    /// More than one proxy runs in this network namespace.
    ConflictingProxy,
    /// The kernel or iptables does not accept a match that the compact layout would use.
    MatchUnsupported,
    /// A part of an object that cannot be used.
    ObjectProblem,
    /// A service port whose rules the kernel rejects.
    Quarantined,
}

impl FindingKind {
    /// Every kind, in the order of reports.
    pub const ALL: [FindingKind; 19] = [
        FindingKind::TableEmpty,
        FindingKind::ChainMissing,
        FindingKind::ChainFlushed,
        FindingKind::ChainAdded,
        FindingKind::ChainUnused,
        FindingKind::RuleMissing,
        FindingKind::RuleAdded,
        FindingKind::RuleChanged,
        FindingKind::OrderChanged,
        FindingKind::JumpMissing,
        FindingKind::ForeignRule,
        FindingKind::Configuration,
        FindingKind::Sysctl,
        FindingKind::BothBackends,
        FindingKind::Leftover,
        FindingKind::ConflictingProxy,
        FindingKind::MatchUnsupported,
        FindingKind::ObjectProblem,
        FindingKind::Quarantined,
    ];

    /// Its name, as in JSON and in labels of metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::TableEmpty => "tableEmpty",
            FindingKind::ChainMissing => "chainMissing",
            FindingKind::ChainFlushed => "chainFlushed",
            FindingKind::ChainAdded => "chainAdded",
            FindingKind::ChainUnused => "chainUnused",
            FindingKind::RuleMissing => "ruleMissing",
            FindingKind::RuleAdded => "ruleAdded",
            FindingKind::RuleChanged => "ruleChanged",
            FindingKind::OrderChanged => "orderChanged",
            FindingKind::JumpMissing => "jumpMissing",
            FindingKind::ForeignRule => "foreignRule",
            FindingKind::Configuration => "configuration",
            FindingKind::Sysctl => "sysctl",
            FindingKind::BothBackends => "bothBackends",
            FindingKind::Leftover => "leftover",
            FindingKind::ConflictingProxy => "conflictingProxy",
            FindingKind::MatchUnsupported => "matchUnsupported",
            FindingKind::ObjectProblem => "objectProblem",
            FindingKind::Quarantined => "quarantined",
        }
    }
}

/// The most findings in a report.
pub const MAX_FINDINGS: usize = 100;

/// The most packets in a report.
pub const MAX_TRAFFIC: usize = 20;

/// The most service ports that a finding names.
pub const MAX_NAMES: usize = 10;

impl CheckFinding {
    /// A finding with a summary and an effect, without a place.
    pub(super) fn new(
        severity: FindingSeverity,
        kind: FindingKind,
        summary: impl Into<String>,
        effect: impl Into<String>,
    ) -> CheckFinding {
        CheckFinding {
            severity,
            kind,
            family: None,
            table: None,
            chain: None,
            rule: None,
            summary: summary.into(),
            desired: Vec::new(),
            in_force: Vec::new(),
            effect: effect.into(),
            services: Vec::new(),
            service_ports: 0,
            next: String::new(),
        }
    }

    /// The same with a command that shows more.
    pub(super) fn with_next(mut self, next: impl Into<String>) -> CheckFinding {
        self.next = next.into();
        self
    }
}

impl CheckReport {
    /// Sorts the findings, limits their number, and draws the result from them.
    pub(super) fn settle(&mut self) {
        self.findings.sort_by(|a, b| {
            let key = |finding: &CheckFinding| {
                (finding.severity, finding.family.clone(), finding.kind, finding.table.clone())
            };
            key(a).cmp(&key(b)).then_with(|| a.chain.cmp(&b.chain)).then_with(|| a.rule.cmp(&b.rule))
        });
        let counts = |finding: &CheckFinding| finding.severity != FindingSeverity::Notice;
        self.result = match self.findings.iter().any(counts) {
            true => CheckResult::Different,
            false if self.unknown.is_empty() => CheckResult::Same,
            false => CheckResult::Unknown,
        };
        self.omitted += self.findings.len().saturating_sub(MAX_FINDINGS);
        self.findings.truncate(MAX_FINDINGS);
        self.omitted_traffic += self.traffic.len().saturating_sub(MAX_TRAFFIC);
        self.traffic.truncate(MAX_TRAFFIC);
    }
}
