//! Brings the records in step with the cluster: which service ports exist, what their entries are, which of
//! them owns a frontend that several claim, and how the rules are laid out.

use std::collections::BTreeSet;

use super::in_force::InForce;
use super::index::Compiled;
use super::record::{Record, Records, Sums, of_service, remove_service};
use super::record_changes::RecordChanges;
use super::source::{PortCompiler, Selected, Source};
use super::turns::Work;
use crate::model::{ServiceName, ServicePortName};
use crate::rules::overlap::Claims;
use crate::rules::{Settings, SharedChain};

impl Compiled {
    /// Makes the records of `work` again, but for the `excluded` service ports. A full update leaves large
    /// Services to later ones; for these it depends on the rules in force which entries stay.
    pub(super) fn update<'a>(
        &mut self,
        work: &Work,
        source: Source<'a>,
        excluded: &BTreeSet<ServicePortName>,
        in_force: &dyn InForce,
    ) -> RecordChanges<'a> {
        let old = self.remove_records(work);
        let mut changes = RecordChanges { old, ..RecordChanges::default() };
        let is_claim_gone = self.remove_deferred(work, in_force);
        let (settings, snapshot) = (source.settings, source.view.snapshot);
        for service in work.services(snapshot) {
            let ports = source.ports_of(service, work.only());
            changes.n_entries_read += ports.n_entries_read();
            let selected = ports.iter().filter(|port| !excluded.contains(&port.name())).map(|port| {
                let selected = Selected::new(source, &ports, port);
                (port.name(), Record::new(settings, service, &selected), selected)
            });
            let weights = work.defers().then(|| {
                self.turns.weigh(&service.name, settings.family, snapshot, &changes.old, &self.deferred)
            });
            if let Some(waiting) = weights.flatten() {
                let new: Vec<_> = selected.map(|(name, record, _)| (name, record)).collect();
                let old = of_service(&changes.old, &service.name);
                let old: Vec<_> = old.filter(|(name, _)| !excluded.contains(*name)).collect();
                self.defer(settings, new, old, in_force);
                self.turns.begin(service.name.clone(), waiting);
                continue;
            }
            for (name, record, selected) in selected {
                self.records.insert(name.clone(), record);
                changes.add(name, selected);
            }
        }
        self.has_unknown_chains |= work.is_everything() && !self.turns.is_empty();
        let mut compiler = PortCompiler::new(source);
        let excluded = excluded.iter().filter_map(|name| compiler.select(name));
        self.n_excluded_endpoints = excluded.map(|selected| selected.n_endpoints).sum();
        if work.is_everything() {
            changes.shared.extend(SharedChain::ALL);
        } else {
            changes.add_shared(&self.records);
        }
        if is_claim_gone || changes.may_change_owners(&self.records) {
            self.update_overlaps(settings, &mut changes);
        }
        self.sum_up(work, &changes);
        changes
    }

    /// Removes the records that `work` makes again.
    fn remove_records(&mut self, work: &Work) -> Records {
        let records = &mut self.records;
        match work {
            Work::Everything { .. } => std::mem::take(records),
            Work::Services(names) => names.iter().flat_map(|name| remove_service(records, name)).collect(),
            Work::Part(ports) => ports.iter().filter_map(|name| records.remove_entry(name)).collect(),
        }
    }

    /// Removes the deferred service ports that `work` makes again; whether claims of theirs may be gone.
    fn remove_deferred(&mut self, work: &Work, in_force: &dyn InForce) -> bool {
        let n_before = self.deferred.len();
        match work {
            Work::Everything { .. } => {
                self.deferred.clear();
                self.is_deferred_owner = !in_force.has_jumps();
                return false;
            }
            Work::Services(names) => {
                names.iter().for_each(|name| drop(remove_service(&mut self.deferred, name)));
            }
            Work::Part(ports) => ports.iter().for_each(|name| drop(self.deferred.remove(name))),
        }
        self.deferred.len() < n_before
    }

    /// Leaves the service ports of a large Service as they were, `old`, until their turn comes. Those without
    /// an old record, at a start, count as in force as they are now, `new`, if the chains for that are there.
    fn defer(
        &mut self,
        settings: &Settings,
        new: Vec<(ServicePortName, Record)>,
        old: Vec<(&ServicePortName, &Record)>,
        in_force: &dyn InForce,
    ) {
        let is_usable = |record: &Record| record.may_precede_chains(settings, in_force);
        let had_record: BTreeSet<&ServicePortName> = old.iter().map(|(name, _)| *name).collect();
        for (name, record) in &old {
            let record = Record::clone(record).with_entries_of(settings);
            if is_usable(&record) {
                self.records.insert(ServicePortName::clone(name), record);
            }
        }
        for (name, record) in new {
            if self.records.contains_key(&name) {
                continue;
            }
            let is_in_force = !had_record.contains(&name) && is_usable(&record);
            let records = if is_in_force { &mut self.records } else { &mut self.deferred };
            records.insert(name, record);
        }
    }

    /// Decides again which service port owns each frontend that several claim.
    fn update_overlaps(&mut self, settings: &Settings, changes: &mut RecordChanges<'_>) {
        let deferred = self.is_deferred_owner.then_some(&self.deferred);
        let mut records: Vec<_> = self.records.iter().chain(deferred.into_iter().flatten()).collect();
        records.sort_by_key(|(name, _)| *name);
        let mut claims = Claims::default();
        records.into_iter().for_each(|(name, record)| claims.add(name, &record.service, record.keys()));
        let overlaps = claims.overlaps(settings.family);
        changes.add_overlaps(&self.records, &overlaps, &self.overlaps);
        changes.losses = overlaps.losses_since(&self.overlaps);
        self.overlaps = overlaps;
    }

    /// Decides the layout. Another one than the last touches everything: kube-proxy leaves chains of
    /// unchanged Services as they are until its next full sync; here the same objects always give the same
    /// rules.
    pub(super) fn lay_out(&mut self, work: &Work, source: Source<'_>, changes: &mut RecordChanges<'_>) {
        let settings = source.settings;
        let next = self.next_layout(settings, work.is_everything());
        if self.layout.replace(next) == Some(next) || work.is_everything() {
            return;
        }
        changes.shared.extend(SharedChain::ALL);
        let mut last: Option<&ServiceName> = None;
        let mut is_large = false;
        for (name, record) in &self.records {
            if last != Some(&name.service) {
                last = Some(&name.service);
                let (family, snapshot) = (settings.family, source.view.snapshot);
                let weights =
                    self.turns.weigh(&name.service, family, snapshot, &self.records, &self.deferred);
                is_large = weights.is_some();
                if let Some(weights) = weights {
                    self.turns.begin(name.service.clone(), weights);
                }
            }
            // The chains of a large Service keep their layout until its turn comes.
            if !is_large || changes.ports.contains(name) {
                changes.old.entry(name.clone()).or_insert_with(|| record.clone());
                changes.ports.insert(name.clone());
            }
        }
    }

    fn sum_up(&mut self, work: &Work, changes: &RecordChanges<'_>) {
        if work.is_everything() {
            self.sums = Sums::default();
            self.records.values().for_each(|record| self.sums.add(record));
            return;
        }
        let new = changes.ports.iter().filter_map(|name| self.records.get(name));
        new.for_each(|record| self.sums.add(record));
        changes.old.values().for_each(|record| self.sums.subtract(record));
    }
}
