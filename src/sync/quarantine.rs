//! Who is to blame for a refused restore, and how everybody else is served all the same.
//!
//! The refused line mostly tells; where it does not, service ports are halved until the one is alone
//! that the kernel refuses. It is left out until its Service changes or everything is compared again.

use std::sync::atomic::AtomicBool;

use super::family::{FamilySync, View, nat_chains_of, ranked};
use super::report::Report;
use crate::iptables::Table;
use crate::kernel::{Iptables, RestoreError};
use crate::model::{ServiceName, ServicePortName};
use crate::plan::{Failure, Planner};
use crate::rules::{Settings, names};

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
        mut failure: Failure<RestoreError>,
        report: &mut Report,
    ) -> Result<(), Failure<RestoreError>> {
        if self.has_drifted() {
            // The kernel is not as it was left; that alone may be why.
            match self.restore_everything(scene, report) {
                Err(again) if is_refusal(&again) => failure = again,
                result => return result,
            }
        }
        for _ in 0..MAX_NEW {
            let Some(port) = self.find_refused(scene, &failure, report) else { return Err(failure) };
            if let Some(refusal) = self.refusal_of(&failure) {
                report.quarantined.push((port.clone(), refusal.clone()));
                self.quarantine.insert(port, refusal);
            }
            match self.restore_everything(scene, report) {
                Err(again) if is_refusal(&again) => failure = again,
                result => return result,
            }
        }
        Err(failure)
    }

    /// Lets the service ports of `service` be tried again.
    pub(super) fn release(&mut self, service: &ServiceName) {
        self.quarantine.retain(|port, _| port.service != *service);
    }

    /// The one whom `failure` is about.
    fn find_refused(
        &mut self,
        scene: Scene<'_>,
        failure: &Failure<RestoreError>,
        report: &mut Report,
    ) -> Option<ServicePortName> {
        let refusal = self.refusal_of(failure)?;
        match (refusal.service_port, refusal.chain) {
            // Whose entry a line of a shared chain is, is beyond doubt.
            (Some(port), Some((table, chain)))
                if table == Table::Filter || names::PortChain::of(&chain).is_none() =>
            {
                return Some(port);
            }
            // The line is "near": it is tried alone.
            (Some(port), _) if self.is_refused(std::slice::from_ref(&port), scene, report) => {
                return Some(port);
            }
            _ => {}
        }
        let mut suspects: Vec<ServicePortName> = self.records.keys().cloned().collect();
        while suspects.len() > 1 {
            let rest = suspects.split_off(suspects.len() / 2);
            if !self.is_refused(&suspects, scene, report) {
                suspects = rest;
            }
        }
        let port = suspects.pop()?;
        self.is_refused(std::slice::from_ref(&port), scene, report).then_some(port)
    }

    /// Restores the chains of `ports` alone, which nobody need lead to yet. What is taken stays.
    fn is_refused(&mut self, ports: &[ServicePortName], scene: Scene<'_>, report: &mut Report) -> bool {
        let (mut committed, _) = self.tables.take();
        let limits = self.tables.kernel.limits();
        let tables = &mut self.tables;
        let mut planner =
            Planner::new(scene.settings.family, &mut committed, &tables.jumps, limits, &mut tables.kernel);
        let mut result = Ok(());
        for port in ports {
            let chains = nat_chains_of(scene.settings, scene.view, port, self.is_large);
            result = result.and_then(|()| planner.nat_chains(&ranked(&chains)));
        }
        let result = result.and_then(|()| planner.finish());
        report.tally += planner.tally();
        self.tables.put_back(committed);
        result.is_err_and(|failure| is_refusal(&failure))
    }
}

/// Whether the kernel refused what it was given, so that another input may fare better.
pub(super) fn is_refusal(failure: &Failure<RestoreError>) -> bool {
    matches!(failure.error, RestoreError::Refused { .. })
}
