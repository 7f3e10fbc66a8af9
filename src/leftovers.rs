//! What kube-proxy, in any of its modes, and Chainsmith have in the kernel of this node: found, and
//! removed. Needs no API server and no configuration.
//!
//! Rules of others stay as they are; so do `KUBE-FIREWALL`, in which the kubelet has rules, nfacct
//! counters, kernel parameters and conntrack's flows.

use std::fmt;
use std::io;

use tracing::debug;

use crate::iptables::Table;
use crate::kernel::iptables::{KernelIptables, Programs, has_legacy_table};
use crate::kernel::{Backend, Iptables, ipvs, nft};
use crate::net::IpFamily;
use crate::plan::Restore;
use crate::rules::remains::Remains;

/// The table of kube-proxy's nftables mode, in the families `ip` and `ip6`.
const NFT_TABLE: &str = "kube-proxy";

/// What takes IPVS's virtual servers away; done by hand, as not all of them need be kube-proxy's.
pub const IPVS_COMMAND: &str = "ipvsadm --clear && ipset destroy";

/// One thing that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Chains and jumps in a table of iptables.
    Rules {
        /// Of which back-end.
        backend: Backend,
        /// Of which family.
        family: IpFamily,
        /// What is there.
        remains: Remains,
    },
    /// The table of kube-proxy's nftables mode.
    NftTable(IpFamily),
    /// The dummy interface of kube-proxy's ipvs mode.
    IpvsDevice,
    /// Virtual servers of IPVS: how many.
    IpvsServers(usize),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Rules { backend, family, remains } => write!(
                f,
                "{family} {} of iptables-{}: {} chains, {} jumps to them",
                remains.table,
                backend.word(),
                remains.n_chains(),
                remains.jumps().len()
            ),
            Leftover::NftTable(family) => write!(f, "{family} nftables table {NFT_TABLE}"),
            Leftover::IpvsDevice => write!(f, "interface {} of ipvs mode", ipvs::DEVICE),
            Leftover::IpvsServers(n) => write!(f, "{n} virtual servers of IPVS"),
        }
    }
}

/// Something that could not be looked at or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble(pub String);

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything there is, in the order in which it is to be removed, and what could not be looked at.
pub fn find() -> (Vec<Leftover>, Vec<Trouble>) {
    let (mut found, mut troubles) = (Vec::new(), Vec::new());
    for backend in [Backend::Nft, Backend::Legacy] {
        for family in IpFamily::BOTH {
            let (rules, trouble) = find_rules(backend, family);
            found.extend(rules);
            troubles.extend(trouble);
        }
    }
    let (tables, trouble) = find_nft_tables();
    found.extend(tables);
    troubles.extend(trouble);
    found.extend(find_ipvs());
    (found, troubles)
}

/// The tables of kube-proxy's nftables mode.
pub fn find_nft_tables() -> (Vec<Leftover>, Vec<Trouble>) {
    let (mut found, mut troubles) = (Vec::new(), Vec::new());
    for family in IpFamily::BOTH {
        match nft::has_table(family, NFT_TABLE) {
            Ok(true) => found.push(Leftover::NftTable(family)),
            Ok(false) => {}
            Err(error) => troubles
                .push(Trouble(format!("cannot look for {family} nftables table {NFT_TABLE}: {error}"))),
        }
    }
    (found, troubles)
}

/// What ipvs mode left.
pub fn find_ipvs() -> Vec<Leftover> {
    let device = ipvs::has_device().then_some(Leftover::IpvsDevice);
    let servers = Some(ipvs::n_servers()).filter(|n| *n > 0).map(Leftover::IpvsServers);
    device.into_iter().chain(servers).collect()
}

/// What is in the tables of `backend` and `family`. A back-end whose programs are not installed has
/// nothing.
pub fn find_rules(backend: Backend, family: IpFamily) -> (Vec<Leftover>, Vec<Trouble>) {
    let (mut found, mut troubles) = (Vec::new(), Vec::new());
    let programs = Programs::new(family, Some(backend));
    let mut kernel = KernelIptables::new(family, backend, programs);
    for table in Table::ALL {
        if backend == Backend::Legacy && !has_legacy_table(family, table) {
            continue;
        }
        let mut remains = Remains::new(table);
        match kernel.save(table, &mut |line| remains.line(line)) {
            Ok(()) if remains.is_empty() => {}
            Ok(()) => found.push(Leftover::Rules { backend, family, remains }),
            Err(error) if is_not_installed(&error) => {
                debug!(program = programs.save, "not installed");
                break;
            }
            Err(error) => {
                troubles.push(Trouble(format!(
                    "cannot look at {family} {table} of iptables-{}: {error:#}",
                    backend.word()
                )));
            }
        }
    }
    (found, troubles)
}

fn is_not_installed(error: &anyhow::Error) -> bool {
    error
        .root_cause()
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Removes `leftover`; what of it is left, and why.
pub fn remove(leftover: &Leftover) -> Vec<Trouble> {
    let cannot = |error: &dyn fmt::Display| vec![Trouble(format!("cannot remove {leftover}: {error}"))];
    match leftover {
        Leftover::Rules { backend, family, remains } => {
            let mut kernel = KernelIptables::new(*family, *backend, Programs::new(*family, Some(*backend)));
            let mut each = |input: &str| {
                kernel.begin();
                kernel.write(input);
                kernel.end()
            };
            if let Err(error) = remains.removal(backend.limits().max_names, &mut each) {
                return cannot(&error);
            }
            let held = remains.held().map(|(chain, n)| {
                Trouble(format!(
                    "{family} {} of iptables-{}: {chain} is empty now, but stays: {n} rules of others lead to it",
                    remains.table,
                    backend.word()
                ))
            });
            held.collect()
        }
        Leftover::NftTable(family) => match nft::delete_table(*family, NFT_TABLE) {
            Ok(()) => Vec::new(),
            Err(error) => cannot(&error),
        },
        Leftover::IpvsDevice => match ipvs::delete_device() {
            Ok(()) => Vec::new(),
            Err(error) => cannot(&error),
        },
        Leftover::IpvsServers(_) => {
            vec![Trouble(format!("{leftover} are left; if nobody else uses IPVS here: {IPVS_COMMAND}"))]
        }
    }
}
