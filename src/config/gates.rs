//! Feature gates: which are known, which are locked, and what those that matter are set to.

use std::collections::BTreeMap;

use super::origin::{Report, quoted};

#[derive(Clone, Copy)]
enum Stage {
    Alpha,
    Beta,
    /// General availability, or deprecated: setting it is worth a word.
    Ga,
    /// GA, and no other value than the default is accepted.
    Locked,
}

/// Name, stage and default of the gates that kube-proxy 1.36 itself asks (config.md 6).
const GATES: [(&str, Stage, bool); 11] = [
    ("AllowServiceExternalIPs", Stage::Ga, true),
    ("PreferSameTrafficDistribution", Stage::Locked, true),
    ("MultiCIDRServiceAllocator", Stage::Locked, true),
    ("NFTablesProxyMode", Stage::Locked, true),
    ("ComponentFlagz", Stage::Beta, true),
    ("ComponentStatusz", Stage::Beta, true),
    ("NativeHistograms", Stage::Alpha, false),
    ("WatchListClient", Stage::Beta, true),
    ("ContextualLogging", Stage::Beta, true),
    ("LoggingAlphaOptions", Stage::Alpha, false),
    ("LoggingBetaOptions", Stage::Beta, true),
];

/// Whether each gate is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gates(BTreeMap<String, bool>);

impl Gates {
    /// Applies the settings of `featureGates`, `AllAlpha` and `AllBeta` included. A gate that is not
    /// known here may be another component's: a word, not an error.
    pub(super) fn read(set: &BTreeMap<String, bool>, report: &mut Report) -> Gates {
        let mut gates = BTreeMap::new();
        for (name, stage, default) in GATES {
            let all = match stage {
                Stage::Alpha => set.get("AllAlpha"),
                Stage::Beta => set.get("AllBeta"),
                Stage::Ga | Stage::Locked => None,
            };
            let value = set.get(name).or(all).copied().unwrap_or(default);
            if matches!(stage, Stage::Locked) && value != default {
                report.refuse(&path(name), value, format!("the gate {name} is locked to {default}"));
            } else if matches!(stage, Stage::Ga | Stage::Locked) && set.contains_key(name) {
                report.note(
                    &path(name),
                    format!("{name} is a GA feature gate, set to {value}; it will go away"),
                );
            }
            gates.insert(name.to_owned(), value);
        }
        let is_known = |name: &str| ["AllAlpha", "AllBeta"].contains(&name) || gates.contains_key(name);
        for name in set.keys().filter(|name| !is_known(name)) {
            report
                .note(&path(name), format!("{} is not a feature gate of Chainsmith, ignored", quoted(name)));
        }
        Gates(gates)
    }

    /// Whether the gate `name`, one of those known, is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }

    /// Every known gate, by name, with its stage as the metric `kubernetes_feature_enabled` has it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &'static str, bool)> {
        self.0.iter().map(|(name, value)| {
            let stage = GATES.iter().find(|(known, ..)| known == name).map(|(_, stage, _)| *stage);
            let stage = match stage {
                Some(Stage::Alpha) => "ALPHA",
                Some(Stage::Beta) => "BETA",
                Some(Stage::Ga | Stage::Locked) | None => "",
            };
            (name.as_str(), stage, *value)
        })
    }
}

fn path(name: &str) -> String {
    let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric());
    if is_word { format!("featureGates.{name}") } else { format!("featureGates.{}", quoted(name)) }
}
