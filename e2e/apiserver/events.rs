//! The lines of a watch: one event each, `{"type":...,"object":...}`.

use std::io::Write;

use axum::body::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// How streaming lists are compressed by a server that compresses them (Kubernetes from 1.37).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gzip {
    /// One member to the end of the watch, flushed after each chunk.
    Flushed,
    /// A member for each event.
    MemberPerEvent,
}

/// Compresses the chunks of one watch.
pub struct Zip {
    how: Gzip,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Zip {
    /// Begins to compress.
    pub fn new(how: Gzip) -> Zip {
        Zip { how, encoder: Some(encoder()) }
    }

    /// `chunk`, compressed, so that the client can read all of it at once.
    pub fn take(&mut self, chunk: &[u8]) -> Bytes {
        match (self.how, &mut self.encoder) {
            (Gzip::Flushed, Some(encoder)) => {
                encoder.write_all(chunk).and_then(|()| encoder.flush()).expect("a Vec takes all");
                std::mem::take(encoder.get_mut()).into()
            }
            _ => chunk.split_inclusive(|byte| *byte == b'\n').flat_map(member).collect(),
        }
    }

    /// The end of the body; called once.
    pub fn end(&mut self) -> Option<Bytes> {
        let encoder = self.encoder.take().filter(|_| self.how == Gzip::Flushed)?;
        Some(encoder.finish().expect("a Vec takes all").into())
    }
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

fn member(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = encoder();
    encoder.write_all(bytes).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

/// Events that are sent together.
#[derive(Debug, Default)]
pub struct Lines {
    /// Whole lines.
    pub bytes: Vec<u8>,
    /// Their number.
    pub n_events: usize,
}

impl Lines {
    /// Appends an event.
    pub fn push(&mut self, event: &str, object: &[u8]) {
        self.bytes.extend_from_slice(&line(event, object));
        self.n_events += 1;
    }
}

/// One event. `object` is on one line, as the simulator writes JSON.
pub fn line(event: &str, object: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(object.len() + 40);
    bytes.extend_from_slice(format!(r#"{{"type":"{event}","object":"#).as_bytes());
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"}\n");
    bytes.into()
}

/// `chunk` up to the middle of its last line.
pub fn half_of_last_line(chunk: &Bytes) -> Bytes {
    let ends = chunk.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(index, _)| index);
    let last_line = ends.rev().nth(1).map_or(0, |end| end + 1);
    chunk.slice(..last_line + (chunk.len() - last_line) / 2)
}
