//! Finds and removes the rules, sets and virtual servers of kube-proxy (any mode) and Chainsmith in the
//! kernel of this node. Needs no API server and no configuration.
//!
//! Foreign rules stay as they are; so do `KUBE-FIREWALL`, in which the kubelet has rules, foreign virtual
//! servers of IPVS, nfacct counters, sysctls and conntrack entries.

mod chains;
mod ipvs_mode;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use crate::iptables::{ChainName, Table};
use crate::kernel::ipvs::{self, KernelIpvs, VirtualServer};
use crate::kernel::programs::{KernelIptables, Programs, has_legacy_table};
use crate::kernel::{Backend, Iptables, ipset, nft};
use crate::log::v;
use crate::net::IpFamily;
use crate::plan::Restore;

pub use chains::LeftoverChains;

/// The table of kube-proxy's nftables mode, in the families `ip` and `ip6`.
const NFT_TABLE: &str = "kube-proxy";

/// How to remove virtual servers by hand: not all of them need be kube-proxy's.
const IPVS_ADVICE: &str = "remove each of kube-proxy's (`ipvsadm -l -n` lists all) with `ipvsadm -D -t ADDRESS:PORT` \
(-u for UDP); only if nothing else on this node uses IPVS, `ipvsadm --clear` removes all";

/// Something in the kernel that kube-proxy or Chainsmith made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Chains and jumps in a table of iptables.
    Rules {
        /// The back-end.
        backend: Backend,
        /// The family.
        family: IpFamily,
        /// The chains and jumps.
        chains: LeftoverChains,
    },
    /// The table of kube-proxy's nftables mode.
    NftTable(IpFamily),
    /// The dummy interface of kube-proxy's ipvs mode.
    IpvsDevice,
    /// The sets of kube-proxy's ipvs mode, by name.
    IpSets(Vec<String>),
    /// The virtual servers of kube-proxy's ipvs mode.
    IpvsServers(Vec<VirtualServer>),
    /// Virtual servers of IPVS that are not known to be kube-proxy's. They are never removed.
    ForeignServers(Vec<VirtualServer>),
}

impl Leftover {
    /// How to remove it by hand, where a standard command removes it and nothing else.
    pub fn manual_removal(&self) -> Option<String> {
        let command = match self {
            Leftover::Rules { .. } => return None,
            Leftover::NftTable(IpFamily::V4) => "nft delete table ip kube-proxy",
            Leftover::NftTable(IpFamily::V6) => "nft delete table ip6 kube-proxy",
            Leftover::IpvsDevice => "ip link delete kube-ipvs0",
            Leftover::IpSets(names) => {
                return Some(format!("for set in {}; do ipset destroy $set; done", names.join(" ")));
            }
            Leftover::IpvsServers(_) | Leftover::ForeignServers(_) => IPVS_ADVICE,
        };
        Some(command.to_owned())
    }

    /// Whether it identifies kube-proxy's virtual servers, and so is removed after them.
    pub fn identifies_servers(&self) -> bool {
        matches!(self, Leftover::IpvsDevice | Leftover::IpSets(_))
    }

    /// Whether [`remove`] removes it.
    pub fn is_removable(&self) -> bool {
        !matches!(self, Leftover::ForeignServers(_))
    }

    /// Its parts, one a line, where the text of [`Leftover`] only counts them.
    pub fn parts(&self) -> Vec<String> {
        match self {
            Leftover::IpvsServers(servers) => servers.iter().map(VirtualServer::to_string).collect(),
            Leftover::IpSets(names) => names.clone(),
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Rules { backend, family, chains } => write!(
                f,
                "{family} {} of iptables-{}: {} chains, {} jumps to them",
                chains.table,
                backend.as_str(),
                chains.n_chains(),
                chains.jumps().len()
            ),
            Leftover::NftTable(family) => write!(f, "{family} nftables table {NFT_TABLE}"),
            Leftover::IpvsDevice => write!(f, "interface {} of ipvs mode", ipvs::DEVICE),
            Leftover::IpSets(names) => write!(f, "{} ipsets of ipvs mode", names.len()),
            Leftover::IpvsServers(servers) => write!(f, "{} virtual servers of ipvs mode", servers.len()),
            Leftover::ForeignServers(servers) => ipvs_mode::write_foreign(f, servers),
        }
    }
}

/// Why a leftover could not be read or removed, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftoverProblem(pub String);

impl fmt::Display for LeftoverProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Finds all leftovers, in the order in which they are to be removed.
pub fn find() -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in IpFamily::BOTH {
            let (rules, problem) = find_rules(backend, family);
            found.extend(rules);
            problems.extend(problem);
        }
    }
    let (tables, problem) = find_nft_tables();
    found.extend(tables);
    problems.extend(problem);
    // Servers before the sets and the interface that identify them; sets after the rules that refer to them.
    let servers = ipvs_mode::find_servers(&mut KernelIpvs);
    let mut identifying = Vec::new();
    match ipset::names() {
        Ok(mut names) => {
            names.retain(|name| ipvs_mode::is_set(name));
            identifying.extend((!names.is_empty()).then_some(Leftover::IpSets(names)));
        }
        Err(error) => problems.push(LeftoverProblem(format!("cannot list ipsets: {error}"))),
    }
    let (device, problem) = find_device();
    identifying.extend(device);
    problems.extend(problem);
    let (of_ipvs_mode, problem) = ipvs_mode::with_identifying(servers, identifying);
    found.extend(of_ipvs_mode);
    problems.extend(problem);
    (found, problems)
}

/// Reports that `leftover` stays for now, as it identifies virtual servers that are still there.
pub fn kept_for_servers(leftover: &Leftover) -> LeftoverProblem {
    LeftoverProblem(format!(
        "{leftover} stays until the virtual servers are removed: it identifies kube-proxy's"
    ))
}

/// Finds the tables of kube-proxy's nftables mode.
pub fn find_nft_tables() -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for family in IpFamily::BOTH {
        match nft::has_table(family, NFT_TABLE) {
            Ok(true) => found.push(Leftover::NftTable(family)),
            Ok(false) => {}
            Err(error) => problems.push(LeftoverProblem(format!(
                "cannot look up {family} nftables table {NFT_TABLE}: {error}"
            ))),
        }
    }
    (found, problems)
}

/// Finds the parts of ipvs mode that may still serve: virtual servers, also foreign ones, and the interface.
pub fn find_ipvs() -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut problems) = ipvs_mode::find_servers(&mut KernelIpvs);
    let (device, problem) = find_device();
    found.extend(device);
    problems.extend(problem);
    (found, problems)
}

fn find_device() -> (Option<Leftover>, Option<LeftoverProblem>) {
    match ipvs::has_device() {
        Ok(is_there) => (is_there.then_some(Leftover::IpvsDevice), None),
        Err(error) => {
            (None, Some(LeftoverProblem(format!("cannot look up interface {}: {error}", ipvs::DEVICE))))
        }
    }
}

/// Finds chains in the tables of `backend` and `family`; none for a back-end whose programs are not
/// installed.
pub fn find_rules(backend: Backend, family: IpFamily) -> (Vec<Leftover>, Vec<LeftoverProblem>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    let programs = Programs::new(family, Some(backend));
    let mut kernel = KernelIptables::new(family, backend, programs);
    for table in Table::ALL {
        if backend == Backend::Legacy && !has_legacy_table(family, table) {
            continue;
        }
        let mut chains = LeftoverChains::new(family, table);
        match kernel.save(table, &mut |line| chains.read_line(line)) {
            Ok(()) if chains.is_empty() => {}
            Ok(()) => found.push(Leftover::Rules { backend, family, chains }),
            Err(error) if is_not_installed(&error) => {
                v!(3, program = programs.save, "not installed");
                break;
            }
            Err(error) => {
                problems.push(LeftoverProblem(format!(
                    "cannot read {family} {table} of iptables-{}: {error:#}",
                    backend.as_str()
                )));
            }
        }
    }
    (found, problems)
}

fn is_not_installed(error: &anyhow::Error) -> bool {
    error
        .root_cause()
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The chains of `leftover` that are flushed, not deleted, as foreign rules refer to them: a sentence for
/// each.
pub fn referenced(leftover: &Leftover) -> Vec<String> {
    let Leftover::Rules { backend, family, chains } = leftover else { return Vec::new() };
    let sentence = |(chain, from): (&ChainName, &BTreeSet<ChainName>)| {
        let from: Vec<&str> = from.iter().map(ChainName::as_str).collect();
        format!(
            "{family} {} of iptables-{}: {chain} is flushed, not deleted: foreign rules refer to it, in {}",
            chains.table,
            backend.as_str(),
            from.join(", ")
        )
    };
    chains.referenced().map(sentence).collect()
}

/// Removes `leftover`; [`referenced`] chains are flushed.
pub fn remove(leftover: &Leftover) -> Vec<LeftoverProblem> {
    let cannot =
        |error: &dyn fmt::Display| vec![LeftoverProblem(format!("cannot remove {leftover}: {error}"))];
    match leftover {
        Leftover::Rules { backend, family, chains } => {
            let mut kernel = KernelIptables::new(*family, *backend, Programs::new(*family, Some(*backend)));
            let mut each = |input: &str| {
                kernel.begin();
                kernel.write(input);
                kernel.end()
            };
            match chains.remove(backend.limits().max_names, &mut each) {
                Ok(()) => Vec::new(),
                Err(error) => cannot(&error),
            }
        }
        Leftover::NftTable(family) => match nft::delete_table(*family, NFT_TABLE) {
            Ok(()) => Vec::new(),
            Err(error) => cannot(&error),
        },
        Leftover::IpvsDevice => match ipvs::delete_device() {
            Ok(()) => Vec::new(),
            Err(error) => cannot(&error),
        },
        Leftover::IpSets(names) => {
            let destroyed = names.iter().map(|name| (name, ipset::destroy(name)));
            let failed = destroyed.filter_map(|(name, outcome)| Some((name, outcome.err()?)));
            failed
                .map(|(name, error)| LeftoverProblem(format!("cannot destroy ipset {name}: {error}")))
                .collect()
        }
        Leftover::IpvsServers(servers) => ipvs_mode::remove_servers(&mut KernelIpvs, servers),
        Leftover::ForeignServers(_) => vec![LeftoverProblem(format!("{leftover} stay: {IPVS_ADVICE}"))],
    }
}
