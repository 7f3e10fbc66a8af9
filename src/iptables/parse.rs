//! From text of `iptables-save`, or input of `iptables-restore`, to values, a line at a time.
//!
//! Releases of iptables spell the same rule differently (`10.0.0.1` and `10.0.0.1/32`, `--or-mark`
//! and `--set-xmark`, the place of `-p`); equivalent spellings become the same value. Unknown extensions
//! are kept as words.

use std::net::SocketAddr;

use super::write::{default_reject, hairpin_program};
use super::{
    AddressSide, ChainContent, ChainName, CtStates, Interface, L4Protocol, Match, MaybeNot, Policy,
    PortRange, RecentAction, Rule, Ruleset, Table, Target,
};
use crate::net::{self, Cidr, IpFamily, Protocol};

/// A line that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}: {text:?}", .line.map_or(String::new(), |line| format!("line {line}: ")))]
pub struct ParseError {
    /// The line's number, from 1, if it is one of several.
    pub line: Option<usize>,
    /// The line.
    pub text: String,
    /// The reason.
    pub what: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `*nat`.
    Table(String),
    /// `:NAME POLICY [0:0]`; no policy for a user-defined chain.
    Declaration(ChainName, Option<Policy>),
    /// `-A NAME rule`.
    Append(ChainName, Rule),
    /// `-I NAME rule`, at the head.
    Insert(ChainName, Rule),
    /// `-I NAME NUMBER rule`: the rule gets this number, from 1.
    InsertAt(ChainName, usize, Rule),
    /// `-D NAME rule`: the first equal rule.
    RemoveRule(ChainName, Rule),
    /// `-D NAME NUMBER`, from 1.
    RemoveAt(ChainName, usize),
    /// `-F NAME`; without a name, all chains of the table.
    Flush(Option<ChainName>),
    /// `-N NAME`.
    Create(ChainName),
    /// `-P NAME POLICY`.
    SetPolicy(ChainName, Policy),
    /// `-X NAME`.
    Delete(ChainName),
    /// `COMMIT`.
    Commit,
    /// An empty line or a `#` comment.
    Blank,
}

/// Reads one line, without its newline.
pub fn line(family: IpFamily, text: &str) -> Result<Line, ParseError> {
    read_line(family, text.trim_end_matches(['\r', '\n'])).map_err(|what| ParseError {
        line: None,
        text: text.to_owned(),
        what: what.to_owned(),
    })
}

/// Reads the output of `iptables-save`; unknown tables are skipped.
pub fn save(family: IpFamily, text: &str) -> Result<Ruleset, ParseError> {
    let mut parser = SaveParser::new(family);
    text.lines().try_for_each(|line| parser.line(line))?;
    Ok(parser.finish())
}

/// Reads the output of `iptables-save` a line at a time; see [`save`].
#[derive(Debug)]
pub struct SaveParser {
    family: IpFamily,
    ruleset: Ruleset,
    table: Option<Table>,
    n_lines: usize,
}

impl SaveParser {
    /// Of rules of `family`.
    pub fn new(family: IpFamily) -> SaveParser {
        SaveParser { family, ruleset: Ruleset::default(), table: None, n_lines: 0 }
    }

    /// Reads the next line; an error has its number.
    pub fn line(&mut self, text: &str) -> Result<(), ParseError> {
        self.n_lines += 1;
        self.read(text).map_err(|error| ParseError { line: Some(self.n_lines), ..error })
    }

    fn read(&mut self, text: &str) -> Result<(), ParseError> {
        match (line(self.family, text)?, self.table) {
            (Line::Table(word), _) => {
                self.table = Table::parse_any(&word);
                if let Some(table) = self.table {
                    self.ruleset.tables.entry(table).or_default();
                }
            }
            (Line::Declaration(name, policy), Some(table)) => {
                *self.ruleset.chain_mut(table, name) = ChainContent { policy, rules: Vec::new() };
            }
            (Line::Append(name, rule), Some(table)) => self.ruleset.chain_mut(table, name).rules.push(rule),
            (Line::Blank | Line::Commit, _) | (_, None) => {}
            (_, Some(_)) => {
                let what = "not a line of iptables-save".to_owned();
                return Err(ParseError { line: None, text: text.to_owned(), what });
            }
        }
        Ok(())
    }

    /// The rules of all lines.
    pub fn finish(self) -> Ruleset {
        self.ruleset
    }
}

type Reason = &'static str;

fn read_line(family: IpFamily, text: &str) -> Result<Line, Reason> {
    let mut text = text.trim_start();
    while let Some(counters) = text.strip_prefix('[') {
        text = counters.split_once(']').ok_or("counters without an end")?.1.trim_start();
    }
    match text.as_bytes().first() {
        None | Some(b'#') => Ok(Line::Blank),
        Some(b'*') => Ok(Line::Table(text[1..].trim().to_owned())),
        Some(b':') => declaration(&text[1..]),
        Some(b'C') if text.trim_end() == "COMMIT" => Ok(Line::Commit),
        Some(b'-') => command(family, text),
        Some(_) => Err("not a line of iptables"),
    }
}

fn declaration(text: &str) -> Result<Line, Reason> {
    let mut words = text.split_ascii_whitespace();
    let name = words.next().and_then(ChainName::new).ok_or("not the name of a chain")?;
    match words.next() {
        Some("-") => Ok(Line::Declaration(name, None)),
        Some("ACCEPT") => Ok(Line::Declaration(name, Some(Policy::Accept))),
        Some("DROP") => Ok(Line::Declaration(name, Some(Policy::Drop))),
        _ => Err("not a policy"),
    }
}

fn command(family: IpFamily, text: &str) -> Result<Line, Reason> {
    let words = split_words(text)?;
    let mut words = Words { words: &words, at: 0 };
    let command = words.next().unwrap_or_default();
    if matches!(command, "-F" | "--flush") && words.peek().is_none() {
        return Ok(Line::Flush(None));
    }
    let chain = words.next().and_then(ChainName::new).ok_or("not the name of a chain")?;
    match (command, words.peek()) {
        ("-A" | "--append", _) => Ok(Line::Append(chain, rule(family, words)?)),
        ("-I" | "--insert", _) => match words.rule_number()? {
            Some(number) => Ok(Line::InsertAt(chain, number, rule(family, words)?)),
            None => Ok(Line::Insert(chain, rule(family, words)?)),
        },
        ("-D" | "--delete", _) => match words.rule_number()? {
            None => Ok(Line::RemoveRule(chain, rule(family, words)?)),
            Some(number) if words.peek().is_none() => Ok(Line::RemoveAt(chain, number)),
            Some(_) => Err("a rule behind its number"),
        },
        ("-P" | "--policy", Some("ACCEPT")) => Ok(Line::SetPolicy(chain, Policy::Accept)),
        ("-P" | "--policy", Some("DROP")) => Ok(Line::SetPolicy(chain, Policy::Drop)),
        ("-P" | "--policy", _) => Err("not a policy"),
        ("-F" | "--flush", None) => Ok(Line::Flush(Some(chain))),
        ("-N" | "--new-chain", None) => Ok(Line::Create(chain)),
        ("-X" | "--delete-chain", None) => Ok(Line::Delete(chain)),
        _ => Err("not a supported command of a save or restore file"),
    }
}

/// Splits as iptables-restore does: at white space outside of double quotes; in quotes, a backslash
/// escapes the next character.
fn split_words(text: &str) -> Result<Vec<String>, Reason> {
    let mut words = Vec::with_capacity(24);
    let mut word = String::new();
    let (mut is_quoted, mut started) = (false, false);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (is_quoted, c) {
            (true, '\\') => word.push(characters.next().ok_or("text ends in a backslash")?),
            (true, '"') => is_quoted = false,
            (false, '"') => (is_quoted, started) = (true, true),
            (false, ' ' | '\t') => {
                if started {
                    words.push(std::mem::take(&mut word));
                }
                started = false;
            }
            (_, c) => {
                word.push(c);
                started = true;
            }
        }
    }
    if is_quoted {
        return Err("a quote is not closed");
    }
    if started {
        words.push(word);
    }
    Ok(words)
}

struct Words<'a> {
    words: &'a [String],
    at: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.at)?;
        self.at += 1;
        Some(word)
    }

    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn value(&mut self) -> Result<&'a str, Reason> {
        self.next().ok_or("an option lacks its value")
    }

    /// The number of a rule, from 1, if one comes next.
    fn rule_number(&mut self) -> Result<Option<usize>, Reason> {
        let Some(word) = self.peek().filter(|word| word.bytes().all(|byte| byte.is_ascii_digit())) else {
            return Ok(None);
        };
        self.at += 1;
        word.parse().ok().filter(|number| *number > 0).map(Some).ok_or("not the number of a rule")
    }

    /// The words up to the next `-m`, `-j`, `-g` or basic match: the options of one extension.
    /// A comment without text is an error: written again, it would take the next word for its text.
    fn options(&mut self) -> Result<&'a [String], Reason> {
        let start = self.at;
        while let Some(word) = self.peek() {
            let negates = word == "!" && self.words.get(self.at + 1).is_some_and(|next| is_basic(next));
            if is_basic(word) || negates {
                break;
            }
            // The value of --comment may look like an option.
            self.at += if word == "--comment" { 2 } else { 1 };
        }
        self.words.get(start..self.at).ok_or("an option lacks its value")
    }
}

fn is_basic(word: &str) -> bool {
    matches!(
        word,
        "-m" | "-j"
            | "-g"
            | "-s"
            | "-d"
            | "-i"
            | "-o"
            | "-p"
            | "-f"
            | "--match"
            | "--jump"
            | "--goto"
            | "--source"
            | "--destination"
            | "--src"
            | "--dst"
            | "--in-interface"
            | "--out-interface"
            | "--protocol"
            | "--fragment"
    )
}

fn rule(family: IpFamily, mut words: Words<'_>) -> Result<Rule, Reason> {
    let mut rule = Rule::default();
    let mut negated = false;
    while let Some(word) = words.next() {
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-s" | "--source" | "--src" => rule.source = address(family, words.value()?, negated)?,
            "-d" | "--destination" | "--dst" => rule.destination = address(family, words.value()?, negated)?,
            "-i" | "--in-interface" => rule.in_interface = interface(words.value()?, negated)?,
            "-o" | "--out-interface" => rule.out_interface = interface(words.value()?, negated)?,
            "-p" | "--protocol" => rule.protocol = protocol(words.value()?, negated),
            "-m" | "--match" => {
                let module = words.value()?;
                rule.matches.push(extension(family, module, words.options()?));
            }
            "-j" | "--jump" => rule.target = Some(target(family, words.value()?, words.options()?)),
            "-g" | "--goto" => {
                rule.target =
                    Some(Target::Goto(ChainName::new(words.value()?).ok_or("not the name of a chain")?));
            }
            // An unknown basic option (`! -f`) is kept, so that nothing is lost.
            _ => {
                let mut kept: Vec<Box<str>> =
                    if negated { vec!["!".into(), word.into()] } else { vec![word.into()] };
                kept.extend(words.options()?.iter().map(|word| word.as_str().into()));
                rule.matches.push(Match::Other { module: "".into(), words: kept.into() });
            }
        }
        negated = false;
    }
    implied_ports(&mut rule);
    Ok(rule)
}

/// A `--dport` apart from its `-m tcp`, or without one, belongs to the protocol's module:
/// `-p tcp --dport 80` and `-m tcp -p tcp -d 10.0.0.1 --dport 80` mean `-p tcp -m tcp --dport 80`.
fn implied_ports(rule: &mut Rule) {
    let Some(MaybeNot { negated: false, value: L4Protocol::Service(protocol) }) = rule.protocol else {
        return;
    };
    let apart = |m: &Match| match m {
        Match::Other { module, words } if module.is_empty() => {
            l4(protocol, &words.iter().map(|word| &**word).collect::<Vec<_>>())
        }
        _ => None,
    };
    let Some((at, ports)) = rule.matches.iter().enumerate().find_map(|(at, m)| Some((at, apart(m)?))) else {
        return;
    };
    let module = Match::L4 { protocol, destination_ports: None };
    match rule.matches[..at].iter().position(|m| *m == module) {
        Some(earlier) => {
            rule.matches[earlier] = ports;
            rule.matches.remove(at);
        }
        None => rule.matches[at] = ports,
    }
}

fn address(family: IpFamily, text: &str, negated: bool) -> Result<Option<MaybeNot<Cidr>>, Reason> {
    let cidr = match text.split_once('/') {
        None => net::parse_ip(text).ok().map(Cidr::host),
        Some((ip, mask)) => Cidr::parse(text).ok().or_else(|| with_mask(ip, mask)),
    };
    let cidr = cidr.filter(|cidr| cidr.family() == family).ok_or("not an address of the family")?;
    Ok((!cidr.is_everything() || negated).then_some(MaybeNot { negated, value: cidr }))
}

/// `10.0.0.0/255.0.0.0`; `None` for a mask that is no prefix.
fn with_mask(ip: &str, mask: &str) -> Option<Cidr> {
    let length = match net::parse_ip(mask).ok()? {
        std::net::IpAddr::V4(mask) if mask.to_bits().leading_ones() == mask.to_bits().count_ones() => {
            mask.to_bits().leading_ones()
        }
        std::net::IpAddr::V6(mask) if mask.to_bits().leading_ones() == mask.to_bits().count_ones() => {
            mask.to_bits().leading_ones()
        }
        _ => return None,
    };
    Some(Cidr::new(net::parse_ip(ip).ok()?, length as u8))
}

fn interface(text: &str, negated: bool) -> Result<Option<MaybeNot<Interface>>, Reason> {
    let value = Interface::new(text).ok_or("not the name of an interface")?;
    Ok(Some(MaybeNot { negated, value }))
}

fn protocol(text: &str, negated: bool) -> Option<MaybeNot<L4Protocol>> {
    let value = match Protocol::from_iptables(text) {
        Some(protocol) => L4Protocol::Service(protocol),
        None if matches!(text, "all" | "0") => return None,
        None => L4Protocol::Other(text.into()),
    };
    Some(MaybeNot { negated, value })
}

fn extension(family: IpFamily, module: &str, options: &[String]) -> Match {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    known_extension(family, module, &options).unwrap_or_else(|| Match::Other {
        module: module.into(),
        words: options.iter().map(|word| (*word).into()).collect(),
    })
}

/// The extension as a value; `None` if it has options that Chainsmith does not write.
fn known_extension(family: IpFamily, module: &str, options: &[&str]) -> Option<Match> {
    match (module, options) {
        ("comment", ["--comment", text]) => Some(Match::Comment((*text).into())),
        ("tcp" | "udp" | "sctp", options) => l4(Protocol::from_iptables(module)?, options),
        ("mark", ["--mark", mark]) => mark_match(mark, false),
        ("mark", ["!", "--mark", mark]) => mark_match(mark, true),
        ("conntrack", ["--ctstate", states]) => Some(Match::CtState(MaybeNot::is(CtStates::parse(states)?))),
        ("conntrack", ["!", "--ctstate", states]) => {
            Some(Match::CtState(MaybeNot::not(CtStates::parse(states)?)))
        }
        ("bpf", ["--bytecode", program]) if *program == hairpin_program(family) => Some(Match::Hairpin),
        ("addrtype", ["--src-type", "LOCAL"]) => Some(Match::IsLocal(AddressSide::Source)),
        ("addrtype", ["--dst-type", "LOCAL"]) => Some(Match::IsLocal(AddressSide::Destination)),
        ("statistic", ["--mode", "random", "--probability", text]) => {
            Some(Match::Random { threshold: threshold(text)? })
        }
        ("recent", options) => recent(options),
        ("nfacct", ["--nfacct-name", name]) => Some(Match::Nfacct((*name).into())),
        _ => None,
    }
}

/// A probability as the kernel keeps it: in units of 2^-31.
pub(super) fn threshold(text: &str) -> Option<u32> {
    let probability: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&probability).then(|| (probability * f64::from(1u32 << 31)).round() as u32)
}

fn l4(protocol: Protocol, options: &[&str]) -> Option<Match> {
    let destination_ports = match options {
        [] => None,
        ["--dport" | "--destination-port", ports] => {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(PortRange { first, last })?.into()
        }
        _ => return None,
    };
    Some(Match::L4 { protocol, destination_ports })
}

pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `VALUE` or `VALUE/MASK`; all bits without a mask.
pub(super) fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn mark_match(text: &str, negated: bool) -> Option<Match> {
    let (value, mask) = value_and_mask(text)?;
    Some(Match::Mark { negated, value, mask })
}

fn recent(options: &[&str]) -> Option<Match> {
    let (mut set, mut check, mut reap) = (false, false, false);
    let (mut seconds, mut list) = (None, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--set" => set = true,
            "--rcheck" => check = true,
            "--reap" => reap = true,
            "--rsource" => {}
            "--seconds" => seconds = Some(options.next()?.parse().ok()?),
            "--name" => list = Some(ChainName::new(options.next()?)?),
            "--mask" => {
                let whole = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
                whole.contains(options.next()?).then_some(())?;
            }
            _ => return None,
        }
    }
    let action = match (set, check, reap, seconds) {
        (true, false, false, None) => RecentAction::Set,
        (false, true, true, Some(seconds)) => RecentAction::Check { seconds },
        _ => return None,
    };
    Some(Match::Recent { action, list: list? })
}

/// Target extensions of the kernel; a name in this list is not a chain.
const EXTENSIONS: [&str; 39] = [
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CLUSTERIP",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DNPT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NFQUEUE",
    "NOTRACK",
    "QUEUE",
    "RATEEST",
    "REDIRECT",
    "REJECT",
    "SECMARK",
    "SET",
    "SNAT",
    "SNPT",
    "SYNPROXY",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TPROXY",
    "TRACE",
    "TTL",
    "ULOG",
];

fn target(family: IpFamily, name: &str, options: &[String]) -> Target {
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    known_target(family, name, &options).unwrap_or_else(|| Target::Other {
        name: name.into(),
        words: options.iter().map(|word| (*word).into()).collect(),
    })
}

fn known_target(family: IpFamily, name: &str, options: &[&str]) -> Option<Target> {
    match (name, options) {
        ("ACCEPT", []) => Some(Target::Accept),
        ("DROP", []) => Some(Target::Drop),
        ("RETURN", []) => Some(Target::Return),
        ("REJECT", []) => Some(Target::Reject),
        ("REJECT", ["--reject-with", with]) if *with == default_reject(family) => Some(Target::Reject),
        ("DNAT", ["--to-destination", to]) => to.parse::<SocketAddr>().ok().map(Target::Dnat),
        ("MASQUERADE", []) => Some(Target::Masquerade { random_fully: false }),
        ("MASQUERADE", ["--random-fully"]) => Some(Target::Masquerade { random_fully: true }),
        ("MARK", [option, value]) => set_mark(option, value),
        (name, []) if !EXTENSIONS.contains(&name) => ChainName::new(name).map(Target::Jump),
        _ => None,
    }
}

/// Every spelling of MARK, as the one that iptables-save prints.
fn set_mark(option: &str, text: &str) -> Option<Target> {
    let (value, mask) = match option {
        "--set-xmark" => value_and_mask(text)?,
        "--set-mark" => value_and_mask(text).map(|(value, mask)| (value, value | mask))?,
        "--or-mark" => number(text).map(|value| (value, value))?,
        "--xor-mark" => (number(text)?, 0),
        "--and-mark" => (0, !number(text)?),
        _ => return None,
    };
    Some(Target::SetXmark { value, mask })
}

#[cfg(test)]
mod tests;
