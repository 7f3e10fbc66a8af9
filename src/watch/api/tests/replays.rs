//! Recorded answers of a real API server, at the times at which they came.

#![allow(clippy::disallowed_methods, reason = "reads recordings")]

use std::collections::VecDeque;
use std::sync::Mutex;

use http::Response;
use kube::client::Body as KubeBody;
use tower::BoxError;

use super::outage::{Follower, LIMIT, MINUTE};
use super::*;

/// What one request is expected to ask for, and the recorded answer.
type Step = (&'static str, &'static str);

/// A server that answers requests about Services by a script, and never ends the last answer.
#[derive(Clone)]
struct Replay {
    script: Arc<Mutex<VecDeque<Step>>>,
    /// When the requests about Services came.
    asked: Arc<Mutex<Vec<Duration>>>,
    restarts: Arc<Mutex<Vec<String>>>,
}

impl Observer for Replay {
    fn watch_restarted(&self, plural: &str) {
        self.restarts.lock().unwrap().push(plural.to_owned());
    }
}

/// One recorded answer.
struct Recording {
    status: u16,
    retry_after: Option<String>,
    head: Duration,
    /// When each piece of the body came, and when it ended.
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
    assert!(about["end"].as_str().unwrap().starts_with("end of body"), "{name} ends in order");
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
        head: milliseconds("head_ms"),
        pieces,
        end: milliseconds("end_ms"),
    }
}

async fn play(recording: Recording) -> Result<Response<Body>, BoxError> {
    let begun = Instant::now();
    tokio::time::sleep(recording.head).await;
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

fn follow_script(script: &[Step]) -> (Follower, Replay) {
    let replay = Replay {
        script: Arc::new(Mutex::new(script.iter().copied().collect())),
        asked: Arc::default(),
        restarts: Arc::default(),
    };
    let (server, begun) = (replay.clone(), Instant::now());
    let service = tower::service_fn(move |request: http::Request<KubeBody>| {
        let uri = request.uri().to_string();
        let step = (request.uri().path() == "/api/v1/services").then(|| {
            server.asked.lock().unwrap().push(begun.elapsed());
            server.script.lock().unwrap().pop_front()
        });
        async move {
            match step {
                Some(Some((expected, name))) => {
                    // An empty version is none.
                    let asked = uri.trim_end_matches("&resourceVersion=");
                    assert!(asked.ends_with(expected), "{asked} does not end in {expected}, for {name}");
                    play(recording(name)).await
                }
                Some(None) => std::future::pending().await,
                // Another kind, of which there is nothing.
                None => {
                    let first = futures::stream::iter([Ok::<_, BoxError>(format!("{}\n", list_end()))]);
                    Ok(Response::new(Body::from_stream(first.chain(futures::stream::pending()))))
                }
            }
        }
    });
    (Follower::over(Connection::to(service, LIMIT, Arc::new(replay.clone()))), replay)
}

/// Follows the script to its end; when each of its requests, and the one after it, came.
async fn check(script: &[Step]) -> (Follower, Vec<Duration>) {
    let (mut follower, replay) = follow_script(script);
    while replay.asked.lock().unwrap().len() <= script.len() {
        follower.step(Duration::from_secs(1)).await;
        assert!(Instant::now().elapsed() < 100 * MINUTE);
    }
    let asked = replay.asked.lock().unwrap().clone();
    while follower.step(Duration::from_millis(1)).await {}
    (follower, asked)
}

const STREAMING: &str = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
const FROM_MEMORY: &str = "&resourceVersion=0&resourceVersionMatch=NotOlderThan";

#[tokio::test(start_paused = true)]
async fn a_refusal_inside_the_stream_is_followed_by_a_plain_list_at_once() {
    let (follower, asked) = check(&[
        (STREAMING, "etcd34/services-stream-refused"),
        (FROM_MEMORY, "etcd34/services-list"),
        ("&allowWatchBookmarks=true&resourceVersion=68", "etcd34/services-watch"),
    ])
    .await;
    assert!(follower.is_listed && !follower.names.is_empty());
    assert!(asked[2] < Duration::from_millis(200), "{asked:?}");
    assert!(asked[3] >= Duration::from_secs(300), "silent for minutes, and not asked again: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_after_its_time_goes_on_from_its_last_bookmark() {
    let (follower, asked) = check(&[
        (STREAMING, "watch/ends-5s-stream"),
        ("&allowWatchBookmarks=true&resourceVersion=235", "watch/rv-gone"),
        // Not older than what is known; the watch from it is refused, the list is not.
        (
            "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=235",
            "watch/ends-5s-stream",
        ),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(asked[1] < Duration::from_millis(5100), "no pause after an end in order: {asked:?}");
    assert!(asked[2] - asked[1] < Duration::from_secs(1), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_ends_watches_in_order_and_they_go_on_from_the_last_version() {
    let (follower, asked) = check(&[
        (STREAMING, "shutdown/services-stream"),
        ("&allowWatchBookmarks=true&resourceVersion=419", "errors/too-many-plain-list"),
        ("&allowWatchBookmarks=true&resourceVersion=419", "etcd34/services-watch"),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(asked[1] - Duration::from_secs(63) < Duration::from_secs(1), "{asked:?}");
    assert!(asked[2] - asked[1] >= Duration::from_secs(1), "Retry-After: 1 is kept: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn one_refusal_of_any_kind_does_not_end_streaming_lists() {
    for refusal in [
        "errors/bad-token-watch",
        "errors/forbidden-watch",
        "errors/too-many-fair-stream",
        "starting/node-stream-1",
    ] {
        let (follower, _) = check(&[
            (STREAMING, refusal),
            (STREAMING, refusal),
            (STREAMING, "watch/ends-5s-stream"),
            ("&allowWatchBookmarks=true&resourceVersion=235", "watch/rv-gone"),
            ("&resourceVersion=235", refusal),
            (
                "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=235",
                "watch/ends-5s-stream",
            ),
        ])
        .await;
        assert!(follower.is_listed, "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_etcd_the_state_comes_from_the_memory_of_the_server() {
    let (follower, asked) = check(&[
        (STREAMING, "etcd-stopped/services-stream"),
        (FROM_MEMORY, "etcd-stopped/services-list-rv0"),
    ])
    .await;
    assert!(follower.is_listed && !follower.names.is_empty());
    assert!(asked[1] < Duration::from_secs(22), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_the_server_gives_up_is_asked_for_again() {
    let (follower, asked) = check(&[
        (STREAMING, "etcd34/services-stream-refused"),
        // 504 after a minute, as text.
        (FROM_MEMORY, "etcd-stopped/service-get"),
        (FROM_MEMORY, "etcd-stopped/services-list-limit"),
        (FROM_MEMORY, "etcd34/services-list"),
    ])
    .await;
    assert!(follower.is_listed);
    assert!(asked[4] < Duration::from_secs(123), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_from_the_future_is_not_asked_for_again() {
    // etcd was restored from a backup: what is there has lower versions, and counts.
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
