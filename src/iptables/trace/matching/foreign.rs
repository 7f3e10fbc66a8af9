//! Matches that other programs write: Docker, Calico, firewalld, ufw, users.
//!
//! A match is decided where the packet, the node and the text tell all that the kernel looks at. Source of the
//! semantics: iptables-extensions(8), and the kernel's `net/netfilter/xt_*.c`.

use std::net::IpAddr;

use super::{Answer, PacketAtHook, all};
use crate::iptables::parse::value_and_mask;
use crate::iptables::trace::clauses::{Clause, clauses, range};
use crate::iptables::{CtStates, Table};
use crate::net::{self, Cidr, Protocol};

impl PacketAtHook<'_> {
    /// Whether the packet fits the extension `module` with these options.
    pub(super) fn fits_foreign(&self, module: &str, words: &[Box<str>]) -> Answer {
        let clauses = clauses(words);
        let each = |fits: &dyn Fn(&Clause<'_>) -> Answer| {
            all(clauses.iter().map(|clause| fits(clause).map(|fits| fits != clause.negated)))
        };
        match module {
            "tcp" | "udp" | "sctp" if Protocol::from_iptables(module) != Some(self.protocol) => Some(false),
            "tcp" | "udp" | "sctp" => each(&|clause| self.fits_transport(clause)),
            // The packet is of a protocol of Services.
            "icmp" | "icmp6" | "icmpv6" | "igmp" | "esp" | "ah" | "dccp" | "udplite" => Some(false),
            "multiport" => each(&|clause| self.fits_multiport(clause)),
            "iprange" => each(&|clause| self.fits_iprange(clause)),
            "addrtype" => self.fits_addrtype(&clauses),
            "conntrack" | "state" => self.fits_conntrack(&clauses),
            "connmark" => each(&|clause| self.fits_connmark(clause)),
            "physdev" => each(&|_| self.is_never_bridged().then_some(false)),
            "owner" => each(&|_| if self.is_from_node { None } else { Some(false) }),
            "pkttype" => each(&|clause| self.fits_pkttype(clause)),
            "rpfilter" => self.fits_rpfilter(&clauses),
            // Adding to a list always matches.
            "recent" if clauses.iter().any(|clause| clause.name == "--set" && !clause.negated) => Some(true),
            // Conntrack puts fragments together before any rule.
            "" => each(&|clause| ["-f", "--fragment"].contains(&clause.name).then_some(false)),
            _ => None,
        }
    }

    fn fits_transport(&self, clause: &Clause<'_>) -> Answer {
        match (clause.name, &clause.values[..]) {
            ("--sport" | "--source-port", [ports]) => has(range(ports, ':')?, self.source.port()),
            ("--dport" | "--destination-port", [ports]) => has(range(ports, ':')?, self.destination.port()),
            ("--syn", []) => self.fits_flags("FIN,SYN,RST,ACK", "SYN"),
            ("--tcp-flags", [mask, set]) => self.fits_flags(mask, set),
            _ => None,
        }
    }

    /// The first packet of a connection has the flag SYN alone; the flags of others are not known.
    fn fits_flags(&self, mask: &str, set: &str) -> Answer {
        let has_syn = |text: &str| text.split(',').any(|flag| flag == "SYN" || flag == "ALL");
        let is_new = self.states.contains(CtStates::NEW) || self.is_before_conntrack_of_new();
        is_new.then(|| match set {
            "NONE" => !has_syn(mask),
            "SYN" => has_syn(mask),
            // Others that must be set are not, unless the mask leaves them out, which iptables refuses.
            _ => false,
        })
    }

    fn is_before_conntrack_of_new(&self) -> bool {
        self.table == Table::Raw && self.is_new
    }

    fn fits_multiport(&self, clause: &Clause<'_>) -> Answer {
        let ports = clause.value()?.split(',').map(|part| range(part, ':')).collect::<Option<Vec<_>>>()?;
        let any = |port: u16| ports.iter().any(|(first, last)| (*first..=*last).contains(&port));
        let (source, destination) = (any(self.source.port()), any(self.destination.port()));
        match clause.name {
            "--sports" | "--source-ports" => Some(source),
            "--dports" | "--destination-ports" => Some(destination),
            "--ports" => Some(source || destination),
            _ => None,
        }
    }

    fn fits_iprange(&self, clause: &Clause<'_>) -> Answer {
        let (first, last) = clause.value()?.split_once('-')?;
        let (first, last) = (net::parse_ip(first).ok()?, net::parse_ip(last).ok()?);
        let ip = match clause.name {
            "--src-range" => self.source.ip(),
            "--dst-range" => self.destination.ip(),
            _ => return None,
        };
        Some((first..=last).contains(&ip))
    }

    fn fits_addrtype(&self, clauses: &[Clause<'_>]) -> Answer {
        let is_limited = clauses.iter().any(|clause| clause.name.starts_with("--limit-iface"));
        all(clauses.iter().map(|clause| {
            let ip = match clause.name {
                "--src-type" => self.source.ip(),
                "--dst-type" => self.destination.ip(),
                name => return name.starts_with("--limit-iface").then_some(true),
            };
            // Which interface has the address is not known.
            if is_limited && self.node.is_local(ip) {
                return None;
            }
            let types: Vec<&str> = clause.value()?.split(',').collect();
            let fits = if ip.is_ipv4() { self.has_type_v4(ip, &types) } else { self.has_type_v6(ip, &types) };
            fits.map(|fits| fits != clause.negated)
        }))
    }

    /// The kernel looks the address up in the table of local addresses alone. The broadcast addresses of
    /// networks are not known, and count as unicast.
    fn has_type_v4(&self, ip: IpAddr, types: &[&str]) -> Answer {
        let broadcast = [IpAddr::from([255, 255, 255, 255]), IpAddr::from([0, 0, 0, 0])];
        let is = if self.node.is_local(ip) {
            "LOCAL"
        } else if broadcast.contains(&ip) {
            "BROADCAST"
        } else if ip.is_multicast() {
            "MULTICAST"
        } else {
            "UNICAST"
        };
        Some(types.contains(&is))
    }

    /// Kinds of address must all fit; a lookup must find one of the kinds of route.
    fn has_type_v6(&self, ip: IpAddr, types: &[&str]) -> Answer {
        let kinds = types.iter().filter(|kind| ["MULTICAST", "UNICAST"].contains(kind));
        if !kinds.into_iter().all(|kind| ip.is_multicast() == (*kind == "MULTICAST")) {
            return Some(false);
        }
        let routes: Vec<_> = types.iter().filter(|kind| !["MULTICAST", "UNICAST"].contains(kind)).collect();
        match routes[..] {
            [] => Some(true),
            _ if self.node.is_local(ip) && routes.contains(&&"LOCAL") => Some(true),
            [&"LOCAL"] => Some(false),
            _ => None,
        }
    }

    fn fits_conntrack(&self, clauses: &[Clause<'_>]) -> Answer {
        let states = clauses.iter().filter(|clause| ["--ctstate", "--state"].contains(&clause.name));
        let fits_states = all(states.clone().map(|clause| {
            let states = CtStates::parse(clause.value()?)?;
            Some(self.states.overlaps(states) != clause.negated)
        }));
        // Without an entry of conntrack, the kernel looks at no other option than the states.
        let tracked = CtStates::NEW.and(CtStates::ESTABLISHED).and(CtStates::RELATED);
        if !self.states.overlaps(tracked) {
            let only_states = states.count() > 0;
            return fits_states.map(|fits| fits && only_states);
        }
        let others = clauses.iter().filter(|clause| !["--ctstate", "--state"].contains(&clause.name));
        let fits_others =
            all(others.map(|clause| self.fits_entry(clause).map(|fits| fits != clause.negated)));
        all([fits_states, fits_others])
    }

    /// An option that looks at the packet's entry of conntrack. Addresses and ports before and after
    /// translation are known for the first packet of a connection.
    fn fits_entry(&self, clause: &Clause<'_>) -> Answer {
        let value = clause.value()?;
        let is_first = self.states.contains(CtStates::NEW);
        let (source, destination) = self.original;
        let port = |port: u16| has(range(value, ':')?, port);
        match clause.name {
            "--ctproto" | "--ctproto-num" => match Protocol::from_iptables(value) {
                Some(protocol) => Some(protocol == self.protocol),
                None => Some(false),
            },
            "--ctdir" => is_first.then_some(value == "ORIGINAL"),
            "--ctstatus" => self.fits_status(value),
            _ if !is_first => None,
            "--ctorigsrc" => network(value).map(|cidr| cidr.contains(source.ip())),
            "--ctorigdst" => network(value).map(|cidr| cidr.contains(destination.ip())),
            "--ctreplsrc" => network(value).map(|cidr| cidr.contains(self.destination.ip())),
            "--ctrepldst" => network(value).map(|cidr| cidr.contains(self.source.ip())),
            "--ctorigsrcport" => port(source.port()),
            "--ctorigdstport" => port(destination.port()),
            "--ctreplsrcport" => port(self.destination.port()),
            "--ctrepldstport" => port(self.source.port()),
            _ => None,
        }
    }

    fn fits_status(&self, words: &str) -> Answer {
        let has = |word: &str| match word {
            "NONE" => Some(false),
            "SEEN_REPLY" if self.states.contains(CtStates::NEW) => Some(false),
            "SEEN_REPLY" | "CONFIRMED" if self.states.contains(CtStates::ESTABLISHED) => Some(true),
            "ASSURED" | "EXPECTED" if self.states.contains(CtStates::NEW) => Some(false),
            // The entry is confirmed when the packet leaves, which on `lo` is before it arrives.
            "CONFIRMED" if self.states.contains(CtStates::NEW) => Some(self.in_interface == Some("lo")),
            _ => None,
        };
        let answers: Vec<Answer> = words.split(',').map(has).collect();
        if answers.contains(&Some(true)) {
            return Some(true);
        }
        if answers.contains(&None) { None } else { Some(false) }
    }

    fn fits_connmark(&self, clause: &Clause<'_>) -> Answer {
        if self.table == Table::Raw && self.in_interface != Some("lo") {
            return Some(clause.negated);
        }
        let (value, mask) = value_and_mask(clause.value()?)?;
        Some(self.connmark? & mask == value)
    }

    /// Whether the packet came through no bridge. Which port of a bridge it came through, a text does not tell.
    fn is_never_bridged(&self) -> bool {
        self.is_from_node || self.in_interface == Some("lo")
    }

    fn fits_pkttype(&self, clause: &Clause<'_>) -> Answer {
        let is_to_one = !self.destination.ip().is_multicast() && self.in_interface != Some("lo");
        is_to_one.then_some(clause.value()? == "unicast")
    }

    /// The route back to the packet's source. Routes that depend on marks are not known, here as for `-o`.
    fn fits_rpfilter(&self, clauses: &[Clause<'_>]) -> Answer {
        let has = |name: &str| clauses.iter().any(|clause| clause.name == name);
        let ip = self.source.ip();
        let fits = if self.in_interface == Some("lo") {
            true
        } else if self.node.is_local(ip) {
            has("--accept-local")
        } else {
            let route = self.node.route(ip)?;
            has("--loose") || route == self.in_interface?
        };
        Some(fits != has("--invert"))
    }
}

fn has((first, last): (u16, u16), port: u16) -> Answer {
    Some((first..=last).contains(&port))
}

fn network(text: &str) -> Option<Cidr> {
    match net::parse_ip(text) {
        Ok(ip) => Some(Cidr::host(ip)),
        Err(_) => Cidr::parse(text).ok(),
    }
}
