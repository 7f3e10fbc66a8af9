//! `make fleet`: the watch layers of 200 nodes against one simulated API server, and their cost for it.
//!
//! `cargo run --release --example fleet -- [--nodes N] [--server 1.36|1.37|etcd-3.4] [--idle SECONDS]
//! [--churn SECONDS] [N_SERVICESxN_ENDPOINTS]`
#![allow(clippy::disallowed_methods, reason = "measures time, reads files")]
#![allow(dead_code, reason = "shares its modules with the tests, and uses its part of them")]

mod apiserver;
#[path = "fleet/layers.rs"]
mod layers;
#[path = "../benches/cluster.rs"]
mod objects;

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::apiserver::{ApiServer, Etcd, Gzip};
use crate::layers::{Asked, Counted, Fleet};

const USAGE: &str = "usage: fleet [--nodes N] [--server 1.36|1.37|etcd-3.4] [--idle SECONDS] [--churn SECONDS] \
                     [N_SERVICESxN_ENDPOINTS]";

/// Nodes of the cluster for which the sums are computed.
const N_NODES: f64 = 5_000.0;
/// The start of all nodes, one after the other as a DaemonSet is rolled out, or all at once.
const ROLL_OUT: Duration = Duration::from_secs(600);
/// The average time between two renewals of a watch: a watch lasts 5 to 10 min.
const RENEWAL_MIN: f64 = 7.5;

fn main() -> Result<()> {
    let (fleet, kind) = orders()?;
    let server = ApiServer::start(([127, 0, 0, 1], 0).into(), None)?;
    match kind.as_str() {
        "1.36" => {}
        "1.37" => server.set_compression(Some(Gzip::MemberPerEvent)),
        "etcd-3.4" => server.set_etcd(Etcd::V3_4),
        _ => bail!("{USAGE}"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let asked = runtime.block_on(fleet.run(&server))?;
    println!("{}", table(&fleet, &kind, &asked));
    Ok(())
}

fn orders() -> Result<(Fleet, String)> {
    let mut fleet = Fleet {
        n_nodes: 200,
        n_services: 10_000,
        n_endpoints: 10,
        n_at_once: 4,
        idle: Duration::from_secs(60),
        churn: Duration::from_secs(60),
        change_every: Duration::from_millis(50),
    };
    let mut kind = "1.36".to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().context(USAGE);
        match word.as_str() {
            "--nodes" => fleet.n_nodes = value()?.parse()?,
            "--server" => kind = value()?,
            "--idle" => fleet.idle = Duration::from_secs(value()?.parse()?),
            "--churn" => fleet.churn = Duration::from_secs(value()?.parse()?),
            size => {
                let (n_services, n_endpoints) = size.split_once('x').context(USAGE)?;
                (fleet.n_services, fleet.n_endpoints) = (n_services.parse()?, n_endpoints.parse()?);
            }
        }
    }
    Ok((fleet, kind))
}

fn table(fleet: &Fleet, kind: &str, asked: &Asked) -> String {
    let n_nodes = fleet.n_nodes as f64;
    let each = |n: u64| n as f64 / n_nodes;
    let per_minute = |counted: &Counted| each(counted.requests) / (counted.elapsed.as_secs_f64() / 60.0);
    let Asked { start, idle, churn, n_changes, n_received } = asked;
    let megabytes = each(start.bytes) / 1e6;
    let bytes_per_change = each(churn.bytes) / *n_changes as f64;
    let changes_per_second = *n_changes as f64 / churn.elapsed.as_secs_f64();
    let rate = bytes_per_change * changes_per_second * N_NODES / 1e6;
    format!(
        "{} nodes, {} x {}, server {kind}; started {} at a time in {:.0} s; {n_changes} changes, {n_received} received\n\n\
         | of each node | start | idle | {changes_per_second:.0} endpoints change a second |\n|---|--:|--:|--:|\n\
         | connections | {:.2} | {:.2} | {:.2} |\n\
         | requests | {:.2} | {:.2} a minute | {:.2} a minute |\n\
         | of them watches begun | {:.2} | {:.2} | {:.2} |\n\
         | sent by the server | {megabytes:.1} MB | {:.0} B a minute | {bytes_per_change:.0} B a change |\n\n\
         {N_NODES:.0} nodes: {:.0} connections; a start of all sends {:.0} GB ({:.0} MB a second over {} min) and is {:.0} requests; \
         idle {:.0} requests a second, all of them watches renewed each {RENEWAL_MIN} min; \
         {changes_per_second:.0} changes a second send {rate:.0} MB a second.\n",
        fleet.n_nodes,
        fleet.n_services,
        fleet.n_endpoints,
        fleet.n_at_once,
        start.elapsed.as_secs_f64(),
        each(start.connections),
        each(idle.connections),
        each(churn.connections),
        each(start.requests),
        per_minute(idle),
        per_minute(churn),
        each(start.watches),
        each(idle.watches),
        each(churn.watches),
        each(idle.bytes) / (idle.elapsed.as_secs_f64() / 60.0),
        each(start.connections) * N_NODES,
        megabytes * N_NODES / 1e3,
        megabytes * N_NODES / ROLL_OUT.as_secs_f64(),
        ROLL_OUT.as_secs() / 60,
        each(start.requests) * N_NODES,
        3.0 * N_NODES / (RENEWAL_MIN * 60.0),
    )
}
