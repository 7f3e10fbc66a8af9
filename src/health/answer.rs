//! `/healthz` and `/livez`, to the byte as kube-proxy answers.

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

use super::state::FamilyHealth;
use super::{Health, Moment};
use crate::http::{JSON, not_found, reply};
use crate::metrics::Metrics;

/// What Go shows for a time that never was.
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

fn answer(health: &Health, asks_for_node: bool) -> Response {
    let now = Moment::now();
    let state = health.state();
    let mut body =
        Body::new(&state.families(now), state.last_updated(), state.is_node_eligible(), asks_for_node, now);
    drop(state);
    if asks_for_node {
        body.stale_watches = (health.stale)().into_iter().map(|(kind, age)| (kind, age.as_secs())).collect();
    }
    let status = if body.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(status, JSON, body.text())
}

/// The body; the order of the fields is the order of the keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Families::is_empty")]
    status: Families,
    /// Kinds of objects that are not followed, and for how many seconds. Not kube-proxy's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stale_watches: BTreeMap<&'static str, u64>,
}

struct Families(Vec<FamilyHealth>);

impl Families {
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

impl Serialize for Families {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for FamilyHealth { family, updated, is_healthy } in &self.0 {
            let body = FamilyBody { last_updated: time(Some(*updated)), healthy: *is_healthy };
            map.serialize_entry(&family.to_string(), &body)?;
        }
        map.end()
    }
}

impl Body {
    fn new(
        families: &[FamilyHealth],
        last_updated: Option<SystemTime>,
        is_eligible: bool,
        asks_for_node: bool,
        now: Moment,
    ) -> Body {
        let mut body = Body {
            last_updated: String::new(),
            current_time: time(Some(now.wall)),
            node_eligible: asks_for_node.then_some(is_eligible),
            healthy: families.iter().all(|family| family.is_healthy),
            status: Families(families.to_vec()),
            stale_watches: BTreeMap::new(),
        };
        // A good answer is up to date by itself.
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

/// RFC 3339 with as many digits as there are, in this process's time zone.
fn time(at: Option<SystemTime>) -> String {
    let Some(at) = at.and_then(|at| Timestamp::try_from(at).ok()) else { return NEVER.to_owned() };
    let offset = TimeZone::system().to_offset(at);
    if offset.seconds() == 0 { at.to_string() } else { at.display_with_offset(offset).to_string() }
}

#[cfg(test)]
mod tests;
