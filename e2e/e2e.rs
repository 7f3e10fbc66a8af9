//! Real packets through real iptables: simulated clusters in network namespaces, both back-ends.
//!
//! Needs root and namespaces; without them these tests fail, they are never skipped.
#![allow(
    clippy::disallowed_methods,
    reason = "these tests are about the world: programs, files, clocks"
)]

mod lab;

#[test]
fn smoke() {
    use lab::client::{Host, Protocol};
    for network in [lab::PodNetwork::Routes, lab::PodNetwork::Vxlan] {
        let t = std::time::Instant::now();
        let lab = lab::Lab::plan(lab::netfilter::Backend::Nft)
            .pod_network(network)
            .node(&["web-1", "web-2", "client-1"])
            .node(&["web-3", "client-2"])
            .build()
            .unwrap();
        println!("built in {:?}", t.elapsed());
        for from in ["web-1", "client-2"] {
            for to in ["web-1", "web-2", "web-3"] {
                for family in lab::address::FAMILIES {
                    let addr = std::net::SocketAddr::new(lab.pod(to).address().of(family), 8080);
                    println!("{from} {to} {:?}", lab.pod(from).tcp(addr));
                    println!("{from} {to} {:?}", lab.pod(from).udp(addr));
                    println!("outside {to} {:?}", lab.outside().udp(addr));
                    println!("node {to} {:?}", lab.node(1).tcp(addr));
                }
            }
        }
        for to in ["10.96.0.10:80", "[fd00:10:96::10]:80", "203.0.113.1:80"] {
            println!("{to} {:?}", lab.pod("web-1").tcp(to.parse().unwrap()));
            println!("{to} {:?}", lab.pod("web-1").udp(to.parse().unwrap()));
            println!("{to} {:?}", lab.outside().udp(to.parse().unwrap()));
        }
        let t = std::time::Instant::now();
        println!("{}", lab.pod("web-1").attempts(1000, Protocol::Tcp, "10.128.1.5:8080".parse().unwrap()));
        println!("1000 in {:?}", t.elapsed());
        println!("gen {:?}", lab.node(1).netfilter().generation());
        let t = std::time::Instant::now();
        drop(lab);
        println!("dropped in {:?}", t.elapsed());
    }
}
