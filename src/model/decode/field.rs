//! Fields of an object, checked one by one: a good one comes back as a value, a bad one becomes a
//! [`Problem`] that names its path.

use std::fmt::Arguments;
use std::net::IpAddr;

use crate::model::{ObjectKind, Problem, TrafficPolicy};
use crate::net::{self, Cidr, Protocol};

/// Longest part of an offending text that a message repeats, in bytes.
const LONGEST_QUOTE: usize = 200;

/// The reader of one object's fields.
pub struct Fields {
    kind: ObjectKind,
    object: String,
    problems: Vec<Problem>,
}

impl Fields {
    /// For the object that calls itself `object`.
    pub fn new(kind: ObjectKind, object: &str) -> Fields {
        Fields { kind, object: quote(object), problems: Vec::new() }
    }

    /// What was wrong with the fields read so far.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes that `text` at `field` is wrong; `what` says how, and what follows. The same in entries of
    /// one list is one problem with a count.
    pub fn problem(&mut self, field: Arguments<'_>, text: &str, what: &str) {
        let field = field.to_string();
        let mut known = self.problems.iter_mut();
        if let Some(known) = known.find(|known| known.what == what && is_beside(&known.field, &field)) {
            return known.add_field(quote(text));
        }
        self.problems.push(Problem {
            kind: self.kind,
            object: self.object.clone(),
            field,
            text: quote(text),
            what: what.to_owned(),
            n_fields: 1,
            more_texts: Vec::new(),
        });
    }

    /// `text` if it has the grammar that `has_grammar` tests, called `grammar` in the message.
    pub fn word<'a>(
        &mut self,
        field: Arguments<'_>,
        text: &'a str,
        has_grammar: fn(&str) -> bool,
        what: &str,
    ) -> Option<&'a str> {
        if has_grammar(text) {
            return Some(text);
        }
        self.problem(field, text, what);
        None
    }

    /// An IP address.
    pub fn ip(&mut self, field: Arguments<'_>, text: &str) -> Option<IpAddr> {
        match net::parse_ip(text) {
            Ok(ip) => Some(ip),
            Err(_) => {
                self.problem(field, text, "is not an IP address; ignored");
                None
            }
        }
    }

    /// A CIDR.
    pub fn cidr(&mut self, field: Arguments<'_>, text: &str) -> Option<Cidr> {
        match Cidr::parse(text) {
            Ok(cidr) => Some(cidr),
            Err(_) => {
                self.problem(field, text, "is not a CIDR; ignored");
                None
            }
        }
    }

    /// A port number, 1 to 65535; `what` says what follows from a bad one.
    pub fn port(&mut self, field: Arguments<'_>, number: i32, what: &str) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.problem(field, &number.to_string(), &format!("is not a port number; {what}"));
                None
            }
        }
    }

    /// A protocol, TCP when absent.
    pub fn protocol(&mut self, field: Arguments<'_>, text: Option<&str>) -> Option<Protocol> {
        let text = text.unwrap_or("TCP");
        let protocol = Protocol::from_kubernetes(text);
        if protocol.is_none() {
            self.problem(field, text, "is not TCP, UDP or SCTP; port ignored");
        }
        protocol
    }

    /// A traffic policy, Cluster when absent.
    pub fn policy(&mut self, field: Arguments<'_>, text: Option<&str>) -> TrafficPolicy {
        match text {
            None | Some("" | "Cluster") => TrafficPolicy::Cluster,
            Some("Local") => TrafficPolicy::Local,
            Some(other) => {
                self.problem(field, other, "is not Cluster or Local; taken as Cluster");
                TrafficPolicy::Cluster
            }
        }
    }
}

/// Whether two paths differ in nothing but indices, as `ports[1].name` and `ports[2].name`.
fn is_beside(a: &str, b: &str) -> bool {
    fn without_numbers(text: &str) -> impl Iterator<Item = u8> + '_ {
        text.bytes().filter(|byte| !byte.is_ascii_digit())
    }
    without_numbers(a).eq(without_numbers(b))
}

/// `text` with control characters escaped, so that it cannot begin a line or move a cursor.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}

/// `text`, cut where it would fill the log.
pub fn quote(text: &str) -> String {
    if text.len() <= LONGEST_QUOTE {
        return text.to_owned();
    }
    let mut end = LONGEST_QUOTE;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} bytes)", &text[..end], text.len())
}

/// The elements of a list that may be absent.
pub fn list<T>(list: &Option<Vec<T>>) -> &[T] {
    list.as_deref().unwrap_or_default()
}
