//! Resources that neighbours can exhaust: connections, memory, threads.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{AT_ONCE, Extent, Finding, SOON};
use crate::cluster::{OWN, own_slice};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::agent::AgentOptions;
use crate::lab::client::{Host, PATIENCE};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// The proxy's own health, and the health check node port of the Service `local`.
const HEALTHZ: u16 = 10256;
const HEALTH_PORT: u16 = 30111;
const METRICS: u16 = 10249;

/// Connections that an attacker holds to each port.
const N_HELD: usize = 260;

fn at(node: &Node, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(node.address().of(family), port)
}

/// Opens `n` connections from `host` to each of `targets` and sends `head` on each.
fn hold(host: &dyn Host, targets: &[SocketAddr], n: usize, head: &[u8]) -> Vec<TcpStream> {
    host.namespace().run(|| {
        let open = |to: &SocketAddr| {
            let mut stream = TcpStream::connect_timeout(to, PATIENCE).ok()?;
            stream.set_write_timeout(Some(Duration::from_millis(200))).ok()?;
            // Refused once there are too many.
            let _ = stream.write_all(head);
            Some(stream)
        };
        (0..n).flat_map(|_| targets.iter().filter_map(open)).collect()
    })
}

/// The status and body of `to` for a request of `host`, within a second or two.
fn get(host: &dyn Host, to: SocketAddr, path: &str) -> Option<(u16, String)> {
    let text = host.namespace().run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })?;
    Some((text.split(' ').nth(1)?.parse().ok()?, text))
}

fn metric(node: &Node, name: &str) -> f64 {
    let (_, text) = get(node, SocketAddr::from(([127, 0, 0, 1], METRICS)), "/metrics").expect("metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the metric is there");
    line.trim().parse().expect("a number")
}

/// Changes the endpoint of the Service `own` to and fro; returns how long each change took to be in force.
fn changes(running: &Running, n: u32) -> Vec<Duration> {
    let change = |n| {
        let (address, pod) = super::kernel::TURNS[n as usize % 2];
        running.api.put(own_slice(&[address]));
        let to = OWN.cluster_ip(Family::V4);
        poll::until("a change is in force", SOON, || running.lab.node(1).tcp(to).pod() == pod)
    };
    (0..n).map(change).collect()
}

/// An agent with few file descriptors goes on programming while all its health ports are full.
pub fn idle_connections_take_no_descriptors_from_rules(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    running.replace_agent_under(&["prlimit", "--nofile=256:256"]).expect("an agent starts");
    let node = running.lab.node(1);
    let targets: Vec<SocketAddr> = FAMILIES
        .iter()
        .flat_map(|family| [at(node, *family, HEALTHZ), at(node, *family, HEALTH_PORT)])
        .collect();
    poll::until("the health port is open", SOON, || get(node, targets[1], "/").is_some());
    let mut held = hold(running.lab.outside(), &targets, N_HELD, b"");
    held.extend(hold(running.lab.pod("client-1"), &targets[..1], N_HELD, b""));
    let (n_held, repaired) = (held.len(), changes(&running, extent.of(4, 20)));
    assert_eq!(get(node, targets[0], "/healthz").map(|(status, _)| status), Some(200), "the kubelet");
    let n_evicted = metric(node, "chainsmith_connections_evicted_total ");
    assert!(n_evicted > 0.0, "nothing was closed");
    let log = running.agents[0].log();
    assert!(log.contains("too many connections; closed one of the peer with most"), "it is logged");
    drop(held);
    connections_that_cannot_be_accepted_are_counted(&running);
    running.replace_agent_under(&["prlimit", "--nofile=256:4096"]).expect("an agent starts");
    assert_eq!(metric(running.lab.node(1), "process_max_fds "), 4096.0, "the soft limit is raised");
    vec![Finding {
        fault: format!("{n_held} idle connections to health ports, 256 descriptors in all"),
        n_times: u32::try_from(repaired.len()).expect("a few"),
        observed: format!(
            "changes in force, /healthz answers; {n_evicted:.0} older connections closed for new ones"
        ),
        repaired,
        ..Finding::default()
    }]
}

/// Lowers the limit of open files of the agent below the number that it has open: connections wait, are counted, and
/// are answered once the limit is raised.
fn connections_that_cannot_be_accepted_are_counted(running: &Running) {
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let limit = |soft: u32| {
        let (pid, limit) = (agent.process().pid().to_string(), format!("--nofile={soft}:256"));
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(status.expect("prlimit runs").success());
    };
    let to = SocketAddr::from(([127, 0, 0, 1], HEALTHZ));
    limit(8);
    let refused = get(node, to, "/healthz");
    poll::until("it is logged", SOON, || agent.log().contains("cannot accept a connection"));
    assert_eq!(refused, None, "there was no descriptor for it");
    limit(256);
    poll::until("/healthz answers", SOON, || get(node, to, "/healthz").is_some());
    assert!(metric(node, "chainsmith_accept_failures_total ") >= 1.0);
}

/// Endless heads are answered 431 at 16 KiB: memory is bounded.
pub fn unfinished_heads_take_no_memory(backend: Backend, extent: Extent) -> Vec<Finding> {
    const SIZE: usize = 380 << 10;
    let running = Running::start(backend).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let targets: Vec<SocketAddr> = FAMILIES
        .iter()
        .flat_map(|family| [at(node, *family, HEALTHZ), at(node, *family, HEALTH_PORT)])
        .collect();
    poll::until("the health port is open", SOON, || get(node, targets[1], "/").is_some());
    let before = agent.resident();
    let head = format!("GET / HTTP/1.1\r\nhost: lab\r\nx: {}", "x".repeat(SIZE)).into_bytes();
    let n = extent.of(50, 128);
    let held = hold(running.lab.outside(), &targets, n, &head);
    let grown = agent.resident().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more for {} heads", held.len());
    let n_refused = held.iter().filter(|stream| is_refused(stream)).count();
    assert!(n_refused > held.len() / 2, "{n_refused} of {} are answered 431 or closed", held.len());
    vec![Finding {
        fault: format!("{} requests with an endless head ({} KiB sent)", held.len(), SIZE >> 10),
        n_times: u32::try_from(held.len()).expect("a few"),
        observed: format!("answered 431 and closed; resident memory {before} KiB, {grown} KiB more"),
        ..Finding::default()
    }]
}

/// Whether the server has answered 431, or closed the connection.
fn is_refused(mut stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let mut text = [0; 12];
    match stream.read(&mut text) {
        Ok(n) => n == 0 || text.starts_with(b"HTTP/1.1 431"),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

/// Half-open connections of one pod, reopened when they are closed, delay no other client's request.
pub fn one_address_keeps_no_other_from_health(backend: Backend, extent: Extent) -> Vec<Finding> {
    let running = Running::start(backend).expect("a cluster starts");
    let node = running.lab.node(1);
    let targets = [at(node, Family::V4, HEALTHZ), at(node, Family::V4, HEALTH_PORT)];
    poll::until("the health port is open", SOON, || get(node, targets[1], "/").is_some());
    let is_over = AtomicBool::new(false);
    let n_times = extent.of(20, 200);
    let mut repaired = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let attacker = running.lab.pod("client-1");
            let mut held = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                held.retain(is_open);
                let n_missing = (N_HELD - held.len() / 2).min(N_HELD);
                held.extend(hold(attacker, &targets, n_missing, b"GET / HT"));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..n_times {
            let asked = Instant::now();
            let answers = [
                get(node, SocketAddr::from(([127, 0, 0, 1], HEALTHZ)), "/healthz"),
                get(node, targets[0], "/livez"),
                get(running.lab.outside(), targets[1], "/"),
            ];
            let statuses = answers.map(|answer| answer.map(|(status, _)| status));
            if statuses != [Some(200); 3] {
                is_over.store(true, Ordering::Relaxed);
                panic!("{statuses:?} after {:?}", asked.elapsed());
            }
            repaired.push(asked.elapsed());
        }
        is_over.store(true, Ordering::Relaxed);
    });
    vec![Finding {
        fault: format!("{N_HELD} half-open connections of one pod to each health port, reopened when closed"),
        n_times,
        observed:
            "/healthz, /livez and the health check node port answer other clients; the time is for all three"
                .to_owned(),
        repaired,
        ..Finding::default()
    }]
}

/// Whether this connection, on which the server answers nothing, is still open.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("it is a socket");
    stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// A pids cgroup, removed when dropped.
struct PidsCgroup(PathBuf);

impl PidsCgroup {
    fn new(name: &str) -> PidsCgroup {
        let name = format!("chainsmith-lab-{}-{name}", std::process::id());
        let v1 = PathBuf::from("/sys/fs/cgroup/pids");
        let root = if v1.is_dir() { v1 } else { PathBuf::from("/sys/fs/cgroup") };
        let folder = root.join(name);
        // Where it is enabled already, or in version 1, there is nothing to enable.
        let _ = std::fs::write(root.join("cgroup.subtree_control"), "+pids");
        std::fs::create_dir(&folder).expect("root can make a cgroup");
        assert!(folder.join("pids.max").exists(), "the kernel has the pids controller");
        PidsCgroup(folder)
    }

    /// The beginning of the command line of a process in it.
    fn under(&self) -> Vec<String> {
        let script = format!("echo $$ > {}; exec \"$@\"", self.0.join("cgroup.procs").display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    fn limit(&self, max: &str) {
        std::fs::write(self.0.join("pids.max"), max).expect("a limit can be set");
    }

    /// Limits it to the present number of tasks.
    fn fill(&self) {
        let current = std::fs::read_to_string(self.0.join("pids.current")).expect("it is counted");
        self.limit(current.trim());
    }
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        // It is empty a moment after its last process was killed.
        let until = Instant::now() + SOON;
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// In a cgroup that allows no further thread, syncs fail and are retried; a start waits.
pub fn threads_that_cannot_be_created_cause_a_retry(backend: Backend, extent: Extent) -> Vec<Finding> {
    // Dropped after the agents in it.
    let cgroup = PidsCgroup::new(backend.flag());
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    running.agents.remove(0).kill9();
    cgroup.limit("4");
    let options = AgentOptions { under: cgroup.under(), ..running.options().clone() };
    let agent = running.lab.start_chainsmith(running.lab.node(1), &options).expect("an agent starts");
    poll::until("it waits for threads", SOON, || agent.log().contains("cannot make threads yet"));
    assert_eq!(agent.process().status(), None, "{}", agent.log());
    cgroup.limit("max");
    let mut repaired = vec![poll::until("it has synced", SOON, || agent.syncs().len() >= 2)];
    running.agents.insert(0, agent);

    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let to = OWN.cluster_ip(Family::V4);
    let n_times = extent.of(1, 5);
    for n in 0..n_times {
        let (address, pod) = super::kernel::TURNS[n as usize % 2];
        poll::until("nothing runs beside it", SOON, || {
            cgroup.fill();
            let n_failed = agent.log().matches("sync failed").count();
            running.api.put(own_slice(&["10.128.0.6"]));
            running.api.put(own_slice(&[address]));
            std::thread::sleep(Duration::from_millis(500));
            let log = agent.log();
            log.contains("syncing families one after the other")
                && log.matches("sync failed").count() > n_failed
        });
        assert_eq!(agent.process().status(), None, "{}", agent.log());
        let local = SocketAddr::from(([127, 0, 0, 1], HEALTHZ));
        assert!(get(node, local, "/livez").is_some(), "it answers");
        cgroup.limit("max");
        repaired.push(poll::until("the change is in force", SOON, || node.tcp(to).pod() == pod));
    }
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    vec![Finding {
        fault: "a full pids cgroup: no thread, no program".to_owned(),
        n_times: n_times + 1,
        observed: "a start waits, syncs are retried; health answers".to_owned(),
        repaired,
        ..Finding::default()
    }]
}
