use std::sync::atomic::AtomicBool;

use super::*;
use crate::apply::FamilySync;
use crate::compile::View;
use crate::config::Config;
use crate::iptables::Table;
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;
use crate::model::decode::{Interner, manifest};
use crate::model::host::Host;
use crate::model::{Change, Inventory, ObjectName, Snapshot, Touched};
use crate::policy::Place;
use crate::rules::Settings;

const STICKY: &str = "
kind: Service
metadata: {name: sticky}
spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: sticky-1, labels: {kubernetes.io/service-name: sticky}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2]}]
";

/// Records the numbers of full lists.
#[derive(Default)]
struct Counts(Mutex<Vec<(IpFamily, usize)>>);

impl Observer for Counts {
    fn affinity_lists_full(&self, family: IpFamily, n: usize) {
        self.0.lock().unwrap().push((family, n));
    }
}

fn sync(family: &mut FamilySync<FakeIptables>, snapshot: &Snapshot, observer: &AffinityObserver) {
    let view = View { snapshot, place: Place { node: "n", zone: None } };
    let report = family.sync(view, &AtomicBool::new(false));
    let (settings, quarantine) = (family.settings().unwrap(), family.quarantine());
    let (compiled, elapsed) = (family.compiled(), Duration::ZERO);
    observer.synced(&Synced { report: &report, view, settings, quarantine, compiled, elapsed });
}

#[test]
fn a_full_list_is_logged_once_for_its_service_port_while_that_exists() {
    let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
    manifest::read(STICKY.as_bytes(), "test", &mut |object| {
        assert_eq!(inventory.add(&object, &mut interner), []);
    });
    let mut snapshot = inventory.snapshot_for("n");
    let counts = Arc::new(Counts::default());
    let observer = AffinityObserver::new(MAX_PERIOD * 5, vec![counts.clone()]);
    assert_eq!(observer.period, MAX_PERIOD, "audits are less frequent");
    observer.started(&[IpFamily::V4]);
    let mut family = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    family.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    sync(&mut family, &snapshot, &observer);
    let chains = family.kernel().ruleset.tables[&Table::Nat].keys().copied();
    let mut names: Vec<ChainName> = chains.filter(|name| name.as_str().starts_with("KUBE-SEP-")).collect();
    assert_eq!(names.len(), 2);
    names.push(ChainName::literal("NOT-OURS"));

    let check = |names: &[ChainName], expected: (usize, usize)| {
        assert!(observer.check(Ok(FullLists { capacity: 100, names: names.to_vec() }), true));
        let counted = std::mem::take(&mut *counts.0.lock().unwrap());
        assert_eq!(counted, [(IpFamily::V4, expected.1)]);
        assert_eq!(observer.families().v4.reported.len(), expected.0, "{names:?}");
    };
    check(&names, (1, 2)); // two endpoints, one service port
    check(&names[..1], (1, 1));
    check(&[], (1, 0)); // not logged again when it fills up again

    let mut touched = Touched::default();
    snapshot.apply(Change::Service(ObjectName::new("default", "sticky"), None), &mut touched);
    family.touch(touched.services.v4);
    sync(&mut family, &snapshot, &observer);
    check(&names, (0, 0));
}

#[test]
fn a_service_that_gets_session_affinity_later_is_observed_too() {
    let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
    manifest::read(STICKY.as_bytes(), "test", &mut |object| {
        inventory.add(&object, &mut interner);
    });
    let mut snapshot = inventory.snapshot_for("n");
    let service = snapshot.services().next().map(|service| (**service).clone()).unwrap();
    let observer = AffinityObserver::new(MAX_PERIOD, Vec::new());
    let mut family = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    family.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    for affinity_seconds in [None, Some(10), None, Some(20)] {
        let mut touched = Touched::default();
        let service = crate::model::Service { affinity_seconds, ..service.clone() };
        snapshot.apply(Change::Service(service.name.clone(), Some(service)), &mut touched);
        family.touch(touched.services.v4);
        sync(&mut family, &snapshot, &observer);
        assert_eq!(observer.families().v4.chains.len(), usize::from(affinity_seconds.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_cannot_be_read_are_logged_once_and_read_again() {
    let observer = AffinityObserver::new(Duration::from_secs(5), Vec::new());
    assert_eq!(observer.period, Duration::from_secs(5), "audits are more frequent");
    let denied = || Err(io::ErrorKind::PermissionDenied.into());
    assert!(!observer.check(denied(), true));
    assert!(!observer.check(denied(), false));
    assert!(observer.check(AffinityLists::at("/nowhere", "/nowhere").full(), false));
}
