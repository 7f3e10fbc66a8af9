//! Reads the cluster's state from an API server ([`api`]) or from folders of manifests (`files`). Both
//! send [`WatchEvent`]s over one channel. `model::Snapshot` combines them; `sync` acts on them.

pub mod api;
pub(crate) mod files;
mod problem_log;

use crate::model::{Change, ObjectKind, Problem};

/// An event from a source of cluster state, in order.
///
/// Each of the three `...Listed` events is sent once, after all objects of its kind that existed at the
/// start. Before that, rules would describe half of a cluster.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly every event is a change")]
pub enum WatchEvent {
    /// An object was added, changed or deleted.
    Change(Change),
    /// The first list of Services is complete.
    ServicesListed,
    /// The first list of EndpointSlices is complete.
    SlicesListed,
    /// The first list of Nodes is complete: this node's Node was sent, or does not exist.
    NodeListed,
    /// The number of unusable fields in objects of a kind, and the first problems; sent when they change.
    Problems(ObjectKind, usize, Vec<Problem>),
}

/// How many problems of a kind are sent.
const MAX_PROBLEMS: usize = 50;

/// How many events a source may queue before the loop reads them.
pub const CHANNEL_CAPACITY: usize = 1024;
