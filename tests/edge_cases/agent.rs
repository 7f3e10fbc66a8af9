//! The agent of the node on a fake kernel: what it writes from one state of the cluster to the next.

use std::sync::atomic::AtomicBool;

use chainsmith::apply::{FamilySync, SyncReport};
use chainsmith::compile::View;
use chainsmith::iptables::{Table, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::model::{Change, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::rules::names;

use crate::lab::{Lab, place};

pub struct Agent {
    pub sync: FamilySync<FakeIptables>,
    cluster: Snapshot,
    family: IpFamily,
}

impl Agent {
    pub fn new() -> Agent {
        Agent::on(FakeIptables::new(IpFamily::V4, Backend::Nft))
    }

    pub fn on(mut kernel: FakeIptables) -> Agent {
        for table in Table::ALL {
            kernel.ruleset.chain_mut(table, names::KUBE_PROXY_CANARY);
        }
        let family = chainsmith::kernel::Iptables::family(&kernel);
        Agent { sync: FamilySync::new(kernel), cluster: Snapshot::default(), family }
    }

    /// Applies the objects of `lab`; returns the Services that changed.
    pub fn apply(&mut self, lab: &Lab) -> Touched {
        let (snapshot, _) = lab.read();
        let mut touched = Touched::default();
        for change in [
            Change::Node(snapshot.node().cloned()),
            Change::AllServices(
                snapshot.services().map(|service| chainsmith::model::Service::clone(service)).collect(),
            ),
            Change::AllSlices(snapshot.slices().map(|(name, slice)| (name.clone(), slice.clone())).collect()),
        ] {
            self.cluster.apply(change, &mut touched);
        }
        self.sync.set_settings(lab.settings(&self.cluster, self.family));
        if touched.node {
            self.sync.touch_everything();
        }
        self.sync.touch(touched.services.get(self.family).clone());
        touched
    }

    /// One sync.
    pub fn sync(&mut self) -> SyncReport {
        let view = View { snapshot: &self.cluster, place: place(&self.cluster) };
        self.sync.sync(view, &AtomicBool::new(false))
    }

    /// Applies `lab`, syncs, checks that the kernel then has its rules, and returns the inputs of the
    /// restores.
    #[track_caller]
    pub fn sync_to(&mut self, lab: &Lab) -> String {
        let n_before = self.sync.kernel().inputs.len();
        self.apply(lab);
        let report = self.sync();
        assert_eq!(report.outcome, Ok(()));
        assert_eq!(self.save(), lab.save(self.family), "the kernel holds other rules");
        self.sync.kernel().inputs[n_before..].concat()
    }

    /// The rules of the fake kernel.
    pub fn save(&mut self) -> String {
        let family = self.family;
        write::save(family, &self.sync.kernel().ruleset)
    }
}

/// Whether an input writes or deletes `chain`.
pub fn touches(input: &str, chain: &str) -> bool {
    input.lines().any(|line| {
        [format!(":{chain} "), format!("-A {chain} "), format!("-X {chain}")]
            .iter()
            .any(|start| line.starts_with(start.as_str()) || line == start.trim_end())
    })
}
