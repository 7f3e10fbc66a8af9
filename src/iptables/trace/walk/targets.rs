//! The effect of targets on a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::leg::Leg;
use super::{Walk, Walker};
use crate::iptables::parse::{number, value_and_mask};
use crate::iptables::trace::clauses::{Clause, clauses, range};
use crate::iptables::trace::outcome::PacketVerdict;
use crate::iptables::trace::packet::Hook;
use crate::iptables::trace::step::Step;
use crate::iptables::{CtStates, Table, Target};
use crate::net::{Cidr, IpFamily};

/// Targets that change nothing that a rule here matches on: they read the packet, or change fields that every
/// match on them leaves undecided.
const HARMLESS: [&str; 21] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNSECMARK",
    "DSCP",
    "ECN",
    "HL",
    "IDLETIMER",
    "LED",
    "LOG",
    "NFLOG",
    "RATEEST",
    "SECMARK",
    "SET",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
];

impl<'a> Walker<'a> {
    /// Carries out the target of a rule that the packet matched at `step`; [`PacketVerdict::Unknown`] if its
    /// effect is not known, and `walk` stays as it is.
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
            Target::Dnat(to) => send_to(walk, *to),
            Target::Masquerade { .. } => self.masquerade(walk),
            Target::SetXmark { value, mask } => walk.mark = walk.mark & !mask ^ value,
            Target::Other { name, .. } if **name == *"REJECT" => return Some(PacketVerdict::Rejected),
            Target::Other { name, words } => {
                if self.foreign(walk, name, &clauses(words)).is_none() {
                    return Some(PacketVerdict::Unknown(step));
                }
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

    /// Targets of foreign rules; `None` if the effect is not known.
    fn foreign(&self, walk: &mut Walk<'a>, name: &str, clauses: &[Clause<'_>]) -> Option<()> {
        let option = |name: &str| clauses.iter().find(|clause| clause.name == name);
        let value = |name: &str| option(name)?.value();
        match name {
            // It may set the packet's mark.
            "SET" if option("--map-set").is_some() => return None,
            // The kernel picks a port even if the packet's is in the range.
            "DNAT" | "REDIRECT" if option("--random").is_some() && !has_one_port(clauses) => return None,
            name if HARMLESS.contains(&name) => {}
            "MASQUERADE" => self.masquerade(walk),
            "REDIRECT" => {
                let port = match value("--to-ports") {
                    Some(ports) => port_within(ports, walk.destination.port())?,
                    None if clauses.is_empty() => walk.destination.port(),
                    None => return None,
                };
                let to = self.redirected_address(walk);
                send_to(walk, SocketAddr::new(to, port));
            }
            "DNAT" => send_to(walk, translated(value("--to-destination")?, walk.destination)?),
            "SNAT" => {
                walk.set_source(translated(value("--to-source")?, walk.source)?);
                walk.pass();
            }
            "NETMAP" => {
                let network = Cidr::parse(value("--to")?).ok()?;
                if matches!(walk.here().0, Hook::Prerouting | Hook::Output) {
                    send_to(walk, mapped(walk.destination, network));
                } else {
                    walk.set_source(mapped(walk.source, network));
                    walk.pass();
                }
            }
            "CONNMARK" => return save_or_restore_mark(walk, clauses),
            "NOTRACK" => untrack(walk),
            "CT" if option("--notrack").is_some() => untrack(walk),
            // A helper, timeout or zone changes nothing for the first packet.
            "CT" => {}
            _ => return None,
        }
        Some(())
    }

    /// Packets that the node sends go to loopback, others to the interface's own address.
    fn redirected_address(&self, walk: &Walk<'a>) -> IpAddr {
        let family = IpFamily::of(walk.destination.ip());
        if walk.leg == Leg::Sending { family.localhost() } else { self.node.own_address(family) }
    }
}

/// Conntrack passes over the packet, unless it has an entry already.
fn untrack(walk: &mut Walk<'_>) {
    if walk.leg != Leg::Looped {
        (walk.state, walk.connmark) = (CtStates::UNTRACKED, None);
    }
}

fn send_to(walk: &mut Walk<'_>, to: SocketAddr) {
    walk.set_destination(to);
    walk.pass();
}

/// `--save-mark`, `--restore-mark` and the ways to set the mark of the connection.
fn save_or_restore_mark(walk: &mut Walk<'_>, clauses: &[Clause<'_>]) -> Option<()> {
    // Before conntrack there is no connection.
    if walk.here().1 == Table::Raw && walk.leg != Leg::Looped {
        return Some(());
    }
    let value = |name: &str| clauses.iter().find(|clause| clause.name == name)?.value();
    let mask = |name: &str| value(name).or_else(|| value("--mask")).map_or(Some(u32::MAX), number);
    let (of_packet, of_connection) = (mask("--nfmask")?, mask("--ctmask")?);
    let known = walk.connmark;
    let first = clauses.first()?;
    let set = |value: u32, mask: u32| known.map(|mark| mark & !mask ^ value);
    match first.name {
        "--restore-mark" => walk.mark = walk.mark & !of_packet ^ (known? & of_connection),
        "--save-mark" => walk.connmark = set(walk.mark & of_packet, of_connection),
        "--set-xmark" => {
            let (value, mask) = value_and_mask(first.value()?)?;
            walk.connmark = set(value, mask);
        }
        "--set-mark" => {
            let (value, mask) = value_and_mask(first.value()?)?;
            walk.connmark = set(value, value | mask);
        }
        "--or-mark" => {
            let value = number(first.value()?)?;
            walk.connmark = set(value, value);
        }
        "--and-mark" => walk.connmark = set(0, !number(first.value()?)?),
        "--xor-mark" => walk.connmark = set(number(first.value()?)?, 0),
        _ => return None,
    }
    Some(())
}

/// Whether no value of `clauses` ends in a range of ports.
fn has_one_port(clauses: &[Clause<'_>]) -> bool {
    let values = clauses.iter().flat_map(|clause| &clause.values);
    values.filter_map(|value| value.rsplit(':').next()).all(|ports| !ports.contains('-'))
}

/// `<port>` or `<first>-<last>`: the port stays if it is in the range; else the kernel picks one.
fn port_within(ports: &str, port: u16) -> Option<u16> {
    let (first, last) = range(ports, '-')?;
    (first == last).then_some(first).or((first..=last).contains(&port).then_some(port))
}

/// `<ip>`, `<ip>:<port>`, `<ip>:<first>-<last>`, or one of the last two without an address; not a range of
/// addresses, from which the kernel picks one by a hash.
fn translated(text: &str, old: SocketAddr) -> Option<SocketAddr> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(SocketAddr::new(ip, old.port()));
    }
    let (ip, ports) = text.rsplit_once(':')?;
    let ip = match ip {
        "" => old.ip(),
        ip => ip.trim_start_matches('[').trim_end_matches(']').parse().ok()?,
    };
    Some(SocketAddr::new(ip, port_within(ports, old.port())?))
}

/// The bits of the network from `network`, the others as they are.
fn mapped(old: SocketAddr, network: Cidr) -> SocketAddr {
    let ip: IpAddr = match (old.ip(), network.address()) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            let host = u32::MAX.checked_shr(network.length().into()).unwrap_or(0);
            Ipv4Addr::from_bits(old.to_bits() & host | new.to_bits() & !host).into()
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            let host = u128::MAX.checked_shr(network.length().into()).unwrap_or(0);
            Ipv6Addr::from_bits(old.to_bits() & host | new.to_bits() & !host).into()
        }
        (old, _) => old,
    };
    SocketAddr::new(ip, old.port())
}
