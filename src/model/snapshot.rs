//! The newest state of the cluster, and what a change of it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::{Node, Port, Service, ServiceName, ServicePorts, Slice, SliceName};
use crate::net::{IpFamily, PerFamily};

/// One decoded change in the cluster.
///
/// `None` stands for an object that was deleted, or that is not relevant (any more): a Service that is not
/// proxied, a slice without a Service.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service was added, changed or deleted.
    Service(ServiceName, Option<Service>),
    /// An EndpointSlice was added, changed or deleted.
    Slice(SliceName, Option<Slice>),
    /// This node's Node was added, changed or deleted.
    Node(Option<Node>),
    /// A complete list: exactly these Services exist.
    AllServices(Vec<Service>),
    /// A complete list: exactly these slices exist.
    AllSlices(Vec<(SliceName, Slice)>),
}

/// What changes touched, by name and family: the input for compiling again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose rules may have changed, in each family.
    pub services: PerFamily<BTreeSet<ServiceName>>,
    /// Whether any field of the Node changed; the caller decides whether rules depend on it.
    pub node: bool,
    /// Services that changed.
    pub changed_services: Vec<ServiceName>,
    /// Slices that changed.
    pub changed_slices: Vec<SliceChange>,
}

/// A changed EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceChange {
    /// The Service of its endpoints.
    pub service: ServiceName,
    /// The family of its addresses.
    pub family: IpFamily,
    /// Whether the slice was deleted, or now belongs to another Service.
    pub is_gone: bool,
    /// When the cause of the change occurred, if the slice has that annotation.
    pub triggered_at: Option<SystemTime>,
}

impl Touched {
    /// Whether nothing was touched.
    pub fn is_empty(&self) -> bool {
        !self.node && self.services.v4.is_empty() && self.services.v6.is_empty()
    }

    fn service(&mut self, family: IpFamily, name: &ServiceName) {
        if !self.services.get(family).contains(name) {
            self.services.get_mut(family).insert(name.clone());
        }
    }
}

/// For this many slices of a Service, memory is allocated exactly.
const EXACT_CAPACITY_UP_TO: usize = 16;

/// The newest value of each object; all collections are sorted by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    services: BTreeMap<ServiceName, Arc<Service>>,
    /// By Service, each list sorted by name. Most Services have one slice, for which a map would allocate
    /// eleven entries.
    slices: BTreeMap<ServiceName, Vec<(SliceName, Slice)>>,
    owners: BTreeMap<SliceName, ServiceName>,
    node: Option<Node>,
}

impl Snapshot {
    /// Applies `change` and records in `touched` what it touched. An object equal to the current one
    /// touches nothing.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Service(name, service) => self.set_service(name, service, touched),
            Change::Slice(name, slice) => self.set_slice(name, slice, touched),
            Change::Node(node) => {
                if node.is_some() && node != self.node {
                    self.node = node;
                    touched.node = true;
                }
            }
            Change::AllServices(services) => {
                let listed: BTreeSet<ServiceName> =
                    services.iter().map(|service| service.name.clone()).collect();
                let gone: Vec<ServiceName> =
                    self.services.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.into_iter().for_each(|name| self.set_service(name, None, touched));
                for service in services {
                    self.set_service(service.name.clone(), Some(service), touched);
                }
            }
            Change::AllSlices(slices) => {
                let listed: BTreeSet<&SliceName> = slices.iter().map(|(name, _)| name).collect();
                let gone: Vec<SliceName> =
                    self.owners.keys().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.into_iter().for_each(|name| self.set_slice(name, None, touched));
                for (name, slice) in slices {
                    self.set_slice(name, Some(slice), touched);
                }
            }
        }
    }

    /// Counts the Services and slices in `change`, whether they differ from the snapshot or not. A complete
    /// list also counts objects that it deletes. A deleted slice counts only if the snapshot contains it.
    pub fn count_reported(&self, change: &Change) -> (usize, usize) {
        match change {
            Change::Service(..) => (1, 0),
            Change::Slice(name, slice) => (0, usize::from(slice.is_some() || self.owners.contains_key(name))),
            Change::Node(_) => (0, 0),
            Change::AllServices(services) => {
                let listed: BTreeSet<&ServiceName> = services.iter().map(|service| &service.name).collect();
                (services.len() + self.services.keys().filter(|name| !listed.contains(name)).count(), 0)
            }
            Change::AllSlices(slices) => {
                let listed: BTreeSet<&SliceName> = slices.iter().map(|(name, _)| name).collect();
                (0, slices.len() + self.owners.keys().filter(|name| !listed.contains(name)).count())
            }
        }
    }

    fn set_service(&mut self, name: ServiceName, new: Option<Service>, touched: &mut Touched) {
        let old = self.services.get(&name);
        if old.map(Arc::as_ref) == new.as_ref() {
            return;
        }
        touched.changed_services.push(name.clone());
        for family in IpFamily::BOTH {
            let view = |service: Option<&Service>| service.is_some_and(|s| s.frontends.get(family).is_some());
            if view(old.map(Arc::as_ref)) || view(new.as_ref()) {
                touched.service(family, &name);
            }
        }
        match new {
            Some(service) => self.services.insert(name, Arc::new(service)),
            None => self.services.remove(&name),
        };
    }

    fn set_slice(&mut self, name: SliceName, mut new: Option<Slice>, touched: &mut Touched) {
        let old = self.slice(&name);
        // Slices that differ only in this time make the same rules.
        let triggered_at = new.as_mut().and_then(|slice| slice.triggered_at.take());
        if old == new.as_ref() {
            return;
        }
        let of = |slice: &Slice| (slice.family, slice.service.clone());
        if let Some((family, service)) =
            old.map(of).filter(|of_old| new.as_ref().map(of).as_ref() != Some(of_old))
        {
            touched.service(family, &service);
            touched.changed_slices.push(SliceChange { service, family, is_gone: true, triggered_at: None });
        }
        if let Some((family, service)) = new.as_ref().map(of) {
            touched.service(family, &service);
            touched.changed_slices.push(SliceChange { service, family, is_gone: false, triggered_at });
        }
        match new {
            Some(slice) if self.owners.get(&name) == Some(&slice.service) => {
                if let Some(current) = self.slice_mut(&name) {
                    *current = slice;
                }
            }
            new => {
                self.remove_slice(&name);
                if let Some(slice) = new {
                    self.insert_slice(name, slice);
                }
            }
        }
    }

    fn remove_slice(&mut self, name: &SliceName) {
        let Some(owner) = self.owners.remove(name) else { return };
        let Some(slices) = self.slices.get_mut(&owner) else { return };
        if let Ok(at) = slices.binary_search_by(|(other, _)| other.cmp(name)) {
            slices.remove(at);
        }
        if slices.is_empty() {
            self.slices.remove(&owner);
        }
    }

    fn insert_slice(&mut self, name: SliceName, slice: Slice) {
        self.owners.insert(name.clone(), slice.service.clone());
        let slices = self.slices.entry(slice.service.clone()).or_default();
        let at = slices.partition_point(|(other, _)| *other < name);
        // Allocates exactly while slices are few; with many, growing by one each time costs more.
        if slices.len() < EXACT_CAPACITY_UP_TO {
            slices.reserve_exact(1);
        }
        slices.insert(at, (name, slice));
    }

    fn slice(&self, name: &SliceName) -> Option<&Slice> {
        let slices = self.slices.get(self.owners.get(name)?)?;
        slices.binary_search_by(|(other, _)| other.cmp(name)).ok().map(|at| &slices[at].1)
    }

    fn slice_mut(&mut self, name: &SliceName) -> Option<&mut Slice> {
        let slices = self.slices.get_mut(self.owners.get(name)?)?;
        slices.binary_search_by(|(other, _)| other.cmp(name)).ok().map(|at| &mut slices[at].1)
    }

    /// This node's Node; after its deletion, the last one seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The Service called `name`.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All proxied Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Number of proxied Services.
    pub fn n_services(&self) -> usize {
        self.services.len()
    }

    /// Number of slices.
    pub fn n_slices(&self) -> usize {
        self.owners.len()
    }

    /// All slices, by Service and name.
    pub fn slices(&self) -> impl Iterator<Item = (&SliceName, &Slice)> {
        self.slices.values().flatten().map(|(name, slice)| (name, slice))
    }

    /// The slices of the Service called `name`, in both families, by name.
    pub fn slices_of(&self, name: &ServiceName) -> impl Iterator<Item = (&SliceName, &Slice)> {
        self.slices.get(name).into_iter().flatten().map(|(name, slice)| (name, slice))
    }

    /// An estimate of the rules of `service` in `family`, computed without reading each port.
    pub fn weight(&self, service: &Service, family: IpFamily) -> usize {
        let n_ports = service.ports.len();
        let Some(frontend) = service.frontends.get(family).as_ref().filter(|_| n_ports > 0) else { return 0 };
        let slices = self.slices.get(&service.name).into_iter().flatten().map(|(_, slice)| slice);
        let weight = |slice: &Slice| slice.ports.len() * slice.endpoints.len();
        let endpoints = slices.filter(|slice| slice.family == family).map(weight);
        n_ports * frontend.n_addresses() + endpoints.sum::<usize>()
    }

    /// The ports of `service` in `family` with their endpoints.
    pub fn ports_of<'a>(&'a self, service: &'a Service, family: IpFamily) -> ServicePorts<'a> {
        self.ports_among(service, family, |_| true)
    }

    /// As [`Snapshot::ports_of`], for the `selected` ports only.
    pub fn ports_among<'a>(
        &'a self,
        service: &'a Service,
        family: IpFamily,
        selected: impl Fn(&Port) -> bool,
    ) -> ServicePorts<'a> {
        let slices = self.slices.get(&service.name).into_iter().flatten().map(|(_, slice)| slice);
        ServicePorts::new(service, family, slices, selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, TrafficPolicy};

    fn slice(service: &str, second: Option<u64>) -> Change {
        let triggered_at =
            second.map(|second| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second));
        let slice = Slice {
            service: ObjectName::new("ns", service),
            family: IpFamily::V4,
            ports: Box::default(),
            endpoints: Box::default(),
            triggered_at,
        };
        Change::Slice(ObjectName::new("ns", "slice"), Some(slice))
    }

    /// For each of `changes`, in short: slices counted, and `<service><+ or -><trigger>` for each changed
    /// slice.
    fn applied(changes: Vec<Change>) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        let short = |change: &SliceChange| {
            let second = change.triggered_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            let sign = if change.is_gone { '-' } else { '+' };
            format!("{}{sign}{}", change.service.name(), second.map_or(0, |second| second.as_secs()))
        };
        let one = |change| {
            let mut touched = Touched::default();
            let (_, n_slices) = snapshot.count_reported(&change);
            snapshot.apply(change, &mut touched);
            let all: Vec<String> = touched.changed_slices.iter().map(short).collect();
            format!("{n_slices} {}", all.join(","))
        };
        changes.into_iter().map(one).collect()
    }

    #[test]
    fn a_changed_slice_reports_its_trigger_time_unless_only_that_changed() {
        let gone = || Change::Slice(ObjectName::new("ns", "slice"), None);
        let changes = vec![slice("a", Some(5)), slice("a", Some(6)), slice("b", None), gone(), gone()];
        assert_eq!(applied(changes), ["1 a+5", "1 ", "1 a-0,b+0", "1 b-0", "0 "]);
        let all = Change::AllSlices(vec![]);
        assert_eq!(applied(vec![slice("a", None), all]), ["1 a+0", "1 a-0"]);
    }

    #[test]
    fn every_reported_service_counts_changed_or_not_and_a_list_reports_those_that_are_gone() {
        let mut snapshot = Snapshot::default();
        let named = |name: &str| Service {
            name: ObjectName::new("ns", name),
            frontends: PerFamily::default(),
            ports: Box::default(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_seconds: None,
            health_check_node_port: None,
            created: None,
        };
        let one = |name: &str| Change::Service(ObjectName::new("ns", name), Some(named(name)));
        let gone = Change::Service(ObjectName::new("ns", "c"), None);
        let list = Change::AllServices(vec![named("b"), named("c")]);
        for (change, n) in [(one("a"), 1), (one("a"), 1), (one("b"), 1), (gone, 1), (list, 3)] {
            assert_eq!(snapshot.count_reported(&change), (n, 0), "{change:?}");
            snapshot.apply(change, &mut Touched::default());
        }
        assert_eq!(snapshot.count_reported(&Change::Node(None)), (0, 0));
    }
}
