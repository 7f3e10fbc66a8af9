//! Fields of an object, checked one by one: a good one comes back as a value, a bad one becomes a
//! [`Problem`] that names its path.

use std::fmt::Arguments;
use std::net::IpAddr;

use super::given::{Given, Shape};
use crate::model::problem::{is_hidden, quote};
use crate::model::{ObjectKind, Problem, TrafficPolicy};
use crate::net::{self, Cidr, Protocol};

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

    /// The value that was given, if it is of the right type; `what` ends in what follows from a wrong
    /// one, behind its last `; `.
    pub fn good<'a, T: Shape>(
        &mut self,
        field: Arguments<'_>,
        given: &'a Given<T>,
        what: &str,
    ) -> Option<&'a T> {
        if let Given::Wrong(wrong) = given {
            let follows = what.rsplit_once("; ").map_or(what, |(_, follows)| follows);
            self.problem(field, &wrong.0, &format!("is not {}; {follows}", T::NAME));
        }
        given.get()
    }

    /// An element of a list of objects; `follows` says what follows from one that is none.
    pub fn entry<'a, T: Shape>(
        &mut self,
        field: Arguments<'_>,
        given: &'a Given<T>,
        follows: &str,
    ) -> Option<&'a T> {
        if given.is_absent() {
            self.problem(field, "", &format!("is null; {follows}"));
        }
        self.good(field, given, follows)
    }

    /// The elements of a list; none if it is absent or no list.
    pub fn list<'a, T>(&mut self, field: Arguments<'_>, given: &'a Given<Vec<T>>) -> &'a [T]
    where
        Vec<T>: Shape,
    {
        self.good(field, given, "ignored").map_or(&[], Vec::as_slice)
    }

    /// The text of a field whose absence is an empty text; `None` if it is no text.
    pub fn text<'a>(
        &mut self,
        field: Arguments<'_>,
        given: &'a Given<String>,
        what: &str,
    ) -> Option<&'a str> {
        match given {
            Given::Absent => Some(""),
            given => self.good(field, given, what).map(String::as_str),
        }
    }

    /// A text that has the grammar that `has_grammar` tests; `what` says how another one is wrong.
    pub fn word<'a>(
        &mut self,
        field: Arguments<'_>,
        given: &'a Given<String>,
        has_grammar: fn(&str) -> bool,
        what: &str,
    ) -> Option<&'a str> {
        let text = self.text(field, given, what)?;
        if has_grammar(text) {
            return Some(text);
        }
        self.problem(field, text, what);
        None
    }

    /// An IP address; `what` says how another text is wrong.
    pub fn ip(&mut self, field: Arguments<'_>, given: &Given<String>, what: &str) -> Option<IpAddr> {
        let text = self.text(field, given, what)?;
        let ip = net::parse_ip(text).ok();
        if ip.is_none() {
            self.problem(field, text, what);
        }
        ip
    }

    /// A CIDR.
    pub fn cidr(&mut self, field: Arguments<'_>, text: &str) -> Option<Cidr> {
        let cidr = Cidr::parse(text).ok();
        if cidr.is_none() {
            self.problem(field, text, NO_CIDR);
        }
        cidr
    }

    /// A port number, 1 to 65535; `follows` says what follows from another one.
    pub fn port(&mut self, field: Arguments<'_>, given: &Given<i64>, follows: &str) -> Option<u16> {
        if given.is_absent() {
            self.problem(field, "", &format!("is absent; {follows}"));
        }
        let number = *self.good(field, given, follows)?;
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.problem(field, &number.to_string(), &format!("is not a port number; {follows}"));
                None
            }
        }
    }

    /// A protocol, TCP when absent.
    pub fn protocol(&mut self, field: Arguments<'_>, given: &Given<String>) -> Option<Protocol> {
        let what = "is not TCP, UDP or SCTP; port ignored";
        let text = if given.is_absent() { "TCP" } else { self.text(field, given, what)? };
        let protocol = Protocol::from_kubernetes(text);
        if protocol.is_none() {
            self.problem(field, text, what);
        }
        protocol
    }

    /// A traffic policy, Cluster when absent.
    pub fn policy(&mut self, field: Arguments<'_>, given: &Given<String>) -> TrafficPolicy {
        let what = "is not Cluster or Local; taken as Cluster";
        match self.text(field, given, what) {
            None | Some("" | "Cluster") => {}
            Some("Local") => return TrafficPolicy::Local,
            Some(other) => self.problem(field, other, what),
        }
        TrafficPolicy::Cluster
    }
}

/// Of a text that should be a CIDR.
pub const NO_CIDR: &str = "is not a CIDR; ignored";
/// Of a text that should be an IP address.
pub const NO_IP: &str = "is not an IP address; ignored";

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
        if is_hidden(c) {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}
