//! What kube-proxy, in any of its modes, and Chainsmith have in the kernel of this node: found, and
//! removed. Needs no API server and no configuration.
//!
//! Rules of others stay as they are; so do `KUBE-FIREWALL`, in which the kubelet has rules, others' virtual
//! servers of IPVS, nfacct counters, kernel parameters and conntrack's flows.

mod ipvs_mode;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use tracing::debug;

use crate::iptables::{ChainName, Table};
use crate::kernel::ipvs::{self, KernelIpvs, VirtualServer};
use crate::kernel::programs::{KernelIptables, Programs, has_legacy_table};
use crate::kernel::{Backend, Iptables, ipset, nft};
use crate::net::IpFamily;
use crate::plan::Restore;
use crate::rules::remains::Remains;

/// The table of kube-proxy's nftables mode, in the families `ip` and `ip6`.
const NFT_TABLE: &str = "kube-proxy";

/// What takes IPVS's virtual servers away by hand, as not all of them need be kube-proxy's.
const IPVS_ADVICE: &str = "remove each of kube-proxy's (`ipvsadm -l -n` lists all) with `ipvsadm -D -t ADDRESS:PORT` \
(-u for UDP); only if nothing else on this node uses IPVS, `ipvsadm --clear` removes all";

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
    /// The sets of kube-proxy's ipvs mode, by name.
    IpSets(Vec<String>),
    /// The virtual servers of kube-proxy's ipvs mode.
    IpvsServers(Vec<VirtualServer>),
    /// Virtual servers of IPVS that are not known to be kube-proxy's. They are never removed.
    OtherServers(Vec<VirtualServer>),
}

impl Leftover {
    /// How to remove it by hand, where a command of others does that and nothing else.
    pub fn by_hand(&self) -> Option<String> {
        let command = match self {
            Leftover::Rules { .. } => return None,
            Leftover::NftTable(IpFamily::V4) => "nft delete table ip kube-proxy",
            Leftover::NftTable(IpFamily::V6) => "nft delete table ip6 kube-proxy",
            Leftover::IpvsDevice => "ip link delete kube-ipvs0",
            Leftover::IpSets(names) => {
                return Some(format!("for set in {}; do ipset destroy $set; done", names.join(" ")));
            }
            Leftover::IpvsServers(_) | Leftover::OtherServers(_) => IPVS_ADVICE,
        };
        Some(command.to_owned())
    }

    /// Whether it tells which virtual servers are kube-proxy's, and so has to outlive them.
    pub fn is_witness(&self) -> bool {
        matches!(self, Leftover::IpvsDevice | Leftover::IpSets(_))
    }

    /// Whether [`remove`] removes it.
    pub fn is_removable(&self) -> bool {
        !matches!(self, Leftover::OtherServers(_))
    }

    /// What it consists of, where [`Leftover`]'s own text only counts it and each is worth a line.
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
            Leftover::Rules { backend, family, remains } => write!(
                f,
                "{family} {} of iptables-{}: {} chains, {} jumps to them",
                remains.table,
                backend.as_str(),
                remains.n_chains(),
                remains.jumps().len()
            ),
            Leftover::NftTable(family) => write!(f, "{family} nftables table {NFT_TABLE}"),
            Leftover::IpvsDevice => write!(f, "interface {} of ipvs mode", ipvs::DEVICE),
            Leftover::IpSets(names) => write!(f, "{} ipsets of ipvs mode", names.len()),
            Leftover::IpvsServers(servers) => write!(f, "{} virtual servers of ipvs mode", servers.len()),
            Leftover::OtherServers(servers) => ipvs_mode::write_others(f, servers),
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
    // Before the sets and the interface, which tell whose they are.
    let servers = ipvs_mode::find_servers(&mut KernelIpvs);
    // After the rules that refer to them.
    let mut witnesses = Vec::new();
    match ipset::names() {
        Ok(mut names) => {
            names.retain(|name| ipvs_mode::is_set(name));
            witnesses.extend((!names.is_empty()).then_some(Leftover::IpSets(names)));
        }
        Err(error) => troubles.push(Trouble(format!("cannot look for ipsets: {error}"))),
    }
    let (device, trouble) = find_device();
    witnesses.extend(device);
    troubles.extend(trouble);
    let (of_ipvs_mode, trouble) = ipvs_mode::with_witnesses(servers, witnesses);
    found.extend(of_ipvs_mode);
    troubles.extend(trouble);
    (found, troubles)
}

/// Why `leftover` stays for this time, as it tells whose virtual servers are.
pub fn kept_as_witness(leftover: &Leftover) -> Trouble {
    Trouble(format!("{leftover} stays until the virtual servers are gone: it tells which are kube-proxy's"))
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

/// What of ipvs mode may still serve: virtual servers, others' too, and the interface.
pub fn find_ipvs() -> (Vec<Leftover>, Vec<Trouble>) {
    let (mut found, mut troubles) = ipvs_mode::find_servers(&mut KernelIpvs);
    let (device, trouble) = find_device();
    found.extend(device);
    troubles.extend(trouble);
    (found, troubles)
}

fn find_device() -> (Option<Leftover>, Option<Trouble>) {
    match ipvs::has_device() {
        Ok(is_there) => (is_there.then_some(Leftover::IpvsDevice), None),
        Err(error) => (None, Some(Trouble(format!("cannot look for interface {}: {error}", ipvs::DEVICE)))),
    }
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
        let mut remains = Remains::new(family, table);
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
                    backend.as_str()
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

/// What of `leftover` stays when it is removed, as others hold it, and who they are.
pub fn held(leftover: &Leftover) -> Vec<String> {
    let Leftover::Rules { backend, family, remains } = leftover else { return Vec::new() };
    let sentence = |(chain, from): (&ChainName, &BTreeSet<String>)| {
        let from: Vec<&str> = from.iter().map(String::as_str).collect();
        format!(
            "{family} {} of iptables-{}: {chain} is emptied, but stays: rules of others lead to it, in {}",
            remains.table,
            backend.as_str(),
            from.join(", ")
        )
    };
    remains.held().map(sentence).collect()
}

/// Removes `leftover`, except for what is [`held`]; why that does not go.
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
            match remains.removal(backend.limits().max_names, &mut each) {
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
            failed.map(|(name, error)| Trouble(format!("cannot destroy ipset {name}: {error}"))).collect()
        }
        Leftover::IpvsServers(servers) => ipvs_mode::remove_servers(&mut KernelIpvs, servers),
        Leftover::OtherServers(_) => vec![Trouble(format!("{leftover} stay: {IPVS_ADVICE}"))],
    }
}
