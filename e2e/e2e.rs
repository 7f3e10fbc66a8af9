//! Real packets through real iptables: simulated clusters in network namespaces, both back-ends.
//!
//! Needs root and namespaces; without them these tests fail and are never skipped.
#![allow(clippy::disallowed_methods, reason = "these tests are about the world: programs, files, clocks")]

mod addresses;
mod agent;
mod apiserver;
mod by_hand;
mod cluster;
mod counts;
mod dropin;
mod fabric;
#[allow(dead_code, reason = "the lab and the tests share it; each uses its part")]
mod faults;
mod flows;
mod health;
#[allow(dead_code, reason = "the lab is shared by tests, demo and benches; each uses its part")]
mod lab;
mod predictions;
mod questions;
mod running;
mod traffic;

use traffic::{affinity, services};

/// Makes each function a test for each back-end.
macro_rules! on_both_backends {
    ($($module:ident::$claim:ident),* $(,)?) => {
        mod nft {
            $(#[test] fn $claim() { crate::$module::$claim(crate::lab::netfilter::Backend::Nft); })*
        }
        mod legacy {
            $(#[test] fn $claim() { crate::$module::$claim(crate::lab::netfilter::Backend::Legacy); })*
        }
    };
}

on_both_backends! {
    by_hand::the_lab_itself_passes_with_hand_written_rules,
    by_hand::the_claims_detect_wrong_rules,
    addresses::node_ports_follow_the_addresses_of_the_node,
    agent::traffic_is_right,
    counts::connections_are_counted_across_rewrites,
    agent::traffic_is_right_in_compact,
    agent::deleted_service_stops_at_once,
    agent::endpoints_are_followed,
    agent::restart_writes_nothing,
    agent::kill_leaves_the_rules,
    agent::flushed_tables_are_repaired,
    dropin::kubeadm_daemonset_runs_unchanged,
    dropin::leftovers_are_removed_once_our_rules_are_in_force,
    dropin::read_only_proc_sys_is_tolerated,
    dropin::a_conflicting_proxy_is_reported,
    dropin::init_only_sets_sysctls_and_exits,
    flows::flows_move_with_their_endpoint,
    flows::flows_end_with_the_last_endpoint,
    flows::flows_end_with_the_service,
    flows::flows_end_with_the_node_port,
    flows::flows_survive_a_restart,
    health::health_port_follows_the_local_pods,
    health::a_node_that_is_leaving_is_unhealthy_but_alive,
    health::a_stale_proxy_turns_unhealthy,
    health::ports_in_use_are_reported_and_retried,
    health::with_hard_fail_a_port_in_use_ends_the_process,
    health::metrics_show_the_rules_in_the_kernel,
    health::quarantine_and_drift_are_reported_by_events,
    predictions::trace_agrees_with_the_kernel,
    questions::a_running_agent_answers_root,
    services::three_nodes_serve_over_routes_and_vxlan,
    services::internal_policy_local_stays_on_the_node,
    services::affinity_holds_and_expires,
    affinity::full_list_of_clients_is_reported,
    services::sctp_is_translated,
    services::service_without_selector_leads_to_an_external_address,
    services::readiness_is_followed,
    services::hints_keep_traffic_in_the_zone,
    services::source_ranges_restrict_the_load_balancer,
    services::node_ports_are_served_on_loopback_unless_limited,
}
