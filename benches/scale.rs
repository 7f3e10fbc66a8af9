//! The agent at size, on real iptables: `make bench`, or `cargo bench --bench scale`, as root.
//!
//! For each back-end, layout and size: a network namespace with a simulated API server full of Services and
//! EndpointSlices (a real one with `KUBEBUILDER_ASSETS`), the release binary in it, and a row of figures on
//! stdout. Each case is a process of its own, so that it starts clean.
//!
//! `cargo bench --bench scale -- [--backend nft|legacy] [--layout classic|compact] [--changes N]
//! [N_SERVICESxN_ENDPOINTS ...]`; with `--starts` first: only starts, with and without streaming lists.

#![allow(clippy::disallowed_methods, reason = "starts programs, reads files and measures time")]

#[path = "../e2e/apiserver.rs"]
mod apiserver;
mod cluster;
#[path = "scale/connects.rs"]
mod connects;
mod sink;
#[path = "scale/starts.rs"]
mod starts;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use apiserver::{Cluster, start_cluster};
use chainsmith::config::LayoutChoice;
use chainsmith::kernel::Backend;
use chainsmith::kernel::nft::{Commit, CommitNotifications};
use connects::Pod;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// Time limit for one sync.
const LIMIT: Duration = Duration::from_secs(600);

/// What to measure.
#[derive(Clone, Debug)]
struct Case {
    backend: String,
    layout: String,
    n_services: usize,
    n_endpoints: usize,
    n_changes: usize,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [one, backend, layout, n_services, n_endpoints, n_changes] = &arguments[..]
        && one == "--one"
    {
        return measure(&Case {
            backend: backend.clone(),
            layout: layout.clone(),
            n_services: n_services.parse()?,
            n_endpoints: n_endpoints.parse()?,
            n_changes: n_changes.parse()?,
        });
    }
    if let [one, etcd, rest @ ..] = &arguments[..]
        && one == "--start"
    {
        return starts::one(etcd, cases(rest)?.first().context("a size")?);
    }
    ensure!(nix::unistd::geteuid().is_root(), "this bench makes network namespaces: run it as root");
    if let [starts, rest @ ..] = &arguments[..]
        && starts == "--starts"
    {
        return cases(rest)?.iter().try_for_each(starts::compare);
    }
    println!("{HEADING}");
    for case in cases(&arguments)? {
        let numbers = [case.n_services, case.n_endpoints, case.n_changes].map(|n| n.to_string());
        let status = Command::new(std::env::current_exe()?)
            .args(["--one", &case.backend, &case.layout])
            .args(numbers)
            .status()
            .context("starting a case")?;
        ensure!(status.success(), "{case:?} failed ({status})");
    }
    Ok(())
}

/// The cases of the performance targets.
const SIZES: [(usize, usize); 5] = [(1_000, 10), (5_000, 10), (5_000, 50), (30_000, 4), (44_000, 1)];

fn cases(arguments: &[String]) -> anyhow::Result<Vec<Case>> {
    let (mut backends, mut layouts) = (vec!["nft", "legacy"], vec!["compact", "classic"]);
    let (mut sizes, mut n_changes) = (Vec::new(), 50);
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "--backend" => backends = vec![words.next().context("--backend nft|legacy")?],
            "--layout" => layouts = vec![words.next().context("--layout classic|compact")?],
            "--changes" => n_changes = words.next().context("--changes N")?.parse()?,
            size => {
                let (n_services, n_endpoints) = size.split_once('x').context("a size is NxM")?;
                sizes.push((n_services.parse()?, n_endpoints.parse()?));
            }
        }
    }
    if sizes.is_empty() {
        sizes = SIZES.to_vec();
    }
    let mut cases = Vec::new();
    for backend in backends {
        for layout in &layouts {
            cases.extend(sizes.iter().map(|(n_services, n_endpoints)| Case {
                backend: backend.to_owned(),
                layout: (*layout).to_owned(),
                n_services: *n_services,
                n_endpoints: *n_endpoints,
                n_changes,
            }));
        }
    }
    Ok(cases)
}

const HEADING: &str = "\
| back-end | layout | size | first sync, s | processes | rules | CPU own / children, s | one endpoint p50 / p99, ms | \
bare restore p50, ms | to the first packet, ms | lines | one Service p50, ms | lines | resident / peak, MB | \
largest child, MB | read from the API server, MB | restart: rules written | \
connect bare / hit / miss p50, us | p99, us | per second |\n\
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// Runs one case in its own namespaces and prints its row.
fn measure(case: &Case) -> anyhow::Result<()> {
    enter_namespaces()?;
    let pod = Pod::serve()?;
    // Features that are in use on any node with Services: connection tracking and NAT.
    let off = switch_netfilter_on(case)?;
    let bare = pod.connect_to(pod.address())?;
    off()?;
    let server = start_cluster(([127, 0, 0, 1], 0).into(), None)?;
    fill(&*server, case);
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    fs::write(&kubeconfig, server.kubeconfig())?;
    let commits = Commits::listen(case)?;
    let agent = Agent::start(case, &kubeconfig)?;

    let mut listed = agent.started;
    for _ in 0..2 {
        listed = agent.wait("listed", |line| line["kind"] != "Node")?.0;
    }
    let (synced, first) = agent.wait("synced", |line| line["family"] == "IPv4")?;
    let n_bytes_read = server.simulator().map(|simulator| simulator.counters().wire_bytes);
    // Work that ends after the first sync (the other family, trimming) is not part of a change.
    std::thread::sleep(Duration::from_secs(1));
    let cpu = agent.cpu()?;

    let change = |n: usize, put: &dyn Fn() -> u64| -> anyhow::Result<(f64, Value)> {
        // A sync without changes, caused by an external commit (also by our canaries).
        agent.forget_log();
        let changed_at = Instant::now();
        put();
        let (at, line) = agent.wait("synced", |line| line["family"] == "IPv4")?;
        std::thread::sleep(Duration::from_millis(30));
        ensure!(number(&line, "processes") == 1, "change {n} started {} processes", line["processes"]);
        let at = commits.last_since(changed_at).unwrap_or(at);
        Ok(((at - changed_at).as_secs_f64() * 1e3, line))
    };
    let (mut endpoint, mut n_lines) = (Vec::new(), 0);
    // At first the kernel allocates memory for tables that it never had.
    for version in 1..=case.n_changes + N_WARM_UP {
        let slice = cluster::slice(version * 97 % case.n_services, case.n_endpoints, version as u64);
        let (latency, line) = change(version, &|| server.put(slice.clone()))?;
        if version > N_WARM_UP {
            endpoint.push(latency);
        }
        n_lines = n_lines.max(number(&line, "lines"));
    }
    let (mut service, mut n_service_lines) = (Vec::new(), 0);
    for n in 0..10 {
        let n = case.n_services + n;
        // No Service uses it yet; its sync writes nothing.
        server.put(cluster::slice(n, case.n_endpoints, 0));
        agent.wait("synced", |line| line["family"] == "IPv4")?;
        let (latency, line) = change(n, &|| server.put(cluster::service(n)))?;
        service.push(latency);
        n_service_lines = n_service_lines.max(number(&line, "lines"));
    }
    let memory = agent.memory()?;
    let mut restores = bare_restores(case)?;

    // The last Service leads to the one real endpoint, and is contacted all the time.
    let last = case.n_services - 1;
    let mut slice = cluster::slice(last, 1, 0);
    slice["endpoints"][0]["addresses"][0] = pod.address().ip().to_string().into();
    let frontend = cluster::frontend(last);
    let changed_at = Instant::now();
    server.put(slice);
    pod.first_packet(frontend, LIMIT)?;
    let first_packet = changed_at.elapsed().as_secs_f64() * 1e3;
    agent.wait("synced", |line| line["family"] == "IPv4")?;
    let hit = pod.connect_to(frontend)?;
    let miss = pod.connect_to(pod.address())?;
    agent.end()?;

    let again = Agent::start(case, &kubeconfig)?;
    let (_, restart) = again.wait("synced", |line| line["family"] == "IPv4")?;
    again.end()?;
    let (own, children) = (cpu.own, cpu.children);
    println!(
        "| {} | {} | {} x {} | {:.2} | {} | {} | {own:.1} / {children:.1} | {:.0} / {:.0} | {:.0} | {first_packet:.0} | {n_lines} \
         | {:.0} | {n_service_lines} | {:.0} / {:.0} | {:.0} | {} | {} | {:.0} / {:.0} / {:.0} | {:.0} / {:.0} / {:.0} | {:.0} / {:.0} / {:.0} |",
        case.backend,
        case.layout,
        case.n_services,
        case.n_endpoints,
        (synced - listed).as_secs_f64(),
        number(&first, "processes"),
        number(&first, "rules_written"),
        percentile(&mut endpoint, 50),
        percentile(&mut endpoint, 99),
        percentile(&mut restores, 50),
        percentile(&mut service, 50),
        memory.resident_mb,
        memory.peak_mb,
        memory.largest_child_mb,
        n_bytes_read.map_or("?".to_owned(), |n| format!("{:.1}", n as f64 / 1e6)),
        number(&restart, "rules_written"),
        bare.p50_us,
        hit.p50_us,
        miss.p50_us,
        bare.p99_us,
        hit.p99_us,
        miss.p99_us,
        bare.per_second,
        hit.per_second,
        miss.per_second,
    );
    Ok(())
}

/// Changes that are made before measuring.
const N_WARM_UP: usize = 5;

/// Enables connection tracking and the base chains of nat and filter, by a rule that no packet matches;
/// returns a function that removes the rule.
fn switch_netfilter_on(case: &Case) -> anyhow::Result<impl FnOnce() -> anyhow::Result<()>> {
    let program = format!("iptables-{}", case.backend);
    let all = move |action: &str| -> anyhow::Result<()> {
        let nat = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"].map(|chain| ("nat", chain));
        let filter = ["INPUT", "FORWARD", "OUTPUT"].map(|chain| ("filter", chain));
        for (table, chain) in nat.into_iter().chain(filter) {
            let rule = ["-t", table, action, chain, "-s", "255.255.255.255", "-j", "RETURN"];
            let status = Command::new(&program).args(rule).status().context("running iptables")?;
            ensure!(status.success(), "{program} {rule:?} failed");
        }
        Ok(())
    };
    all("-A")?;
    Ok(move || all("-D"))
}

/// Times of the kernel's notifications of nf_tables commits; the legacy back-end has none.
#[derive(Default)]
struct Commits {
    last: Arc<Mutex<Option<Instant>>>,
}

impl Commits {
    /// Listens until this process ends.
    fn listen(case: &Case) -> anyhow::Result<Commits> {
        let commits = Commits::default();
        if case.backend != "nft" {
            return Ok(commits);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut notifications = {
            let _inside = runtime.enter();
            CommitNotifications::listen().context("listening to nf_tables")?
        };
        let last = commits.last.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                while let Ok(Commit::Made { .. } | Commit::Missed) = notifications.next().await {
                    *last.lock().expect("no panic while locked") = Some(Instant::now());
                }
            });
        });
        Ok(commits)
    }

    /// When the last commit was notified, if that was after `moment`.
    fn last_since(&self, moment: Instant) -> Option<Instant> {
        self.last.lock().expect("no panic while locked").filter(|at| *at > moment)
    }
}

/// The `p`th percentile of `values`.
fn percentile(values: &mut [f64], p: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * p / 100).min(values.len() - 1)]
}

/// How long `iptables-restore` alone takes, in ms, for the input of one changed endpoint: made by the same
/// code for the same cluster, and restored into the agent's tables.
fn bare_restores(case: &Case) -> anyhow::Result<Vec<f64>> {
    let layout = if case.layout == "compact" { LayoutChoice::Compact } else { LayoutChoice::Classic };
    let mut cluster = cluster::Cluster::new(case.n_services, case.n_endpoints, layout);
    let mut family = sink::fresh(&cluster, Backend::Nft);
    sink::sync(&mut family, &cluster);
    let change = cluster.endpoint_change(97 % case.n_services, 1);
    sink::change(&mut family, &mut cluster, change);
    let text = std::mem::take(&mut family.kernel().last);
    let program = format!("iptables-{}-restore", case.backend);
    let mut times = Vec::new();
    for _ in 0..case.n_changes.min(20) {
        let started = Instant::now();
        let mut child = Command::new(&program)
            .args(["--noflush", "-w", "5"])
            .stdin(Stdio::piped())
            .spawn()
            .context("starting iptables-restore")?;
        child.stdin.take().context("a pipe")?.write_all(text.as_bytes())?;
        ensure!(child.wait()?.success(), "{program} refused what the agent sends");
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

fn number(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap_or_default()
}

/// Enters a new network namespace with its own `/run` for the lock of the legacy back-end.
fn enter_namespaces() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("making namespaces (as root?)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mounting /run")?;
    // The client is a pod, so that it is not masqueraded, and has another address than the server.
    let client = "10.255.255.8";
    let route = format!("route add default dev lo src {client}");
    let addresses =
        [client, "10.255.255.7", "192.0.2.9"].map(|address| format!("address add {address}/32 dev lo"));
    for words in
        ["link set lo up"].into_iter().chain(addresses.iter().map(String::as_str)).chain([route.as_str()])
    {
        let status = Command::new("ip").args(words.split(' ')).status().context("running ip")?;
        ensure!(status.success(), "ip {words} failed");
    }
    Ok(())
}

fn fill(server: &dyn Cluster, case: &Case) {
    server.put(cluster::node());
    for n in 0..case.n_services {
        server.put(cluster::service(n));
        server.put(cluster::slice(n, case.n_endpoints, 0));
    }
}

/// A running agent and its log.
struct Agent {
    child: Child,
    started: Instant,
    log: mpsc::Receiver<(Instant, Value)>,
    /// The peak memory of its children, in KB.
    peak_child_memory: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

/// Seconds of CPU.
struct Cpu {
    own: f64,
    children: f64,
}

struct Memory {
    resident_mb: f64,
    peak_mb: f64,
    largest_child_mb: f64,
}

impl Agent {
    fn start(case: &Case, kubeconfig: &std::path::Path) -> anyhow::Result<Agent> {
        // Another program, to compare with.
        let program = std::env::var_os("CHAINSMITH").unwrap_or(env!("CARGO_BIN_EXE_chainsmith").into());
        let mut child = Command::new(program)
            .arg("run")
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--iptables-backend={}", case.backend))
            .arg(format!("--layout={}", case.layout))
            .args(["--cluster-cidr=10.0.0.0/8", "--iptables-min-sync-period=1ms"])
            .args(["--hostname-override", cluster::NODE, "--logging-format=json", "-v=2"])
            .stderr(Stdio::piped())
            .spawn()
            .context("starting chainsmith")?;
        let started = Instant::now();
        let stderr = child.stderr.take().context("a pipe")?;
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        let (peak_child_memory, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (pid, largest, over) = (child.id(), peak_child_memory.clone(), is_over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                largest.fetch_max(children_peak(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Ok(Agent { child, started, log, peak_child_memory, is_over })
    }

    /// The next log line with `message` for which `claim` holds.
    fn wait(&self, message: &str, claim: impl Fn(&Value) -> bool) -> anyhow::Result<(Instant, Value)> {
        loop {
            let (at, line) = self.log.recv_timeout(LIMIT).with_context(|| format!("no {message:?}"))?;
            if std::env::var_os("SHOW_LOG").is_some()
                || matches!(line["level"].as_str(), Some("warn" | "error"))
            {
                eprintln!("{line}");
            }
            if line["msg"] == message && claim(&line) {
                return Ok((at, line));
            }
        }
    }

    /// Discards the log so far.
    fn forget_log(&self) {
        while self.log.try_recv().is_ok() {}
    }

    fn cpu(&self) -> anyhow::Result<Cpu> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = stat.rsplit_once(')').context("a stat line")?;
        // utime, stime, cutime, cstime: fields 14 to 17, in hundredths of a second.
        let times: Vec<f64> =
            rest.split_whitespace().skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Cpu { own: (times[0] + times[1]) / 100.0, children: (times[2] + times[3]) / 100.0 })
    }

    fn memory(&self) -> anyhow::Result<Memory> {
        let megabytes =
            |key| Ok::<f64, anyhow::Error>(status_kb(self.child.id(), key).context(key)? as f64 / 1024.0);
        let largest_child_mb = self.peak_child_memory.load(Ordering::Relaxed) as f64 / 1024.0;
        Ok(Memory { resident_mb: megabytes("VmRSS:")?, peak_mb: megabytes("VmHWM:")?, largest_child_mb })
    }

    fn end(mut self) -> anyhow::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("chainsmith ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // After a failure; otherwise it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One line of `/proc/<pid>/status`; `None` when the process is gone.
fn status(pid: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

fn status_kb(pid: u32, key: &str) -> Option<u64> {
    status(pid, key)?.split(' ').next()?.parse().ok()
}

/// The highest peak memory of the current children of `pid`, in KB.
fn children_peak(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<u32> = children
        .flat_map(|line| line.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<_>>())
        .collect();
    // Between fork and exec a child still has the agent's memory.
    let is_program = |pid: &u32| status(*pid, "Name:").is_some_and(|name| name.starts_with("ip"));
    pids.into_iter()
        .filter(is_program)
        .filter_map(|child| status_kb(child, "VmHWM:"))
        .max()
        .unwrap_or_default()
}
