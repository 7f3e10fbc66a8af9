//! Services too large to be compiled at once: they are compiled a part at a time, so that no Service waits
//! long for the rules of another.
//!
//! A part is some of the service ports of one Service. Between two parts the loop reads what changed, and
//! Services of ordinary size come first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::record::{Record, Records, of_service};
use crate::model::{Service, ServiceName, ServicePortName, Snapshot};
use crate::net::{IpFamily, Protocol};

/// Up to which weight a Service is compiled together with others, and about the weight of a part: service
/// ports and their endpoints, which is about the number of rules. This many take a few tenths of a second.
const LIMIT: usize = 10_000;

/// Which service ports one sync is about.
#[derive(Debug)]
pub(super) enum Work {
    /// Those of every Service.
    Everything {
        /// Leaves large Services to later syncs.
        defers: bool,
    },
    /// Those of these Services, which may be gone.
    Services(BTreeSet<ServiceName>),
    /// These, of one large Service.
    Part(BTreeSet<ServicePortName>),
}

impl Work {
    pub(super) fn is_everything(&self) -> bool {
        matches!(self, Work::Everything { .. })
    }

    pub(super) fn defers(&self) -> bool {
        matches!(self, Work::Everything { defers: true })
    }

    /// The only service ports to compile of their Service; `None` for all ports of each Service.
    pub(super) fn only(&self) -> Option<&BTreeSet<ServicePortName>> {
        match self {
            Work::Part(ports) => Some(ports),
            _ => None,
        }
    }

    /// The Services, of those that exist.
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

/// Large Services that changed, in the order of their turns.
#[derive(Debug)]
pub(super) struct Turns {
    limit: usize,
    queue: VecDeque<LargeService>,
    /// Whether Services of ordinary size went first at the last sync.
    is_owed: bool,
}

/// A Service of which some service ports are not compiled since it changed.
#[derive(Debug)]
struct LargeService {
    name: ServiceName,
    /// In the order in which they are compiled; never empty.
    rest: VecDeque<WaitingPort>,
}

/// A service port that waits for its turn. Sorted by port number, so that a port that is renamed is
/// removed and added by one part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WaitingPort {
    number: (u16, Protocol),
    name: ServicePortName,
    weight: usize,
}

impl Default for Turns {
    fn default() -> Turns {
        Turns { limit: LIMIT, queue: VecDeque::new(), is_owed: false }
    }
}

impl Turns {
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
        self.queue.iter().map(|large| &large.name)
    }

    /// The service ports of the Service called `name`, those of `snapshot` and those of `records` and
    /// `deferred`, with the weight of each; `None` when all together may be compiled at once.
    pub(super) fn weigh(
        &self,
        name: &ServiceName,
        family: IpFamily,
        snapshot: &Snapshot,
        records: &Records,
        deferred: &Records,
    ) -> Option<Vec<WaitingPort>> {
        let weight_of = |record: &Record| 1 + record.n_endpoints;
        let known = || of_service(records, name).chain(of_service(deferred, name));
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
            let port = WaitingPort { number, name: name.clone(), weight: weight_of(record) };
            waiting.insert(name.clone(), port);
        }
        if let Some(ports) = service.map(|service| snapshot.ports_of(service, family)) {
            for port in ports.iter() {
                let (name, number) = (port.name(), (port.port.port, port.port.protocol));
                let before = waiting.get(&name).map_or(0, |before| before.weight);
                let weight = ports.weight(&port).max(before);
                waiting.insert(name.clone(), WaitingPort { number, name, weight });
            }
        }
        let mut waiting: Vec<WaitingPort> = waiting.into_values().collect();
        waiting.sort_unstable();
        Some(waiting)
    }

    /// Queues all of `ports`, the sorted ports of `service`. A Service that is already queued goes on with the
    /// port that was next: one that changes all the time gets to its end.
    pub(super) fn begin(&mut self, service: ServiceName, ports: Vec<WaitingPort>) {
        let queued = self.queue.iter_mut().find(|large| large.name == service);
        let next = queued.as_ref().and_then(|large| large.rest.front()).cloned();
        let mut rest = VecDeque::from(ports);
        if let Some(next) = next {
            let at = rest.partition_point(|port| (port.number, &port.name) < (next.number, &next.name));
            rest.rotate_left(at);
        }
        match queued {
            Some(large) => large.rest = rest,
            None => self.queue.push_back(LargeService { name: service, rest }),
        }
    }

    /// Removes `service`, which is compiled together with others.
    pub(super) fn remove(&mut self, service: &ServiceName) {
        self.queue.retain(|large| large.name != *service);
    }

    /// Whether it is the turn of a large Service: no other Service waits, or the others went first at the
    /// last sync.
    pub(super) fn is_due(&self, has_others: bool) -> bool {
        !self.queue.is_empty() && (!has_others || self.is_owed)
    }

    /// Lets Services of ordinary size go first.
    pub(super) fn yield_turn(&mut self) {
        self.is_owed = true;
    }

    /// Removes the next part from the queue: at least one service port. The next turn is another Service's.
    pub(super) fn remove_part(&mut self) -> BTreeSet<ServicePortName> {
        self.is_owed = false;
        let mut part = BTreeSet::new();
        let Some(mut large) = self.queue.pop_front() else { return part };
        let (mut weight, mut last) = (0, None);
        let limit = self.limit;
        let fits = |port: &WaitingPort, weight: usize, last: Option<(u16, Protocol)>| {
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

    fn ports(service: &str, weights: &[usize]) -> (ServiceName, Vec<WaitingPort>) {
        let service = ObjectName::new("ns", service);
        let name = |n: usize| ServicePortName {
            service: service.clone(),
            port: format!("{n}").into(),
            protocol: Protocol::Tcp,
        };
        let number = |n: usize| (80 + n as u16, Protocol::Tcp);
        let port =
            |(n, weight): (usize, &usize)| WaitingPort { number: number(n), name: name(n), weight: *weight };
        let ports = weights.iter().enumerate().map(port).collect();
        (service, ports)
    }

    /// The next part, as `<service>/<port> ...`.
    fn part(turns: &mut Turns) -> String {
        let part = turns.remove_part();
        let names: Vec<String> =
            part.iter().map(|name| format!("{}{}", name.service.name(), name.port)).collect();
        names.join(" ")
    }

    fn turns(begun: &[(&str, &[usize])]) -> Turns {
        let mut turns = Turns::default();
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
    fn a_port_that_is_renamed_is_removed_and_added_by_one_part() {
        let (service, mut renamed) = ports("a", &[9, 9, 9]);
        // The second is port 80 too: the new name of the first.
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
    fn a_service_that_changes_all_the_time_is_compiled_round_and_round_and_delays_no_other() {
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
