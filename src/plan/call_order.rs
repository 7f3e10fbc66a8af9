//! The order of chains in one input: callees first. A chain is written before every chain that jumps or
//! goes to it, so no rule names a chain that the kernel does not have yet.

use crate::iptables::ChainName;

/// The places of `chains` (name, callees), callees first.
///
/// A chain that calls no other of them has depth 0, any other 1 more than its deepest callee. Chains of
/// equal depth stand in descending order of names: so `iptables-nft-restore`, which keeps the chains of its
/// input in a sorted list, finds nearly every one at the list's head. In a circle of calls, which the kernel
/// rejects, one call does not count.
pub(super) fn callees_first<'a>(chains: impl Iterator<Item = (ChainName, &'a [ChainName])>) -> Vec<usize> {
    let (names, callees): (Vec<ChainName>, Vec<&[ChainName]>) = chains.unzip();
    let mut by_name: Vec<usize> = (0..names.len()).collect();
    by_name.sort_unstable_by(|a, b| names[*b].cmp(&names[*a]));
    let mut calls =
        Calls { names: &names, callees: &callees, by_name: &by_name, depths: vec![None; names.len()] };
    let depths: Vec<usize> = (0..names.len()).map(|at| calls.depth(at)).collect();
    let mut order = by_name;
    // Stable: names stay in descending order.
    order.sort_by_key(|at| depths[*at]);
    order
}

struct Calls<'a> {
    names: &'a [ChainName],
    callees: &'a [&'a [ChainName]],
    /// Places in descending order of names.
    by_name: &'a [usize],
    /// By place; 0 while the depth of the chain is being computed, which ends a circle.
    depths: Vec<Option<usize>>,
}

impl Calls<'_> {
    fn depth(&mut self, at: usize) -> usize {
        if let Some(depth) = self.depths[at] {
            return depth;
        }
        self.depths[at] = Some(0);
        let callees = self.callees[at].iter().filter_map(|callee| self.place_of(callee));
        let callees: Vec<usize> = callees.collect();
        let depth = callees.into_iter().map(|callee| 1 + self.depth(callee)).max().unwrap_or(0);
        self.depths[at] = Some(depth);
        depth
    }

    fn place_of(&self, name: &ChainName) -> Option<usize> {
        let found = self.by_name.binary_search_by(|at| name.cmp(&self.names[*at]));
        found.ok().map(|n| self.by_name[n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of `chains`, each written as `name callee callee...`.
    fn order(chains: &[&str]) -> String {
        let words = |text: &&str| text.split(' ').map(ChainName::literal).collect::<Vec<_>>();
        let chains: Vec<Vec<ChainName>> = chains.iter().map(words).collect();
        let order = callees_first(chains.iter().map(|words| (words[0], &words[1..])));
        order.into_iter().map(|at| chains[at][0].to_string()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn callees_come_first_and_equals_in_descending_order_of_names() {
        assert_eq!(order(&[]), "");
        assert_eq!(order(&["A", "C", "B"]), "C B A");
        assert_eq!(order(&["A B", "B C", "C", "D"]), "D C B A");
        assert_eq!(order(&["A C D", "B C", "C", "D B"]), "C B D A");
        assert_eq!(order(&["A B B X", "B X"]), "B A", "chains that are not in the input do not count");
    }

    #[test]
    fn a_circle_of_calls_ends_and_loses_no_chain() {
        assert_eq!(order(&["A A"]), "A");
        assert_eq!(order(&["A B", "B C", "C A", "D A"]), "C B A D");
    }
}
