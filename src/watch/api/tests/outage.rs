//! Tests of failing servers, in simulated time.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::watch::api::fake_server::{Cut, FakeServer, Mode};
use crate::watch::api::follower::WATCH_SECONDS;

pub const LIMIT: RequestLimit = RequestLimit { qps: Some(5.0), burst: 10 };
pub const MINUTE: Duration = Duration::from_secs(60);

/// A follower of a server, and what its events say about Services.
pub struct TestFollower {
    events: mpsc::Receiver<WatchEvent>,
    pub names: BTreeSet<String>,
    pub is_listed: bool,
    n_lists: usize,
    pub freshness: Arc<Freshness>,
}

impl TestFollower {
    fn of(server: &FakeServer) -> TestFollower {
        TestFollower::over(server.connect(LIMIT, Arc::new(())))
    }

    pub fn over(connection: Connection) -> TestFollower {
        let (sender, events) = mpsc::channel(crate::watch::CHANNEL_CAPACITY);
        let freshness = connection.freshness.clone();
        tokio::spawn(follow(connection, "node-a".into(), sender));
        TestFollower { events, names: BTreeSet::new(), is_listed: false, n_lists: 0, freshness }
    }

    /// Handles the next event, if one arrives within `limit`; returns whether one did.
    pub async fn step(&mut self, limit: Duration) -> bool {
        let Ok(event) = tokio::time::timeout(limit, self.events.recv()).await else { return false };
        match event.expect("the follower runs") {
            WatchEvent::Change(Change::AllServices(services)) => {
                self.n_lists += 1;
                self.names = services.iter().map(|service| service.name.name().to_owned()).collect();
            }
            WatchEvent::Change(Change::Service(name, service)) => {
                match service {
                    Some(_) => self.names.insert(name.name().to_owned()),
                    None => self.names.remove(name.name()),
                };
            }
            WatchEvent::ServicesListed => self.is_listed = true,
            _ => {}
        }
        true
    }

    /// Waits until exactly these Services are known; returns how long that took.
    pub async fn until(&mut self, names: &[&str], limit: Duration) -> Duration {
        let begun = tokio::time::Instant::now();
        while !self.is_listed || !self.names.iter().eq(names) {
            let left = limit.saturating_sub(begun.elapsed());
            assert!(self.step(left).await, "{:?} after {limit:?}, not {names:?}", self.names);
        }
        begun.elapsed()
    }
}

pub fn serving(mode: Mode) -> FakeServer {
    let server = FakeServer::new(mode);
    for name in ["a", "b", "c"] {
        server.put("services", service(name, 0));
    }
    server
}

#[tokio::test(start_paused = true)]
async fn after_a_ten_minute_outage_no_change_is_lost_and_recovery_takes_seconds() {
    for is_compacted in [false, true] {
        let server = serving(Mode::Serves);
        let mut follower = TestFollower::of(&server);
        follower.until(&["a", "b", "c"], MINUTE).await;
        while follower.step(Duration::from_secs(1)).await {}
        server.take_requests();
        server.set_mode(Mode::Unreachable);
        server.put("services", service("d", 0));
        server.delete("services", "a");
        assert!(!follower.step(10 * MINUTE).await, "no event during the outage");
        let n_tried = server.take_requests().len();
        // Three watches, each about every four seconds.
        assert!((300..=660).contains(&n_tried), "{n_tried} requests in 10 minutes");
        if is_compacted {
            server.compact();
        }
        server.set_mode(Mode::Serves);
        let took = follower.until(&["b", "c", "d"], MINUTE).await;
        assert!(took < Duration::from_secs(9), "{took:?}");
        while follower.step(MINUTE).await {}
        let requests = server.take_requests();
        let n_lists = requests.iter().filter(|(_, uri)| uri.contains("sendInitialEvents")).count();
        assert_eq!(
            n_lists,
            if is_compacted { 3 } else { 0 },
            "each kind lists again once, if its version is gone"
        );
        assert!(requests.len() <= 9, "{requests:?}");
        assert_eq!(follower.n_lists, if is_compacted { 2 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_reconnect_spread_over_time() {
    let servers: Vec<FakeServer> = (0..100).map(|_| serving(Mode::Unreachable)).collect();
    let _followers: Vec<TestFollower> = servers.iter().map(TestFollower::of).collect();
    tokio::time::sleep(10 * MINUTE).await;
    let back = tokio::time::Instant::now();
    for server in &servers {
        server.take_requests();
        server.set_mode(Mode::Serves);
    }
    tokio::time::sleep(MINUTE).await;
    let firsts =
        servers.iter().flat_map(FakeServer::take_requests).filter(|(_, uri)| uri.contains("/services"));
    let mut by_second = BTreeMap::new();
    for (at, _) in firsts {
        *by_second.entry((at - back).as_secs()).or_insert(0) += 1;
    }
    assert!(by_second.keys().all(|second| *second < 9), "{by_second:?}");
    // 100 nodes in 8 s; the rest of a delay is more often short than long.
    assert!(by_second.values().all(|n| *n < 45), "{by_second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_every_watch_at_once_gets_few_requests() {
    let server = serving(Mode::EndsWatches);
    let mut follower = TestFollower::of(&server);
    let minutes = 10;
    let listed = tokio::time::timeout(minutes * MINUTE, async {
        while follower.step(MINUTE).await {}
        std::future::pending::<()>().await;
    });
    assert!(listed.await.is_err());
    assert_eq!(follower.names.len(), 3, "plain lists are served");
    let n_requests = server.take_requests().len();
    let allowed = 10 + 5 * 60 * minutes as usize;
    assert!(n_requests <= allowed / 4, "{n_requests} of {allowed} requests");
    server.put("services", service("d", 0));
    server.set_mode(Mode::Serves);
    let took = follower.until(&["a", "b", "c", "d"], MINUTE).await;
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_last_5_to_10_minutes_at_random() {
    let server = serving(Mode::Serves);
    let _follower = TestFollower::of(&server);
    let mut seconds = BTreeSet::new();
    for _ in 0..20 {
        let server = serving(Mode::Serves);
        let mut follower = TestFollower::of(&server);
        follower.until(&["a", "b", "c"], MINUTE).await;
        for (_, uri) in server.take_requests() {
            let text = uri.split("timeoutSeconds=").nth(1).unwrap().split('&').next().unwrap();
            seconds.insert(text.parse::<u32>().unwrap());
        }
    }
    assert!(seconds.len() > 20, "{seconds:?}");
    assert!(seconds.iter().all(|n| WATCH_SECONDS.contains(n)), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_versions_expire_at_once_is_not_flooded_with_lists() {
    let server = serving(Mode::ExpiresVersions);
    let mut follower = TestFollower::of(&server);
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < 10 * MINUTE {
        assert!(follower.step(MINUTE).await, "it lists again and again");
    }
    let n_requests = server.take_requests().len();
    assert!((300..=700).contains(&n_requests), "{n_requests} requests in 10 minutes");
}

/// More than a list of three Services and two changes.
const N_BYTES: usize = 1500;

/// Cuts the first body with Services at each byte in turn. Whatever the cut, no existing Service is ever
/// missing.
async fn check_cuts(mode: Mode, cut: Cut, n_requests_uncut: usize) {
    let mut n_requests = 0;
    for n_bytes in 0..=N_BYTES {
        let case = format!("{mode:?} {cut:?} after {n_bytes}");
        let server = serving(mode);
        server.cut_next(n_bytes, cut);
        let mut follower = TestFollower::of(&server);
        while !follower.is_listed {
            assert!(follower.step(MINUTE).await, "{case}: no list");
        }
        assert_eq!(follower.names.len(), 3, "{case}: {:?}", follower.names);
        // A cut after the list applies to the changes.
        server.put("services", service("d", 0));
        server.delete("services", "a");
        let begun = tokio::time::Instant::now();
        while !follower.names.iter().eq(&["b", "c", "d"]) {
            assert!(follower.step(MINUTE).await, "{case}: {:?}", follower.names);
            assert!(follower.names.is_superset(&["b", "c"].map(str::to_owned).into()), "{case}");
        }
        assert!(begun.elapsed() < Duration::from_secs(9), "{case}: {:?}", begun.elapsed());
        n_requests = server.take_requests().iter().filter(|(_, uri)| uri.contains("/services")).count();
        assert!(n_requests < 8, "{case}: {n_requests} requests");
    }
    assert_eq!(n_requests, n_requests_uncut, "{mode:?}: the last cut is after the end");
}

#[tokio::test(start_paused = true)]
async fn a_body_cut_at_any_byte_loses_no_object() {
    for cut in [Cut::Normally, Cut::WithError] {
        check_cuts(Mode::Serves, cut, 1).await;
        // A rejection, the list and the watch.
        check_cuts(Mode::RejectsStreaming, cut, 3).await;
    }
}
