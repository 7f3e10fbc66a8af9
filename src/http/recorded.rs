//! Answers in the form of `curl -i`, for tests that compare ours with recorded ones.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An answer. The values of the headers `date` and `content-length` are emptied: tests check only that they exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedAnswer {
    pub status: u16,
    /// By lower case names.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl RecordedAnswer {
    /// Reads status line, headers, empty line and body.
    pub fn read(text: &str) -> RecordedAnswer {
        let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(k, v)| (k.to_lowercase(), v.to_owned()))
            .collect();
        for name in ["date", "content-length"] {
            if let Some(value) = headers.get_mut(name) {
                value.clear();
            }
        }
        RecordedAnswer { status, headers, body: body.to_owned() }
    }
}

/// The answer of `router` over an in-memory connection; `request` is `METHOD PATH`, then each header on a line.
pub async fn ask(router: &Router, request: &str) -> RecordedAnswer {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let service = hyper_util::service::TowerToHyperService::new(router.clone());
    tokio::spawn(async move {
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await;
    });
    let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    let text = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    client.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let mut answer = RecordedAnswer::read(&String::from_utf8_lossy(&answer).replace("\r\n", "\n"));
    answer.headers.remove("connection");
    answer
}

#[tokio::test]
async fn requests_arrive_as_they_are_written() {
    let echo = |request: Request<Body>| async move {
        let header = request.headers().get("a").map(|value| value.to_str().unwrap().to_owned());
        format!("{} {} {header:?}", request.method(), request.uri())
    };
    let router = Router::new().fallback(echo);
    assert_eq!(ask(&router, "PUT /b?c\na: d").await.body, r#"PUT /b?c Some("d")"#);
}
