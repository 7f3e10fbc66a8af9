//! I. Syncing: what is written when, on a fake kernel.

use chainsmith::iptables::trace::{self, TracedNode};
use chainsmith::iptables::{ChainName, Table, parse};
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::kernel::{Backend, RestoreError};

use crate::agent::{Agent, touches};
use crate::lab::*;

const POD: &str = "10.180.1.5@node-1";
const TWO: [&str; 2] = [POD, "10.180.2.7@node-2"];

/// Services `default/web` and `default/other`, the second always the same.
fn two_services(endpoints: &[&str]) -> Lab {
    let other = service("default/other", "clusterIP: 10.96.0.11, ports: [{name: p, port: 80}]", &[]);
    lab([
        web(""),
        pods(endpoints),
        other,
        slice("default/other", "a", "{name: p, port: 80}", &["10.180.1.6"]),
    ])
}

fn failed() -> RestoreError {
    RestoreError::Failed { status: 1, message: "no".to_owned() }
}

/// A Service with this many endpoints.
fn with_endpoints(n: usize) -> Lab {
    let many: Vec<String> = (0..n).map(|n| format!("10.180.{}.{}", 4 + n / 250, 1 + n % 250)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let other = service("default/other", "clusterIP: 10.96.0.11, ports: [{name: p, port: 80}]", &[]);
    lab([web(""), pods(&[POD]), other, slice("default/other", "a", "{name: p, port: 80}", &many[1..])])
        .flag("layout", "classic")
}

/// Case 151, replaced: one reading and one restore, jumps included.
#[test]
fn the_first_sync_reads_once_and_writes_once() {
    let mut agent = Agent::new();
    let input = agent.sync_to(&two_services(&[POD]));
    assert_eq!(
        (agent.sync.kernel().n_saves, agent.sync.kernel().inputs.len()),
        (2, 1),
        "one reading of each table"
    );
    assert_eq!(input.lines().filter(|line| line.starts_with("-I ")).count(), 14);
}

/// Case 152, replaced: nothing is read.
#[test]
fn a_change_is_one_restore_and_no_reading() {
    let mut agent = Agent::new();
    agent.sync_to(&two_services(&[POD]));
    agent.sync_to(&two_services(&TWO));
    assert_eq!((agent.sync.kernel().n_saves, agent.sync.kernel().inputs.len()), (2, 2));
}

/// Cases 153 and 154, replaced: shared chains are written only when they change.
#[test]
fn what_does_not_change_is_not_written() {
    let mut agent = Agent::new();
    agent.sync_to(&two_services(&[POD]));
    let input = agent.sync_to(&two_services(&TWO));
    assert!(touches(&input, &svc()) && touches(&input, &sep("default/web:p", "10.180.2.7:80")), "{input}");
    let other = chain(chainsmith::rules::names::PortChain::Cluster, "default/other:p");
    for name in [other.as_str(), "KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-FORWARD"] {
        assert!(!touches(&input, name), "{name} in {input}");
    }
    assert!(!touches(&input, &sep("default/web:p", "10.180.1.5:80")), "{input}");
}

/// Case 155.
#[test]
fn the_chain_of_an_endpoint_that_is_gone_is_deleted_in_the_same_restore() {
    let mut agent = Agent::new();
    agent.sync_to(&two_services(&TWO));
    let input = agent.sync_to(&two_services(&[POD]));
    let gone = sep("default/web:p", "10.180.2.7:80");
    assert!(
        input.contains(&format!(":{gone} - [0:0]\n")) && input.contains(&format!("-X {gone}\n")),
        "{input}"
    );
    assert_eq!(agent.sync.kernel().inputs.len(), 2);
}

/// Cases 156 and 157, replaced: after any failure the kernel is read and everything compared; the rules in
/// force stay in force meanwhile.
#[test]
fn after_a_failed_restore_everything_is_compared_with_the_kernel() {
    let mut agent = Agent::new();
    agent.sync_to(&two_services(&[POD]));
    let (before, n_saves) = (agent.save(), agent.sync.kernel().n_saves);
    for _ in 0..2 {
        agent.apply(&two_services(&TWO));
        agent.sync.kernel().failures.push(failed());
        assert!(agent.sync().outcome.is_err());
        assert_eq!(agent.save(), before);
        assert!(agent.sync.is_dirty());
    }
    let report = agent.sync();
    assert!(report.outcome.is_ok() && report.is_full());
    assert_eq!(agent.save(), two_services(&TWO).save(V4));
    assert!(agent.sync.kernel().n_saves > n_saves);
}

/// The input that an audit writes after `damage`; it must repair everything.
fn repair(damage: impl FnOnce(&mut FakeIptables)) -> String {
    let (mut agent, whole) = (Agent::new(), two_services(&TWO));
    agent.sync_to(&whole);
    let n_before = agent.sync.kernel().inputs.len();
    damage(agent.sync.kernel());
    agent.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
    assert_eq!(agent.sync().outcome, Ok(()));
    for table in Table::ALL {
        agent.sync.kernel().ruleset.chain_mut(table, chainsmith::rules::names::KUBE_PROXY_CANARY);
    }
    assert_eq!(agent.save(), whole.save(V4));
    agent.sync.kernel().inputs[n_before..].concat()
}

/// Case 158, replaced: the next audit finds it, not the next hour.
#[test]
fn a_deleted_jump_is_inserted_again() {
    let prerouting = ChainName::literal("PREROUTING");
    let input = repair(|kernel| kernel.ruleset.chain_mut(Table::Nat, prerouting).rules.clear());
    assert_eq!(input.lines().filter(|line| line.starts_with("-I ")).count(), 1, "{input}");
    assert!(!touches(&input, "KUBE-SERVICES") && !touches(&input, &svc()));
}

/// Case 159, replaced: kube-proxy does not detect it.
#[test]
fn a_flushed_nat_table_is_written_again() {
    let built_in = chainsmith::iptables::Ruleset::with_built_in_chains();
    let input = repair(|kernel| {
        kernel.ruleset.tables.insert(Table::Nat, built_in.tables[&Table::Nat].clone());
    });
    assert!(touches(&input, &svc()) && !input.contains("*filter"), "{input}");
}

/// Case 160, replaced: rules are not judged by a canary.
#[test]
fn a_missing_canary_alone_causes_no_write() {
    let input = repair(|kernel| {
        let chains = kernel.ruleset.tables.get_mut(&Table::Mangle).unwrap();
        chains.remove(&chainsmith::rules::names::KUBE_PROXY_CANARY);
    });
    assert_eq!(input, "");
}

/// Case 161, except that chains are searched when the kernel is read, not at each sync.
#[test]
fn stale_chains_with_our_prefixes_are_deleted_and_other_chains_are_not() {
    let foreign = "*nat\n:KUBE-SVC-FOO - [0:0]\n:KUBE-FOO - [0:0]\nCOMMIT\n";
    let mut agent = Agent::on(FakeIptables::holding(V4, Backend::Nft, foreign).unwrap());
    agent.apply(&two_services(&[POD]));
    assert_eq!(agent.sync().outcome, Ok(()));
    let save = agent.save();
    assert!(!save.contains("KUBE-SVC-FOO") && save.contains(":KUBE-FOO "), "{save}");
}

/// Case 162, except that the next reading of the kernel removes them.
#[test]
fn foreign_rules_in_our_chains_are_removed() {
    let rule = |lab: Lab, table: Table, chain: &'static str| {
        let mut agent = Agent::new();
        agent.sync_to(&lab);
        let line = format!("*{table}\n-A X -s 1.2.3.4/32 -j RETURN\nCOMMIT\n");
        let mut foreign = parse::save(V4, &line).unwrap();
        let rules = &mut foreign.chain_mut(table, ChainName::literal("X")).rules;
        agent.sync.kernel().ruleset.chain_mut(table, ChainName::literal(chain)).rules.append(rules);
        agent.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        assert_eq!(agent.sync().outcome, Ok(()));
        agent.save().contains("1.2.3.4")
    };
    let off = two_services(&[POD]).flag("iptables-localhost-nodeports", "false");
    for (table, chain) in [
        (Table::Nat, "KUBE-SERVICES"),
        (Table::Nat, "KUBE-POSTROUTING"),
        (Table::Filter, "KUBE-FORWARD"),
        (Table::Filter, "KUBE-FIREWALL"),
    ] {
        assert!(!rule(two_services(&[POD]), table, chain), "{table} {chain}");
    }
    assert!(rule(off, Table::Filter, "KUBE-FIREWALL"), "the kubelet's, when we have no rule there");
    assert!(rule(two_services(&[POD]), Table::Filter, "INPUT"), "not ours");
}

/// Case 165.
#[test]
fn above_a_thousand_endpoints_their_rules_have_no_comments() {
    let comments = |lab: &Lab| lab.save(V4).matches(" -> ").count();
    let (large, not_yet) = (with_endpoints(1001), with_endpoints(1000));
    assert_eq!((comments(&not_yet), comments(&large)), (1000, 0));
    assert!(large.nat(&svc())[0].contains("cluster IP"), "others keep theirs");
    let chain = sep("default/web:p", "10.180.1.5:80");
    assert_eq!(large.nat(&chain)[1], "-p tcp -m tcp -j DNAT --to-destination 10.180.1.5:80");
    large.check(&[("10.180.1.5 -> 10.96.0.10:80", "masqueraded 10.180.1.5:80")]);
}

/// Case 166, replaced: the same objects always give the same rules.
#[test]
fn a_cluster_that_grows_large_has_the_rules_of_one_that_always_was_large() {
    let mut agent = Agent::new();
    agent.sync_to(&with_endpoints(999));
    let input = agent.sync_to(&with_endpoints(1002));
    assert!(touches(&input, &svc()), "also a Service that did not change");
    agent.sync_to(&with_endpoints(999));
}

/// Case 167, replaced: kube-proxy leaves them for half a minute.
#[test]
fn in_a_large_cluster_too_stale_chains_are_deleted_at_once() {
    let mut agent = Agent::new();
    agent.sync_to(&with_endpoints(1002));
    let alone = lab([web(""), pods(&[POD])]).flag("layout", "classic");
    let input = agent.sync_to(&alone);
    assert_eq!(input.lines().filter(|line| line.starts_with("-X ")).count(), 1002);
}

/// Case 168, replaced: kube-proxy compares a large cluster as little as possible.
#[test]
fn a_large_cluster_is_compared_like_a_small_one() {
    let mut agent = Agent::new();
    agent.sync_to(&with_endpoints(1002));
    let n_before = agent.sync.kernel().inputs.len();
    agent.sync.kernel().ruleset.chain_mut(Table::Nat, ChainName::new(&svc()).unwrap()).rules.clear();
    agent.sync.distrust(chainsmith::drift::ReadReason::AuditDue);
    assert!(agent.sync().outcome.is_ok());
    let input = agent.sync.kernel().inputs[n_before..].concat();
    assert!(touches(&input, &svc()) && input.lines().count() < 10, "{input}");
}

/// Case 169.
#[test]
fn without_a_change_nothing_is_written() {
    let mut agent = Agent::new();
    agent.sync_to(&two_services(&TWO));
    assert_eq!(agent.sync_to(&two_services(&TWO)), "");
}

/// Case 175.
#[test]
fn a_restart_leaves_no_gap_and_no_stale_chains() {
    let mut first = Agent::new();
    first.sync_to(&two_services(&TWO));
    let mut kernel = FakeIptables::holding(V4, Backend::Nft, &first.save()).unwrap();
    kernel.history = Some(Vec::new());
    // While no agent ran, `other` was deleted, and `web` lost an endpoint.
    let now = lab([web(""), pods(&[POD])]);
    let mut second = Agent::on(kernel);
    let input = second.sync_to(&now);
    let other = chain(chainsmith::rules::names::PortChain::Cluster, "default/other:p");
    assert!(input.contains(&format!("-X {other}\n")), "{input}");
    assert!(!touches(&input, "KUBE-POSTROUTING") && !input.contains("-I "), "{input}");
    let local = now.host.addresses.iter().copied().collect();
    for ruleset in second.sync.kernel().history.take().unwrap() {
        let node = TracedNode { ruleset: &ruleset, local_addresses: &local, routes: &[] };
        let fates_text = fates_text(&trace::trace(&node, &now.packet("pod -> 10.96.0.10:80"), &now.recent));
        assert!(
            ["10.180.1.5:80", "10.180.1.5:80, 10.180.2.7:80"].contains(&fates_text.as_str()),
            "{fates_text}"
        );
    }
}

/// Case 176, except for later changes.
#[test]
fn where_tcp_is_liberal_invalid_packets_are_forwarded() {
    let state = chainsmith::iptables::CtStates::INVALID;
    let mut lab = two_services(&[POD]);
    lab.check_in_state(state, "10.180.1.5 -> 198.51.100.9:80", "dropped");
    assert_eq!(lab.filter("KUBE-FORWARD").len(), 3);
    lab.clone().flag("conntrack-tcp-be-liberal", "true").check_in_state(
        state,
        "10.180.1.5 -> 198.51.100.9:80",
        "untouched",
    );
    lab.host.kernel.tcp_be_liberal = true;
    lab.check_in_state(state, "10.180.1.5 -> 198.51.100.9:80", "untouched");
    assert_eq!(lab.filter("KUBE-FORWARD").len(), 2);
}

/// Case 177.
#[test]
fn without_counters_in_the_kernel_only_their_matches_are_missing() {
    let spec = "type: NodePort, clusterIP: 10.96.0.10, ports: [{name: p, port: 80, nodePort: 30080}]";
    let with = lab([service("default/web", spec, &[]), pods(&TWO)]);
    let without = with.clone().without_counters();
    assert_eq!(without.filter("KUBE-FORWARD")[0], "-m conntrack --ctstate INVALID -j DROP");
    let expected: String = with
        .save(V4)
        .lines()
        .filter(|line| !line.contains("localhost_nps_accepted_pkts"))
        .map(|line| line.replace(" -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts", "") + "\n")
        .collect();
    assert_eq!(without.save(V4), expected);
    without.check(&[("localhost -> 127.0.0.1:30080", "masqueraded 10.180.1.5:80, 10.180.2.7:80")]);
}

/// Case 178, replaced: kube-proxy leaves stale chains then.
#[test]
fn when_the_kernel_cannot_be_read_rules_are_written_and_stale_chains_still_deleted() {
    let mut kernel =
        FakeIptables::holding(V4, Backend::Nft, "*nat\n:KUBE-SVC-FOO - [0:0]\nCOMMIT\n").unwrap();
    kernel.is_save_broken = true;
    let mut agent = Agent::on(kernel);
    agent.sync_to(&two_services(&TWO));
    assert!(!agent.save().contains("KUBE-SVC-FOO"));
}
