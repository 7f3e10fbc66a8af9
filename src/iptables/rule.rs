//! One rule as a value: what it matches and where it sends the packet.
//!
//! Matches and targets that Chainsmith writes are variants of their own; all others are kept as words, so
//! that reading a foreign rule never fails.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::ChainName;
use crate::net::{Cidr, Protocol};

/// A value that a packet must have, or must not have (`!`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MaybeNot<T> {
    /// Whether `!` stands before it.
    pub negated: bool,
    /// The value.
    pub value: T,
}

impl<T> MaybeNot<T> {
    /// The packet must have it.
    pub fn is(value: T) -> MaybeNot<T> {
        MaybeNot { negated: false, value }
    }

    /// The packet must not have it.
    pub fn not(value: T) -> MaybeNot<T> {
        MaybeNot { negated: true, value }
    }
}

/// The name of an interface, or with a `+` at its end all names with that prefix: 1 to 16 visible ASCII
/// characters without `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface(Arc<str>);

impl Interface {
    /// Reads a name as iptables does: at most 15 characters, or 15 and a `+`.
    pub fn new(text: &str) -> Option<Interface> {
        let stem = text.strip_suffix('+').unwrap_or(text);
        let is_word = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'"');
        (!text.is_empty() && stem.len() <= 15 && is_word && !text.starts_with(['!', '-']))
            .then(|| Interface(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The protocol that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4Protocol {
    /// A protocol of Services.
    Service(Protocol),
    /// Any other, as iptables spells it.
    Other(Arc<str>),
}

/// First and last port, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last; not below `first`.
    pub last: u16,
}

/// A set of connection tracking states; displayed in the order of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtStates(u8);

impl CtStates {
    const WORDS: [&'static str; 7] =
        ["INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"];
    /// `INVALID`.
    pub const INVALID: CtStates = CtStates(1);
    /// `NEW`.
    pub const NEW: CtStates = CtStates(2);
    /// `RELATED`.
    pub const RELATED: CtStates = CtStates(4);
    /// `ESTABLISHED`.
    pub const ESTABLISHED: CtStates = CtStates(8);
    /// `UNTRACKED`.
    pub const UNTRACKED: CtStates = CtStates(16);
    /// `SNAT`: the source was translated.
    pub const SNAT: CtStates = CtStates(32);
    /// `DNAT`: the destination was translated.
    pub const DNAT: CtStates = CtStates(64);

    /// The union of both sets.
    pub const fn and(self, other: CtStates) -> CtStates {
        CtStates(self.0 | other.0)
    }

    /// Whether the set has every state of `other`.
    pub fn contains(self, other: CtStates) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether both sets have a state in common.
    pub fn overlaps(self, other: CtStates) -> bool {
        self.0 & other.0 != 0
    }

    /// Reads `RELATED,ESTABLISHED` in any order.
    pub fn parse(text: &str) -> Option<CtStates> {
        text.split(',').try_fold(CtStates(0), |set, word| {
            let bit = CtStates::WORDS.iter().position(|known| *known == word)?;
            Some(CtStates(set.0 | 1 << bit))
        })
    }
}

impl fmt::Display for CtStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = CtStates::WORDS.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0);
        for (n, (_, word)) in words.enumerate() {
            f.write_str(if n == 0 { "" } else { "," })?;
            f.write_str(word)?;
        }
        Ok(())
    }
}

/// The address of the packet that `addrtype` matches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressSide {
    /// `--src-type`.
    Source,
    /// `--dst-type`.
    Destination,
}

/// The action of `recent` on the packet's source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecentAction {
    /// `--set`: adds it to the list, with the current time.
    Set,
    /// `--rcheck --seconds N --reap`: matches if the list has had it for at most so many seconds.
    Check {
        /// The longest time since `--set`, in seconds.
        seconds: u32,
    },
}

/// One `-m` extension of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// `comment`: always matches.
    Comment(Arc<str>),
    /// `tcp`, `udp` or `sctp`, with the destination ports if the rule has any.
    L4 {
        /// The module; the rule's `-p` has the same protocol.
        protocol: Protocol,
        /// `--dport`.
        destination_ports: Option<PortRange>,
    },
    /// `mark`: the packet's mark under a mask.
    Mark {
        /// Whether `!` stands before `--mark`.
        negated: bool,
        /// The value.
        value: u32,
        /// The mask.
        mask: u32,
    },
    /// `conntrack --ctstate`.
    CtState(MaybeNot<CtStates>),
    /// `addrtype --src-type LOCAL` or `--dst-type LOCAL`.
    IsLocal(AddressSide),
    /// `statistic --mode random`: matches `threshold` times in 2^31.
    Random {
        /// 0 to 2^31.
        threshold: u32,
    },
    /// `recent` on the source address.
    Recent {
        /// The action.
        action: RecentAction,
        /// The list's name, which is the endpoint chain's.
        list: ChainName,
    },
    /// `nfacct`: counts the packet under a name; always matches.
    Nfacct(Arc<str>),
    /// `bpf` with the family's fixed program: source and destination address are equal. iptables has
    /// no match of its own for that.
    Hairpin,
    /// Any other extension, or one of the above with other options: its name and its options.
    Other {
        /// The module; empty for an unknown basic option, as `-f`.
        module: Arc<str>,
        /// Its options, without quotes.
        words: Box<[Box<str>]>,
    },
}

/// Where a rule sends the packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `-j` to a user-defined chain.
    Jump(ChainName),
    /// `-g` to a user-defined chain.
    Goto(ChainName),
    /// `ACCEPT`.
    Accept,
    /// `DROP`.
    Drop,
    /// `RETURN`.
    Return,
    /// `REJECT` with the family's port-unreachable.
    Reject,
    /// `DNAT --to-destination`.
    Dnat(SocketAddr),
    /// `MASQUERADE`.
    Masquerade {
        /// `--random-fully`.
        random_fully: bool,
    },
    /// `MARK --set-xmark`: clears the mask's bits, then flips the value's.
    SetXmark {
        /// Bits to flip.
        value: u32,
        /// Bits to clear first.
        mask: u32,
    },
    /// Any other target: its name and its options.
    Other {
        /// The target.
        name: Arc<str>,
        /// Its options, without quotes.
        words: Box<[Box<str>]>,
    },
}

/// One rule. The basic matches stand first, as `iptables-save` shows them whatever their order was.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// `-s`.
    pub source: Option<MaybeNot<Cidr>>,
    /// `-d`.
    pub destination: Option<MaybeNot<Cidr>>,
    /// `-i`.
    pub in_interface: Option<MaybeNot<Interface>>,
    /// `-o`.
    pub out_interface: Option<MaybeNot<Interface>>,
    /// `-p`.
    pub protocol: Option<MaybeNot<L4Protocol>>,
    /// `-m` extensions, in order.
    pub matches: Vec<Match>,
    /// `-j` or `-g`; a rule without a target only counts packets.
    pub target: Option<Target>,
}

impl Rule {
    /// The user-defined chain that it leads to.
    pub fn callee(&self) -> Option<ChainName> {
        match self.target {
            Some(Target::Jump(chain) | Target::Goto(chain)) => Some(chain),
            _ => None,
        }
    }

    /// The text of its first comment.
    pub fn comment(&self) -> Option<&str> {
        self.matches.iter().find_map(|m| if let Match::Comment(text) = m { Some(&**text) } else { None })
    }
}
