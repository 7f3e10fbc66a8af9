//! One HTTP request from a host of the lab.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::client::{Host, PATIENCE};

/// An HTTP answer.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The header called `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// The answer of `to` to `host`; `None` without one.
pub fn get(host: &dyn Host, to: SocketAddr, path: &str) -> Option<Answer> {
    let text = host.namespace().run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").as_bytes())
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
