//! The packets that fare differently, summed up by Service and by what changes.

mod shifts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::diff_report::{PacketDiff, PacketExample, ServiceTraffic, TrafficChange, TrafficShift};
use super::fates::TracedFate;
use super::probes::Probe;
use super::tracks::{PacketSender, Tracks};
use crate::inspect::labels::{ChainLabels, service_port_in};
use crate::iptables::trace::Packet;
use crate::net::Protocol;
use crate::rules::names::KUBE_NODEPORTS;

/// Probes that a thread takes at a time.
const CHUNK: usize = 64;

/// The most sources and destinations that a change names.
const MAX_NAMED: usize = 20;

/// The most rules that cannot be decided that a report names.
const MAX_UNDECIDED: usize = 10;

/// The most destinations of one change that are kept; the others are counted.
const MAX_KEPT: usize = 2_000;

/// Compares all packets to `probes`, in `n_threads` threads. `labels` are of both sides.
pub(super) fn compare(
    tracks: &Tracks<'_>,
    labels: &[ChainLabels; 2],
    probes: &[Probe],
    n_threads: usize,
) -> PacketDiff {
    let next = AtomicUsize::new(0);
    let chunks: Vec<&[Probe]> = probes.chunks(CHUNK).collect();
    let work = || {
        let mut tallies = Vec::new();
        while let Some((n, chunk)) = {
            let n = next.fetch_add(1, Ordering::Relaxed);
            chunks.get(n).map(|chunk| (n, chunk))
        } {
            let mut tally = Tally::default();
            for probe in *chunk {
                let is_complete = tracks.follow(*probe, &mut |sender, packet, fates| {
                    tally.count(tracks, labels, sender, packet, fates);
                });
                tally.n_sampled += usize::from(!is_complete);
            }
            tallies.push((n, tally));
        }
        tallies
    };
    let mut tallies = std::thread::scope(|scope| {
        let others: Vec<_> = (1..n_threads).map(|_| scope.spawn(work)).collect();
        let mut tallies = work();
        tallies.extend(others.into_iter().flat_map(|other| other.join().expect("no packet panics")));
        tallies
    });
    // The report does not depend on which thread took what.
    tallies.sort_by_key(|(n, _)| *n);
    let mut sum = Tally::default();
    tallies.into_iter().for_each(|(_, tally)| sum.add(tally));
    sum.report()
}

/// What was found so far.
#[derive(Default)]
struct Tally {
    n_packets: usize,
    n_different: usize,
    n_undecided: usize,
    /// Destinations of which a sample of sources was tried.
    n_sampled: usize,
    undecided_rules: BTreeSet<String>,
    /// By service port (those of none last), then by the change.
    groups: BTreeMap<(bool, Option<String>, String), Gathered>,
}

/// The packets of one change.
struct Gathered {
    shifts: Vec<TrafficShift>,
    /// By destination, its sources and the number of packets.
    senders: BTreeMap<String, (BTreeSet<PacketSender>, usize)>,
    /// Packets to destinations that are not kept.
    n_more: usize,
    example: PacketExample,
}

impl Tally {
    fn count(
        &mut self,
        tracks: &Tracks<'_>,
        labels: &[ChainLabels; 2],
        sender: PacketSender,
        packet: &Packet,
        fates: &[TracedFate; 2],
    ) {
        self.n_packets += 1;
        let [before, after] = fates;
        if before.is_same(after) {
            let undecided = before.undecided();
            self.n_undecided += usize::from(!undecided.is_empty());
            self.undecided_rules.extend(undecided.into_iter().map(str::to_owned));
            return;
        }
        self.n_different += 1;
        let shifts = shifts::between(tracks, before, after);
        let key = format!("{:?}", shifts::without_rules(&shifts));
        let (service_port, kind) = frontend(tracks, labels, fates, packet.destination);
        let to = match kind {
            Some(kind) => format!("{kind} {}", destination_text(packet.destination, packet.protocol)),
            None => destination_text(packet.destination, packet.protocol),
        };
        let found = Gathered {
            shifts,
            senders: [(to, ([sender.clone()].into(), 1))].into(),
            n_more: 0,
            example: PacketExample {
                from: sender.to_string(),
                source: packet.source.ip().to_string(),
                destination: packet.destination.to_string(),
                protocol: packet.protocol.to_string(),
            },
        };
        self.gather((service_port.is_none(), service_port, key), found);
    }

    fn gather(&mut self, key: (bool, Option<String>, String), found: Gathered) {
        match self.groups.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(found)),
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                known.n_more += found.n_more;
                shifts::keep_common_rules(&mut known.shifts, &found.shifts);
                for (to, (from, n_packets)) in found.senders {
                    if known.senders.len() < MAX_KEPT || known.senders.contains_key(&to) {
                        let senders = known.senders.entry(to).or_default();
                        senders.0.extend(from);
                        senders.1 += n_packets;
                    } else {
                        known.n_more += n_packets;
                    }
                }
            }
        }
    }

    fn add(&mut self, other: Tally) {
        self.n_packets += other.n_packets;
        self.n_different += other.n_different;
        self.n_undecided += other.n_undecided;
        self.n_sampled += other.n_sampled;
        self.undecided_rules.extend(other.undecided_rules);
        other.groups.into_iter().for_each(|(key, found)| self.gather(key, found));
    }

    fn report(self) -> PacketDiff {
        let mut services: Vec<ServiceTraffic> = Vec::new();
        for ((_, service_port, _), gathered) in self.groups {
            match services.last_mut() {
                Some(last) if last.service_port == service_port => last.changes.extend(gathered.changes()),
                _ => services.push(ServiceTraffic { service_port, changes: gathered.changes() }),
            }
        }
        for service in &mut services {
            service.changes.sort_by_key(|change| std::cmp::Reverse(change.n_packets));
        }
        PacketDiff {
            n_packets: self.n_packets,
            n_different: self.n_different,
            n_undecided: self.n_undecided,
            n_sampled_destinations: self.n_sampled,
            undecided_rules: self.undecided_rules.into_iter().take(MAX_UNDECIDED).collect(),
            services,
            stand_ins: Vec::new(),
        }
    }
}

impl Gathered {
    /// One change for each set of sources: its destinations are those that all of them reach.
    fn changes(self) -> Vec<TrafficChange> {
        let mut by_sources: BTreeMap<BTreeSet<PacketSender>, (Vec<String>, usize)> = BTreeMap::new();
        for (to, (from, n_packets)) in self.senders {
            let destinations = by_sources.entry(from).or_default();
            destinations.0.push(to);
            destinations.1 += n_packets;
        }
        let change =
            |(from, (to, n_packets)): (BTreeSet<PacketSender>, (Vec<String>, usize))| TrafficChange {
                shifts: self.shifts.clone(),
                n_packets,
                n_more_to: to.len().saturating_sub(MAX_NAMED),
                n_more_from: from.len().saturating_sub(MAX_NAMED),
                to: to.into_iter().take(MAX_NAMED).collect(),
                from: from.into_iter().take(MAX_NAMED).map(|sender| sender.to_string()).collect(),
                example: self.example.clone(),
            };
        let mut changes: Vec<TrafficChange> = by_sources.into_iter().map(change).collect();
        if let Some(last) = changes.last_mut() {
            last.n_packets += self.n_more;
            last.n_more_to += self.n_more;
        }
        changes
    }
}

/// `10.96.0.10:53/UDP`
fn destination_text(to: SocketAddr, protocol: Protocol) -> String {
    format!("{to}/{protocol}")
}

/// The service port that a packet's rules belong to, and the kind of frontend.
fn frontend(
    tracks: &Tracks<'_>,
    labels: &[ChainLabels; 2],
    fates: &[TracedFate; 2],
    to: SocketAddr,
) -> (Option<String>, Option<&'static str>) {
    let (mut port, mut kind) = (None, None);
    for (side, fate) in fates.iter().enumerate() {
        for step in &fate.steps {
            let comment = tracks.sides.rule(side, step).and_then(|rule| rule.comment());
            let of_chain = || labels[side].service_port(&step.chain);
            let found = comment.and_then(service_port_in).or_else(of_chain);
            if port.is_none() {
                port = found.map(str::to_owned);
            }
            let words = comment.and_then(|comment| comment.split_once(' ')).map(|(_, words)| words);
            kind = kind.or(match words {
                Some("cluster IP") => Some("cluster IP"),
                Some("external IP") => Some("external IP"),
                Some("loadbalancer IP") => Some("load balancer IP"),
                _ => None,
            });
            if step.chain == KUBE_NODEPORTS && tracks.is_local(to.ip()) {
                kind = kind.or(Some("node port"));
            }
        }
    }
    (port, kind)
}
