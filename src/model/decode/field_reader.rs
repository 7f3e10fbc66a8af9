//! Checks the fields of one object: a valid field is returned as a value, an invalid one becomes a
//! [`Problem`] with its path.

use std::fmt::Arguments;
use std::net::IpAddr;

use super::field_value::{FieldType, FieldValue};
use crate::model::problem::{needs_escape, quote};
use crate::model::{ObjectKind, Problem, ProblemWeight, TrafficPolicy};
use crate::net::{self, Cidr, Protocol};

/// Reads the fields of one object and collects their problems.
pub struct FieldReader {
    kind: ObjectKind,
    object: String,
    problems: Vec<Problem>,
}

impl FieldReader {
    /// For the object with the name `object`.
    pub fn new(kind: ObjectKind, object: &str) -> FieldReader {
        FieldReader { kind, object: quote(object), problems: Vec::new() }
    }

    /// The problems of the fields read so far.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Records that `text` at `field` is invalid; `what` is the error and its consequence. The same error
    /// in entries of one list is one problem with a count.
    pub fn report(&mut self, field: Arguments<'_>, text: &str, what: &str) {
        self.add(ProblemWeight::Wrong, field, text, what);
    }

    /// As [`FieldReader::report`], for a legal value that a service proxy cannot use.
    pub fn report_unused(&mut self, field: Arguments<'_>, text: &str, what: &str) {
        self.add(ProblemWeight::NotForProxies, field, text, what);
    }

    fn add(&mut self, weight: ProblemWeight, field: Arguments<'_>, text: &str, what: &str) {
        let field = field.to_string();
        let mut known = self.problems.iter_mut();
        if let Some(known) = known.find(|known| {
            known.what == what && known.weight == weight && differ_only_in_indices(&known.field, &field)
        }) {
            return known.add_field(quote(text));
        }
        self.problems.push(Problem {
            weight,
            kind: self.kind,
            object: self.object.clone(),
            field,
            text: quote(text),
            what: what.to_owned(),
            n_fields: 1,
            more_texts: Vec::new(),
        });
    }

    /// The value, if it is of the expected type. For a value of another type, the problem repeats the
    /// consequence in `what`, after its last `; `.
    pub fn valid<'a, T: FieldType>(
        &mut self,
        field: Arguments<'_>,
        given: &'a FieldValue<T>,
        what: &str,
    ) -> Option<&'a T> {
        if let FieldValue::WrongType(wrong) = given {
            let follows = what.rsplit_once("; ").map_or(what, |(_, follows)| follows);
            self.report(field, &wrong.0, &format!("is not {}; {follows}", T::NAME));
        }
        given.get()
    }

    /// An element of a list of objects; `follows` is the consequence of one that is not an object.
    pub fn entry<'a, T: FieldType>(
        &mut self,
        field: Arguments<'_>,
        given: &'a FieldValue<T>,
        follows: &str,
    ) -> Option<&'a T> {
        if given.is_absent() {
            self.report(field, "", &format!("is null; {follows}"));
        }
        self.valid(field, given, follows)
    }

    /// The elements of a list; empty if it is absent or not a list.
    pub fn list<'a, T>(&mut self, field: Arguments<'_>, given: &'a FieldValue<Vec<T>>) -> &'a [T]
    where
        Vec<T>: FieldType,
    {
        self.valid(field, given, "ignored").map_or(&[], Vec::as_slice)
    }

    /// The string of a field; empty if absent, `None` if it is not a string.
    pub fn text<'a>(
        &mut self,
        field: Arguments<'_>,
        given: &'a FieldValue<String>,
        what: &str,
    ) -> Option<&'a str> {
        match given {
            FieldValue::Absent => Some(""),
            given => self.valid(field, given, what).map(String::as_str),
        }
    }

    /// A string that matches the grammar `has_grammar`; `what` is the error for one that does not.
    pub fn checked_text<'a>(
        &mut self,
        field: Arguments<'_>,
        given: &'a FieldValue<String>,
        has_grammar: fn(&str) -> bool,
        what: &str,
    ) -> Option<&'a str> {
        let text = self.text(field, given, what)?;
        if has_grammar(text) {
            return Some(text);
        }
        self.report(field, text, what);
        None
    }

    /// An IP address; `what` is the error for another string.
    pub fn ip(&mut self, field: Arguments<'_>, given: &FieldValue<String>, what: &str) -> Option<IpAddr> {
        let text = self.text(field, given, what)?;
        let ip = net::parse_ip(text).ok();
        if ip.is_none() {
            self.report(field, text, what);
        }
        ip
    }

    /// A CIDR.
    pub fn cidr(&mut self, field: Arguments<'_>, text: &str) -> Option<Cidr> {
        let cidr = Cidr::parse(text).ok();
        if cidr.is_none() {
            self.report(field, text, NOT_A_CIDR);
        }
        cidr
    }

    /// A port number, 1 to 65535; `follows` is the consequence of an invalid one.
    pub fn port(&mut self, field: Arguments<'_>, given: &FieldValue<i64>, follows: &str) -> Option<u16> {
        if given.is_absent() {
            self.report(field, "", &format!("is absent; {follows}"));
        }
        let number = *self.valid(field, given, follows)?;
        match u16::try_from(number) {
            Ok(port) if port != 0 => Some(port),
            _ => {
                self.report(field, &number.to_string(), &format!("is not a port number; {follows}"));
                None
            }
        }
    }

    /// A protocol, TCP when absent.
    pub fn protocol(&mut self, field: Arguments<'_>, given: &FieldValue<String>) -> Option<Protocol> {
        let what = "is not TCP, UDP or SCTP; port ignored";
        let text = if given.is_absent() { "TCP" } else { self.text(field, given, what)? };
        let protocol = Protocol::from_kubernetes(text);
        if protocol.is_none() {
            self.report(field, text, what);
        }
        protocol
    }

    /// A traffic policy, Cluster when absent.
    pub fn policy(&mut self, field: Arguments<'_>, given: &FieldValue<String>) -> TrafficPolicy {
        let what = "is not Cluster or Local; taken as Cluster";
        match self.text(field, given, what) {
            None | Some("" | "Cluster") => {}
            Some("Local") => return TrafficPolicy::Local,
            Some(other) => self.report(field, other, what),
        }
        TrafficPolicy::Cluster
    }
}

/// The error for a string that is not a CIDR.
pub const NOT_A_CIDR: &str = "is not a CIDR; ignored";
/// The error for a string that is not an IP address.
pub const NOT_AN_IP: &str = "is not an IP address; ignored";

/// Whether two paths differ only in indices, as `ports[1].name` and `ports[2].name`.
fn differ_only_in_indices(a: &str, b: &str) -> bool {
    fn without_numbers(text: &str) -> impl Iterator<Item = u8> + '_ {
        text.bytes().filter(|byte| !byte.is_ascii_digit())
    }
    without_numbers(a).eq(without_numbers(b))
}

/// `text` with control characters escaped, so that it cannot forge a line or move a cursor.
pub fn escape_control(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if needs_escape(c) {
            line.extend(c.escape_debug());
        } else {
            line.push(c);
        }
    }
    line
}
