//! `diff` of kube-proxy's rules and ours for the same objects.

use chainsmith::config::LayoutChoice;
use chainsmith::inspect::comparison::{DiffMode, DiffReport, compare};
use chainsmith::inspect::{HostOrigin, HostView, RulesOrigin, Subject};
use chainsmith::iptables::Ruleset;
use chainsmith::net::{IpFamily, PerFamily};
use chainsmith::rules::Settings;

use crate::corpus_cases::{Case, place, version};
use crate::each_state;

fn subject(case: &Case, family: IpFamily, ruleset: Ruleset) -> Subject {
    let mut rulesets = PerFamily::default();
    *rulesets.get_mut(family) = Some(ruleset);
    let addresses = case.host.addresses.iter().copied().collect();
    let host = HostView { addresses, origin: HostOrigin::File, ..HostView::default() };
    Subject { rulesets, origin: RulesOrigin::Text("rules".to_owned()), cluster: None, host }
}

fn compared(case: &Case, family: IpFamily, theirs: Ruleset, ours: Ruleset, mode: DiffMode) -> DiffReport {
    let [theirs, ours] = [theirs, ours].map(|ruleset| subject(case, family, ruleset));
    compare([("kube-proxy", &theirs), ("chainsmith", &ours)], mode)
}

/// The order of Services in kube-proxy's shared chains is random, and so are the texts in which it differs.
#[test]
fn no_chain_differs_from_kube_proxys() {
    let mut n_states = 0;
    each_state(|case, what, family, _, theirs, ours| {
        let report = compared(case, family, theirs, ours, DiffMode::Text);
        assert!(report.is_same, "{what}: {report:#?}");
        n_states += 1;
    });
    assert!(n_states > 200, "{n_states}");
}

#[test]
fn all_packets_fare_as_under_kube_proxys_rules_in_both_layouts() {
    let (mut n_packets, mut n) = (0, 0);
    each_state(|case, what, family, snapshot, theirs, ours| {
        n += 1;
        // A part of the states takes time enough.
        if n % 8 != 0 || case.file(&format!("initial.{}.save", version(family))).is_some() {
            return;
        }
        let settings = Settings { layout: LayoutChoice::Compact, ..case.settings(snapshot, family) };
        let compact = chainsmith::compile::ruleset(&settings, snapshot, place(case, snapshot));
        for ours in [ours, compact] {
            let report = compared(case, family, theirs.clone(), ours, DiffMode::Packets { n_threads: 2 });
            assert!(report.is_same, "{what}: {report:#?}");
            let packets = report.families[0].packets.as_ref().expect("compared");
            assert_eq!(packets.n_undecided, 0, "{what}: {packets:#?}");
            n_packets += packets.n_packets;
        }
    });
    assert!(n_packets > 5_000, "{n_packets}");
}
