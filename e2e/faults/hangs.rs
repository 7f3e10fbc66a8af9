//! Programs that hang, and an agent that gets SIGTERM meanwhile.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{AT_ONCE, Extent, Finding, SOON};
use crate::cluster::own_slice;
use crate::lab::agent::Agent;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The limit for an agent that waits only for a program that reads. (A second on an idle
/// machine.)
const AT_ONCE_GONE: Duration = Duration::from_secs(5);

/// How long a restore that has begun may delay the end.
const RESTORE: Duration = Duration::from_secs(20);

/// At the start: the program that hangs, as a shell pattern for program, first and second argument.
const AT_START: [(&str, &str); 3] = [
    ("while iptables is asked for its version", "*\\ --version\\ *"),
    ("while table nat is read", "*tables*\\ -w\\ 5"),
    ("while a match is probed", "*-restore\\ -w\\ *"),
];

/// Makes programs that match `pattern` hang, and records the first such process.
fn hanging(pattern: &str) -> String {
    format!(
        "case \"$program $1 $2\" in {pattern}) echo $$ > \"$LAB_CALLS.draft\"; \
         mv \"$LAB_CALLS.draft\" \"$LAB_CALLS.pid\"; exec sleep 600;; esac\n"
    )
}

/// The process that hangs, once there is one.
fn wait_for_hanging(agent: &Agent) -> String {
    let pid = poll::until_some("a program hangs", SOON, || agent.note("pid"));
    pid.trim().to_owned()
}

/// Waits until `agent` has ended, with status 0 and without `child`; returns how long that took.
fn wait_for_end(agent: &Agent, child: &str, signalled: Instant, limit: Duration) -> Duration {
    let status = poll::until_some("the agent ends", limit, || agent.process().status());
    let elapsed = signalled.elapsed();
    assert!(status.success(), "it ended with {status}: {}", agent.log());
    let status = format!("/proc/{child}/status");
    let is_gone = || std::fs::read_to_string(&status).map_or(true, |status| status.contains("State:\tZ"));
    poll::until("the program that hangs is killed", SOON, is_gone);
    elapsed
}

/// SIGTERM ends the agent at once while a program hangs; only a restore that has begun may take 20 s, or
/// until a second signal.
pub fn sigterm_ends_the_agent_whatever_hangs(backend: Backend, extent: Extent) -> Vec<Finding> {
    let n_times = extent.of(1, 5);
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    running.agents.remove(0).stop();
    let mut findings = Vec::new();
    for (when, pattern) in AT_START {
        let turn = |_| {
            let agent = running.start_sabotaged(running.lab.node(1), &hanging(pattern)).expect("it starts");
            ended_by(&agent, 1, AT_ONCE_GONE)
        };
        findings.push(finding(&format!("SIGTERM at start, {when}"), (0..n_times).map(turn).collect()));
    }
    let in_a_look = |_| {
        let (node, agent) = (running.lab.node(1), started(&running));
        agent.sabotage(Some(&hanging("*tables*\\ -t\\ *")));
        // On nft the agent checks only after another process wrote.
        node.netfilter()
            .iptables(crate::lab::address::Family::V4, &["-t", "nat", "-F", "KUBE-SERVICES"])
            .ok();
        ended_by(&agent, 1, AT_ONCE_GONE)
    };
    findings.push(finding("SIGTERM while the tables are checked", (0..n_times).map(in_a_look).collect()));
    let in_a_sync = |n_signals, limit| {
        let agent = started(&running);
        agent.sabotage(Some(&hanging("*-restore\\ -w\\ *")));
        // No two turns ask for the same.
        for pod in ["10.128.1.5", "10.128.0.6"] {
            running.api.put(own_slice(&[pod]));
        }
        let elapsed = ended_by(&agent, n_signals, limit);
        running.api.put(own_slice(&["10.128.0.5"]));
        elapsed
    };
    let twice = (0..n_times).map(|_| in_a_sync(2, AT_ONCE_GONE)).collect();
    findings.push(finding("SIGTERM twice in a restore that hangs", twice));
    let once = in_a_sync(1, RESTORE + AT_ONCE_GONE);
    assert!(once > RESTORE / 2, "a restore that has begun is left to end: {once:?}");
    findings.push(finding("SIGTERM in a restore that hangs", vec![once]));
    findings
}

/// An agent on node-1 that has synced.
fn started(running: &Running) -> Agent {
    let agent = running.start_agent(running.lab.node(1)).expect("an agent starts");
    poll::until("it has synced both families", SOON, || agent.syncs().len() >= 2);
    agent
}

/// Sends `n_signals` to `agent` while a program hangs, and waits for its end.
fn ended_by(agent: &Agent, n_signals: u32, limit: Duration) -> Duration {
    let child = wait_for_hanging(agent);
    let signalled = Instant::now();
    agent.process().signal(Signal::SIGTERM);
    if n_signals > 1 {
        poll::until("the agent logs the first", SOON, || {
            agent.log().contains("exiting, rules left in place")
        });
        agent.process().signal(Signal::SIGTERM);
    }
    wait_for_end(agent, &child, signalled, limit)
}

fn finding(fault: &str, repaired: Vec<Duration>) -> Finding {
    Finding {
        fault: fault.to_owned(),
        n_times: u32::try_from(repaired.len()).expect("a few"),
        observed: "exit status 0, the program killed; the time is until the agent has ended".to_owned(),
        repaired,
        ..Finding::default()
    }
}
