//! What a process finds of the one before it.

use std::net::SocketAddr;

use super::*;
use crate::config::LayoutChoice;
use crate::kernel::RestoreError;
use crate::plan::UdpFrontends;

const N: u8 = 100;

/// A Service of UDP with a node port and an endpoint.
fn udp(n: u8) -> [Change; 2] {
    let text = format!("s{n}");
    let (Change::Service(name, Some(mut service)), Change::Slice(slice_name, Some(mut slice))) =
        (service(&text, n), slice(&text, &["east"]))
    else {
        unreachable!("they are made so")
    };
    service.ports[0].protocol = Protocol::Udp;
    service.ports[0].node_port = Some(30_000 + u16::from(n));
    slice.ports[0].protocol = Protocol::Udp;
    [Change::Service(name, Some(service)), Change::Slice(slice_name, Some(slice))]
}

#[test]
fn what_udp_rules_of_the_process_before_answered_on_is_told_once() {
    for layout in [LayoutChoice::Classic, LayoutChoice::Compact] {
        let kernel = Shared::new(FakeIptables::new(IpFamily::V4, Backend::Nft), Arc::default());
        let config = Config { layout, ..Config::default() };
        let mut snapshot = Snapshot::default();
        let changes = (0..N).flat_map(udp).chain([service("tcp", N), slice("tcp", &["east"])]);
        changes.for_each(|change| snapshot.apply(change, &mut Touched::default()));
        let run = |snapshot: &Snapshot, failures: Vec<RestoreError>| {
            let view = View { snapshot, place: Place { node: NODE, zone: None } };
            let mut sync = FamilySync::new(kernel.clone());
            sync.set_settings(Settings::new(&config, None, &Host::default(), IpFamily::V4));
            kernel.with(|kernel| kernel.failures = failures);
            let reports: Vec<SyncReport> = (0..3)
                .map(|_| {
                    sync.touch_everything();
                    sync.sync(view, &AtomicBool::new(false))
                })
                .collect();
            let told: Vec<UdpFrontends> = reports.into_iter().map(|report| report.inherited).collect();
            told
        };
        let nothing = UdpFrontends::default();
        assert_eq!(run(&snapshot, Vec::new()), [nothing.clone(), nothing.clone(), nothing.clone()]);
        let all = UdpFrontends {
            addresses: (0..N).map(|n| SocketAddr::from(([172, 30, 0, n], 80))).collect(),
            node_ports: (0..N).map(|n| 30_000 + u16::from(n)).collect(),
        };
        // Not with a sync that fails, after which the old rules are in force.
        let told = run(&Snapshot::default(), vec![RestoreError::Killed(9)]);
        assert_eq!(told, [nothing.clone(), all, nothing], "{layout:?}");
    }
}
