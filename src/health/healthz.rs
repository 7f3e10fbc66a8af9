//! `/healthz` and `/livez`, byte for byte as in kube-proxy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::any;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde::ser::SerializeMap;

use super::health_state::{FamilyHealth, Moment};
use super::proxy_health::Health;
use crate::http::{JSON, not_found, reply};
use crate::metrics::Metrics;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Everything that is served on `healthzBindAddress`.
pub fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let (live, live_metrics) = (health.clone(), metrics.clone());
    let healthz = move || {
        let answer = answer(&health, true);
        metrics.node.count_healthz(answer.status().as_u16());
        std::future::ready(answer)
    };
    let livez = move || {
        let answer = answer(&live, false);
        live_metrics.node.count_livez(answer.status().as_u16());
        std::future::ready(answer)
    };
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).fallback(not_found)
}

/// The answer of `/healthz`, or of `/livez`, which leaves the Node out.
fn answer(health: &Health, includes_node: bool) -> Response {
    let now = Moment::now();
    let state = health.state();
    let mut body = HealthBody::new(
        &state.families(now),
        state.last_updated(),
        state.is_node_eligible(),
        includes_node,
        now,
    );
    drop(state);
    if includes_node {
        body.stale_watches = health.stale_kinds().collect();
    }
    let status = if body.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(status, JSON, body.text())
}

/// The body; its keys are in the order of the fields.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthBody {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "FamilyStatus::is_empty")]
    status: FamilyStatus,
    /// Kinds of objects whose watch is lost, and for how many seconds. kube-proxy has no such key.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stale_watches: BTreeMap<&'static str, u64>,
}

/// The health of each family, as a map by family.
struct FamilyStatus(Vec<FamilyHealth>);

impl FamilyStatus {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl Serialize for FamilyStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for FamilyHealth { family, updated, is_healthy } in &self.0 {
            let body = FamilyBody { last_updated: time(Some(*updated)), healthy: *is_healthy };
            map.serialize_entry(&family.to_string(), &body)?;
        }
        map.end()
    }
}

impl HealthBody {
    fn new(
        families: &[FamilyHealth],
        last_updated: Option<SystemTime>,
        is_eligible: bool,
        includes_node: bool,
        now: Moment,
    ) -> HealthBody {
        let mut body = HealthBody {
            last_updated: String::new(),
            current_time: time(Some(now.wall)),
            node_eligible: includes_node.then_some(is_eligible),
            healthy: families.iter().all(|family| family.is_healthy),
            status: FamilyStatus(families.to_vec()),
            stale_watches: BTreeMap::new(),
        };
        // A positive answer counts as updated now, as in kube-proxy.
        body.last_updated = if body.is_good() { time(Some(now.wall)) } else { time(last_updated) };
        body
    }

    fn is_good(&self) -> bool {
        self.healthy && self.node_eligible != Some(false)
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("texts and booleans are JSON")
    }
}

/// RFC 3339 with no more digits than needed, in the time zone of this process.
fn time(at: Option<SystemTime>) -> String {
    let Some(at) = at.and_then(|at| Timestamp::try_from(at).ok()) else { return NEVER.to_owned() };
    let offset = TimeZone::system().to_offset(at);
    if offset.seconds() == 0 { at.to_string() } else { at.display_with_offset(offset).to_string() }
}

#[cfg(test)]
mod tests;
