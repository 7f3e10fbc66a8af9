//! The time of a start, from exec to rules in force, with an API server that supports streaming lists and
//! with one that does not (etcd before 3.4.25), alternately: `cargo bench --bench scale -- --starts`.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::apiserver::{ApiServer, Etcd, start_cluster};
use crate::{Agent, Case, enter_namespaces, fill, percentile};

/// Number of starts of each kind.
const N_STARTS: usize = 7;

const ETCDS: [(&str, Etcd); 2] = [("3.6", Etcd::V3_6), ("3.4", Etcd::V3_4)];

/// Starts an agent alternately in both ways, each time in a process of its own, and prints a row.
pub fn compare(case: &Case) -> anyhow::Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    let mut requests = [String::new(), String::new()];
    for _ in 0..N_STARTS {
        for (index, (etcd, _)) in ETCDS.iter().enumerate() {
            let size = format!("{}x{}", case.n_services, case.n_endpoints);
            let output = Command::new(std::env::current_exe()?)
                .args(["--start", etcd, "--backend", &case.backend, "--layout", &case.layout, &size])
                .output()
                .context("starting a case")?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let line = String::from_utf8(output.stdout)?;
            let (seconds, rest) = line.trim().split_once(' ').context("seconds and requests")?;
            times[index].push(seconds.parse::<f64>()?);
            requests[index] = rest.to_owned();
        }
    }
    let [with, without] = times.each_mut().map(|times| percentile(times, 50));
    println!(
        "| back-end | layout | size | streaming lists, s (requests) | without, s (requests) | ratio |\n\
         |---|---|---|--:|--:|--:|\n\
         | {} | {} | {} x {} | {with:.2} ({}) | {without:.2} ({}) | {:.2} |",
        case.backend,
        case.layout,
        case.n_services,
        case.n_endpoints,
        requests[0],
        requests[1],
        without / with
    );
    Ok(())
}

/// One start with a server with this etcd; prints seconds and the number of requests.
pub fn one(etcd: &str, case: &Case) -> anyhow::Result<()> {
    enter_namespaces()?;
    let server = start_cluster(([127, 0, 0, 1], 0).into(), None)?;
    let (_, etcd) = ETCDS.iter().find(|(name, _)| *name == etcd).context("--start 3.4|3.6")?;
    let simulator: &ApiServer = server.simulator().context("only the simulator has several etcds")?;
    simulator.set_etcd(*etcd);
    fill(&*server, case);
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let agent = Agent::start(case, &kubeconfig)?;
    for _ in 0..2 {
        agent.wait("listed", |line| line["kind"] != "Node")?;
    }
    let (synced, _) = agent.wait("synced", |line| line["family"] == "IPv4")?;
    println!("{} {}", (synced - agent.started).as_secs_f64(), simulator.counters().requests);
    agent.end()
}
