//! Going over from one layout to the other and back.

use std::time::Instant;

use super::{AT_ONCE, Extent, Finding, Load, SOON, all_is_right};
use crate::cluster::{WEB, WEB_PODS};
use crate::lab::address::FAMILIES;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// Another layout from one start to the next costs no connection.
pub fn going_over_disturbs_no_connection(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let n_times = extent.of(2, 50);
    let load = Load::on(&running.lab, WEB);
    let mut repaired = Vec::new();
    for layout in ["compact", "classic"].into_iter().cycle().take(n_times) {
        let start = Instant::now();
        running.replace_agent(&[AT_ONCE, &format!("--layout={layout}")], None).expect("an agent starts");
        poll::until("the layout is in force", SOON, || {
            FAMILIES.into_iter().all(|family| {
                let rules = running.lab.node(1).netfilter().save(family).expect("rules can be read");
                let has_endpoint_chains = rules.contains(":KUBE-SEP-");
                rules.contains("-A KUBE-POSTROUTING ! -s") == (layout == "compact")
                    && has_endpoint_chains == (layout == "classic")
            })
        });
        repaired.push(start.elapsed());
    }
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "a start with the other layout".to_owned(),
        n_times: u32::try_from(n_times).expect("a small number"),
        observed: "all chains written in the other layout; nobody refused, lost or misled".to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}
