//! The world below: each program or kernel file behind one small function or trait.

pub mod addrs;
mod netlink;
pub mod nfacct;
pub mod nft;
pub mod sysctl;
