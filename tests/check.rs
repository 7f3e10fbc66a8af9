//! `chainsmith check` on real tables: what it finds, and that it writes nothing. Needs root; without it these tests
//! fail.
#![allow(clippy::disallowed_methods, reason = "tests start programs and read files")]

#[path = "check/finds.rs"]
mod finds;
#[path = "real_iptables/namespace.rs"]
#[allow(dead_code, reason = "a part of what other tests use")]
mod namespace;
#[path = "check/node.rs"]
mod node;
#[path = "check/write_watch.rs"]
mod write_watch;
#[path = "check/writes_nothing.rs"]
mod writes_nothing;
