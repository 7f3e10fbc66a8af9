//! What is wrong with an object, said so that its author finds the place.

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

/// One thing wrong with one object. It cost the object that field (or itself), nothing else. The same
/// in several entries of a list is one problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object's kind.
    pub kind: ObjectKind,
    /// `<namespace>/<name>` as it was given, or the bare name of a Node.
    pub object: String,
    /// Path of the field, as in `spec.ports[2].port`.
    pub field: String,
    /// The text at fault, as it was given; empty when nothing was.
    pub text: String,
    /// What is wrong with it and what follows, as in `is not an IP address; ignored`.
    pub what: String,
    /// How many fields have it, at least 1; `field` and `text` are those of the first.
    pub n_fields: usize,
    /// The texts of the next few.
    pub more_texts: Vec<String>,
}

/// Texts that a problem repeats beside the first one.
const MOST_MORE_TEXTS: usize = 2;

impl Problem {
    /// Another field of the same list has it, with `text`.
    pub fn add_field(&mut self, text: String) {
        self.n_fields += 1;
        if self.more_texts.len() < MOST_MORE_TEXTS && !text.is_empty() {
            self.more_texts.push(text);
        }
    }
}

/// Longest part of an offending text that is kept to be repeated in a message, in bytes.
const LONGEST_QUOTE: usize = 200;
/// Longest part of any field of a problem that a message shows, in characters as they are escaped: more
/// than a quote takes that needs no escapes.
const LONGEST_SHOWN: usize = 300;

/// `text`, cut where it would fill the log.
pub fn quote(text: &str) -> String {
    if text.len() <= LONGEST_QUOTE {
        return text.to_owned();
    }
    format!("{}… ({} bytes)", beginning(text, LONGEST_QUOTE), text.len())
}

/// At most `n` bytes of `text`, in whole characters.
fn beginning(text: &str, n: usize) -> &str {
    let end = (0..=n.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Whether `c` does something else than show itself: control characters (C0, DEL, C1), separators of lines
/// and paragraphs, and what sets the direction of writing. Text that was not written here is never shown
/// with them, as it could forge a line or move a terminal's cursor.
pub fn is_hidden(c: char) -> bool {
    let is_invisible = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || is_invisible
}

/// A text of an object as a message shows it: cut where it would fill the log, and with everything
/// escaped that could end a quotation or the line, move a terminal's cursor or turn the direction of
/// writing.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut n_left = LONGEST_SHOWN;
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

/// `Service default/web: spec.externalIPs[1]: "bogus" is not an IP address; ignored`, and for several
/// `... ignored (and 7 more: "x", "y", ...)`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { kind, object, field, text, what, n_fields, more_texts } = self;
        write!(f, "{kind} {}: {}", Shown(object), Shown(field))?;
        if !text.is_empty() {
            write!(f, ": \"{}\"", Shown(text))?;
        }
        write!(f, " {}", Shown(what))?;
        if *n_fields == 1 {
            return Ok(());
        }
        write!(f, " (and {} more", n_fields - 1)?;
        for (i, text) in more_texts.iter().enumerate() {
            write!(f, "{} \"{}\"", if i == 0 { ":" } else { "," }, Shown(text))?;
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
    fn no_text_of_an_object_forges_a_line_or_moves_the_cursor() {
        let shown =
            problem("a\nlevel=ERROR forged\r\x1b[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{2028}\0z").to_string();
        let plain = |char: char| char.is_ascii_graphic() || char == ' ';
        assert!(shown.chars().all(plain), "{shown}");
        let one = r"a\nlevel=ERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{2028}\0z";
        assert_eq!(shown, format!("Service {one}: {one}: \"{one}\" {one}"));
    }

    #[test]
    fn a_long_text_is_cut_whichever_field_it_is_in() {
        for long in ["ä", "\u{202e}", "\0\x1b"] {
            let text = long.repeat(1_000_000);
            let shown = problem(&text).to_string();
            assert!(shown.chars().count() < 4 * (LONGEST_SHOWN + 30), "{} bytes", shown.len());
            assert_eq!(shown.matches(&format!("… ({} bytes)", text.len())).count(), 4);
        }
        let quoted = quote(&"x".repeat(1_000));
        assert_eq!(Shown(&quoted).to_string(), quoted);
    }

    #[test]
    fn letters_of_any_language_stay_as_they_are_and_quotes_end_nothing() {
        assert_eq!(Shown("it's ünïcode 名").to_string(), "it's ünïcode 名");
        assert_eq!(Shown(r#"a" \ b"#).to_string(), r#"a\" \\ b"#);
    }
}
