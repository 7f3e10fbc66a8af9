//! Node ports and health check node ports follow the addresses of a node while no object changes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::cluster::WEB;
use crate::health::HEALTH_PORT;
use crate::lab::address::FAMILIES;
use crate::lab::client::{Host, IMPATIENCE, Outcome, Protocol};
use crate::lab::http::get;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a change may take to show, on a machine busy with other tests; alone it takes 0.3 s.
const SOON: Duration = Duration::from_secs(10);

/// The addresses on which node ports answer.
const CHOSEN: &str = "--nodeport-addresses=192.0.2.0/24,2001:db8::/64";

/// An address that node-1 gets and loses, of each family.
const ADDRESSES: [(&str, &str); 2] = [("192.0.2.77", "32"), ("2001:db8::77", "128")];

/// Programs that add addresses to nodes (keepalived, MetalLB, DHCP) rely on this.
pub fn node_ports_follow_the_addresses_of_the_node(backend: Backend) {
    let running = Running::with_flags(backend, &[CHOSEN]).expect("a cluster starts");
    let node = running.lab.node(1);
    let n_syncs = running.agents[0].syncs().len();
    let has_rule = |ip: &str, family| {
        let rules = node.netfilter().save(family).expect("rules can be read");
        rules.lines().any(|line| line.contains(&format!("-d {ip}/")) && line.ends_with("-j KUBE-NODEPORTS"))
    };
    for ((ip, length), family) in ADDRESSES.into_iter().zip(FAMILIES) {
        let address: IpAddr = ip.parse().expect("an address");
        let (port, health) =
            (SocketAddr::new(address, WEB.node_port_number()), SocketAddr::new(address, HEALTH_PORT));
        let is_answered =
            || matches!(node.attempt(Protocol::Tcp, port, IMPATIENCE).outcome, Outcome::Answered { .. });
        assert!(!has_rule(ip, family) && !is_answered());
        let nodad = if length == "128" { " nodad" } else { "" };
        node.namespace().ip(&format!("addr add {ip}/{length} dev lo{nodad}\n")).expect("an address comes");
        let elapsed = poll::until("a rule for the new address", SOON, || has_rule(ip, family));
        eprintln!("{backend:?} {ip}: rule after {elapsed:?}");
        assert!(is_answered(), "{port}");
        poll::until("the health check node port listens there", SOON, || {
            get(node, health, "/").is_some_and(|answer| answer.status == 200)
        });
        node.namespace().ip(&format!("addr del {ip}/{length} dev lo\n")).expect("an address goes");
        poll::until("no rule for what is gone", SOON, || !has_rule(ip, family));
    }
    // Each family is synced only for its own changes, and the chains of Services stay unchanged.
    let syncs = running.agents[0].syncs();
    assert!(syncs.len() >= n_syncs + 4, "{syncs:?}");
    assert!(syncs[n_syncs..].iter().all(|sync| sync.chains_written <= 1), "{:?}", &syncs[n_syncs..]);
}
