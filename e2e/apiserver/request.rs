//! The subject of a request: its path and its query parameters.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::object::Key;
use super::resource::Resource;

/// The path of a request.
#[derive(Debug, PartialEq)]
pub struct Target {
    /// The kind.
    pub resource: &'static Resource,
    /// `None` is all namespaces, or a kind without them.
    pub namespace: Option<String>,
    /// `None` is the collection.
    pub name: Option<String>,
    /// Whether it is about the `status` subresource.
    pub is_status: bool,
}

impl Target {
    /// Reads `/api/v1/...` and `/apis/<group>/<version>/...`.
    pub fn parse(path: &str) -> Option<Target> {
        let mut steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let n_prefix = if *steps.first()? == "api" { 2 } else { 3 };
        if steps.len() <= n_prefix || !matches!(steps[0], "api" | "apis") {
            return None;
        }
        let rest = steps.split_off(n_prefix);
        let api_version = steps[1..].join("/");
        let target = |namespace: Option<&str>, plural: &str, rest: &[&str]| {
            let resource = Resource::of_path(&api_version, plural)?;
            let (name, is_status) = match *rest {
                [] => (None, false),
                [name] => (Some(name.to_owned()), false),
                [name, "status"] => (Some(name.to_owned()), true),
                _ => return None,
            };
            (namespace.is_none() || resource.is_namespaced).then(|| Target {
                resource,
                namespace: namespace.map(str::to_owned),
                name,
                is_status,
            })
        };
        match rest.as_slice() {
            // `/api/v1/namespaces/a/status` is the Namespace itself.
            ["namespaces", _, "status"] => target(None, "namespaces", &rest[1..]),
            ["namespaces", namespace, plural, rest @ ..] => target(Some(namespace), plural, rest),
            [plural, rest @ ..] => target(None, plural, rest),
            [] => None,
        }
    }

    /// The position of the object that the path names, if any.
    pub fn key(&self) -> Option<Key> {
        if self.resource.is_namespaced && self.namespace.is_none() {
            return None;
        }
        let namespace = self.namespace.clone().unwrap_or_default();
        Some(Key { namespace, name: self.name.clone()? })
    }
}

/// The query parameters of a request.
#[derive(Debug, Default)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Parses the text after the `?`.
    pub fn parse(text: &str) -> Query {
        Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    /// A parameter; empty if missing, which a real server treats alike.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether a parameter is `true` or `1`.
    pub fn claims(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    /// A parameter that is a number; the error is its text.
    pub fn number<N: FromStr>(&self, name: &str) -> Result<Option<N>, String> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| text.to_owned())
    }
}
