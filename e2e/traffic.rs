//! What packets must meet on the nodes of [`crate::cluster`], whichever program wrote the rules: each function
//! is one claim, checked with real connections over TCP and UDP, IPv4 and IPv6.
//!
//! The masquerading claims are the table of ruleset.md 9.

pub mod affinity;
mod observe;
mod sctp;
pub mod services;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use self::observe::{assert_masqueraded_by, assert_source_kept, at_the_same_time, each_pod, marked};

use crate::cluster::{CLIENTS, EMPTY, LOCAL, LOCAL_PODS, OWN, WEB, WEB_PODS};
use crate::lab::Lab;
use crate::lab::address::{FAMILIES, Family};
use crate::lab::client::{Host, IMPATIENCE, Outcome, PATIENCE, Protocol};
use crate::lab::host::{Node, POD_PORT};

/// Connections enough to judge how they spread over three pods.
const MANY: u32 = 300;

/// How long an immediate answer may take. UDP receives it in well under a millisecond;
/// TCP's connect holds its own socket while a veth pair carries the answer back, so the kernel sees it
/// when it sends the second SYN, after one second.
const AT_ONCE: Duration = Duration::from_millis(2500);

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A claim about traffic.
pub type Claim = fn(&Lab);

/// All claims, with their names.
pub const CLAIMS: &[(&str, Claim)] = &[
    ("a cluster IP spreads over the pods of all nodes", cluster_ip_spreads_over_all_nodes),
    ("pods keep their source to a cluster IP", pods_keep_their_source_to_a_cluster_ip),
    ("nodes are masqueraded to a cluster IP", nodes_are_masqueraded_to_a_cluster_ip),
    ("outside is masqueraded to a cluster IP", outside_is_masqueraded_to_a_cluster_ip),
    ("a node port is served by every node", node_port_is_served_by_every_node),
    ("load balancer and external IPs are served", load_balancer_and_external_ips_are_served),
    ("policy Local keeps the client and drops elsewhere", local_policy_keeps_the_client),
    ("policy Local is Cluster for pods and nodes", local_policy_is_cluster_for_pods),
    ("a pod reaches itself through its Service", hairpin_works),
    ("a Service without endpoints refuses at once", without_endpoints_clients_are_rejected_at_once),
    ("other traffic is untouched and never marked", other_traffic_is_untouched),
];

/// Checks every claim.
pub fn all(lab: &Lab) {
    for (claim, check) in CLAIMS {
        println!("{claim}");
        check(lab);
    }
}

fn cases() -> impl Iterator<Item = (Family, Protocol)> {
    FAMILIES.into_iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
}

/// The pods of both nodes share new connections to a cluster IP evenly.
pub fn cluster_ip_spreads_over_all_nodes(lab: &Lab) {
    for (family, protocol) in cases() {
        lab.pod("client-1").attempts(MANY, protocol, WEB.cluster_ip(family)).assert_spread(&WEB_PODS);
    }
    let tally = lab.node(2).attempts(MANY, Protocol::Tcp, WEB.cluster_ip(Family::V4));
    tally.assert_spread(&WEB_PODS);
}

/// Pods of either node reach pods of either node through a cluster IP, with their own source address.
pub fn pods_keep_their_source_to_a_cluster_ip(lab: &Lab) {
    for (family, protocol) in cases() {
        for client in CLIENTS {
            each_pod(&WEB_PODS, lab.pod(client), protocol, WEB.cluster_ip(family), assert_source_kept);
            each_pod(&LOCAL_PODS, lab.pod(client), protocol, LOCAL.cluster_ip(family), assert_source_kept);
        }
    }
}

/// A node's own connections to a cluster IP carry the address of their outgoing interface.
pub fn nodes_are_masqueraded_to_a_cluster_ip(lab: &Lab) {
    for (family, protocol) in cases() {
        for node in lab.nodes() {
            each_pod(&WEB_PODS, node, protocol, WEB.cluster_ip(family), |attempt| {
                assert_masqueraded_by(node, lab, attempt);
            });
        }
    }
}

/// A cluster IP works from outside too if routed to a node, which masquerades then.
pub fn outside_is_masqueraded_to_a_cluster_ip(lab: &Lab) {
    for node in lab.nodes() {
        lab.outside().enter_by(node).expect("routes can be set");
        for (family, protocol) in cases() {
            each_pod(&WEB_PODS, lab.outside(), protocol, WEB.cluster_ip(family), |attempt| {
                assert_masqueraded_by(node, lab, attempt);
            });
        }
    }
}

/// A node port leads to all pods from each node, masqueraded; from outside, from pods, from nodes.
pub fn node_port_is_served_by_every_node(lab: &Lab) {
    for (family, protocol) in cases() {
        for node in lab.nodes() {
            let to = WEB.node_port(node, family);
            let hosts: [&dyn Host; 2] = [lab.outside(), node];
            for host in hosts {
                each_pod(&WEB_PODS, host, protocol, to, |attempt| assert_masqueraded_by(node, lab, attempt));
            }
            let [own, other] = if node.number() == 1 { CLIENTS } else { [CLIENTS[1], CLIENTS[0]] };
            each_pod(&WEB_PODS, lab.pod(own), protocol, to, |attempt| {
                assert_masqueraded_by(node, lab, attempt)
            });
            each_pod(&WEB_PODS, lab.pod(other), protocol, to, |attempt| {
                assert_masqueraded_by(node, lab, attempt)
            });
        }
    }
    let to = WEB.node_port(lab.node(2), Family::V4);
    lab.outside().attempts(MANY, Protocol::Tcp, to).assert_spread(&WEB_PODS);
}

/// Load balancer and external IPs lead to all pods, masqueraded; from outside, from pods, from nodes.
pub fn load_balancer_and_external_ips_are_served(lab: &Lab) {
    for node in lab.nodes() {
        lab.outside().enter_by(node).expect("routes can be set");
        let client = lab.pod(CLIENTS[usize::from(node.number() - 1)]);
        for (family, protocol) in cases() {
            for to in [WEB.load_balancer(family), WEB.external_ip(family)] {
                let hosts: [&dyn Host; 3] = [lab.outside(), node, client];
                for host in hosts {
                    each_pod(&WEB_PODS, host, protocol, to, |attempt| {
                        assert_masqueraded_by(node, lab, attempt)
                    });
                }
            }
        }
        let to = WEB.load_balancer(Family::V4);
        lab.outside().attempts(MANY, Protocol::Tcp, to).assert_spread(&WEB_PODS);
    }
}

/// externalTrafficPolicy Local: a node with a pod shows it the client's address; a node without one does not answer.
pub fn local_policy_keeps_the_client(lab: &Lab) {
    let frontends = |node: &Node, family| {
        [LOCAL.load_balancer(family), LOCAL.external_ip(family), LOCAL.node_port(node, family)]
    };
    let (with_pods, without) = (lab.node(1), lab.node(2));
    lab.outside().enter_by(with_pods).expect("routes can be set");
    for (family, protocol) in cases() {
        for to in frontends(with_pods, family) {
            each_pod(&LOCAL_PODS, lab.outside(), protocol, to, assert_source_kept);
        }
    }
    lab.outside().enter_by(without).expect("routes can be set");
    let mut attempts = Vec::new();
    for (family, protocol) in cases() {
        for to in frontends(without, family) {
            attempts.push((lab.outside() as &(dyn Host + Sync), protocol, to));
        }
    }
    for attempt in at_the_same_time(&attempts, IMPATIENCE) {
        assert_eq!(attempt.outcome, Outcome::TimedOut, "{attempt:?}");
    }
}

/// externalTrafficPolicy Local restricts traffic from outside: pods and nodes reach all endpoints from
/// everywhere, pods as themselves, nodes masqueraded.
pub fn local_policy_is_cluster_for_pods(lab: &Lab) {
    for (family, protocol) in cases() {
        for (node, client) in lab.nodes().iter().zip(CLIENTS) {
            for to in [LOCAL.load_balancer(family), LOCAL.external_ip(family), LOCAL.node_port(node, family)]
            {
                each_pod(&LOCAL_PODS, lab.pod(client), protocol, to, assert_source_kept);
                each_pod(&LOCAL_PODS, node, protocol, to, |attempt| {
                    assert_masqueraded_by(node, lab, attempt)
                });
            }
        }
    }
}

/// A pod that reaches itself through its Service sees its node's address, for every address of the Service.
pub fn hairpin_works(lab: &Lab) {
    let pod = lab.pod("web-1");
    let node = lab.node_of(pod);
    for (family, protocol) in cases() {
        let own_node_port = OWN.node_port(node, family);
        for to in [OWN.cluster_ip(family), OWN.load_balancer(family), OWN.external_ip(family), own_node_port]
        {
            each_pod(&["web-1"], pod, protocol, to, |attempt| assert_masqueraded_by(node, lab, attempt));
        }
        each_pod(&WEB_PODS, pod, protocol, WEB.cluster_ip(family), |attempt| {
            if attempt.pod() == "web-1" {
                assert_masqueraded_by(node, lab, attempt);
            } else {
                assert_source_kept(attempt);
            }
        });
    }
}

/// A pod reaches itself through its Service with a FORWARD policy of DROP: packets that go back
/// over the bridge are accepted.
pub fn hairpin_works_where_forwarding_is_forbidden(lab: &Lab) {
    let pod = lab.pod("web-1");
    let node = lab.node_of(pod);
    let set_policy = |policy| {
        for family in FAMILIES {
            let args = ["-P", "FORWARD", policy];
            node.netfilter().iptables(family, &args).expect("a policy can be set");
        }
    };
    set_policy("DROP");
    for (family, protocol) in cases() {
        for to in [OWN.cluster_ip(family), OWN.load_balancer(family), OWN.external_ip(family)] {
            each_pod(&["web-1"], pod, protocol, to, |attempt| assert_masqueraded_by(node, lab, attempt));
        }
    }
    set_policy("ACCEPT");
}

/// A connection of the node to itself that a foreign rule redirects to loopback keeps its source:
/// it is no hairpin.
pub fn a_foreign_redirection_keeps_its_source(lab: &Lab) {
    let node = lab.node(1);
    let rule = "-t nat -I OUTPUT -d 127.0.0.9/32 -p tcp --dport 81 -j REDIRECT --to-ports 8181";
    node.netfilter().iptables(Family::V4, &rule.split(' ').collect::<Vec<_>>()).expect("a rule can be added");
    // Bound once: a process that another test starts may keep a closed one open for a moment.
    let listener = node.namespace().run(|| TcpListener::bind("127.0.0.1:8181").expect("the port is free"));
    for _ in 0..5 {
        let (seen, from) = node.namespace().run(|| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            client.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("an address of the node");
            let to = SocketAddr::from(([127, 0, 0, 9], 81));
            client.connect_timeout(&to.into(), PATIENCE).expect("it is redirected");
            let from = client.local_addr().expect("it is bound").as_socket();
            (listener.accept().expect("it arrived").1, from)
        });
        assert_eq!(Some(seen), from, "the source that the program saw, port and all");
    }
    let back = rule.replace("-I OUTPUT", "-D OUTPUT");
    node.netfilter().iptables(Family::V4, &back.split(' ').collect::<Vec<_>>()).expect("it can be removed");
}

/// Without endpoints, each address of a Service rejects at once, for every client.
pub fn without_endpoints_clients_are_rejected_at_once(lab: &Lab) {
    let node = lab.node(1);
    lab.outside().enter_by(node).expect("routes can be set");
    let hosts: [&(dyn Host + Sync); 3] = [lab.outside(), lab.pod(CLIENTS[0]), node];
    let mut attempts = Vec::new();
    for host in hosts {
        for (family, protocol) in cases() {
            attempts.push((host, protocol, EMPTY.cluster_ip(family)));
            // kube-proxy rejects these in INPUT and FORWARD only: a node's own connection leaves it.
            if host.namespace().name() != node.name() {
                attempts.push((host, protocol, EMPTY.load_balancer(family)));
                attempts.push((host, protocol, EMPTY.external_ip(family)));
            }
            attempts.push((host, protocol, EMPTY.node_port(node, family)));
        }
    }
    for (mut attempt, (host, protocol, to)) in
        at_the_same_time(&attempts, PATIENCE).into_iter().zip(&attempts)
    {
        if (*protocol, &attempt.outcome) == (Protocol::Udp, &Outcome::TimedOut) {
            // At most so many at once: the kernel limits its answers (icmp_msgs_burst, icmp_ratelimit), and
            // no client sends a datagram twice.
            attempt = host.attempt(*protocol, *to, PATIENCE);
        }
        let context = format!("{} over {protocol:?} to {to}: {attempt:?}", host.namespace().name());
        assert_eq!(attempt.outcome, Outcome::Refused, "{context}");
        assert!(attempt.elapsed < AT_ONCE, "{context}");
    }
}

/// Traffic for no Service keeps its source, and no rule marks it.
pub fn other_traffic_is_untouched(lab: &Lab) {
    let before = marked(lab);
    for (family, protocol) in cases() {
        let pod = |name: &str| SocketAddr::new(lab.pod(name).address().of(family), POD_PORT);
        for client in CLIENTS {
            for server in WEB_PODS {
                each_pod(&[server], lab.pod(client), protocol, pod(server), assert_source_kept);
            }
            let outside = SocketAddr::new(lab.outside().address().of(family), POD_PORT);
            each_pod(&["outside"], lab.pod(client), protocol, outside, assert_source_kept);
        }
        for server in WEB_PODS {
            each_pod(&[server], lab.outside(), protocol, pod(server), assert_source_kept);
            each_pod(&[server], lab.node(1), protocol, pod(server), assert_source_kept);
        }
    }
    assert_eq!(marked(lab), before, "packets that the rules of each node and family marked");
}
