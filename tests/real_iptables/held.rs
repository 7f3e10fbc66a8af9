//! A foreign rule refers to a stale chain of ours.

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile::View;
use chainsmith::config::Config;
use chainsmith::drift::{Comparison, Depth, Drift};
use chainsmith::iptables::{ChainName, Table, parse};
use chainsmith::kernel::Backend;
use chainsmith::kernel::programs::{Programs, open};
use chainsmith::model::host::Host;
use chainsmith::model::{Change, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::plan::Restore;
use chainsmith::rules::Settings;

use super::compact::{PLACE, small};
use super::large::{Calls, Recorded, service, slice};
use super::namespace::{everywhere, in_namespace, saved};

#[test]
fn a_referenced_stale_chain_stays_empty_and_blocks_no_sync() {
    everywhere(|family, backend| {
        let mut snapshot = small(family);
        let settings = Settings::new(&Config::default(), None, &Host::default(), family);
        let mut sync = FamilySync::new(open(family, Some(backend)).expect("iptables works"));
        sync.set_settings(settings);
        let run = |sync: &mut FamilySync<_>, snapshot: &_| {
            sync.sync(View { snapshot, place: PLACE }, &AtomicBool::new(false))
        };
        assert_eq!(run(&mut sync, &snapshot).outcome, Ok(()));
        let chains =
            |family: IpFamily| parse::save(family, &saved(family, backend)).expect("a save can be read");
        let is_service = |name: &&ChainName| name.as_str().starts_with("KUBE-SVC-");
        let held = *chains(family).tables[&Table::Nat].keys().find(is_service).expect("a Service's chain");
        let others = |text: &str| {
            let mut kernel = open(family, Some(backend)).expect("iptables works");
            kernel.begin();
            kernel.write(text);
            assert_eq!(kernel.end(), Ok(()));
        };
        others(&format!("*nat\n:MINE - [0:0]\n-A MINE -j {held}\nCOMMIT\n"));

        let first = snapshot.services().map(|service| service.name.clone()).collect::<Vec<_>>();
        for name in first {
            let mut touched = Touched::default();
            snapshot.apply(Change::Service(name, None), &mut touched);
            sync.touch(touched.services.get(family).clone());
            let report = run(&mut sync, &snapshot);
            assert_eq!((report.outcome, report.quarantined.len()), (Ok(()), 0));
        }
        let there = chains(family);
        let left: Vec<&ChainName> = there.tables[&Table::Nat].keys().filter(is_service).collect();
        assert_eq!(left, [&held]);
        assert!(there.chain(Table::Nat, &held).is_some_and(|chain| chain.rules.is_empty()));

        // An audit tries again.
        others("*nat\n:MINE - [0:0]\nCOMMIT\n");
        sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        assert_eq!(run(&mut sync, &snapshot).outcome, Ok(()));
        assert!(!chains(family).tables[&Table::Nat].contains_key(&held));
    });
}

/// A node of `n` Services on real tables, with a record of calls.
struct Node {
    family: IpFamily,
    backend: Backend,
    snapshot: Snapshot,
    sync: FamilySync<Recorded>,
    calls: Arc<Mutex<Calls>>,
}

impl Node {
    fn new(family: IpFamily, backend: Backend, n: usize) -> Node {
        let (recorded, calls) = Recorded::of(open(family, Some(backend)).expect("iptables works"));
        let mut sync = FamilySync::new(recorded);
        sync.set_settings(Settings::new(&Config::default(), None, &Host::default(), family));
        let mut node = Node { family, backend, snapshot: Snapshot::default(), sync, calls };
        for n in 0..n {
            let service = service(n);
            node.change(Change::Service(service.name.clone(), Some(service)));
            node.change(slice(n, 0..1));
        }
        node.run();
        node
    }

    fn change(&mut self, change: Change) {
        let mut touched = Touched::default();
        self.snapshot.apply(change, &mut touched);
        self.sync.touch(touched.services.get(self.family).clone());
    }

    /// A sync that must succeed; returns the number of programs started.
    fn run(&mut self) -> (SyncReport, usize) {
        let n_before = self.n_calls();
        let view = View { snapshot: &self.snapshot, place: PLACE };
        let report = self.sync.sync(view, &AtomicBool::new(false));
        assert_eq!((&report.outcome, report.quarantined.len()), (&Ok(()), 0));
        let n_programs = self.n_calls() - n_before;
        (report, n_programs)
    }

    fn n_calls(&self) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.inputs.len() + calls.saved.len()
    }

    /// Restores `text` as another program.
    fn restore_externally(&self, text: &str) {
        let mut kernel = open(self.family, Some(self.backend)).expect("iptables works");
        kernel.begin();
        kernel.write(text);
        assert_eq!(kernel.end(), Ok(()));
    }

    fn service_chains(&self) -> Vec<ChainName> {
        let there = parse::save(self.family, &saved(self.family, self.backend)).expect("a save can be read");
        let is_service = |name: &&ChainName| name.as_str().starts_with("KUBE-SVC-");
        there.tables[&Table::Nat].keys().filter(is_service).copied().collect()
    }
}

#[test]
fn all_referenced_stale_chains_are_found_by_one_read_and_kept_at_audits() {
    const N: usize = 30;
    for backend in [Backend::Nft, Backend::Legacy] {
        in_namespace(|| {
            let mut node = Node::new(IpFamily::V4, backend, N);
            let chains = node.service_chains();
            assert_eq!(chains.len(), N);
            let jumps: String = chains.iter().map(|chain| format!("-A MINE -j {chain}\n")).collect();
            node.restore_externally(&format!("*nat\n:MINE - [0:0]\n{jumps}COMMIT\n"));
            for n in 0..N {
                node.change(Change::Service(service(n).name, None));
            }
            let (report, n_programs) = node.run();
            assert_eq!((report.kept_stale.len(), report.n_failed_restores), (N, 1));
            assert!(n_programs <= 3, "two more than without references: {n_programs}");
            assert_eq!(node.service_chains(), chains);
            // At an audit that reads.
            node.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
            let (report, _) = node.run();
            assert_eq!(
                (report.kept_stale.len(), report.n_failed_restores, report.tally.n_processes),
                (0, 0, 0)
            );
            // Another change while they are referenced.
            node.change(Change::Service(service(N).name, Some(service(N))));
            node.change(slice(N, 0..1));
            node.run();
            node.change(Change::Service(service(N).name, None));
            let (report, n_programs) = node.run();
            assert_eq!((report.n_failed_restores, n_programs), (0, 1));
            // After the foreign rules are deleted.
            node.restore_externally("*nat\n:MINE - [0:0]\nCOMMIT\n");
            let comparison = node.sync.tables().compare(Depth::Whole);
            let is_incomplete = matches!(
                comparison,
                Comparison::Partial { is_complete: false, .. }
                    | Comparison::Different { is_whole: false, .. }
            );
            assert!(is_incomplete, "only reading shows it: {comparison:?}");
            node.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
            node.run();
            assert_eq!(node.service_chains(), []);
        });
    }
}

#[test]
fn a_foreign_comment_with_a_newline_is_not_drift() {
    everywhere(|family, backend| {
        let mut node = match family {
            IpFamily::V4 => Node::new(family, backend, 3),
            IpFamily::V6 => Node::new(family, backend, 0),
        };
        let comment = "a\n-A KUBE-SERVICES -j DROP\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n*mangle\n";
        let program = Programs::new(family, Some(backend)).iptables;
        for words in [vec!["-N", "MINE"], vec!["-A", "MINE", "-m", "comment", "--comment", comment]] {
            let status = Command::new(program).args(["-w", "-t", "nat"]).args(words).status().unwrap();
            assert!(status.success());
        }
        assert!(saved(family, backend).contains("\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n*mangle\n"));
        for _ in 0..2 {
            node.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
            let (report, _) = node.run();
            assert_eq!((report.drift, report.tally.n_processes), (Drift::default(), 0));
        }
    });
}
