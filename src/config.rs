//! stub until the branch `config` lands
use crate::net::{Cidr, MasqueradeMark};
use std::net::IpAddr;
/// stub
pub enum DetectLocal {
    /// stub
    ClusterCidr,
    /// stub
    NodeCidr,
    /// stub
    BridgeInterface(String),
    /// stub
    InterfaceNamePrefix(String),
}
/// stub
pub enum NodePortAddresses {
    /// stub
    All,
    /// stub
    Primary,
    /// stub
    Cidrs(Vec<Cidr>),
}
/// stub
pub struct Conntrack {
    /// stub
    pub tcp_be_liberal: bool,
}
/// stub
pub struct Config {
    /// stub
    pub bind_address: Option<IpAddr>,
    /// stub
    pub cluster_cidrs: Vec<Cidr>,
    /// stub
    pub detect_local: DetectLocal,
    /// stub
    pub node_port_addresses: NodePortAddresses,
    /// stub
    pub mark: MasqueradeMark,
    /// stub
    pub masquerade_all: bool,
    /// stub
    pub localhost_node_ports: bool,
    /// stub
    pub allow_external_ips: bool,
    /// stub
    pub conntrack: Conntrack,
}
