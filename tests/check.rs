//! `chainsmith check` on real tables: what it finds, and that it writes nothing. Needs root; without it these tests
//! fail.
#![allow(clippy::disallowed_methods, reason = "tests start programs and read files")]

#[path = "real_iptables/namespace.rs"]
mod namespace;
#[path = "check/write_watch.rs"]
mod write_watch;
