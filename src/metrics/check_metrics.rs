//! The metrics of `check --watch`, in a registry of their own, and the server that shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use prometheus::{GaugeVec, IntCounterVec, IntGauge, Registry};

use super::define::Definer;
use super::exposition::exposition;
use super::process_metrics;
use crate::http::{TEXT, not_found, reply};
use crate::net::{IpFamily, PerFamily};

/// The metrics of a process that checks again and again.
pub struct CheckMetrics {
    findings: GaugeVec,
    /// Severities and kinds that have been found since the start.
    shown: Mutex<BTreeSet<[String; 2]>>,
    pending: IntGauge,
    runs: IntCounterVec,
    last: GaugeVec,
    duration: GaugeVec,
    chains: GaugeVec,
    differing: GaugeVec,
    affected: GaugeVec,
    layout: GaugeVec,
}

/// What one check found of a family.
pub struct CheckedChains<'a> {
    /// Chains that were compared.
    pub n_chains: usize,
    /// Those of them that differ.
    pub n_differing: usize,
    /// Service ports with a chain or rule that differs.
    pub n_affected: usize,
    /// `nft` or `legacy`.
    pub backend: &'a str,
    /// As in `compact`.
    pub layout: &'a str,
}

impl CheckMetrics {
    /// Creates the metrics, and those of the process, and registers them.
    pub fn register(registry: &Registry) -> anyhow::Result<CheckMetrics> {
        let define = Definer(registry);
        process_metrics::define_process(&define)?;
        let family = &["ip_family"];
        Ok(CheckMetrics {
            shown: Mutex::default(),
            findings: define.gauges(
                "chainsmith_check_findings",
                "Findings that have lasted for the grace period, by severity and kind",
                &["severity", "kind"],
            )?,
            pending: define.gauge(
                "chainsmith_check_pending_findings",
                "Findings of the last check that have not lasted for the grace period yet",
            )?,
            runs: define.counters(
                "chainsmith_check_runs_total",
                "Checks by result: same, different, unknown",
                &["result"],
            )?,
            last: define.gauges(
                "chainsmith_check_last_timestamp_seconds",
                "When the last check ended, in seconds since the Unix epoch, by result",
                &["result"],
            )?,
            duration: define.gauges(
                "chainsmith_check_duration_seconds",
                "Duration of the last check in seconds, reading included",
                &[],
            )?,
            chains: define.gauges(
                "chainsmith_check_chains",
                "Chains that the last check compared",
                family,
            )?,
            differing: define.gauges(
                "chainsmith_check_differing_chains",
                "Chains that differed in the last check",
                family,
            )?,
            affected: define.gauges(
                "chainsmith_check_affected_service_ports",
                "Service ports with a rule that differed in the last check",
                family,
            )?,
            layout: define.gauges(
                "chainsmith_check_layout",
                "1 for the layout and the back-end of the rules that the last check found",
                &["ip_family", "backend", "layout"],
            )?,
        })
    }

    /// Records the end of a check with `result`, `now` since the Unix epoch, which took `elapsed`.
    pub fn record_run(&self, result: &str, now: Duration, elapsed: Duration) {
        self.runs.with_label_values(&[result]).inc();
        self.last.with_label_values(&[result]).set(now.as_secs_f64());
        let none: [&str; 0] = [];
        self.duration.with_label_values(&none).set(elapsed.as_secs_f64());
    }

    /// Records what a check found of each family.
    pub fn record_chains(&self, checked: &PerFamily<Option<CheckedChains<'_>>>) {
        self.layout.reset();
        for family in IpFamily::BOTH {
            let Some(checked) = checked.get(family) else { continue };
            let name = &[family.as_str()];
            self.chains.with_label_values(name).set(checked.n_chains as f64);
            self.differing.with_label_values(name).set(checked.n_differing as f64);
            self.affected.with_label_values(name).set(checked.n_affected as f64);
            self.layout.with_label_values(&[family.as_str(), checked.backend, checked.layout]).set(1.0);
        }
    }

    /// Shows the findings that have lasted, each with its severity and kind, and how many are pending.
    pub fn set_findings<'a>(&self, lasting: impl Iterator<Item = (&'a str, &'a str)>, n_pending: usize) {
        let mut counts: BTreeMap<[String; 2], usize> = BTreeMap::new();
        lasting.for_each(|labels| *counts.entry([labels.0, labels.1].map(str::to_owned)).or_default() += 1);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.extend(counts.keys().cloned());
        // A kind that was found stays, at 0: a series that ends says nothing.
        for labels in shown.iter() {
            let n = counts.get(labels).copied().unwrap_or(0);
            self.findings.with_label_values(labels).set(n as f64);
        }
        self.pending.set(i64::try_from(n_pending).unwrap_or(i64::MAX));
    }
}

const EXPOSITION: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// `/metrics` and `/healthz`, which is 503 with its message where `unhealthy` returns one.
pub fn check_router(
    registry: Registry,
    unhealthy: impl Fn() -> Option<String> + Send + Sync + 'static,
) -> Router {
    let unhealthy = Arc::new(unhealthy);
    let metrics = async move || -> Response {
        match exposition(&registry) {
            Ok(text) => ([(header::CONTENT_TYPE, EXPOSITION)], text).into_response(),
            Err(error) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n")),
        }
    };
    let healthz = async move || match unhealthy() {
        None => reply(StatusCode::OK, TEXT, "ok\n"),
        Some(message) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, message + "\n"),
    };
    Router::new().route("/metrics", any(metrics)).route("/healthz", any(healthz)).fallback(not_found)
}
