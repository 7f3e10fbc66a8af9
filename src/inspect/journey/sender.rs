//! Where the packets of a journey come from: the address and the interface behind the text of a question.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::asked::{AskedSource, QuestionError};
use super::pod_lookup::find_pod;
use crate::inspect::Subject;
use crate::inspect::vantage::{Vantage, Vantages};
use crate::iptables::Interface;
use crate::iptables::trace::Origin;
use crate::net::IpFamily;

/// The source port of packets whose question names none.
const SOURCE_PORT: u16 = 40_000;

/// Where packets come from, in one family.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub name: String,
    pub vantage: Vantage,
    pub origin: Origin,
    pub source: SocketAddr,
    /// What the address stands for, if it is a stand-in.
    pub stands_for: Option<String>,
    pub notes: Vec<String>,
}

impl Sender {
    /// As reports show the way in.
    pub(super) fn enters(&self) -> String {
        match &self.origin {
            Origin::Node => "sent by the node".to_owned(),
            Origin::Arrives(Some(interface)) => format!("arrives on {interface}"),
            Origin::Arrives(None) => "arrives on an unknown interface".to_owned(),
        }
    }
}

/// The sender that `asked` names in the family of `vantages`; `None` if it has no address there.
pub(super) fn find_sender(
    subject: &Subject,
    (family, vantages): (IpFamily, &Vantages),
    asked: &AskedSource,
    interface: Option<&Interface>,
) -> Result<Option<Sender>, QuestionError> {
    let sender = match asked {
        AskedSource::Vantage(vantage) => Some(at_vantage(vantages, *vantage)),
        AskedSource::Address(ip, _) if IpFamily::of(*ip) != family => None,
        AskedSource::Address(ip, port) => Some(at_address(subject, vantages, *ip, *port)),
        AskedSource::Pod(name) => {
            let pod = find_pod(subject, name, "--from")?;
            let here = subject.cluster.as_ref().map(|cluster| &*cluster.node_name).unwrap_or_default();
            let is_here = pod.node.as_deref().is_some_and(|node| node == here);
            pod.ips.iter().find(|ip| IpFamily::of(**ip) == family).map(|ip| {
                let vantage = match (is_here, pod.is_host_network) {
                    (true, true) => Vantage::Node,
                    (true, false) => Vantage::PodHere,
                    (false, _) => Vantage::PodElsewhere,
                };
                let mut notes = Vec::new();
                if let (false, Some(node)) = (is_here, &pod.node) {
                    notes.push(format!(
                        "pod {name} runs on node {node}, whose own rules meet its packets first; this is what node \
                         {here} does with packets that arrive unchanged"
                    ));
                }
                let origin = origin_of(subject, vantages, vantage, *ip);
                let source = SocketAddr::new(*ip, SOURCE_PORT);
                Sender { name: format!("pod {name}"), vantage, origin, source, stands_for: None, notes }
            })
        }
    };
    Ok(sender.map(|sender| match interface {
        Some(name) => Sender { origin: Origin::Arrives(Some(name.as_str().into())), ..sender },
        None => sender,
    }))
}

fn at_vantage(vantages: &Vantages, vantage: Vantage) -> Sender {
    let point = vantages.point(vantage);
    Sender {
        name: vantage.to_string(),
        vantage,
        origin: point.origin.clone(),
        source: SocketAddr::new(point.source, SOURCE_PORT),
        stands_for: point.stands_for.clone(),
        notes: Vec::new(),
    }
}

fn at_address(subject: &Subject, vantages: &Vantages, ip: IpAddr, port: Option<u16>) -> Sender {
    let vantage = vantages.vantage_of(ip);
    let pods = subject.cluster.iter().flat_map(|cluster| cluster.pods.values());
    let pod = pods.into_iter().find(|pod| !pod.is_host_network && pod.ips.contains(&ip));
    let name = pod.map_or_else(|| vantage.to_string(), |pod| format!("pod {}", pod.name));
    let origin = origin_of(subject, vantages, vantage, ip);
    let source = SocketAddr::new(ip, port.unwrap_or(SOURCE_PORT));
    Sender { name, vantage, origin, source, stands_for: None, notes: Vec::new() }
}

/// The way in of packets from `ip`: the interface of its route, else that of the vantage.
fn origin_of(subject: &Subject, vantages: &Vantages, vantage: Vantage, ip: IpAddr) -> Origin {
    if matches!(vantage, Vantage::Node | Vantage::Localhost) {
        return Origin::Node;
    }
    let routes = subject.host.routes.iter().filter(|(cidr, _)| cidr.contains(ip) && !cidr.is_everything());
    let interface = routes.max_by_key(|(cidr, _)| cidr.length()).map(|(_, name)| Arc::from(name.as_str()));
    match interface {
        Some(interface) => Origin::Arrives(Some(interface)),
        None => vantages.point(vantage).origin.clone(),
    }
}
