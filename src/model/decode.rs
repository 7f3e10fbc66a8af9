//! Decodes Kubernetes API objects to model values: checks the fields that kube-proxy reads.
//!
//! Decoding never fails. A malformed field, also one of the wrong type, is ignored; so is a malformed list
//! entry, or the object if its identity or cluster IP is malformed. Each is one [`Problem`], and the rest
//! of the object is used. An object whose ports or endpoints are not a list, or whose metadata or spec is
//! not an object, is not decoded ([`require_usable`]): its last state stays in use. Fields that no rule
//! needs are skipped by the parser. No string of an object becomes part of a value unless it matches its
//! grammar: an API server has checked that, a file has not been checked, and the rules are restored as
//! root. Objects that are not for this proxy (headless, ExternalName, assigned to another proxy) are
//! skipped without a problem.
//!
//! [`manifest`] reads objects from YAML or JSON; objects of an API server come from `watch`.

mod decoded;
mod field_reader;
mod field_value;
mod grammar;
mod interner;
pub mod manifest;
mod node_decoder;
mod object;
mod pod_decoder;
mod service_decoder;
mod slice_decoder;

pub use decoded::Decoded;
pub use field_value::{FieldType, FieldValue};
pub use interner::Interner;
pub use node_decoder::node;
pub use object::{ApiNode, ApiObject, ApiPod, ApiService, ApiSlice, require_usable};
pub use pod_decoder::pod;
pub use service_decoder::{not_proxied, service};
pub use slice_decoder::slice;

use super::{Change, Problem};

/// Decodes an object to the change that sets it.
///
/// `None` without a usable name, and for a Pod, on which no rule depends. Every Node is a change: choosing this node's Node is left to the caller.
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
        manifest::Object::Pod(_) => (None, Vec::new()),
    }
}

#[cfg(test)]
mod tests;
