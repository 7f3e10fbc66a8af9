//! Switching from one layout to the other and back: by a restart, and as the cluster grows and
//! shrinks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::client::{Host, Protocol};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// A layout, as `--layout` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Classic,
    Compact,
}

/// Whether the rules of `node` have this layout in both families, and no other.
pub(super) fn is_laid_out(node: &Node, layout: Layout) -> bool {
    FAMILIES.into_iter().all(|family| {
        let rules = node.netfilter().save(family).expect("rules can be read");
        rules.contains("-A KUBE-POSTROUTING ! -s") == (layout == Layout::Compact)
            && rules.contains(":KUBE-SEP-") == (layout == Layout::Classic)
    })
}

/// A restart with another layout costs no connection.
pub fn changing_the_layout_disturbs_no_connection(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    let n_times = extent.of(2, 50);
    let load = Load::on(&running.lab, WEB);
    let mut repaired = Vec::new();
    let turns = [(Layout::Compact, "--layout=compact"), (Layout::Classic, "--layout=classic")];
    for (layout, flag) in turns.into_iter().cycle().take(n_times) {
        let start = Instant::now();
        running.replace_agent(&[AT_ONCE, flag], None).expect("an agent starts");
        poll::until("the layout is in force", SLOW, || is_laid_out(running.lab.node(1), layout));
        repaired.push(start.elapsed());
    }
    let tally = load.stop();
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "a start with the other layout".to_owned(),
        n_times: u32::try_from(n_times).expect("a small number"),
        observed:
            "all chains written in the other layout; no connection rejected, lost or answered by a wrong pod"
                .to_owned(),
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }]
}

/// Services that come and go together, and endpoints of each in each family: with those of the
/// cluster they exceed the 1 000 above which `auto` is compact.
const N_CROWD: usize = 11;
const N_ENDPOINTS: usize = 100;

/// How many of them stay when the cluster shrinks: below the 800 endpoints at which it returns to
/// classic.
const N_STAYING: usize = 6;

/// The limit of a switch, on a machine busy with other tests.
const SLOW: Duration = Duration::from_secs(60);

/// A cluster that grows past a thousand endpoints and shrinks again loses no connection, neither
/// while the rules switch to compact nor while they return.
pub fn growing_and_shrinking_disturbs_no_connection(backend: Backend, extent: Extent) -> Vec<Finding> {
    // Only a full sync returns to classic: here one each second.
    let flags = [AT_ONCE, "--layout=auto", "--audit-period=1s"];
    let running = Running::with_flags(backend, &flags).expect("a cluster starts");
    let go_over = |layout| {
        poll::until(&format!("{layout:?} is in force on each node"), SLOW, || {
            running.lab.nodes().iter().all(|node| is_laid_out(node, layout))
        })
    };
    go_over(Layout::Classic);
    let n_times = extent.of(1, 10);
    let (load, own_load) = (Load::on(&running.lab, WEB), Load::on(&running.lab, OWN));
    let mut repaired = Vec::new();
    for _ in 0..n_times {
        for object in (0..N_CROWD).flat_map(crowd) {
            running.api.put(object);
        }
        repaired.push(go_over(Layout::Compact));
        serves_and_follows(&running, "10.128.1.5", "web-3");
        for object in (N_STAYING..N_CROWD).flat_map(crowd) {
            let text = |at| object.pointer(at).and_then(Value::as_str).expect("an object has both");
            let (kind, name) = (text("/kind"), text("/metadata/name"));
            assert!(running.api.delete(kind, Some("default"), name), "no {kind} {name}");
        }
        repaired.push(go_over(Layout::Classic));
        serves_and_follows(&running, "10.128.0.5", "web-1");
    }
    let (tally, own_tally) = (load.stop(), own_load.stop());
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{tally}");
    assert_eq!(own_tally.n_wrong(&["web-1", "web-3"]), 0, "{own_tally}");
    all_is_right(&running);
    vec![Finding {
        fault: "a cluster that grows past 1 000 endpoints and shrinks again".to_owned(),
        n_times,
        observed: "switched to compact on each node, and back to classic; no connection rejected, lost or answered by a wrong pod"
            .to_owned(),
        repaired,
        n_tried: tally.n_attempts() + own_tally.n_attempts(),
        n_wrong: 0,
    }]
}

/// New connections are shared correctly, and the Service `own` moves to `pod`.
fn serves_and_follows(running: &Running, address: &str, pod: &str) {
    for family in FAMILIES {
        for node in running.lab.nodes() {
            node.attempts(60, Protocol::Tcp, WEB.cluster_ip(family)).assert_spread(&WEB_PODS);
        }
    }
    running.api.put(own_slice(&[address]));
    for node in running.lab.nodes() {
        poll::until(&format!("{pod} has taken over on {}", node.name()), SLOW, || {
            node.tcp(OWN.cluster_ip(Family::V4)).pod() == pod
        });
    }
}

/// A Service of both families, and its slices: no pod has the addresses, and no client uses them.
fn crowd(n: usize) -> [Value; 3] {
    let name = format!("crowd-{n}");
    let ips = [format!("10.97.0.{}", n + 1), format!("fd00:10:96::7:{:x}", n + 1)];
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips,
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    });
    let slice = |kind: &str, address: &dyn Fn(usize) -> String| {
        let endpoints: Vec<Value> = (1..=N_ENDPOINTS)
            .map(|at| {
                let conditions = json!({"ready": true, "serving": true, "terminating": false});
                json!({"addresses": [address(at)], "conditions": conditions, "nodeName": "node-2"})
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", kind.to_lowercase()), "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": kind, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": endpoints,
        })
    };
    let v4 = slice("IPv4", &|at| format!("10.131.{n}.{at}"));
    let v6 = slice("IPv6", &|at| format!("fd00:10:128:ff::{:x}:{at:x}", n + 1));
    [service, v4, v6]
}
