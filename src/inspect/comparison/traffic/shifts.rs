//! What changes from one fate to another: endpoints and their shares, verdicts, masquerading, affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::inspect::comparison::diff_report::{ShareShift, TrafficShift, VerdictShare};
use crate::inspect::comparison::fates::{FateEnd, FateVerdict, TOLERANCE, TracedFate, Visible};
use crate::inspect::comparison::tracks::Tracks;
use crate::iptables::write;

/// What changes from `before` to `after`, which are not the same; never empty.
pub(super) fn between(tracks: &Tracks<'_>, before: &TracedFate, after: &TracedFate) -> Vec<TrafficShift> {
    let mut shifts = Vec::new();
    let fates = [before, after];
    let verdicts = [0, 1].map(|side| verdicts(tracks, side, fates[side]));
    let is_other_verdict = VERDICTS.iter().any(|verdict| {
        let [before, after] = verdicts.each_ref().map(|shares| share_of(shares, verdict));
        differ(before, after)
    });
    let endpoints = fates.map(endpoints);
    if is_other_verdict {
        let [before, after] = verdicts;
        shifts.push(TrafficShift::Verdict { before, after });
    }
    let are_both_answered = endpoints.iter().all(|shares| !shares.is_empty());
    if are_both_answered {
        let found = endpoint_shifts(&endpoints);
        if !found.is_empty() {
            shifts.push(TrafficShift::Endpoints { endpoints: found });
        }
    }
    let is_masqueraded = |seen: &Visible| seen.is_masqueraded;
    let is_remembered = |seen: &Visible| seen.is_remembered;
    // Where one side answers and the other does not, that says it all.
    if endpoints[0].is_empty() == endpoints[1].is_empty() {
        let masquerade = conditional(fates, is_masqueraded);
        shifts.extend(masquerade.map(|(before, after)| TrafficShift::Masquerade { before, after }));
        let affinity = conditional(fates, is_remembered);
        shifts.extend(affinity.map(|(before, after)| TrafficShift::Affinity { before, after }));
    }
    let [old, new] = fates.map(|fate| fate.undecided().into_iter().map(str::to_owned).collect::<Vec<_>>());
    if old != new {
        shifts.push(TrafficShift::Undecided { before: old, after: new });
    }
    if shifts.is_empty() {
        let [before, after] = fates.map(packets);
        shifts.push(TrafficShift::Packet { before, after });
    }
    shifts
}

/// Verdicts as reports spell them.
const VERDICTS: [&str; 5] = ["answered", "passed", "rejected", "dropped", "undecided"];

fn differ(a: f64, b: f64) -> bool {
    (a - b).abs() >= TOLERANCE
}

/// Nine decimals, so that equal shares that are summed up in another order are one number.
fn rounded(share: f64) -> f64 {
    (share * 1e9).round() / 1e9
}

fn verdict_of(end: &FateEnd) -> &'static str {
    match end.seen.verdict {
        FateVerdict::Accepted(_) if end.seen.dnat.is_some() => "answered",
        FateVerdict::Accepted(_) => "passed",
        FateVerdict::Rejected => "rejected",
        FateVerdict::Dropped => "dropped",
        FateVerdict::Undecided => "undecided",
    }
}

fn share_of(shares: &[VerdictShare], verdict: &str) -> f64 {
    shares.iter().filter(|share| share.verdict == verdict).map(|share| share.share).sum()
}

/// Each verdict with its share, and the rule that decides it if that is one.
fn verdicts(tracks: &Tracks<'_>, side: usize, fate: &TracedFate) -> Vec<VerdictShare> {
    let mut shares = Vec::new();
    for verdict in VERDICTS {
        let ends: Vec<&FateEnd> = fate.ends.iter().filter(|end| verdict_of(end) == verdict).collect();
        if ends.is_empty() {
            continue;
        }
        let steps: BTreeSet<_> = ends.iter().filter_map(|end| end.decided_by).collect();
        let is_telling = !["answered", "passed"].contains(&verdict) && steps.len() == 1;
        let rule = steps.first().filter(|_| is_telling).map(|step| match tracks.sides.rule(side, step) {
            Some(rule) => format!("{step}: {}", write::rule_text(tracks.family, rule)),
            None => step.to_string(),
        });
        let share = rounded(ends.iter().map(|end| end.share).sum());
        shares.push(VerdictShare { verdict: verdict.to_owned(), share, rule });
    }
    shares
}

/// The share of each new destination.
fn endpoints(fate: &TracedFate) -> BTreeMap<SocketAddr, f64> {
    let mut shares = BTreeMap::new();
    for end in &fate.ends {
        if let Some(to) = end.seen.dnat {
            *shares.entry(to).or_default() += end.share;
        }
    }
    shares
}

fn endpoint_shifts(shares: &[BTreeMap<SocketAddr, f64>; 2]) -> Vec<ShareShift> {
    let all: BTreeSet<&SocketAddr> = shares.iter().flat_map(BTreeMap::keys).collect();
    let share = |side: usize, to: &SocketAddr| shares[side].get(to).copied().unwrap_or(0.0);
    let changed = all.into_iter().filter(|to| differ(share(0, to), share(1, to)));
    changed
        .map(|to| ShareShift {
            endpoint: to.to_string(),
            before: rounded(share(0, to)),
            after: rounded(share(1, to)),
        })
        .collect()
}

/// The shares of packets that have `property`, before and after, if they differ. If packets reach some destinations
/// on both sides, only these count: a packet to another endpoint says nothing of the change.
fn conditional(fates: [&TracedFate; 2], property: impl Fn(&Visible) -> bool) -> Option<(f64, f64)> {
    let [old, new] = fates.map(|fate| {
        let mut shares: BTreeMap<Option<SocketAddr>, (f64, f64)> = BTreeMap::new();
        for end in fate.ends.iter().filter(|end| end.seen.packet.is_some()) {
            let share = shares.entry(end.seen.dnat).or_default();
            share.0 += end.share;
            share.1 += if property(&end.seen) { end.share } else { 0.0 };
        }
        shares
    });
    if old.is_empty() || new.is_empty() {
        return None;
    }
    let are_common = old.keys().any(|to| new.contains_key(to));
    let part = |(all, with): (f64, f64)| with / all;
    let total = |shares: &BTreeMap<_, (f64, f64)>, other: &BTreeMap<_, (f64, f64)>| {
        let counted = shares.iter().filter(|(to, _)| !are_common || other.contains_key(*to));
        part(counted.fold((0.0, 0.0), |sum, (_, share)| (sum.0 + share.0, sum.1 + share.1)))
    };
    let is_shifted = |to: &Option<SocketAddr>| differ(part(old[to]), part(new[to]));
    let (before, after) = (total(&old, &new), total(&new, &old));
    let differs = match are_common {
        true => old.keys().filter(|to| new.contains_key(to)).any(is_shifted),
        false => differ(before, after),
    };
    differs.then_some((rounded(before), rounded(after)))
}

/// Source, destination and mark of packets that pass.
fn packets(fate: &TracedFate) -> Vec<String> {
    let text = |(source, destination, mark): (Option<SocketAddr>, SocketAddr, u32)| {
        let source = source.map_or_else(|| "masqueraded".to_owned(), |source| source.ip().to_string());
        format!("{source} to {destination}, mark {mark:#x}")
    };
    let texts: BTreeSet<String> = fate.ends.iter().filter_map(|end| end.seen.packet).map(text).collect();
    texts.into_iter().collect()
}

/// The shifts without the rules that decide: packets of one change may meet different rules.
pub(super) fn without_rules(shifts: &[TrafficShift]) -> Vec<TrafficShift> {
    let mut shifts = shifts.to_vec();
    for share in shifts.iter_mut().flat_map(verdict_shares) {
        share.rule = None;
    }
    shifts
}

/// Removes the rules of `shifts` that are not those of `others`, which are the same but for the rules.
pub(super) fn keep_common_rules(shifts: &mut [TrafficShift], others: &[TrafficShift]) {
    let mut others = others.to_vec();
    let others = others.iter_mut().flat_map(verdict_shares);
    for (share, other) in shifts.iter_mut().flat_map(verdict_shares).zip(others) {
        if share.rule != other.rule {
            share.rule = None;
        }
    }
}

fn verdict_shares(shift: &mut TrafficShift) -> Vec<&mut VerdictShare> {
    match shift {
        TrafficShift::Verdict { before, after } => before.iter_mut().chain(after).collect(),
        _ => Vec::new(),
    }
}
