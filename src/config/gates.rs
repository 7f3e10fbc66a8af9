//! Feature gates: the known ones, the locked ones, and their values.

use std::collections::BTreeMap;

use super::diagnostics::{quoted, quoted_key};
use super::resolver::Resolver;

#[derive(Clone, Copy)]
enum GateStage {
    Alpha,
    Beta,
    /// General availability, or deprecated: setting it logs a warning.
    Ga,
    /// GA, and no other value than the default is accepted.
    Locked,
}

/// Name, stage and default of the gates that kube-proxy 1.36 itself reads (config.md 6).
const GATES: [(&str, GateStage, bool); 11] = [
    ("AllowServiceExternalIPs", GateStage::Ga, true),
    ("PreferSameTrafficDistribution", GateStage::Locked, true),
    ("MultiCIDRServiceAllocator", GateStage::Locked, true),
    ("NFTablesProxyMode", GateStage::Locked, true),
    ("ComponentFlagz", GateStage::Beta, true),
    ("ComponentStatusz", GateStage::Beta, true),
    ("NativeHistograms", GateStage::Alpha, false),
    ("WatchListClient", GateStage::Beta, true),
    ("ContextualLogging", GateStage::Beta, true),
    ("LoggingAlphaOptions", GateStage::Alpha, false),
    ("LoggingBetaOptions", GateStage::Beta, true),
];

/// Whether each gate is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates(BTreeMap<String, bool>);

impl Gates {
    /// The gates with `set` (the value of `featureGates`, with `AllAlpha` and `AllBeta`) applied. An
    /// unknown gate may be another component's: it is a warning, not an error.
    pub(super) fn new(set: &BTreeMap<String, bool>, resolver: &mut Resolver<'_>) -> Gates {
        let mut gates = BTreeMap::new();
        for (name, stage, default) in GATES {
            let all = match stage {
                GateStage::Alpha => set.get("AllAlpha"),
                GateStage::Beta => set.get("AllBeta"),
                GateStage::Ga | GateStage::Locked => None,
            };
            let value = set.get(name).or(all).copied().unwrap_or(default);
            if matches!(stage, GateStage::Locked) && value != default {
                resolver.refuse(&path(name), value, format!("the gate {name} is locked to {default}"));
            } else if matches!(stage, GateStage::Ga | GateStage::Locked) && set.contains_key(name) {
                resolver.warn(
                    &path(name),
                    format!("{name} is a GA feature gate, set to {value}; it will go away"),
                );
            }
            gates.insert(name.to_owned(), value);
        }
        let is_known = |name: &str| ["AllAlpha", "AllBeta"].contains(&name) || gates.contains_key(name);
        for name in set.keys().filter(|name| !is_known(name)) {
            let note = format!("{} is not a feature gate of Chainsmith, ignored", quoted(name));
            resolver.warn(&path(name), note);
        }
        Gates(gates)
    }

    /// Whether the known gate `name` is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// Every known gate, by name, with its stage as the metric `kubernetes_feature_enabled` has it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'static str, bool)> {
        self.0.iter().map(|(name, value)| {
            let stage = GATES.iter().find(|(known, ..)| known == name).map(|(_, stage, _)| *stage);
            let stage = match stage {
                Some(GateStage::Alpha) => "ALPHA",
                Some(GateStage::Beta) => "BETA",
                Some(GateStage::Ga | GateStage::Locked) | None => "",
            };
            (name.as_str(), stage, *value)
        })
    }
}

fn path(name: &str) -> String {
    format!("featureGates.{}", quoted_key(name))
}
