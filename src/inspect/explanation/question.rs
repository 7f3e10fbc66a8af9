//! The question, and the answer that there is no such Service.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::ObjectName;

/// Which Service a report is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct ExplainQuestion {
    /// `<namespace>/<name>`.
    pub service: String,
    /// The name or number of one of its ports; `None` for all.
    pub port: Option<String>,
}

impl ExplainQuestion {
    /// Reads `NS/NAME[:PORT]`, also with `svc/` before it. The error says what is wrong.
    pub fn parse(text: &str) -> Result<ExplainQuestion, String> {
        let name = match text.strip_prefix("svc/") {
            Some(rest) if rest.contains('/') => rest,
            _ => text,
        };
        let (service, port) = match name.split_once(':') {
            Some((service, port)) => (service, Some(port)),
            None => (name, None),
        };
        let parts: Vec<&str> = service.split('/').collect();
        let is_name = |part: &str| !part.is_empty() && !part.contains(char::is_whitespace);
        match parts[..] {
            [namespace, service] if is_name(namespace) && is_name(service) => {}
            [service] if is_name(service) => return Err(format!("no namespace; write default/{name}?")),
            _ => return Err("not of the form NS/NAME or NS/NAME:PORT".to_owned()),
        }
        if port.is_some_and(|port| !is_name(port) || port.contains(':')) {
            return Err("not of the form NS/NAME or NS/NAME:PORT".to_owned());
        }
        Ok(ExplainQuestion { service: service.to_owned(), port: port.map(str::to_owned) })
    }

    pub(super) fn name(&self) -> ObjectName {
        let (namespace, name) = self.service.split_once('/').unwrap_or(("", &self.service));
        ObjectName::new(namespace, name)
    }

    /// Whether the port called `name` with number `number` is asked for.
    pub(super) fn asks_for(&self, name: &str, number: Option<u16>) -> bool {
        let Some(port) = &self.port else { return true };
        port == name || number.is_some_and(|number| port.parse() == Ok(number))
    }
}

/// The Service, or the port, does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoSuchService {
    /// `<namespace>/<name>`.
    pub service: String,
    /// The port, if the Service exists and has no such port.
    pub port: Option<String>,
    /// Where it was looked for, as in `the objects` or `rules in web.save`.
    pub searched: String,
    /// Names like the one asked for; for a port, all its ports. At most a few.
    pub near: Vec<String>,
}

/// `no Service "shop/bd" in the objects; did you mean shop/db?`
impl fmt::Display for NoSuchService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoSuchService { service, port, searched, near } = self;
        match port {
            Some(port) => {
                write!(f, "Service {service} has no port {port:?}")?;
                if !near.is_empty() {
                    write!(f, "; its ports are {}", near.join(", "))?;
                }
                Ok(())
            }
            None => {
                write!(f, "no Service {service:?} in {searched}")?;
                if !near.is_empty() {
                    write!(f, "; did you mean {}?", near.join(" or "))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for NoSuchService {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services_and_ports_are_read() {
        let check = |text: &str, service: &str, port: Option<&str>| {
            let expected = ExplainQuestion { service: service.to_owned(), port: port.map(str::to_owned) };
            assert_eq!(ExplainQuestion::parse(text), Ok(expected), "{text}");
        };
        check("shop/db", "shop/db", None);
        check("shop/db:5432", "shop/db", Some("5432"));
        check("svc/shop/db:pg", "shop/db", Some("pg"));
        check("svc/db", "svc/db", None);
        for text in ["", "/", "db/", "/db", "a/b/c", "shop/db:", "shop/db:a:b", "shop/d b", "svc/a/b/c"] {
            assert!(ExplainQuestion::parse(text).is_err(), "{text}");
        }
        assert_eq!(ExplainQuestion::parse("db").unwrap_err(), "no namespace; write default/db?");
    }

    #[test]
    fn a_port_is_asked_for_by_name_or_number() {
        let question = |port| ExplainQuestion::parse(&format!("shop/db:{port}")).unwrap();
        assert!(question("pg").asks_for("pg", None) && question("5432").asks_for("", Some(5432)));
        assert!(!question("pg").asks_for("", Some(5432)) && !question("54").asks_for("pg", Some(5432)));
    }
}
