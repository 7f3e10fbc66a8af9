//! One log line for each request that is served.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use crate::log::v;

/// Serves `request` by `next`, and logs it.
pub(super) async fn log_request(request: Request, next: Next) -> Response {
    let (method, uri, arrived) = (request.method().clone(), request.uri().clone(), Instant::now());
    let response = next.run(request).await;
    v!(
        6, %method, url = %uri, status = response.status().as_u16(),
        elapsed_ms = arrived.elapsed().as_millis() as u64, "served request"
    );
    response
}
