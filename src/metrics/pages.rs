//! `/flagz` and `/statusz`: a page of text, or an object where `Accept` asks for one.
//!
//! Source: KEPs 4827 and 4828; `k8s.io/component-base/zpages` v1.36.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde_json::{Value, json};

use super::release;
use super::service_metrics::ReadServices;
use crate::http::{TEXT, reply};

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// Contents of the metrics server other than metrics.
pub struct Pages {
    /// The body of `/configz`.
    pub configz: String,
    /// Every flag with its value, sorted by name; `None`: no `/flagz`.
    pub flags: Option<Vec<(&'static str, String)>>,
    /// Whether `/statusz` is served.
    pub has_statusz: bool,
    /// Whether the configuration enables profiling.
    pub is_profiling: bool,
    /// Sets the verbosity of the log to a decimal number; returns the body of the response.
    pub set_verbosity: fn(&str) -> Result<String, String>,
    /// Reads the counts for `/metrics/services`; `None` if connections are not counted.
    pub services: Option<ReadServices>,
    /// When the process started.
    pub started: (Instant, SystemTime),
}

/// The routes of `/flagz` and `/statusz`, as far as `pages` has them.
pub(super) fn routes(pages: &Arc<Pages>) -> Router {
    let mut router = Router::new();
    if pages.flags.is_some() {
        router = router.route("/flagz", any(flagz));
    }
    if pages.has_statusz {
        router = router.route("/statusz", any(statusz));
    }
    router.with_state(pages.clone())
}

impl Pages {
    /// The paths that `/statusz` lists, sorted.
    fn paths(&self) -> Vec<&'static str> {
        let all = [
            ("/configz", true),
            ("/flagz", self.flags.is_some()),
            ("/healthz", true),
            ("/metrics", true),
            ("/metrics/services", self.services.is_some()),
            ("/proxyMode", true),
        ];
        all.into_iter().filter(|(_, is_served)| *is_served).map(|(path, _)| path).collect()
    }
}

/// The form of a page that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageForm {
    Text,
    Object { is_yaml: bool, version: &'static str },
}

/// The first form of `kind` (`Flagz` or `Statusz`) that the header `Accept` lists; `None` without one that is served.
pub(super) fn accepted_form(accept: &str, kind: &str) -> Option<PageForm> {
    if accept.trim().is_empty() {
        return Some(PageForm::Text);
    }
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next()?;
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let parameter = |key| parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let is_yaml = match media_type {
            "*/*" | "text/*" | "text/plain" => return Some(PageForm::Text),
            "application/json" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let version = match parameter("v")? {
            "v1beta1" => "v1beta1",
            "v1alpha1" => "v1alpha1",
            _ => return None,
        };
        let is_kind = parameter("g") == Some("config.k8s.io") && parameter("as") == Some(kind);
        is_kind.then_some(PageForm::Object { is_yaml, version })
    })
}

fn page(headers: &HeaderMap, kind: &str, text: impl Fn() -> String, fields: impl Fn() -> Value) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match accepted_form(accept, kind) {
        Some(PageForm::Text) => ([(header::CONTENT_TYPE, TEXT)], text()).into_response(),
        Some(PageForm::Object { is_yaml, version }) => object(kind, version, is_yaml, fields()),
        None => {
            let parameters = format!("v=v1beta1;g=config.k8s.io;as={kind}");
            let message = format!(
                "served are text/plain, application/json and application/yaml, the last two with ;{parameters}\n"
            );
            reply(StatusCode::NOT_ACCEPTABLE, TEXT, message)
        }
    }
}

fn object(kind: &str, version: &str, is_yaml: bool, fields: Value) -> Response {
    let mut object = json!({"kind": kind, "apiVersion": format!("config.k8s.io/{version}"), "metadata": {"name": "kube-proxy"}});
    if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields) {
        object.extend(fields);
    }
    let (content_type, body) = match is_yaml {
        true => ("application/yaml", serde_saphyr::to_string(&object).map_err(|error| error.to_string())),
        false => ("application/json", Ok(object.to_string())),
    };
    let body = match body {
        Ok(body) => body,
        Err(error) => return reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    };
    let mut answer = ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body).into_response();
    if version == "v1alpha1" {
        let warning =
            HeaderValue::from_static(r#"299 - "config.k8s.io/v1alpha1 is deprecated, use v1beta1""#);
        answer.headers_mut().insert(header::WARNING, warning);
    }
    answer
}

async fn flagz(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    let flags = pages.flags.as_deref().unwrap_or_default();
    let text = || {
        let lines: String = flags.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        format!("\nkube-proxy flagz\n{WARNING}\n{lines}")
    };
    let fields = || {
        let flags: serde_json::Map<String, Value> =
            flags.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({"flags": flags})
    };
    page(&headers, "Flagz", text, fields)
}

async fn statusz(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    let (since, at) = pages.started;
    let up = since.elapsed().as_secs();
    let text = || statusz_text(at, up, &pages.paths());
    let fields = || {
        json!({
            "startTime": time(at).map(|time| time.timestamp().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            "uptimeSeconds": up,
            "goVersion": "",
            "binaryVersion": release::minor_release(),
            "emulationVersion": release::minor_release(),
            "paths": pages.paths(),
        })
    };
    page(&headers, "Statusz", text, fields)
}

/// The text of `/statusz` for a process that started `at` and has been up for `up` seconds.
pub(super) fn statusz_text(at: SystemTime, up: u64, paths: &[&str]) -> String {
    let started =
        time(at).map_or_else(String::new, |time| time.strftime("%a %b %e %H:%M:%S %Z %Y").to_string());
    let release = release::minor_release();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    format!(
        "\nkube-proxy statusz\n{WARNING}\n\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Go version: none (Chainsmith {}, Rust)\nBinary version: {release}\nEmulation version: {release}\nPaths: {}\n",
        env!("CARGO_PKG_VERSION"),
        paths.join(" ")
    )
}

fn time(at: SystemTime) -> Option<Zoned> {
    Some(Timestamp::try_from(at).ok()?.to_zoned(TimeZone::system()))
}
