//! Rules of other programs on node-1: published ports and isolation as Docker writes them, workload policies with
//! marks as Calico does, and a few that use chance, counts and marks of connections.

use anyhow::Result;

use crate::cluster::WEB;
use crate::lab::Lab;
use crate::lab::address::{FAMILIES, Family};

/// Ports of node-1 that the rules here treat in some way.
pub const PORTS: [u16; 8] = [8088, 8089, 9005, 9, 9998, 9997, 8080, 30_500];

/// The rules of one family; `{NAME}` stands for an address.
const RULES: &str = "*raw
:cali-PREROUTING - [0:0]
-I PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i cbr0 -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
COMMIT
*mangle
:cali-PREROUTING - [0:0]
-I PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -i eth0 -j CONNMARK --set-xmark 0x100/0xf00
-A cali-PREROUTING -p tcp -m tcp --dport 30500 -j MARK --set-xmark 0x1/0xf
COMMIT
*nat
:DOCKER - [0:0]
-I PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-I OUTPUT ! -d {LOOPBACK} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {DOCKER} ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination {WEB-1-PORT}
-A DOCKER -p udp -m multiport --dports 8089,9000:9010 -j REDIRECT --to-ports 8099
-A DOCKER -p udp -m statistic --mode random --probability 0.50000000000 -m udp --dport 9997 -j DNAT --to-destination {WEB-1-PORT}
-A DOCKER -p tcp -m mark --mark 0x1/0xf -j DNAT --to-destination {OUTSIDE-PORT}
COMMIT
*filter
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
:cali-FORWARD - [0:0]
:cali-INPUT - [0:0]
:cali-from-hep - [0:0]
:cali-from-wl - [0:0]
:cali-to-wl - [0:0]
:cali-tw-web2 - [0:0]
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-USER
-I FORWARD -j cali-FORWARD
-I INPUT -j cali-INPUT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -s {OUTSIDE} -p tcp -m conntrack --ctorigdst {LOAD-BALANCER} --ctorigdstport 80 -j DROP
-A DOCKER-USER -p udp -m conntrack --ctorigdst {EXTERNAL} --ctdir ORIGINAL -j REJECT
-A DOCKER-USER -m iprange --dst-range {RANGE} -p tcp -m tcp --dport 8080 --syn -m conntrack --ctstatus ASSURED -j DROP
-A DOCKER-USER -j RETURN
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep
-A cali-FORWARD -i cbr0 -j cali-from-wl
-A cali-FORWARD -o cbr0 -j cali-to-wl
-A cali-FORWARD -m limit --limit 1/sec -j RETURN
-A cali-from-wl -m conntrack --ctstate INVALID -j DROP
-A cali-from-wl -p tcp -m tcp --dport 9999 -j REJECT --reject-with tcp-reset
-A cali-to-wl -d {WEB-2} -g cali-tw-web2
-A cali-tw-web2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-web2 -m conntrack --ctstate INVALID -j DROP
-A cali-tw-web2 -j MARK --set-xmark 0x0/0x10000
-A cali-tw-web2 -p tcp -m tcp --dport 8080 --syn -j MARK --set-xmark 0x10000/0x10000
-A cali-tw-web2 -p udp -m multiport --dports 53,8080 -m connmark ! --mark 0x100/0xf00 -j MARK --set-xmark 0x10000/0x10000
-A cali-tw-web2 -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw-web2 -j DROP
-A cali-INPUT -i cbr0 -p udp -m udp --dport 9 -j DROP
-A cali-INPUT -m statistic --mode nth --every 2 --packet 0 -p tcp -m tcp --dport 9998 -j DROP
-A cali-INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

/// Adds the rules to node-1, both families.
pub fn add(lab: &Lab) -> Result<()> {
    let node = lab.node(1);
    for family in FAMILIES {
        let pod = |name: &str| lab.pod(name).address().of(family);
        let port = |ip: std::net::IpAddr| std::net::SocketAddr::new(ip, 8080).to_string();
        let outside = lab.outside().address().of(family);
        let (loopback, docker) = match family {
            Family::V4 => ("127.0.0.0/8", "172.17.0.0/16"),
            Family::V6 => ("::1/128", "fd00:172:17::/64"),
        };
        let values = [
            ("{LOOPBACK}", loopback.to_owned()),
            ("{DOCKER}", docker.to_owned()),
            ("{WEB-1-PORT}", port(pod("web-1"))),
            ("{OUTSIDE-PORT}", port(outside)),
            ("{OUTSIDE}", outside.to_string()),
            ("{WEB-2}", pod("web-2").to_string()),
            ("{RANGE}", format!("{}-{}", pod("web-1"), pod("client-1"))),
            ("{LOAD-BALANCER}", WEB.load_balancer(family).ip().to_string()),
            ("{EXTERNAL}", WEB.external_ip(family).ip().to_string()),
        ];
        let text = values.iter().fold(RULES.to_owned(), |text, (name, value)| text.replace(name, value));
        let program = node.backend().program(family, "-restore");
        node.netfilter().namespace.command(&program, &["-w", "5", "--noflush"], &text)?;
    }
    Ok(())
}
