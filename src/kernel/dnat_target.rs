//! The bytes of target `DNAT`, which are the same in both back-ends.

use std::net::{IpAddr, SocketAddr};

use crate::net::IpFamily;

/// The destination in the data of target `DNAT`, of any revision: `nf_nat_ipv4_multi_range_compat` (0, IPv4 only),
/// `nf_nat_range` (1), `nf_nat_range2` (2). `None` for other bytes.
pub(super) fn dnat_destination(family: IpFamily, revision: u32, data: &[u8]) -> Option<SocketAddr> {
    let (address, port) = match (family, revision) {
        (IpFamily::V4, 0) => (8, 16),
        (_, 1 | 2) => (4, 36),
        _ => return None,
    };
    let ip = match family {
        IpFamily::V4 => IpAddr::from(*data.get(address..)?.first_chunk::<4>()?),
        IpFamily::V6 => IpAddr::from(*data.get(address..)?.first_chunk::<16>()?),
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(*data.get(port..)?.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_too_short_or_of_another_revision_has_no_destination() {
        for revision in 0..4 {
            for length in [0, 4, 19, 37] {
                let found = dnat_destination(IpFamily::V4, revision, &vec![0; length]);
                assert_eq!(found.is_some(), revision == 0 && length >= 18, "{revision} {length}");
            }
        }
        assert_eq!(dnat_destination(IpFamily::V6, 0, &[0; 64]), None);
    }
}
