//! Which findings last. While a proxy follows a change of the cluster, its rules and the objects differ for a moment;
//! only what stays for the grace period counts.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::inspect::findings::{CheckFinding, FindingKind};

/// What makes two findings of different checks the same: not its text, since the rules of a chain that differs may
/// change meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FindingIdentity {
    kind: FindingKind,
    family: Option<String>,
    table: Option<String>,
    chain: Option<String>,
    /// What it is about, where it is about no chain.
    summary: Option<String>,
}

impl FindingIdentity {
    fn of(finding: &CheckFinding) -> FindingIdentity {
        FindingIdentity {
            kind: finding.kind,
            family: finding.family.clone(),
            table: finding.table.clone(),
            chain: finding.chain.clone(),
            summary: finding.chain.is_none().then(|| finding.summary.clone()),
        }
    }
}

/// A finding since its first check.
struct Sighting {
    since: Instant,
    finding: CheckFinding,
    has_lasted: bool,
}

/// The findings of one check after another.
#[derive(Default)]
pub struct LastingFindings(BTreeMap<FindingIdentity, Sighting>);

/// What a check changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FindingChanges {
    /// Findings that have just lasted for the grace period.
    pub appeared: Vec<CheckFinding>,
    /// Findings that had lasted and are gone.
    pub gone: Vec<CheckFinding>,
}

impl LastingFindings {
    /// Takes in the findings of a check that saw everything.
    pub fn update(&mut self, now: Instant, findings: &[CheckFinding], grace: Duration) -> FindingChanges {
        let mut changes = FindingChanges::default();
        let mut before = std::mem::take(&mut self.0);
        for finding in findings {
            let identity = FindingIdentity::of(finding);
            // Several rules of one chain are one.
            if self.0.contains_key(&identity) {
                continue;
            }
            let known = before.remove(&identity).map(|sighting| (sighting.since, sighting.has_lasted));
            let (since, had_lasted) = known.unwrap_or((now, false));
            let has_lasted = had_lasted || now.duration_since(since) >= grace;
            if has_lasted && !had_lasted {
                changes.appeared.push(finding.clone());
            }
            self.0.insert(identity, Sighting { since, finding: finding.clone(), has_lasted });
        }
        let gone = before.into_values().filter(|sighting| sighting.has_lasted);
        changes.gone.extend(gone.map(|sighting| sighting.finding));
        changes
    }

    /// The findings that have lasted.
    pub fn lasting(&self) -> impl Iterator<Item = &CheckFinding> {
        self.0.values().filter(|sighting| sighting.has_lasted).map(|sighting| &sighting.finding)
    }

    /// How many findings have not lasted yet.
    pub fn n_pending(&self) -> usize {
        self.0.values().filter(|sighting| !sighting.has_lasted).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::findings::FindingSeverity;

    const GRACE: Duration = Duration::from_secs(30);

    fn finding(chain: &str, summary: &str) -> CheckFinding {
        CheckFinding {
            severity: FindingSeverity::Error,
            kind: FindingKind::RuleMissing,
            family: Some("IPv4".to_owned()),
            table: Some("nat".to_owned()),
            chain: Some(chain.to_owned()),
            rule: None,
            summary: summary.to_owned(),
            desired: Vec::new(),
            in_force: Vec::new(),
            effect: String::new(),
            services: Vec::new(),
            service_ports: 0,
            next: String::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_difference_counts_once_it_has_lasted() {
        let (start, mut findings) = (Instant::now(), LastingFindings::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (a, b) = (finding("A", "rule 1 is missing"), finding("B", "rule 1 is missing"));
        assert_eq!(findings.update(at(0), &[a.clone(), b], GRACE), FindingChanges::default());
        assert_eq!((findings.lasting().count(), findings.n_pending()), (0, 2));
        // A sync later the other one is gone, and this one is another rule.
        let later = finding("A", "rule 2 is missing");
        assert_eq!(findings.update(at(10), std::slice::from_ref(&later), GRACE), FindingChanges::default());
        let changes = findings.update(at(30), std::slice::from_ref(&later), GRACE);
        assert_eq!((changes.appeared, changes.gone), (vec![later.clone()], vec![]));
        assert_eq!(findings.update(at(40), std::slice::from_ref(&later), GRACE), FindingChanges::default());
        let changes = findings.update(at(50), &[], GRACE);
        assert_eq!((changes.appeared, changes.gone), (vec![], vec![later]));
        assert_eq!(findings.update(at(60), &[a], GRACE), FindingChanges::default());
    }
}
