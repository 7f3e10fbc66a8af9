//! Chainsmith: kube-proxy's iptables mode, done again.
//!
//! The way from objects to the kernel, one module a step: [`model`] (API objects as values),
//! `policy` (which endpoints serve which traffic), `rules` (the chains of each service port),
//! `plan` (what differs from the kernel, in which order), `kernel` (iptables-restore).
//! ARCHITECTURE.md has the map and the invariants.

mod affinity;
pub mod agent;
pub mod cli;
pub mod compile;
pub mod config;
mod conntrack;
pub mod drift;
mod events;
pub mod flows;
mod health;
mod http;
pub mod iptables;
pub mod kernel;
pub mod leftovers;
pub mod log;
mod measure;
mod metrics;
pub mod model;
pub mod net;
pub mod plan;
pub mod policy;
pub mod rules;
pub mod sync;
pub mod watch;
