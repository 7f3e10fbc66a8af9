//! What the Node object does to the loop.

use super::*;

fn config(detect_local: DetectLocal) -> Config {
    Config { detect_local, ..Config::default() }
}

fn with_pod_cidr(cidr: &str) -> Node {
    Node { pod_cidrs: [Cidr::parse(cidr).unwrap()].into(), ..node("east") }
}

#[tokio::test(start_paused = true)]
async fn another_zone_compares_everything_without_any_other_event() {
    let rig = Rig::settled().await;
    rig.change(slice("s", &["east", "east", "west"])).await;
    rig.after(Duration::from_secs(5)).await;
    let chains = |rig: &Rig| {
        let is_endpoint = |name: &&crate::iptables::ChainName| name.as_str().starts_with("KUBE-SEP-");
        rig.kernel(|kernel| kernel.ruleset.tables[&Table::Nat].keys().filter(is_endpoint).count())
    };
    assert_eq!((rig.take_syncs().len(), chains(&rig)), (1, 2));
    rig.change(Change::Node(Some(node("west")))).await;
    rig.after(Duration::from_secs(5)).await;
    assert_eq!((rig.take_syncs().len(), chains(&rig)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_node_without_addresses_is_waited_for_thirty_seconds() {
    for node in [None, Some(Node { addresses: Box::default(), ..node("east") })] {
        let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
        rig.change(Change::Node(node)).await;
        rig.list().await;
        rig.after(Duration::from_secs(3)).await;
        rig.change(service("s", 1)).await;
        rig.after(Duration::from_secs(60)).await;
        assert_eq!(rig.take_syncs(), [30_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_that_come_end_the_wait_and_those_that_come_later_still_count() {
    let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(7)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [7_000]);

    let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(100)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [30_000, 100_000]);
}

#[tokio::test(start_paused = true)]
async fn manifests_do_not_wait_for_a_status_that_nobody_writes() {
    let rig = Rig::start(Config::default(), NodeWait::NONE);
    rig.list().await;
    rig.after(Duration::from_secs(1)).await;
    assert_eq!(rig.take_syncs(), [0]);
}

#[tokio::test(start_paused = true)]
async fn by_node_cidr_pod_cidrs_are_waited_for_and_their_absence_ends_the_loop() {
    let rig = Rig::start(config(DetectLocal::NodeCidr), NodeWait::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.list().await;
    rig.after(Duration::from_secs(329)).await;
    assert!(!rig.running.is_finished());
    assert_eq!(rig.take_syncs(), []);
    assert_eq!(rig.ended().await, LoopEnd::NoPodCidrs);
}

#[tokio::test(start_paused = true)]
async fn by_node_cidr_the_first_pod_cidrs_count_and_others_end_the_loop() {
    let rig = Rig::start(config(DetectLocal::NodeCidr), NodeWait::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.list().await;
    rig.after(Duration::from_secs(200)).await;
    rig.change(Change::Node(Some(with_pod_cidr("10.180.0.0/24")))).await;
    rig.after(Duration::from_secs(1000)).await;
    assert_eq!(rig.take_syncs(), [200_000]);
    rig.change(Change::Node(Some(with_pod_cidr("10.180.7.0/24")))).await;
    assert_eq!(rig.ended().await, LoopEnd::PodCidrsChanged);
}

#[tokio::test(start_paused = true)]
async fn pod_cidrs_count_also_where_addresses_never_come() {
    let nameless = |cidr| Node { addresses: Box::default(), ..with_pod_cidr(cidr) };
    let rig = Rig::start(config(DetectLocal::NodeCidr), NodeWait::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(100)).await;
    rig.change(Change::Node(Some(nameless("10.180.0.0/24")))).await;
    rig.after(Duration::from_secs(1000)).await;
    assert_eq!(rig.take_syncs(), [100_000]);
    rig.change(Change::Node(Some(nameless("10.180.7.0/24")))).await;
    assert_eq!(rig.ended().await, LoopEnd::PodCidrsChanged);
}

#[tokio::test(start_paused = true)]
async fn in_other_modes_pod_cidrs_and_later_addresses_change_nothing() {
    let rig = Rig::settled().await;
    rig.change(Change::Node(Some(with_pod_cidr("10.180.0.0/24")))).await;
    rig.change(Change::Node(Some(with_pod_cidr("10.180.7.0/24")))).await;
    rig.change(Change::Node(Some(Node { addresses: [[192, 168, 0, 9].into()].into(), ..node("east") })))
        .await;
    rig.change(Change::Node(None)).await;
    rig.after(Duration::from_secs(60)).await;
    assert!(!rig.running.is_finished());
    assert_eq!(rig.take_syncs(), []);
}

fn address(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

/// A loop on a node where node ports answer on 192.0.2.0/24, which has one such address.
async fn with_node_ports() -> Rig {
    let cidrs = vec![Cidr::parse("192.0.2.0/24").unwrap()];
    let node_port_addresses = crate::config::NodePortAddresses::Cidrs(cidrs);
    let rig = Rig::start(Config { node_port_addresses, ..Config::default() }, NodeWait::CLUSTER);
    rig.host.lock().unwrap().addresses = vec![address("192.0.2.7")];
    rig.change(Change::Node(Some(node("east")))).await;
    rig.change(service("s", 1)).await;
    rig.list().await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [0]);
    rig
}

/// Rules that lead to node ports by their address.
fn n_node_port_rules(rig: &Rig) -> usize {
    rig.rules(Table::Nat, "KUBE-SERVICES")
}

#[tokio::test(start_paused = true)]
async fn an_address_that_comes_or_goes_changes_the_rules_without_any_other_event() {
    let rig = with_node_ports().await;
    let before = n_node_port_rules(&rig);
    rig.host.lock().unwrap().addresses.push(address("192.0.2.8"));
    rig.addresses.send(()).await.unwrap();
    rig.after(Duration::from_millis(10)).await;
    assert_eq!(n_node_port_rules(&rig), before + 1, "at once");
    rig.host.lock().unwrap().addresses.clear();
    rig.addresses.send(()).await.unwrap();
    rig.after(Duration::from_secs(2)).await;
    assert_eq!(n_node_port_rules(&rig), before - 1);
}

#[tokio::test(start_paused = true)]
async fn word_of_addresses_that_no_rule_names_writes_nothing() {
    let rig = with_node_ports().await;
    let (restores, before) = (rig.restores(), n_node_port_rules(&rig));
    rig.host.lock().unwrap().addresses.push(address("10.9.0.1"));
    for _ in 0..1000 {
        rig.addresses.send(()).await.unwrap();
        rig.after(Duration::from_millis(1)).await;
    }
    assert_eq!((rig.restores(), n_node_port_rules(&rig)), (restores, before));
    assert_eq!(rig.take_syncs().len(), 1000, "addresses are read, and nothing else is done");
}

#[tokio::test(start_paused = true)]
async fn addresses_that_come_and_go_all_the_time_are_synced_at_the_usual_pace() {
    let rig = with_node_ports().await;
    let restores = rig.restores();
    for n in 0..100 {
        rig.host.lock().unwrap().addresses = vec![address(&format!("192.0.2.{n}"))];
        rig.addresses.send(()).await.unwrap();
        rig.after(Duration::from_millis(100)).await;
    }
    let n_restores = rig.restores() - restores;
    assert!((5..=24).contains(&n_restores), "{n_restores} in ten seconds");
}
