//! Splits response bodies into units that are decoded one by one: a watch into lines, a list into items. So
//! no list is ever whole in memory, however large the cluster.

use std::io;
use std::pin::Pin;

use futures::{AsyncBufRead, AsyncBufReadExt};
use serde::Deserialize;

/// The longest line or item accepted. An object has 3 MB at most, before an API server adds to it.
pub const MAX_LENGTH: usize = 32 << 20;

/// Buffer capacity that is kept after a long line or item.
const KEPT_CAPACITY: usize = 1 << 20;

type BodyReader = Pin<Box<dyn AsyncBufRead + Send>>;

/// The lines of a watch, one event each.
pub struct EventLines {
    reader: BodyReader,
    line: Vec<u8>,
    /// Whether `line` was returned.
    is_returned: bool,
}

impl EventLines {
    /// Reads from the beginning.
    pub fn new(reader: impl AsyncBufRead + Send + 'static) -> EventLines {
        EventLines { reader: Box::pin(reader), line: Vec::new(), is_returned: false }
    }

    /// The next line; `None` at the end, where an incomplete line is dropped. Cancel-safe: a call that is
    /// dropped loses nothing.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if std::mem::take(&mut self.is_returned) {
            clear(&mut self.line);
        }
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let n = end.map_or(bytes.len(), |end| end + 1);
            append(&mut self.line, &bytes[..n])?;
            self.reader.as_mut().consume(n);
            if end.is_some() {
                self.is_returned = true;
                return Ok(Some(&self.line));
            }
        }
    }
}

/// The items of a list, one object each.
pub struct ListItems {
    reader: BodyReader,
    splitter: ListSplitter,
}

impl ListItems {
    /// Reads from the beginning.
    pub fn new(reader: impl AsyncBufRead + Send + 'static) -> ListItems {
        ListItems { reader: Box::pin(reader), splitter: ListSplitter::default() }
    }

    /// The next item as sent; `None` at the end of the body.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.splitter.clear_item();
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let (n, is_complete) = self.splitter.push(bytes)?;
            self.reader.as_mut().consume(n);
            if is_complete {
                return Ok(Some(&self.splitter.item));
            }
        }
    }

    /// The metadata of a list that was read to its end. Fails if the body was not a list, or was cut off.
    pub fn end(&self) -> Result<ListMetadata, serde_json::Error> {
        #[derive(Deserialize)]
        struct Skeleton {
            metadata: ListMetadata,
        }
        let Skeleton { metadata } = serde_json::from_slice(&self.splitter.rest)?;
        Ok(metadata)
    }
}

/// Metadata of a list.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListMetadata {
    /// Version as of which the list is complete.
    pub resource_version: String,
    /// Continue token; empty when the list is complete.
    #[serde(rename = "continue")]
    pub continuation: String,
}

/// Splits the text of a list into its items and the rest. The rest, with an empty `items` array, is a JSON
/// document again. Items are not checked to be JSON: decoding does that.
#[derive(Default)]
struct ListSplitter {
    /// The item being received, or the last complete one.
    item: Vec<u8>,
    /// All text outside of items.
    rest: Vec<u8>,
    /// Number of open objects and arrays.
    depth: usize,
    /// Whether the `items` array is open.
    is_in_items: bool,
    is_in_string: bool,
    is_escaped: bool,
    /// Where in `rest` the last string of the outermost object begins.
    last_string: usize,
}

impl ListSplitter {
    fn clear_item(&mut self) {
        clear(&mut self.item);
    }

    /// Consumes bytes up to the end of an item; returns how many, and whether an item is complete.
    fn push(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        // Consecutive bytes with the same destination are copied at once.
        let mut begin = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.is_in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_in_string = false,
                    _ => {}
                }
                continue;
            }
            let is_between_items = self.is_in_items && self.depth == 2;
            match byte {
                b',' | b' ' | b'\n' | b'\r' | b'\t' if is_between_items => begin = at + 1,
                b'{' | b']' | b'}' => {}
                _ if is_between_items => return Err(invalid("an item is not an object".to_owned())),
                _ => {}
            }
            match byte {
                b'"' => {
                    self.is_in_string = true;
                    if self.depth == 1 {
                        self.last_string = self.rest.len() + (at - begin);
                    }
                }
                b'{' | b'[' => {
                    if self.depth == 1 && *byte == b'[' {
                        append(&mut self.rest, &bytes[begin..=at])?;
                        begin = at + 1;
                        self.is_in_items = self.rest[self.last_string..].starts_with(b"\"items\"");
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.is_in_items && self.depth == 1 {
                        self.is_in_items = false;
                        begin = at;
                    } else if self.is_in_items && self.depth == 2 {
                        append(&mut self.item, &bytes[begin..=at])?;
                        return Ok((at + 1, true));
                    }
                }
                _ => {}
            }
        }
        let run = &bytes[begin..];
        append(if self.is_in_items { &mut self.item } else { &mut self.rest }, run)?;
        Ok((bytes.len(), false))
    }
}

fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    if buffer.len() + bytes.len() > MAX_LENGTH {
        return Err(invalid(format!("more than {MAX_LENGTH} bytes in one line or item")));
    }
    buffer.extend_from_slice(bytes);
    Ok(())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT_CAPACITY);
}

#[cfg(test)]
mod tests;
