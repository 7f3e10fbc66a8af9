//! Responses: JSON bodies, compressed when that is asked for and worth it, and `Status` objects.

use std::io::Write;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Response, StatusCode, header};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::resource::Resource;

/// Bodies above this are compressed, as by a real server (128 KiB).
const GZIP_ABOVE: usize = 128 * 1024;

/// A JSON body.
pub fn json_body(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    respond(code, Body::from(body.into()))
}

/// A JSON body that may be large; compressed if the request's `headers` accept it.
pub fn large_body(headers: &HeaderMap, body: Vec<u8>) -> Response<Body> {
    let accepts = headers.get_all(header::ACCEPT_ENCODING).iter();
    let accepts_gzip = accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("gzip"));
    if body.len() <= GZIP_ABOVE || !accepts_gzip {
        return json_body(StatusCode::OK, body);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&body).expect("a Vec takes all");
    let body = encoder.finish().expect("a Vec takes all");
    let mut response = json_body(StatusCode::OK, body);
    response.headers_mut().insert(
        header::CONTENT_ENCODING,
        header::HeaderValue::from_static("gzip"),
    );
    response
}

/// A body whose end is not known yet.
pub fn stream_body(body: Body) -> Response<Body> {
    respond(StatusCode::OK, body)
}

/// Plain text (`/healthz`).
pub fn text(body: &'static str) -> Response<Body> {
    let mut response = respond(StatusCode::OK, Body::from(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain"),
    );
    response
}

/// A failure.
pub fn failure(code: u16, message: &str) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_body(status, failure_object(code, message).to_string());
    if matches!(code, 429 | 504) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// The message of a 404 for one object.
pub fn not_found(resource: &Resource, name: &str) -> String {
    format!("{} {name:?} not found", resource.long_name())
}

/// The `Status` object of a failure, as a body or in an ERROR event.
pub fn failure_object(code: u16, message: &str) -> Value {
    let reason = match code {
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
        _ => "Unknown",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}
