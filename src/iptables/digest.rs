//! Hashes of rules and of chains, with a random key of this process.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::LazyLock;

use super::rule::Rule;

/// The content of a chain: a hash of its rules in order, and their number. Valid as long as the process;
/// chains with equal digests count as equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    hash: u64,
    /// How many rules the chain has.
    pub n_rules: u32,
}

/// SipHash with a random key of this process. Cluster users decide what is hashed, and two contents of a
/// chain with one hash would leave the old rules in force: with a fast hash, such texts can be found
/// without its key.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The hash of `value`, valid as long as the process.
pub fn keyed_hash(value: impl Hash) -> u64 {
    KEY.hash_one(value)
}

impl Digest {
    /// An empty chain.
    pub const EMPTY: Digest = Digest { hash: 0, n_rules: 0 };

    /// The digest of a chain that holds `rules`.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Digest {
        rules.into_iter().fold(Digest::EMPTY, |digest, rule| digest.then(Digest::rule(rule)))
    }

    /// The hash of one rule, for [`Digest::then`].
    pub fn rule(rule: &Rule) -> u64 {
        keyed_hash(rule)
    }

    /// The chain with one more rule at its end.
    pub fn then(self, rule: u64) -> Digest {
        // An odd factor, so that no bit is lost: 2^64 divided by the golden ratio.
        let hash = (self.hash.rotate_left(23) ^ rule).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Digest { hash, n_rules: self.n_rules + 1 }
    }
}
