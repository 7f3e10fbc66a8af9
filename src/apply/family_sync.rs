//! What one IP family keeps between syncs.

use std::collections::BTreeSet;

use super::sync_report::{Quarantine, Rejection, SyncReport};
use crate::compile::Compiled;
use crate::drift::{FamilyTables, ReadReason};
use crate::iptables::Table;
use crate::iptables::parse::{self, Line};
use crate::kernel::{Iptables, RestoreError};
use crate::model::ServiceName;
use crate::net::IpFamily;
use crate::plan::{RestoreFailure, StepOrder};
use crate::rules::{Layout, Settings};

/// The rules of one family on one node.
pub struct FamilySync<K> {
    pub(super) tables: FamilyTables<K>,
    pub(super) settings: Option<Settings>,
    pub(super) compiled: Compiled,
    /// Drift that failed syncs found.
    pub(super) n_unrepaired: usize,
    /// Service ports whose rules the kernel rejects.
    pub(super) quarantine: Quarantine,
    /// filter comes last from the urgent commit on, until a sync succeeds.
    pub(super) order: StepOrder,
}

impl<K: Iptables> FamilySync<K> {
    /// A family without compiled rules, of whose kernel tables nothing is known.
    pub fn new(kernel: K) -> FamilySync<K> {
        FamilySync {
            tables: FamilyTables::new(kernel),
            settings: None,
            compiled: Compiled::default(),
            n_unrepaired: 0,
            quarantine: Quarantine::new(),
            order: StepOrder::FilterAroundNat,
        }
    }

    /// The family.
    pub fn family(&self) -> IpFamily {
        self.tables.kernel.family()
    }

    /// The kernel's tables.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.tables.kernel
    }

    /// Marks the Services called `names` as changed, or their endpoints. Releases them from quarantine.
    pub fn touch(&mut self, names: BTreeSet<ServiceName>) {
        self.quarantine.retain(|port, _| !names.contains(&port.service));
        self.compiled.touch(names);
    }

    /// Has the next sync read the kernel and compare every service port with it, because another process wrote.
    pub fn distrust(&mut self, reason: ReadReason) {
        self.tables.distrust(reason);
        self.touch_changed_tables();
    }

    /// Has the next sync compare every service port, after a check found that the tables are to be read.
    pub(crate) fn touch_changed_tables(&mut self) {
        self.touch_everything();
        self.quarantine.clear();
        self.tables.references.referenced.clear();
    }

    /// Has the next sync compare every service port with what is known of the kernel.
    pub fn touch_everything(&mut self) {
        self.compiled.touch_everything();
    }

    /// Prepares for an audit what the kernel need not be read for: quarantined service ports are tried once more, as
    /// the cause of a rejection may have passed, and the layout may go back to classic.
    pub fn audit_due(&mut self) {
        self.touch(self.quarantine.keys().map(|port| port.service.clone()).collect());
        if self.settings.as_ref().is_some_and(|settings| self.compiled.may_change_layout(settings)) {
            self.touch_everything();
        }
    }

    /// Sets the inputs other than Services and endpoints; whether they differ from the last ones. If so, everything is
    /// compiled again.
    pub fn set_settings(&mut self, settings: Settings) -> bool {
        let is_new = self.settings.as_ref() != Some(&settings);
        if is_new {
            self.settings = Some(settings);
            self.compiled.touch_everything();
        }
        is_new
    }

    /// Syncs Services above `weight` a part at a time; see [`Compiled::set_turn_limit`]. For tests, in which all
    /// Services are small.
    pub fn set_turn_limit(&mut self, weight: usize) {
        self.compiled.set_turn_limit(weight);
    }

    /// The inputs other than Services and endpoints; `None` before they are set.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    /// Whether a sync has anything to do.
    pub fn is_dirty(&self) -> bool {
        !self.tables.is_known() || self.compiled.is_dirty()
    }

    /// Whether the last sync left a part of a large Service to the next.
    pub fn is_unfinished(&self) -> bool {
        self.compiled.is_unfinished()
    }

    /// The tables, for drift detection.
    pub fn tables(&mut self) -> &mut FamilyTables<K> {
        &mut self.tables
    }

    /// The quarantined service ports.
    pub fn quarantine(&self) -> &Quarantine {
        &self.quarantine
    }

    /// What is compiled.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// How the rules are laid out.
    pub fn layout(&self) -> Layout {
        self.compiled.layout()
    }

    /// Adds to `report` what is known after the sync.
    pub(super) fn complete(&mut self, report: &mut SyncReport) {
        let sums = self.compiled.sums();
        report.layout = self.layout();
        report.n_service_ports = self.compiled.service_ports().len();
        report.n_endpoints = sums.n_endpoints;
        report.n_dropped_internal = sums.n_dropped_internal;
        report.n_dropped_external = sums.n_dropped_external;
        report.waiting = self.compiled.waiting();
        report.reads = self.tables.take_reads();
        report.n_quarantined = self.quarantine.len();
        report.n_overlaps = self.compiled.n_overlaps();
        report.n_filter_rules = self.tables.n_rules(Table::Filter);
        report.n_nat_rules = self.tables.n_rules(Table::Nat);
        report.n_chains = self.tables.n_chains();
    }

    /// What a rejected restore is about; `None` for any other failure.
    pub(super) fn rejection_of(&self, failure: &RestoreFailure<RestoreError>) -> Option<Rejection> {
        let RestoreError::Refused { line, text, message } = &failure.error else { return None };
        let chain = failure.lines.chain_at(*line).map(|(table, chain, _)| (table, chain));
        let rule = text.as_deref().and_then(|text| match parse::line(self.family(), text) {
            Ok(Line::Append(_, rule)) => Some(rule),
            _ => None,
        });
        let service_port = chain.and_then(|chain| self.compiled.owner_of(chain, rule.as_ref()).cloned());
        Some(Rejection { line: *line, text: text.clone(), message: message.clone(), chain, service_port })
    }
}
