//! Two nodes' rules, or one node's before and after a change: which chains differ, and which packets fare
//! differently.
//!
//! Text is compared by [`iptables::diff`](crate::iptables::diff). For packets, `landmarks` collects the addresses,
//! ports and networks that either ruleset names, `probes` chooses packets at and beside them, `fates` compares what
//! happens to each under both rulesets, and `traffic` sums up by Service what fares differently.

mod chain_differences;
mod diff_report;
mod fates;
mod landmarks;
mod probes;
mod tracks;
mod traffic;

pub use diff_report::{
    ChainDiff, DiffReport, EditKind, FamilyDiff, PacketDiff, PacketExample, RuleLine, ServiceTraffic,
    ShareShift, TrafficChange, TrafficShift, VerdictShare,
};

use super::Subject;
use super::labels::ChainLabels;
use super::vantage::Vantages;
use crate::iptables::{Ruleset, diff};
use crate::net::IpFamily;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffMode {
    /// Chains and rules.
    Text,
    /// What happens to packets, with so many threads.
    Packets {
        /// At least 1.
        n_threads: usize,
    },
}

/// Compares the rules of two subjects, before and after, in every family that both have. Each has a name, as the report
/// shows it.
///
/// Packets are compared on one node: with the addresses of both hosts, and the vantages of the subject of which more
/// is known. So the report is about the rules alone.
pub fn compare(sides: [(&str, &Subject); 2], mode: DiffMode) -> DiffReport {
    let [(before_name, before), (after_name, after)] = sides;
    let mut report = DiffReport {
        before: before_name.to_owned(),
        after: after_name.to_owned(),
        is_same: true,
        families: Vec::new(),
        notes: Vec::new(),
    };
    for family in IpFamily::BOTH {
        match (before.rulesets.get(family), after.rulesets.get(family)) {
            (Some(old), Some(new)) => {
                let pair = SubjectPair { family, subjects: [before, after], rulesets: [old, new] };
                let found = pair.compare(mode);
                report.is_same &= match &found.packets {
                    None => found.n_different_chains == 0,
                    Some(packets) => packets.n_different == 0,
                };
                report.families.push(found);
            }
            (Some(_), None) => {
                report.notes.push(format!("{family} is only in {}: not compared", report.before))
            }
            (None, Some(_)) => {
                report.notes.push(format!("{family} is only in {}: not compared", report.after))
            }
            (None, None) => {}
        }
    }
    report
}

struct SubjectPair<'a> {
    family: IpFamily,
    subjects: [&'a Subject; 2],
    rulesets: [&'a Ruleset; 2],
}

impl SubjectPair<'_> {
    fn compare(&self, mode: DiffMode) -> FamilyDiff {
        let labels = self.subjects.map(|subject| ChainLabels::of(subject, self.family));
        let different = diff::compare(self.rulesets[0], self.rulesets[1]);
        let mut found = FamilyDiff {
            family: self.family.lower().to_owned(),
            n_different_chains: different.len(),
            services: chain_differences::services(&different, &labels),
            chains: Vec::new(),
            packets: None,
        };
        match mode {
            DiffMode::Text => {
                let describe = |chain| chain_differences::describe(chain, self.family, &labels);
                found.chains = different.iter().map(describe).collect();
            }
            DiffMode::Packets { n_threads } => {
                found.packets = Some(self.compare_packets(&labels, n_threads));
            }
        }
        found
    }

    fn compare_packets(&self, labels: &[ChainLabels; 2], n_threads: usize) -> PacketDiff {
        let vantages = Vantages::of_both(self.subjects, self.family);
        let landmarks = landmarks::Landmarks::of(self.rulesets, self.family);
        let probes = probes::choose(&landmarks, &vantages, self.family);
        let sides = fates::Sides::new(self.rulesets, &vantages);
        let tracks = tracks::Tracks::new(&sides, &landmarks, &vantages, self.family);
        let mut traffic = traffic::compare(&tracks, labels, &probes, n_threads);
        traffic.stand_ins = vantages
            .points
            .iter()
            .filter_map(|point| {
                Some(format!("{}: {}, {}", point.vantage, point.source, point.stands_for.as_ref()?))
            })
            .collect();
        traffic
    }
}

#[cfg(test)]
mod tests;
