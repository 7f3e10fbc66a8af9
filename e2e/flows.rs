//! UDP flows in conntrack follow the cluster, and foreign flows stay untouched.
//!
//! A client that keeps its port is one flow for conntrack: unless the flow is deleted, its packets go
//! to the first endpoint for ever.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{OWN, WEB};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::{Node, POD_PORT};
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a change may take from the API server to packets, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// How long one attempt may take while a change is waited for.
const BRIEF: Duration = Duration::from_millis(200);

/// The clients' ports: one for flows to cluster IPs, one for those to node ports.
const INSIDE: u16 = 40_001;
const OUTSIDE: u16 = 40_002;

/// The slice of the Service `own` in `family` with these pods.
fn own(running: &Running, family: Family, pods: &[&str]) -> Value {
    let (name, kind) = match family {
        Family::V4 => ("own-v4", "IPv4"),
        Family::V6 => ("own-v6", "IPv6"),
    };
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| {
            let pod = running.lab.pod(pod);
            let conditions = json!({"ready": true, "serving": true, "terminating": false});
            let node = running.lab.node_of(pod).name();
            json!({"addresses": [pod.address().of(family)], "conditions": conditions, "nodeName": node})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "own"},
        },
        "addressType": kind,
        "ports": [
            {"name": "http", "protocol": "TCP", "port": POD_PORT},
            {"name": "echo", "protocol": "UDP", "port": POD_PORT},
        ],
        "endpoints": endpoints,
    })
}

/// The outcome of a datagram of the flow from `client`'s `port` to `to`.
fn send(client: &dyn Host, port: u16, to: SocketAddr, patience: Duration) -> Outcome {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    client.attempt_from(SocketAddr::new(any, port), Protocol::Udp, to, patience).outcome
}

/// The pod that answers it, if any.
fn answers(client: &dyn Host, port: u16, to: SocketAddr) -> Option<String> {
    match send(client, port, to, BRIEF) {
        Outcome::Answered { pod, .. } => Some(pod),
        _ => None,
    }
}

/// The two flows to the Service `own` in `family`: from a pod, and from outside.
fn flows(running: &Running, family: Family) -> [(&dyn Host, u16, SocketAddr); 2] {
    let lab = &running.lab;
    [
        (lab.pod("client-1"), INSIDE, OWN.cluster_ip(family)),
        (lab.outside(), OUTSIDE, OWN.node_port(lab.node(1), family)),
    ]
}

#[track_caller]
fn all_answered_by(running: &Running, pod: &str) {
    for family in FAMILIES {
        for (client, port, to) in flows(running, family) {
            poll::until(&format!("{pod} answers the flow to {to}"), SOON, || {
                answers(client, port, to).is_some_and(|name| name == pod)
            });
        }
    }
}

/// The kernel's identifiers of those flows of `protocol` on `node` for which `is_selected` holds.
fn ids(node: &Node, protocol: &str, is_selected: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for family in ["ipv4", "ipv6"] {
        let args = ["-L", "-f", family, "-p", protocol, "-o", "id"];
        let text = node.namespace().command("conntrack", &args, "").expect("conntrack can be read");
        let selected = text.lines().filter(|line| is_selected(line));
        ids.extend(selected.filter_map(|line| line.split_once(" id=")).map(|(_, id)| id.trim().to_owned()));
    }
    ids
}

/// Foreign flows: TCP to the same Service, UDP straight to a pod, and UDP
/// through the node to a host outside, with a port that is a node port here.
struct Bystanders {
    tcp: BTreeSet<String>,
    udp: BTreeSet<String>,
}

impl Bystanders {
    fn make(running: &Running) -> Self {
        let lab = &running.lab;
        for family in FAMILIES {
            lab.pod("client-1").tcp(OWN.cluster_ip(family)).pod();
            let web = lab.pod("web-1").address().of(family);
            assert_eq!(lab.pod("client-1").udp(SocketAddr::new(web, POD_PORT)).pod(), "web-1");
            let away = SocketAddr::new(lab.outside().address().of(family), OWN.node_port_number());
            assert_eq!(send(lab.pod("client-1"), 40_003, away, BRIEF), Outcome::Refused);
        }
        let bystanders = Self::look(running);
        assert_eq!((bystanders.tcp.len(), bystanders.udp.len()), (2, 4), "in both families");
        bystanders
    }

    fn look(running: &Running) -> Self {
        let node = running.lab.node(1);
        let cluster_ips = FAMILIES.map(|family| format!("dst={} ", OWN.cluster_ip(family).ip()));
        let pods = FAMILIES.map(|family| format!("dst={} ", running.lab.pod("web-1").address().of(family)));
        let away = FAMILIES.map(|family| format!("dst={} ", running.lab.outside().address().of(family)));
        // The first destination of a line is the original one.
        let first = |line: &str, texts: &[String; 2]| {
            let at = line.find("dst=").unwrap_or_default();
            texts.iter().any(|text| line[at..].starts_with(text.as_str()))
        };
        Self {
            tcp: ids(node, "tcp", |line| first(line, &cluster_ips)),
            udp: ids(node, "udp", |line| {
                first(line, &pods) || (first(line, &away) && line.contains("sport=40003 "))
            }),
        }
    }

    #[track_caller]
    fn assert_untouched(&self, running: &Running) {
        let now = Self::look(running);
        assert!(now.tcp.is_superset(&self.tcp), "TCP: {:?} were, {:?} are", self.tcp, now.tcp);
        assert!(now.udp.is_superset(&self.udp), "UDP: {:?} were, {:?} are", self.udp, now.udp);
    }
}

/// A flow moves when its pod is replaced, and all other flows stay.
pub fn flows_move_with_their_endpoint(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    all_answered_by(&running, "web-1");
    let bystanders = Bystanders::make(&running);
    for family in FAMILIES {
        running.api.put(own(&running, family, &["web-2"]));
    }
    all_answered_by(&running, "web-2");
    bystanders.assert_untouched(&running);
    // An additional endpoint moves no flow.
    for family in FAMILIES {
        running.api.put(own(&running, family, &["web-2", "web-3"]));
    }
    poll::until("both families are in force", SOON, || {
        FAMILIES
            .iter()
            .all(|family| running.lab.node(1).netfilter().save(*family).expect("rules").contains("statistic"))
    });
    std::thread::sleep(Duration::from_millis(500));
    all_answered_by(&running, "web-2");
    bystanders.assert_untouched(&running);
    end(running);
}

/// Flows of the last endpoint are rejected like new ones (k/k#139628): none goes to a dead pod.
pub fn flows_end_with_the_last_endpoint(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    all_answered_by(&running, "web-1");
    let bystanders = Bystanders::make(&running);
    for family in FAMILIES {
        running.api.put(own(&running, family, &[]));
    }
    all_ended(&running, &[Outcome::Refused]);
    bystanders.assert_untouched(&running);
    // They go on with the next pod.
    for family in FAMILIES {
        running.api.put(own(&running, family, &["web-3"]));
    }
    all_answered_by(&running, "web-3");
    end(running);
}

/// A deleted Service's flows take the path that its addresses have without it.
pub fn flows_end_with_the_service(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    all_answered_by(&running, "web-1");
    let bystanders = Bystanders::make(&running);
    assert!(running.api.delete("Service", Some("default"), OWN.name), "there was a Service");
    all_ended(&running, &[Outcome::Unreachable, Outcome::Refused]);
    bystanders.assert_untouched(&running);
    end(running);
}

/// When the node port changes, flows to the old number end, and flows to the cluster IP stay.
pub fn flows_end_with_the_node_port(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    all_answered_by(&running, "web-1");
    let node = running.lab.node(1);
    let to_cluster_ip = || {
        let texts = FAMILIES.map(|family| format!("dst={} ", OWN.cluster_ip(family).ip()));
        ids(node, "udp", |line| texts.iter().any(|text| line.contains(text.as_str())))
    };
    let before = to_cluster_ip();
    let is_service = |text: &&str| text.contains("kind: Service\n") && text.contains("name: own\n");
    let service = crate::cluster::OBJECTS.split("---\n").find(is_service).expect("there is one");
    running.api.put_yaml(&service.replace("nodePort: 30013", "nodePort: 30113"));
    for family in FAMILIES {
        let (client, port, to) = flows(&running, family)[1];
        poll::until(&format!("no pod answers at {to}"), SOON, || {
            send(client, port, to, BRIEF) == Outcome::Refused
        });
        let new = SocketAddr::new(to.ip(), 30_113);
        assert_eq!(answers(client, port, new).as_deref(), Some("web-1"));
    }
    assert_eq!(to_cluster_ip(), before, "flows to the cluster IP go on");
    end(running);
}

/// A restart deletes only wrong flows (k/k#122740).
pub fn flows_survive_a_restart(backend: Backend) {
    let mut running = Running::start(backend).expect("a cluster starts");
    all_answered_by(&running, "web-1");
    let to_web = [WEB.cluster_ip(Family::V4), WEB.cluster_ip(Family::V6)];
    let client = running.lab.pod("client-1");
    let answered = to_web.map(|to| answers(client, INSIDE, to).expect("a pod answers"));
    let bystanders = Bystanders::make(&running);
    let of_services = |running: &Running| {
        let texts = to_web.map(|to| format!("dst={} ", to.ip()));
        ids(running.lab.node(1), "udp", |line| texts.iter().any(|text| line.contains(text.as_str())))
    };
    let before = of_services(&running);
    assert_eq!(before.len(), 2);

    // While no agent runs, own's pod is replaced.
    running.agents.remove(0).stop();
    for family in FAMILIES {
        running.api.put(own(&running, family, &["web-3"]));
    }
    let agent = running.start_agent(running.lab.node(1)).expect("an agent starts");
    running.agents.insert(0, agent);
    all_answered_by(&running, "web-3");
    assert!(of_services(&running).is_superset(&before), "{before:?} are the flows to web");
    let client = running.lab.pod("client-1");
    assert_eq!(to_web.map(|to| answers(client, INSIDE, to).expect("a pod answers")), answered);
    bystanders.assert_untouched(&running);
    end(running);
}

/// Every flow to `own` has one of `outcomes`.
#[track_caller]
fn all_ended(running: &Running, outcomes: &[Outcome]) {
    for family in FAMILIES {
        for (client, port, to) in flows(running, family) {
            poll::until(&format!("no pod answers the flow to {to}"), SOON, || {
                outcomes.contains(&send(client, port, to, BRIEF))
            });
        }
    }
}

#[track_caller]
fn end(running: Running) {
    for agent in running.agents {
        let log = agent.stop();
        assert!(!log.contains("stale UDP flows may be left"), "{log}");
    }
}
