//! Warnings about settings that work, but probably not as intended: node ports open on every address,
//! networks of a family that is not the node's first. Source: kube-proxy v1.36, `checkBadConfig`,
//! `checkBadIPConfig`.

use std::net::SocketAddr;

use super::settings::node_ip;
use crate::config::{Config, NodePortAddresses};
use crate::model::Node;
use crate::net::{Cidr, IpFamily};

/// Warnings about the configuration, a sentence each; called once the Node has been read. `families` are
/// those that the agent proxies.
pub fn config_warnings(config: &Config, node: Option<&Node>, families: &[IpFamily]) -> Vec<String> {
    let primary = primary_family(config, node);
    let pod_cidrs: &[Cidr] = node.map_or(&[], |node| &node.pod_cidrs);
    let excluded = &config.ipvs_exclude_cidrs;
    let mut warnings = Vec::new();
    warnings.extend(node_port_exposure(config, node, primary, &[pod_cidrs, excluded]));

    let is_wrong = |cidrs: &[Cidr]| !cidrs.is_empty() && cidrs.iter().all(|cidr| cidr.family() != primary);
    if is_wrong(&config.cluster_cidrs) {
        warnings.push(format!("clusterCIDR has no network of {primary}, the node's first family"));
    }
    if is_wrong(pod_cidrs) {
        warnings.push(format!("the Node's podCIDRs have none of {primary}, the node's first family"));
    }
    if config.winkernel_source_vip.is_some_and(|ip| IpFamily::of(ip) != primary) {
        warnings.push(format!("winkernel.sourceVip is not of {primary}, the node's first family"));
    }
    if families.len() < 2 {
        if is_wrong(excluded) {
            warnings.push(format!("ipvs.excludeCIDRs has no network of {primary}, the only family here"));
        }
        let servers = [
            ("healthzBindAddress", config.healthz_bind_address),
            ("metricsBindAddress", config.metrics_bind_address),
        ];
        let is_other =
            |address: SocketAddr| !address.ip().is_unspecified() && IpFamily::of(address.ip()) != primary;
        for (name, address) in servers {
            if address.is_some_and(is_other) {
                warnings.push(format!("{name} is not of {primary}, the only family here"));
            }
        }
    }
    warnings
}

/// The family of bindAddress if that is one address, else of the Node's first address, else IPv4.
fn primary_family(config: &Config, node: Option<&Node>) -> IpFamily {
    let bound = config.bind_address.filter(|ip| !ip.is_unspecified()).map(IpFamily::of);
    bound.or_else(|| node?.primary_family()).unwrap_or(IpFamily::V4)
}

fn node_port_exposure(
    config: &Config,
    node: Option<&Node>,
    primary: IpFamily,
    more_cidrs: &[&[Cidr]],
) -> Option<String> {
    let ips = IpFamily::BOTH.into_iter().filter_map(|family| node_ip(config, node, family));
    let NodePortAddresses::Cidrs(cidrs) = config.node_port_addresses.with_primary(ips) else {
        return Some(
            "nodePortAddresses is not set: node ports answer on every address of the node; \
             consider `--nodeport-addresses primary`"
                .to_owned(),
        );
    };
    let has = |cidrs: &[Cidr], family| cidrs.iter().any(|cidr| cidr.family() == family);
    let is_both = |cidrs: &[Cidr]| has(cidrs, primary) && has(cidrs, primary.other());
    let is_dual =
        is_both(&config.cluster_cidrs) || is_both(&cidrs) || more_cidrs.iter().any(|cidrs| is_both(cidrs));
    let open = |family: IpFamily| {
        format!(
            "nodePortAddresses has no network of {family}: its node ports answer on every address of the node"
        )
    };
    if is_dual && !has(&cidrs, primary.other()) {
        Some(open(primary.other()))
    } else if !has(&cidrs, primary) {
        Some(open(primary))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    /// Checks the warnings for these flags (`name=value`) on a node with these addresses and pod CIDRs.
    #[track_caller]
    fn check(flags: &[&str], addresses: &[&str], pod_cidrs: &[&str], expected: &[&str]) {
        let flags = flags.iter().fold(Flags::default(), |flags, flag| {
            let (name, value) = flag.split_once('=').unwrap();
            flags.with(name, value)
        });
        let (config, _) = Config::resolve(None, &flags).unwrap();
        let node = Node {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|cidr| Cidr::parse(cidr).unwrap()).collect(),
            ..Node::unknown("n".into())
        };
        let families = match config.bind_address_hard_fail {
            true => &IpFamily::BOTH[..1],
            false => &IpFamily::BOTH,
        };
        let warnings = config_warnings(&config, Some(&node), families);
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (warning, part) in warnings.iter().zip(expected) {
            assert!(warning.contains(part), "{warning:?} lacks {part:?}");
        }
    }

    const V4: &str = "nodeport-addresses=192.168.0.0/16";
    const V6: &str = "nodeport-addresses=fd00::/8";

    #[test]
    fn open_node_ports_are_reported() {
        let (ip4, ip6) = ("192.168.0.1", "fd00::1");
        check(&[], &[ip4], &[], &["nodePortAddresses is not set"]);
        check(&["nodeport-addresses=primary"], &[ip4], &[], &[]);
        check(&["nodeport-addresses=primary"], &[], &[], &["nodePortAddresses is not set"]);
        check(&[V4], &[ip4], &[], &[]);
        check(&[V4], &[ip6], &[], &["no network of IPv6"]);
        check(&[V4], &[ip4, ip6], &["10.0.0.0/24", "fd01::/64"], &["no network of IPv6"]);
        check(&[V4, "cluster-cidr=10.0.0.0/8,fd02::/32"], &[ip4], &[], &["no network of IPv6"]);
        check(&[V6], &[ip4], &[], &["no network of IPv4"]);
        check(&[V6, V4], &[ip4, ip6], &[], &[]);
    }

    #[test]
    fn the_primary_address_is_the_bind_address_if_that_is_one_address() {
        let primary = "nodeport-addresses=primary";
        check(&[primary, "bind-address=192.168.0.9"], &[], &[], &[]);
        check(&[primary, "bind-address=fd00::9"], &["192.168.0.1"], &[], &[]);
        check(&[primary, "bind-address=0.0.0.0"], &[], &[], &["nodePortAddresses is not set"]);
    }

    #[test]
    fn networks_of_the_other_family_are_reported() {
        let node = &["192.168.0.1"];
        check(&[V4, "cluster-cidr=fd02::/32"], node, &[], &["clusterCIDR has no network of IPv4"]);
        check(&[V4, "cluster-cidr=fd02::/32", "bind-address=fd00::1"], node, &[], &["no network of IPv6"]);
        check(&[V4], node, &["fd01::/64"], &["podCIDRs have none of IPv4"]);
    }

    /// `bind-address-hard-fail` stands for a machine without IPv6.
    #[test]
    fn servers_of_the_other_family_are_reported_if_only_one_is_proxied() {
        let node = &["192.168.0.1"];
        let other = ["healthz-bind-address=[fd00::1]:10256", "metrics-bind-address=[::1]:10249"];
        check(&[V4, other[0], other[1]], node, &[], &[]);
        let single = [V4, other[0], other[1], "bind-address-hard-fail=true"];
        check(&single, node, &[], &["healthzBindAddress", "metricsBindAddress"]);
        check(&[V4, "healthz-bind-address=[::]:10256", single[3]], node, &[], &[]);
    }
}
