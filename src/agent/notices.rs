//! Counts what was noticed about this node, by kind.

use anyhow::Context;
use prometheus::{IntCounterVec, Opts, Registry};

use crate::sync::{Notice, Observer};

/// `chainsmith_notices_total`.
pub(super) struct Notices(IntCounterVec);

impl Notices {
    /// Registers the counter; every kind is shown from the start.
    pub(super) fn register(registry: &Registry) -> anyhow::Result<Notices> {
        let help = "What was noticed about this node, by kind: leftovers of another kube-proxy, a second \
            one running, kernel parameters that could not be set";
        let counter = IntCounterVec::new(Opts::new("chainsmith_notices_total", help), &["kind"])?;
        registry.register(Box::new(counter.clone())).context("registering metrics")?;
        for kind in KINDS {
            counter.with_label_values(&[kind]).inc_by(0);
        }
        Ok(Notices(counter))
    }
}

const KINDS: [&str; 5] =
    ["leftover_removed", "leftover_stays", "second_proxy", "parameter_unset", "no_localhost_node_ports"];

impl Observer for Notices {
    fn noticed(&self, notice: &Notice) {
        let kind = match notice {
            Notice::LeftoverRemoved(_) => KINDS[0],
            Notice::LeftoverStays { .. } => KINDS[1],
            Notice::Rival(_) => KINDS[2],
            Notice::ParameterUnset { .. } => KINDS[3],
            Notice::NoLocalhostNodePorts => KINDS[4],
        };
        self.0.with_label_values(&[kind]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_counted_under_its_name() {
        let notices = Notices::register(&Registry::new()).unwrap();
        let stays = Notice::LeftoverStays { what: "x".to_owned(), remedy: "y".to_owned() };
        let (key, error) = ("k".to_owned(), "e".to_owned());
        for (kind, notice) in [
            ("leftover_removed", Notice::LeftoverRemoved("x".to_owned())),
            ("leftover_stays", stays),
            ("second_proxy", Notice::Rival("x".to_owned())),
            ("parameter_unset", Notice::ParameterUnset { key, value: 1, error }),
            ("no_localhost_node_ports", Notice::NoLocalhostNodePorts),
        ] {
            assert_eq!(notices.0.with_label_values(&[kind]).get(), 0, "{kind}");
            notices.noticed(&notice);
            assert_eq!(notices.0.with_label_values(&[kind]).get(), 1, "{kind}");
        }
    }
}
