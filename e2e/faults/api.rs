//! What can be wrong with the API server: rules stay in force, traffic goes on, and afterwards only
//! what changed is written.

use std::thread;
use std::time::{Duration, Instant};

use super::kernel::TURNS;
use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::apiserver::{ApiServer, Fault};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::Family;
use crate::lab::agent::Agent;
use crate::lab::client::Host;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long it may take to catch up: the client waits longer after each failure.
const CAUGHT_UP: Duration = Duration::from_secs(60);

/// How the server fails.
struct Trouble {
    name: &'static str,
    /// Begins it; the value is a version from before the last change.
    begin: fn(&ApiServer, &Agent, u64),
    /// For how long, in full.
    lasts: Duration,
    /// The agent can hear of changes all the same.
    is_passable: bool,
}

const TROUBLES: [Trouble; 11] = [
    Trouble {
        name: "410 Gone",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Gone));
        },
    },
    Trouble {
        name: "history compacted",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, _, _| api.compact(),
    },
    Trouble {
        name: "connections cut, idle ones too",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Cut { after: 0, times: 12 }));
        },
    },
    Trouble {
        name: "connections cut after 300 bytes",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Cut { after: 300, times: 12 }));
        },
    },
    Trouble {
        name: "slow: 200 bytes each 20 ms",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, _, _| {
            api.compact();
            api.set_fault(Some(Fault::Slow { chunk: 200, pause: Duration::from_millis(20) }));
        },
    },
    Trouble {
        name: "silent",
        lasts: Duration::from_secs(2),
        is_passable: false,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Silent));
        },
    },
    Trouble {
        name: "away",
        lasts: Duration::from_secs(60),
        is_passable: false,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Away));
        },
    },
    Trouble {
        name: "500 for everything",
        lasts: Duration::from_secs(2),
        is_passable: false,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Status(500)));
            api.drop_watches();
        },
    },
    Trouble {
        name: "garbage",
        lasts: Duration::from_secs(2),
        is_passable: false,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::Garbage(b"{\"type\":]\x00\xff".to_vec())));
            api.compact();
        },
    },
    Trouble {
        name: "half an object",
        lasts: Duration::from_secs(2),
        is_passable: false,
        begin: |api, _, _| {
            api.set_fault(Some(Fault::HalfObject));
        },
    },
    Trouble {
        name: "a stale list",
        lasts: Duration::from_secs(2),
        is_passable: true,
        begin: |api, agent, before| {
            // What cannot be read makes agents list anew, after a pause; the list is the stale one.
            api.set_fault(Some(Fault::Garbage(b"garbage".to_vec())));
            let is_it = |line: &str| line.contains("watch failed") && line.contains("kind=EndpointSlice");
            poll::until("the agent gives up", CAUGHT_UP, || agent.log().lines().any(is_it));
            api.set_fault(Some(Fault::StaleList { at: before }));
        },
    },
];

/// Whatever the API server does, rules stay in force and traffic goes on; afterwards what changed is
/// in force, and nothing else was written.
pub fn rules_outlive_the_api_server(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::simulated(backend, &[AT_ONCE]).expect("a cluster starts");
    let (_, n_full) = running.agents[0].written();
    let mut findings: Vec<Finding> =
        TROUBLES.iter().map(|trouble| try_trouble(&mut running, trouble, extent, n_full)).collect();
    findings.extend(lists_in_other_ways(&mut running, extent));
    if extent == Extent::Full {
        findings.push(changed_token(&mut running));
    }
    all_is_right(&running);
    findings
}

fn try_trouble(running: &mut Running, trouble: &Trouble, extent: Extent, n_full: u64) -> Finding {
    let n_times = if trouble.lasts > Duration::from_secs(10) { 1 } else { extent.of(1, 2) };
    let hold = extent.of(Duration::from_millis(300), trouble.lasts);
    let [(address, pod), (other_address, other)] = TURNS;
    let to = OWN.cluster_ip(Family::V4);
    let (mut repaired, mut n_tried, mut n_written, mut n_asked) = (Vec::new(), 0, 0, 0);
    let load = Load::on(&running.lab, WEB);
    for _ in 0..n_times {
        let before = running.simulator().version();
        running.api.put(own_slice(&[other_address]));
        // Without the failures of the fault before.
        running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
        let (node, api, agent) = (running.lab.node(1), running.simulator(), &running.agents[0]);
        poll::until("the old endpoint is in force", CAUGHT_UP, || node.tcp(to).pod() == other);
        let (_, n_before) = agent.written();
        let n_requests_before = n_requests(api);
        (trouble.begin)(api, agent, before);
        api.put(own_slice(&[address]));
        let start = Instant::now();
        let mut caught_up = None;
        while start.elapsed() < hold {
            if caught_up.is_none() && node.tcp(to).pod() == pod {
                caught_up = Some(start.elapsed());
            }
            assert!(trouble.is_passable || caught_up.is_none(), "{}: how does it know?", trouble.name);
            thread::sleep(Duration::from_millis(10));
        }
        n_asked = n_asked.max(n_requests(api) - n_requests_before);
        api.set_fault(None);
        let cleared = Instant::now();
        let since = if trouble.is_passable { start } else { cleared };
        poll::until(&format!("{}: it catches up", trouble.name), CAUGHT_UP, || node.tcp(to).pod() == pod);
        repaired.push(caught_up.unwrap_or_else(|| since.elapsed()));
        poll::until("the sync is logged", CAUGHT_UP, || agent.written().1 > n_before);
        let written = agent.written().1 - n_before;
        assert!(written * 5 < n_full, "{}: {written} rules written, {n_full} at first", trouble.name);
        n_written = n_written.max(written);
    }
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{}: {tally}", trouble.name);
    n_tried += tally.n_attempts();
    Finding {
        fault: format!("API server: {}, for {} s", trouble.name, hold.as_secs_f32()),
        n_times,
        observed: format!(
            "rules stay; {n_written} of {n_full} rules written for the change made meanwhile; \
             two nodes asked {n_asked} times"
        ),
        repaired,
        n_tried,
        n_wrong: 0,
    }
}

/// Lists and watches that anybody asked for so far.
fn n_requests(api: &ApiServer) -> u64 {
    api.counters().resources.values().map(|counts| counts.pages + counts.watches).sum()
}

/// Servers that do not serve streaming lists are asked for pages.
fn lists_in_other_ways(running: &mut Running, extent: Extent) -> Vec<Finding> {
    // One that does not understand them is recognized by 30 s of silence.
    let ways: &[(&str, Fault)] = &[
        ("streaming lists refused", Fault::RefuseStreamingLists),
        ("streaming lists ignored", Fault::IgnoreStreamingLists),
    ];
    let mut findings = Vec::new();
    for (name, fault) in &ways[..extent.of(1, 2)] {
        let (address, pod) = TURNS[1];
        running.simulator().set_fault(Some(fault.clone()));
        running.api.put(own_slice(&[address]));
        let load = Load::on(&running.lab, WEB);
        let start = Instant::now();
        running.agents.remove(0).kill9();
        let agent = running.start_agent(running.lab.node(1)).expect("an agent starts");
        running.agents.insert(0, agent);
        let node = running.lab.node(1);
        poll::until(&format!("{name}: it syncs"), CAUGHT_UP, || running.agents[0].syncs().len() >= 2);
        let repaired = vec![start.elapsed()];
        assert_eq!(node.tcp(OWN.cluster_ip(Family::V4)).pod(), pod);
        running.simulator().set_fault(None);
        let tally = load.stop();
        assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{name}: {tally}");
        findings.push(Finding {
            fault: format!("API server: {name}"),
            n_times: 1,
            observed: "a start asks for pages instead".to_owned(),
            repaired,
            n_tried: tally.n_attempts(),
            n_wrong: 0,
        });
    }
    findings
}

/// A token that the server no longer takes: the file is read again.
fn changed_token(running: &mut Running) -> Finding {
    let file = running.lab.folder().join("token");
    std::fs::write(&file, "first").expect("the lab's folder can be written to");
    let kubeconfig = {
        let api = running.simulator();
        api.require_token(None);
        api.kubeconfig_at(api.address().ip(), Some(&file))
    };
    let [(address, pod), (other_address, other)] = TURNS;
    running.api.put(own_slice(&[other_address]));
    running.replace_agent(&[AT_ONCE], Some(kubeconfig)).expect("an agent starts");
    let (node, api, to) = (running.lab.node(1), running.simulator(), OWN.cluster_ip(Family::V4));
    poll::until("the old endpoint is in force", CAUGHT_UP, || node.tcp(to).pod() == other);
    let load = Load::on(&running.lab, WEB);
    api.require_token(Some("second"));
    std::fs::write(&file, "second").expect("the lab's folder can be written to");
    api.drop_watches();
    let start = Instant::now();
    api.put(own_slice(&[address]));
    poll::until("it catches up", Duration::from_secs(150), || node.tcp(to).pod() == pod);
    let repaired = vec![start.elapsed()];
    api.require_token(None);
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    Finding {
        fault: "API server: token expired, another in its file".to_owned(),
        n_times: 1,
        observed: "rules stay; the file is read again within a minute".to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }
}
