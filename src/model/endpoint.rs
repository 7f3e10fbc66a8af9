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

/// The zones and nodes that the EndpointSlice controller assigned an endpoint to; each list sorted.
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
    /// Its node, if known.
    pub node: Option<Arc<str>>,
    /// Its hints; `None` when it has neither kind.
    pub hints: Option<Box<Hints>>,
}

/// One usable entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port that it serves.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the endpoints; not 0.
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
    /// Time of the cause of this slice's last change, by the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`. [`Snapshot`](super::Snapshot) does not store it.
    pub triggered_at: Option<SystemTime>,
}

/// An endpoint of one service port: an address of a slice at the slice's port.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Address and port.
    pub address: SocketAddr,
    /// Its entry in the slice.
    pub source: &'a SliceEndpoint,
}

impl<'a> Endpoint<'a> {
    /// The endpoints of `slices`, each with the port given with its slice; sorted by address, without
    /// duplicates.
    ///
    /// Of several entries with one address, the last that is not terminating is used, otherwise the first.
    /// Slices are read in the given order. Source: kube-proxy v1.36, `endpointslicecache`.
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

    /// Whether it accepts new connections.
    pub fn is_ready(&self) -> bool {
        self.source.conditions.is_ready
    }

    /// Whether it is terminating but still serves: the fallback when no endpoint is ready.
    pub fn is_serving_terminating(&self) -> bool {
        self.source.conditions.is_serving && self.source.conditions.is_terminating
    }
}
