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

/// One thing wrong with one object. It cost the object that field (or itself), nothing else.
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
}

/// `Service default/web: spec.externalIPs[1]: "bogus" is not an IP address; ignored`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { kind, object, field, text, what } = self;
        write!(f, "{kind} {}: {field}", object.escape_debug())?;
        if !text.is_empty() {
            write!(f, ": {text:?}")?;
        }
        write!(f, " {what}")
    }
}
