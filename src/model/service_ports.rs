//! The service ports of one Service with their endpoints, found in one pass over its slices.
//!
//! A Service may have 20 000 ports and its slices hundreds of thousands of port entries, so searching all
//! entries for each port would be too slow.

use super::{Endpoint, Port, Service, ServicePort, ServicePortName, Slice};
use crate::net::{IpFamily, Protocol};

/// The ports of one Service in one family, by name and protocol, each with the slices that serve it.
#[derive(Debug)]
pub struct ServicePorts<'a> {
    /// Sorted by name and protocol, as [`ServicePortName`]s are.
    ports: Vec<ServicePort<'a>>,
    /// Sorted by index in `ports`; entries of one port stay in the order of slices.
    entries: Vec<MatchedPort<'a>>,
    n_entries_read: usize,
}

/// A port entry of a slice that serves a port of the Service.
#[derive(Clone, Copy, Debug)]
struct MatchedPort<'a> {
    /// Index of the Service's port.
    index: u32,
    /// Port of the endpoints.
    port: u16,
    slice: &'a Slice,
}

impl<'a> ServicePorts<'a> {
    /// The ports of `service` in `family` that are `selected`, with their entries in `slices`.
    pub(super) fn new(
        service: &'a Service,
        family: IpFamily,
        slices: impl Iterator<Item = &'a Slice>,
        selected: impl Fn(&Port) -> bool,
    ) -> ServicePorts<'a> {
        let mut ports: Vec<ServicePort<'_>> =
            service.ports_in(family).filter(|port| selected(port.port)).collect();
        ports.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        if ports.is_empty() {
            return ServicePorts { ports, entries: Vec::new(), n_entries_read: 0 };
        }
        let mut entries = Vec::new();
        let mut n_entries_read = 0;
        // A slice without endpoints adds no endpoint to any port.
        for slice in slices.filter(|slice| slice.family == family && !slice.endpoints.is_empty()) {
            n_entries_read += slice.ports.len();
            entries.extend(slice.ports.iter().filter_map(|entry| {
                let index = find(&ports, &entry.name, entry.protocol)? as u32;
                Some(MatchedPort { index, port: entry.port, slice })
            }));
        }
        entries.sort_by_key(|entry| entry.index); // stable: those of one port stay in order
        ServicePorts { ports, entries, n_entries_read }
    }

    /// All ports, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = ServicePort<'a>> {
        self.ports.iter().copied()
    }

    /// The port called `name`.
    pub fn get(&self, name: &ServicePortName) -> Option<ServicePort<'a>> {
        find(&self.ports, &name.port, name.protocol).map(|index| self.ports[index])
    }

    /// The endpoints of `port`, whatever their conditions; sorted by address, without duplicates.
    pub fn endpoints(&self, port: &ServicePort<'_>) -> Vec<Endpoint<'a>> {
        let Some(index) = find(&self.ports, &port.port.name, port.port.protocol) else { return Vec::new() };
        Endpoint::merge(self.entries_of(index).map(|entry| (entry.slice, entry.port)))
    }

    /// An estimate of the rules of `port`: one for itself, one for each address, and one for each
    /// occurrence of an endpoint in a slice.
    pub fn weight(&self, port: &ServicePort<'_>) -> usize {
        let Some(index) = find(&self.ports, &port.port.name, port.port.protocol) else { return 0 };
        let endpoints = self.entries_of(index).map(|entry| entry.slice.endpoints.len());
        port.frontend.n_addresses() + endpoints.sum::<usize>()
    }

    fn entries_of(&self, index: usize) -> impl Iterator<Item = &MatchedPort<'a>> {
        let first = self.entries.partition_point(|entry| (entry.index as usize) < index);
        self.entries[first..].iter().take_while(move |entry| entry.index as usize == index)
    }

    /// How many port entries of slices were read to find the endpoints of all ports.
    pub fn n_entries_read(&self) -> usize {
        self.n_entries_read
    }
}

fn key<'a>(port: &ServicePort<'a>) -> (&'a str, Protocol) {
    (&port.port.name, port.port.protocol)
}

fn find(ports: &[ServicePort<'_>], name: &str, protocol: Protocol) -> Option<usize> {
    ports.binary_search_by(|port| key(port).cmp(&(name, protocol))).ok()
}
