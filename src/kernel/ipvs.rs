//! What kube-proxy's ipvs mode left: its dummy interface, on which every Service address is this
//! node's, and virtual servers in the kernel.
#![allow(clippy::disallowed_methods, reason = "the world: reads /proc/net/ip_vs")]

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::netlink::Conversation;

/// The interface.
pub const DEVICE: &str = "kube-ipvs0";

/// `RTM_DELLINK`.
const DELETE_LINK: u16 = 17;

/// Whether the interface is there.
pub fn has_device() -> bool {
    nix::net::if_::if_nametoindex(DEVICE).is_ok()
}

/// How many virtual servers the kernel has in this network namespace, whoever made them.
pub fn n_servers() -> usize {
    std::fs::read_to_string("/proc/thread-self/net/ip_vs").map_or(0, |text| count_servers(&text))
}

/// A virtual server has a line that begins with its protocol; its real servers follow, indented.
fn count_servers(text: &str) -> usize {
    let is_server = |line: &&str| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|word| line.starts_with(word));
    text.lines().filter(is_server).count()
}

/// Deletes the interface, and with it the Service addresses on it; one that is gone is as good.
pub fn delete_device() -> io::Result<()> {
    let index = match nix::net::if_::if_nametoindex(DEVICE) {
        Ok(index) => index,
        Err(Errno::ENODEV) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // struct ifinfomsg: family and type, index, flags, change.
    let payload = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
    Conversation::open(NETLINK_ROUTE)?.ask(DELETE_LINK, 0, &payload, &mut |_| {})
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::netlink::in_new_namespace;
    use super::*;

    #[test]
    fn the_interface_is_found_and_deleted_and_no_other() {
        in_new_namespace(|| {
            assert!(!has_device());
            delete_device().unwrap();
            for name in [DEVICE, "kube-bridge"] {
                let status = Command::new("ip").args(["link", "add", name, "type", "bridge"]).status();
                assert!(status.unwrap().success());
            }
            assert!(has_device());
            delete_device().unwrap();
            assert!(!has_device());
            assert!(nix::net::if_::if_nametoindex("kube-bridge").is_ok());
            assert_eq!(n_servers(), 0);
        });
    }

    #[test]
    fn virtual_servers_are_counted() {
        let text = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> C0A80001:192B      Masq    1      0          0
UDP  0A60000A:0035 rr
";
        assert_eq!(count_servers(text), 2);
        assert_eq!(count_servers(""), 0);
    }
}
