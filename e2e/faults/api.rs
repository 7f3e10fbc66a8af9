//! Faults of the API server: rules stay in force, traffic goes on, and afterwards the agent writes only
//! what changed.

use std::thread;
use std::time::{Duration, Instant};

use super::kernel::TURNS;
use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::apiserver::{ApiServer, Cluster, Fault, TOKEN, User};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::Family;
use crate::lab::client::Host;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long an agent may need to catch up: the client waits up to 8 s between two attempts.
const CAUGHT_UP: Duration = Duration::from_secs(15);

/// The limit of all other waits.
const READY: Duration = Duration::from_secs(60);

/// How the server fails.
struct Trouble {
    name: &'static str,
    /// For how long in full runs.
    lasts: Duration,
    /// Whether the agent still gets changes.
    is_passable: bool,
    fault: fn() -> Option<Fault>,
    /// A behaviour of the simulator besides faults; a real server does not offer it.
    besides: Option<fn(&ApiServer)>,
}

const BRIEFLY: Duration = Duration::from_secs(2);

const TROUBLES: [Trouble; 10] = [
    Trouble {
        name: "410 Gone",
        lasts: BRIEFLY,
        is_passable: true,
        fault: || Some(Fault::Gone),
        besides: None,
    },
    Trouble {
        name: "history compacted",
        lasts: BRIEFLY,
        is_passable: true,
        fault: || None,
        besides: Some(ApiServer::compact),
    },
    Trouble {
        name: "connections cut, idle ones too",
        lasts: BRIEFLY,
        is_passable: true,
        fault: || Some(Fault::Cut { after: 0, times: 12 }),
        besides: None,
    },
    Trouble {
        name: "connections cut after 300 bytes",
        lasts: BRIEFLY,
        is_passable: true,
        fault: || Some(Fault::Cut { after: 300, times: 12 }),
        besides: None,
    },
    Trouble {
        name: "slow: 200 bytes each 20 ms",
        lasts: BRIEFLY,
        is_passable: true,
        fault: || Some(Fault::Slow { chunk: 200, pause: Duration::from_millis(20) }),
        besides: Some(ApiServer::compact),
    },
    Trouble {
        name: "silent",
        lasts: BRIEFLY,
        is_passable: false,
        fault: || Some(Fault::Silent),
        besides: None,
    },
    Trouble {
        name: "away",
        lasts: Duration::from_secs(60),
        is_passable: false,
        fault: || Some(Fault::Away),
        besides: None,
    },
    Trouble {
        name: "500 for everything",
        lasts: BRIEFLY,
        is_passable: false,
        fault: || Some(Fault::Status(500)),
        besides: Some(ApiServer::drop_watches),
    },
    Trouble {
        name: "garbage",
        lasts: BRIEFLY,
        is_passable: false,
        fault: || Some(Fault::Garbage(b"{\"type\":]\x00\xff".to_vec())),
        besides: Some(ApiServer::compact),
    },
    Trouble {
        name: "half an object",
        lasts: BRIEFLY,
        is_passable: false,
        fault: || Some(Fault::HalfObject),
        besides: None,
    },
];

/// Whatever the API server does, rules stay in force and traffic goes on; afterwards the changes are
/// in force, and nothing else was written. A real server (behind a proxy) is tested with the faults of
/// connections.
pub fn rules_outlive_the_api_server(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let (_, n_full) = running.agents[0].written();
    let is_simulated = running.api.simulator().is_some();
    let can_have =
        |trouble: &&Trouble| is_simulated || (trouble.fault)().is_some_and(|fault| fault.is_of_connections());
    // The server behaves alike for both back-ends, so a short run has half of the faults on each.
    let (first, step) = extent.of((usize::from(backend == Backend::Legacy), 2), (0, 1));
    let troubles = TROUBLES.iter().skip(first).step_by(step).filter(can_have);
    let mut findings: Vec<Finding> =
        troubles.map(|trouble| try_trouble(&mut running, trouble, extent, n_full)).collect();
    if is_simulated {
        findings.push(stale_list(&mut running, extent));
        findings.extend(lists_in_other_ways(&mut running, extent));
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
    let (mut repaired, mut n_written, mut n_met, mut n_asked) = (Vec::new(), 0, 0, 0);
    let load = Load::on(&running.lab, WEB);
    for _ in 0..n_times {
        running.api.put(own_slice(&[other_address]));
        // Without the failures of the previous fault.
        running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
        let (node, api, agent) = (running.lab.node(1), &running.api, &running.agents[0]);
        poll::until("the old endpoint is in force", READY, || node.tcp(to).pod() == other);
        let (_, n_before) = agent.written();
        let n_asked_before = n_requests(api.as_ref());
        let fault = (trouble.fault)();
        let has_fault = fault.is_some();
        api.set_fault(fault);
        if let (Some(besides), Some(simulator)) = (trouble.besides, api.simulator()) {
            besides(simulator);
        }
        api.put(own_slice(&[address]));
        let start = Instant::now();
        let mut caught_up = None;
        // Until the agents have met it: a fault that ended before proves nothing.
        while start.elapsed() < hold || has_fault && api.faults_met() < 2 {
            if caught_up.is_none() && node.tcp(to).pod() == pod {
                caught_up = Some(start.elapsed());
            }
            assert!(trouble.is_passable || caught_up.is_none(), "{}: how does it know?", trouble.name);
            assert!(start.elapsed() < hold + CAUGHT_UP, "{}: no agent met it", trouble.name);
            thread::sleep(Duration::from_millis(10));
        }
        n_met = n_met.max(api.faults_met());
        n_asked = n_asked.max(n_requests(api.as_ref()) - n_asked_before);
        api.set_fault(None);
        let cleared = Instant::now();
        let since = if trouble.is_passable { start } else { cleared };
        poll::until(&format!("{}: it catches up", trouble.name), CAUGHT_UP, || node.tcp(to).pod() == pod);
        repaired.push(caught_up.unwrap_or_else(|| since.elapsed()));
        poll::until("the sync is logged", READY, || agent.written().1 > n_before);
        let written = agent.written().1 - n_before;
        assert!(written * 5 < n_full, "{}: {written} rules written, {n_full} at first", trouble.name);
        n_written = n_written.max(written);
    }
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{}: {tally}", trouble.name);
    Finding {
        fault: format!("API server: {}, for {} s", trouble.name, hold.as_secs_f32()),
        n_times,
        observed: format!(
            "rules stay; {n_written} of {n_full} rules written for the change made meanwhile; \
             met {n_met} times; two nodes asked {n_asked} times"
        ),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }
}

/// An agent that starts while the server answers with an old state, where it may, keeps the current rules
/// in force: it requires the current version.
fn stale_list(running: &mut Running, extent: Extent) -> Finding {
    let hold = extent.of(Duration::from_millis(300), BRIEFLY);
    let [(address, pod), (other_address, other)] = TURNS;
    let to = OWN.cluster_ip(Family::V4);
    let node = running.lab.node(1);
    let past = running.api.put(own_slice(&[other_address]));
    poll::until("the old endpoint is in force", CAUGHT_UP, || node.tcp(to).pod() == other);
    let n_syncs = running.agents[0].syncs().len();
    running.api.put(own_slice(&[address]));
    poll::until("the change is synced", CAUGHT_UP, || running.agents[0].syncs().len() > n_syncs);
    poll::until("the new endpoint is in force", CAUGHT_UP, || node.tcp(to).pod() == pod);
    let load = [Load::on(&running.lab, WEB), Load::on(&running.lab, OWN)];
    running.api.set_fault(Some(Fault::StaleList { at: past }));
    running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
    let start = Instant::now();
    while start.elapsed() < hold {
        assert_eq!(running.lab.node(1).tcp(to).pod(), pod, "rules went back in time");
        thread::sleep(Duration::from_millis(10));
    }
    let n_met = running.api.faults_met();
    assert!(n_met >= 3, "the agent listed {n_met} of 3 kinds from it");
    running.api.set_fault(None);
    assert_eq!(running.agents[0].written(), (0, 0), "something was written for what is past");
    let [web, own] = load.map(Load::stop);
    assert_eq!(web.n_wrong(&WEB_PODS), 0, "{web}");
    // The other family has a slice of its own, with this pod.
    assert_eq!(own.n_wrong(&[pod, other]), 0, "{own}");
    Finding {
        fault: "API server: a stale list for every request that accepts any version".to_owned(),
        n_times: 1,
        observed: format!(
            "an agent that starts listed {n_met} times, required the current version, and wrote nothing"
        ),
        repaired: Vec::new(),
        n_tried: web.n_attempts() + own.n_attempts(),
        n_wrong: 0,
    }
}

/// All lists and watches so far; a real server does not count them.
fn n_requests(api: &dyn Cluster) -> u64 {
    let counters = api.simulator().map(ApiServer::counters).unwrap_or_default();
    counters.resources.values().map(|counts| counts.pages + counts.watches).sum()
}

/// A server without streaming lists is asked for one list of each kind, from its cache.
fn lists_in_other_ways(running: &mut Running, extent: Extent) -> Vec<Finding> {
    // A server that does not know them is recognized by 5 s of silence.
    let ways: &[(&str, Fault)] = &[
        ("streaming lists rejected", Fault::RefuseStreamingLists),
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
        poll::until(&format!("{name}: it syncs"), READY, || running.agents[0].syncs().len() >= 2);
        let repaired = vec![start.elapsed()];
        assert_eq!(node.tcp(OWN.cluster_ip(Family::V4)).pod(), pod);
        running.simulator().set_fault(None);
        let tally = load.stop();
        assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{name}: {tally}");
        findings.push(Finding {
            fault: format!("API server: {name}"),
            n_times: 1,
            observed: "a start lists from the server's cache instead".to_owned(),
            repaired,
            n_tried: tally.n_attempts(),
            n_wrong: 0,
        });
    }
    findings
}

/// The server rejects a token, and some time later the file has another.
fn changed_token(running: &mut Running) -> Finding {
    let file = running.lab.folder().join("token");
    std::fs::write(&file, "first").expect("the lab's folder can be written to");
    let kubeconfig = {
        let api = running.simulator();
        api.require_token(Some("first"));
        api.kubeconfig_https(api.reachable(), &User::TokenFile(file.clone()))
    };
    let [(address, pod), (other_address, other)] = TURNS;
    running.api.put(own_slice(&[other_address]));
    running.replace_agent(&[AT_ONCE], Some(kubeconfig)).expect("an agent starts");
    let (node, api, to) = (running.lab.node(1), running.simulator(), OWN.cluster_ip(Family::V4));
    poll::until("the old endpoint is in force", READY, || node.tcp(to).pod() == other);
    let load = Load::on(&running.lab, WEB);
    api.require_token(Some("second"));
    api.drop_watches();
    api.put(own_slice(&[address]));
    let is_rejected = |kind: &str| {
        running.agents[0].log().lines().any(|line| line.contains("Unauthorized") && line.contains(kind))
    };
    poll::until("the token is rejected", CAUGHT_UP, || is_rejected("kind=\"EndpointSlice\""));
    assert_eq!(node.tcp(to).pod(), other);
    std::fs::write(&file, "second").expect("the lab's folder can be written to");
    let start = Instant::now();
    poll::until("it catches up", Duration::from_secs(5), || node.tcp(to).pod() == pod);
    let repaired = vec![start.elapsed()];
    api.require_token(Some(TOKEN));
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    Finding {
        fault: "API server: token rejected, then another in its file".to_owned(),
        n_times: 1,
        observed: "rules stay; the new token is used at once".to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }
}
