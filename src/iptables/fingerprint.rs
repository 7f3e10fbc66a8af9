//! What the kernel shows of a chain, as one number: tells whether a chain still holds the rules that it held
//! before, without telling what they are.

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::num::NonZero;
use std::sync::LazyLock;

/// SipHash with a random key of this process: without the key, no two sets of rules
/// with the same fingerprint can be made.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A hash of what the kernel shows of a chain's rules. Equal fingerprints are taken for equal rules. Lives as long
/// as the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(NonZero<u64>);

impl Fingerprint {
    /// A hasher with the key of this process, for what the kernel shows of one chain.
    pub fn hasher() -> DefaultHasher {
        KEY.build_hasher()
    }

    /// The fingerprint of what went into `hasher`.
    pub fn of(hasher: &DefaultHasher) -> Fingerprint {
        Fingerprint::new(hasher.finish())
    }

    /// The fingerprint with this hash.
    pub fn new(hash: u64) -> Fingerprint {
        Fingerprint(NonZero::new(hash).unwrap_or(NonZero::<u64>::MIN))
    }
}
