//! What lists and watches cost the API server, in counts of requests and simulated time.

use super::outage::{Follower, LIMIT, MINUTE, serving};
use super::*;
use crate::watch::api::fake::{FakeServer, Mode};

#[derive(Default)]
struct Restarts(std::sync::Mutex<Vec<String>>);

impl Observer for Restarts {
    fn watch_restarted(&self, plural: &str) {
        self.0.lock().unwrap().push(plural.to_owned());
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_cluster_is_asked_for_nothing_but_the_renewal_of_watches() {
    let (server, restarts) = (serving(Mode::Serves), Arc::new(Restarts::default()));
    let mut follower = Follower::over(server.connect(LIMIT, restarts.clone()));
    follower.until(&["a", "b", "c"], MINUTE).await;
    while follower.step(MINUTE / 60).await {}
    assert_eq!(server.take_requests().len(), 3, "a start");
    // No bookmark comes, as from a server with an old etcd.
    for _ in 0..10 * 6 {
        assert!(!follower.step(MINUTE / 6).await, "nothing changes");
        assert!(follower.freshness.ages().iter().all(|(_, age)| *age <= GOES_WELL), "it is current");
    }
    let renewed = server.take_requests();
    assert!(renewed.len() <= 3 * 2, "{renewed:?}");
    assert!(renewed.iter().all(|(_, uri)| !uri.contains("sendInitialEvents")), "{renewed:?}");
    assert_eq!(restarts.0.lock().unwrap().len(), 0, "no watch broke off");
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_wait_for_the_limit_and_what_follows_does() {
    for (mode, n_expected) in [(Mode::Serves, 3), (Mode::RefusesStreaming, 9)] {
        let server = serving(mode);
        let limit = Limit { qps: Some(0.1), burst: 1 };
        let mut follower = Follower::over(server.connect(limit, Arc::new(())));
        let took = follower.until(&["a", "b", "c"], MINUTE).await;
        while follower.step(MINUTE / 60).await {}
        assert_eq!((took, server.take_requests().len()), (Duration::ZERO, n_expected), "{mode:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_streaming_lists_is_asked_for_them_again_after_an_hour() {
    let server = serving(Mode::RefusesStreaming);
    let mut follower = Follower::over(server.connect(LIMIT, Arc::new(())));
    follower.until(&["a", "b", "c"], MINUTE).await;
    let streaming = |server: &FakeServer| {
        let asked = server.take_requests();
        asked.iter().filter(|(_, uri)| uri.contains("sendInitialEvents")).count()
    };
    assert_eq!(streaming(&server), 3);
    server.compact();
    server.turn(Mode::Serves);
    while follower.step(30 * MINUTE).await {}
    assert_eq!(streaming(&server), 0, "it would refuse them again");
    while follower.step(40 * MINUTE).await {}
    server.compact();
    server.turn(Mode::Serves);
    while follower.step(MINUTE).await {}
    assert_eq!(streaming(&server), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_followed_is_stale_until_it_is_followed_again() {
    let server = serving(Mode::Serves);
    let mut follower = Follower::over(server.connect(LIMIT, Arc::new(())));
    follower.until(&["a", "b", "c"], MINUTE).await;
    server.turn(Mode::IsAway);
    while follower.step(MINUTE / 2).await {}
    assert_eq!(follower.freshness.stale(), [], "not yet");
    while follower.step(MINUTE).await {}
    assert_eq!(follower.freshness.stale().len(), 3);
    server.turn(Mode::Serves);
    while follower.step(MINUTE / 2).await {}
    assert_eq!(follower.freshness.stale(), []);
}
