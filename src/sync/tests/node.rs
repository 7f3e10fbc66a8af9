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
        let rig = Rig::start(Config::default(), Patience::CLUSTER);
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
    let rig = Rig::start(Config::default(), Patience::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(7)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [7_000]);

    let rig = Rig::start(Config::default(), Patience::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(100)).await;
    rig.change(Change::Node(Some(node("east")))).await;
    rig.after(Duration::from_secs(60)).await;
    assert_eq!(rig.take_syncs(), [30_000, 100_000]);
}

#[tokio::test(start_paused = true)]
async fn manifests_do_not_wait_for_a_status_that_nobody_writes() {
    let rig = Rig::start(Config::default(), Patience::NONE);
    rig.list().await;
    rig.after(Duration::from_secs(1)).await;
    assert_eq!(rig.take_syncs(), [0]);
}

#[tokio::test(start_paused = true)]
async fn by_node_cidr_pod_cidrs_are_waited_for_and_their_absence_ends_the_loop() {
    let rig = Rig::start(config(DetectLocal::NodeCidr), Patience::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.list().await;
    rig.after(Duration::from_secs(329)).await;
    assert!(!rig.running.is_finished());
    assert_eq!(rig.take_syncs(), []);
    assert_eq!(rig.ended().await, Ended::NoPodCidrs);
}

#[tokio::test(start_paused = true)]
async fn by_node_cidr_the_first_pod_cidrs_count_and_others_end_the_loop() {
    let rig = Rig::start(config(DetectLocal::NodeCidr), Patience::CLUSTER);
    rig.change(Change::Node(Some(node("east")))).await;
    rig.list().await;
    rig.after(Duration::from_secs(200)).await;
    rig.change(Change::Node(Some(with_pod_cidr("10.180.0.0/24")))).await;
    rig.after(Duration::from_secs(1000)).await;
    assert_eq!(rig.take_syncs(), [200_000]);
    rig.change(Change::Node(Some(with_pod_cidr("10.180.7.0/24")))).await;
    assert_eq!(rig.ended().await, Ended::PodCidrsChanged);
}

#[tokio::test(start_paused = true)]
async fn pod_cidrs_count_also_where_addresses_never_come() {
    let nameless = |cidr| Node { addresses: Box::default(), ..with_pod_cidr(cidr) };
    let rig = Rig::start(config(DetectLocal::NodeCidr), Patience::CLUSTER);
    rig.list().await;
    rig.after(Duration::from_secs(100)).await;
    rig.change(Change::Node(Some(nameless("10.180.0.0/24")))).await;
    rig.after(Duration::from_secs(1000)).await;
    assert_eq!(rig.take_syncs(), [100_000]);
    rig.change(Change::Node(Some(nameless("10.180.7.0/24")))).await;
    assert_eq!(rig.ended().await, Ended::PodCidrsChanged);
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
