//! The effect of targets on a packet.

use std::net::{IpAddr, SocketAddr};

use super::leg::Leg;
use super::{Walk, Walker};
use crate::iptables::Target;
use crate::iptables::trace::outcome::PacketVerdict;
use crate::iptables::trace::step::Step;
use crate::net::IpFamily;

impl<'a> Walker<'a> {
    /// Carries out the target of a rule that the packet matched at `step`.
    pub(super) fn carry_out(
        &self,
        walk: &mut Walk<'a>,
        target: &Target,
        step: Step,
    ) -> Option<PacketVerdict> {
        match target {
            Target::Accept => walk.pass(),
            Target::Drop => return Some(PacketVerdict::Dropped),
            Target::Reject => return Some(PacketVerdict::Rejected),
            Target::Return => return self.leave_chain(walk),
            Target::Jump(name) => return self.enter(walk, *name, step, false),
            Target::Goto(name) => return self.enter(walk, *name, step, true),
            Target::Dnat(to) => {
                walk.set_destination(*to);
                walk.pass();
            }
            Target::Masquerade { .. } => self.masquerade(walk),
            Target::SetXmark { value, mask } => walk.mark = walk.mark & !mask ^ value,
            Target::Other { name, words } => {
                let words: Vec<&str> = words.iter().map(|word| &**word).collect();
                return self.foreign(walk, name, &words, step);
            }
        }
        None
    }

    fn masquerade(&self, walk: &mut Walk<'a>) {
        let own = self.node.own_address(IpFamily::of(walk.source.ip()));
        walk.set_source(SocketAddr::new(own, walk.source.port()));
        walk.masquerade = true;
        walk.pass();
    }

    /// Targets of foreign rules.
    fn foreign(&self, walk: &mut Walk<'a>, name: &str, words: &[&str], step: Step) -> Option<PacketVerdict> {
        let unknown = Some(PacketVerdict::Unknown(step));
        match (name, words) {
            // They read the packet, or change fields that no rule here matches on.
            ("LOG" | "NFLOG" | "TRACE" | "CHECKSUM" | "TCPMSS", _) => {}
            ("REJECT", _) => return Some(PacketVerdict::Rejected),
            ("MASQUERADE", _) => self.masquerade(walk),
            ("REDIRECT", options) => {
                let Some(port) = redirected_port(options, walk.destination.port()) else { return unknown };
                let to = self.redirected_address(walk);
                walk.set_destination(SocketAddr::new(to, port));
                walk.pass();
            }
            ("DNAT", ["--to-destination", to, ..]) => {
                let Some(to) = translated(to, walk.destination.port()) else { return unknown };
                walk.set_destination(to);
                walk.pass();
            }
            ("SNAT", ["--to-source", from, ..]) => {
                let Some(from) = translated(from, walk.source.port()) else { return unknown };
                walk.set_source(from);
                walk.pass();
            }
            _ => return unknown,
        }
        None
    }

    /// Packets that the node sends go to loopback, others to the interface's own address.
    fn redirected_address(&self, walk: &Walk<'a>) -> IpAddr {
        let family = IpFamily::of(walk.destination.ip());
        if walk.leg == Leg::Sending { family.localhost() } else { self.node.own_address(family) }
    }
}

fn redirected_port(options: &[&str], port: u16) -> Option<u16> {
    match options {
        [] => Some(port),
        ["--to-ports", to] => to.parse().ok(),
        _ => None,
    }
}

/// `<ip>` or `<ip>:<port>`; not a range, from which the kernel picks at random.
fn translated(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, port)))
}
