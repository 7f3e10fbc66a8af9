//! The index of compiled service ports: makes rules again for what changed, and only for that.
//!
//! [`Compiled`] keeps a record of each service port: the Service that it was made from, the names of its
//! chains, and a hash of each of its entries in the shared chains. [`Compiled::apply`] brings the records in
//! step with the cluster and returns [`Changed`]: the chains of the service ports that changed, made one
//! port at a time when the caller asks for them, and the shared chains that differ. No rule is kept.
//! [`ruleset`] applies everything and collects the result; the agent passes the same values to the planner.

mod changed;
mod in_force;
mod index;
mod prefetch;
mod record;
mod record_changes;
mod shared;
mod source;
mod turns;
mod update;

pub use changed::{Changed, Group, fixed_nat_chains};
pub use in_force::{InForce, NoRules};
pub use index::{Compiled, SyncScope};
pub use record::Sums;
pub use shared::SharedContent;
pub use source::{PortCompiler, Source, View};

use std::collections::BTreeSet;
use std::convert::Infallible;

use crate::iptables::{Ruleset, Table};
use crate::model::{ServicePortName, Snapshot};
use crate::policy::Place;
use crate::rules::{Settings, fixed, names};

/// The whole ruleset of a node: what `iptables-save` shows on a node that has no other rules, jumps and
/// canaries included. The layout `auto` is decided by the number of endpoints alone.
pub fn ruleset(settings: &Settings, snapshot: &Snapshot, place: Place<'_>) -> Ruleset {
    ruleset_without(settings, snapshot, place, &BTreeSet::new())
}

/// As [`ruleset`], without the service ports in `excluded`.
pub fn ruleset_without(
    settings: &Settings,
    snapshot: &Snapshot,
    place: Place<'_>,
    excluded: &BTreeSet<ServicePortName>,
) -> Ruleset {
    let mut compiled = Compiled::default();
    compiled.set_turn_limit(usize::MAX);
    let source = Source { settings, view: View { snapshot, place } };
    let mut changed = compiled.apply(source, excluded, &NoRules);
    let mut ruleset = Ruleset::with_built_in_chains();
    for table in Table::ALL {
        ruleset.chain_mut(table, names::KUBE_PROXY_CANARY);
    }
    let (fixed, _) = changed.fixed_nat_chains(&NoRules);
    changed.filter_chains().into_iter().chain(fixed).for_each(|chain| ruleset.set_chain(chain));
    let Ok(()) = changed.each_group(|group| -> Result<(), Infallible> {
        group.chains.into_iter().for_each(|chain| ruleset.set_chain(chain));
        Ok(())
    });
    changed.shared_nat_chains().iter().for_each(|content| ruleset.set_chain(content.to_chain()));
    for jump in fixed::jumps() {
        ruleset.chain_mut(jump.table, jump.from).rules.insert(0, jump.rule);
    }
    ruleset
}
