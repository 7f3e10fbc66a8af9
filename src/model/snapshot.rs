//! The newest state of the cluster, and what a change of it touches.

use std::collections::{BTreeMap, BTreeSet};

use super::{Endpoint, Node, Service, ServiceName, ServicePort, Slice, SliceName};
use crate::net::{IpFamily, PerFamily};

/// One thing that happened in the cluster, decoded.
///
/// `None` stands for an object that is gone, or that does not count (any more): a Service that is
/// not proxied, a slice without a Service.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service is new, changed or gone.
    Service(ServiceName, Option<Service>),
    /// An EndpointSlice is new, changed or gone.
    Slice(SliceName, Option<Slice>),
    /// This node's Node is new, changed or gone.
    Node(Option<Node>),
    /// A complete list: exactly these Services are there.
    AllServices(Vec<Service>),
    /// A complete list: exactly these slices are there.
    AllSlices(Vec<(SliceName, Slice)>),
}

/// What changes touched, by name and family: what has to be compiled again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Services whose rules may differ, in each family.
    pub services: PerFamily<BTreeSet<ServiceName>>,
    /// Whether the Node differs in anything; what it means for rules is for the caller to see.
    pub node: bool,
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

/// The newest of each object, decoded. Sorted by name all the way down.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    services: BTreeMap<ServiceName, Service>,
    /// Of each Service, sorted by name; mostly one, which a map would give room for eleven.
    slices: BTreeMap<ServiceName, Vec<(SliceName, Slice)>>,
    owners: BTreeMap<SliceName, ServiceName>,
    node: Option<Node>,
}

impl Snapshot {
    /// Takes over `change` and notes in `touched` what it touched. An object equal to the one held
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

    fn set_service(&mut self, name: ServiceName, new: Option<Service>, touched: &mut Touched) {
        let old = self.services.get(&name);
        if old == new.as_ref() {
            return;
        }
        for family in IpFamily::BOTH {
            let view = |service: Option<&Service>| service.is_some_and(|s| s.frontends.get(family).is_some());
            if view(old) || view(new.as_ref()) {
                touched.service(family, &name);
            }
        }
        match new {
            Some(service) => self.services.insert(name, service),
            None => self.services.remove(&name),
        };
    }

    fn set_slice(&mut self, name: SliceName, new: Option<Slice>, touched: &mut Touched) {
        let old = self.slice(&name);
        if old == new.as_ref() {
            return;
        }
        for slice in old.into_iter().chain(&new) {
            touched.service(slice.family, &slice.service);
        }
        if let Some(owner) = self.owners.remove(&name)
            && let Some(slices) = self.slices.get_mut(&owner)
        {
            slices.retain(|(other, _)| *other != name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        if let Some(slice) = new {
            self.owners.insert(name.clone(), slice.service.clone());
            let slices = self.slices.entry(slice.service.clone()).or_default();
            let at = slices.partition_point(|(other, _)| *other < name);
            slices.reserve_exact(1);
            slices.insert(at, (name, slice));
        }
    }

    fn slice(&self, name: &SliceName) -> Option<&Slice> {
        let slices = self.slices.get(self.owners.get(name)?)?;
        slices.iter().find(|(other, _)| other == name).map(|(_, slice)| slice)
    }

    /// This node's Node; the last one seen, also after it was deleted.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The Service called `name`.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.get(name)
    }

    /// All Services that are proxied, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// All slices, by Service and name.
    pub fn slices(&self) -> impl Iterator<Item = (&SliceName, &Slice)> {
        self.slices.values().flatten().map(|(name, slice)| (name, slice))
    }

    /// The endpoints of `port` in `family`, whatever their conditions: sorted by address, each once.
    pub fn endpoints(&self, port: &ServicePort<'_>, family: IpFamily) -> Vec<Endpoint<'_>> {
        let slices = self.slices.get(&port.service.name).into_iter().flatten().map(|(_, slice)| slice);
        Endpoint::merge(slices.filter(|slice| slice.family == family), &port.port.name, port.port.protocol)
    }
}
