//! Problems of objects, with enough detail to find the field.

use std::fmt::{self, Write};

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
}

impl ObjectKind {
    /// `Service`, `EndpointSlice` or `Node`.
    pub fn as_str(self) -> &'static str {
        match self {
            ObjectKind::Service => "Service",
            ObjectKind::EndpointSlice => "EndpointSlice",
            ObjectKind::Node => "Node",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether something is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemWeight {
    /// An API server would not accept it.
    Wrong,
    /// It is legal, but nothing that a service proxy can use: an FQDN slice, a slice without a Service.
    NotForProxies,
}

/// One problem of one object. Only the field, or the object itself, is ignored. The same problem in several
/// entries of a list is one value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Whether it is wrong.
    pub weight: ProblemWeight,
    /// The object's kind.
    pub kind: ObjectKind,
    /// `<namespace>/<name>` as given, or the name of a Node.
    pub object: String,
    /// Path of the field, as in `spec.ports[2].port`.
    pub field: String,
    /// The invalid value as given; empty when the field is absent.
    pub text: String,
    /// The error and its consequence, as in `is not an IP address; ignored`.
    pub what: String,
    /// How many fields have the problem, at least 1; `field` and `text` are those of the first.
    pub n_fields: usize,
    /// The values of the next few fields.
    pub more_texts: Vec<String>,
}

/// How many values a problem shows beside the first one.
const MAX_MORE_TEXTS: usize = 2;

impl Problem {
    /// The problem without the name of its object, printable: `spec.externalIPs[1]: "bogus" is not an IP address; ignored`.
    pub fn without_object(&self) -> impl fmt::Display + '_ {
        WithoutObject(self)
    }

    /// Counts another field of the same list with the same problem.
    pub fn add_field(&mut self, text: String) {
        self.n_fields += 1;
        if self.more_texts.len() < MAX_MORE_TEXTS && !text.is_empty() {
            self.more_texts.push(text);
        }
    }
}

/// The longest part of an invalid value that is kept for messages, in bytes.
const MAX_QUOTED_BYTES: usize = 200;
/// The longest part of any field of a problem that a message shows, in escaped characters; longer than a
/// quote without escapes.
const MAX_ESCAPED_CHARS: usize = 300;

/// `text`, shortened if it is too long for a log line.
pub fn quote(text: &str) -> String {
    if text.len() <= MAX_QUOTED_BYTES {
        return text.to_owned();
    }
    format!("{}… ({} bytes)", prefix(text, MAX_QUOTED_BYTES), text.len())
}

/// At most `n` bytes of `text`, in whole characters.
fn prefix(text: &str, n: usize) -> &str {
    let end = (0..=n.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Whether `c` must not be printed unescaped: control characters (C0, DEL, C1), line and paragraph
/// separators, and bidirectional controls. Printed as they are, they could forge a log line or move a
/// terminal's cursor.
pub fn needs_escape(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || is_invisible
}

/// A value of an object for a message: shortened if too long, with everything escaped that could end a
/// quotation or a line, move a terminal's cursor or change the direction of writing.
#[derive(Clone, Copy, Debug)]
pub struct EscapedValue<'a>(pub &'a str);

impl fmt::Display for EscapedValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut n_left = MAX_ESCAPED_CHARS;
        for char in self.0.chars() {
            let escaped = char.escape_debug();
            n_left = match n_left.checked_sub(escaped.len()) {
                Some(n_left) => n_left,
                None => return write!(f, "… ({} bytes)", self.0.len()),
            };
            match char {
                '\'' => f.write_char(char)?,
                _ => write!(f, "{escaped}")?,
            }
        }
        Ok(())
    }
}

/// `Service default/web: spec.externalIPs[1]: "bogus" is not an IP address; ignored`, or for several fields
/// `... ignored (and 7 more: "x", "y", ...)`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, EscapedValue(&self.object), self.without_object())
    }
}

/// A problem without the name of its object.
struct WithoutObject<'a>(&'a Problem);

impl fmt::Display for WithoutObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { field, text, what, n_fields, more_texts, .. } = self.0;
        write!(f, "{}", EscapedValue(field))?;
        if !text.is_empty() {
            write!(f, ": \"{}\"", EscapedValue(text))?;
        }
        write!(f, " {}", EscapedValue(what))?;
        if *n_fields == 1 {
            return Ok(());
        }
        write!(f, " (and {} more", n_fields - 1)?;
        for (i, text) in more_texts.iter().enumerate() {
            write!(f, "{} \"{}\"", if i == 0 { ":" } else { "," }, EscapedValue(text))?;
        }
        f.write_str(if more_texts.is_empty() || n_fields - 1 == more_texts.len() { ")" } else { ", ...)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Problem {
        let text = || text.to_owned();
        Problem {
            weight: ProblemWeight::Wrong,
            kind: ObjectKind::Service,
            object: text(),
            field: text(),
            text: text(),
            what: text(),
            n_fields: 1,
            more_texts: Vec::new(),
        }
    }

    #[test]
    fn no_value_of_an_object_forges_a_line_or_moves_the_cursor() {
        let shown =
            problem("a\nlevel=ERROR forged\r\x1b[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{2028}\0z").to_string();
        let plain = |char: char| char.is_ascii_graphic() || char == ' ';
        assert!(shown.chars().all(plain), "{shown}");
        let one = r"a\nlevel=ERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{2028}\0z";
        assert_eq!(shown, format!("Service {one}: {one}: \"{one}\" {one}"));
    }

    #[test]
    fn a_long_value_is_shortened_in_every_field() {
        for long in ["ä", "\u{202e}", "\0\x1b"] {
            let text = long.repeat(1_000_000);
            let shown = problem(&text).to_string();
            assert!(shown.chars().count() < 4 * (MAX_ESCAPED_CHARS + 30), "{} bytes", shown.len());
            assert_eq!(shown.matches(&format!("… ({} bytes)", text.len())).count(), 4);
        }
        let quoted = quote(&"x".repeat(1_000));
        assert_eq!(EscapedValue(&quoted).to_string(), quoted);
    }

    #[test]
    fn letters_of_any_language_are_kept_and_quotes_are_escaped() {
        assert_eq!(EscapedValue("it's ünïcode 名").to_string(), "it's ünïcode 名");
        assert_eq!(EscapedValue(r#"a" \ b"#).to_string(), r#"a\" \\ b"#);
    }
}
