//! The metrics server's paths, all but those of [`super::pages`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use prometheus::Registry;
use tower_http::compression::CompressionLayer;

use super::pages::{Pages, flagz, statusz};
use super::process::Process;
use crate::http::{JSON, TEXT, not_found, reply};

const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");

pub(super) struct Served {
    pub(super) registry: Registry,
    pub(super) pages: Pages,
    /// `/healthz` of this server was asked so often.
    n_healthz: AtomicU64,
}

/// Everything that is served on `metricsBindAddress`.
pub fn router(registry: Registry, pages: Pages) -> Router {
    let (has_flagz, has_statusz) = (pages.flags.is_some(), pages.has_statusz);
    let is_profiling = pages.is_profiling;
    let served = Arc::new(Served { registry, pages, n_healthz: AtomicU64::new(0) });
    let mut router = Router::new()
        .route("/metrics", any(metrics).layer(CompressionLayer::new()))
        .route("/metrics/slis", any(slis))
        .route("/healthz", any(healthz))
        .route("/healthz/ping", any(|| async { reply(StatusCode::OK, TEXT, "ok") }))
        .route("/proxyMode", any(|| async { reply(StatusCode::OK, TEXT, "iptables") }))
        .route("/configz", any(configz));
    if has_flagz {
        router = router.route("/flagz", any(flagz));
    }
    if has_statusz {
        router = router.route("/statusz", any(statusz));
    }
    if is_profiling {
        for path in
            ["/debug/pprof", "/debug/pprof/", "/debug/pprof/{*name}", "/debug/flags", "/debug/flags/{*name}"]
        {
            router = router.route(path, any(no_profiles));
        }
    }
    router.fallback(not_found).with_state(served)
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let mut answer = match super::exposition(&served.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response(),
        Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n")),
    };
    if let Some(seconds) = start_time() {
        answer.headers_mut().insert("Process-Start-Time-Unix", HeaderValue::from(seconds as u64));
    }
    answer
}

fn start_time() -> Option<f64> {
    Process::new("/proc").ok()?.started()
}

/// A registry of its own: how often `/healthz` of this server was asked.
async fn slis(State(served): State<Arc<Served>>, method: Method) -> Response {
    if method == Method::DELETE {
        served.n_healthz.store(0, Ordering::Relaxed);
        return reply(StatusCode::OK, TEXT, "metrics reset\n");
    }
    let mut text = String::new();
    let n_asked = served.n_healthz.load(Ordering::Relaxed);
    if n_asked > 0 {
        text += &format!(
            "# HELP kubernetes_healthcheck [STABLE] Whether the last health check succeeded\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total [STABLE] Health checks by result\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {n_asked}\n"
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

/// This server answers: that is all that it says.
async fn healthz(State(served): State<Arc<Served>>, RawQuery(query): RawQuery) -> Response {
    served.n_healthz.fetch_add(1, Ordering::Relaxed);
    let query = query.unwrap_or_default();
    let parameters: BTreeMap<&str, &str> =
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    if !parameters.contains_key("verbose") {
        return reply(StatusCode::OK, TEXT, "ok");
    }
    let ping = if parameters.get("exclude") == Some(&"ping") { "[+]ping excluded: ok" } else { "[+]ping ok" };
    reply(StatusCode::OK, TEXT, format!("{ping}\nhealthz check passed\n"))
}

async fn configz(State(served): State<Arc<Served>>) -> Response {
    reply(StatusCode::OK, JSON, served.pages.configz.clone())
}

/// What `enableProfiling` asks for are profiles of the Go runtime.
async fn no_profiles() -> Response {
    reply(StatusCode::NOT_IMPLEMENTED, TEXT, "Chainsmith has no Go runtime, so no pprof and no klog flags\n")
}

#[cfg(test)]
mod tests;
