//! Requests in simulated time.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::body::Body as AxumBody;
use kube::Client;
use tower::ServiceBuilder;

use super::*;
use crate::watch::api::Connection;

const LIMIT: Limit = Limit { qps: Some(5.0), burst: 10 };
const UNLIMITED: Limit = Limit { qps: None, burst: 10 };

/// Notes what it is told.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Observer for Notes {
    fn answered(&self, exchange: &Exchange<'_>) {
        let Exchange { method, host, code, held_back, elapsed, n_bytes } = exchange;
        let (held_back, elapsed) = (held_back.as_millis(), elapsed.as_millis());
        self.note(format!("{method} {host} {code:?} held back {held_back} took {elapsed} sent {n_bytes}"));
    }

    fn received(&self, method: &str, host: &str, n_bytes: u64) {
        self.note(format!("{method} {host} received {n_bytes}"));
    }

    fn watch_restarted(&self, plural: &str) {
        self.note(format!("{plural} again"));
    }
}

impl Notes {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A client of a server that answers `status` and `body` to everything after `delay`.
fn client(
    limit: Limit,
    observer: Arc<dyn Observer>,
    status: u16,
    body: &'static str,
    delay: Duration,
) -> Client {
    let service = tower::service_fn(move |_: Request<Body>| async move {
        tokio::time::sleep(delay).await;
        Ok::<_, Infallible>(Response::builder().status(status).body(AxumBody::from(body)).unwrap())
    });
    Connection::to(service, limit, observer).client
}

fn request(text: &str) -> Request<Vec<u8>> {
    Request::get(text).body(Vec::new()).unwrap()
}

/// Asks for `path` again and again for `time`; how often.
async fn ask_for(client: &Client, path: &str, time: Duration) -> u32 {
    let mut n = 0;
    let asking = async {
        loop {
            // Read to its end, as a watcher does.
            client.request_text(request(path)).await.unwrap();
            n += 1;
        }
    };
    assert!(tokio::time::timeout(time, asking).await.is_err());
    n
}

#[tokio::test(start_paused = true)]
async fn requests_keep_to_burst_and_qps() {
    let minute = Duration::from_secs(60);
    for (qps, burst, expected) in [(5.0, 10, 310), (0.5, 1, 31), (50.0, 100, 3100), (2000.0, 10, 120_010)] {
        let limit = Limit { qps: Some(qps), burst };
        let client = client(limit, Arc::new(()), 200, "{}", Duration::ZERO);
        let n = ask_for(&client, "/version", minute).await;
        assert!(n <= expected && f64::from(n) > 0.9 * f64::from(expected), "{qps} {burst}: {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn absurd_limits_are_limits() {
    for (qps, burst) in [(f32::MIN_POSITIVE, 0), (1e-30, 1), (f32::MAX, u32::MAX), (f32::INFINITY, 1)] {
        let limit = Limit { qps: Some(qps), burst };
        let client = client(limit, Arc::new(()), 200, "{}", Duration::from_millis(1));
        assert!(ask_for(&client, "/version", Duration::from_secs(1)).await > 0, "{qps}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nobody_waits() {
    let client = client(UNLIMITED, Arc::new(()), 200, "{}", Duration::from_millis(1));
    assert!(ask_for(&client, "/version", Duration::from_secs(1)).await > 900);
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_begun_after_longer_and_longer_pauses() {
    let client = client(UNLIMITED, Arc::new(()), 200, "", Duration::ZERO);
    let n = ask_for(&client, "/api/v1/services?watch=true", Duration::from_secs(600)).await;
    // 4 s apart in the mean.
    assert!((100..220).contains(&n), "{n} in 10 minutes");
    let begun = Instant::now();
    client.request_text(request("/api/v1/nodes?watch=true")).await.unwrap();
    client.request_text(request("/api/v1/services")).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "others do not wait");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_brings_something_is_begun_again_at_once() {
    let client = client(UNLIMITED, Arc::new(()), 200, "{}\n", Duration::from_millis(1));
    assert!(ask_for(&client, "/api/v1/services?watch=true", Duration::from_secs(1)).await > 900);
}

#[tokio::test(start_paused = true)]
async fn every_request_is_told_of() {
    let notes = Arc::new(Notes::default());
    let limit = Limit { qps: Some(1.0), burst: 1 };
    let client = client(limit, notes.clone(), 200, "{}\n", Duration::from_millis(30));
    client.request_text(request("/version")).await.unwrap();
    let event = Request::post("/api/v1/namespaces/default/events").body(b"{\"kind\": 1}".to_vec()).unwrap();
    client.request_text(event).await.unwrap();
    let host = "api.test:443";
    assert_eq!(
        notes.take(),
        [
            format!("GET {host} Some(200) held back 0 took 30 sent 0"),
            format!("GET {host} received 3"),
            format!("POST {host} Some(200) held back 970 took 30 sent 11"),
            format!("POST {host} received 3"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_has_no_code() {
    let notes = Arc::new(Notes::default());
    let service = tower::service_fn(|_: Request<Body>| async { Err::<Response<AxumBody>, _>("refused") });
    let client =
        Connection::to(ServiceBuilder::new().map_err(BoxError::from).service(service), LIMIT, notes.clone());
    client.client.request_text(request("/api/v1/services?watch=true")).await.unwrap_err();
    let expected = ["GET api.test:443 None held back 0 took 0 sent 0", "services again"];
    assert_eq!(notes.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_watch_restarts_when_it_is_refused_or_ends_before_its_time() {
    for (status, lasts, expected) in [(200, 200, 0), (200, 100, 1), (500, 0, 1)] {
        let notes = Arc::new(Notes::default());
        let service = tower::service_fn(move |_: Request<Body>| async move {
            let body = futures::stream::once(async move {
                tokio::time::sleep(Duration::from_secs(lasts)).await;
                Ok::<_, Infallible>("")
            });
            let body = AxumBody::from_stream(body);
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        });
        let client = Connection::to(service, LIMIT, notes.clone()).client;
        let watch = request("/apis/discovery.k8s.io/v1/endpointslices?watch=true&timeoutSeconds=200");
        assert_eq!(client.request_text(watch).await.is_ok(), status == 200);
        let n = notes.take().iter().filter(|note| *note == "endpointslices again").count();
        assert_eq!(n, expected, "{status}, {lasts} s");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_do_not_come_or_stand_still_or_do_not_end_are_errors() {
    let ask = |answer: fn() -> Option<Response<AxumBody>>| async move {
        let service = tower::service_fn(move |_: Request<Body>| async move {
            match answer() {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => std::future::pending().await,
            }
        });
        let client = Connection::to(service, LIMIT, Arc::new(())).client;
        let begun = Instant::now();
        let error = client.request_text(request("/api/v1/services?resourceVersion=0")).await.unwrap_err();
        let text = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        (text.map(ToString::to_string).collect::<String>(), begun.elapsed())
    };
    let (text, took) = ask(|| None).await;
    assert!(text.contains("no answer within 75 s") && took == HEAD, "{text} {took:?}");
    let (text, took) = ask(|| {
        let first = futures::stream::iter([Ok::<_, Infallible>("{")]);
        let body = AxumBody::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
        Some(Response::new(body))
    })
    .await;
    assert!(text.contains("stood still") && took < HEAD, "{text} {took:?}");
    let (text, _) = ask(|| {
        let endless = futures::stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 4096]));
        Some(Response::builder().status(500).body(AxumBody::from_stream(endless)).unwrap())
    })
    .await;
    assert!(text.contains("more than 1048576 bytes"), "{text}");
}
