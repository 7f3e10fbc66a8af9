//! Tests with recorded responses of a real API server, with the recorded timing.

#![allow(clippy::disallowed_methods, reason = "reads recordings")]

use std::collections::VecDeque;
use std::sync::Mutex;

use http::Response;
use kube::client::Body as KubeBody;
use tokio::time::Instant;
use tower::BoxError;

use super::outage::{LIMIT, MINUTE, TestFollower};
use super::*;

/// The expected end of a request's URI, and the recording to respond with.
type ReplayStep = (&'static str, &'static str);

/// A server that responds to requests about Services by a script, and never ends the last response.
#[derive(Clone)]
struct Replay {
    script: Arc<Mutex<VecDeque<ReplayStep>>>,
    /// When the requests about Services arrived.
    times: Arc<Mutex<Vec<Duration>>>,
    restarts: Arc<Mutex<Vec<String>>>,
}

impl TrafficObserver for Replay {
    fn watch_restarted(&self, plural: &str) {
        self.restarts.lock().unwrap().push(plural.to_owned());
    }
}

/// One recorded response.
struct Recording {
    status: u16,
    retry_after: Option<String>,
    headers_after: Duration,
    /// When each piece of the body arrived, and when the body ended.
    pieces: Vec<(Duration, Bytes)>,
    end: Duration,
}

fn recording(name: &str) -> Recording {
    let file = |ending: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/apiserver");
        std::fs::read(format!("{folder}/{name}.{ending}"))
    };
    let about: Value = serde_json::from_slice(&file("json").unwrap()).unwrap();
    let milliseconds = |key: &str| Duration::from_millis(about[key].as_u64().unwrap());
    let body = Bytes::from(file("body").unwrap());
    let headers = about["headers"].as_array().unwrap();
    let retry_after = headers.iter().find(|pair| pair[0] == "Retry-After");
    assert!(about["end"].as_str().unwrap().starts_with("end of body"), "{name} ends normally");
    let times = file("times").ok().map(|times| String::from_utf8(times).unwrap());
    let pieces = match times {
        None => vec![(milliseconds("end_ms"), body)],
        Some(times) => times
            .lines()
            .filter_map(|line| line.strip_prefix("chunk "))
            .map(|line| {
                let words: Vec<usize> = line.split(' ').map(|word| word.parse().unwrap()).collect();
                (Duration::from_millis(words[0] as u64), body.slice(words[1]..words[1] + words[2]))
            })
            .collect(),
    };
    Recording {
        status: about["status"].as_str().unwrap().split(' ').nth(1).unwrap().parse().unwrap(),
        retry_after: retry_after.map(|pair| pair[1].as_str().unwrap().to_owned()),
        headers_after: milliseconds("head_ms"),
        pieces,
        end: milliseconds("end_ms"),
    }
}

async fn play(recording: Recording) -> Result<Response<Body>, BoxError> {
    let begun = Instant::now();
    tokio::time::sleep(recording.headers_after).await;
    let end = (recording.end, Bytes::new());
    let pieces = futures::stream::iter(recording.pieces.into_iter().chain([end]));
    let body = Body::from_stream(pieces.then(move |(at, piece)| async move {
        tokio::time::sleep_until(begun + at).await;
        Ok::<_, BoxError>(piece)
    }));
    let answer = Response::builder().status(recording.status);
    let answer =
        recording.retry_after.iter().fold(answer, |answer, after| answer.header("retry-after", after));
    Ok(answer.body(body)?)
}

fn follow_script(script: &[ReplayStep]) -> (TestFollower, Replay) {
    let replay = Replay {
        script: Arc::new(Mutex::new(script.iter().copied().collect())),
        times: Arc::default(),
        restarts: Arc::default(),
    };
    let (server, begun) = (replay.clone(), Instant::now());
    let service = tower::service_fn(move |request: http::Request<KubeBody>| {
        let uri = request.uri().to_string();
        let step = (request.uri().path() == "/api/v1/services").then(|| {
            server.times.lock().unwrap().push(begun.elapsed());
            server.script.lock().unwrap().pop_front()
        });
        async move {
            match step {
                Some(Some((expected, name))) => {
                    // An empty version means no version.
                    let times = uri.trim_end_matches("&resourceVersion=");
                    assert!(times.ends_with(expected), "{times} does not end in {expected}, for {name}");
                    play(recording(name)).await
                }
                Some(None) => std::future::pending().await,
                // Another kind, without objects.
                None => {
                    let first = futures::stream::iter([Ok::<_, BoxError>(format!("{}\n", list_end()))]);
                    Ok(Response::new(Body::from_stream(first.chain(futures::stream::pending()))))
                }
            }
        }
    });
    (TestFollower::over(Connection::to(service, LIMIT, Arc::new(replay.clone()))), replay)
}

/// Runs the script to its end; returns when each of its requests, and the one after it, arrived.
async fn check(script: &[ReplayStep]) -> (TestFollower, Vec<Duration>) {
    let (mut follower, replay) = follow_script(script);
    while replay.times.lock().unwrap().len() <= script.len() {
        follower.step(Duration::from_secs(1)).await;
        assert!(Instant::now().elapsed() < 100 * MINUTE);
    }
    let times = replay.times.lock().unwrap().clone();
    while follower.step(Duration::from_millis(1)).await {}
    (follower, times)
}

const STREAMING: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
const FROM_MEMORY: &str = "&resourceVersion=0&resourceVersionMatch=NotOlderThan";

#[tokio::test(start_paused = true)]
async fn after_a_rejection_inside_the_stream_a_plain_list_follows_at_once() {
    let (follower, times) = check(&[
        (STREAMING, "etcd34/services-stream-refused"),
        (FROM_MEMORY, "etcd34/services-list"),
        ("&allowWatchBookmarks=true&resourceVersion=68", "etcd34/services-watch"),
    ])
    .await;
    assert!(follower.is_listed && !follower.names.is_empty());
    assert!(times[2] < Duration::from_millis(200), "{times:?}");
    assert!(times[3] >= Duration::from_secs(300), "no event for minutes, and no other request: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_on_time_continues_from_its_last_bookmark() {
    let (follower, times) = check(&[
        (STREAMING, "watch/ends-5s-stream"),
        ("&allowWatchBookmarks=true&resourceVersion=235", "watch/rv-gone"),
        // A list not older than the known version: the watch from it is rejected, the list is not.
        (
            "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=235",
            "watch/ends-5s-stream",
        ),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(times[1] < Duration::from_millis(5100), "no delay after a normal end: {times:?}");
    assert!(times[2] - times[1] < Duration::from_secs(1), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_ended_by_a_shutdown_continue_from_the_last_version() {
    let (follower, times) = check(&[
        (STREAMING, "shutdown/services-stream"),
        ("&allowWatchBookmarks=true&resourceVersion=419", "errors/too-many-plain-list"),
        ("&allowWatchBookmarks=true&resourceVersion=419", "etcd34/services-watch"),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(times[1] - Duration::from_secs(63) < Duration::from_secs(1), "{times:?}");
    assert!(times[2] - times[1] >= Duration::from_secs(1), "Retry-After: 1 is honoured: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn one_rejection_of_any_kind_does_not_end_streaming_lists() {
    for rejection in [
        "errors/bad-token-watch",
        "errors/forbidden-watch",
        "errors/too-many-fair-stream",
        "starting/node-stream-1",
    ] {
        let (follower, _) = check(&[
            (STREAMING, rejection),
            (STREAMING, rejection),
            (STREAMING, "watch/ends-5s-stream"),
            ("&allowWatchBookmarks=true&resourceVersion=235", "watch/rv-gone"),
            ("&resourceVersion=235", rejection),
            (
                "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=235",
                "watch/ends-5s-stream",
            ),
        ])
        .await;
        assert!(follower.is_listed, "{rejection}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_etcd_the_state_comes_from_the_servers_memory() {
    let (follower, times) = check(&[
        (STREAMING, "etcd-stopped/services-stream"),
        (FROM_MEMORY, "etcd-stopped/services-list-rv0"),
    ])
    .await;
    assert!(follower.is_listed && !follower.names.is_empty());
    assert!(times[1] < Duration::from_secs(22), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_the_server_aborts_is_requested_again() {
    let (follower, times) = check(&[
        (STREAMING, "etcd34/services-stream-refused"),
        // 504 after a minute, as plain text.
        (FROM_MEMORY, "etcd-stopped/service-get"),
        (FROM_MEMORY, "etcd-stopped/services-list-limit"),
        (FROM_MEMORY, "etcd34/services-list"),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(times[4] < Duration::from_secs(123), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_the_server_has_not_reached_is_not_requested_again() {
    // etcd was restored from a backup: existing objects have lower versions, and are accepted.
    check(&[
        (STREAMING, "watch/ends-5s-stream"),
        ("&resourceVersion=235", "watch/rv-gone"),
        ("NotOlderThan&resourceVersion=235", "watch/stream-rv-future"),
        (STREAMING, "watch/ends-5s-stream"),
    ])
    .await;
    // Likewise in a plain list.
    check(&[
        (STREAMING, "etcd34/services-stream-refused"),
        (FROM_MEMORY, "etcd34/services-list"),
        ("&resourceVersion=68", "watch/rv-gone"),
        ("&resourceVersion=68&resourceVersionMatch=NotOlderThan", "list/rv-future"),
        ("service-proxy-name", "etcd34/services-list"),
    ])
    .await;
}
