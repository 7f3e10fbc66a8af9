//! Serves the metrics over HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::Registry;
use tokio::net::TcpListener;
use tracing::{info, warn};

/// How long to wait before an address that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves `/metrics` on `address` for ever. An address that cannot be bound is tried again and again;
/// with `hard_fail` it is an error.
pub async fn serve(address: SocketAddr, registry: Registry, hard_fail: bool) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(move || async move { answer(&registry) }));
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "serving metrics");
                axum::serve(listener, router.clone()).await.context("serving metrics")?;
            }
            Err(error) if hard_fail => {
                return Err(error).with_context(|| format!("cannot serve metrics on {address}"));
            }
            Err(error) => {
                warn!(%address, %error, "cannot serve metrics; will try again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn answer(registry: &Registry) -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    match super::exposition(registry) {
        Ok(text) => (content_type, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}
