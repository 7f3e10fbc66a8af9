//! `make lab`: every fault with full counts, on both back-ends, and one table of the results.
#![allow(clippy::disallowed_methods, reason = "the lab is about the world: programs, files, clocks")]
#![allow(dead_code, reason = "shares its modules with the tests, and uses its part of them")]

mod apiserver;
mod cluster;
mod faults;
mod fuzz;
mod lab;
mod running;
mod traffic;

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::faults::{Extent, FAULTS, Finding};
use crate::lab::netfilter::Backend;

const BACKENDS: [Backend; 2] = [Backend::Nft, Backend::Legacy];

const USAGE: &str = "usage: lab [--cut] [--only WORD] [--write FILE]";

/// The command line of the lab.
#[derive(Default)]
struct Orders {
    /// The short runs of the tests.
    is_cut: bool,
    /// Only faults whose name contains this.
    only: String,
    /// Where the table goes, besides stdout.
    write: Option<PathBuf>,
}

/// The result of one kind of fault on one back-end.
struct Outcome {
    name: &'static str,
    /// `None` when the fault concerns no back-end.
    backend: Option<Backend>,
    /// Its observations, or why the run was aborted: then the fault is not survived.
    result: Result<Vec<Finding>, String>,
}

fn main() -> Result<ExitCode> {
    let orders = orders()?;
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: use `make lab`");
    let extent = if orders.is_cut { Extent::Cut } else { Extent::Full };
    let start = Instant::now();
    let mut outcomes = Vec::new();
    for (name, fault) in FAULTS.iter().filter(|(name, _)| name.contains(&orders.only)) {
        eprintln!("{:>5.0} s  {name}", start.elapsed().as_secs_f32());
        // They mostly wait, so both back-ends run at the same time.
        let results = std::thread::scope(|scope| {
            let run = |backend| (Some(backend), scope.spawn(move || attempt(|| fault(backend, extent))));
            BACKENDS.map(run).map(|(backend, run)| (backend, run.join().expect("panics are caught")))
        });
        outcomes.extend(results.map(|(backend, result)| Outcome { name, backend, result }));
    }
    if FUZZING.contains(&orders.only) {
        eprintln!("{:>5.0} s  {FUZZING}", start.elapsed().as_secs_f32());
        outcomes.push(Outcome { name: FUZZING, backend: None, result: attempt(|| fuzzing(extent)) });
    }
    let table = table(&outcomes);
    println!("{table}");
    if let Some(path) = orders.write {
        let text = page(&table, start.elapsed())?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let is_survived = outcomes.iter().all(|outcome| outcome.result.is_ok());
    Ok(if is_survived { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn orders() -> Result<Orders> {
    let mut orders = Orders::default();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--cut" => orders.is_cut = true,
            "--only" => orders.only = args.next().context(USAGE)?,
            "--write" => orders.write = Some(args.next().context(USAGE)?.into()),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(orders)
}

/// Runs one kind of fault; an aborted run is reported with its message.
fn attempt(fault: impl FnOnce() -> Vec<Finding>) -> Result<Vec<Finding>, String> {
    catch_unwind(AssertUnwindSafe(fault)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it broke off");
        text.lines().next().unwrap_or_default().to_owned()
    })
}

const FUZZING: &str = "random input";

/// Feeds hostile input to everything that reads.
fn fuzzing(extent: Extent) -> Vec<Finding> {
    let n_cases = extent.of(10_000, 1_000_000);
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let row = |kind: &fuzz::Kind| {
        let summary = fuzz::try_all(kind, n_cases * kind.share / 100, n_threads);
        let summary = summary.unwrap_or_else(|wrong| panic!("{wrong}"));
        Finding {
            fault: format!("{FUZZING}: {}", kind.what),
            n_times: u32::try_from(summary.n_cases).expect("a million fits"),
            observed: format!(
                "no panic, the good neighbour served; {} KiB of memory at most (bound: {})",
                summary.peak.0 >> 10,
                kind.bound
            ),
            ..Finding::default()
        }
    };
    fuzz::KINDS.iter().map(row).collect()
}

fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "| fault | back-end | times | what was observed | repaired after, ms (p50 / max) | connections tried | of them wrong |\n\
         |---|---|--:|---|--:|--:|--:|\n",
    );
    for Outcome { name, backend, result } in outcomes {
        let backend = backend.map_or("", Backend::flag);
        let line = match result {
            Ok(findings) => findings.iter().map(|finding| row(finding, backend)).collect(),
            Err(why) => {
                format!("| {name} | {backend} | | **not survived**: {} | | | |\n", why.replace('|', "/"))
            }
        };
        text += &line;
    }
    text
}

fn row(finding: &Finding, backend: &str) -> String {
    let Finding { fault, n_times, observed, n_tried, n_wrong, .. } = finding;
    let mut millis: Vec<u128> = finding.repaired.iter().map(Duration::as_millis).collect();
    millis.sort_unstable();
    let repaired = match (millis.get(millis.len().saturating_sub(1) / 2), millis.last()) {
        (Some(median), Some(max)) => format!("{median} / {max}"),
        _ => String::new(),
    };
    format!("| {fault} | {backend} | {n_times} | {observed} | {repaired} | {n_tried} | {n_wrong} |\n")
}

/// The table with the explanations that a reader needs.
fn page(table: &str, elapsed: Duration) -> Result<String> {
    let output = |program: &str, args: &[&str]| -> Result<String> {
        let output =
            Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let n_cores = std::thread::available_parallelism()?;
    let mut text = String::from(
        "# Reliability\n\n\
         How a node fares when something around Chainsmith fails. Made by `make lab`, which anyone with root can\n\
         run: two nodes with pods, an outside client and an API server as network namespaces, real iptables, real\n\
         connections. A fault that is not survived is listed as such.\n\n",
    );
    writeln!(
        text,
        "Machine: Linux {}, {}, {}, {n_cores} cores; {} s for all of it, beside whatever else ran.\n",
        output("uname", &["-r"])?,
        output("iptables-nft", &["--version"])?,
        output("iptables-legacy", &["--version"])?,
        elapsed.as_secs()
    )?;
    text += table;
    text += "\n*Repaired after*: from the fault (of the API server: from its end, if the agent gets no changes before) until\n\
        the desired rules are in force, as rules read back or as a connection answered by the right pod.\n\
        *Connections*: new ones without a pause by six clients, TCP and UDP, both families, from a pod, from nodes and from\n\
        outside, while the fault lasts. *Wrong* are those rejected, lost or answered by a wrong pod; after an external flush\n\
        these are connections that met empty tables.\n";
    Ok(text)
}
