//! The names of chains.

use std::net::SocketAddr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use crate::iptables::ChainName;
use crate::model::ServicePortName;

/// Dispatch by address; in filter, rejects and drops of cluster IPs.
pub const KUBE_SERVICES: ChainName = ChainName::literal("KUBE-SERVICES");
/// Rejects and drops of external addresses and node ports.
pub const KUBE_EXTERNAL_SERVICES: ChainName = ChainName::literal("KUBE-EXTERNAL-SERVICES");
/// Dispatch by node port; in filter, health check node ports.
pub const KUBE_NODEPORTS: ChainName = ChainName::literal("KUBE-NODEPORTS");
/// Accepts what Services forward.
pub const KUBE_FORWARD: ChainName = ChainName::literal("KUBE-FORWARD");
/// Drops packets from outside the source ranges.
pub const KUBE_PROXY_FIREWALL: ChainName = ChainName::literal("KUBE-PROXY-FIREWALL");
/// Drops martians; shared with the kubelet.
pub const KUBE_FIREWALL: ChainName = ChainName::literal("KUBE-FIREWALL");
/// Masquerades marked packets.
pub const KUBE_POSTROUTING: ChainName = ChainName::literal("KUBE-POSTROUTING");
/// Sets the masquerade mark.
pub const KUBE_MARK_MASQ: ChainName = ChainName::literal("KUBE-MARK-MASQ");
/// Empty; its absence shows that another process flushed the table.
pub const KUBE_PROXY_CANARY: ChainName = ChainName::literal("KUBE-PROXY-CANARY");
/// The kubelet makes it in mangle of the back-end that the node uses.
pub const KUBE_IPTABLES_HINT: ChainName = ChainName::literal("KUBE-IPTABLES-HINT");
/// The canary of older kubelets, which shows the same.
pub const KUBE_KUBELET_CANARY: ChainName = ChainName::literal("KUBE-KUBELET-CANARY");

/// The kinds of chains that a service port may have, callees before callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortChain {
    /// `KUBE-SEP-`: one endpoint.
    Endpoint,
    /// `KUBE-SVL-`: endpoints of this node.
    Local,
    /// `KUBE-SVC-`: endpoints of all nodes.
    Cluster,
    /// `KUBE-EXT-`: traffic from outside.
    External,
    /// `KUBE-FW-`: source ranges.
    Firewall,
}

impl PortChain {
    const ALL: [PortChain; 5] =
        [PortChain::Endpoint, PortChain::Local, PortChain::Cluster, PortChain::External, PortChain::Firewall];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            PortChain::Endpoint => "KUBE-SEP-",
            PortChain::Local => "KUBE-SVL-",
            PortChain::Cluster => "KUBE-SVC-",
            PortChain::External => "KUBE-EXT-",
            PortChain::Firewall => "KUBE-FW-",
        }
    }

    /// The name of the chain of this kind with `hash`; for an endpoint, the hash is its own. `None` if `hash` is too
    /// long or has characters that no name has.
    pub fn name_with(self, hash: &str) -> Option<ChainName> {
        ChainName::new(&format!("{}{hash}", self.prefix()))
    }

    /// The kind of the chain `name`, and the text behind its prefix; `None` for a name without any of
    /// the five prefixes.
    pub(super) fn split(name: &ChainName) -> Option<(PortChain, &str)> {
        PortChain::ALL.into_iter().find_map(|kind| Some((kind, name.as_str().strip_prefix(kind.prefix())?)))
    }
}

/// A chain of nat for rules that are tried; the commit that adds it deletes it.
pub const NAT_PROBE: ChainName = ChainName::literal("KUBE-EXT-0PROBE");
/// The same in filter.
pub const FILTER_PROBE: ChainName = ChainName::literal("KUBE-SVC-0PROBE");

/// The first character behind the prefix in names of the compact layout's dispatch chains: no hash in
/// base32 has a 0.
pub(super) const DISPATCH_DIGIT: &str = "0";

/// The chains of one service port. All but the endpoints' share one hash.
///
/// The hash depends on nothing but the names, so every node and every restart picks the same.
/// Source: kube-proxy v1.36, `portProtoHash` and `servicePortEndpointChainName`.
#[derive(Clone, Debug)]
pub struct PortNames {
    /// `<ns>/<name>[:<port>]` and the protocol in lower case, run together.
    seed: String,
    /// Length of the name at the head of `seed`, in bytes.
    name_length: usize,
    hash: [u8; HASH_LENGTH],
}

impl PortNames {
    /// The names for `port`.
    pub fn new(port: &ServicePortName) -> PortNames {
        let name = port.to_string();
        let seed = format!("{name}{}", port.protocol.lower());
        let hash = hash(&[seed.as_bytes()]);
        PortNames { seed, name_length: name.len(), hash }
    }

    /// `<ns>/<name>[:<port>]`, as in comments.
    pub fn text(&self) -> &str {
        &self.seed[..self.name_length]
    }

    /// The one chain of `kind`; for [`PortChain::Endpoint`] see [`PortNames::endpoint`].
    pub fn chain(&self, kind: PortChain) -> ChainName {
        prefixed(kind, &self.hash)
    }

    /// The chain of the endpoint shown as `text` (`<ip>:<port>` or `[<ip6>]:<port>`).
    pub fn endpoint(&self, text: &str) -> ChainName {
        prefixed(PortChain::Endpoint, &hash(&[self.seed.as_bytes(), text.as_bytes()]))
    }

    /// The chain of a group of endpoints below the chain of `kind`: endpoints whose hash begins with
    /// these hexadecimal digits, at most three.
    pub fn group(&self, kind: PortChain, digits: &[u8]) -> ChainName {
        let mut name = self.chain(kind).as_str().to_owned();
        name.extend(digits.iter().map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit & 15)])));
        ChainName::new(&name).expect("25 characters and at most 3")
    }

    /// The first hexadecimal digits of a hash of the endpoint at `address`.
    pub fn endpoint_digits(&self, address: SocketAddr) -> [u8; 3] {
        let mut sha = Sha256::new();
        sha.update(self.seed.as_bytes());
        sha.update(address.to_string().as_bytes());
        let digest = sha.finalize();
        [digest[0] >> 4, digest[0] & 15, digest[1] >> 4]
    }

    /// The chain of the endpoint at `address`.
    pub fn endpoint_at(&self, address: SocketAddr) -> ChainName {
        self.endpoint(&address.to_string())
    }
}

/// Characters of a hash in a name.
pub(super) const HASH_LENGTH: usize = 16;

/// The first 16 characters of the base32 text of the SHA-256 of `parts`, run together.
fn hash(parts: &[&[u8]]) -> [u8; HASH_LENGTH] {
    let mut sha = Sha256::new();
    parts.iter().for_each(|part| sha.update(part));
    let digest = sha.finalize();
    let mut text = [0; HASH_LENGTH];
    BASE32_NOPAD.encode_mut(&digest[..10], &mut text);
    text
}

fn prefixed(kind: PortChain, hash: &[u8; HASH_LENGTH]) -> ChainName {
    let mut name = [0; ChainName::MAX];
    let prefix = kind.prefix().as_bytes();
    let length = prefix.len() + hash.len();
    name[..prefix.len()].copy_from_slice(prefix);
    name[prefix.len()..length].copy_from_slice(hash);
    let text = std::str::from_utf8(&name[..length]).expect("prefix and base32 are ASCII");
    ChainName::new(text).expect("a prefix of at most 9 and 16 characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::net::Protocol;

    fn port(namespace: &str, name: &str, port: &str, protocol: Protocol) -> PortNames {
        let service = ObjectName::new(namespace, name);
        PortNames::new(&ServicePortName { service, port: port.into(), protocol })
    }

    #[test]
    fn names_are_those_of_kube_proxy() {
        let check = |names: PortNames, hash: &str| {
            assert_eq!(names.chain(PortChain::Cluster).as_str(), format!("KUBE-SVC-{hash}"));
            assert_eq!(names.chain(PortChain::Firewall).as_str(), format!("KUBE-FW-{hash}"));
        };
        check(port("default", "nginx", "", Protocol::Tcp), "2CMXP7HKUVJN7L6M");
        check(port("default", "kubernetes", "https", Protocol::Tcp), "NPX46M4PTMTKRN6Y");
        check(port("kube-system", "kube-dns", "dns", Protocol::Udp), "TCOU7JCQXEZGVUNU");
        check(port("ns7", "svc7", "s", Protocol::Sctp), "4BKCF2MPNTRJCK6G");
    }

    #[test]
    fn endpoints_are_hashed_as_text() {
        let check = |names: PortNames, address: &str, expected: &str| {
            assert_eq!(names.endpoint_at(address.parse().unwrap()).as_str(), expected);
        };
        let nginx = port("default", "nginx", "", Protocol::Tcp);
        check(nginx, "10.180.0.1:8080", "KUBE-SEP-ZLQIIXF6GGLIY7FE");
        let v6 = port("v6", "svc", "p80", Protocol::Tcp);
        check(v6, "[fd00:10:180::1]:80", "KUBE-SEP-NTWK54M2MA6SDON5");
    }
}
