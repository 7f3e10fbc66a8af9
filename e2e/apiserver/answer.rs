//! Responses: JSON bodies, compressed if the client accepts it and they are large, and rejections with the texts
//! of a real server.

use std::io::Write;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::resource::Resource;

/// Larger bodies are compressed, as by a real server (128 KiB).
const GZIP_ABOVE: usize = 128 * 1024;

/// A JSON body.
pub fn json_body(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    respond(code, Body::from(body.into()), "application/json")
}

/// A JSON body that may be large; compressed if the request's `headers` accept it.
pub fn large_body(headers: &HeaderMap, body: Vec<u8>) -> Response<Body> {
    if body.len() <= GZIP_ABOVE || !accepts_gzip(headers) {
        return json_body(StatusCode::OK, body);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&body).expect("a Vec takes all");
    let body = encoder.finish().expect("a Vec takes all");
    compressed(json_body(StatusCode::OK, body))
}

/// `response` with the headers of a compressed body.
pub fn compressed(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Whether a client accepts compressed bodies.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(header::ACCEPT_ENCODING).iter();
    accepts.filter_map(|value| value.to_str().ok()).any(|value| value.contains("gzip"))
}

/// A body of unknown length.
pub fn stream_body(body: Body) -> Response<Body> {
    respond(StatusCode::OK, body, "application/json")
}

/// Plain text (`/healthz`).
pub fn text(code: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = respond(code, Body::from(body), "text/plain; charset=utf-8");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn respond(code: StatusCode, body: Body, media: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

/// A rejected request: a `Status` object, as the body of an answer or in an ERROR event.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    status: Value,
    /// Sent as text, as a real server answers from the layers before its API.
    is_text: bool,
}

impl Refusal {
    /// With this message, and the reason that belongs to `code`.
    pub fn new(code: u16, message: impl Into<String>) -> Refusal {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "code": code,
        });
        if let Some(reason) = reason(code) {
            status["reason"] = reason.into();
        }
        Refusal { code, status, is_text: false }
    }

    /// With this reason instead, or none.
    pub fn because(mut self, reason: Option<&str>) -> Refusal {
        let status = self.status.as_object_mut().expect("made as a map");
        match reason {
            Some(reason) => status.insert("reason".into(), reason.into()),
            None => status.remove("reason"),
        };
        self
    }

    /// With these `details`.
    pub fn about(mut self, details: Value) -> Refusal {
        self.status["details"] = details;
        self
    }

    /// About the object `name` of `resource`.
    pub fn about_object(self, resource: &Resource, name: &str) -> Refusal {
        self.about(object_details(resource, resource.plural, name))
    }

    /// With this token to continue a list.
    pub fn go_on_by(mut self, token: String) -> Refusal {
        self.status["metadata"]["continue"] = token.into();
        self
    }

    /// A 404 for one object.
    pub fn not_found(resource: &Resource, name: &str) -> Refusal {
        Refusal::new(404, format!("{} {name:?} not found", resource.long_name())).about_object(resource, name)
    }

    /// A 405.
    pub fn not_allowed() -> Refusal {
        Refusal::new(405, "the server does not allow this method on the requested resource").about(json!({}))
    }

    /// A 422 for the fields of one object; `name` is empty for options of a request.
    pub fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Refusal {
        let title = match resource.group() {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        invalid(&title, object_details(resource, resource.kind, name), name, causes)
    }

    /// A 422 for the parameters of a list or watch.
    pub fn invalid_options(causes: &[Cause]) -> Refusal {
        let details = json!({ "group": "meta.k8s.io", "kind": "ListOptions" });
        invalid("ListOptions.meta.k8s.io", details, "", causes)
    }

    /// A version that does not exist yet.
    pub fn too_large(asked: u64, newest: u64) -> Refusal {
        let message = format!("Timeout: Too large resource version: {asked}, current: {newest}");
        Refusal::new(504, message).about(json!({
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            "retryAfterSeconds": 1,
        }))
    }

    /// A request that waited for etcd for too long.
    pub fn timed_out() -> Refusal {
        let message = "Timeout: request did not complete within the allotted timeout";
        let status = json!({
            "metadata": {}, "status": "Failure", "message": message, "reason": "Timeout", "details": {}, "code": 504,
        });
        Refusal { code: 504, status, is_text: true }
    }

    /// As the body of a response.
    pub fn response(&self) -> Response<Body> {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // The real server rejects it before it reads the path.
        let is_overloaded = self.code == 429;
        let mut response = match is_overloaded {
            true => text(code, "Too many requests, please try again later.\n"),
            false => json_body(code, format!("{}\n", self.status)),
        };
        let headers = response.headers_mut();
        if self.is_text {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        if self.code == 403 {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        if is_overloaded || !self.status["details"]["retryAfterSeconds"].is_null() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// As the object of an ERROR event.
    pub fn object(&self) -> &Value {
        &self.status
    }
}

/// The error of one field.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Its path: `spec.podCIDRs[0]`.
    pub field: String,
    /// `FieldValueInvalid`.
    pub reason: &'static str,
    /// `Invalid value: ...`.
    pub message: String,
}

impl Cause {
    /// A malformed value, and the reason.
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Cause {
        Cause {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    /// A field that may not be set, or not be changed.
    pub fn forbidden(field: impl Into<String>, why: &str) -> Cause {
        Cause { field: field.into(), reason: "FieldValueForbidden", message: format!("Forbidden: {why}") }
    }

    /// A missing field.
    pub fn required(field: impl Into<String>, why: &str) -> Cause {
        let colon = if why.is_empty() { "" } else { ": " };
        Cause {
            field: field.into(),
            reason: "FieldValueRequired",
            message: format!("Required value{colon}{why}"),
        }
    }

    /// A value that is not one of `known`.
    pub fn unsupported(field: impl Into<String>, value: &Value, known: &[&str]) -> Cause {
        let known: Vec<String> = known.iter().map(|word| format!("{word:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", known.join(", "));
        Cause { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    /// A value that occurs twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Cause {
        Cause {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
        }
    }
}

fn invalid(title: &str, mut details: Value, name: &str, causes: &[Cause]) -> Refusal {
    let texts: Vec<String> =
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    let text = match &texts[..] {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    let cause =
        |cause: &Cause| json!({ "reason": cause.reason, "message": cause.message, "field": cause.field });
    details["causes"] = causes.iter().map(cause).collect();
    Refusal::new(422, format!("{title} {name:?} is invalid: {text}")).about(details)
}

fn object_details(resource: &Resource, kind: &str, name: &str) -> Value {
    let mut details = json!({ "name": name, "kind": kind });
    if !resource.group().is_empty() {
        details["group"] = resource.group().into();
    }
    details
}

fn reason(code: u16) -> Option<&'static str> {
    Some(match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        406 => "NotAcceptable",
        409 => "Conflict",
        410 => "Expired",
        415 => "UnsupportedMediaType",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => return None,
    })
}
