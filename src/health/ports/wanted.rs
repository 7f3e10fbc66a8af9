//! Which health check node ports are to be open, and what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::compile::View;
use crate::model::{Service, ServiceName};
use crate::net::IpFamily;
use crate::rules::{NodePorts, Settings};
use crate::sync::Quarantine;

/// The health check node ports of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// On which addresses all of them listen: an unspecified one for all.
    pub addresses: Vec<IpAddr>,
    /// The port of each Service that has one.
    pub services: BTreeMap<ServiceName, WantedPort>,
}

/// The health check node port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedPort {
    /// The port; not 0.
    pub port: u16,
    /// Endpoints of the Service that are ready and on this node, and to which rules may lead, by address:
    /// one that serves several ports counts once.
    pub n_local: usize,
}

/// What `view` asks for in the family of `settings`. A load balancer had better not send here what no rule
/// takes up: endpoints of a service port in `quarantine` do not count for it.
pub fn wanted(view: View<'_>, settings: &Settings, quarantine: &Quarantine) -> Wanted {
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
        // In the family at all: it has a cluster IP there, and a port.
        service.ports_in(family).next()?;
        let n_local = n_local(service, view, family, quarantine);
        Some((service.name.clone(), WantedPort { port, n_local }))
    };
    Wanted { addresses, services: view.snapshot.services().filter_map(port).collect() }
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
