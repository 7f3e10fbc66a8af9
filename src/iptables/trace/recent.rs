//! The lists of `-m recent`: who was seen when.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::iptables::ChainName;

/// What the lists of `recent` remember.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecentLists {
    /// The time now, in seconds since any moment.
    pub now: u64,
    lists: BTreeMap<ChainName, BTreeMap<IpAddr, u64>>,
}

impl RecentLists {
    /// Addresses a list holds unless the module is loaded with another `ip_list_tot`; a new one
    /// then takes the place of the one not seen for the longest time.
    pub const LENGTH: usize = 100;

    /// Notes in `lists` that `source` is seen now. The outcome of a trace says which lists those are.
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

    /// Whether `list` saw `source` at most `seconds` ago.
    pub fn holds(&self, list: &ChainName, source: IpAddr, seconds: u32) -> bool {
        let when = self.lists.get(list).and_then(|seen| seen.get(&source));
        when.is_some_and(|when| self.now.saturating_sub(*when) <= u64::from(seconds))
    }
}
