//! Services too large to be synced at once: they are synced a part at a time, so that no Service waits
//! long for the rules of another.
//!
//! A part is some of the service ports of one Service. Between two parts the loop takes in what has
//! changed, and Services of ordinary size come first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::Scope;
use super::records::{Record, of_service};
use crate::model::{Service, ServiceName, ServicePortName, Snapshot};
use crate::net::{IpFamily, Protocol};

/// Up to which weight a Service is synced together with others, and about the weight of a part: service
/// ports and what each has, which is about as many rules. This many take a few tenths of a second.
const LIMIT: usize = 10_000;

/// What a sync compiles.
#[derive(Debug)]
pub(super) enum Work {
    /// Every Service; without the large ones, whose turn comes later, if it `defers` them.
    Everything {
        /// Not while rejected service ports are searched.
        defers: bool,
    },
    /// Those called so.
    Services(BTreeSet<ServiceName>),
    /// Service ports of one large Service.
    Part(BTreeSet<ServicePortName>),
}

impl Work {
    pub(super) fn is_everything(&self) -> bool {
        matches!(self, Work::Everything { .. })
    }

    /// The only service ports that it is about, if others of their Service are not.
    pub(super) fn only(&self) -> Option<&BTreeSet<ServicePortName>> {
        match self {
            Work::Part(ports) => Some(ports),
            _ => None,
        }
    }

    /// As it is reported.
    pub(super) fn scope(&self) -> Scope {
        match self {
            Work::Everything { .. } => Scope::Everything,
            Work::Services(names) => Scope::Services(names.clone()),
            Work::Part(ports) => Scope::Services(ports.iter().map(|port| port.service.clone()).collect()),
        }
    }

    /// The Services that it is about, of those that there are.
    pub(super) fn services<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a Arc<Service>> {
        match self {
            Work::Everything { .. } => snapshot.services().collect(),
            Work::Services(names) => names.iter().filter_map(|name| snapshot.service(name)).collect(),
            Work::Part(ports) => {
                ports.first().and_then(|port| snapshot.service(&port.service)).into_iter().collect()
            }
        }
    }
}

/// The large Services that wait, in the order of their turns.
#[derive(Debug)]
pub(super) struct Turns {
    limit: usize,
    queue: VecDeque<Large>,
    /// Whether others went first at the last sync.
    is_owed: bool,
}

/// A Service of which some service ports are not compiled since it changed.
#[derive(Debug)]
struct Large {
    service: ServiceName,
    /// Those that come first in front; never empty.
    rest: VecDeque<Waiting>,
}

/// A service port that waits for its turn. In the order of port numbers, so that a port which gets another
/// name is taken out and put in with one part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    number: (u16, Protocol),
    name: ServicePortName,
    weight: usize,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { limit: LIMIT, queue: VecDeque::new(), is_owed: false }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.is_owed = false;
    }

    /// The Services that wait.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.queue.iter().map(|large| &large.service)
    }

    /// The service ports of the Service called `name`, those of `snapshot` and those of `records` and
    /// `unserved`, with what each weighs; `None` when all together may be synced at once.
    pub(super) fn weigh(
        &self,
        name: &ServiceName,
        family: IpFamily,
        snapshot: &Snapshot,
        records: &BTreeMap<ServicePortName, Record>,
        unserved: &BTreeMap<ServicePortName, Record>,
    ) -> Option<Vec<Waiting>> {
        let weight_of = |record: &Record| 1 + record.n_endpoints;
        let known = || of_service(records, name).chain(of_service(unserved, name));
        let before: usize = known().map(|(_, record)| weight_of(record)).sum();
        let service = snapshot.service(name);
        let now = service.map_or(0, |service| snapshot.weight(service, family));
        if before.max(now) <= self.limit {
            return None;
        }
        let mut waiting = BTreeMap::new();
        for (name, record) in known() {
            let port = record.service.ports.get(record.place);
            let number = port.map_or((0, name.protocol), |port| (port.port, port.protocol));
            waiting.insert(name.clone(), Waiting { number, name: name.clone(), weight: weight_of(record) });
        }
        if let Some(ports) = service.map(|service| snapshot.ports_of(service, family)) {
            for port in ports.iter() {
                let (name, number) = (port.name(), (port.port.port, port.port.protocol));
                let before = waiting.get(&name).map_or(0, |before| before.weight);
                let weight = ports.weight(&port).max(before);
                waiting.insert(name.clone(), Waiting { number, name, weight });
            }
        }
        let mut waiting: Vec<Waiting> = waiting.into_values().collect();
        waiting.sort_unstable();
        Some(waiting)
    }

    /// Has all of `ports`, which are those of `service` in their order, compiled. Where some of it was compiled
    /// before it changed again, it goes on from there: otherwise its end would never come.
    pub(super) fn begin(&mut self, service: ServiceName, ports: Vec<Waiting>) {
        let held = self.queue.iter_mut().find(|large| large.service == service);
        let next = held.as_ref().and_then(|large| large.rest.front()).cloned();
        let mut rest = VecDeque::from(ports);
        if let Some(next) = next {
            let at = rest.partition_point(|port| (port.number, &port.name) < (next.number, &next.name));
            rest.rotate_left(at);
        }
        match held {
            Some(large) => large.rest = rest,
            None => self.queue.push_back(Large { service, rest }),
        }
    }

    /// Notes that `service` is synced together with others.
    pub(super) fn remove(&mut self, service: &ServiceName) {
        self.queue.retain(|large| large.service != *service);
    }

    /// Whether it is the turn of a large Service: nothing else is to be done, or was done last.
    pub(super) fn is_due(&self, has_others: bool) -> bool {
        !self.queue.is_empty() && (!has_others || self.is_owed)
    }

    /// Notes that others go first.
    pub(super) fn yield_turn(&mut self) {
        self.is_owed = true;
    }

    /// Takes the next part out: at least one service port. The next turn is another Service's.
    pub(super) fn take_part(&mut self) -> BTreeSet<ServicePortName> {
        self.is_owed = false;
        let mut part = BTreeSet::new();
        let Some(mut large) = self.queue.pop_front() else { return part };
        let (mut weight, mut last) = (0, None);
        let limit = self.limit;
        let fits = |port: &Waiting, weight: usize, last: Option<(u16, Protocol)>| {
            weight == 0 || weight + port.weight <= limit || last == Some(port.number)
        };
        while large.rest.front().is_some_and(|port| fits(port, weight, last))
            && let Some(port) = large.rest.pop_front()
        {
            weight += port.weight;
            last = Some(port.number);
            part.insert(port.name);
        }
        if !large.rest.is_empty() {
            self.queue.push_back(large);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn ports(service: &str, weights: &[usize]) -> (ServiceName, Vec<Waiting>) {
        let service = ObjectName::new("ns", service);
        let name = |n: usize| ServicePortName {
            service: service.clone(),
            port: format!("{n}").into(),
            protocol: Protocol::Tcp,
        };
        let number = |n: usize| (80 + n as u16, Protocol::Tcp);
        let port =
            |(n, weight): (usize, &usize)| Waiting { number: number(n), name: name(n), weight: *weight };
        let ports = weights.iter().enumerate().map(port).collect();
        (service, ports)
    }

    /// The next part, as `<service>/<port> ...`.
    fn part(turns: &mut Turns) -> String {
        let part = turns.take_part();
        let names: Vec<String> =
            part.iter().map(|name| format!("{}{}", name.service.name(), name.port)).collect();
        names.join(" ")
    }

    fn turns(begun: &[(&str, &[usize])]) -> Turns {
        let mut turns = Turns::new();
        turns.set_limit(10);
        for (service, weights) in begun {
            let (service, ports) = ports(service, weights);
            turns.begin(service, ports);
        }
        turns
    }

    #[test]
    fn a_part_weighs_no_more_than_the_limit_unless_it_is_one_service_port() {
        let mut turns = turns(&[("a", &[4, 6, 1, 30, 5, 5])]);
        let parts: Vec<String> = (0..4).map(|_| part(&mut turns)).collect();
        assert_eq!(parts, ["a0 a1", "a2", "a3", "a4 a5"]);
        assert!(turns.is_empty() && part(&mut turns).is_empty());
    }

    #[test]
    fn a_port_that_is_renamed_is_taken_out_and_put_in_with_one_part() {
        let (service, mut renamed) = ports("a", &[9, 9, 9]);
        // The second is port 80 too: what the first is called now.
        renamed[1].number = renamed[0].number;
        let mut turns = turns(&[]);
        turns.begin(service, renamed);
        let parts: Vec<String> = (0..2).map(|_| part(&mut turns)).collect();
        assert_eq!(parts, ["a0 a1", "a2"]);
    }

    #[test]
    fn large_services_take_turns() {
        let mut turns = turns(&[("a", &[9, 9, 9]), ("b", &[9, 9])]);
        let parts: Vec<String> = (0..5).map(|_| part(&mut turns)).collect();
        assert_eq!(parts, ["a0", "b0", "a1", "b1", "a2"]);
    }

    #[test]
    fn one_that_changes_all_the_time_is_compiled_round_and_round_and_holds_up_no_other() {
        let mut turns = turns(&[("a", &[9, 9, 9]), ("b", &[9, 9])]);
        let mut parts = Vec::new();
        for _ in 0..7 {
            parts.push(part(&mut turns));
            let (service, ports) = ports("a", &[9, 9, 9]);
            turns.begin(service, ports);
        }
        assert_eq!(parts, ["a0", "b0", "a1", "b1", "a2", "a0", "a1"]);
    }

    #[test]
    fn others_go_first_but_not_twice_in_succession() {
        let mut turns = turns(&[("a", &[9, 9])]);
        assert!(!turns.is_due(true) && turns.is_due(false));
        turns.yield_turn();
        assert!(turns.is_due(true));
        part(&mut turns);
        assert!(!turns.is_due(true));
        turns.remove(&ObjectName::new("ns", "a"));
        assert!(!turns.is_due(false));
    }
}
