//! Other processes that write to the tables: flushes, changed rules, a held lock, continuous writes.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::rules::{Rules, chain_of_web};
use super::{AT_ONCE, Extent, Finding, Load, SOON, all_is_right};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::client::Host;
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The agent compares the kernel with the desired rules each second.
const AUDIT_EACH_SECOND: &str = "--audit-period=1s";

/// The addresses of the pods that the Service `own` gets in turns, and their names.
pub(super) const TURNS: [(&str, &str); 2] = [("10.128.1.5", "web-3"), ("10.128.0.5", "web-1")];

/// An external change of our rules.
struct Wreck {
    name: &'static str,
    /// Each check of a jump finds it, so the legacy back-end needs no audit to notice.
    is_flush: bool,
    /// At most how many of our chains the repair writes.
    max_chains: u64,
    act: fn(&Node, Family),
}

const WRECKS: [Wreck; 8] = [
    Wreck {
        name: "all tables flushed",
        is_flush: true,
        max_chains: u64::MAX,
        act: |node, family| {
            for table in ["mangle", "filter", "nat"] {
                node.netfilter().flush(family, table).expect("a table can be flushed");
            }
        },
    },
    Wreck {
        name: "table nat flushed",
        is_flush: true,
        max_chains: u64::MAX,
        act: |node, family| {
            node.netfilter().flush(family, "nat").expect("a table can be flushed");
        },
    },
    Wreck {
        name: "table filter flushed",
        is_flush: true,
        max_chains: u64::MAX,
        act: |node, family| {
            node.netfilter().flush(family, "filter").expect("a table can be flushed");
        },
    },
    Wreck {
        name: "one chain flushed",
        is_flush: false,
        max_chains: 1,
        act: |node, family| {
            iptables(node, family, &["-F", &chain_of_web(node, family)]);
        },
    },
    Wreck {
        name: "KUBE-SERVICES flushed",
        is_flush: false,
        max_chains: 1,
        act: |node, family| {
            iptables(node, family, &["-F", "KUBE-SERVICES"]);
        },
    },
    Wreck {
        name: "one rule deleted",
        is_flush: false,
        max_chains: 1,
        act: |node, family| {
            iptables(node, family, &["-D", &chain_of_web(node, family), "2"]);
        },
    },
    Wreck {
        name: "one jump deleted",
        is_flush: false,
        max_chains: 0,
        act: |node, family| {
            iptables(node, family, &["-D", "PREROUTING", "1"]);
        },
    },
    Wreck {
        name: "a rule added to our chain by hand",
        is_flush: false,
        max_chains: 1,
        act: |node, family| {
            iptables(node, family, &["-I", &chain_of_web(node, family), "-j", "RETURN"]);
        },
    },
];

fn iptables(node: &Node, family: Family, args: &[&str]) {
    let args = [&["-t", "nat"], args].concat();
    node.netfilter().iptables(family, &args).expect("an external process can write, too");
}

/// The agent repairs every external change of our rules, and writes nothing else.
pub fn damaged_tables_are_repaired(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::start(backend).expect("a cluster starts");
    let mut findings = Vec::new();
    let (flushes, others): (Vec<_>, Vec<_>) = WRECKS.iter().partition(|wreck| wreck.is_flush);
    for wreck in flushes {
        findings.push(try_wreck(&running, wreck, extent));
    }
    if backend == Backend::Legacy {
        // There the next audit notices these first.
        running.replace_agent(&[AUDIT_EACH_SECOND], None).expect("an agent starts");
    }
    for wreck in others {
        findings.push(try_wreck(&running, wreck, extent));
    }
    all_is_right(&running);
    findings
}

fn try_wreck(running: &Running, wreck: &Wreck, extent: Extent) -> Finding {
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let desired = Rules::of(node);
    let n_times = extent.of(1, 10);
    let mut written = BTreeSet::new();
    let mut repaired = Vec::new();
    let load = Load::impatient(&running.lab, WEB);
    for _ in 0..n_times {
        let n_syncs = agent.syncs().len();
        FAMILIES.into_iter().for_each(|family| (wreck.act)(node, family));
        let start = Instant::now();
        let mut found = Rules::of(node);
        while found != desired {
            let late = start.elapsed() > SOON;
            assert!(!late, "{} is not repaired: {}", wreck.name, desired.difference(&found));
            thread::sleep(Duration::from_millis(10));
            found = Rules::of(node);
        }
        repaired.push(start.elapsed());
        poll::until("the repairs of both families are logged", SOON, || {
            agent.syncs()[n_syncs..].iter().filter(|sync| sync.processes > 0).count() >= FAMILIES.len()
        });
        let n_chains: u64 = agent.syncs()[n_syncs..].iter().map(|sync| sync.chains_written).sum();
        let n_families = 2;
        assert!(
            n_chains <= wreck.max_chains.saturating_mul(n_families),
            "{}: {n_chains} chains written: {:?}",
            wreck.name,
            &agent.syncs()[n_syncs..]
        );
        written.insert(n_chains);
    }
    let tally = load.stop();
    assert!(agent.log().contains("rules changed by another process"), "{} was not logged", wreck.name);
    let written: Vec<String> = written.iter().map(u64::to_string).collect();
    Finding {
        fault: wreck.name.to_owned(),
        n_times,
        observed: format!(
            "noticed, logged, repaired; {} chains written in both families",
            written.join(" or ")
        ),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: tally.n_wrong(&WEB_PODS),
    }
}

/// Another process holds the xtables lock for long: rules in force stay, and the change follows. The
/// nft back-end has no lock and does not wait.
pub fn held_lock_is_waited_for(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::start(backend).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let to = OWN.cluster_ip(Family::V4);
    let load = Load::on(&running.lab, WEB);
    let hold = extent.of(Duration::ZERO, Duration::from_secs(30));
    let (locked, is_locked) = mpsc::channel();
    let (release, is_released) = mpsc::channel::<()>();
    let holder = node.namespace().spawn(move || {
        let file = File::create("/run/xtables.lock").expect("a node has its own /run");
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
        locked.send(()).ok();
        is_released.recv().ok();
        drop(lock.expect("the lock can be had"));
    });
    is_locked.recv().expect("the lock is taken");
    let start = Instant::now();
    running.api.put(own_slice(&[TURNS[0].0]));
    if backend == Backend::Legacy {
        poll::until("a sync gave up", Duration::from_secs(30), || {
            agent.log().contains("xtables lock was still held")
        });
    } else {
        poll::until("the change is in force", SOON, || node.tcp(to).pod() == TURNS[0].1);
    }
    let in_force = TURNS[usize::from(backend == Backend::Legacy)].1;
    while start.elapsed() < hold {
        assert_eq!(node.tcp(to).pod(), in_force, "what is in force stays");
        thread::sleep(Duration::from_millis(100));
    }
    let held = start.elapsed();
    release.send(()).expect("the holder waits");
    let released = Instant::now();
    poll::until("the change is in force", Duration::from_secs(40), || node.tcp(to).pod() == TURNS[0].1);
    let repaired = vec![released.elapsed()];
    holder.expect("a thread starts").join().expect("the holder ends");
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    assert!(!agent.log().contains("service port quarantined"), "a held lock is no service port's fault");
    let observed = match backend {
        Backend::Legacy => "rules in force stay; the sync is retried and catches up",
        Backend::Nft => "no lock there: the change is in force at once",
    };
    vec![Finding {
        fault: format!("xtables lock held for {} s", held.as_secs()),
        n_times: 1,
        observed: observed.to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}

/// Another process writes its own chains five times a second: our changes take effect all the same,
/// and our rules are not rewritten for it.
pub fn competing_writer_is_not_disturbed(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let to = OWN.cluster_ip(Family::V4);
    let n_changes = extent.of(4, 30);
    let (stop, n_writes) = (AtomicBool::new(false), AtomicU32::new(0));
    let n_before = agent.syncs().len();
    let calls_before = agent.programs_started().len();
    let load = Load::on(&running.lab, WEB);
    let start = Instant::now();
    let repaired = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for args in
                    [["-N", "CNI-LAB"].as_slice(), &["-A", "CNI-LAB", "-s", "198.51.100.1", "-j", "RETURN"]]
                {
                    iptables(node, Family::V4, args);
                }
                thread::sleep(Duration::from_millis(100));
                for command in ["-F", "-X"] {
                    iptables(node, Family::V4, &[command, "CNI-LAB"]);
                }
                n_writes.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(100));
            }
        });
        let mut repaired = Vec::new();
        for (address, pod) in TURNS.into_iter().cycle().take(n_changes) {
            running.api.put(own_slice(&[address]));
            repaired.push(poll::until("the change is in force", SOON, || node.tcp(to).pod() == pod));
            let n_before = n_writes.load(Ordering::Relaxed);
            poll::until("the other goes on", SOON, || n_writes.load(Ordering::Relaxed) > n_before);
        }
        stop.store(true, Ordering::Relaxed);
        repaired
    });
    let elapsed = start.elapsed();
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    let log = agent.log();
    assert!(!log.contains("rules changed by another process"), "foreign rules are no drift");
    assert!(!log.contains("sync failed"), "no sync was blocked");
    let syncs = &agent.syncs()[n_before..];
    let n_writing = syncs.iter().filter(|sync| sync.processes > 0).count();
    assert!(n_writing <= n_changes, "{n_changes} changes, and syncs that wrote: {syncs:?}");
    let n_calls = agent.programs_started().len() - calls_before;
    vec![Finding {
        fault: "a CNI writes its own chain".to_owned(),
        n_times: n_writes.load(Ordering::Relaxed),
        observed: format!(
            "{n_changes} changes, {n_writing} syncs wrote; {n_calls} programs started in {} s, none for foreign rules",
            elapsed.as_secs()
        ),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}

/// While nothing happens, no program is started on either back-end.
pub fn an_idle_node_starts_no_program(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::start(backend).expect("a cluster starts");
    let agent = &running.agents[0];
    let quiet_for = Duration::from_secs(extent.of(3, 20));
    // Programs of the start itself have ended when a second brings none.
    poll::until("the start is over", SOON, || {
        let n_calls = agent.programs_started().len();
        thread::sleep(Duration::from_millis(1_200));
        agent.programs_started().len() == n_calls
    });
    let n_before = agent.programs_started().len();
    thread::sleep(quiet_for);
    assert_eq!(agent.programs_started().split_off(n_before), [""; 0]);
    vec![Finding {
        fault: format!("nothing happens for {} s", quiet_for.as_secs()),
        n_times: 1,
        observed: "0 programs started".to_owned(),
        ..Finding::default()
    }]
}
