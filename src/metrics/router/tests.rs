//! Answers of the metrics server compared with recorded answers of kube-proxy.
#![allow(clippy::disallowed_methods, reason = "the start time of a process")]

use tower::ServiceExt;

use super::*;
use crate::http::recorded;
use crate::metrics::Metrics;
use crate::metrics::pages::{PageForm, accepted_form};

const FLAGS: &str = include_str!("../../../testdata/http/flagz.txt");

fn pages() -> Pages {
    Pages {
        configz: r#"{"kubeproxy.config.k8s.io":{}}"#.to_owned(),
        flags: Some(vec![("bind-address", "0.0.0.0".to_owned()), ("v", "2".to_owned())]),
        has_statusz: true,
        is_profiling: false,
        set_verbosity: |text| Err(text.to_owned()),
        services: None,
        started: (std::time::Instant::now(), std::time::SystemTime::now()),
    }
}

fn served(pages: Pages) -> Router {
    let registry = Registry::new();
    Metrics::register(&registry).unwrap();
    router(registry, pages)
}

/// Status, headers and body of the answer to `request`, which is `METHOD PATH` and headers.
async fn ask(router: &Router, request: &str) -> recorded::RecordedAnswer {
    recorded::ask(router, request).await
}

#[tokio::test]
async fn answers_are_those_of_kube_proxy() {
    let router = served(pages());
    for (request, recorded) in [
        ("GET /healthz", include_str!("../../../testdata/http/metrics-port-healthz.txt")),
        ("GET /livez", include_str!("../../../testdata/http/metrics-port-livez.txt")),
        ("GET /logs", include_str!("../../../testdata/http/metrics-port-logs.txt")),
        ("GET /", include_str!("../../../testdata/http/metrics-port-root.txt")),
        ("GET /debug/pprof/", include_str!("../../../testdata/http/debug-pprof.txt")),
        ("GET /proxyMode", include_str!("../../../testdata/http/proxyMode.txt")),
        ("POST /proxyMode", include_str!("../../../testdata/http/proxyMode-post.txt")),
    ] {
        assert_eq!(ask(&router, request).await, recorded::RecordedAnswer::read(recorded), "{request}");
    }
    let configz = ask(&router, "GET /configz").await;
    let recorded = recorded::RecordedAnswer::read(include_str!("../../../testdata/http/configz.txt"));
    assert_eq!((configz.status, &configz.headers), (recorded.status, &recorded.headers));
    assert_eq!(configz.body, pages().configz);
}

#[tokio::test]
async fn metrics_have_kube_proxys_headers_and_are_compressed_on_request() {
    let router = served(pages());
    let recorded = recorded::RecordedAnswer::read(include_str!("../../../testdata/http/metrics-headers.txt"));
    let plain = ask(&router, "GET /metrics").await;
    assert_eq!(plain.status, 200);
    for name in recorded.headers.keys().filter(|name| *name != "transfer-encoding") {
        assert!(plain.headers.contains_key(name), "{name}");
    }
    assert_eq!(plain.headers["content-type"], recorded.headers["content-type"]);
    let started: f64 = plain.headers["process-start-time-unix"].parse().unwrap();
    assert!(plain.body.contains("\nprocess_start_time_seconds ") && started > 1.7e9);
    let packed = ask(&router, "GET /metrics\naccept-encoding: gzip").await;
    assert_eq!((packed.status, packed.headers["content-encoding"].as_str()), (200, "gzip"));
}

#[tokio::test]
async fn services_are_counted_only_where_the_configuration_says_so() {
    let off = ask(&served(pages()), "GET /metrics/services").await;
    assert_eq!(off.status, 404);
    assert!(off.body.contains("chainsmith.connectionMetrics"), "{}", off.body);
    let read: crate::metrics::ReadServices = Arc::new(|| Box::pin(async { Default::default() }));
    let router = served(Pages { services: Some(read), ..pages() });
    let on = ask(&router, "GET /metrics/services").await;
    assert_eq!((on.status, &*on.headers["content-type"]), (200, EXPOSITION.to_str().unwrap()));
    let status = ask(&router, "GET /statusz").await;
    assert!(status.body.contains(" /metrics/services "), "{}", status.body);
}

#[tokio::test]
async fn flags_are_a_page_or_an_object() {
    let router = served(pages());
    let page = ask(&router, "GET /flagz").await;
    let recorded = recorded::RecordedAnswer::read(FLAGS);
    assert_eq!((page.status, &page.headers), (200, &recorded.headers));
    let heading: Vec<&str> = recorded.body.split_inclusive('\n').take(3).collect();
    assert_eq!(page.body, format!("{}bind-address:0.0.0.0\nv:2\n", heading.concat()));
    let asked = "accept: application/json;v=v1beta1;g=config.k8s.io;as=Flagz";
    let object = ask(&router, &format!("GET /flagz\n{asked}")).await;
    assert_eq!(object.headers["content-type"], "application/json");
    let object: serde_json::Value = serde_json::from_str(&object.body).unwrap();
    let expected = serde_json::json!({
        "kind": "Flagz", "apiVersion": "config.k8s.io/v1beta1", "metadata": {"name": "kube-proxy"},
        "flags": {"bind-address": "0.0.0.0", "v": "2"},
    });
    assert_eq!(object, expected);
    let old = ask(&router, &format!("GET /flagz\n{}", asked.replace("v1beta1", "v1alpha1"))).await;
    assert!(old.headers["warning"].starts_with("299 "), "{old:?}");
    assert_eq!(ask(&router, "GET /flagz\naccept: application/json").await.status, 406);
}

#[tokio::test]
async fn status_is_a_page_or_an_object() {
    let router = served(pages());
    let page = ask(&router, "GET /statusz").await;
    let recorded = recorded::RecordedAnswer::read(include_str!("../../../testdata/http/statusz.txt"));
    assert_eq!((page.status, &page.headers), (200, &recorded.headers));
    let labels = |body: &str| -> Vec<String> {
        body.lines().map(|line| line.split_once(": ").map_or(line, |(label, _)| label).to_owned()).collect()
    };
    assert_eq!(labels(&page.body), labels(&recorded.body));
    let last = |body: &str| body.lines().last().map(str::to_owned);
    assert_eq!(last(&page.body), last(&recorded.body), "the paths");
    let asked = "accept: application/yaml;v=v1beta1;g=config.k8s.io;as=Statusz";
    let object = ask(&router, &format!("GET /statusz\n{asked}")).await;
    assert!(
        object.body.contains("uptimeSeconds: 0\n") && object.body.contains("kind: Statusz\n"),
        "{object:?}"
    );
}

#[tokio::test]
async fn pages_behind_gates_are_not_served_without_them() {
    let router = served(Pages { flags: None, has_statusz: false, ..pages() });
    for path in ["/flagz", "/statusz"] {
        assert_eq!(ask(&router, &format!("GET {path}")).await.status, 404);
    }
}

#[tokio::test]
async fn profiles_are_answered_501() {
    let router = served(Pages { is_profiling: true, ..pages() });
    for request in ["GET /debug/pprof", "GET /debug/pprof/", "GET /debug/pprof/heap"] {
        assert_eq!(ask(&router, request).await.status, 501, "{request}");
    }
}

#[tokio::test]
async fn the_verbosity_of_the_log_is_put_and_only_with_profiling() {
    let set_verbosity =
        |text: &str| if text == "4" { Ok("set".to_owned()) } else { Err(format!("no: {text}")) };
    let router = served(Pages { is_profiling: true, set_verbosity, ..pages() });
    let put = async |body: String| {
        let request = axum::http::Request::put("/debug/flags/v").body(Body::from(body)).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(put("4".to_owned()).await, (200, "set\n".to_owned()));
    assert_eq!(put("x".to_owned()).await, (400, "no: x\n".to_owned()));
    let (status, message) = put("4".repeat(65)).await;
    assert!(status == 400 && message.starts_with("error reading request body: "), "{status} {message}");
    for method in ["GET", "POST", "DELETE"] {
        let refused = ask(&router, &format!("{method} /debug/flags/v")).await;
        assert_eq!((refused.status, refused.body.as_str()), (406, "unsupported http method\n"));
    }
    for path in ["/debug/flags", "/debug/flags/"] {
        assert!(ask(&router, &format!("GET {path}")).await.body.contains("/debug/flags/v"));
        assert_eq!(ask(&served(pages()), &format!("GET {path}")).await.status, 404);
    }
    assert_eq!(ask(&served(pages()), "PUT /debug/flags/v").await.status, 404);
}

#[tokio::test]
async fn health_of_the_server_has_a_verbose_form_and_is_counted() {
    let router = served(pages());
    let slis = ask(&router, "GET /metrics/slis").await.body;
    assert!(
        slis.contains("process_start_time_seconds") && !slis.contains("kubernetes_healthcheck"),
        "{slis}"
    );
    let body = async |request| ask(&router, request).await.body;
    assert_eq!(body("GET /healthz?verbose").await, "[+]ping ok\nhealthz check passed\n");
    let excluded = "[+]ping excluded: ok\nhealthz check passed\n";
    assert_eq!(body("GET /healthz?verbose&exclude=ping").await, excluded);
    assert_eq!(body("GET /healthz/ping").await, "ok");
    let slis = body("GET /metrics/slis").await;
    assert!(
        slis.contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n")
    );
    assert_eq!(body("DELETE /metrics/slis").await, "metrics reset\n");
    assert!(!body("GET /metrics/slis").await.contains("kubernetes_healthchecks_total"));
}

#[test]
fn accept_selects_the_form_of_a_page() {
    let object = |is_yaml, version| Some(PageForm::Object { is_yaml, version });
    for (accept, expected) in [
        ("", Some(PageForm::Text)),
        ("*/*", Some(PageForm::Text)),
        ("text/html, text/plain;q=0.5", Some(PageForm::Text)),
        ("application/json;v=v1beta1;g=config.k8s.io;as=Flagz", object(false, "v1beta1")),
        ("application/yaml; as=Flagz; g=config.k8s.io; v=v1alpha1", object(true, "v1alpha1")),
        ("application/json", None),
        ("application/json;v=v2;g=config.k8s.io;as=Flagz", None),
        ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", None),
        ("application/json;v=v1beta1;g=other;as=Flagz", None),
        ("application/cbor;v=v1beta1;g=config.k8s.io;as=Flagz", None),
        ("image/png", None),
    ] {
        assert_eq!(accepted_form(accept, "Flagz"), expected, "{accept:?}");
    }
}
