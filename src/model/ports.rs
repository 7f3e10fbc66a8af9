//! The service ports of one Service with their endpoints, found in one pass over its slices.
//!
//! A Service may have 20 000 ports and its slices hundreds of thousands of port entries. Looking through
//! all entries for each port would cost the product of both.

use super::{Endpoint, Port, Service, ServicePort, ServicePortName, Slice};
use crate::net::{IpFamily, Protocol};

/// The ports of one Service in one family, by name and protocol, each with the slices that serve it.
#[derive(Debug)]
pub struct ServicePorts<'a> {
    /// Sorted by name and protocol, as [`ServicePortName`]s are.
    ports: Vec<ServicePort<'a>>,
    /// Sorted by place in `ports`; entries for one port stay in the order of slices.
    entries: Vec<Entry<'a>>,
    n_entries_read: usize,
}

/// A port entry of a slice.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    /// The place of the port that it is for.
    place: u32,
    /// The endpoints' port.
    port: u16,
    slice: &'a Slice,
}

impl<'a> ServicePorts<'a> {
    /// The ports of `service` in `family` that are `asked` for, with what `slices` hold for them.
    pub(super) fn new(
        service: &'a Service,
        family: IpFamily,
        slices: impl Iterator<Item = &'a Slice>,
        asked: impl Fn(&Port) -> bool,
    ) -> ServicePorts<'a> {
        let mut ports: Vec<ServicePort<'_>> =
            service.ports_in(family).filter(|port| asked(port.port)).collect();
        ports.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        if ports.is_empty() {
            return ServicePorts { ports, entries: Vec::new(), n_entries_read: 0 };
        }
        let mut entries = Vec::new();
        let mut n_entries_read = 0;
        // A slice without endpoints adds none to any port.
        for slice in slices.filter(|slice| slice.family == family && !slice.endpoints.is_empty()) {
            n_entries_read += slice.ports.len();
            entries.extend(slice.ports.iter().filter_map(|entry| {
                let place = find(&ports, &entry.name, entry.protocol)? as u32;
                Some(Entry { place, port: entry.port, slice })
            }));
        }
        entries.sort_by_key(|entry| entry.place); // stable: those of one port stay in order
        ServicePorts { ports, entries, n_entries_read }
    }

    /// Each port, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = ServicePort<'a>> {
        self.ports.iter().copied()
    }

    /// The port called `name`.
    pub fn get(&self, name: &ServicePortName) -> Option<ServicePort<'a>> {
        find(&self.ports, &name.port, name.protocol).map(|place| self.ports[place])
    }

    /// The endpoints of `port`, whatever their conditions: sorted by address, each once.
    pub fn endpoints(&self, port: &ServicePort<'_>) -> Vec<Endpoint<'a>> {
        let Some(place) = find(&self.ports, &port.port.name, port.port.protocol) else { return Vec::new() };
        Endpoint::merge(self.entries_of(place).map(|entry| (entry.slice, entry.port)))
    }

    /// About how many rules `port` may need: itself, its addresses, and its endpoints, each as often as slices
    /// hold it.
    pub fn weight(&self, port: &ServicePort<'_>) -> usize {
        let Some(place) = find(&self.ports, &port.port.name, port.port.protocol) else { return 0 };
        let endpoints = self.entries_of(place).map(|entry| entry.slice.endpoints.len());
        port.frontend.n_addresses() + endpoints.sum::<usize>()
    }

    fn entries_of(&self, place: usize) -> impl Iterator<Item = &Entry<'a>> {
        let first = self.entries.partition_point(|entry| (entry.place as usize) < place);
        self.entries[first..].iter().take_while(move |entry| entry.place as usize == place)
    }

    /// How many port entries of slices were looked at to find the endpoints of all ports.
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
