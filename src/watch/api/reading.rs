//! Bodies of answers, cut into what is decoded at once: a watch into lines, a list into its items. So no
//! list is ever whole in memory, however large the cluster.

use std::io;
use std::pin::Pin;

use futures::{AsyncBufRead, AsyncBufReadExt};
use serde::Deserialize;

/// The longest line or item that is read. An object has 3 MB at most, before an API server adds to it.
pub const LONGEST: usize = 32 << 20;

/// Memory beyond this is given back after a long line or item.
const KEPT: usize = 1 << 20;

type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// The lines of a watch, one event each.
pub struct Lines {
    reader: Reader,
    line: Vec<u8>,
    /// Whether `line` was given out.
    is_done: bool,
}

impl Lines {
    /// Reads from the beginning.
    pub fn new(reader: impl AsyncBufRead + Send + 'static) -> Lines {
        Lines { reader: Box::pin(reader), line: Vec::new(), is_done: false }
    }

    /// The next line; `None` at the end, where half a line counts as none. Nothing is lost when this is
    /// not waited for to its end.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if std::mem::take(&mut self.is_done) {
            clear(&mut self.line);
        }
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let n = end.map_or(bytes.len(), |end| end + 1);
            grow(&mut self.line, &bytes[..n])?;
            self.reader.as_mut().consume(n);
            if end.is_some() {
                self.is_done = true;
                return Ok(Some(&self.line));
            }
        }
    }
}

/// The items of a list, one object each.
pub struct Items {
    reader: Reader,
    cutter: Cutter,
}

impl Items {
    /// Reads from the beginning.
    pub fn new(reader: impl AsyncBufRead + Send + 'static) -> Items {
        Items { reader: Box::pin(reader), cutter: Cutter::default() }
    }

    /// The next item, as it was sent; `None` at the end of the body.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.cutter.forget_item();
        loop {
            let bytes = self.reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let (n, is_complete) = self.cutter.take(bytes)?;
            self.reader.as_mut().consume(n);
            if is_complete {
                return Ok(Some(&self.cutter.item));
            }
        }
    }

    /// The version of a list that was read to its end, and the token with which the rest of it would
    /// have to be asked for. An error when it was no list, or broke off.
    pub fn end(&self) -> Result<End, serde_json::Error> {
        #[derive(Deserialize)]
        struct Skeleton {
            metadata: End,
        }
        let Skeleton { metadata } = serde_json::from_slice(&self.cutter.rest)?;
        Ok(metadata)
    }
}

/// What a list says of itself.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct End {
    /// The version at which it was complete.
    pub resource_version: String,
    /// Not empty: it is not whole.
    #[serde(rename = "continue")]
    pub continuation: String,
}

/// Cuts the text of a list into items and the rest; the rest, in which `items` are empty, is a JSON
/// document again. Whether an item is JSON is left to whoever decodes it.
#[derive(Default)]
struct Cutter {
    /// The item that is being received, or was just received.
    item: Vec<u8>,
    /// Everything else.
    rest: Vec<u8>,
    /// How many objects and arrays are open.
    depth: usize,
    /// Whether the array of items is open.
    is_in_items: bool,
    is_in_text: bool,
    is_escaped: bool,
    /// Where in `rest` the last text of the outermost object begins.
    last_text: usize,
}

impl Cutter {
    fn forget_item(&mut self) {
        clear(&mut self.item);
    }

    /// Takes bytes, up to the end of an item; how many, and whether an item is complete.
    fn take(&mut self, bytes: &[u8]) -> io::Result<(usize, bool)> {
        // Runs of bytes that belong together are copied at once.
        let mut begin = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.is_in_text {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_in_text = false,
                    _ => {}
                }
                continue;
            }
            let is_between_items = self.is_in_items && self.depth == 2;
            match byte {
                b',' | b' ' | b'\n' | b'\r' | b'\t' if is_between_items => begin = at + 1,
                b'{' | b']' | b'}' => {}
                _ if is_between_items => return Err(invalid("an item is no object".to_owned())),
                _ => {}
            }
            match byte {
                b'"' => {
                    self.is_in_text = true;
                    if self.depth == 1 {
                        self.last_text = self.rest.len() + (at - begin);
                    }
                }
                b'{' | b'[' => {
                    if self.depth == 1 && *byte == b'[' {
                        grow(&mut self.rest, &bytes[begin..=at])?;
                        begin = at + 1;
                        self.is_in_items = self.rest[self.last_text..].starts_with(b"\"items\"");
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.is_in_items && self.depth == 1 {
                        self.is_in_items = false;
                        begin = at;
                    } else if self.is_in_items && self.depth == 2 {
                        grow(&mut self.item, &bytes[begin..=at])?;
                        return Ok((at + 1, true));
                    }
                }
                _ => {}
            }
        }
        let run = &bytes[begin..];
        grow(if self.is_in_items { &mut self.item } else { &mut self.rest }, run)?;
        Ok((bytes.len(), false))
    }
}

fn grow(buffer: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    if buffer.len() + bytes.len() > LONGEST {
        return Err(invalid(format!("more than {LONGEST} bytes in one piece")));
    }
    buffer.extend_from_slice(bytes);
    Ok(())
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT);
}

#[cfg(test)]
mod tests;
