//! Bodies and headers compared with recorded answers of kube-proxy.

use std::time::Duration;

use prometheus::Registry;

use super::*;
use crate::http::recorded::{RecordedAnswer, ask};
use crate::metrics::exposition;
use crate::net::IpFamily;

const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// A proxy whose families have no waiting changes, on a Node that is not leaving.
fn healthy() -> Arc<Health> {
    let health = Health::new(SYNC_PERIOD, true);
    health.state().set_node_leaving(false);
    for family in IpFamily::BOTH {
        health.state().updated(family, Moment::now());
    }
    Arc::new(health)
}

fn served(health: &Arc<Health>) -> (Router, Registry) {
    let registry = Registry::new();
    let metrics = Arc::new(Metrics::register(&registry).unwrap());
    (router(health.clone(), metrics), registry)
}

/// The body with each time replaced by `T`.
fn without_times(body: &str) -> String {
    let mut parts: Vec<String> = body.split('"').map(str::to_owned).collect();
    for part in &mut parts {
        if part.ends_with('Z') && part.parse::<Timestamp>().is_ok() {
            *part = "T".to_owned();
        }
    }
    parts.join("\"")
}

fn comparable(answer: RecordedAnswer) -> RecordedAnswer {
    RecordedAnswer { body: without_times(&answer.body), ..answer }
}

fn recorded(text: &str) -> RecordedAnswer {
    comparable(RecordedAnswer::read(text.trim_end()))
}

#[tokio::test]
async fn answers_are_those_of_kube_proxy() {
    let health = healthy();
    let (router, _) = served(&health);
    for (request, file) in [
        ("GET /healthz", include_str!("../../../testdata/http/healthz.txt")),
        ("GET /healthz?verbose", include_str!("../../../testdata/http/healthz-first-answer.txt")),
        ("POST /healthz", include_str!("../../../testdata/http/healthz-post.txt")),
        ("HEAD /healthz", include_str!("../../../testdata/http/healthz-head.txt")),
        ("GET /livez", include_str!("../../../testdata/http/livez.txt")),
        ("GET /", include_str!("../../../testdata/http/healthz-port-root.txt")),
        ("GET /readyz", include_str!("../../../testdata/http/readyz.txt")),
    ] {
        let ours = comparable(ask(&router, request).await);
        let expected = recorded(file);
        assert_eq!((ours.status, &ours.headers), (expected.status, &expected.headers), "{request}");
        assert_eq!(ours.body.trim_end(), expected.body.trim_end(), "{request}");
    }
    health.state().set_node_leaving(true);
    for (request, file) in [
        ("GET /healthz", include_str!("../../../testdata/http/healthz-node-to-be-deleted.txt")),
        ("GET /livez", include_str!("../../../testdata/http/livez-node-to-be-deleted.txt")),
    ] {
        assert_eq!(comparable(ask(&router, request).await), recorded(file), "{request}");
    }
}

#[tokio::test]
async fn before_the_loop_starts_there_is_no_status_and_an_unseen_node_is_not_eligible() {
    let (router, _) = served(&Arc::new(Health::new(SYNC_PERIOD, true)));
    let livez = ask(&router, "GET /livez").await;
    let expected = r#"{"lastUpdated":"T","currentTime":"T","healthy":true}"#;
    assert_eq!((livez.status, without_times(&livez.body).as_str()), (200, expected));
    let healthz = ask(&router, "GET /healthz").await;
    assert!(healthz.body.starts_with(r#"{"lastUpdated":"0001-01-01T00:00:00Z","#), "{}", healthz.body);
    let expected = r#"{"lastUpdated":"T","currentTime":"T","nodeEligible":false,"healthy":true}"#;
    assert_eq!((healthz.status, without_times(&healthz.body).as_str()), (503, expected));
}

#[tokio::test]
async fn an_unhealthy_family_is_shown_and_requests_are_counted() {
    let health = healthy();
    let (router, registry) = served(&health);
    let long_ago = Moment::now().earlier_by(SYNC_PERIOD * 2);
    health.state().queued(IpFamily::V6, long_ago);
    for (path, node) in [("/livez", ""), ("/healthz", r#""nodeEligible":true,"#)] {
        let answer = ask(&router, &format!("GET {path}")).await;
        let expected = format!(
            r#"{{"lastUpdated":"T","currentTime":"T",{node}"healthy":false,"status":{{"IPv4":{{"lastUpdated":"T","healthy":true}},"IPv6":{{"lastUpdated":"T","healthy":false}}}}}}"#
        );
        assert_eq!((answer.status, without_times(&answer.body)), (503, expected));
    }
    health.state().updated(IpFamily::V6, Moment::now());
    assert_eq!(ask(&router, "GET /healthz").await.status, 200);
    let text = exposition(&registry).unwrap();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1\n",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1\n",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[tokio::test]
async fn a_sync_that_does_not_end_is_unhealthy_after_the_first_sync() {
    use crate::sync::Observer;
    // No change may wait at all.
    let health = Arc::new(Health::new(Duration::ZERO, false));
    let (router, _) = served(&health);
    let mut statuses = Vec::new();
    health.started(&[IpFamily::V4]);
    for _ in 0..2 {
        health.syncing(IpFamily::V4);
        statuses.push(ask(&router, "GET /healthz").await.status);
        health.state().updated(IpFamily::V4, Moment::now());
        statuses.push(ask(&router, "GET /livez").await.status);
    }
    assert_eq!(statuses, [200, 200, 503, 200]);
}

#[test]
fn times_have_the_digits_that_they_need() {
    let at = |nanos| Some(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos));
    let digits = |nanos| time(at(nanos)).trim_start_matches("1970-01-01T").to_owned();
    if TimeZone::system().to_offset(Timestamp::UNIX_EPOCH).seconds() == 0 {
        assert_eq!(digits(0), "00:00:00Z");
        assert_eq!(digits(1_500_000_000), "00:00:01.5Z");
        assert_eq!(digits(25_935_165_830), "00:00:25.93516583Z");
    }
    assert_eq!(time(None), NEVER);
}

#[tokio::test]
async fn watches_that_are_stale_are_shown_and_change_no_status() {
    let health = Health::new(SYNC_PERIOD, false).showing(Box::new(|| vec![("Service", 2 * SYNC_PERIOD)]));
    let (router, _) = served(&Arc::new(health));
    let answer = ask(&router, "GET /healthz").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with(r#""healthy":true,"staleWatches":{"Service":60}}"#), "{}", answer.body);
    assert!(!ask(&router, "GET /livez").await.body.contains("stale"));
}
