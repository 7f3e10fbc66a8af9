//! Tests of what lists and watches cost the API server, in numbers of requests and simulated time.

use super::outage::{LIMIT, MINUTE, TestFollower, serving};
use super::*;
use crate::watch::api::fake_server::{FakeServer, Mode};
use crate::watch::api::follower::HEALTHY_AFTER;

#[derive(Default)]
struct Restarts(std::sync::Mutex<Vec<String>>);

impl TrafficObserver for Restarts {
    fn watch_restarted(&self, plural: &str) {
        self.0.lock().unwrap().push(plural.to_owned());
    }
}

#[tokio::test(start_paused = true)]
async fn without_changes_only_watches_are_renewed() {
    let (server, restarts) = (serving(Mode::Serves), Arc::new(Restarts::default()));
    let mut follower = TestFollower::over(server.connect(LIMIT, restarts.clone()));
    follower.until(&["a", "b", "c"], MINUTE).await;
    while follower.step(MINUTE / 60).await {}
    assert_eq!(server.take_requests().len(), 3, "a start");
    // No bookmark arrives, as from a server with an old etcd.
    for _ in 0..10 * 6 {
        assert!(!follower.step(MINUTE / 6).await, "nothing changes");
        assert!(follower.freshness.ages().iter().all(|(_, age)| *age <= HEALTHY_AFTER), "current");
    }
    let wait_renewed = server.take_requests();
    assert!(wait_renewed.len() <= 3 * 2, "{wait_renewed:?}");
    assert!(wait_renewed.iter().all(|(_, uri)| !uri.contains("sendInitialEvents")), "{wait_renewed:?}");
    assert_eq!(restarts.0.lock().unwrap().len(), 0, "no watch ended early");
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_start_are_exempt_from_the_rate_limit_and_later_ones_are_not() {
    for (mode, n_expected) in [(Mode::Serves, 3), (Mode::RejectsStreaming, 9)] {
        let server = serving(mode);
        let limit = RequestLimit { qps: Some(0.1), burst: 1 };
        let mut follower = TestFollower::over(server.connect(limit, Arc::new(())));
        let took = follower.until(&["a", "b", "c"], MINUTE).await;
        while follower.step(MINUTE / 60).await {}
        assert_eq!((took, server.take_requests().len()), (Duration::ZERO, n_expected), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn streaming_lists_are_tried_again_an_hour_after_a_rejection() {
    let server = serving(Mode::RejectsStreaming);
    let mut follower = TestFollower::over(server.connect(LIMIT, Arc::new(())));
    follower.until(&["a", "b", "c"], MINUTE).await;
    let streaming = |server: &FakeServer| {
        let requests = server.take_requests();
        requests.iter().filter(|(_, uri)| uri.contains("sendInitialEvents")).count()
    };
    assert_eq!(streaming(&server), 3);
    server.compact();
    server.set_mode(Mode::Serves);
    while follower.step(30 * MINUTE).await {}
    assert_eq!(streaming(&server), 0, "not within the hour");
    while follower.step(40 * MINUTE).await {}
    server.compact();
    server.set_mode(Mode::Serves);
    while follower.step(MINUTE).await {}
    assert_eq!(streaming(&server), 3);
}

#[tokio::test(start_paused = true)]
async fn a_kind_without_a_watch_is_stale_until_its_watch_is_open_again() {
    let server = serving(Mode::Serves);
    let mut follower = TestFollower::over(server.connect(LIMIT, Arc::new(())));
    follower.until(&["a", "b", "c"], MINUTE).await;
    server.set_mode(Mode::Unreachable);
    while follower.step(MINUTE / 2).await {}
    assert_eq!(follower.freshness.stale_kinds(), [], "not yet");
    while follower.step(MINUTE).await {}
    assert_eq!(follower.freshness.stale_kinds().len(), 3);
    server.set_mode(Mode::Serves);
    while follower.step(MINUTE / 2).await {}
    assert_eq!(follower.freshness.stale_kinds(), []);
}
