//! What rules are compiled from, and the rules of one service port of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::iptables::Chain;
use crate::model::{
    Endpoint, Port, Service, ServiceName, ServicePort, ServicePortName, ServicePorts, Snapshot,
};
use crate::policy::{Place, Selection};
use crate::rules::{self, Entry, Layout, Settings};

/// The cluster and the place from which it is seen.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// All objects.
    pub snapshot: &'a Snapshot,
    /// This node.
    pub place: Place<'a>,
}

/// Everything that the rules of one family depend on.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Inputs other than the objects.
    pub settings: &'a Settings,
    /// The objects.
    pub view: View<'a>,
}

impl<'a> Source<'a> {
    /// The ports of `service`, or those of them that are in `only`.
    pub(super) fn ports_of(
        self,
        service: &'a Service,
        only: Option<&BTreeSet<ServicePortName>>,
    ) -> ServicePorts<'a> {
        let name = |port: &Port| ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        let is_asked = |port: &Port| only.is_none_or(|only| only.contains(&name(port)));
        self.view.snapshot.ports_among(service, self.settings.family, is_asked)
    }
}

/// A service port with the endpoints that serve it from this node.
#[derive(Clone, Debug)]
pub(super) struct Selected<'a> {
    pub(super) port: ServicePort<'a>,
    pub(super) selection: Selection<'a>,
    /// Endpoints of the port, whatever their conditions.
    pub(super) n_endpoints: usize,
}

impl<'a> Selected<'a> {
    pub(super) fn new(source: Source<'a>, ports: &ServicePorts<'a>, port: ServicePort<'a>) -> Selected<'a> {
        let endpoints: Vec<Endpoint<'a>> = ports.endpoints(&port);
        let selection = Selection::new(&port, &endpoints, source.view.place);
        Selected { port, selection, n_endpoints: endpoints.len() }
    }
}

/// Up to how many endpoints are kept selected from the first pass over changed service ports to the second
/// (about 100 bytes each).
const MAX_KEPT: usize = 10_000;

/// Service ports whose endpoints were selected by the first pass; bounded, the second pass selects those of
/// the others again.
#[derive(Default)]
pub(super) struct Preselected<'a> {
    ports: BTreeMap<ServicePortName, Selected<'a>>,
    n_endpoints: usize,
}

impl<'a> Preselected<'a> {
    pub(super) fn add(&mut self, name: ServicePortName, selected: Selected<'a>) {
        let weight = 1 + selected.n_endpoints;
        if self.n_endpoints + weight <= MAX_KEPT {
            self.n_endpoints += weight;
            self.ports.insert(name, selected);
        }
    }
}

/// Makes the rules of single service ports. Consecutive ports of one Service share one pass over its slices.
pub struct PortCompiler<'a> {
    source: Source<'a>,
    /// The service ports that will be asked for; `None` for any.
    only: Option<&'a BTreeSet<ServicePortName>>,
    preselected: Preselected<'a>,
    last: Option<(&'a ServiceName, ServicePorts<'a>)>,
    n_entries_read: usize,
}

impl<'a> PortCompiler<'a> {
    /// A compiler of any service ports of `source`.
    pub fn new(source: Source<'a>) -> PortCompiler<'a> {
        let preselected = Preselected::default();
        PortCompiler { source, only: None, preselected, last: None, n_entries_read: 0 }
    }

    /// A compiler that is asked for the service ports in `only` if that is given, each once.
    pub(super) fn of_changed(
        source: Source<'a>,
        only: Option<&'a BTreeSet<ServicePortName>>,
        preselected: Preselected<'a>,
    ) -> PortCompiler<'a> {
        PortCompiler { only, preselected, ..PortCompiler::new(source) }
    }

    /// How many port entries of slices were read so far.
    pub(super) fn n_entries_read(&self) -> usize {
        self.n_entries_read
    }

    pub(super) fn select(&mut self, name: &ServicePortName) -> Option<Selected<'a>> {
        if let Some(selected) = self.preselected.ports.remove(name) {
            return Some(selected);
        }
        if self.last.as_ref().is_none_or(|(last, _)| **last != name.service) {
            let service = self.source.view.snapshot.service(&name.service)?;
            let ports = self.source.ports_of(service, self.only);
            self.n_entries_read += ports.n_entries_read();
            self.last = Some((&service.name, ports));
        }
        let (_, ports) = self.last.as_ref()?;
        Some(Selected::new(self.source, ports, ports.get(name)?))
    }

    /// The entries of one service port in the shared chains; none if the cluster has no such port.
    pub fn entries(&mut self, name: &ServicePortName) -> Vec<Entry> {
        let Some(Selected { port, selection, .. }) = self.select(name) else { return Vec::new() };
        rules::entries(self.source.settings, &port, selection.verdicts(&port))
    }

    /// The chains of one service port, callees first; none if the cluster has no such port, or it has no
    /// endpoints.
    pub fn chains(&mut self, layout: Layout, name: &ServicePortName) -> Vec<Chain> {
        let Some(Selected { port, selection, .. }) = self.select(name) else { return Vec::new() };
        rules::chains(self.source.settings, layout, &port, &selection)
    }
}
