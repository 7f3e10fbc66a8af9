//! What the kernel held otherwise than it was left.

use std::fmt;

use crate::iptables::{ChainName, Table};

/// Rules that another process changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Chains with other rules, or gone, or added.
    pub chains: Vec<(Table, ChainName)>,
    /// Jumps from built-in chains that were gone.
    pub n_jumps: usize,
}

impl Drift {
    /// Adds what was found later.
    pub fn add(&mut self, mut more: Drift) {
        self.chains.append(&mut more.chains);
        self.n_jumps += more.n_jumps;
    }

    /// How many chains and jumps.
    pub fn len(&self) -> usize {
        self.chains.len() + self.n_jumps
    }

    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.n_jumps == 0
    }
}

/// The first few chains by name, and how many more there are.
impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        let names: Vec<String> =
            self.chains.iter().take(SHOWN).map(|(table, chain)| format!("{table} {chain}")).collect();
        f.write_str(&names.join(", "))?;
        match self.chains.len() {
            n if n > SHOWN => write!(f, " and {} more", n - SHOWN)?,
            _ => {}
        }
        match self.n_jumps {
            0 => Ok(()),
            n if self.chains.is_empty() => write!(f, "{n} jumps from built-in chains"),
            n => write!(f, "; {n} jumps from built-in chains"),
        }
    }
}
