//! Tests of requests in simulated time.

use std::convert::Infallible;
use std::sync::Mutex;

use axum::body::Body as AxumBody;
use kube::Client;
use tower::ServiceBuilder;

use super::*;
use crate::log::tests::logged;
use crate::watch::api::Connection;

const LIMIT: RequestLimit = RequestLimit { qps: Some(5.0), burst: 10 };
const UNLIMITED: RequestLimit = RequestLimit { qps: None, burst: 10 };

/// Records what an observer receives.
#[derive(Default)]
struct RecordedTraffic(Mutex<Vec<String>>);

impl TrafficObserver for RecordedTraffic {
    fn request_finished(&self, exchange: &Exchange<'_>) {
        let Exchange { method, host, code, rate_limited_for, elapsed, n_bytes } = exchange;
        let (rate_limited_for, elapsed) = (rate_limited_for.as_millis(), elapsed.as_millis());
        self.record(format!(
            "{method} {host} {code:?} limited {rate_limited_for} took {elapsed} sent {n_bytes}"
        ));
    }

    fn body_received(&self, method: &str, host: &str, n_bytes: u64) {
        self.record(format!("{method} {host} received {n_bytes}"));
    }

    fn watch_restarted(&self, plural: &str) {
        self.record(format!("{plural} restarted"));
    }
}

impl RecordedTraffic {
    fn record(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A client of a server that responds with `status` and `body` to every request after `delay`.
fn client(
    limit: RequestLimit,
    observer: Arc<dyn TrafficObserver>,
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

/// Requests `path` again and again for `time`; returns how often.
async fn request_repeatedly(client: &Client, path: &str, time: Duration) -> u32 {
    let mut n = 0;
    let asking = async {
        loop {
            // Reads to the end, as a follower does.
            client.request_text(request(path)).await.unwrap();
            n += 1;
        }
    };
    assert!(tokio::time::timeout(time, asking).await.is_err());
    n
}

#[tokio::test(start_paused = true)]
async fn requests_stay_within_burst_and_qps() {
    let minute = Duration::from_secs(60);
    for (qps, burst, expected) in [(5.0, 10, 310), (0.5, 1, 31), (50.0, 100, 3100), (2000.0, 10, 120_010)] {
        let limit = RequestLimit { qps: Some(qps), burst };
        let client = client(limit, Arc::new(()), 200, "{}", Duration::ZERO);
        let n = request_repeatedly(&client, "/version", minute).await;
        assert!(n <= expected && f64::from(n) > 0.9 * f64::from(expected), "{qps} {burst}: {n}");
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_limits_are_accepted() {
    for (qps, burst) in [(f32::MIN_POSITIVE, 0), (1e-30, 1), (f32::MAX, u32::MAX), (f32::INFINITY, 1)] {
        let limit = RequestLimit { qps: Some(qps), burst };
        let client = client(limit, Arc::new(()), 200, "{}", Duration::from_millis(1));
        assert!(request_repeatedly(&client, "/version", Duration::from_secs(1)).await > 0, "{qps}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_no_request_waits() {
    let client = client(UNLIMITED, Arc::new(()), 200, "{}", Duration::from_millis(1));
    assert!(request_repeatedly(&client, "/version", Duration::from_secs(1)).await > 900);
}

#[tokio::test(start_paused = true)]
async fn watches_that_end_at_once_are_requested_after_growing_delays() {
    let client = client(UNLIMITED, Arc::new(()), 200, "", Duration::ZERO);
    let n = request_repeatedly(&client, "/api/v1/services?watch=true", Duration::from_secs(600)).await;
    // 4 s apart on average.
    assert!((100..220).contains(&n), "{n} in 10 minutes");
    let begun = Instant::now();
    client.request_text(request("/api/v1/nodes?watch=true")).await.unwrap();
    client.request_text(request("/api/v1/services")).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "other requests do not wait");
}

#[tokio::test(start_paused = true)]
async fn a_watch_with_an_event_is_requested_again_at_once() {
    let client = client(UNLIMITED, Arc::new(()), 200, "{}\n", Duration::from_millis(1));
    assert!(request_repeatedly(&client, "/api/v1/services?watch=true", Duration::from_secs(1)).await > 900);
}

#[tokio::test(start_paused = true)]
async fn every_request_is_reported() {
    let recorded = Arc::new(RecordedTraffic::default());
    let limit = RequestLimit { qps: Some(1.0), burst: 1 };
    let client = client(limit, recorded.clone(), 200, "{}\n", Duration::from_millis(30));
    client.request_text(request("/version")).await.unwrap();
    let event = Request::post("/api/v1/namespaces/default/events").body(b"{\"kind\": 1}".to_vec()).unwrap();
    client.request_text(event).await.unwrap();
    let host = "api.test:443";
    assert_eq!(
        recorded.take(),
        [
            format!("GET {host} Some(200) limited 0 took 30 sent 0"),
            format!("GET {host} received 3"),
            format!("POST {host} Some(200) limited 970 took 30 sent 11"),
            format!("POST {host} received 3"),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_response_has_no_code() {
    let recorded = Arc::new(RecordedTraffic::default());
    let service = tower::service_fn(|_: Request<Body>| async { Err::<Response<AxumBody>, _>("refused") });
    let client = Connection::to(
        ServiceBuilder::new().map_err(BoxError::from).service(service),
        LIMIT,
        recorded.clone(),
    );
    client.client.request_text(request("/api/v1/services?watch=true")).await.unwrap_err();
    let expected = ["GET api.test:443 None limited 0 took 0 sent 0", "services restarted"];
    assert_eq!(recorded.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_watch_restarts_when_it_is_rejected_or_ends_early() {
    for (status, lasts, expected) in [(200, 200, 0), (200, 100, 1), (500, 0, 1)] {
        let recorded = Arc::new(RecordedTraffic::default());
        let service = tower::service_fn(move |_: Request<Body>| async move {
            let body = futures::stream::once(async move {
                tokio::time::sleep(Duration::from_secs(lasts)).await;
                Ok::<_, Infallible>("")
            });
            let body = AxumBody::from_stream(body);
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        });
        let client = Connection::to(service, LIMIT, recorded.clone()).client;
        let watch = request("/apis/discovery.k8s.io/v1/endpointslices?watch=true&timeoutSeconds=200");
        assert_eq!(client.request_text(watch).await.is_ok(), status == 200);
        let n = recorded.take().iter().filter(|line| *line == "endpointslices restarted").count();
        assert_eq!(n, expected, "{status}, {lasts} s");
    }
}

#[tokio::test(start_paused = true)]
async fn missing_stalled_and_endless_responses_are_errors() {
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
    assert!(text.contains("no response within 75 s") && took == HEADERS_TIMEOUT, "{text} {took:?}");
    let (text, took) = ask(|| {
        let first = futures::stream::iter([Ok::<_, Infallible>("{")]);
        let body = AxumBody::from_stream(futures::StreamExt::chain(first, futures::stream::pending()));
        Some(Response::new(body))
    })
    .await;
    assert!(text.contains("stalled") && took < HEADERS_TIMEOUT, "{text} {took:?}");
    let (text, _) = ask(|| {
        let endless = futures::stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 4096]));
        Some(Response::builder().status(500).body(AxumBody::from_stream(endless)).unwrap())
    })
    .await;
    assert!(text.contains("more than 1048576 bytes"), "{text}");
}

#[test]
fn each_request_is_logged_from_verbosity_6_on() {
    let send = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let send = async {
            let client = client(UNLIMITED, Arc::new(()), 403, "{}", Duration::from_millis(20));
            client.request_text(request("/api/v1/nodes?limit=1")).await.unwrap_err()
        };
        runtime.unwrap().block_on(send);
    };
    let text = logged(false, 6, &[], send);
    let (_, line) = text.split_once("] \"sent request\" method=\"GET\" url=\"").expect("the line");
    assert!(line.contains("/api/v1/nodes?limit=1\" status=403 elapsed_ms=20\n"), "{line}");
    assert_eq!(logged(false, 5, &[], send), "");
}
