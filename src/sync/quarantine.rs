//! Who is to blame for a refused restore, and how everybody else is served all the same.
//!
//! The refused line mostly tells; where it does not, service ports are halved until the one is alone
//! that the kernel refuses. It is left out until its Service changes; each audit lets it be tried again.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use super::family::FamilySync;
use super::report::Report;
use super::stopwatch::Timed;
use crate::compile::{PortCompiler, Source, fixed_nat_chains};
use crate::drift::ReadReason;
use crate::iptables::{Chain, ChainName, Rule, Table};
use crate::kernel::{Iptables, RestoreError};
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{Committed, DesiredRules, FixedNat, Planner, RestoreFailure, StepOrder, When};
use crate::rules::{Layout, names};

/// How many service ports are left out in one sync at most. More are hardly their own fault.
const MAX_NEW: usize = 64;

/// What a sync works with.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) source: Source<'a>,
    pub(super) stop: &'a AtomicBool,
}

impl<K: Iptables> FamilySync<K> {
    /// Goes on after a refused restore: leaves out whom the kernel refuses, and programs the others.
    /// Fails where nobody in particular is to blame.
    pub(super) fn narrow(
        &mut self,
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<(), RestoreFailure<RestoreError>> {
        // The kernel may not be as it was left, or have been short of something for a moment.
        self.tables.distrust(ReadReason::RestoreFailed);
        let mut failure = match self.restore_everything(scene, report) {
            Err(again) if is_refusal(&again) => again,
            result => return result,
        };
        let mut is_line_trusted = true;
        for _ in 0..MAX_NEW {
            if scene.stop.load(Ordering::Relaxed) {
                return Err(failure);
            }
            let blamed =
                if is_line_trusted { self.refusal_of(&failure).and_then(|it| it.service_port) } else { None };
            let found = match blamed {
                Some(port) => Some(port),
                None => self.search(scene, report)?,
            };
            let Some((port, refusal)) = found.zip(self.refusal_of(&failure)) else { return Err(failure) };
            self.quarantine.insert(port.clone(), refusal.clone());
            let again = match self.restore_everything(scene, report) {
                Err(again) if is_refusal(&again) => again,
                Ok(()) if !scene.stop.load(Ordering::Relaxed) => {
                    // It does without him: he is to blame.
                    report.quarantined.push((port, refusal));
                    return Ok(());
                }
                result => {
                    // Nothing was shown: the next sync finds out.
                    self.quarantine.remove(&port);
                    return result;
                }
            };
            if self.is_refused(std::slice::from_ref(&port), scene, report)? {
                report.quarantined.push((port, refusal));
            } else {
                // The line was only near, or there is nobody to blame.
                self.quarantine.remove(&port);
                if !is_line_trusted {
                    return Err(again);
                }
                is_line_trusted = false;
            }
            failure = again;
        }
        Err(failure)
    }

    /// Lets the service ports of `service` be tried again.
    pub(super) fn release(&mut self, service: &ServiceName) {
        self.quarantine.retain(|port, _| port.service != *service);
    }

    /// Halves the service ports until one is left who is refused if anybody is. `None` when what all
    /// need is refused. Fails where it cannot be told: the tables are locked, a program was killed.
    fn search(
        &mut self,
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<Option<ServicePortName>, RestoreFailure<RestoreError>> {
        let mut suspects: Vec<ServicePortName> = self.compiled.service_ports().cloned().collect();
        let mut is_anything_taken = false;
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if !self.is_refused(&suspects, scene, report)? {
                suspects = rest;
                is_anything_taken = true;
            }
        }
        if !is_anything_taken && self.is_refused(&[], scene, report)? {
            return Ok(None);
        }
        Ok(suspects.pop())
    }

    /// Restores the chains of `ports` alone, and those that all need, which stay; and the entries of
    /// `ports` in the shared chains, in chains of their own that are gone again with the same commit.
    fn is_refused(
        &mut self,
        ports: &[ServicePortName],
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<bool, RestoreFailure<RestoreError>> {
        let mut committed = self.take_committed(report);
        let (limits, layout) = (self.tables.kernel.limits(), self.compiled.layout());
        let mut kernel = Timed::new(&mut self.tables.kernel);
        // What compact still needs while its chains are replaced is left as it is.
        let (fixed, _) = fixed_nat_chains(scene.source.settings, layout, &committed);
        let planner = Planner::new(
            scene.source.settings.family,
            &mut committed,
            &self.tables.jumps,
            limits,
            &mut kernel,
        );
        let mut trial = Trial { ports, fixed, layout, compiler: PortCompiler::new(scene.source) };
        let (counts, result) = planner.run(StepOrder::Probe, &mut trial);
        report.tally += counts;
        self.tables.put_back(committed);
        report.n_failed_restores += usize::from(result.is_err());
        match result {
            Ok(()) => Ok(false),
            Err(failure) if is_refusal(&failure) => Ok(true),
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

/// The chain that could not be deleted, because a rule of somebody else leads to it.
pub(super) fn held_chain(failure: &RestoreFailure<RestoreError>) -> Option<ChainName> {
    let RestoreError::Refused { text, message, .. } = &failure.error else { return None };
    // legacy names the line, nf_tables the chain: `CHAIN_DEL failed (Device or resource busy): chain X`,
    // with 1.8.7 `CHAIN_USER_DEL failed`.
    let by_line = text.as_deref().and_then(|text| text.strip_prefix("-X "));
    let by_message = || {
        let (_, rest) =
            message.split_once("CHAIN_DEL failed").or(message.split_once("CHAIN_USER_DEL failed"))?;
        rest.split_once("chain ")?.1.split_whitespace().next()
    };
    by_line.or_else(by_message).and_then(|name| ChainName::new(name.trim()))
}

/// Whether the kernel refused what it was given, so that another input may fare better.
pub(super) fn is_refusal(failure: &RestoreFailure<RestoreError>) -> bool {
    matches!(failure.error, RestoreError::Refused { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LineIndex;

    #[test]
    fn a_chain_that_others_lead_to_is_found_in_what_each_release_says() {
        let held = |text: Option<&str>, message: &str| {
            let (text, message) = (text.map(str::to_owned), message.to_owned());
            let error = RestoreError::Refused { line: 13, text, message };
            held_chain(&RestoreFailure { error, lines: LineIndex::default() }).map(|chain| chain.to_string())
        };
        let name = Some("KUBE-SVC-AI2USSGGNVDGK3N5".to_owned());
        for word in ["CHAIN_DEL", "CHAIN_USER_DEL"] {
            let reason = "failed (Device or resource busy): chain KUBE-SVC-AI2USSGGNVDGK3N5";
            let message = format!("iptables-nft-restore v1.8.7 (nf_tables):; line 13: {word} {reason}");
            assert_eq!(held(Some("COMMIT"), &message), name);
        }
        let text = "-X KUBE-SVC-AI2USSGGNVDGK3N5";
        assert_eq!(held(Some(text), "iptables-legacy-restore: line 13 failed"), name);
        assert_eq!(
            held(Some("COMMIT"), "line 13: RULE_APPEND failed (Invalid argument): rule in chain X"),
            None
        );
    }
}
