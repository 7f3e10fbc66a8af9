//! One DNAT rule of nat as the kernel counts it: where it sends connections, and the first packets that it has seen.

use std::net::SocketAddr;
use std::ops::AddAssign;

use super::ChainName;

/// First packets of connections, which are all that a rule of nat sees of a connection: conntrack translates the
/// packets that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirstPackets {
    /// Packets, so connections; a first packet that is lost on its way and sent again counts again.
    pub n_packets: u64,
    /// Bytes of these packets, IP headers included: 60 for most TCP connections, whatever they transfer later.
    pub n_bytes: u64,
}

impl FirstPackets {
    /// Whether nothing was counted.
    pub fn is_zero(self) -> bool {
        self == FirstPackets::default()
    }

    /// What was counted since `last`; all of it if a counter fell, because it began anew.
    pub fn since(self, last: FirstPackets) -> FirstPackets {
        if self.is_reset_since(last) {
            return self;
        }
        FirstPackets { n_packets: self.n_packets - last.n_packets, n_bytes: self.n_bytes - last.n_bytes }
    }

    /// Whether a counter fell.
    pub fn is_reset_since(self, last: FirstPackets) -> bool {
        self.n_packets < last.n_packets || self.n_bytes < last.n_bytes
    }
}

impl AddAssign for FirstPackets {
    fn add_assign(&mut self, more: FirstPackets) {
        self.n_packets = self.n_packets.saturating_add(more.n_packets);
        self.n_bytes = self.n_bytes.saturating_add(more.n_bytes);
    }
}

/// A DNAT rule of nat with its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DnatRule {
    /// Its chain.
    pub chain: ChainName,
    /// Where it sends connections; port 0 if it keeps the port.
    pub endpoint: SocketAddr,
    /// What it has counted since it was written or its counters were reset.
    pub counted: FirstPackets,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_fell_began_anew() {
        let counted = |n_packets, n_bytes| FirstPackets { n_packets, n_bytes };
        assert_eq!(counted(5, 300).since(counted(3, 180)), counted(2, 120));
        assert_eq!(counted(5, 300).since(counted(5, 300)), counted(0, 0));
        assert_eq!(counted(2, 120).since(counted(3, 180)), counted(2, 120));
        // Another rule in its place: more packets, fewer bytes.
        assert_eq!(counted(4, 112).since(counted(3, 180)), counted(4, 112));
    }
}
