//! The agent's socket: read-only answers about the rules and the state of a running agent, as JSON over HTTP/1.1 on a
//! Unix socket, for root alone.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | `StatusReport` |
//! | `GET /v1/restore?which=last\|failed` | `RestoreReport`: what is kept of an input of iptables-restore |
//! | `GET /v1/rules?family=ipv4&table=nat` | the desired rules, as iptables-save prints them |
//! | `GET /v1/top` | `TopReport`: connections, where the agent counts them |
//! | `POST /v1/trace`, a `TraceQuestion` | `TraceReport` |
//! | `POST /v1/explain`, an `ExplainQuestion` | `ExplainReport` |
//!
//! Questions about the rules are answered from the objects and the layout that the loop has, by the same functions as
//! on the command line. What is bounded: connections ([`crate::http`]), the size of a question and of an answer
//! (`answer`), the time of an exchange, and the questions that wait while another one is answered (`questions`).

mod answer;
pub mod client;
mod questions;
mod saved_rules;
mod server;
mod status_collector;

pub use questions::Questions;
pub use server::{AgentIdentity, router};
pub use status_collector::StatusCollector;

#[cfg(test)]
mod tests;
