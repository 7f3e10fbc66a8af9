//! An agent killed at any moment, and restarted.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::kernel::TURNS;
use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::Family;
use crate::lab::client::{Host, Protocol};
use crate::lab::netfilter::Backend;
use crate::running::Running;

/// Changes are followed by a kill within this time: a sync begins and ends in it.
const LONGEST_MS: u64 = 30;

/// Killed in the middle of a sync: rules in force stay, and after the first sync of the next agent
/// the desired rules are in force.
pub fn after_a_kill_at_any_moment_it_continues(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let n_times = extent.of(6, 100);
    let load = Load::on(&running.lab, WEB);
    let own_load = Load::on(&running.lab, OWN);
    let to = OWN.cluster_ip(Family::V4);
    let (mut repaired, mut n_unfinished, mut port) = (Vec::new(), 0, 20_000);
    // The moments are spread over the time of a sync, not at its steps: the golden ratio leaves no gaps.
    let points = (1..=u64::from(n_times)).map(|n| n * 618_034 % 1_000_000 * LONGEST_MS / 1_000_000);
    for ((address, pod), point) in TURNS.into_iter().cycle().zip(points) {
        running.api.put(own_slice(&[address]));
        thread::sleep(Duration::from_millis(point));
        let start = Instant::now();
        running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
        repaired.push(start.elapsed());
        let node = running.lab.node(1);
        n_unfinished += usize::from(running.agents[0].syncs().iter().any(|sync| sync.processes > 0));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for _ in 0..5 {
                // A used port would continue the earlier flow, to the earlier endpoint.
                port += 1;
                let from = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
                let attempt = node.attempt_from(from, protocol, to, Duration::from_secs(2));
                assert_eq!(attempt.pod(), pod, "killed after {point} ms, after the next one's first sync");
            }
        }
    }
    let mut tally = load.stop();
    tally.merge(own_load.stop());
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "kill -9 of Chainsmith in a sync, then a start".to_owned(),
        n_times,
        observed: format!(
            "all traffic right after the first sync; {n_unfinished} times the restart had chains to write"
        ),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}
