//! What is wrong with an object, said so that its author finds the place.

use std::fmt;

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
    pub fn word(self) -> &'static str {
        match self {
            ObjectKind::Service => "Service",
            ObjectKind::EndpointSlice => "EndpointSlice",
            ObjectKind::Node => "Node",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
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

/// `Service default/web: spec.externalIPs[1]: "bogus" is not an IP address; ignored`, and for several
/// `... ignored (and 7 more: "x", "y", ...)`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { kind, object, field, text, what, n_fields, more_texts } = self;
        write!(f, "{kind} {}: {}", object.escape_debug(), field.escape_debug())?;
        if !text.is_empty() {
            write!(f, ": {text:?}")?;
        }
        write!(f, " {what}")?;
        if *n_fields == 1 {
            return Ok(());
        }
        write!(f, " (and {} more", n_fields - 1)?;
        for (i, text) in more_texts.iter().enumerate() {
            write!(f, "{} {text:?}", if i == 0 { ":" } else { "," })?;
        }
        f.write_str(if more_texts.is_empty() || n_fields - 1 == more_texts.len() { ")" } else { ", ...)" })
    }
}
