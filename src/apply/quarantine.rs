//! Quarantines the service ports that the kernel rejects, so that all others are served.
//!
//! The rejected line mostly names the service port. Where it does not, the service ports are halved until one is
//! left that the kernel rejects. It stays out until its Service changes; each audit tries it again.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::attempt::{Attempt, RestoreOutcome, is_rejection};
use crate::compile::{PortCompiler, fixed_nat_chains};
use crate::drift::ReadReason;
use crate::iptables::{Chain, Rule, Table};
use crate::kernel::{Iptables, RestoreError};
use crate::model::ServicePortName;
use crate::plan::{Committed, DesiredRules, FixedNat, RestoreFailure, StepOrder, When};
use crate::rules::{Layout, names};

/// How many service ports one sync quarantines at most. If more are rejected, something else is the cause.
const MAX_NEW: usize = 64;

/// What one step of the search for rejected service ports comes to.
enum SearchStep {
    /// The sync ends like this.
    Done(RestoreOutcome),
    /// Another service port is rejected.
    GoOn(RestoreFailure<RestoreError>),
}

/// After a rejected restore, quarantines the service ports that are the cause and restores the rules of all
/// others. Passes the failure on where no service port is the cause.
pub(super) fn quarantine_rejected<K: Iptables>(
    attempt: &mut Attempt<'_, K>,
    outcome: RestoreOutcome,
) -> RestoreOutcome {
    if !outcome.as_ref().is_err_and(is_rejection) {
        return outcome;
    }
    // Another process may have changed the tables, or the kernel may have been short of memory for a moment.
    attempt.family.tables.distrust(ReadReason::RestoreFailed);
    let mut failure = match attempt.apply_everything() {
        Err(again) if is_rejection(&again) => again,
        outcome => return outcome,
    };
    let mut is_line_trusted = true;
    for _ in 0..MAX_NEW {
        if attempt.stop.load(Ordering::Relaxed) {
            break;
        }
        match attempt.quarantine_next(failure, &mut is_line_trusted)? {
            SearchStep::Done(outcome) => return outcome,
            SearchStep::GoOn(again) => failure = again,
        }
    }
    Err(failure)
}

impl<K: Iptables> Attempt<'_, K> {
    /// Quarantines one service port for `failure`, if the kernel rejects that port alone too.
    fn quarantine_next(
        &mut self,
        failure: RestoreFailure<RestoreError>,
        is_line_trusted: &mut bool,
    ) -> Result<SearchStep, RestoreFailure<RestoreError>> {
        let rejection = self.family.rejection_of(&failure);
        let named = rejection.as_ref().filter(|_| *is_line_trusted).and_then(|it| it.service_port.clone());
        let found = match named {
            Some(port) => Some(port),
            None => self.search()?,
        };
        let Some((port, rejection)) = found.zip(rejection) else { return Err(failure) };
        self.family.quarantine.insert(port.clone(), rejection.clone());
        let again = match self.apply_everything() {
            Err(again) if is_rejection(&again) => again,
            Ok(()) if !self.stop.load(Ordering::Relaxed) => {
                // The restore succeeds without this service port, so it is the cause.
                self.report.quarantined.push((port, rejection));
                return Ok(SearchStep::Done(Ok(())));
            }
            outcome => {
                // This shows nothing; the next sync searches again.
                self.family.quarantine.remove(&port);
                return Ok(SearchStep::Done(outcome));
            }
        };
        if self.is_rejected(std::slice::from_ref(&port))? {
            self.report.quarantined.push((port, rejection));
        } else {
            // The line was only near the cause, or no service port is the cause.
            self.family.quarantine.remove(&port);
            if !*is_line_trusted {
                return Err(again);
            }
            *is_line_trusted = false;
        }
        Ok(SearchStep::GoOn(again))
    }

    /// Halves the service ports until one is left that is rejected if any is. `None` when the chains that all
    /// ports need are rejected. Fails where a trial fails otherwise: the tables are locked, a program is killed.
    fn search(&mut self) -> Result<Option<ServicePortName>, RestoreFailure<RestoreError>> {
        let mut suspects: Vec<ServicePortName> = self.family.compiled.service_ports().cloned().collect();
        let mut is_any_accepted = false;
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if !self.is_rejected(&suspects)? {
                suspects = rest;
                is_any_accepted = true;
            }
        }
        if !is_any_accepted && self.is_rejected(&[])? {
            return Ok(None);
        }
        Ok(suspects.pop())
    }

    /// Whether the kernel rejects `ports`: restores their chains and the fixed ones, which stay, and their
    /// entries in chains that the same commit deletes.
    fn is_rejected(&mut self, ports: &[ServicePortName]) -> Result<bool, RestoreFailure<RestoreError>> {
        let mut committed = self.take_committed();
        let layout = self.family.compiled.layout();
        // Fixed chains that compact still needs while its chains are replaced stay as they are.
        let (fixed, _) = fixed_nat_chains(self.source.settings, layout, &committed);
        let mut trial = Trial { ports, fixed, layout, compiler: PortCompiler::new(self.source) };
        let outcome = self.run(StepOrder::Probe, &mut trial, &mut committed);
        self.family.tables.put_back(committed);
        match outcome {
            Ok(()) => Ok(false),
            Err(failure) if is_rejection(&failure) => Ok(true),
            Err(failure) => Err(failure),
        }
    }
}

/// The chains and entries of some service ports, as the planner tries them.
struct Trial<'a> {
    ports: &'a [ServicePortName],
    fixed: Vec<Chain>,
    layout: Layout,
    compiler: PortCompiler<'a>,
}

impl DesiredRules for Trial<'_> {
    fn fixed_nat(&mut self, _: &Committed) -> FixedNat {
        FixedNat { first: std::mem::take(&mut self.fixed), last: Vec::new() }
    }

    fn service_ports<E>(
        &mut self,
        write: &mut dyn FnMut(&[Chain], When) -> Result<(), E>,
    ) -> Result<ControlFlow<()>, E> {
        for port in self.ports {
            write(&self.compiler.chains(self.layout, port), When::Now)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn probe(&mut self, table: Table) -> Option<Chain> {
        let entries = self.ports.iter().flat_map(|port| self.compiler.entries(port));
        let rules: Vec<Rule> =
            entries.filter(|(chain, _)| chain.table() == table).map(|(_, rule)| rule).collect();
        let name = if table == Table::Nat { names::NAT_PROBE } else { names::FILTER_PROBE };
        (!rules.is_empty()).then_some(Chain { table, name, rules })
    }
}
