//! Address families, protocols, addresses and CIDRs as Go's sloppy parsers read them, the masquerade mark, Unix sockets. Knows neither
//! Kubernetes nor iptables.

mod unix_address;

pub use unix_address::UnixAddress;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// An address family. Each has its own rules, programs and syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both, in the order of output.
    pub const BOTH: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

    /// The family of `ip`.
    pub fn of(ip: IpAddr) -> IpFamily {
        match ip {
            IpAddr::V4(_) => IpFamily::V4,
            IpAddr::V6(_) => IpFamily::V6,
        }
    }

    /// 127.0.0.1 or ::1, which kube-proxy uses as the node's address when it knows none.
    pub fn localhost(self) -> IpAddr {
        match self {
            IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// Bits of an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            IpFamily::V4 => 32,
            IpFamily::V6 => 128,
        }
    }

    /// The other family.
    pub fn other(self) -> IpFamily {
        match self {
            IpFamily::V4 => IpFamily::V6,
            IpFamily::V6 => IpFamily::V4,
        }
    }

    /// `ipv4` or `ipv6`: the spelling on the command line and in headings.
    pub(crate) fn lower(self) -> &'static str {
        match self {
            IpFamily::V4 => "ipv4",
            IpFamily::V6 => "ipv6",
        }
    }

    /// `IPv4` or `IPv6`, as Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        }
    }
}

/// Kubernetes' spelling.
impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerFamily<T> {
    /// The value for IPv4.
    pub v4: T,
    /// The value for IPv6.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// The value for `family`.
    pub fn get(&self, family: IpFamily) -> &T {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    /// The value for `family`.
    pub fn get_mut(&mut self, family: IpFamily) -> &mut T {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }
}

/// A transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Reads Kubernetes' spelling (`TCP`, `UDP`, `SCTP`; case matters).
    pub(crate) fn from_kubernetes(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// Reads iptables' spelling, a lower-case name or a number.
    pub fn from_iptables(text: &str) -> Option<Protocol> {
        match text {
            "tcp" | "6" => Some(Protocol::Tcp),
            "udp" | "17" => Some(Protocol::Udp),
            "sctp" | "132" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// `tcp`, `udp` or `sctp`: in rules, and as input of chain name hashes.
    pub fn lower(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Kubernetes' spelling.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// The text that is not an IP address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP address")]
pub(crate) struct BadAddress(String);

/// Reads an address as Go's `ParseIPSloppy` does: IPv4 octets with leading zeros are decimal (`010.0.0.1` is 10.0.0.1), an
/// IPv4-mapped IPv6 address is IPv4, an address with a zone is an error.
pub(crate) fn parse_ip(text: &str) -> Result<IpAddr, BadAddress> {
    read_ip(text).map(|ip| ip.to_canonical()).ok_or_else(|| BadAddress(text.to_owned()))
}

fn read_ip(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return read_ipv4(text).map(IpAddr::V4);
    }
    // An IPv4 tail may have leading zeros too, which std does not accept.
    let (head, tail) = text.rsplit_once(':')?;
    if tail.contains('.') {
        let text = format!("{head}:{}", read_ipv4(tail)?);
        return text.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn read_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(read_decimal(parts.next()?, 255)?).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Reads digits, with any number of leading zeros; at most `max`.
fn read_decimal(text: &str, max: u32) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0u32;
    for byte in text.bytes() {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u32::from(byte - b'0');
        if value > max {
            return None;
        }
    }
    Some(value)
}

/// A network: an address and a prefix length in bits. Bits of the address beyond the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

/// The text that is not a CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a CIDR")]
pub struct BadCidr(String);

impl Cidr {
    /// The network of `length` bits that contains `address`; a greater length than the family's counts as the family's.
    pub fn new(address: IpAddr, length: u8) -> Cidr {
        Cidr(IpNet::new_assert(address, length.min(IpFamily::of(address).bits())).trunc())
    }

    /// The network of one address: /32 or /128.
    pub(crate) fn host(address: IpAddr) -> Cidr {
        Cidr(address.into())
    }

    /// Reads `<ip>/<bits>` as Go's `ParseCIDRSloppy` does (see `parse_ip`; a length with leading zeros is decimal too)
    /// and clears the bits beyond the prefix.
    pub fn parse(text: &str) -> Result<Cidr, BadCidr> {
        Cidr::read(text).ok_or_else(|| BadCidr(text.to_owned()))
    }

    fn read(text: &str) -> Option<Cidr> {
        let (address, length) = text.split_once('/')?;
        let address = read_ip(address)?;
        let bits = IpFamily::of(address).bits();
        let length = u8::try_from(read_decimal(length, u32::from(bits))?).ok()?;
        match address {
            // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
            IpAddr::V6(v6) if length >= 96 => Some(match v6.to_ipv4_mapped() {
                Some(v4) => Cidr::new(v4.into(), length - 96),
                None => Cidr::new(address, length),
            }),
            _ => Some(Cidr::new(address, length)),
        }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// The prefix length in bits.
    pub fn length(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The family of the addresses.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.address())
    }

    /// Whether the network contains every address of its family.
    pub fn is_everything(&self) -> bool {
        self.length() == 0
    }

    /// Whether the network contains `ip`; never for an address of the other family.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }
}

/// `<address>/<length>`, address in canonical form.
impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Appends `number` in decimal.
pub(crate) fn push_number(out: &mut String, number: u32) {
    out.push_str(itoa::Buffer::new().format(number));
}

/// Appends `ip` in the form of its `Display`, but faster: most text of rules is IPv4 addresses.
pub(crate) fn push_ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (n, octet) in ip.octets().into_iter().enumerate() {
                out.push_str(if n == 0 { "" } else { "." });
                push_number(out, octet.into());
            }
        }
        IpAddr::V6(ip) => out.push_str(&ip.to_string()),
    }
}

/// Appends `<ip>:<port>` or `[<ip6>]:<port>`.
pub(crate) fn push_socket(out: &mut String, address: SocketAddr) {
    let (open, close) = if address.is_ipv4() { ("", ":") } else { ("[", "]:") };
    out.push_str(open);
    push_ip(out, address.ip());
    out.push_str(close);
    push_number(out, address.port().into());
}

/// The packet mark of packets to masquerade: one bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasqueradeMark(u32);

impl MasqueradeMark {
    /// The mark of bit `bit` (0 to 31), or `None` for any other number.
    pub fn from_bit(bit: u32) -> Option<MasqueradeMark> {
        1u32.checked_shl(bit).map(MasqueradeMark)
    }

    /// The value, which is the mask too.
    pub fn value(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(parse_ip("172.30.0.041").unwrap().to_string(), "172.30.0.41");
        assert_eq!(parse_ip("010.0000.0.1").unwrap().to_string(), "10.0.0.1");
        assert_eq!(Cidr::parse("203.0.113.000/025").unwrap().to_string(), "203.0.113.0/25");
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(parse_ip("::ffff:1.2.3.004").unwrap().to_string(), "1.2.3.4");
        assert_eq!(parse_ip("::FFFF:102:304").unwrap().to_string(), "1.2.3.4");
        assert_eq!(Cidr::parse("::ffff:10.1.2.3/104").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(Cidr::parse("::ffff:10.1.2.3/64").unwrap().to_string(), "::/64");
    }

    #[test]
    fn ipv6_prints_compressed_and_lower_case() {
        assert_eq!(parse_ip("FD00:0:0::00a1").unwrap().to_string(), "fd00::a1");
    }

    #[test]
    fn other_text_is_an_error() {
        for text in [
            "",
            " ",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.4 ",
            "1.2.3.-4",
            "fe80::1%eth0",
            "[::1]",
            "::ffff:1.2.3",
            "1.2.3.+4",
            "99999999999.1.1.1",
            "1..2.3",
            "\u{661}.1.1.1",
        ] {
            assert!(parse_ip(text).is_err(), "{text:?}");
        }
        for text in ["1.2.3.4", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/-1", "::/129", "/8", "a/8", "1.2.3.4/8/9"]
        {
            assert!(Cidr::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn bits_beyond_the_prefix_are_cleared() {
        let check = |text: &str, expected: &str| assert_eq!(Cidr::parse(text).unwrap().to_string(), expected);
        check("203.0.113.7/25", "203.0.113.0/25");
        check("255.255.255.255/0", "0.0.0.0/0");
        check("255.255.255.255/32", "255.255.255.255/32");
        check("fd00:10:128:7::9/48", "fd00:10:128::/48");
        check("ffff::1/0", "::/0");
        check("ffff::1/128", "ffff::1/128");
    }

    #[test]
    fn a_network_contains_its_addresses_only() {
        let net = Cidr::parse("10.0.0.0/8").unwrap();
        assert!(net.contains("10.255.0.1".parse().unwrap()));
        assert!(!net.contains("11.0.0.1".parse().unwrap()));
        assert!(!net.contains("::10.0.0.1".parse().unwrap()));
        assert!(Cidr::parse("::/0").unwrap().contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn addresses_are_written_as_by_the_standard_library() {
        for text in ["0.0.0.0:0", "10.0.200.99:80", "255.255.255.255:65535", "[fd00::1]:8080", "[::]:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut shown = String::new();
            push_socket(&mut shown, address);
            assert_eq!(shown, address.to_string());
            shown.clear();
            push_ip(&mut shown, address.ip());
            assert_eq!(shown, address.ip().to_string());
        }
    }

    #[test]
    fn mark_bits_end_at_31() {
        assert_eq!(MasqueradeMark::from_bit(14).unwrap().value(), 0x4000);
        assert_eq!(MasqueradeMark::from_bit(31).unwrap().value(), 0x8000_0000);
        assert!(MasqueradeMark::from_bit(32).is_none());
    }
}
