//! Endpoints that come and go under load.

use std::time::{Duration, Instant};

use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::cluster::{OWN, own_slice};
use crate::lab::agent::Agent;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The endpoints of `own` in turns; both pods serve all the time.
const SETS: [&[&str]; 3] = [&["10.128.1.5"], &["10.128.0.5", "10.128.1.5"], &["10.128.0.5"]];

/// The pods that may answer for them.
const PODS: [&str; 2] = ["web-1", "web-3"];

/// Changes of the endpoint set cost no connection: none is rejected, lost or answered by a wrong pod.
pub fn changes_disturb_no_connection(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let n_changes = extent.of(100, 1000);
    let load = Load::on(&running.lab, OWN);
    let start = Instant::now();
    let mut repaired = Vec::new();
    let limit = Duration::from_secs(10);
    for set in SETS.into_iter().cycle().take(n_changes) {
        let before: Vec<_> = running.agents.iter().map(Agent::written).collect();
        let changed = Instant::now();
        running.api.put(own_slice(set));
        poll::until("each node has written", limit, || {
            running.agents.iter().zip(&before).all(|(agent, before)| agent.written() > *before)
        });
        repaired.push(changed.elapsed());
    }
    let elapsed = start.elapsed();
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&PODS), 0, "{tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "endpoints change under new connections".to_owned(),
        n_times: u32::try_from(n_changes).expect("a small number"),
        observed: format!(
            "{:.0} changes a second; no connection rejected, lost or answered by a wrong pod",
            n_changes as f64 / elapsed.as_secs_f64()
        ),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}
