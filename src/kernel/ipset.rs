//! IP sets, which kube-proxy's ipvs mode leaves behind: lists their names, reads ports in them, destroys
//! them.
#![allow(clippy::disallowed_methods, reason = "reads /sys, and waits for the kernel")]

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_DUMP;
use nix::errno::Errno;

use super::netlink::{Netfilter, NetfilterRequest, attribute};

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u8 = 6;
const DESTROY: u8 = 3;
const LIST: u8 = 7;
const PROTOCOL: u16 = 1;
const NAME: u16 = 2;
/// `IPSET_ATTR_ADT`: the entries, each in an attribute `IPSET_ATTR_DATA`.
const ENTRIES: u16 = 8;
const ENTRY: u16 = 7;
/// `IPSET_ATTR_PORT` of an entry.
const PORT: u16 = 4;
/// A 32-bit number in network order (`NLA_F_NET_BYTEORDER`).
const FLAGS: u16 = 6 | 0x4000;
/// `IPSET_FLAG_LIST_SETNAME`: names only.
const NAMES_ONLY: u32 = 1 << 1;
/// The protocol's version, which every kernel since 2.6.39 supports.
const VERSION: u8 = 6;

/// `IPSET_ERR_BUSY`, an error number of ip_set.
const REFERENCED: i32 = 4100;

/// How long the kernel may keep a set after the last rule that refers to it is deleted.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// The names of the sets in this network namespace, sorted. A kernel without the module has no sets; it is
/// checked first, since a request would load the module.
pub fn names() -> io::Result<Vec<String>> {
    if !is_loaded(Path::new("/sys/module"))? {
        return Ok(Vec::new());
    }
    let attributes = [attribute(PROTOCOL, &[VERSION]), attribute(FLAGS, &NAMES_ONLY.to_be_bytes())].concat();
    let request = NetfilterRequest {
        flags: NLM_F_DUMP,
        attributes: &attributes,
        ..NetfilterRequest::new(SUBSYSTEM, LIST, 0)
    };
    let mut names = Vec::new();
    Netfilter::open()?
        .request(&request, &mut |message| names.extend(message.text(NAME).map(str::to_owned)))?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether `modules` contains the ip_set module.
fn is_loaded(modules: &Path) -> io::Result<bool> {
    // Without sysfs the answer is unknown.
    modules.metadata()?;
    modules.join("ip_set").try_exists()
}

/// The ports in the set `name`, of type `bitmap:port` or `hash:ip,port`; sorted, without duplicates. Empty
/// when there is no such set.
pub fn ports(name: &str) -> io::Result<Vec<u16>> {
    if !names()?.iter().any(|known| known == name) {
        return Ok(Vec::new());
    }
    let attributes = attribute(PROTOCOL, &[VERSION]);
    let request = NetfilterRequest {
        flags: NLM_F_DUMP,
        texts: &[(NAME, name)],
        attributes: &attributes,
        ..NetfilterRequest::new(SUBSYSTEM, LIST, 0)
    };
    let mut ports = Vec::new();
    Netfilter::open()?.request(&request, &mut |message| {
        let entries = message.all_inner(ENTRIES).flat_map(|entries| entries.all_inner(ENTRY));
        ports.extend(entries.filter_map(|entry| entry.u16(PORT)));
    })?;
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

/// Destroys the set `name`; succeeds if it does not exist. Fails while a rule refers to it.
pub fn destroy(name: &str) -> io::Result<()> {
    let attributes = attribute(PROTOCOL, &[VERSION]);
    let texts = &[(NAME, name)];
    let request =
        NetfilterRequest { texts, attributes: &attributes, ..NetfilterRequest::new(SUBSYSTEM, DESTROY, 0) };
    let mut netfilter = Netfilter::open()?;
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        let outcome = netfilter.request(&request, &mut |_| {});
        match outcome.as_ref().err().and_then(io::Error::raw_os_error) {
            Some(REFERENCED) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Some(REFERENCED) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a rule refers to it"));
            }
            Some(code) if code == Errno::ENOENT as i32 => return Ok(()),
            _ => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::netlink::in_new_namespace;
    use super::*;

    fn run(command: &str) {
        assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    }

    #[test]
    fn sets_are_listed_and_destroyed_and_one_in_use_is_an_error() {
        in_new_namespace(|| {
            assert_eq!(names().unwrap(), [] as [&str; 0]);
            run(
                "ipset create KUBE-LOOP-BACK hash:ip,port,ip && ipset create mine hash:ip && ipset add mine 10.0.0.1",
            );
            run("ipset create KUBE-6-CLUSTER-IP hash:ip,port family inet6");
            assert_eq!(names().unwrap(), ["KUBE-6-CLUSTER-IP", "KUBE-LOOP-BACK", "mine"]);
            run("iptables-nft -A INPUT -m set --match-set mine src -j ACCEPT");
            assert_eq!(destroy("mine").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            destroy("KUBE-LOOP-BACK").unwrap();
            destroy("KUBE-LOOP-BACK").unwrap();
            assert_eq!(names().unwrap(), ["KUBE-6-CLUSTER-IP", "mine"]);
        });
    }

    #[test]
    fn without_sysfs_the_sets_are_unknown() {
        let modules = tempfile::tempdir().unwrap();
        assert!(!is_loaded(modules.path()).unwrap());
        std::fs::create_dir(modules.path().join("ip_set")).unwrap();
        assert!(is_loaded(modules.path()).unwrap());
        assert!(is_loaded(&modules.path().join("none")).is_err());
    }

    #[test]
    fn ports_are_read_from_sets_of_each_type() {
        in_new_namespace(|| {
            run("ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535");
            run("ipset create KUBE-NODE-PORT-SCTP-HASH hash:ip,port");
            assert_eq!(ports("KUBE-NODE-PORT-TCP").unwrap(), [] as [u16; 0]);
            for entry in [
                "KUBE-NODE-PORT-TCP 32767",
                "KUBE-NODE-PORT-TCP 30080",
                "KUBE-NODE-PORT-SCTP-HASH 192.0.2.7,sctp:30100",
                "KUBE-NODE-PORT-SCTP-HASH 192.0.2.8,sctp:30100",
            ] {
                run(&format!("ipset add {entry}"));
            }
            assert_eq!(ports("KUBE-NODE-PORT-TCP").unwrap(), [30080, 32767]);
            assert_eq!(ports("KUBE-NODE-PORT-SCTP-HASH").unwrap(), [30100]);
            assert_eq!(ports("KUBE-NODE-PORT-UDP").unwrap(), [] as [u16; 0]);
            // More than one datagram.
            run("seq -f 'add KUBE-NODE-PORT-TCP %.0f' 1 60000 | ipset -exist restore");
            assert_eq!(ports("KUBE-NODE-PORT-TCP").unwrap(), (1..=60000).collect::<Vec<u16>>());
        });
    }
}
