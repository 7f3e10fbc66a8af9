//! What a sync is about, and the records of it: which Services or parts of one it compiles, what their
//! entries are, and how the rules are laid out.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::Scope;
use super::family::{FamilySync, View};
use super::quarantine::Scene;
use super::records::{Changed, Record, Sums, of_service, overlaps, record, take_records};
use super::report::Report;
use super::turns::Work;
use super::wanted::{Compiler, ports_among};
use crate::kernel::Iptables;
use crate::model::{ServiceName, ServicePortName};
use crate::plan::Committed;
use crate::rules::{Layout, Settings, SharedChain};

impl<K: Iptables> FamilySync<K> {
    /// Takes out of what is dirty what the next sync compiles: Services of ordinary size before a part of
    /// a large one, but never twice in succession.
    pub(super) fn choose_work(&mut self, view: View<'_>) {
        let family = self.family();
        let names = match std::mem::replace(&mut self.dirty, Scope::Services(BTreeSet::new())) {
            Scope::Everything => {
                self.work = Work::Everything { defers: true };
                return;
            }
            Scope::Services(names) => names,
        };
        let mut others = BTreeSet::new();
        for name in names {
            match self.turns.weigh(&name, family, view.snapshot, &self.records, &self.unserved) {
                Some(ports) => self.turns.begin(name, ports),
                None => {
                    self.turns.remove(&name);
                    others.insert(name);
                }
            }
        }
        self.work = if self.turns.is_due(!others.is_empty()) {
            self.dirty = Scope::Services(others);
            Work::Part(self.turns.take_part())
        } else {
            self.turns.yield_turn();
            Work::Services(others)
        };
    }

    /// Makes the records again of what this sync is about. A full sync leaves large Services to later ones;
    /// of these, `committed` tells what is in force.
    pub(super) fn compile(
        &mut self,
        settings: &Settings,
        view: View<'_>,
        committed: Option<&Committed>,
        report: &mut Report,
    ) -> Changed {
        let started = Instant::now();
        let work = std::mem::replace(&mut self.work, Work::Services(BTreeSet::new()));
        let old = match &work {
            Work::Everything { .. } => std::mem::take(&mut self.records),
            Work::Services(services) => {
                services.iter().flat_map(|name| take_records(&mut self.records, name)).collect()
            }
            Work::Part(ports) => ports.iter().filter_map(|name| self.records.remove_entry(name)).collect(),
        };
        let mut changed = Changed { ports: BTreeSet::new(), old, shared: BTreeSet::new() };
        let mut is_claim_gone = false;
        match &work {
            Work::Everything { .. } => {
                self.unserved.clear();
                self.is_unserved_owner = committed.is_some_and(|committed| committed.jumps.is_empty());
            }
            Work::Services(services) => services.iter().for_each(|name| {
                is_claim_gone |= !take_records(&mut self.unserved, name).is_empty();
            }),
            Work::Part(ports) => ports.iter().for_each(|name| {
                is_claim_gone |= self.unserved.remove(name).is_some();
            }),
        }
        for service in work.services(view.snapshot) {
            let ports = ports_among(view.snapshot, service, settings.family, work.only());
            report.n_entries_read += ports.n_entries_read();
            let made = ports.iter().filter(|port| !self.quarantine.contains_key(&port.name())).map(|port| {
                let endpoints = ports.endpoints(&port);
                (port.name(), record(settings, view.place, service, &port, &endpoints))
            });
            let waiting = match (&work, committed) {
                (Work::Everything { defers: true }, Some(committed)) => self
                    .turns
                    .weigh(&service.name, settings.family, view.snapshot, &changed.old, &self.unserved)
                    .map(|waiting| (committed, waiting)),
                _ => None,
            };
            match waiting {
                Some((committed, waiting)) => {
                    let made: Vec<(ServicePortName, Record)> = made.collect();
                    self.defer(settings, &service.name, made, &changed.old, committed);
                    self.turns.begin(service.name.clone(), waiting);
                }
                None => {
                    for (name, record) in made {
                        changed.ports.insert(name.clone());
                        self.records.insert(name, record);
                    }
                }
            }
        }
        self.has_unknown_chains |= work.is_everything() && !self.turns.is_empty();
        let mut compiler = Compiler::new(settings, view);
        let left_out = self.quarantine.keys().filter_map(|name| compiler.find(name));
        self.n_left_out = left_out.map(|(_, endpoints)| endpoints.len()).sum();
        changed.find_shared(&self.records, work.is_everything());
        if is_claim_gone || changed.may_change_owners(&self.records) {
            let unserved = self.is_unserved_owner.then_some(&self.unserved);
            let overlaps =
                overlaps(settings.family, self.records.iter().chain(unserved.into_iter().flatten()));
            changed.add_overlaps(&self.records, &overlaps, &self.overlaps);
            report.losses.extend(overlaps.losses_since(&self.overlaps));
            self.overlaps = overlaps;
        }
        self.work = work;
        self.sum_up(&changed);
        self.clock.compiling(started.elapsed());
        changed
    }

    /// Leaves the service ports of a large Service as they were, `old`, until their turn comes. What there was
    /// none of before, at a start, is in force as it is `made` if the chains for it are.
    fn defer(
        &mut self,
        settings: &Settings,
        service: &ServiceName,
        made: Vec<(ServicePortName, Record)>,
        old: &BTreeMap<ServicePortName, Record>,
        committed: &Committed,
    ) {
        let is_usable = |record: &Record| record.may_precede_chains(settings, committed);
        for (name, old) in of_service(old, service).filter(|(name, _)| !self.quarantine.contains_key(*name)) {
            let old = old.clone().remade(settings);
            if is_usable(&old) {
                self.records.insert(name.clone(), old);
            }
        }
        for (name, record) in made {
            if self.records.contains_key(&name) {
                continue;
            }
            let is_in_force = !old.contains_key(&name) && is_usable(&record);
            let held = if is_in_force { &mut self.records } else { &mut self.unserved };
            held.insert(name, record);
        }
    }

    /// Decides the layout; not while rejected service ports are searched. Another than the last touches
    /// everything: kube-proxy leaves chains of unchanged Services as they are until its next full sync;
    /// here the same objects always give the same rules.
    pub(super) fn lay_out(&mut self, Scene { settings, view, .. }: Scene<'_>, changed: &mut Changed) {
        let is_full = self.work.is_everything();
        let next = self.next_layout(settings, is_full);
        if self.layout.replace(next) == Some(next) || is_full {
            return;
        }
        changed.shared.extend(SharedChain::ALL);
        let mut last = None;
        let mut is_large = false;
        for (name, record) in &self.records {
            if last != Some(&name.service) {
                last = Some(&name.service);
                let weights = self.turns.weigh(
                    &name.service,
                    settings.family,
                    view.snapshot,
                    &self.records,
                    &self.unserved,
                );
                is_large = weights.is_some();
                if let Some(weights) = weights {
                    self.turns.begin(name.service.clone(), weights);
                }
            }
            // The chains of a large Service stay as they are laid out till its turn comes.
            if !is_large || changed.ports.contains(name) {
                changed.old.entry(name.clone()).or_insert_with(|| record.clone());
                changed.ports.insert(name.clone());
            }
        }
    }

    /// The layout for the endpoints of all service ports, those in quarantine too.
    pub(super) fn next_layout(&self, settings: &Settings, is_full: bool) -> Layout {
        let n_unserved: usize = self.unserved.values().map(|record| record.n_endpoints).sum();
        let n_endpoints = self.sums.n_endpoints + self.n_left_out + n_unserved;
        Layout::next(settings.layout, n_endpoints, self.layout(), is_full)
    }

    /// How the rules are laid out.
    pub fn layout(&self) -> Layout {
        self.layout.unwrap_or(Layout::Classic { is_large: false })
    }

    fn sum_up(&mut self, changed: &Changed) {
        if self.work.is_everything() {
            self.sums = Sums::default();
            self.records.values().for_each(|record| self.sums.add(record));
            return;
        }
        changed
            .ports
            .iter()
            .filter_map(|name| self.records.get(name))
            .for_each(|record| self.sums.add(record));
        changed.old.values().for_each(|record| self.sums.subtract(record));
    }
}
