//! What operators ask about a node's rules.

pub mod status;
