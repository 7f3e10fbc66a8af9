//! EndpointSlices, and their union for one service port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use super::ServiceName;
use crate::net::{IpFamily, Protocol};

/// The three conditions of an endpoint, with the defaults of absent ones filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Absent means true.
    pub is_ready: bool,
    /// Absent means true.
    pub is_serving: bool,
    /// Absent means false.
    pub is_terminating: bool,
}

/// For whom the EndpointSlice controller meant an endpoint; each list sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Box<[Arc<str>]>,
    /// `hints.forNodes[].name`.
    pub nodes: Box<[Arc<str>]>,
}

/// One entry of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first of its addresses.
    pub ip: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// The node it is on, if known.
    pub node: Option<Arc<str>>,
    /// Its hints; `None` when it has neither kind.
    pub hints: Option<Box<Hints>>,
}

/// One usable entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port it is for.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The endpoints' port; not 0.
    pub port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to, by its label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// The family of its addresses.
    pub family: IpFamily,
    /// Its ports.
    pub ports: Box<[SlicePort]>,
    /// Its endpoints, in the object's order.
    pub endpoints: Box<[SliceEndpoint]>,
    /// When what this slice follows from changed last, by the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`. [`Snapshot`](super::Snapshot) does not keep it.
    pub triggered_at: Option<SystemTime>,
}

/// An endpoint of one service port: an address of a slice at the slice's port.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// The entry of the slice it comes from.
    pub source: &'a SliceEndpoint,
}

impl<'a> Endpoint<'a> {
    /// The endpoints of `slices`, each taken at the port given with it: sorted by address, each address
    /// once.
    ///
    /// Of several entries with one address the last that is not terminating counts, else the first.
    /// Slices are taken in the order given. Source: kube-proxy v1.36, `endpointslicecache`.
    pub fn merge(slices: impl Iterator<Item = (&'a Slice, u16)>) -> Vec<Endpoint<'a>> {
        let mut all = Vec::new();
        for (slice, port) in slices {
            let endpoints = slice.endpoints.iter();
            all.extend(
                endpoints.map(|source| Endpoint { address: SocketAddr::new(source.ip, port), source }),
            );
        }
        all.sort_by_key(|endpoint| endpoint.address); // stable: duplicates stay in order
        let mut merged: Vec<Endpoint<'a>> = Vec::with_capacity(all.len());
        for endpoint in all {
            match merged.last_mut() {
                Some(last) if last.address == endpoint.address => {
                    if !endpoint.source.conditions.is_terminating {
                        *last = endpoint;
                    }
                }
                _ => merged.push(endpoint),
            }
        }
        merged
    }

    /// Whether it is on the node called `node`.
    pub fn is_on(&self, node: &str) -> bool {
        self.source.node.as_deref().is_some_and(|name| !node.is_empty() && name == node)
    }

    /// Whether it takes new connections.
    pub fn is_ready(&self) -> bool {
        self.source.conditions.is_ready
    }

    /// Whether it is on its way out but still serves: what is used when nobody is ready.
    pub fn is_serving_terminating(&self) -> bool {
        self.source.conditions.is_serving && self.source.conditions.is_terminating
    }
}
