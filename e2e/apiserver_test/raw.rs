//! HTTP/1.1 by hand, so that tests compare the bytes that were sent.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::LIMIT;

/// A request.
pub struct Request<'a> {
    /// `GET`.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Besides `Host` and those about the body.
    pub headers: Vec<(&'a str, &'a str)>,
    /// Empty for none.
    pub body: String,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// The status line.
    pub status: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body, chunks joined.
    pub body: Vec<u8>,
}

/// Sends a request on a connection of its own; `None` if it is closed without an answer.
pub async fn ask(server: SocketAddr, request: &Request<'_>) -> Option<Answer> {
    let mut text =
        format!("{} {} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n", request.method, request.target);
    for (name, value) in &request.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("Content-Length: {}\r\n\r\n{}", request.body.len(), request.body);
    let mut connection = TcpStream::connect(server).await.expect("it listens");
    connection.write_all(text.as_bytes()).await.expect("it reads");
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(LIMIT, connection.read_to_end(&mut bytes)).await;
    read.expect("an end in time").ok()?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.to_owned();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let name: HeaderName = name.parse().expect("a header's name");
        headers.append(name, HeaderValue::from_str(value).expect("a header's value"));
    }
    let rest = &bytes[end + 4..];
    let is_chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    let body = if is_chunked { joined(rest) } else { rest.to_vec() };
    Some(Answer { status, headers, body })
}

/// The chunks without their heads, which must end with the last chunk.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").expect("the head of a chunk");
        let length = std::str::from_utf8(&rest[..end]).expect("digits");
        let length = usize::from_str_radix(length, 16).expect("a length");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 2 + length + 2..];
    }
}
