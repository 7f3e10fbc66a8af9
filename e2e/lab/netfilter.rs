//! Reads a node's netfilter state, and writes to it as an external process.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, bail, ensure};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};

use super::address::Family;
use super::namespace::Namespace;

/// One of the two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// `iptables-nft`: rules in nf_tables.
    Nft,
    /// `iptables-legacy`: rules in x_tables.
    Legacy,
}

impl Backend {
    /// As a value of `--iptables-backend`.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The name of a program, e.g. `ip6tables-legacy-save` for `-save`; `""` is the command itself.
    pub fn program(self, family: Family, suffix: &str) -> String {
        let stem = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        format!("{stem}-{}{suffix}", self.flag())
    }
}

/// The tables and flows of one namespace, through one back-end.
#[derive(Clone, Copy, Debug)]
pub struct Netfilter<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// The programs.
    pub backend: Backend,
}

impl Netfilter<'_> {
    /// All tables as `iptables-save` prints them.
    pub fn save(&self, family: Family) -> Result<String> {
        self.read(family, &[])
    }

    /// All tables with the counters of each rule.
    pub fn save_with_counters(&self, family: Family) -> Result<String> {
        self.read(family, &["-c"])
    }

    /// The output of `iptables-save`. That of iptables 1.8.7 crashes when another process commits while it reads.
    fn read(&self, family: Family, args: &[&str]) -> Result<String> {
        let program = self.backend.program(family, "-save");
        let mut n_left = 20;
        loop {
            let output = self.namespace.try_command(&program, args, "")?;
            n_left -= 1;
            if output.status.signal().is_some() && n_left > 0 {
                continue;
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{program} {args:?}: {}: {}", output.status, stderr.trim());
            return String::from_utf8(output.stdout)
                .with_context(|| format!("reading what {program} printed"));
        }
    }

    /// Replaces the tables named in `text` by their content there.
    pub fn restore(&self, family: Family, text: &str) -> Result<()> {
        self.namespace.command(&self.backend.program(family, "-restore"), &["-w", "5"], text).map(drop)
    }

    /// One `iptables` command.
    pub fn iptables(&self, family: Family, args: &[&str]) -> Result<String> {
        let args: Vec<&str> = ["-w", "5"].iter().chain(args).copied().collect();
        self.namespace.command(&self.backend.program(family, ""), &args, "")
    }

    /// Flushes `table` and deletes its chains, as a program does that does not know ours.
    pub fn flush(&self, family: Family, table: &str) -> Result<()> {
        self.iptables(family, &["-t", table, "-F"])?;
        self.iptables(family, &["-t", table, "-X"]).map(drop)
    }

    /// The generation: the number that nf_tables raises with every commit in this namespace.
    pub fn generation(&self) -> Result<u32> {
        self.namespace.run(generation)
    }

    /// Deletes all flows of conntrack.
    pub fn forget_flows(&self) -> Result<()> {
        self.namespace.command("conntrack", &["-F"], "").map(drop)
    }

    /// The flows of conntrack.
    pub fn flows(&self, family: Family) -> Result<Vec<Flow>> {
        let name = match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let text = self.namespace.command("conntrack", &["-L", "-f", name], "")?;
        text.lines().filter_map(|line| Flow::parse(line).transpose()).collect()
    }
}

/// A flow of conntrack: the packets of one direction before translation, and those of the other as they come
/// back; the difference is the translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// `tcp`, `udp`, ...
    pub protocol: String,
    /// Source of the first packet.
    pub source: SocketAddr,
    /// Destination of the first packet.
    pub destination: SocketAddr,
    /// Source of the answers: the destination after DNAT.
    pub reply_source: SocketAddr,
    /// Destination of the answers: the source after SNAT.
    pub reply_destination: SocketAddr,
    /// The whole line of `conntrack -L`.
    pub line: String,
}

impl Flow {
    /// Whether the destination was translated.
    pub fn is_dnated(&self) -> bool {
        self.destination != self.reply_source
    }

    /// Whether the source was translated.
    pub fn is_snated(&self) -> bool {
        self.source != self.reply_destination
    }

    /// Parses a line of `conntrack -L`; `None` for protocols without ports.
    fn parse(line: &str) -> Result<Option<Self>> {
        let Some(protocol) = line.split_whitespace().next() else {
            return Ok(None);
        };
        let values = |key: &str| -> Vec<&str> {
            line.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
        };
        let (src, dst, sport, dport) = (values("src"), values("dst"), values("sport"), values("dport"));
        if sport.is_empty() {
            return Ok(None);
        }
        ensure!([&src, &dst, &sport, &dport].iter().all(|v| v.len() == 2), "not a flow: {line:?}");
        let at = |address: &str, port: &str| -> Result<SocketAddr> {
            let address: IpAddr = address.parse().with_context(|| format!("reading {line:?}"))?;
            Ok(SocketAddr::new(address, port.parse().with_context(|| format!("reading {line:?}"))?))
        };
        Ok(Some(Self {
            protocol: protocol.to_owned(),
            source: at(src[0], sport[0])?,
            destination: at(dst[0], dport[0])?,
            reply_source: at(src[1], sport[1])?,
            reply_destination: at(dst[1], dport[1])?,
            line: line.to_owned(),
        }))
    }
}

/// Asks nf_tables for its generation (NFT_MSG_GETGEN), in the calling thread's namespace.
fn generation() -> Result<u32> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETGEN: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const NFTA_GEN_ID: u16 = 1;
    // nlmsghdr (16 bytes: length, type, flags, sequence, port) and nfgenmsg (4 bytes, all zero).
    let mut request = Vec::new();
    request.extend(20_u32.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.resize(20, 0);
    let mut socket = Socket::new(NETLINK_NETFILTER).context("opening a netlink socket")?;
    socket.bind_auto()?;
    socket.send_to(&request, &NetlinkAddress::new(0, 0), 0).context("asking for the generation")?;
    let (answer, _) = socket.recv_from_full().context("hearing the generation")?;
    let mut attributes = answer.get(20..).context("a short answer")?;
    while let [l0, l1, t0, t1, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..length).context("a broken attribute")?;
        if u16::from_ne_bytes([t0, t1]) == NFTA_GEN_ID {
            return Ok(u32::from_be_bytes(value.try_into().context("a generation of 4 bytes")?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    bail!("no generation in the answer {answer:?}")
}
