//! Random input for everything that reads: bytes and mutated text for the readers of manifests,
//! watched objects, saved rules, configuration and host files; well-formed objects with hostile
//! content from decoding to the text of rules; random rules to text and back.
//!
//! The claims about each case: no panic, memory and time below a bound, every message is one line, written
//! text reads back equal, and a good neighbour is served as if it were alone. A case is
//! its kind and its number, so that `FUZZ_CASE=<kind>:<number> cargo test --test fuzz` repeats it.

mod dice;
mod objects;
mod rules;
mod served;
mod settings;
mod texts;

// Tests of the library use both, too.
#[path = "../tests/shared/hostile.rs"]
mod hostile;
#[path = "../tests/shared/rulesets.rs"]
mod rulesets;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use dice::Dice;

/// One input, and the claims about it.
pub struct Trial {
    /// The input, for the message and for its size.
    pub input: Vec<u8>,
    /// Runs it; returns the claim that fails.
    pub claim: Box<Claim>,
}

/// The claims about an input; an error names the claim that fails.
type Claim = dyn FnOnce(&[u8]) -> Result<(), String>;

/// A kind of input.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What happens to the input, for the table.
    pub what: &'static str,
    /// Its share of a hundred cases.
    pub share: u64,
    /// Most bytes allocated at one time.
    pub bound: Bound,
    make: fn(&mut Dice) -> Trial,
}

/// The bound on memory: a constant, and a number for each byte of input.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// In KiB.
    pub kib: u64,
    /// In bytes.
    pub per_byte: u64,
}

impl Bound {
    fn of(self, n_bytes: usize) -> u64 {
        (self.kib << 10) + self.per_byte * n_bytes as u64
    }
}

/// `8 MiB + 100 for each byte`
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB + {} for each byte", self.kib >> 10, self.per_byte)
    }
}

/// All of them.
pub const KINDS: [Kind; 7] = [
    Kind {
        name: "manifest",
        what: "bytes and mutated YAML and JSON between two good manifests",
        share: 20,
        bound: Bound { kib: 8 << 10, per_byte: 400 },
        make: texts::manifest,
    },
    Kind {
        name: "watch",
        what: "bytes and mutated JSON as watched objects",
        share: 15,
        bound: Bound { kib: 1 << 10, per_byte: 200 },
        make: texts::watched,
    },
    Kind {
        name: "object",
        what: "well-formed objects with hostile content, to rules and text",
        share: 20,
        bound: Bound { kib: 8 << 10, per_byte: 400 },
        make: objects::make,
    },
    Kind {
        name: "save",
        what: "bytes and mutated text as saved rules, traced",
        share: 15,
        bound: Bound { kib: 1 << 10, per_byte: 200 },
        make: rules::saved,
    },
    Kind {
        name: "rules",
        what: "random rules to text and back, traced",
        share: 10,
        bound: Bound { kib: 1 << 10, per_byte: 200 },
        make: rules::random,
    },
    Kind {
        name: "config",
        what: "mutated configuration files and random flags, to settings and rules",
        share: 15,
        bound: Bound { kib: 8 << 10, per_byte: 400 },
        make: settings::config,
    },
    Kind {
        name: "host",
        what: "bytes and mutated host files",
        share: 5,
        bound: Bound { kib: 1 << 10, per_byte: 200 },
        make: settings::host,
    },
];

/// The result of many cases of a kind.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Cases.
    pub n_cases: u64,
    /// Most bytes allocated at one time by one of them, and its number.
    pub peak: (u64, u64),
    /// The longest time of one case, and its number.
    pub slowest: (Duration, u64),
}

impl Summary {
    fn merge(&mut self, other: Summary) {
        self.n_cases += other.n_cases;
        self.peak = self.peak.max(other.peak);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// The longest time of one case. All take less than a second; a reader whose time grows with the
/// square of its input takes minutes for the largest.
const LONGEST: Duration = Duration::from_secs(20);

/// Runs case `number` of `kind`: its peak of memory, or the claim that fails and how to repeat the case.
pub fn attempt(kind: &Kind, number: u64) -> Result<u64, String> {
    let Trial { input, claim } = (kind.make)(&mut Dice::new(kind.name, number));
    let mut outcome = Ok(Ok(()));
    let start = Instant::now();
    let used = allocation_counter::measure(|| {
        outcome = catch_unwind(AssertUnwindSafe(|| claim(&input)));
    });
    let took = start.elapsed();
    let bound = kind.bound.of(input.len());
    let wrong = match outcome {
        Ok(Ok(())) if took > LONGEST => format!("{took:?} for {} bytes of input", input.len()),
        Ok(Ok(())) if used.bytes_max <= bound => return Ok(used.bytes_max),
        Ok(Ok(())) => {
            format!("{} bytes of memory for {} of input, at most {bound}", used.bytes_max, input.len())
        }
        Ok(Err(wrong)) => wrong,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            format!("panic: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default())
        }
    };
    let shown: String = String::from_utf8_lossy(&input).chars().take(4_000).collect();
    Err(format!("FUZZ_CASE={}:{number}: {wrong}\n---- the input ----\n{shown}\n----", kind.name))
}

/// Runs the first `n_cases` cases of `kind` on `n_threads` threads; the first failure ends it.
pub fn try_all(kind: &Kind, n_cases: u64, n_threads: u64) -> Result<Summary, String> {
    let part = |first: u64| -> Result<Summary, String> {
        let mut summary = Summary::default();
        for number in (first..n_cases).step_by(n_threads as usize) {
            let start = Instant::now();
            let peak = attempt(kind, number)?;
            summary.merge(Summary { n_cases: 1, peak: (peak, number), slowest: (start.elapsed(), number) });
        }
        Ok(summary)
    };
    std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = (0..n_threads).map(|first| scope.spawn(move || part(first))).collect();
        let mut summary = Summary::default();
        for thread in threads {
            summary.merge(thread.join().expect("panics of a claim are caught")?);
        }
        Ok(summary)
    })
}
