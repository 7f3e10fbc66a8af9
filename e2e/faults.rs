//! Faults, and how a running agent survives them: each function makes one kind of fault, asserts
//! the claims that always hold, and reports its observations.
//!
//! The tests run each for a short time; `make lab` ([`crate::all`] there) runs the full counts.

pub mod api;
pub mod changes;
pub mod hangs;
pub mod kernel;
pub mod kill;
pub mod kube_proxy;
pub mod large;
pub mod layouts;
pub mod manifests;
pub mod memory;
pub mod restore;
mod rules;
pub mod server;
pub mod shortage;

use std::net::SocketAddr;
use std::time::Duration;

use crate::cluster::{self, OWN, Service};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::client::{Host, IMPATIENCE, Outcome, PATIENCE, Protocol, Tally, Traffic};
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, poll};
use crate::running::Running;
use crate::traffic;

/// How long a repair may take on a machine busy with other tests.
pub const SOON: Duration = Duration::from_secs(10);

/// Changes are not delayed, so that figures show the fault alone.
const AT_ONCE: &str = "--iptables-min-sync-period=1ms";

/// How often a fault is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Enough to show that it is survived.
    Cut,
    /// Enough for figures.
    Full,
}

impl Extent {
    /// `cut` or `full`.
    pub fn of<T>(self, cut: T, full: T) -> T {
        match self {
            Self::Cut => cut,
            Self::Full => full,
        }
    }
}

/// A kind of fault.
pub type Fault = fn(Backend, Extent) -> Vec<Finding>;

/// All of them, by name.
pub const FAULTS: &[(&str, Fault)] = &[
    ("wrecked tables", kernel::damaged_tables_are_repaired),
    ("xtables lock held", kernel::held_lock_is_waited_for),
    ("competing writer", kernel::competing_writer_is_not_disturbed),
    ("nothing at all", kernel::an_idle_node_starts_no_program),
    ("restores that fail", restore::failing_restores_are_retried),
    ("refused service port", restore::only_the_rejected_service_port_is_quarantined),
    ("kill -9", kill::after_a_kill_at_any_moment_it_continues),
    ("API server", api::rules_outlive_the_api_server),
    ("API server, healthy", server::rules_follow_the_api_server),
    ("endpoint changes", changes::changes_disturb_no_connection),
    ("another layout", layouts::changing_the_layout_disturbs_no_connection),
    ("crossing 1 000 endpoints", layouts::growing_and_shrinking_disturbs_no_connection),
    ("large Service", large::large_service_delays_no_other),
    ("kube-proxy's rules", kube_proxy::rules_are_taken_over_from_kube_proxy_and_back),
    ("programs that hang, and SIGTERM", hangs::sigterm_ends_the_agent_whatever_hangs),
    ("file descriptors", shortage::idle_connections_take_no_descriptors_from_rules),
    ("heads of requests", shortage::unfinished_heads_take_no_memory),
    ("one address", shortage::one_address_keeps_no_other_from_health),
    ("threads", shortage::threads_that_cannot_be_created_cause_a_retry),
    ("manifests", manifests::files_written_in_place_disturb_no_connection),
    ("memory", memory::endless_changes_take_no_memory),
];

/// Observations of one fault.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    /// The fault.
    pub fault: String,
    /// How often it was made.
    pub n_times: u32,
    /// The observations in words.
    pub observed: String,
    /// Each time from the fault until the rules were right again.
    pub repaired: Vec<Duration>,
    /// Connections tried meanwhile.
    pub n_tried: u32,
    /// How many of them were rejected, lost or answered by a wrong pod.
    pub n_wrong: u32,
}

/// Makes new connections one after the other until it ends: TCP and UDP, from a pod, a node and
/// outside.
pub struct Load {
    clients: Vec<Traffic>,
}

impl Load {
    /// Starts connecting to `service`.
    pub fn on(lab: &Lab, service: Service) -> Self {
        Self::with_patience(lab, service, PATIENCE)
    }

    /// Like [`Load::on`] for faults that lose connections: waits for each only as long as an answer
    /// takes.
    pub fn impatient(lab: &Lab, service: Service) -> Self {
        Self::with_patience(lab, service, IMPATIENCE)
    }

    fn with_patience(lab: &Lab, service: Service, patience: Duration) -> Self {
        let (one, two) = (lab.node(1), lab.node(2));
        let (pod, outside) = (lab.pod("client-1"), lab.outside());
        let (v4, v6) = (Family::V4, Family::V6);
        let clients: [(&dyn Host, _, _); 6] = [
            (pod, Protocol::Tcp, service.cluster_ip(v4)),
            (pod, Protocol::Udp, service.cluster_ip(v4)),
            (one, Protocol::Tcp, service.cluster_ip(v6)),
            (two, Protocol::Udp, service.cluster_ip(v4)),
            (outside, Protocol::Tcp, service.node_port(one, v4)),
            (outside, Protocol::Udp, service.node_port(one, v6)),
        ];
        Self::of(&clients, patience)
    }

    /// Starts connections: one client for each host, over the protocol, to the address.
    pub fn of(clients: &[(&dyn Host, Protocol, SocketAddr)], patience: Duration) -> Self {
        let start = |(host, protocol, to): &(&dyn Host, Protocol, SocketAddr)| {
            host.keep_trying(*protocol, *to, patience).expect("a client can be started")
        };
        Self { clients: clients.iter().map(start).collect() }
    }

    /// Ends the clients; the results of all attempts.
    pub fn stop(self) -> Tally {
        let mut tally = Tally::default();
        self.clients.into_iter().for_each(|client| tally.merge(client.stop()));
        tally
    }
}

/// Restores the cluster to its first state, and checks every claim about traffic.
fn all_is_right(running: &Running) {
    running.api.put_yaml(cluster::OBJECTS);
    // Flows that clients began while no rule translated their packets would stay untranslated.
    for node in running.lab.nodes() {
        node.netfilter().forget_flows().expect("flows can be forgotten");
    }
    for (node, family) in running.lab.nodes().iter().flat_map(|node| FAMILIES.map(|family| (node, family))) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = OWN.cluster_ip(family);
            let is_first = |outcome| matches!(outcome, Outcome::Answered { pod, .. } if pod == "web-1");
            poll::until("the first endpoint is in force again", SOON, || {
                (0..3).all(|_| is_first(node.attempt(protocol, to, SOON).outcome))
            });
        }
    }
    traffic::CLAIMS.iter().for_each(|(_, claim)| claim(&running.lab));
}

#[cfg(test)]
macro_rules! on_both_backends {
    ($($module:ident::$fault:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $fault() { super::show(super::$module::$fault, super::Backend::Nft); })*
        }
        mod legacy {
            $(#[test] fn $fault() { super::show(super::$module::$fault, super::Backend::Legacy); })*
        }
    };
}

#[cfg(test)]
on_both_backends! {
    kernel::damaged_tables_are_repaired,
    kernel::held_lock_is_waited_for,
    kernel::competing_writer_is_not_disturbed,
    kernel::an_idle_node_starts_no_program,
    restore::failing_restores_are_retried,
    restore::only_the_rejected_service_port_is_quarantined,
    kill::after_a_kill_at_any_moment_it_continues,
    api::rules_outlive_the_api_server,
    server::rules_follow_the_api_server,
    changes::changes_disturb_no_connection,
    layouts::changing_the_layout_disturbs_no_connection,
    layouts::growing_and_shrinking_disturbs_no_connection,
    kube_proxy::rules_are_taken_over_from_kube_proxy_and_back,
    large::large_service_delays_no_other,
    hangs::sigterm_ends_the_agent_whatever_hangs,
    shortage::idle_connections_take_no_descriptors_from_rules,
    shortage::unfinished_heads_take_no_memory,
    shortage::one_address_keeps_no_other_from_health,
    shortage::threads_that_cannot_be_created_cause_a_retry,
    manifests::files_written_in_place_disturb_no_connection,
    memory::endless_changes_take_no_memory,
}

#[cfg(test)]
fn show(fault: Fault, backend: Backend) {
    for finding in fault(backend, Extent::Cut) {
        println!("{finding:?}");
    }
}
