#![allow(clippy::disallowed_methods, reason = "the test deletes flows with `conntrack`")]

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::super::netlink::in_new_namespace;
use super::*;

const NEW: u8 = 0;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const TCP_STATE: u16 = 4;
const TCP: u8 = 6;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tuple(kind: u16, protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let ip = |side: usize, ip: IpAddr| match ip {
        IpAddr::V4(ip) => attribute(IP_V4[side], &ip.octets()),
        IpAddr::V6(ip) => attribute(IP_V6[side], &ip.octets()),
    };
    let ips = nested(TUPLE_IP, &[&ip(0, from.ip()), &ip(1, to.ip())]);
    let protocol = nested(
        TUPLE_PROTOCOL,
        &[
            &attribute(PROTOCOL_NUMBER, &[protocol]),
            &attribute(PORTS[0], &from.port().to_be_bytes()),
            &attribute(PORTS[1], &to.port().to_be_bytes()),
        ],
    );
    nested(kind, &[&ips, &protocol])
}

/// Creates a flow from `client` to `destination`, translated to `backend`.
fn add(
    netfilter: &mut Netfilter,
    protocol: u8,
    client: SocketAddr,
    destination: SocketAddr,
    backend: SocketAddr,
) {
    add_in(netfilter, &[], protocol, client, destination, backend);
}

/// As [`add`], in the zone of the attribute `zone`.
fn add_in(
    netfilter: &mut Netfilter,
    zone: &[u8],
    protocol: u8,
    client: SocketAddr,
    destination: SocketAddr,
    backend: SocketAddr,
) {
    let mut attributes = tuple(TUPLE_ORIGINAL, protocol, client, destination);
    attributes.extend(tuple(TUPLE_REPLY, protocol, backend, client));
    attributes.extend(zone);
    // IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED
    push_attribute(&mut attributes, STATUS, &0x0eu32.to_be_bytes());
    push_attribute(&mut attributes, TIMEOUT, &600u32.to_be_bytes());
    if protocol == TCP {
        // CTA_PROTOINFO_TCP with its state, 3: established.
        attributes.extend(nested(TCP_STATE, &[&nested(1, &[&attribute(1, &[3])])]));
    }
    let family = nfproto(IpFamily::of(client.ip()));
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let request =
        NetfilterRequest { flags, attributes: &attributes, ..NetfilterRequest::new(SUBSYSTEM, NEW, family) };
    netfilter.request(&request, &mut |_| {}).unwrap();
}

/// All flows of `family`, by destination.
fn n_flows(family: IpFamily) -> usize {
    let mut n = 0;
    let request =
        NetfilterRequest { flags: NLM_F_DUMP, ..NetfilterRequest::new(SUBSYSTEM, GET, nfproto(family)) };
    Netfilter::open().unwrap().request(&request, &mut |_| n += 1).unwrap();
    n
}

#[test]
fn only_flows_judged_stale_are_deleted() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        let (vip, keep, gone) = (addr("10.96.0.1:53"), addr("10.0.0.1:53"), addr("10.0.0.2:53"));
        for n in 1..=5 {
            add(&mut netfilter, UDP, SocketAddr::new([192, 0, 2, n].into(), 4000), vip, keep);
            add(&mut netfilter, UDP, SocketAddr::new([192, 0, 3, n].into(), 4000), vip, gone);
        }
        add(&mut netfilter, TCP, addr("192.0.2.1:4000"), vip, gone);
        let v6 = [addr("[fd00::1]:9"), addr("[fd00:96::1]:53"), addr("[fd00::2]:53")];
        add(&mut netfilter, UDP, v6[0], v6[1], v6[2]);

        let mut reasons = Vec::new();
        let mut seen = Vec::new();
        let swept = sweep_udp(
            IpFamily::V4,
            |to, backend| {
                seen.push((to, backend));
                (backend == gone).then_some("gone")
            },
            |reason| reasons.push(reason),
        )
        .unwrap();
        assert_eq!(swept, Swept { n_seen: 10, n_deleted: 5, ..Swept::default() });
        assert_eq!(reasons, ["gone"; 5]);
        assert!(seen.iter().all(|(to, backend)| *to == vip && [keep, gone].contains(backend)), "{seen:?}");
        assert_eq!(n_flows(IpFamily::V4), 6, "5 of UDP and one of TCP");
        assert_eq!(n_flows(IpFamily::V6), 1);

        let swept =
            sweep_udp(IpFamily::V6, |to, backend| (to == v6[1] && backend == v6[2]).then_some(()), drop)
                .unwrap();
        assert_eq!((swept.n_seen, swept.n_deleted), (1, 1));
        assert_eq!(n_flows(IpFamily::V6), 0);
    });
}

#[test]
fn the_kernel_lists_udp_only() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        add(&mut netfilter, TCP, addr("192.0.2.1:4000"), addr("10.96.0.1:53"), addr("10.0.0.1:53"));
        add(&mut netfilter, UDP, addr("192.0.2.1:4000"), addr("10.96.0.1:53"), addr("10.0.0.1:53"));
        let filter = udp_only();
        let request = NetfilterRequest {
            subsystem: SUBSYSTEM,
            message: GET,
            family: nfproto(IpFamily::V4),
            flags: NLM_F_DUMP,
            texts: &[],
            attributes: &filter,
        };
        let mut n = 0;
        netfilter.request(&request, &mut |_| n += 1).unwrap();
        assert_eq!(n, 1);
    });
}

#[test]
fn a_flow_that_is_already_gone_counts_as_deleted() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        let (vip, gone) = (addr("10.96.0.1:53"), addr("10.0.0.2:53"));
        add(&mut netfilter, UDP, addr("192.0.2.1:1"), vip, gone);
        let swept = sweep_udp(
            IpFamily::V4,
            |_, _| {
                // Another process deletes it between the listing and the deletion.
                assert!(std::process::Command::new("conntrack").arg("-F").output().unwrap().status.success());
                Some(())
            },
            drop,
        );
        assert_eq!(swept.unwrap(), Swept { n_seen: 1, n_deleted: 1, ..Swept::default() });
    });
}

#[test]
fn a_newer_flow_with_the_same_original_tuple_stays() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        let (client, vip, gone) = (addr("192.0.2.1:1"), addr("10.96.0.1:53"), addr("10.0.0.2:53"));
        add(&mut netfilter, UDP, client, vip, gone);
        let mut other = Netfilter::open().unwrap();
        let swept = sweep_udp(
            IpFamily::V4,
            |_, _| {
                assert!(std::process::Command::new("conntrack").arg("-F").output().unwrap().status.success());
                add(&mut other, UDP, client, vip, addr("10.0.0.1:53"));
                Some(())
            },
            drop,
        );
        assert_eq!(swept.unwrap().n_failed, 0);
        assert_eq!(n_flows(IpFamily::V4), 1, "the newer flow");
    });
}

#[test]
fn without_support_for_the_filter_the_request_is_repeated_without_it() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        let (vip, gone) = (addr("10.96.0.1:53"), addr("10.0.0.2:53"));
        add(&mut netfilter, TCP, addr("192.0.2.1:1"), vip, gone);
        add(&mut netfilter, UDP, addr("192.0.2.1:1"), vip, gone);
        // A filter without its tuple.
        let filter = nested(FILTER, &[&attribute(FILTER_ORIGINAL, &u32::MAX.to_ne_bytes())]);
        let swept = sweep_by(&filter, IpFamily::V4, |_, _| Some(()), drop).unwrap();
        assert_eq!(swept, Swept { n_seen: 1, n_deleted: 1, ..Swept::default() });
        assert_eq!(n_flows(IpFamily::V4), 1, "the TCP flow");
    });
}

#[test]
fn flows_in_other_zones_are_not_judged() {
    in_new_namespace(|| {
        let mut netfilter = Netfilter::open().unwrap();
        let (client, vip, gone) = (addr("192.0.2.1:1"), addr("10.96.0.1:53"), addr("10.0.0.2:53"));
        add(&mut netfilter, UDP, client, vip, gone);
        add_in(&mut netfilter, &attribute(ZONE, &7u16.to_be_bytes()), UDP, client, vip, gone);
        let swept = sweep_udp(IpFamily::V4, |_, _| Some(()), drop).unwrap();
        assert_eq!(swept, Swept { n_seen: 1, n_deleted: 1, ..Swept::default() });
        assert_eq!(n_flows(IpFamily::V4), 1, "the flow in the other zone");
    });
}
