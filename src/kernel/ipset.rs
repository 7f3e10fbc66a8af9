//! IP sets, which kube-proxy's ipvs mode makes and leaves: listed by name, destroyed.
#![allow(clippy::disallowed_methods, reason = "the world: looks at /sys, and waits for the kernel")]

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_core::NLM_F_DUMP;
use nix::errno::Errno;

use super::netlink::{Netfilter, Request, attribute};

/// `NFNL_SUBSYS_IPSET`.
const SUBSYSTEM: u8 = 6;
const DESTROY: u8 = 3;
const LIST: u8 = 7;
const PROTOCOL: u16 = 1;
const NAME: u16 = 2;
/// A number of 32 bits in network order (`NLA_F_NET_BYTEORDER`).
const FLAGS: u16 = 6 | 0x4000;
/// `IPSET_FLAG_LIST_SETNAME`: names only.
const NAMES_ONLY: u32 = 1 << 1;
/// The protocol's version, which every kernel since 2.6.39 takes.
const VERSION: u8 = 6;

/// `IPSET_ERR_BUSY`, a number of ip_set's own.
const REFERRED: i32 = 4100;

/// How long the kernel may take to let go of a set after the last rule that refers to it is gone.
const BUSY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// The names of the sets in this network namespace, sorted. Asking would load the module into a kernel
/// that has it not; such a kernel has no sets.
pub fn names() -> io::Result<Vec<String>> {
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(Vec::new());
    }
    let attributes = [attribute(PROTOCOL, &[VERSION]), attribute(FLAGS, &NAMES_ONLY.to_be_bytes())].concat();
    let request = Request {
        subsystem: SUBSYSTEM,
        message: LIST,
        family: 0,
        flags: NLM_F_DUMP,
        texts: &[],
        attributes: &attributes,
    };
    let mut names = Vec::new();
    Netfilter::open()?.ask(&request, &mut |message| names.extend(message.text(NAME).map(str::to_owned)))?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Destroys the set `name`; one that is gone is as good. The kernel refuses while a rule refers to it.
pub fn destroy(name: &str) -> io::Result<()> {
    let attributes = attribute(PROTOCOL, &[VERSION]);
    let texts = &[(NAME, name)];
    let request = Request {
        subsystem: SUBSYSTEM,
        message: DESTROY,
        family: 0,
        flags: 0,
        texts,
        attributes: &attributes,
    };
    let mut netfilter = Netfilter::open()?;
    let deadline = Instant::now() + BUSY;
    loop {
        let outcome = netfilter.ask(&request, &mut |_| {});
        match outcome.as_ref().err().and_then(io::Error::raw_os_error) {
            Some(REFERRED) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Some(REFERRED) => return Err(io::Error::new(io::ErrorKind::ResourceBusy, "a rule refers to it")),
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
    fn sets_are_listed_and_destroyed_and_one_in_use_is_refused() {
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
}
