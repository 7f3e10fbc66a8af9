//! The service ports that findings concern, by name.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;

use super::super::Subject;
use super::super::labels::ChainLabels;
use super::check_report::{CheckFinding, MAX_NAMES};
use crate::iptables::{ChainName, Rule};
use crate::net::IpFamily;

/// Names of the service ports of one family, and which of them findings concern.
pub(super) struct ServiceNames<'a> {
    family: IpFamily,
    /// With the desired rules, and with the rules in force.
    subjects: [&'a Subject; 2],
    /// Made when first needed: on a healthy node never.
    labels: OnceCell<[ChainLabels; 2]>,
    /// How many service ports the objects have.
    n_all: usize,
    touched: RefCell<BTreeSet<String>>,
    are_all_touched: Cell<bool>,
}

impl<'a> ServiceNames<'a> {
    pub(super) fn new(family: IpFamily, subjects: [&'a Subject; 2], n_all: usize) -> ServiceNames<'a> {
        let (labels, touched, are_all_touched) = Default::default();
        ServiceNames { family, subjects, labels, n_all, touched, are_all_touched }
    }

    /// The service port of a chain.
    pub(super) fn of_chain(&self, chain: &ChainName) -> Option<&str> {
        let labels =
            self.labels.get_or_init(|| self.subjects.map(|subject| ChainLabels::of(subject, self.family)));
        labels.iter().find_map(|labels| labels.service_port(chain))
    }

    /// The service port that a rule is for: by the chain that it leads to, else by its comment.
    pub(super) fn of_rule<'r>(&'r self, rule: &'r Rule) -> Option<&'r str> {
        let of_callee = rule.callee().and_then(|callee| self.of_chain(&callee));
        of_callee.or_else(|| in_comment(rule))
    }

    /// Says that a finding is about every service port.
    pub(super) fn concern_all(&self, finding: &mut CheckFinding) {
        self.are_all_touched.set(true);
        finding.service_ports = self.n_all;
    }

    /// Says that a finding is about `services`.
    pub(super) fn concern(&self, finding: &mut CheckFinding, services: BTreeSet<&str>) {
        self.touched.borrow_mut().extend(services.iter().map(|name| (*name).to_owned()));
        concern(finding, services);
    }

    /// The service ports that findings are about; `None` for all.
    pub(super) fn touched(self) -> Option<BTreeSet<String>> {
        (!self.are_all_touched.get()).then(|| self.touched.into_inner())
    }
}

/// The service port that a rule's comment begins with, as in `shop/db:sql cluster IP`.
pub(super) fn in_comment(rule: &Rule) -> Option<&str> {
    let name = rule.comment()?.split(' ').next()?;
    let (namespace, rest) = name.split_once('/')?;
    (!namespace.is_empty() && !rest.is_empty()).then_some(name)
}

/// Says that a finding is about `services`, and names a command for the first.
pub(super) fn concern(finding: &mut CheckFinding, services: BTreeSet<&str>) {
    if let Some(first) = services.first() {
        finding.next = format!("chainsmith explain {first}");
    }
    finding.service_ports = services.len();
    finding.services = services.into_iter().take(MAX_NAMES).map(str::to_owned).collect();
}
