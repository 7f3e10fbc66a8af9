//! From values to text: the lines that `iptables-save` prints and `iptables-restore` reads.
//!
//! The text follows iptables 1.8: `/32` behind host addresses, marks without leading zeros,
//! defaults of `recent` and REJECT spelled out, comments quoted if they have other characters than
//! letters, digits, `_` and `-`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;

use super::{
    AddressSide, ChainContent, ChainName, L4Protocol, Match, MaybeNot, Policy, RecentAction, Rule, Ruleset,
    Table, Target,
};
use crate::net::{self, Cidr, IpFamily};

/// Appends `*<table>`.
pub fn table(out: &mut String, table: Table) {
    line(out, format_args!("*{table}"));
}

/// Appends `COMMIT`.
pub fn commit(out: &mut String) {
    out.push_str("COMMIT\n");
}

/// Appends the declaration of a user-defined chain, which in a restore adds or flushes it.
pub fn declaration(out: &mut String, chain: &ChainName) {
    for part in [":", chain.as_str(), " - [0:0]\n"] {
        out.push_str(part);
    }
}

/// Appends `-F <chain>`.
pub fn flush_chain(out: &mut String, chain: &ChainName) {
    for part in ["-F ", chain.as_str(), "\n"] {
        out.push_str(part);
    }
}

/// Appends `-X <chain>`.
pub fn delete_chain(out: &mut String, chain: &ChainName) {
    for part in ["-X ", chain.as_str(), "\n"] {
        out.push_str(part);
    }
}

/// Appends `-A <chain> <rule>`.
pub fn append(out: &mut String, family: IpFamily, chain: &ChainName, rule: &Rule) {
    command(out, "-A", family, chain, rule);
}

/// Appends `-I <chain> <rule>`, which inserts the rule at the chain's head.
pub fn insert(out: &mut String, family: IpFamily, chain: &ChainName, rule: &Rule) {
    command(out, "-I", family, chain, rule);
}

fn command(out: &mut String, word: &str, family: IpFamily, chain: &ChainName, rule: &Rule) {
    for part in [word, " ", chain.as_str()] {
        out.push_str(part);
    }
    body(out, family, rule);
    out.push('\n');
}

/// The text of a rule without its chain, as in `-s 10.0.0.1/32 -j KUBE-MARK-MASQ`.
pub fn rule_text(family: IpFamily, rule: &Rule) -> String {
    let mut out = String::new();
    body(&mut out, family, rule);
    out.trim_start().to_owned()
}

/// The output of `iptables-save` for `ruleset`: tables, built-in chains, then user-defined ones by name,
/// counters `[0:0]`, no comment lines.
pub fn save(family: IpFamily, ruleset: &Ruleset) -> String {
    let mut out = String::new();
    let Ok(()) = save_in_pieces(family, ruleset, &mut out, &mut |_| Ok::<(), Infallible>(()));
    out
}

/// As [`save`], in pieces: `each` is called after every chain with what `out` holds, and may empty it. An error of
/// `each` ends the output.
pub fn save_in_pieces<E>(
    family: IpFamily,
    ruleset: &Ruleset,
    out: &mut String,
    each: &mut dyn FnMut(&mut String) -> Result<(), E>,
) -> Result<(), E> {
    for (table, chains) in &ruleset.tables {
        self::table(out, *table);
        let in_order = in_order(*table, chains);
        for (name, chain) in &in_order {
            match chain.policy {
                None => declaration(out, name),
                Some(Policy::Accept) => line(out, format_args!(":{name} ACCEPT [0:0]")),
                Some(Policy::Drop) => line(out, format_args!(":{name} DROP [0:0]")),
            }
            each(out)?;
        }
        for (name, chain) in &in_order {
            chain.rules.iter().for_each(|rule| append(out, family, name, rule));
            each(out)?;
        }
        commit(out);
    }
    each(out)
}

/// An input for `iptables-restore --noflush` that writes the user-defined chains of `ruleset` and inserts
/// the rules of its built-in chains at their heads; policies stay.
pub fn restore(family: IpFamily, ruleset: &Ruleset) -> String {
    let mut out = String::new();
    for (table, chains) in &ruleset.tables {
        self::table(&mut out, *table);
        let (built_in, own): (Vec<_>, Vec<_>) =
            in_order(*table, chains).into_iter().partition(|(_, chain)| chain.policy.is_some());
        own.iter().for_each(|(name, _)| declaration(&mut out, name));
        for (name, chain) in own {
            chain.rules.iter().for_each(|rule| append(&mut out, family, name, rule));
        }
        for (name, chain) in built_in {
            // Each is inserted at the head, so the last comes first.
            chain.rules.iter().rev().for_each(|rule| insert(&mut out, family, name, rule));
        }
        commit(&mut out);
    }
    out
}

/// The built-in chains of `table` in the kernel's order, then user-defined ones by name.
fn in_order(table: Table, chains: &BTreeMap<ChainName, ChainContent>) -> Vec<(&ChainName, &ChainContent)> {
    let built_in: Vec<ChainName> = table.built_in().iter().map(|name| ChainName::literal(name)).collect();
    let known = built_in.iter().filter_map(|name| chains.get_key_value(name));
    known.chain(chains.iter().filter(|(name, _)| !built_in.contains(name))).collect()
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    push(out, text);
    out.push('\n');
}

/// Writing to a `String` cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes any text");
}

fn body(out: &mut String, family: IpFamily, rule: &Rule) {
    option(out, "-s", rule.source.as_ref(), |out, cidr| network(out, *cidr));
    option(out, "-d", rule.destination.as_ref(), |out, cidr| network(out, *cidr));
    option(out, "-i", rule.in_interface.as_ref(), |out, name| out.push_str(name.as_str()));
    option(out, "-o", rule.out_interface.as_ref(), |out, name| out.push_str(name.as_str()));
    option(out, "-p", rule.protocol.as_ref(), |out, protocol| match protocol {
        L4Protocol::Service(protocol) => out.push_str(protocol.lower()),
        L4Protocol::Other(name) => word(out, name),
    });
    rule.matches.iter().for_each(|m| write_match(out, family, m));
    if let Some(target) = &rule.target {
        write_target(out, family, target);
    }
}

fn network(out: &mut String, cidr: Cidr) {
    net::push_ip(out, cidr.address());
    out.push('/');
    net::push_number(out, cidr.length().into());
}

/// `threshold` in 2^31, with eleven decimals as iptables prints them: rounded half to even.
fn probability(out: &mut String, threshold: u32) {
    const ONE: u64 = 100_000_000_000;
    let scaled = u128::from(threshold) * u128::from(ONE);
    let (whole, rest) = ((scaled >> 31) as u64, scaled & ((1 << 31) - 1));
    let rounds_up = rest > 1 << 30 || (rest == 1 << 30 && whole % 2 == 1);
    let rounded = whole + u64::from(rounds_up);
    out.push_str(if rounded < ONE { "0." } else { "1." });
    let mut number = itoa::Buffer::new();
    let decimals = number.format(rounded % ONE);
    (decimals.len()..11).for_each(|_| out.push('0'));
    out.push_str(decimals);
}

fn option<T>(out: &mut String, word: &str, value: Option<&MaybeNot<T>>, write: impl FnOnce(&mut String, &T)) {
    if let Some(MaybeNot { negated, value }) = value {
        out.push_str(if *negated { " ! " } else { " " });
        out.push_str(word);
        out.push(' ');
        write(out, value);
    }
}

fn write_match(out: &mut String, family: IpFamily, m: &Match) {
    match m {
        Match::Comment(text) => {
            out.push_str(" -m comment --comment ");
            quoted(out, text);
        }
        Match::L4 { protocol, destination_ports } => {
            out.push_str(" -m ");
            out.push_str(protocol.lower());
            if let Some(range) = destination_ports {
                out.push_str(" --dport ");
                net::push_number(out, range.first.into());
                if range.last != range.first {
                    out.push(':');
                    net::push_number(out, range.last.into());
                }
            }
        }
        Match::Mark { negated, value, mask } => {
            let not = if *negated { "! " } else { "" };
            push(out, format_args!(" -m mark {not}--mark {value:#x}"));
            if *mask != u32::MAX {
                push(out, format_args!("/{mask:#x}"));
            }
        }
        Match::CtState(MaybeNot { negated, value }) => {
            let not = if *negated { "! " } else { "" };
            push(out, format_args!(" -m conntrack {not}--ctstate {value}"));
        }
        Match::IsLocal(AddressSide::Source) => out.push_str(" -m addrtype --src-type LOCAL"),
        Match::IsLocal(AddressSide::Destination) => out.push_str(" -m addrtype --dst-type LOCAL"),
        Match::Random { threshold } => {
            out.push_str(" -m statistic --mode random --probability ");
            probability(out, *threshold);
        }
        Match::Recent { action, list } => {
            match action {
                RecentAction::Set => out.push_str(" -m recent --set"),
                RecentAction::Check { seconds } => {
                    push(out, format_args!(" -m recent --rcheck --seconds {seconds} --reap"));
                }
            }
            let mask = match family {
                IpFamily::V4 => "255.255.255.255",
                IpFamily::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            };
            for part in [" --name ", list.as_str(), " --mask ", mask, " --rsource"] {
                out.push_str(part);
            }
        }
        // Two spaces, as iptables-save prints them.
        Match::Nfacct(name) => {
            out.push_str(" -m nfacct --nfacct-name  ");
            word(out, name);
        }
        Match::Hairpin => {
            out.push_str(" -m bpf --bytecode ");
            always_quoted(out, hairpin_program(family));
        }
        // An unknown basic option, as `-f`, belongs to no module.
        Match::Other { module, words: rest } => {
            if !module.is_empty() {
                out.push_str(" -m ");
                word(out, module);
            }
            words(out, rest);
        }
    }
}

fn write_target(out: &mut String, family: IpFamily, target: &Target) {
    match target {
        Target::Jump(chain) => {
            out.push_str(" -j ");
            out.push_str(chain.as_str());
        }
        Target::Goto(chain) => {
            out.push_str(" -g ");
            out.push_str(chain.as_str());
        }
        Target::Accept => out.push_str(" -j ACCEPT"),
        Target::Drop => out.push_str(" -j DROP"),
        Target::Return => out.push_str(" -j RETURN"),
        Target::Reject => {
            out.push_str(" -j REJECT --reject-with ");
            out.push_str(default_reject(family));
        }
        Target::Dnat(to) => {
            out.push_str(" -j DNAT --to-destination ");
            net::push_socket(out, *to);
        }
        Target::Masquerade { random_fully } => {
            out.push_str(" -j MASQUERADE");
            out.push_str(if *random_fully { " --random-fully" } else { "" });
        }
        Target::SetXmark { value, mask } => {
            push(out, format_args!(" -j MARK --set-xmark {value:#x}/{mask:#x}"));
        }
        Target::Other { name, words: rest } => {
            out.push_str(" -j ");
            word(out, name);
            words(out, rest);
        }
    }
}

/// The default of REJECT's `--reject-with`.
pub(super) fn default_reject(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "icmp-port-unreachable",
        IpFamily::V6 => "icmp6-port-unreachable",
    }
}

/// The program of [`Match::Hairpin`]: loads source and destination from the IP header, word by word,
/// and returns 65535 (a match) if all are equal, else 0.
pub(super) fn hairpin_program(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "8,32 0 0 12,2 0 0 0,32 0 0 16,97 0 0 0,28 0 0 0,21 0 1 0,6 0 0 65535,6 0 0 0",
        IpFamily::V6 => {
            "18,32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
             32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,\
             6 0 0 65535,6 0 0 0"
        }
    }
}

fn words(out: &mut String, words: &[Box<str>]) {
    for text in words {
        out.push(' ');
        word(out, text);
    }
}

/// Appends any text of a foreign rule so that it stays one word.
fn word(out: &mut String, text: &str) {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\".contains(&b));
    if is_plain { out.push_str(text) } else { always_quoted(out, text) }
}

fn quoted(out: &mut String, text: &str) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !text.is_empty() && text.bytes().all(is_plain) { out.push_str(text) } else { always_quoted(out, text) }
}

fn always_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the C library prints the double that iptables computes.
    #[test]
    fn probabilities_are_rounded_as_printf_rounds() {
        let check = |threshold: u32| {
            let mut text = String::new();
            probability(&mut text, threshold);
            assert_eq!(text, format!("{:.11}", f64::from(threshold) / f64::from(1u32 << 31)), "{threshold}");
        };
        [0, 1, 2, 3, 1 << 19, 3 << 19, 1 << 20, (1 << 31) - 1, 1 << 31].into_iter().for_each(check);
        (0..200_000u32).map(|n| n.wrapping_mul(0x9E37_79B9) >> 1).for_each(check);
        (1..5_000).map(|n| (1u32 << 31) / n).for_each(check);
    }
}
