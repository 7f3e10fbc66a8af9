//! Named packet counters of the kernel (`nfnetlink_acct`), which rules refer to by `-m nfacct`.
//!
//! They belong to the network namespace, are shared by both families, and are never removed.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;

use super::netlink::{Netfilter, NetfilterRequest};

/// `NFNL_SUBSYS_ACCT`.
const SUBSYSTEM: u8 = 7;
const NEW: u8 = 0;
const GET: u8 = 1;
const NAME: u16 = 1;
const PACKETS: u16 = 2;

/// Whether the kernel supports such counters and permits access: a request for one must either succeed or
/// fail with "no such counter". Source: kube-proxy v1.36, `pkg/proxy/util/nfacct`.
pub fn is_supported() -> bool {
    match packets("IMayExist") {
        Ok(_) => true,
        Err(error) => error.raw_os_error() == Some(Errno::ENOENT as i32),
    }
}

/// Why a counter may not exist.
#[derive(Debug, thiserror::Error)]
pub enum EnsureCounterError {
    /// The request failed, so it is unknown whether the counter exists; nothing changed.
    #[error("cannot check for the counter: {0}")]
    Unknown(io::Error),
    /// The counter does not exist and cannot be created.
    #[error("cannot create the counter: {0}")]
    Absent(io::Error),
}

/// Creates the counter `name` unless it exists; an existing one keeps its counts.
pub fn ensure(name: &str) -> Result<(), EnsureCounterError> {
    match packets(name) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
        found => return found.map(drop).map_err(EnsureCounterError::Unknown),
    }
    match request(name, NEW, NLM_F_CREATE | NLM_F_EXCL) {
        // Another process created it first.
        Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
        created => created.map(drop).map_err(EnsureCounterError::Absent),
    }
}

/// The packet count of the counter `name`.
pub fn packets(name: &str) -> io::Result<u64> {
    request(name, GET, 0)?.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn request(name: &str, message: u8, flags: u16) -> io::Result<Option<u64>> {
    // NFACCT_NAME_MAX with the NUL; the kernel would truncate a longer name.
    if name.is_empty() || name.len() > 31 || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let texts = &[(NAME, name)];
    let request = NetfilterRequest { flags, texts, ..NetfilterRequest::new(SUBSYSTEM, message, 0) };
    let mut packets = None;
    Netfilter::open()?.request(&request, &mut |message| packets = message.u64(PACKETS))?;
    Ok(packets)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "the test counts with iptables")]

    use std::process::Command;

    use super::super::netlink::in_new_namespace;
    use super::*;

    fn run(command: &str) {
        let status = Command::new("sh").args(["-c", command]).status().unwrap();
        assert!(status.success(), "{command}");
    }

    #[test]
    fn a_counter_is_created_once_and_keeps_its_counts() {
        in_new_namespace(|| {
            assert!(is_supported(), "the kernel of this machine has nfnetlink_acct");
            let name = "localhost_nps_accepted_pkts";
            assert_eq!(packets(name).unwrap_err().raw_os_error(), Some(Errno::ENOENT as i32));
            ensure(name).unwrap();
            assert_eq!(packets(name).unwrap(), 0);
            run("ip link set lo up");
            run(&format!("iptables -w 5 -A OUTPUT -p udp -m nfacct --nfacct-name {name}"));
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            }
            ensure(name).unwrap();
            assert_eq!(packets(name).unwrap(), 3);
        });
    }

    #[test]
    fn counters_belong_to_the_namespace() {
        in_new_namespace(|| ensure("ours").unwrap());
        in_new_namespace(|| assert!(packets("ours").is_err()));
    }

    #[test]
    fn names_that_the_kernel_would_truncate_are_an_error() {
        in_new_namespace(|| {
            for name in ["", "a\0b", &"x".repeat(32)] {
                let error = ensure(name).unwrap_err();
                assert!(
                    matches!(&error, EnsureCounterError::Unknown(error) if error.kind() == io::ErrorKind::InvalidInput),
                    "{error}"
                );
            }
            ensure(&"x".repeat(31)).unwrap();
        });
    }
}
