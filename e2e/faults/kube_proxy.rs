//! From kube-proxy's rules to ours and back: its recorded rules (`testdata/corpus`) are
//! in force on a node, an agent starts there, and kube-proxy restores its own over ours.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use chainsmith::kernel::nfacct;
use chainsmith::rules::fixed::{INVALID_COUNTER, LOCALHOST_COUNTER};

use super::layouts::{Layout, is_laid_out};
use super::{AT_ONCE, Extent, Finding, Load};
use crate::apiserver::ApiServer;
use crate::lab::address::{FAMILIES, Family};
use crate::lab::agent::{Agent, AgentOptions};
use crate::lab::client::{Host, PATIENCE, Protocol};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, poll};
use crate::running::{FIRST_SYNC, listen};

/// The position of a client.
#[derive(Clone, Copy, Debug)]
enum Client {
    Pod,
    Node,
    Outside,
}

/// A recorded case, and connections that its rules serve on node-1.
struct Recorded {
    /// The folder of the case.
    case: &'static str,
    /// The pods that answer.
    pods: [&'static str; 2],
    clients: &'static [(Client, Protocol, &'static str)],
}

const RECORDED: [Recorded; 2] = [
    Recorded {
        case: "nodeport-dual-stack",
        pods: ["web-1", "web-3"],
        clients: &[
            (Client::Pod, Protocol::Tcp, "10.96.13.4:80"),
            (Client::Pod, Protocol::Tcp, "[fd00:10:96::d:4]:80"),
            (Client::Node, Protocol::Tcp, "10.96.13.4:80"),
            (Client::Node, Protocol::Tcp, "[fd00:10:96::d:4]:80"),
            (Client::Outside, Protocol::Tcp, "192.0.2.1:30082"),
            (Client::Outside, Protocol::Tcp, "[2001:db8::1]:30082"),
        ],
    },
    Recorded {
        case: "clusterip-tcp-and-udp-same-port",
        pods: ["dns-1", "dns-2"],
        clients: &[
            (Client::Pod, Protocol::Tcp, "10.96.0.10:53"),
            (Client::Pod, Protocol::Udp, "10.96.0.10:53"),
            (Client::Node, Protocol::Tcp, "10.96.0.10:53"),
            (Client::Node, Protocol::Udp, "10.96.0.10:53"),
            (Client::Outside, Protocol::Tcp, "10.96.0.10:53"),
            (Client::Outside, Protocol::Udp, "10.96.0.10:53"),
        ],
    },
];

impl Recorded {
    fn file(&self, name: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus");
        let path = root.join(self.case).join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {}: {error}", path.display()))
    }

    /// The rules of kube-proxy, as `iptables-save` printed them.
    fn saved(&self, family: Family) -> String {
        self.file(match family {
            Family::V4 => "expected.v4.save",
            Family::V6 => "expected.v6.save",
        })
    }

    fn clients<'a>(&self, lab: &'a Lab) -> Vec<(&'a dyn Host, Protocol, SocketAddr)> {
        let host = |from| -> &'a dyn Host {
            match from {
                Client::Pod => lab.pod("client-1"),
                Client::Node => lab.node(1),
                Client::Outside => lab.outside(),
            }
        };
        let client = |(from, protocol, to): &(Client, Protocol, &str)| {
            (host(*from), *protocol, to.parse().expect("an address and a port"))
        };
        self.clients.iter().map(client).collect()
    }

    /// Both pods share new connections of each client.
    fn serves(&self, lab: &Lab) {
        for (host, protocol, to) in self.clients(lab) {
            host.attempts(60, protocol, to).assert_spread(&self.pods);
        }
    }
}

/// A lab for all of the cases.
fn lab(backend: Backend) -> Lab {
    let plan = Lab::plan(backend).node(&["web-1", "client-1"]).node(&["web-3"]).node(&[]);
    let mut lab = plan.build().expect("a lab can be made");
    for (node, name) in [(1, "dns-1"), (3, "dns-2")] {
        lab.add_pod(node, 53, name).expect("a pod can be added");
        lab.serve_also(name, 53).expect("it can serve DNS's port");
    }
    lab.outside().enter_by(lab.node(1)).expect("routes can be set");
    lab
}

/// A start on kube-proxy's rules in the compact layout, then kube-proxy's own rules over ours, then a
/// start in the classic layout, which adopts the rules: no step loses a connection.
pub fn rules_are_taken_over_from_kube_proxy_and_back(backend: Backend, extent: Extent) -> Vec<Finding> {
    let n_times = extent.of(1, 20);
    RECORDED.iter().flat_map(|recorded| take_over_and_give_back(backend, n_times, recorded)).collect()
}

fn take_over_and_give_back(backend: Backend, n_times: u32, recorded: &Recorded) -> [Finding; 2] {
    let lab = lab(backend);
    let node = lab.node(1);
    node.namespace().run(|| {
        [INVALID_COUNTER, LOCALHOST_COUNTER].map(|name| nfacct::ensure(name).expect("the kernel has nfacct"))
    });
    for family in FAMILIES {
        node.netfilter().restore(family, &recorded.saved(family)).expect("what was saved can be restored");
    }
    let of_kube_proxy = rules(node);
    recorded.serves(&lab);

    // Never a real one: it has the Service `kubernetes`, too, which the recorded rules lack.
    let netns = lab.fabric().fd().expect("a descriptor");
    let api = ApiServer::start(listen(), Some(netns)).expect("an API server starts");
    api.put_yaml(&recorded.file("objects.yaml"));
    let start = |layout: &str| {
        let args = [AT_ONCE.to_owned(), format!("--layout={layout}")].into();
        let options = AgentOptions { kubeconfig: api.kubeconfig(), args, ..AgentOptions::default() };
        let agent = lab.start_chainsmith(node, &options).expect("an agent starts");
        poll::until("it has synced both families", FIRST_SYNC, || agent.syncs().len() >= 2);
        agent
    };
    let load = Load::of(&recorded.clients(&lab), PATIENCE);
    let (mut compact, mut given_back) = (Vec::new(), Vec::new());
    for _ in 0..n_times {
        let started = Instant::now();
        let agent = start("compact");
        assert!(is_laid_out(node, Layout::Compact), "after the first sync");
        compact.push(started.elapsed());
        recorded.serves(&lab);
        agent.stop();
        let started = Instant::now();
        FAMILIES.into_iter().for_each(|family| restore_as_kube_proxy(node, family, &recorded.saved(family)));
        given_back.push(started.elapsed());
        assert_eq!(rules(node), of_kube_proxy, "nothing of ours is left");
        recorded.serves(&lab);
    }
    let agent = start("classic");
    adopts(&agent);
    recorded.serves(&lab);
    agent.stop();
    assert_eq!(rules(node), of_kube_proxy, "they were taken as they are");
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&recorded.pods), 0, "{tally}");
    let finding = |fault: &str, observed: &str, repaired, n_tried| Finding {
        fault: format!("{fault} ({})", recorded.case),
        n_times,
        observed: observed.to_owned(),
        repaired,
        n_tried,
        n_wrong: 0,
    };
    [
        finding(
            "a start in compact on kube-proxy's recorded rules",
            "all chains written in compact, kube-proxy's own deleted; in classic nothing written; no connection rejected, lost or answered by a wrong pod",
            compact,
            tally.n_attempts(),
        ),
        finding(
            "kube-proxy's own restore over ours",
            "kube-proxy's rules restored, none of ours left; connections counted above",
            given_back,
            0,
        ),
    ]
}

/// The first syncs wrote nothing: the rules in force were the desired ones.
fn adopts(agent: &Agent) {
    for sync in agent.syncs() {
        assert_eq!((sync.chains_written, sync.rules_written, sync.processes), (0, 0, 0), "{sync:?}");
    }
}

/// Rules of both families: declarations and rules of each table by chain, those of one chain in
/// their order, without counters and comments.
fn rules(node: &Node) -> Vec<(String, String)> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let mut table = String::new();
        for line in node.netfilter().save(family).expect("rules can be read").lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = format!("{family:?} {name}");
            }
            let (rule, _) = line.split_once(" [").filter(|_| line.starts_with(':')).unwrap_or((line, ""));
            let chain = rule.strip_prefix(':').or_else(|| rule.strip_prefix("-A "));
            if let Some(chain) = chain.and_then(|rest| rest.split(' ').next()) {
                rules.push((format!("{table} {chain}"), rule.to_owned()));
            }
        }
    }
    rules.sort_by(|(a, _), (b, _)| a.cmp(b));
    rules
}

/// Chains of nat that kube-proxy treats as its own and deletes unless it needs them (sync.md 5).
const ITS_PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"];

/// Restores what a starting kube-proxy restores whose rules are `saved`: its chains in full, and
/// the deletion of chains that it treats as its own stale ones. The jumps to them exist.
fn restore_as_kube_proxy(node: &Node, family: Family, saved: &str) {
    let held = node.netfilter().iptables(family, &["-t", "nat", "-S"]).expect("rules can be read");
    let mut input = String::new();
    for table in ["filter", "nat"] {
        let (_, text) = saved.split_once(&format!("*{table}\n")).expect("the table was saved");
        let (text, _) = text.split_once("COMMIT").expect("a table ends so");
        let is_managed = |line: &&str| line.starts_with(":KUBE-") || line.starts_with("-A KUBE-");
        let lines: Vec<&str> = text.lines().filter(is_managed).collect();
        let declared: BTreeSet<&str> =
            lines.iter().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
        let is_stale = |name: &&str| {
            table == "nat"
                && ITS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                && !declared.contains(name)
        };
        let stale: Vec<&str> =
            held.lines().filter_map(|line| line.strip_prefix("-N ")).filter(is_stale).collect();
        writeln!(input, "*{table}").expect("memory");
        stale.iter().for_each(|name| writeln!(input, ":{name} - [0:0]").expect("memory"));
        lines.iter().for_each(|line| writeln!(input, "{line}").expect("memory"));
        stale.iter().for_each(|name| writeln!(input, "-X {name}").expect("memory"));
        input += "COMMIT\n";
    }
    let program = node.backend().program(family, "-restore");
    let args = ["-w", "5", "--noflush", "--counters"];
    node.namespace().command(&program, &args, &input).expect("kube-proxy's input is taken");
}
