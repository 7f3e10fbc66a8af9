//! Syncs of one family, made by hand.

use std::collections::BTreeSet;

use super::*;
use crate::apply::{Rejection, SyncError};
use crate::compile::{Compiled, View};
use crate::config::Config;
use crate::drift::ReadReason;
use crate::kernel::{Backend, RestoreError};
use crate::model::host::Host;
use crate::model::{ObjectName, ServicePortName, Snapshot};
use crate::net::Protocol;
use crate::plan::RestoreInput;
use crate::policy::Place;
use crate::rules::Settings;

fn synced(collector: &StatusCollector, report: &SyncReport, quarantine: &Quarantine) {
    let (snapshot, compiled) = (Snapshot::default(), Compiled::default());
    let settings = Settings::new(&Config::default(), None, &Host::default(), report.family);
    let view = View { snapshot: &snapshot, place: Place { node: "a", zone: None } };
    collector.syncing(report.family);
    let elapsed = Duration::from_millis(5);
    collector.synced(&Synced { report, view, settings: &settings, quarantine, compiled: &compiled, elapsed });
}

fn sync_of(names: usize) -> SyncReport {
    let names: BTreeSet<_> = (0..names).map(|n| ObjectName::new("shop", &format!("web-{n:05}"))).collect();
    SyncReport::new(IpFamily::V4, Backend::Nft, SyncScope::Partial(names))
}

fn input(text: &str) -> InputExcerpt {
    let mut input = RestoreInput::default();
    input.push(text);
    input.excerpt(None)
}

fn family(collector: &StatusCollector) -> FamilyState {
    let mut report = StatusReport::default();
    collector.describe(&mut report);
    report.families.remove(0)
}

#[test]
fn the_last_syncs_are_kept_with_the_first_names() {
    let collector = StatusCollector::default();
    for n in 0..100 {
        synced(&collector, &sync_of(n), &Quarantine::new());
    }
    let state = family(&collector);
    assert_eq!((state.n_syncs, state.syncs.len()), (100, MAX_SYNCS));
    let newest = &state.syncs[0];
    assert_eq!((newest.n_services, newest.services.len()), (99, MAX_SERVICES));
    assert_eq!(newest.services[0], "shop/web-00000");
    assert_eq!(state.syncs[MAX_SYNCS - 1].n_services, 100 - MAX_SYNCS);
}

#[test]
fn a_failed_restore_stays_until_another_fails_also_after_a_success() {
    let collector = StatusCollector::default();
    let error = RestoreError::Failed { status: 4, message: "Memory allocation problem".to_owned() };
    let failed = SyncReport {
        sent: Some(input("*nat\nbad\nCOMMIT\n")),
        failed: Some(FailedRestore { input: input("*nat\nbad\nCOMMIT\n"), error: error.clone() }),
        reads: vec![ReadReason::Start],
        outcome: Err(SyncError::Restore(error)),
        ..sync_of(1)
    };
    synced(&collector, &failed, &Quarantine::new());
    let state = family(&collector);
    assert_eq!((state.n_failures, state.last_success_seconds), (1, None));
    let message = "iptables-restore failed with exit status 4: Memory allocation problem";
    assert_eq!(state.last_restore.unwrap().error.as_deref(), Some(message));
    assert_eq!(state.last_read.unwrap().reason, "start");

    synced(&collector, &SyncReport { sent: Some(input("*nat\nCOMMIT\n")), ..sync_of(1) }, &Quarantine::new());
    synced(&collector, &sync_of(1), &Quarantine::new());
    let state = family(&collector);
    assert!(state.n_failures == 0 && state.last_success_seconds.is_some());
    assert_eq!(state.last_restore.unwrap().error, None);
    assert_eq!(state.failed_restore.unwrap().error.as_deref(), Some(message));
    let text = |which| collector.restores(which).inputs[0].pieces[0].text.clone();
    assert_eq!(text(WhichRestore::Last), "*nat\nCOMMIT\n");
    assert_eq!(text(WhichRestore::Failed), "*nat\nbad\nCOMMIT\n");
}

#[test]
fn everything_that_is_kept_is_bounded() {
    let collector = StatusCollector::default();
    let long = "ä".repeat(100_000);
    let rejection = Rejection {
        line: 1,
        text: Some(long.clone()),
        message: long.clone(),
        chain: None,
        service_port: None,
    };
    let port = |n: usize| ServicePortName {
        service: ObjectName::new("shop", &format!("web-{n:05}")),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    let quarantine: Quarantine = (0..500).map(|n| (port(n), rejection.clone())).collect();
    let error = RestoreError::NotStarted(long.clone());
    let failed = SyncReport { outcome: Err(SyncError::Restore(error)), ..sync_of(50_000) };
    for n in 0..60 {
        synced(&collector, &failed, &quarantine);
        collector.noticed(&Finding::LeftoverRemoved(format!("{n} {long}")));
    }
    let mut report = StatusReport::default();
    collector.describe(&mut report);
    let json = crate::inspect::envelope::to_json("StatusReport", &report);
    assert!(json.len() < 1 << 20, "{} bytes", json.len());
    let state = &report.families[0];
    assert_eq!((state.n_quarantined, state.quarantined.len()), (500, MAX_QUARANTINED));
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    assert!(state.quarantined[0].message.ends_with("ä… (200000 bytes)"));
}
