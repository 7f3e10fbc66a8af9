//! What the loop says it knows.

use tokio::sync::oneshot;

use super::*;

impl Rig {
    /// What the loop knows.
    async fn view(&self) -> LoopView {
        let (sender, receiver) = oneshot::channel();
        self.questions.send(sender).await.unwrap();
        receiver.await.unwrap()
    }
}

/// The names of the Services of a view, and whether the lists are complete.
fn known(view: &LoopView) -> (Vec<String>, bool) {
    (view.snapshot.services().map(|service| service.name.to_string()).collect(), view.is_listed)
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered_between_syncs_with_all_changes() {
    let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
    assert_eq!(known(&rig.view().await), (Vec::new(), false));
    let rig = Rig::settled().await;
    let before = rig.view().await;
    assert_eq!(known(&before), (vec!["ns/s".to_owned()], true));
    assert!(before.families.iter().all(|family| family.settings.is_some()));
    rig.change(service("t", 2)).await;
    rig.after(Duration::from_secs(5)).await;
    assert_eq!(known(&rig.view().await).0, ["ns/s", "ns/t"]);
    assert_eq!(known(&before).0, ["ns/s"], "a view does not change");
}

#[tokio::test]
async fn a_question_during_a_sync_that_hangs_is_answered_at_once() {
    let rig = Rig::start(Config { min_sync_period: Duration::ZERO, ..Config::default() }, NodeWait::NONE);
    let (release, held) = std::sync::mpsc::channel();
    *rig.calls.1.lock().unwrap() = Some(held);
    rig.change(service("s", 1)).await;
    rig.list().await;
    while rig.calls.1.lock().unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let view = tokio::time::timeout(Duration::from_secs(10), rig.view()).await.expect("at once");
    assert_eq!(known(&view), (vec!["ns/s".to_owned()], true));
    release.send(()).unwrap();
}
