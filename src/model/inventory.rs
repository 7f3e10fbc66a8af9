//! Objects read from files, with all Nodes, before the node is chosen.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{self, Interner, manifest};
use super::{Change, Node, Problem, Snapshot, Touched};

/// All objects of one cluster, not yet seen from one node.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    snapshot: Snapshot,
    nodes: BTreeMap<Arc<str>, Node>,
}

impl Inventory {
    /// Adds `object`, or replaces one of the same kind and name. Returns its problems.
    pub fn add(&mut self, object: &manifest::Object, interner: &mut Interner) -> Vec<Problem> {
        let (change, problems) = decode::change(object, interner);
        match change {
            Some(Change::Node(Some(node))) => drop(self.nodes.insert(node.name.clone(), node)),
            Some(change) => self.snapshot.apply(change, &mut Touched::default()),
            None => {}
        }
        problems
    }

    /// The Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The cluster from the point of view of node `name`, whether a Node of that name exists or not.
    pub fn snapshot_for(&self, name: &str) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        snapshot.apply(Change::Node(self.nodes.get(name).cloned()), &mut Touched::default());
        snapshot
    }
}
