//! Whose a chain is, by its table and its name: one answer for everything that reads, compares,
//! writes or removes chains.

use super::names::{
    DISPATCH_DIGIT, HASH_LENGTH, KUBE_EXTERNAL_SERVICES, KUBE_FIREWALL, KUBE_FORWARD, KUBE_MARK_MASQ,
    KUBE_NODEPORTS, KUBE_POSTROUTING, KUBE_PROXY_CANARY, KUBE_PROXY_FIREWALL, KUBE_SERVICES, PortChain,
};
use super::{Layout, Settings, fixed};
use crate::iptables::{ChainName, Rule, Table};

const FIXED_IN_NAT: [ChainName; 4] = [KUBE_SERVICES, KUBE_NODEPORTS, KUBE_POSTROUTING, KUBE_MARK_MASQ];

const FIXED_IN_FILTER: [ChainName; 5] =
    [KUBE_SERVICES, KUBE_EXTERNAL_SERVICES, KUBE_FORWARD, KUBE_NODEPORTS, KUBE_PROXY_FIREWALL];

/// Chains of kube-proxy's ipvs mode, except for those that its iptables mode has too.
const IPVS_CHAINS: [ChainName; 5] = [
    ChainName::literal("KUBE-LOAD-BALANCER"),
    ChainName::literal("KUBE-NODE-PORT"),
    ChainName::literal("KUBE-SOURCE-RANGES-FIREWALL"),
    ChainName::literal("KUBE-IPVS-FILTER"),
    ChainName::literal("KUBE-IPVS-OUT-FILTER"),
];

/// Who makes a chain, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainOwner {
    /// Ours: one of the chains that every node has, as `KUBE-SERVICES` and `KUBE-MARK-MASQ`.
    Fixed,
    /// Ours: a chain of one service port. Any name with the prefix counts, as it does for
    /// kube-proxy.
    ServicePort(PortChain),
    /// Ours: a group of one service port's endpoints; only the compact layout has them.
    Group,
    /// Ours: a chain behind a shared one; only the compact layout has them.
    Dispatch,
    /// Ours: the canary, which the agent makes and never compares.
    Canary,
    /// `KUBE-FIREWALL` of filter: the kubelet has rules in it. Its rules are compared, but it is never
    /// removed.
    SharedWithKubelet,
    /// A chain of kube-proxy's ipvs mode, or of an iptables mode that wrote it into filter.
    OtherMode,
    /// Another program.
    Foreign,
}

impl ChainOwner {
    /// The owner of the chain `name` of `table`.
    pub fn of(table: Table, name: &ChainName) -> ChainOwner {
        use Table::{Filter, Nat};
        match (table, PortChain::split(name)) {
            (Nat, Some((PortChain::External, rest))) if rest.starts_with(DISPATCH_DIGIT) => {
                ChainOwner::Dispatch
            }
            (Filter, Some((_, rest))) if rest.starts_with(DISPATCH_DIGIT) => ChainOwner::Dispatch,
            (Nat, Some((PortChain::Local | PortChain::Cluster, rest))) if rest.len() > HASH_LENGTH => {
                ChainOwner::Group
            }
            (Nat, Some((kind, _))) => ChainOwner::ServicePort(kind),
            (Filter, Some(_)) => ChainOwner::OtherMode,
            (Nat, None) if FIXED_IN_NAT.contains(name) => ChainOwner::Fixed,
            (Filter, None) if FIXED_IN_FILTER.contains(name) => ChainOwner::Fixed,
            (Filter, None) if *name == KUBE_FIREWALL => ChainOwner::SharedWithKubelet,
            (_, None) if *name == KUBE_PROXY_CANARY => ChainOwner::Canary,
            (Nat | Filter, None) if IPVS_CHAINS.contains(name) => ChainOwner::OtherMode,
            _ => ChainOwner::Foreign,
        }
    }

    /// Whether a restore may flush and delete the chain.
    pub fn is_ours(self) -> bool {
        self == ChainOwner::Fixed || self.depends_on_services()
    }

    /// Whether the chain comes and goes with Services.
    pub fn depends_on_services(self) -> bool {
        self.is_compact() || matches!(self, ChainOwner::ServicePort(_))
    }

    /// Whether only the compact layout has the chain.
    pub fn is_compact(self) -> bool {
        matches!(self, ChainOwner::Group | ChainOwner::Dispatch)
    }

    /// Whether the agent compares the chain's rules with those that it wrote.
    pub fn is_compared(self) -> bool {
        self.is_ours() || self == ChainOwner::SharedWithKubelet
    }

    /// Whether the chain is removed where this node is proxied no more: it belongs to any mode of
    /// kube-proxy or to Chainsmith alone.
    pub fn is_removable(self) -> bool {
        self.is_ours() || matches!(self, ChainOwner::Canary | ChainOwner::OtherMode)
    }
}

/// Whether `name` is a chain of any mode of kube-proxy that built-in chains jump to. Such a jump belongs
/// to kube-proxy, whatever it matches; a rule that jumps to another chain of kube-proxy (a CNI plugin's
/// to `KUBE-MARK-MASQ`) is foreign.
pub fn is_top_level(name: &ChainName) -> bool {
    let is_fixed = FIXED_IN_NAT.contains(name) || FIXED_IN_FILTER.contains(name);
    is_fixed && *name != KUBE_MARK_MASQ || IPVS_CHAINS.contains(name)
}

/// Whether nat chains with these names, and these rules in `KUBE-POSTROUTING`, are laid out as compact.
pub fn is_compact(
    settings: &Settings,
    mut nat_chains: impl Iterator<Item = ChainName>,
    postrouting: impl FnOnce(&[Rule]) -> bool,
) -> bool {
    nat_chains.any(|name| ChainOwner::of(Table::Nat, &name).is_compact())
        || settings.bpf
            && fixed::chains(settings, Layout::Compact)
                .iter()
                .find(|chain| chain.name == KUBE_POSTROUTING)
                .is_some_and(|chain| postrouting(&chain.rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kube_proxys_chains_may_be_deleted() {
        let check = |table, name, expected: ChainOwner| {
            let owner = ChainOwner::of(table, &ChainName::literal(name));
            assert_eq!(owner, expected, "{table} {name}");
            let is_ours = !matches!(
                owner,
                ChainOwner::Canary
                    | ChainOwner::SharedWithKubelet
                    | ChainOwner::OtherMode
                    | ChainOwner::Foreign
            );
            assert_eq!(owner.is_ours(), is_ours, "{table} {name}");
        };
        check(Table::Nat, "KUBE-SERVICES", ChainOwner::Fixed);
        check(Table::Nat, "KUBE-SVC-FOO", ChainOwner::ServicePort(PortChain::Cluster));
        check(Table::Nat, "KUBE-FW-FOO", ChainOwner::ServicePort(PortChain::Firewall));
        check(Table::Nat, "KUBE-SVC-2CMXP7HKUVJN7L6M", ChainOwner::ServicePort(PortChain::Cluster));
        check(Table::Nat, "KUBE-SVL-2CMXP7HKUVJN7L6M7F", ChainOwner::Group);
        check(Table::Nat, "KUBE-EXT-00A6000", ChainOwner::Dispatch);
        check(Table::Nat, "KUBE-FOO", ChainOwner::Foreign);
        check(Table::Nat, "KUBE-HOSTPORTS", ChainOwner::Foreign);
        check(Table::Nat, "KUBE-MARK-DROP", ChainOwner::Foreign);
        check(Table::Nat, "KUBE-FIREWALL", ChainOwner::Foreign);
        check(Table::Nat, "KUBE-NODE-PORT", ChainOwner::OtherMode);
        check(Table::Filter, "KUBE-FIREWALL", ChainOwner::SharedWithKubelet);
        check(Table::Filter, "KUBE-FORWARD", ChainOwner::Fixed);
        check(Table::Filter, "KUBE-SVC-FOO", ChainOwner::OtherMode);
        check(Table::Filter, "KUBE-SVC-0FOO", ChainOwner::Dispatch);
        check(Table::Filter, "KUBE-MARK-MASQ", ChainOwner::Foreign);
        check(Table::Mangle, "KUBE-SERVICES", ChainOwner::Foreign);
        check(Table::Mangle, "KUBE-SVC-FOO", ChainOwner::Foreign);
        check(Table::Mangle, "KUBE-IPVS-FILTER", ChainOwner::Foreign);
        check(Table::Mangle, "KUBE-PROXY-CANARY", ChainOwner::Canary);
    }

    #[test]
    fn the_kubelets_rules_are_compared_and_stay() {
        let owner = ChainOwner::of(Table::Filter, &KUBE_FIREWALL);
        assert!(owner.is_compared() && !owner.is_removable() && !is_top_level(&KUBE_FIREWALL));
    }
}
