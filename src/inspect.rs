//! What operators ask about a node's rules: a question and a [`Subject`] in, a report out.
//!
//! A report is plain data, without layout or colour. The command line draws it, and a running agent sends it as
//! JSON, so both give the same answer.

pub mod busiest;
pub mod comparison;
pub mod envelope;
pub mod explanation;
pub mod findings;
pub mod journey;
pub mod labels;
pub mod ledger;
pub mod status;
pub mod subject;
pub mod vantage;

pub use subject::{ClusterView, HostOrigin, HostView, RulesOrigin, Subject};
