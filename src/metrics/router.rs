//! The paths of the metrics server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use prometheus::Registry;
use tower_http::compression::CompressionLayer;

use super::exposition::exposition;
use super::pages::{self, Pages};
use super::process_metrics::start_time;
use super::service_metrics::service_exposition;
use crate::http::{JSON, TEXT, not_found, reply};

const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");

struct MetricsServer {
    registry: Registry,
    pages: Arc<Pages>,
    /// How many requests to this server's `/healthz` there were.
    n_healthz: AtomicU64,
}

/// Everything that is served on `metricsBindAddress`.
pub fn router(registry: Registry, pages: Pages) -> Router {
    let pages = Arc::new(pages);
    let mut router = Router::new()
        .route("/metrics", any(metrics).layer(CompressionLayer::new()))
        .route("/metrics/slis", any(slis))
        .route("/metrics/services", any(services).layer(CompressionLayer::new()))
        .route("/healthz", any(healthz))
        .route("/healthz/ping", any(|| async { reply(StatusCode::OK, TEXT, "ok") }))
        .route("/proxyMode", any(|| async { reply(StatusCode::OK, TEXT, "iptables") }))
        .route("/configz", any(configz));
    if pages.is_profiling {
        for path in ["/debug/pprof", "/debug/pprof/", "/debug/pprof/{*name}"] {
            router = router.route(path, any(no_profiles));
        }
        for path in ["/debug/flags", "/debug/flags/"] {
            router = router.route(path, any(async || ([(header::CONTENT_TYPE, HTML)], FLAGS_PAGE)));
        }
        router = router.route("/debug/flags/v", any(verbosity));
    }
    let pages_router = pages::routes(&pages);
    let server = MetricsServer { registry, pages, n_healthz: AtomicU64::new(0) };
    router.with_state(Arc::new(server)).merge(pages_router).fallback(not_found)
}

async fn metrics(State(server): State<Arc<MetricsServer>>) -> Response {
    let mut answer = match exposition(&server.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response(),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n")),
    };
    if let Some(seconds) = start_time() {
        answer.headers_mut().insert("Process-Start-Time-Unix", HeaderValue::from(seconds as u64));
    }
    answer
}

/// New connections by service port, if they are counted. Clients may come as often as they like: whoever keeps the counts
/// reads them once a second at most.
async fn services(State(server): State<Arc<MetricsServer>>) -> Response {
    let Some(read) = &server.pages.services else {
        let message =
            "connections are not counted; set chainsmith.connectionMetrics to service or endpoint\n";
        return reply(StatusCode::NOT_FOUND, TEXT, message);
    };
    match service_exposition(&read().await) {
        Ok(text) => ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response(),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n")),
    }
}

/// A registry of its own: the results of this server's `/healthz`. DELETE resets it.
async fn slis(State(server): State<Arc<MetricsServer>>, method: Method) -> Response {
    if method == Method::DELETE {
        server.n_healthz.store(0, Ordering::Relaxed);
        return reply(StatusCode::OK, TEXT, "metrics reset\n");
    }
    let mut text = String::new();
    let n_requests = server.n_healthz.load(Ordering::Relaxed);
    if n_requests > 0 {
        text += &format!(
            "# HELP kubernetes_healthcheck [STABLE] Whether the last health check succeeded\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total [STABLE] Health checks by result\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {n_requests}\n"
        );
    }
    if let Some(seconds) = start_time() {
        text += &format!(
            "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.\n\
             # TYPE process_start_time_seconds gauge\n\
             process_start_time_seconds {seconds}\n"
        );
    }
    ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response()
}

/// Healthy whenever this server answers; the health of the proxy is on `healthzBindAddress`.
async fn healthz(State(server): State<Arc<MetricsServer>>, RawQuery(query): RawQuery) -> Response {
    server.n_healthz.fetch_add(1, Ordering::Relaxed);
    let query = query.unwrap_or_default();
    let parameters: BTreeMap<&str, &str> =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    if !parameters.contains_key("verbose") {
        return reply(StatusCode::OK, TEXT, "ok");
    }
    let ping = if parameters.get("exclude") == Some(&"ping") { "[+]ping excluded: ok" } else { "[+]ping ok" };
    reply(StatusCode::OK, TEXT, format!("{ping}\nhealthz check passed\n"))
}

async fn configz(State(server): State<Arc<MetricsServer>>) -> Response {
    reply(StatusCode::OK, JSON, server.pages.configz.clone())
}

/// `enableProfiling` serves profiles of the Go runtime, which have no counterpart.
async fn no_profiles() -> Response {
    reply(StatusCode::NOT_IMPLEMENTED, TEXT, "Chainsmith has no Go runtime, so no pprof\n")
}

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const FLAGS_PAGE: &str = "<html><head><title>/debug/flags/</title></head><body>PUT a number to /debug/flags/v to set the verbosity of the log</body></html>\n";
/// More than any number.
const MAX_VERBOSITY_BYTES: usize = 64;

/// Sets the verbosity of the log. Source: `StringFlagPutHandler`, k8s.io/apiserver v1.36.
async fn verbosity(State(server): State<Arc<MetricsServer>>, method: Method, body: Body) -> Response {
    if method != Method::PUT {
        return reply(StatusCode::NOT_ACCEPTABLE, TEXT, "unsupported http method\n");
    }
    let outcome = match to_bytes(body, MAX_VERBOSITY_BYTES).await {
        Ok(body) => (server.pages.set_verbosity)(&String::from_utf8_lossy(&body)),
        Err(error) => Err(format!("error reading request body: {error}")),
    };
    match outcome {
        Ok(message) => reply(StatusCode::OK, TEXT, message + "\n"),
        Err(message) => reply(StatusCode::BAD_REQUEST, TEXT, message + "\n"),
    }
}

#[cfg(test)]
mod tests;
