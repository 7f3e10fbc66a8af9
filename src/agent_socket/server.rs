//! The paths of the agent's socket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::answer;
use super::questions::Questions;
use super::saved_rules;
use super::status_collector::{StatusCollector, WhichRestore};
use crate::config::Config;
use crate::connections::Connections;
use crate::drift::Knowledge;
use crate::inspect::Subject;
use crate::inspect::explanation::{self, ExplainQuestion, ExplainReport};
use crate::inspect::journey::{self, QuestionError, TraceQuestion};
use crate::inspect::status::{DriftState, SettingInForce, StatusReport, WatchAge};
use crate::iptables::Table;
use crate::kernel::affinity_lists::{AffinityLists, FullLists};
use crate::net::IpFamily;
use crate::watch::api::Freshness;

/// How long the status waits for what only the loop knows.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// What an agent is and runs with.
pub struct AgentIdentity {
    /// The release of kube-proxy that it replaces.
    pub replaces: String,
    /// The Node's name.
    pub node: String,
    /// When it started.
    pub started: Instant,
    /// The checked configuration.
    pub config: Arc<Config>,
    /// How long ago each kind of objects was current, if there is an API server.
    pub freshness: Option<Arc<Freshness>>,
}

struct AgentServer {
    identity: AgentIdentity,
    collector: Arc<StatusCollector>,
    questions: Arc<Questions>,
    connections: Option<Arc<Connections>>,
}

/// Everything that is served on the agent's socket; without `connections` none are counted.
pub fn router(
    identity: AgentIdentity,
    collector: Arc<StatusCollector>,
    questions: Arc<Questions>,
    connections: Option<Arc<Connections>>,
) -> Router {
    let server = AgentServer { identity, collector, questions, connections };
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/restore", get(restore))
        .route("/v1/rules", get(rules))
        .route("/v1/top", get(top))
        .route("/v1/trace", post(trace))
        .route("/v1/explain", post(explain))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(Arc::new(server))
}

async fn status(State(server): State<Arc<AgentServer>>) -> Response {
    let AgentServer { identity, collector, questions, .. } = &*server;
    let mut report = identity.report();
    collector.describe(&mut report);
    let view = questions.view(STATUS_TIMEOUT).await;
    for family in view.iter().flat_map(|view| &view.families) {
        let state = report.families.iter_mut().find(|state| state.family == family.family.lower());
        if let Some(state) = state {
            state.drift = Some(drift_state(family.knowledge));
        }
    }
    answer::report("StatusReport", &report)
}

impl AgentIdentity {
    /// A report of what does not change, and of the watches.
    fn report(&self) -> StatusReport {
        let config = &self.config;
        let stale = self.freshness.as_ref().map(|freshness| freshness.stale_kinds()).unwrap_or_default();
        let watch = |(kind, age): (crate::model::ObjectKind, Duration)| WatchAge {
            kind: kind.as_str().to_owned(),
            stale_seconds: age.as_secs_f64(),
            is_stale: stale.iter().any(|(stale, _)| *stale == kind),
        };
        let ages = self.freshness.as_ref().map(|freshness| freshness.ages()).unwrap_or_default();
        let folders: Vec<String> =
            config.manifests.iter().map(|folder| folder.display().to_string()).collect();
        StatusReport {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            replaces: self.replaces.clone(),
            node: self.node.clone(),
            time: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            source: if folders.is_empty() { "API server".to_owned() } else { folders.join(", ") },
            settings: config
                .differences()
                .into_iter()
                .map(|setting| SettingInForce {
                    path: setting.path.clone(),
                    value: setting.value.clone(),
                    set_by: setting.set_by.to_string(),
                })
                .collect(),
            watches: ages.into_iter().map(watch).collect(),
            ..StatusReport::default()
        }
    }
}

fn drift_state(knowledge: Knowledge) -> DriftState {
    let (state, reason, n_left) = match knowledge {
        Knowledge::Unknown { reason, .. } => ("unknown", Some(reason), None),
        Knowledge::Trusted => ("trusted", None, None),
        Knowledge::Suspect { reason, .. } => ("suspect", Some(reason), None),
        Knowledge::Scanning(cursor) => ("scanning", None, Some(cursor.n_left)),
        Knowledge::Unverified => ("unverified", None, None),
    };
    DriftState { state: state.to_owned(), reason: reason.map(|reason| reason.as_str().to_owned()), n_left }
}

async fn restore(State(server): State<Arc<AgentServer>>, RawQuery(query): RawQuery) -> Response {
    let which = match parameter(query.as_deref(), "which") {
        Some("last") | None => WhichRestore::Last,
        Some("failed") => WhichRestore::Failed,
        Some(other) => {
            return answer::error(
                StatusCode::BAD_REQUEST,
                format!("which={other:?}: must be last or failed"),
            );
        }
    };
    answer::report("RestoreReport", &server.collector.restores(which))
}

/// The value of a parameter of the query; values are plain words.
fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

async fn top(State(server): State<Arc<AgentServer>>) -> Response {
    let Some(connections) = &server.connections else {
        let message = "the agent counts no connections: set chainsmith.connectionMetrics (--connection-metrics) to \
                       service or endpoint, or use --live";
        return answer::error(StatusCode::NOT_FOUND, message);
    };
    connections.refresh().await;
    answer::report("TopReport", &connections.report())
}

/// The families that a query asks for.
#[allow(clippy::result_large_err, reason = "an answer is made once a request")]
fn families(query: Option<&str>) -> Result<Vec<IpFamily>, Response> {
    match parameter(query, "family") {
        None => Ok(IpFamily::BOTH.to_vec()),
        Some("ipv4") => Ok(vec![IpFamily::V4]),
        Some("ipv6") => Ok(vec![IpFamily::V6]),
        Some(other) => {
            let message = format!("family={other:?}: must be ipv4 or ipv6");
            Err(answer::error(StatusCode::BAD_REQUEST, message))
        }
    }
}

async fn trace(State(server): State<Arc<AgentServer>>, RawQuery(query): RawQuery, body: Body) -> Response {
    let traced = |subject: &Subject, question: &TraceQuestion| {
        journey::trace_journeys(subject, question).map_err(|wrong| match wrong {
            QuestionError::Malformed(message) => (StatusCode::BAD_REQUEST, message),
            QuestionError::NotFound(message) => (StatusCode::NOT_FOUND, message),
        })
    };
    server.answer("TraceReport", query.as_deref(), body, traced).await
}

async fn explain(State(server): State<Arc<AgentServer>>, RawQuery(query): RawQuery, body: Body) -> Response {
    let collector = server.collector.clone();
    let explained = move |subject: &Subject, question: &ExplainQuestion| {
        let mut report = explanation::explain(subject, question)
            .map_err(|missing| (StatusCode::NOT_FOUND, missing.to_string()))?;
        let mut state = collector.sync_state(&report.service);
        state.full_affinity_lists = full_affinity_lists(&report);
        report.agent = Some(state);
        Ok(report)
    };
    server.answer("ExplainReport", query.as_deref(), body, explained).await
}

/// The endpoints of a Service whose affinity lists are full; none where the lists cannot be read.
fn full_affinity_lists(report: &ExplainReport) -> Vec<String> {
    let has_affinity = report.policies.as_ref().is_some_and(|policies| policies.affinity_seconds.is_some());
    let full = if has_affinity {
        AffinityLists::of_kernel().full().unwrap_or_default()
    } else {
        FullLists::default()
    };
    let is_full = |chain: &str| full.names.iter().any(|name| name.as_str() == chain);
    // The list of an endpoint has the name of its chain.
    let chains = report.ports.iter().flat_map(|port| &port.chains);
    chains.filter(|chain| is_full(&chain.name)).map(|chain| chain.role.clone()).collect()
}

impl AgentServer {
    /// Answers the question in `body` about the rules with a report of this `kind`.
    async fn answer<Q, R>(
        &self,
        kind: &'static str,
        query: Option<&str>,
        body: Body,
        answer: impl FnOnce(&Subject, &Q) -> Result<R, (StatusCode, String)> + Send + 'static,
    ) -> Response
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize,
    {
        let families = match families(query) {
            Ok(families) => families,
            Err(wrong) => return wrong,
        };
        let question: Q = match answer::question(body).await {
            Ok(question) => question,
            Err(wrong) => return wrong,
        };
        let answered =
            self.questions.with_subject(&families, move |subject| match answer(&subject, &question) {
                Ok(report) => answer::report(kind, &report),
                Err((status, message)) => answer::error(status, message),
            });
        answered.await.unwrap_or_else(Response::from)
    }
}

async fn rules(State(server): State<Arc<AgentServer>>, RawQuery(query): RawQuery) -> Response {
    let families = match families(query.as_deref()) {
        Ok(families) => families,
        Err(wrong) => return wrong,
    };
    let table = match parameter(query.as_deref(), "table").map(|name| (name, Table::parse(name))) {
        None => None,
        Some((_, Some(table))) => Some(table),
        Some((name, None)) => {
            let message = format!("table={name:?}: must be one of mangle, filter and nat");
            return answer::error(StatusCode::BAD_REQUEST, message);
        }
    };
    saved_rules::stream(&server.questions, &families, table).await
}

async fn method_not_allowed(method: Method) -> Response {
    answer::error(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not served on this path"))
}

async fn not_found() -> Response {
    answer::error(StatusCode::NOT_FOUND, "this agent does not answer that; it may be of another release")
}
