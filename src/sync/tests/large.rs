//! Services so large that they are synced in parts.

use super::*;
use crate::kernel::RestoreError;

const SECOND: Duration = Duration::from_secs(1);

/// A Service of two parts, without endpoints: the second part is small.
fn large() -> Change {
    let Change::Service(name, Some(mut large)) = service("large", 200) else { unreachable!("it is one") };
    let port = |n: u16| Port {
        name: format!("p-{n}").into(),
        protocol: Protocol::Tcp,
        port: 1 + n,
        node_port: None,
    };
    large.ports = (0..10_050).map(port).collect();
    Change::Service(name, Some(large))
}

fn rejected(rig: &Rig) -> usize {
    rig.rules(Table::Filter, "KUBE-SERVICES")
}

#[tokio::test(start_paused = true)]
async fn its_parts_follow_each_other_without_the_minimum_period() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.change(large()).await;
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_millis(1)).await;
    assert_eq!(rejected(&rig), 10_052);
    assert_eq!(rig.take_syncs(), [now; 3], "the other Service, and two parts");
    // Later changes wait for the minimum period.
    rig.change(service("t", 3)).await;
    rig.after(10 * SECOND).await;
    assert_eq!(rig.take_syncs(), [now + 1000]);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_is_retried_after_the_delay_of_any_failure() {
    let rig = Rig::settled().await;
    let now = rig.now();
    rig.kernel(|kernel| kernel.failures = vec![RestoreError::Locked(SECOND); 3]);
    rig.change(large()).await;
    rig.after(Duration::from_secs(100)).await;
    assert_eq!(rejected(&rig), 10_051);
    let syncs: Vec<u128> = rig.take_syncs().iter().map(|at| at - now).collect();
    assert_eq!(syncs, [0, 1000, 3000, 7000, 7000, 7000], "a full sync, and then the parts once more");
}
