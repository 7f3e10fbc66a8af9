//! Kubernetes API objects as model values: what kube-proxy reads of them, checked.
//!
//! Nothing here fails. What is malformed, a value of the wrong type included, costs its field, its list
//! entry, or the object when it is its identity or its cluster IP; each such place is one [`Problem`],
//! and the rest of the object is used. An object whose ports or endpoints are not a list, or whose
//! metadata or spec is not an object, is not decoded ([`whole`]): its last state stays in use. Fields
//! that no rule needs are skipped unread. No text of an object gets into a value unless it has its
//! grammar: an API server has checked that, a file has not, and the rules are restored as root. Objects
//! that are not for this proxy (headless, ExternalName, left to another proxy) are skipped without a
//! word.
//!
//! Text of YAML or JSON becomes objects in [`manifest`]; the cluster's own come from `watch`.

mod field;
mod given;
mod grammar;
mod interner;
pub mod manifest;
mod node;
mod object;
mod service;
mod slice;

pub use given::{Given, Shape};
pub use interner::Interner;
pub use node::node;
pub use object::{ApiNode, ApiObject, ApiService, ApiSlice, whole};
pub use service::service;
pub use slice::slice;

use super::{Change, ObjectName, Problem};

/// What came of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// Its name, and its value if it counts: `Some((name, None))` is as good as an object that is
    /// not there (a headless Service, a slice of no Service). `None` without a usable name.
    pub named: Option<(ObjectName, Option<T>)>,
    /// What is wrong with it, in the order of its fields.
    pub problems: Vec<Problem>,
}

impl<T> Decoded<T> {
    /// The value, when the object has a name and counts.
    pub fn value(self) -> Option<T> {
        self.named.and_then(|(_, value)| value)
    }
}

/// Decodes an object of any of the three kinds to the change that says it is there.
///
/// `None` without a usable name. A Node is a change whoever it is: the caller knows which node is
/// its own.
pub fn change(object: &manifest::Object, interner: &mut Interner) -> (Option<Change>, Vec<Problem>) {
    match object {
        manifest::Object::Service(object) => {
            let Decoded { named, problems } = service(object, interner);
            (named.map(|(name, value)| Change::Service(name, value)), problems)
        }
        manifest::Object::Slice(object) => {
            let Decoded { named, problems } = slice(object, interner);
            (named.map(|(name, value)| Change::Slice(name, value)), problems)
        }
        manifest::Object::Node(object) => {
            let (node, problems) = node(object, interner);
            (node.map(|node| Change::Node(Some(node))), problems)
        }
    }
}

#[cfg(test)]
mod tests;
