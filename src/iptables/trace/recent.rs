//! The lists of `-m recent`: source addresses with times.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::iptables::ChainName;

/// The lists of `recent`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentLists {
    /// The current time, in seconds since any moment.
    pub now: u64,
    lists: BTreeMap<ChainName, BTreeMap<IpAddr, u64>>,
}

impl RecentLists {
    /// The most addresses of a list unless the module is loaded with another `ip_list_tot`; a new one
    /// then replaces the oldest.
    pub const LENGTH: usize = 100;

    /// Adds `source` to `lists`, with the current time. [`Outcome::remembered`](super::Outcome::remembered) has
    /// the lists.
    pub fn remember<'a>(&mut self, lists: impl IntoIterator<Item = &'a ChainName>, source: IpAddr) {
        for list in lists {
            let seen = self.lists.entry(*list).or_default();
            if seen.len() >= RecentLists::LENGTH && !seen.contains_key(&source) {
                let oldest = seen.iter().min_by_key(|(_, when)| **when).map(|(ip, _)| *ip);
                oldest.map(|ip| seen.remove(&ip));
            }
            seen.insert(source, self.now);
        }
    }

    /// Whether `source` was added to `list` at most `seconds` ago.
    pub fn holds(&self, list: &ChainName, source: IpAddr, seconds: u32) -> bool {
        let when = self.lists.get(list).and_then(|seen| seen.get(&source));
        when.is_some_and(|when| self.now.saturating_sub(*when) <= u64::from(seconds))
    }
}
