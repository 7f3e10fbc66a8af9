//! The way of the reply.

use super::*;

fn reply(lab: &Lab, packet: &Packet) -> Option<String> {
    let branches = lab.trace(packet);
    let [branch] = &branches[..] else { panic!("{branches:?}") };
    branch.reply(packet, &lab.node()).map(|reply| reply.to_string())
}

#[test]
fn replies_come_back_where_the_source_leads() {
    let dnat = "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.5:8080\n\
                -A OUTPUT -d 10.96.0.1/32 -j DNAT --to-destination 10.0.0.5:8080";
    assert_eq!(
        reply(&Lab::nat(&format!("{dnat}\n-A POSTROUTING -j MASQUERADE")), &outside()).unwrap(),
        "from 10.0.0.5:8080 to 192.0.2.1:999, back to this node; the client sees it from 10.96.0.1:80"
    );
    assert_eq!(
        reply(&Lab::nat(dnat), &outside()).unwrap(),
        "from 10.0.0.5:8080 to 198.51.100.9:999, through this node only if routing leads there; \
         the client sees it from 10.96.0.1:80"
    );
    assert_eq!(
        reply(&Lab::nat(dnat), &sent("192.0.2.1:7", "10.96.0.1:80")).unwrap(),
        "from 10.0.0.5:8080 to 192.0.2.1:7, back to this node; the client sees it from 10.96.0.1:80"
    );
    assert_eq!(
        reply(&Lab::nat(""), &outside()).unwrap(),
        "from 10.96.0.1:80 to 198.51.100.9:999, nothing to undo"
    );
    let redirect = Lab::nat("-A PREROUTING -p tcp -j REDIRECT --to-ports 8080");
    assert_eq!(
        reply(&redirect, &outside()).unwrap(),
        "from 192.0.2.1:8080 on this node to 198.51.100.9:999; the client sees it from 10.96.0.1:80"
    );
    let snat = Lab::nat(&format!("{dnat}\n-A POSTROUTING -j SNAT --to-source 203.0.113.7"));
    let expected = "from 10.0.0.5:8080 to 203.0.113.7:999, through this node only if routing leads there; \
                    the client sees it from 10.96.0.1:80";
    assert_eq!(reply(&snat, &outside()).unwrap(), expected);
}

#[test]
fn a_packet_that_does_not_pass_has_no_reply() {
    assert_eq!(reply(&Lab::filter("-A FORWARD -j DROP"), &outside()), None);
    let later = Packet { state: CtStates::ESTABLISHED, ..outside() };
    assert_eq!(reply(&Lab::filter(""), &later), None);
}
