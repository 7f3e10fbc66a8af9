//! The slices of one Service, entry by entry: which entries are endpoints of which service port, and which serve
//! nothing, for the reason that no endpoint shows.
//!
//! Rules are made without it; it answers questions about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Choice, EndpointUse, Place};
use crate::model::{
    Endpoint, Service, ServicePort, Slice, SliceEndpoint, SliceName, SlicePort, Snapshot, TrafficPolicy,
};
use crate::net::{IpFamily, Protocol};

/// The slices of one Service, as the rules of one family use them.
pub struct ServiceSlices<'a> {
    /// The slices with entries for each port of the Service, with the port of their endpoints; in the order in which
    /// duplicates are decided.
    matched: BTreeMap<(Arc<str>, Protocol), Vec<MatchedSlice<'a>>>,
    /// Ports of slices that the Service does not have, by slice.
    pub unmatched: Vec<UnmatchedPort<'a>>,
    /// Slices of the other family, by name.
    pub other_family: Vec<SliceOfOtherFamily<'a>>,
}

/// A slice with an entry for a port of the Service: its name, itself, and the port of its endpoints.
type MatchedSlice<'a> = (&'a SliceName, &'a Slice, u16);

/// A port of a slice whose name and protocol no port of the Service has.
#[derive(Clone, Copy, Debug)]
pub struct UnmatchedPort<'a> {
    /// The slice.
    pub slice: &'a SliceName,
    /// Its port.
    pub port: &'a SlicePort,
    /// Endpoints in the slice.
    pub n_endpoints: usize,
}

/// A slice whose addresses are not of the family of the rules.
#[derive(Clone, Copy, Debug)]
pub struct SliceOfOtherFamily<'a> {
    /// The slice.
    pub slice: &'a SliceName,
    /// The family of its addresses.
    pub family: IpFamily,
    /// Endpoints in the slice.
    pub n_endpoints: usize,
}

/// The entries of slices for one service port.
#[derive(Clone, Debug)]
pub struct PortCandidates<'a> {
    /// Its endpoints, by address.
    pub endpoints: Vec<EndpointCandidate<'a>>,
    /// Entries that another with the same address replaces, by address.
    pub superseded: Vec<Superseded<'a>>,
    /// What decides about the endpoints.
    pub choice: Choice<'a>,
}

/// An endpoint of a service port, and whether it serves.
#[derive(Clone, Copy, Debug)]
pub struct EndpointCandidate<'a> {
    /// The slice with its entry.
    pub slice: &'a SliceName,
    /// Its address and entry.
    pub endpoint: Endpoint<'a>,
    /// Whether it serves traffic under policy Cluster; `None` if the service port has no such traffic.
    pub cluster: Option<EndpointUse>,
    /// Whether it serves traffic under policy Local; `None` if the service port has no such traffic.
    pub local: Option<EndpointUse>,
}

/// An entry of a slice that another entry with the same address replaces.
#[derive(Clone, Copy, Debug)]
pub struct Superseded<'a> {
    /// The address.
    pub address: SocketAddr,
    /// The slice of the entry that is not used.
    pub slice: &'a SliceName,
    /// The slice of the entry that is.
    pub by: &'a SliceName,
    /// The entry that is not used.
    pub source: &'a SliceEndpoint,
}

impl<'a> ServiceSlices<'a> {
    /// The slices of `service` in `snapshot`, for the rules of `family`.
    pub fn of(snapshot: &'a Snapshot, service: &Service, family: IpFamily) -> ServiceSlices<'a> {
        let ports: BTreeSet<(&str, Protocol)> =
            service.ports.iter().map(|port| (&*port.name, port.protocol)).collect();
        let mut slices =
            ServiceSlices { matched: BTreeMap::new(), unmatched: Vec::new(), other_family: Vec::new() };
        for (name, slice) in snapshot.slices_of(&service.name) {
            let n_endpoints = slice.endpoints.len();
            if slice.family != family {
                let family = slice.family;
                slices.other_family.push(SliceOfOtherFamily { slice: name, family, n_endpoints });
                continue;
            }
            for port in &slice.ports {
                if ports.contains(&(&*port.name, port.protocol)) {
                    let matched = slices.matched.entry((port.name.clone(), port.protocol)).or_default();
                    matched.push((name, slice, port.port));
                } else {
                    slices.unmatched.push(UnmatchedPort { slice: name, port, n_endpoints });
                }
            }
        }
        slices
    }

    /// The entries for `port`, as a node at `place` uses them.
    pub fn candidates(&self, port: &ServicePort<'_>, place: Place<'a>) -> PortCandidates<'a> {
        let key = (port.port.name.clone(), port.port.protocol);
        let slices = self.matched.get(&key).map_or(&[][..], Vec::as_slice);
        let merged = Endpoint::merge(slices.iter().map(|(_, slice, port)| (*slice, *port)));
        let choice = Choice::new(port, &merged, place);
        // The slice of each endpoint in `merged`; by its entry, as an address may occur in several slices.
        let mut owners: Vec<Option<&'a SliceName>> = vec![None; merged.len()];
        let mut duplicates = Vec::new();
        for (name, slice, port) in slices {
            for source in &slice.endpoints {
                let address = SocketAddr::new(source.ip, *port);
                let Ok(at) = merged.binary_search_by_key(&address, |endpoint| endpoint.address) else {
                    continue;
                };
                if std::ptr::eq(merged[at].source, source) {
                    owners[at] = Some(name);
                } else {
                    duplicates.push((at, *name, source));
                }
            }
        }
        let superseded = duplicates.into_iter().filter_map(|(at, slice, source)| {
            Some(Superseded { address: merged[at].address, slice, by: owners[at]?, source })
        });
        let mut superseded: Vec<Superseded<'a>> = superseded.collect();
        superseded.sort_by_key(|entry| entry.address);
        let endpoints = merged.iter().zip(&owners).filter_map(|(endpoint, slice)| {
            Some(EndpointCandidate {
                slice: (*slice)?,
                endpoint: *endpoint,
                cluster: choice.of(TrafficPolicy::Cluster, endpoint),
                local: choice.of(TrafficPolicy::Local, endpoint),
            })
        });
        PortCandidates { endpoints: endpoints.collect(), superseded, choice }
    }
}
