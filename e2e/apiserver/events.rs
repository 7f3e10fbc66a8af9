//! The lines of a watch: one event each, `{"type":...,"object":...}`.

use axum::body::Bytes;

/// Events that go out together.
#[derive(Debug, Default)]
pub struct Lines {
    /// Whole lines.
    pub bytes: Vec<u8>,
    /// How many.
    pub n_events: usize,
}

impl Lines {
    /// Appends an event.
    pub fn push(&mut self, event: &str, object: &[u8]) {
        self.bytes.extend_from_slice(&line(event, object));
        self.n_events += 1;
    }
}

/// One event. `object` is on one line as JSON is written here.
pub fn line(event: &str, object: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(object.len() + 40);
    bytes.extend_from_slice(format!(r#"{{"type":"{event}","object":"#).as_bytes());
    bytes.extend_from_slice(object);
    bytes.extend_from_slice(b"}\n");
    bytes.into()
}

/// `chunk` up to the middle of its last line.
pub fn half_of_last_line(chunk: &Bytes) -> Bytes {
    let ends = chunk
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(index, _)| index);
    let last_line = ends.rev().nth(1).map_or(0, |end| end + 1);
    chunk.slice(..last_line + (chunk.len() - last_line) / 2)
}
