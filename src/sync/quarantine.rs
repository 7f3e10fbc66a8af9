//! Who is to blame for a refused restore, and how everybody else is served all the same.
//!
//! The refused line mostly tells; where it does not, service ports are halved until the one is alone
//! that the kernel refuses. It is left out until its Service changes; each audit lets it be tried again.

use std::sync::atomic::AtomicBool;

use super::family::{FamilySync, View, fixed_nat_chains, nat_chains_of, ranked};
use super::report::Report;
use super::stopwatch::Timed;
use crate::kernel::{Iptables, RestoreError};
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{Failure, Planner};
use crate::rules::Settings;

/// How many service ports are left out in one sync at most. More are hardly their own fault.
const MAX_NEW: usize = 64;

/// What a sync works with.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) settings: &'a Settings,
    pub(super) view: View<'a>,
    pub(super) stop: &'a AtomicBool,
}

impl<K: Iptables> FamilySync<K> {
    /// Goes on after a refused restore: leaves out whom the kernel refuses, and programs the others.
    /// Fails where nobody in particular is to blame.
    pub(super) fn narrow(
        &mut self,
        scene: Scene<'_>,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        // The kernel may not be as it was left, or have been short of something for a moment.
        self.tables.doubt();
        let mut failure = match self.restore_everything(scene, report) {
            Err(again) if is_refusal(&again) => again,
            result => return result,
        };
        let mut is_line_trusted = true;
        for _ in 0..MAX_NEW {
            let blamed =
                if is_line_trusted { self.refusal_of(&failure).and_then(|it| it.service_port) } else { None };
            let Some(port) = blamed.or_else(|| self.search(scene, report)) else { return Err(failure) };
            let Some(refusal) = self.refusal_of(&failure) else { return Err(failure) };
            self.quarantine.insert(port.clone(), refusal.clone());
            let again = match self.restore_everything(scene, report) {
                Err(again) if is_refusal(&again) => again,
                result => {
                    // It does without him: he is to blame.
                    report.quarantined.push((port, refusal));
                    return result;
                }
            };
            if self.is_refused(std::slice::from_ref(&port), scene, report) {
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
    /// need is refused.
    fn search(&mut self, scene: Scene<'_>, report: &mut Report) -> Option<ServicePortName> {
        let mut suspects: Vec<ServicePortName> = self.records.keys().cloned().collect();
        let mut is_anything_taken = false;
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if !self.is_refused(&suspects, scene, report) {
                suspects = rest;
                is_anything_taken = true;
            }
        }
        if !is_anything_taken && self.is_refused(&[], scene, report) {
            return None;
        }
        suspects.pop()
    }

    /// Restores the chains of `ports` alone, and those that all need. What is taken stays.
    fn is_refused(&mut self, ports: &[ServicePortName], scene: Scene<'_>, report: &mut Report) -> bool {
        let (mut committed, _) = self.clock.reading(|| self.tables.take());
        let limits = self.tables.kernel.limits();
        let mut kernel = Timed::new(&mut self.tables.kernel);
        let family = scene.settings.family;
        let mut planner = Planner::new(family, &mut committed, &self.tables.jumps, limits, &mut kernel);
        let fixed = fixed_nat_chains(scene.settings);
        let mut result = planner.nat_chains(&ranked(&fixed));
        for port in ports {
            let chains = nat_chains_of(scene.settings, scene.view, port, self.is_large);
            result = result.and_then(|()| planner.nat_chains(&ranked(&chains)));
        }
        let result = result.and_then(|()| planner.finish());
        report.tally += planner.tally();
        self.clock.restoring(kernel.elapsed());
        self.tables.put_back(committed);
        report.n_failed_restores += usize::from(result.is_err());
        result.is_err_and(|failure| is_refusal(&failure))
    }
}

/// Whether the kernel refused what it was given, so that another input may fare better.
pub(super) fn is_refusal(failure: &Failure<RestoreError>) -> bool {
    matches!(failure.error, RestoreError::Refused { .. })
}
