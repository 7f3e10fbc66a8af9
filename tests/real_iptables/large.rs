//! A large first sync with nf_tables, and a small change of a large cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use chainsmith::apply::FamilySync;
use chainsmith::compile::View;
use chainsmith::config::{Config, LayoutChoice};
use chainsmith::iptables::parse::{self, Line};
use chainsmith::iptables::{ChainName, Jump, Table};
use chainsmith::kernel::programs::{KernelIptables, open};
use chainsmith::kernel::{Backend, Dump, Iptables, Outline, Readable, RestoreError};
use chainsmith::model::host::Host;
use chainsmith::model::{
    Change, Conditions, Frontend, ObjectName, Port, Service, Slice, SliceEndpoint, SlicePort, Snapshot,
    Touched,
};
use chainsmith::net::{IpFamily, PerFamily, Protocol};
use chainsmith::plan::{Limits, Restore};
use chainsmith::policy::Place;
use chainsmith::rules::Settings;

use super::namespace::in_namespace;

/// Real tables with a record of calls.
pub struct Recorded {
    kernel: KernelIptables,
    calls: Arc<Mutex<Calls>>,
    /// Called after each process.
    look: Box<dyn FnMut() + Send + Sync>,
}

/// The recorded calls.
#[derive(Default)]
pub struct Calls {
    /// The inputs of all restores.
    pub inputs: Vec<String>,
    /// Tables read, one entry for each read.
    pub saved: Vec<Table>,
    /// Dumps of a whole table.
    pub n_dumps: usize,
    /// Chains dumped one by one.
    pub n_dumped: usize,
}

impl Recorded {
    /// The tables of `family` on the nft back-end, in the namespace of this thread.
    pub fn open(family: IpFamily) -> (Recorded, Arc<Mutex<Calls>>) {
        Recorded::of(open(family, Some(Backend::Nft)).expect("iptables works"))
    }

    /// These tables.
    pub fn of(kernel: KernelIptables) -> (Recorded, Arc<Mutex<Calls>>) {
        let recorded = Recorded::new(kernel, || {});
        let calls = recorded.calls.clone();
        (recorded, calls)
    }

    /// These tables, with `look` called after each process.
    pub fn new(kernel: KernelIptables, look: impl FnMut() + Send + Sync + 'static) -> Recorded {
        Recorded { kernel, calls: Arc::default(), look: Box::new(look) }
    }
}

impl Restore for Recorded {
    type Error = RestoreError;

    fn begin(&mut self) {
        self.calls.lock().unwrap().inputs.push(String::new());
        self.kernel.begin();
    }

    fn write(&mut self, text: &str) {
        self.calls.lock().unwrap().inputs.last_mut().expect("begun").push_str(text);
        self.kernel.write(text);
    }

    fn end(&mut self) -> Result<(), RestoreError> {
        self.kernel.end().inspect(|()| (self.look)())
    }
}

impl Iptables for Recorded {
    fn family(&self) -> IpFamily {
        self.kernel.family()
    }

    fn backend(&self) -> Backend {
        self.kernel.backend()
    }

    fn readable(&mut self, table: Table) -> anyhow::Result<Readable> {
        self.kernel.readable(table)
    }

    fn save(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.calls.lock().unwrap().saved.push(table);
        self.kernel.save(table, each)
    }

    fn has_jump(&mut self, jump: &Jump) -> anyhow::Result<bool> {
        self.kernel.has_jump(jump)
    }

    fn chain_names(&mut self, table: Table, each: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.kernel.chain_names(table, each)
    }

    fn fingerprints(&mut self, table: Table, only: Option<&[ChainName]>) -> anyhow::Result<Option<Dump>> {
        let mut calls = self.calls.lock().unwrap();
        calls.n_dumps += usize::from(only.is_none());
        calls.n_dumped += only.map_or(0, <[ChainName]>::len);
        drop(calls);
        self.kernel.fingerprints(table, only)
    }

    fn outline(&mut self, table: Table) -> anyhow::Result<Option<Outline>> {
        self.kernel.outline(table)
    }

    fn generation(&mut self) -> anyhow::Result<Option<u32>> {
        self.kernel.generation()
    }

    fn ensure_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<()> {
        self.kernel.ensure_chain(table, chain)
    }

    fn has_chain(&mut self, table: Table, chain: ChainName) -> anyhow::Result<bool> {
        self.kernel.has_chain(table, chain)
    }
}

const N_SERVICES: usize = 1_500;
const N_ENDPOINTS: usize = 4;

fn ip(net: u8, n: usize) -> IpAddr {
    [10, net, (n / 250) as u8, (n % 250) as u8].into()
}

pub fn service(n: usize) -> Service {
    let frontend = Frontend {
        cluster_ip: ip(96, n),
        external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: Box::default(),
    };
    Service {
        name: ObjectName::new("ns", &format!("s{n}")),
        frontends: PerFamily { v4: Some(frontend), v6: None },
        ports: [Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: None,
        health_check_node_port: None,
        created: None,
    }
}

pub fn slice(n: usize, endpoints: impl Iterator<Item = usize>) -> Change {
    let endpoint = |at: usize| SliceEndpoint {
        ip: ip(180 + at as u8, n),
        conditions: Conditions { is_ready: true, is_serving: true, is_terminating: false },
        node: None,
        hints: None,
    };
    let service = ObjectName::new("ns", &format!("s{n}"));
    let ports = [SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }].into();
    let slice = Slice {
        service: service.clone(),
        family: IpFamily::V4,
        ports,
        endpoints: endpoints.map(endpoint).collect(),
        triggered_at: None,
    };
    Change::Slice(service, Some(slice))
}

/// Chains in an input: declarations, rules and their targets.
fn names(input: &str) -> BTreeSet<ChainName> {
    let mut names = BTreeSet::new();
    for line in input.lines() {
        match parse::line(IpFamily::V4, line).expect("our own text") {
            Line::Append(name, rule) | Line::Insert(name, rule) => {
                names.extend([Some(name), rule.callee()].into_iter().flatten());
            }
            Line::Declaration(name, _) | Line::Delete(name) => drop(names.insert(name)),
            _ => {}
        }
    }
    names
}

fn large_cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for n in 0..N_SERVICES {
        let service = service(n);
        snapshot.apply(Change::Service(service.name.clone(), Some(service)), &mut Touched::default());
        snapshot.apply(slice(n, 0..N_ENDPOINTS), &mut Touched::default());
    }
    snapshot
}

#[test]
fn a_large_first_sync_is_divided_and_one_endpoint_is_one_small_process() {
    in_namespace(|| {
        let mut snapshot = large_cluster();
        let (kernel, calls) = Recorded::open(IpFamily::V4);
        let inputs = || calls.lock().unwrap().inputs.clone();
        let mut sync = FamilySync::new(kernel);
        let config = Config { layout: LayoutChoice::Classic, ..Config::default() };
        sync.set_settings(Settings::new(&config, None, &Host::default(), IpFamily::V4));
        let place = Place { node: "n", zone: None };
        let report = sync.sync(View { snapshot: &snapshot, place }, &AtomicBool::new(false));
        assert_eq!(report.outcome, Ok(()));
        let sizes: Vec<usize> = inputs().iter().map(|input| names(input).len()).collect();
        // The first is a small one with the urgent rules. KUBE-MARK-MASQ and the built-in chains appear in
        // it besides the written chains.
        assert!(sizes.iter().all(|n| *n <= Limits::NFT.max_names + 10), "{sizes:?}");
        let n_chains = N_SERVICES * (1 + N_ENDPOINTS);
        assert_eq!(sizes.len(), n_chains.div_ceil(Limits::NFT.max_names) + 2, "{sizes:?}");
        assert_eq!(report.tally.n_processes, sizes.len());
        // In each, callees first and names descending: each is near the head of the program's list.
        for input in &inputs() {
            let is_endpoint = |line: &&str| line.starts_with(":KUBE-SEP-");
            let endpoints: Vec<&str> = input.lines().filter(is_endpoint).collect();
            assert!(endpoints.windows(2).all(|pair| pair[0] > pair[1]));
        }

        let n_before = inputs().len();
        let mut touched = Touched::default();
        snapshot.apply(slice(700, 0..N_ENDPOINTS - 1), &mut touched);
        sync.touch(touched.services.v4);
        let report = sync.sync(View { snapshot: &snapshot, place }, &AtomicBool::new(false));
        assert_eq!((report.outcome, report.tally.n_processes), (Ok(()), 1));
        assert!(report.tally.n_lines <= 10, "{}", inputs()[n_before]);

        let calls_so_far = || {
            let calls = calls.lock().unwrap();
            (calls.saved.len(), calls.inputs.len())
        };
        let (n_saves, n_inputs) = calls_so_far();
        sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        let report = sync.sync(View { snapshot: &snapshot, place }, &AtomicBool::new(false));
        assert_eq!((report.outcome, report.tally.n_processes), (Ok(()), 0));
        assert_eq!(calls_so_far(), (n_saves + 2, n_inputs));
    });
}
