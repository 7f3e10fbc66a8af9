//! Tables and the names of chains.

use std::fmt;

/// A table of iptables; ordered as `iptables-save` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `mangle`: kube-proxy has its canary there.
    Mangle,
    /// `security`: foreign rules only; they are read and walked.
    Security,
    /// `raw`: foreign rules only, before conntrack; they are read and walked.
    Raw,
    /// `filter`: rejects and drops.
    Filter,
    /// `nat`: everything else.
    Nat,
}

impl Table {
    /// The tables that kube-proxy uses, in the order in which `iptables-save` shows them.
    pub const ALL: [Table; 3] = [Table::Mangle, Table::Filter, Table::Nat];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Table::Mangle => "mangle",
            Table::Security => "security",
            Table::Raw => "raw",
            Table::Filter => "filter",
            Table::Nat => "nat",
        }
    }

    /// The table called `text`; `None` for `raw`, `security` and unknown names.
    pub fn parse(text: &str) -> Option<Table> {
        Table::ALL.into_iter().find(|table| table.as_str() == text)
    }

    /// The table called `text`, also one that kube-proxy does not use; `None` for unknown names.
    pub fn parse_any(text: &str) -> Option<Table> {
        Table::parse(text).or([Table::Security, Table::Raw].into_iter().find(|table| table.as_str() == text))
    }

    /// Its built-in chains, in the order in which `iptables-save` shows them.
    pub fn built_in(self) -> &'static [&'static str] {
        match self {
            Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Table::Filter | Table::Security => &["INPUT", "FORWARD", "OUTPUT"],
            Table::Raw => &["PREROUTING", "OUTPUT"],
            Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a chain: 1 to 28 visible ASCII characters, the limit of x_tables. Held in place, so
/// that a hundred thousand of them cost no allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainName {
    bytes: [u8; ChainName::MAX],
    length: u8,
}

impl ChainName {
    /// The longest name, in bytes (XT_EXTENSION_MAXNAMELEN less the NUL).
    pub const MAX: usize = 28;

    /// Reads a name; `None` if iptables would reject it: empty, too long, with white space or control
    /// characters, or like an option or a negation.
    pub fn new(text: &str) -> Option<ChainName> {
        let fits = !text.is_empty() && text.len() <= ChainName::MAX;
        let is_word = text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.starts_with(['-', '!']);
        if !fits || !is_word {
            return None;
        }
        let mut bytes = [0; ChainName::MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(ChainName { bytes, length: text.len() as u8 })
    }

    /// A name from the source text; in a constant, a wrong one does not compile.
    pub const fn literal(text: &str) -> ChainName {
        let from = text.as_bytes();
        assert!(!from.is_empty() && from.len() <= ChainName::MAX);
        let mut bytes = [0; ChainName::MAX];
        let mut at = 0;
        while at < from.len() {
            assert!(from[at].is_ascii_graphic());
            bytes[at] = from[at];
            at += 1;
        }
        ChainName { bytes, length: from.len() as u8 }
    }

    /// Numbers that compare as the texts do. Padding is NUL, below every character of a name.
    #[inline]
    fn words(&self) -> [u64; 4] {
        let (words, rest) = self.bytes.as_chunks::<8>();
        // Without `map`, which is a function call unless the whole program is optimized.
        let last = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let word = |n: usize| u64::from_be_bytes(words[n]);
        [word(0), word(1), word(2), last.into()]
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("constructors take ASCII only")
    }
}

/// By the bytes of the text, as `iptables-save` sorts.
impl Ord for ChainName {
    #[inline]
    fn cmp(&self, other: &ChainName) -> std::cmp::Ordering {
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for ChainName {
    fn partial_cmp(&self, other: &ChainName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_iptables_would_reject_are_rejected() {
        for text in ["", "-X", "!A", "A B", "A\n", "A\0", "Ä", &"A".repeat(29)] {
            assert_eq!(ChainName::new(text), None, "{text:?}");
        }
        assert_eq!(ChainName::new(&"A".repeat(28)).unwrap().as_str().len(), 28);
    }

    #[test]
    fn names_sort_as_their_text() {
        let texts = ["KUBE-EXT-A", "KUBE-SEP-2", "KUBE-SEP-22", "KUBE-SERVICES", "KUBE-SVC-A"];
        let mut names: Vec<ChainName> = texts.iter().rev().map(|text| ChainName::literal(text)).collect();
        names.sort();
        assert_eq!(names.iter().map(ChainName::as_str).collect::<Vec<_>>(), texts);
    }
}
