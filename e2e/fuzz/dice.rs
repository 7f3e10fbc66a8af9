//! Random decisions of one case, the same at each run; and text that is nearly valid.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::hostile::hostile;

/// Words of the formats, for places where they do not belong.
const WORDS: [&str; 48] = [
    "---\n",
    "\n---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    ":",
    ": ",
    "- ",
    "\n  ",
    "\n",
    "\t",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "? ",
    "|\n",
    ">-\n",
    "#",
    "%YAML 1.1\n",
    "null",
    "true",
    "0x7fffffff",
    "1e999",
    "-1",
    "18446744073709551616",
    ".nan",
    "\u{feff}",
    "\0",
    "\\u0000",
    "kind: List\nitems:\n",
    "*nat\n",
    "COMMIT\n",
    "-A ",
    "-j ",
    "-g ",
    ":X - [0:0]\n",
    "! ",
    "--comment ",
    "-m ",
    "KUBE-SERVICES",
    "0.0.0.0/0",
    "::/0",
    "=",
];

/// A file of the recorded cases, each in all cases.
fn corpus(file: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus");
    let mut folders: Vec<PathBuf> = fs::read_dir(root)
        .expect("the corpus is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    folders.iter().filter_map(|folder| fs::read_to_string(folder.join(file)).ok()).collect()
}

/// Valid texts that cases start from: short ones, so that many run in a second.
pub struct Seeds {
    /// Documents of objects.
    pub objects: Vec<String>,
    /// `iptables-save` of IPv4 and of IPv6.
    pub saves: [Vec<String>; 2],
    /// KubeProxyConfigurations.
    pub configs: Vec<String>,
    /// Host files.
    pub hosts: Vec<String>,
}

pub static SEEDS: LazyLock<Seeds> = LazyLock::new(|| {
    let is_short = |text: &String| text.len() < 4_000;
    let documents = |text: String| text.split("\n---\n").map(str::to_owned).collect::<Vec<_>>();
    let mut objects: Vec<String> = corpus("objects.yaml").into_iter().flat_map(documents).collect();
    objects.retain(is_short);
    objects.sort();
    objects.dedup();
    let saves = ["expected.v4.save", "expected.v6.save"]
        .map(|file| corpus(file).into_iter().filter(|text| text.len() < 8_000).collect());
    let mut seeds = Seeds { objects, saves, configs: corpus("config.yaml"), hosts: corpus("host.yaml") };
    // The longest one, with every field.
    seeds.configs.push(chainsmith::config::Config::default().effective.to_file());
    seeds
});

/// The source of decisions.
pub struct Dice(fastrand::Rng);

impl Dice {
    /// The decisions of case `number` of a kind.
    pub fn new(kind: &str, number: u64) -> Dice {
        let salt = kind.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Dice(fastrand::Rng::with_seed(salt << 32 ^ number))
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.usize(0..n)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A random value of `strategy`.
    pub fn value<S: Strategy>(&mut self, strategy: &S) -> S::Value {
        static CONFIG: LazyLock<Config> =
            LazyLock::new(|| Config { failure_persistence: None, ..Config::default() });
        let seed = (u128::from(self.number()) << 64 | u128::from(self.number())).to_le_bytes();
        let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
        let mut runner = TestRunner::new_with_rng(CONFIG.clone(), rng);
        strategy.new_tree(&mut runner).expect("no filter is that strict").current()
    }

    /// Hostile text.
    pub fn hostile(&mut self) -> String {
        static TEXTS: LazyLock<Vec<String>> = LazyLock::new(hostile);
        match self.below(8) {
            0 => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{85}').to_string(),
            1 => format!("{}{}{}", self.pick(&WORDS), self.pick(&TEXTS), self.pick(&WORDS)),
            // The longest one only rarely.
            _ => match &TEXTS[self.below(TEXTS.len())] {
                text if text.len() > 1_000 && !self.once_in(20) => text[..70].to_owned(),
                text => text.clone(),
            },
        }
    }

    /// One of `seeds` with a few changes; rarely plain bytes, or one thing repeated many times.
    pub fn mutated(&mut self, seeds: &[String]) -> Vec<u8> {
        match self.below(40) {
            0 | 1 => (0..self.below(300)).map(|_| self.0.u8(..)).collect(),
            2 => self.bomb(),
            _ => {
                let mut text = self.pick(seeds).clone().into_bytes();
                for _ in 0..self.below(6) {
                    self.mutate(&mut text, seeds);
                }
                text
            }
        }
    }

    fn mutate(&mut self, text: &mut Vec<u8>, seeds: &[String]) {
        let at = self.below(text.len() + 1);
        let end = (at + self.below(40)).min(text.len());
        match self.below(12) {
            0 => drop(text.drain(at..end)),
            1 => text.truncate(at),
            2 => {
                let part = text[at..end].to_vec();
                let part = part.repeat(1 + self.below(8));
                text.splice(at..at, part);
            }
            3 | 4 => drop(text.splice(at..at, self.pick(&WORDS).bytes())),
            5 => drop(text.splice(at..end, self.pick(&WORDS).bytes())),
            6 => drop(text.splice(at..at, self.hostile().bytes())),
            7 if at < text.len() => text[at] ^= 1 << self.below(8),
            8 if at < text.len() => text[at] = self.0.u8(..),
            // The value after a colon, or a word after a blank.
            9 | 10 => {
                let from = text[at..].iter().position(|byte| *byte == b' ').map_or(at, |n| at + n + 1);
                let to = text[from..]
                    .iter()
                    .position(|byte| b"\n, ".contains(byte))
                    .map_or(text.len(), |n| from + n);
                let word = if self.once_in(2) { self.hostile() } else { self.number().to_string() };
                text.splice(from..to, word.bytes());
            }
            _ => {
                let other = self.pick(seeds).as_bytes();
                let from = self.below(other.len() + 1);
                let to = (from + self.below(200)).min(other.len());
                text.splice(at..end, other[from..to].iter().copied());
            }
        }
    }

    /// Few kinds of characters, many times: input that makes careless readers slow or large.
    fn bomb(&mut self) -> Vec<u8> {
        let most = if self.once_in(20) { 20_000 } else { 300 };
        let n = 1 + self.below(most);
        match self.below(10) {
            0 => self
                .pick(&["[", "{\"a\":", "- ", "{a: ", "a:\n ", "? ", "((", "\"\\u00"])
                .repeat(n)
                .into_bytes(),
            1 => format!("a: &a [x, x]\nb: [{}]", "*a, ".repeat(n)).into_bytes(),
            2 => {
                // Each level refers to the previous one several times.
                let level = |n: usize| format!("l{}: &l{} [*l{n}, *l{n}, *l{n}, *l{n}]\n", n + 1, n + 1);
                let levels: String = (0..n.min(40)).map(level).collect();
                format!("l0: &l0 [x, x]\n{levels}").into_bytes()
            }
            3 => "---\n{}\n".repeat(n).into_bytes(),
            4 => format!("kind: List\nitems:\n{}", "- {}\n".repeat(n)).into_bytes(),
            5 => format!("{{\"kind\": \"Service\", \"metadata\": {{{}}}", "\"a\": \"b\",".repeat(n))
                .into_bytes(),
            6 => format!("*nat\n{}COMMIT\n", ":X - [0:0]\n-A X -j X\n".repeat(n)).into_bytes(),
            // One line of many blanks, at the start of a document, inside it, and in saved rules.
            7 => {
                let blanks = self.pick(&[" ", "\t", " \t", "\r"]).repeat(200 * n);
                let before =
                    self.pick(&["", "\n", "a:", "a: b", "a: |\n", "{", "a: \"", "*nat\n:X - [0:0]\n-A X"]);
                let after = self.pick(&["", "\n", "# x\n", "a: b\n", "}", "\"", "-j X\nCOMMIT\n"]);
                format!("{before}{blanks}{after}").into_bytes()
            }
            8 => format!("*nat\n:X - [0:0]\n{}-A X -j X\nCOMMIT\n", "[1:2] ".repeat(n)).into_bytes(),
            _ => self.pick(&WORDS).repeat(n).into_bytes(),
        }
    }
}
