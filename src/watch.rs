//! Where the cluster's state comes from: an API server ([`api`]) or folders of manifests
//! ([`files`]). Both turn what they see into [`WatchEvent`]s on one channel; putting them together
//! is left to `model::Snapshot`, what to do about them to `sync`.

pub mod api;
pub mod files;
mod report;

use crate::model::{Change, ObjectKind};

/// What a source tells the loop, in order.
///
/// The three `...Listed` come once each in the life of a source, when everything of their kind that
/// was there at the start has been sent; rules made before that would be those of half a cluster.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every event is a change")]
pub enum WatchEvent {
    /// Something is new, changed or gone.
    Change(Change),
    /// All Services are known.
    ServicesListed,
    /// All EndpointSlices are known.
    SlicesListed,
    /// It is known whether this node's Node is there.
    NodeListed,
    /// So many fields of objects of a kind cannot be used now; told when the number changes.
    Problems(ObjectKind, usize),
}

/// How many events a source may be ahead of the loop.
pub const CHANNEL_CAPACITY: usize = 1024;
