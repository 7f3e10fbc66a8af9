//! What an update of the records changed.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Record, Records, chains_that_differ};
use super::source::{Preselected, Selected};
use crate::iptables::{ChainName, Table};
use crate::model::ServicePortName;
use crate::rules::SharedChain;
use crate::rules::overlap::{Loss, Overlaps};

/// What an update of the records changed.
#[derive(Default)]
pub(super) struct RecordChanges<'a> {
    /// Service ports whose chains have to be compiled.
    pub(super) ports: BTreeSet<ServicePortName>,
    /// The previous records of these, and of those that are gone.
    pub(super) old: BTreeMap<ServicePortName, Record>,
    /// Shared chains whose entries differ.
    pub(super) shared: BTreeSet<SharedChain>,
    /// The endpoints of some of `ports`.
    pub(super) preselected: Preselected<'a>,
    /// Frontends that Services lost to other Services.
    pub(super) losses: Vec<Loss>,
    /// Port entries of slices that were read.
    pub(super) n_entries_read: usize,
}

impl<'a> RecordChanges<'a> {
    /// Adds a service port with a new record.
    pub(super) fn add(&mut self, name: ServicePortName, selected: Selected<'a>) {
        self.ports.insert(name.clone());
        self.preselected.add(name, selected);
    }

    pub(super) fn touches(&self, table: Table) -> bool {
        self.shared.iter().any(|chain| chain.table() == table)
    }

    /// Whether packets that the dispatch in force sends to the chains of `name` would match neither the old nor
    /// the new rules if these chains changed before the dispatch.
    pub(super) fn changes_with_dispatch(&self, name: &ServicePortName, new: Option<&Record>) -> bool {
        self.old.get(name).zip(new).is_some_and(|(old, new)| !old.has_same_nat_entries(new))
    }

    /// The previous chains of the changed service ports.
    pub(super) fn chains_before(&self) -> BTreeSet<ChainName> {
        self.old.values().flat_map(|record| record.chains.iter().copied()).collect()
    }

    /// Whether the owner of a frontend that several Services claim may be another than before.
    pub(super) fn may_change_owners(&self, new: &Records) -> bool {
        let is_redated = |(name, old): (&ServicePortName, &Record)| {
            new.get(name).is_some_and(|new| new.service.created != old.service.created)
        };
        !self.shared.is_empty() || self.old.iter().any(is_redated)
    }

    /// Adds the shared chains whose entries differ because frontends have other owners than `before`.
    pub(super) fn add_overlaps(&mut self, new: &Records, overlaps: &Overlaps, before: &Overlaps) {
        for (key, names) in overlaps.changed_since(before) {
            let records = names.flat_map(|name| [self.old.get(name), new.get(name)]).flatten();
            let chains = records.flat_map(Record::keys).filter(|(_, other)| other == key);
            self.shared.extend(chains.map(|(chain, _)| chain));
        }
    }

    /// Adds the shared chains in which the entries of the changed service ports differ.
    pub(super) fn add_shared(&mut self, new: &Records) {
        for name in self.ports.iter().chain(self.old.keys()) {
            self.shared.extend(chains_that_differ(self.old.get(name), new.get(name)));
        }
    }
}
