//! Kubernetes objects as the values that a node's rules depend on.
//!
//! [`decode`] turns API objects into these values. [`Snapshot`] holds the newest value of each object and
//! reports what a [`Change`] touched. Choosing endpoints for traffic is left to `policy`.

pub mod decode;
mod endpoint;
pub mod host;
mod inventory;
mod near_match;
mod node;
mod pod;
mod problem;
mod service;
mod service_ports;
mod snapshot;

pub use endpoint::{Conditions, Endpoint, Hints, Slice, SliceEndpoint, SlicePort};
pub use inventory::Inventory;
pub use near_match::nearest;
pub use node::Node;
pub use pod::Pod;
pub use problem::{EscapedValue, ObjectKind, Problem, ProblemWeight, needs_escape};
pub use service::{Frontend, NotProxied, Port, Seniority, Service, ServicePort, TrafficPolicy};
pub use service_ports::ServicePorts;
pub use snapshot::{Change, SliceChange, Snapshot, Touched};

use std::fmt;
use std::sync::Arc;

use crate::net::Protocol;

/// `<namespace>/<name>` of an object; ordered as text, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// Joins `namespace` and `name`; by their grammar neither contains a `/`.
    pub fn new(namespace: &str, name: &str) -> ObjectName {
        ObjectName(format!("{namespace}/{name}").into())
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name without the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a Service.
pub type ServiceName = ObjectName;
/// The name of an EndpointSlice.
pub type SliceName = ObjectName;

/// Identifies a service port. Displayed as `<namespace>/<name>`, followed by `:<port>` when the port has a
/// name; the protocol is part of the identity but not of the text.
///
/// Ordered by Service, then port name, then protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ServiceName,
    /// The port's name, often empty.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service.0)?;
        if !self.port.is_empty() {
            f.write_str(":")?;
            f.write_str(&self.port)?;
        }
        Ok(())
    }
}
