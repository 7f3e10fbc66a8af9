//! Chainsmith: a drop-in replacement for kube-proxy's iptables mode.
//!
//! Objects become rules in these steps, one module each: [`model`] (API objects as values), [`policy`] (which
//! endpoints serve which traffic), [`rules`] (the chains of a service port), [`compile`] (the rules of all service
//! ports, kept up to date), [`plan`] (what differs from the kernel, in which order), [`kernel`] (`iptables-restore`).
//! [`agent`] runs them on a node, [`cli`] has the commands.
//!
//! ARCHITECTURE.md has the table of modules and the invariants.

mod affinity;
pub mod agent;
mod agent_socket;
pub mod apply;
pub mod cli;
pub mod compile;
pub mod config;
pub mod connections;
mod conntrack;
pub mod drift;
mod events;
pub mod flows;
mod health;
mod http;
pub mod inspect;
pub mod iptables;
pub mod kernel;
pub mod leftovers;
mod log;
mod measure;
mod metrics;
pub mod model;
pub mod net;
pub mod plan;
pub mod policy;
pub mod rules;
pub mod sync;
pub mod watch;
