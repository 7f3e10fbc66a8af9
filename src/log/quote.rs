//! Text of any origin on one line: quoted as Go's `%q`, or as JSON with every hidden character escaped.
//!
//! What would end a line, move a terminal's cursor or turn the direction of writing is escaped, in
//! messages as in fields: no text of an object can forge a line.

use std::fmt::{self, Write};

/// How a character that cannot stand for itself is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escapes {
    /// As Go's `strconv.Quote`: `\n`, `\x1b`, `\u202e`.
    Go,
    /// As in JSON: `\n`, `\u001b`, `\u202e`.
    Json,
}

/// Writes to `out` what is written to it, escaped; the quotation marks are the caller's.
pub(super) struct Escaper<'a, W> {
    pub(super) out: &'a mut W,
    pub(super) escapes: Escapes,
    /// Whether `"` and `\` are escaped; not in text that stands without quotation marks.
    pub(super) is_quoted: bool,
}

impl<W: Write> Write for Escaper<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c| !self.is_plain(c)) {
            let (plain, others) = rest.split_at(at);
            self.out.write_str(plain)?;
            let mut others = others.chars();
            others.next().map_or(Ok(()), |c| self.escape(c))?;
            rest = others.as_str();
        }
        self.out.write_str(rest)
    }
}

impl<W: Write> Escaper<'_, W> {
    fn is_plain(&self, c: char) -> bool {
        match c {
            '"' | '\\' => !self.is_quoted,
            ' '..='~' => true,
            // What Go and Rust print; without most combining marks at the beginning of a character.
            _ => c.is_alphanumeric() || (!c.is_control() && c.escape_debug().len() == 1),
        }
    }

    fn escape(&mut self, c: char) -> fmt::Result {
        let is_go = self.escapes == Escapes::Go;
        match c {
            '"' | '\\' => write!(self.out, "\\{c}"),
            '\n' => self.out.write_str("\\n"),
            '\r' => self.out.write_str("\\r"),
            '\t' => self.out.write_str("\\t"),
            '\x08' => self.out.write_str("\\b"),
            '\x0c' => self.out.write_str("\\f"),
            '\x07' if is_go => self.out.write_str("\\a"),
            '\x0b' if is_go => self.out.write_str("\\v"),
            ..='\x7f' if is_go => write!(self.out, "\\x{:02x}", u32::from(c)),
            '\u{10000}'.. if is_go => write!(self.out, "\\U{:08x}", u32::from(c)),
            _ => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(self.out, "\\u{unit:04x}")),
        }
    }
}
