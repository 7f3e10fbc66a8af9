//! Objects that come as a pile, from files: all Nodes among them, until it is known whose rules are
//! wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{self, Interner, manifest};
use super::{Change, Node, Problem, Snapshot, Touched};

/// Objects of one cluster, without a point of view.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    snapshot: Snapshot,
    nodes: BTreeMap<Arc<str>, Node>,
}

impl Inventory {
    /// Takes over `object`; one of the same kind and name is replaced. Says what is wrong with it.
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

    /// The cluster as the node called `name` sees it, whether there is a Node of that name or not.
    pub fn seen_from(&self, name: &str) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        snapshot.apply(Change::Node(self.nodes.get(name).cloned()), &mut Touched::default());
        snapshot
    }
}
