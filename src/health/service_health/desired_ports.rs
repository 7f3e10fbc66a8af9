//! The health check node ports that should be open, and the counts that they answer with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::apply::Quarantine;
use crate::compile::View;
use crate::model::{Service, ServiceName};
use crate::net::IpFamily;
use crate::rules::{NodePorts, Settings};

/// The desired health check node ports of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DesiredPorts {
    /// The addresses that every port listens on; the unspecified address stands for all.
    pub(super) addresses: Vec<IpAddr>,
    /// The port of each Service that has one.
    pub(super) services: BTreeMap<ServiceName, DesiredPort>,
}

/// The health check node port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DesiredPort {
    /// The port; not 0.
    pub(super) port: u16,
    /// Addresses of ready endpoints of the Service on this node that rules can lead to; one that serves several ports
    /// counts once.
    pub(super) n_local: usize,
}

/// The ports that the objects of `view` ask for in the family of `settings`. Endpoints count only for service ports
/// outside `quarantine`: a load balancer should not send packets here that no rule forwards.
pub(super) fn desired_ports(view: View<'_>, settings: &Settings, quarantine: &Quarantine) -> DesiredPorts {
    let family = settings.family;
    let unspecified = match family {
        IpFamily::V4 => IpAddr::from([0; 4]),
        IpFamily::V6 => IpAddr::from([0; 16]),
    };
    let addresses = match &settings.node_ports {
        NodePorts::EveryAddress => vec![unspecified],
        NodePorts::Addresses(addresses) => addresses.clone(),
    };
    let port = |service: &Arc<Service>| {
        let port = service.health_check_node_port?;
        // Only a Service with a cluster IP of the family and a port.
        service.ports_in(family).next()?;
        let n_local = n_local(service, view, family, quarantine);
        Some((service.name.clone(), DesiredPort { port, n_local }))
    };
    DesiredPorts { addresses, services: view.snapshot.services().filter_map(port).collect() }
}

fn n_local(service: &Service, view: View<'_>, family: IpFamily, quarantine: &Quarantine) -> usize {
    let mut ips = BTreeSet::new();
    let ports = view.snapshot.ports_of(service, family);
    for port in ports.iter().filter(|port| !quarantine.contains_key(&port.name())) {
        let endpoints = ports.endpoints(&port).into_iter();
        let here = endpoints.filter(|endpoint| endpoint.is_ready() && endpoint.is_on(view.place.node));
        ips.extend(here.map(|endpoint| endpoint.address.ip()));
    }
    ips.len()
}
