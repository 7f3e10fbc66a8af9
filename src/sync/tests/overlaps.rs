//! Services that claim the same address and port.

use super::*;
use crate::iptables::ChainName;

/// A Service at 172.30.0.`n`, created in second `created`, with an endpoint and an external IP 172.30.0.`taken`.
fn claim(text: &str, n: u8, created: i64, taken: u8) -> Change {
    let Change::Service(name, Some(mut service)) = service(text, n) else { unreachable!("it is a Service") };
    service.created = Some(created);
    if let Some(frontend) = &mut service.frontends.v4 {
        frontend.external_ips = [[172, 30, 0, taken].into()].into();
    }
    Change::Service(name, Some(service))
}

/// The Services that have an entry for 172.30.0.`n` in `KUBE-SERVICES` of either table.
fn served(rig: &Rig, n: u8) -> Vec<String> {
    let text = rig.kernel(|kernel| crate::iptables::write::save(IpFamily::V4, &kernel.ruleset));
    let destination = format!("-d 172.30.0.{n}/32");
    let entries =
        text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES") && line.contains(&destination));
    let service = |line: &str| Some(line.split_once("ns/")?.1.split([' ', '"']).next()?.to_owned());
    entries.filter_map(service).collect()
}

#[tokio::test(start_paused = true)]
async fn the_next_owner_gets_a_frontend_in_the_sync_that_removes_the_first_one() {
    let rig = Rig::settled().await;
    for text in ["a", "b", "c"] {
        rig.change(slice(text, &["east"])).await;
    }
    // `c` has 172.30.0.3 as its cluster IP; the others claim it as an external IP, and are older.
    for change in [claim("a", 4, 20, 3), claim("b", 5, 10, 3), claim("c", 3, 30, 9)] {
        rig.change(change).await;
    }
    rig.after(Duration::from_secs(10)).await;
    assert_eq!(served(&rig, 3), ["c"]);
    let overlapping = "chainsmith_overlapping_frontends{ip_family=\"IPv4\"}";
    assert_eq!(rig.metric(overlapping), 2.0);
    rig.take_syncs();

    rig.change(Change::Service(name("c"), None)).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!((served(&rig, 3), rig.take_syncs().len()), (vec!["b".to_owned()], 1), "the older of them");
    assert_eq!(rig.metric(overlapping), 1.0);
    let chain = ChainName::new("KUBE-SERVICES").unwrap();
    let n_rules = rig.kernel(|kernel| kernel.ruleset.chain(Table::Nat, &chain).unwrap().rules.len());

    // Created again with the same content, it is the youngest.
    rig.change(claim("b", 5, 40, 3)).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!((served(&rig, 3), rig.take_syncs().len()), (vec!["a".to_owned()], 1));
    let now = rig.kernel(|kernel| kernel.ruleset.chain(Table::Nat, &chain).unwrap().rules.len());
    assert_eq!(now, n_rules, "one entry instead of another");

    rig.change(Change::Service(name("a"), None)).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!((served(&rig, 3), rig.metric(overlapping)), (vec!["b".to_owned()], 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_frontend_that_only_the_loser_serves_is_rejected_in_filter() {
    let rig = Rig::settled().await;
    // `s` is at 172.30.0.1, without endpoints.
    let rejected = rig.rules(Table::Filter, "KUBE-SERVICES");
    rig.change(slice("a", &["east"])).await;
    rig.change(claim("a", 4, 20, 1)).await;
    rig.after(Duration::from_secs(10)).await;
    assert_eq!((served(&rig, 1), served(&rig, 4)), (vec!["s".to_owned()], vec!["a".to_owned()]));
    assert_eq!(rig.rules(Table::Filter, "KUBE-SERVICES"), rejected);
}
