//! Reads the rules in force and the state of this node; writes nothing, and makes no table of the legacy back-end by
//! looking at it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

use crate::agent;
use crate::cli::source;
use crate::config::{BackendChoice, Config};
use crate::inspect::findings::NodeState;
use crate::inspect::{HostView, RulesOrigin, Subject};
use crate::iptables::{Ruleset, Table, parse};
use crate::kernel::programs::{self, KernelIptables, Programs};
use crate::kernel::sysctl::Sysctls;
use crate::kernel::{Backend, Iptables, addrs, nft};
use crate::leftovers::{self, Leftover};
use crate::net::{IpFamily, PerFamily};
use crate::rules::names;

/// How often the tables are read again when another process writes meanwhile.
const ATTEMPTS: usize = 3;

/// What was read of this node.
pub struct NodeInForce {
    /// The rules in force and the host.
    pub subject: Subject,
    /// The back-end of each family that was read.
    pub backends: PerFamily<Option<&'static str>>,
    /// What else is known.
    pub state: NodeState,
    /// Why a part could not be read, one line each.
    pub unknown: Vec<String>,
}

/// Reads the rules of `families` and the state of the node. An error is one that leaves nothing to compare.
pub fn read(config: &Config, families: &[IpFamily]) -> anyhow::Result<NodeInForce> {
    let mut unknown = Vec::new();
    let host = source::live_host()?;
    let backend = backend(config, families);
    let mut rulesets = PerFamily::default();
    let mut backends = PerFamily::default();
    for family in families {
        // A machine without IPv6 has no such tables.
        if *family == IpFamily::V6 && programs::is_ipv6_disabled(Path::new("/proc")) {
            continue;
        }
        match rules(*family, backend) {
            Ok(ruleset) => {
                *rulesets.get_mut(*family) = Some(ruleset);
                *backends.get_mut(*family) = Some(backend.as_str());
            }
            Err(error) => unknown.push(format!("cannot read the {family} rules in force: {error:#}")),
        }
    }
    let state = state(config, backend, families, &mut unknown);
    let subject = Subject { rulesets, origin: RulesOrigin::Live, cluster: None, host };
    Ok(NodeInForce { subject, backends, state, unknown })
}

/// The back-end to compare: the configured one, else the one that holds Services' rules, else the one that the kubelet
/// marks, else nft.
fn backend(config: &Config, families: &[IpFamily]) -> Backend {
    match config.backend {
        BackendChoice::Nft => return Backend::Nft,
        BackendChoice::Legacy => return Backend::Legacy,
        BackendChoice::Auto => {}
    }
    let has_rules = |backend: &Backend| families.iter().any(|family| has_services(*family, *backend));
    let marked = || programs::detect_backend(&[names::KUBE_IPTABLES_HINT, names::KUBE_KUBELET_CANARY]);
    [Backend::Nft, Backend::Legacy].into_iter().find(has_rules).or_else(marked).unwrap_or(Backend::Nft)
}

/// Whether nat has the chain in which Services' rules begin.
fn has_services(family: IpFamily, backend: Backend) -> bool {
    let table = Table::Nat;
    match backend {
        Backend::Nft => {
            nft::has_chain(family, table.as_str(), names::KUBE_SERVICES.as_str()).unwrap_or(false)
        }
        Backend::Legacy if !programs::has_legacy_table(family, table) => false,
        Backend::Legacy => {
            let mut is_there = false;
            let mut kernel = kernel(family, backend);
            let each = &mut |name: &str| is_there |= name == names::KUBE_SERVICES.as_str();
            kernel.chain_names(table, each).is_ok() && is_there
        }
    }
}

fn kernel(family: IpFamily, backend: Backend) -> KernelIptables {
    KernelIptables::new(family, backend, Programs::new(family, Some(backend)))
}

/// The rules of `family`, all of one moment where the back-end tells that.
fn rules(family: IpFamily, backend: Backend) -> anyhow::Result<Ruleset> {
    let mut kernel = kernel(family, backend);
    for _ in 1..ATTEMPTS {
        let before = kernel.generation()?;
        let ruleset = tables(&mut kernel)?;
        if kernel.generation()? == before {
            return Ok(ruleset);
        }
    }
    tables(&mut kernel)
}

fn tables(kernel: &mut KernelIptables) -> anyhow::Result<Ruleset> {
    let mut parser = parse::SaveParser::new(kernel.family());
    for table in Table::ALL {
        if kernel.backend() == Backend::Legacy && !programs::has_legacy_table(kernel.family(), table) {
            continue;
        }
        let mut outcome = Ok(());
        let saved = kernel.save(table, &mut |line| {
            if outcome.is_ok() {
                outcome = parser.line(line);
            }
        });
        saved.with_context(|| format!("table {table}"))?;
        outcome.with_context(|| format!("table {table}"))?;
    }
    Ok(parser.finish())
}

fn state(config: &Config, backend: Backend, families: &[IpFamily], unknown: &mut Vec<String>) -> NodeState {
    let sysctls = Sysctls::of_kernel();
    let conntrack = NodeState::desired_conntrack(&config.conntrack, agent::n_online_cpus());
    let keys = NodeState::SYSCTLS.iter().copied().chain(conntrack.keys().map(String::as_str));
    let values: BTreeMap<String, i64> =
        keys.filter_map(|key| Some((key.to_owned(), sysctls.get(key).ok()?))).collect();
    let mut failed = |what: &str, error: String| unknown.push(format!("cannot {what}: {error}"));
    let bridges = addrs::bridges().unwrap_or_else(|error| {
        failed("list bridges", error.to_string());
        Vec::new()
    });
    // Those of other network namespaces cannot be told without the right to see their processes: none is found then.
    let proxies = agent::conflicting_proxies().unwrap_or_else(|error| {
        failed("list processes", error.to_string());
        Vec::new()
    });
    let (other_backend, problems) = other_backend(backend, families);
    problems.into_iter().for_each(|problem| failed("read the other back-end", problem));
    let (mut leftovers, mut problems) = leftovers::find_nft_tables();
    let (ipvs, more) = leftovers::find_ipvs();
    leftovers.extend(ipvs.into_iter().filter(Leftover::is_removable));
    problems.extend(more);
    problems.into_iter().for_each(|problem| failed("look for leftovers", problem.to_string()));
    let leftovers =
        leftovers.iter().map(|leftover| (leftover.to_string(), leftover.manual_removal())).collect();
    NodeState { sysctls: values, conntrack, bridges, other_backend, leftovers, proxies }
}

/// Tables of the other back-end that lead packets to chains of kube-proxy or Chainsmith.
fn other_backend(backend: Backend, families: &[IpFamily]) -> (Vec<String>, Vec<String>) {
    let other = match backend {
        Backend::Nft => Backend::Legacy,
        Backend::Legacy => Backend::Nft,
    };
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for family in families {
        let (leftovers, failures) = leftovers::find_rules(other, *family);
        found.extend(leftovers.iter().filter(|leftover| is_in_force(leftover)).map(ToString::to_string));
        problems.extend(failures.iter().map(ToString::to_string));
    }
    (found, problems)
}

fn is_in_force(leftover: &Leftover) -> bool {
    matches!(leftover, Leftover::Rules { chains, .. } if !chains.jumps().is_empty())
}

/// The host that the desired rules are made for: this one.
pub fn host(view: &HostView) -> crate::model::host::Host {
    let liberal = Sysctls::of_kernel().get::<i64>("net/netfilter/nf_conntrack_tcp_be_liberal");
    let kernel = crate::model::host::Kernel {
        tcp_be_liberal: liberal.is_ok_and(|value| value != 0),
        ..Default::default()
    };
    crate::model::host::Host { addresses: view.addresses.iter().copied().collect(), kernel }
}
