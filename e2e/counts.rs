//! New connections by Service, counted while the agent rewrites the rules that count them.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lab::agent::{Agent, AgentOptions};
use crate::lab::client::Host;
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, http, poll};

/// Services, every second one in IPv6.
const N_SERVICES: usize = 20;
/// Endpoints of each.
const N_ENDPOINTS: usize = 3;
/// Connections and changes of endpoints; the second pair where `CHAINSMITH_FULL_COUNTS` is set.
const COUNTS: [(u64, usize); 2] = [(2_000, 40), (10_000, 200)];
/// How long a change may take to be synced.
const SOON: Duration = Duration::from_secs(20);
const SCRAPE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10249);

/// In both layouts: totals never fall, never exceed the connections made, and lack only what was made while a commit
/// replaced the rules that count it.
pub fn connections_are_counted_across_rewrites(backend: Backend) {
    for layout in ["classic", "compact"] {
        check(backend, layout);
    }
}

fn check(backend: Backend, layout: &str) {
    let lab = Lab::plan(backend).node(&[]).build().expect("a node");
    let node = lab.node(1);
    // Every address of these networks is the node's own: an endpoint may be any of them.
    node.namespace()
        .ip("route add local 10.200.0.0/16 dev lo\nroute add local fd00:200::/64 dev lo\n")
        .unwrap();
    serve(node);
    let folder = tempfile::tempdir().expect("a folder");
    (0..N_SERVICES).for_each(|n| write_service(folder.path(), n, 0));
    let args = [
        format!("--manifests={}", folder.path().display()),
        format!("--layout={layout}"),
        "--connection-metrics=service".to_owned(),
        "--iptables-min-sync-period=0s".to_owned(),
    ];
    let options = AgentOptions { args: args.into(), ..AgentOptions::default() };
    let agent = lab.start_chainsmith(node, &options).expect("an agent starts");
    poll::until("the first rules are in force", SOON, || connect(node, 0) && connect(node, 1));
    // Until the agent has read the counters for the first time, it cannot know what earlier ones left.
    let mut shown = BTreeMap::new();
    poll::until("the agent counts", SOON, || {
        (connect(node, 0) && connect(node, 1)).then(|| scrape(node, &mut shown)).is_some_and(|sum| sum > 0)
    });
    settle(node, &mut shown);
    let first = shown.clone();
    let made = run(node, &agent, folder.path(), &mut shown);
    settle(node, &mut shown);

    let is_full = std::env::var_os("CHAINSMITH_FULL_COUNTS").is_some();
    let (n_made, n_changes) = COUNTS[usize::from(is_full)];
    let count = |of: &BTreeMap<String, u64>, n: usize| of.get(&name(n)).copied().unwrap_or(0);
    let mut n_lost = 0;
    for (n, made) in made.counts.iter().enumerate() {
        let counted = count(&shown, n) - count(&first, n);
        assert!(counted <= *made, "{layout}: {counted} of {made} to {}", name(n));
        n_lost += made - counted;
    }
    assert_eq!(made.counts.iter().sum::<u64>(), n_made);
    // docs/observability.md: what is made between the reading and the end of the commit, to the Service that changed. The
    // reading is a part of the sync. Connections are spread evenly, so this is three times what to expect at most.
    let a_second = n_made as f64 / made.elapsed.as_secs_f64() / N_SERVICES as f64;
    let limit = 3.0 * a_second * made.syncing.as_secs_f64() + 5.0;
    println!(
        "{layout} {backend:?}: lost {n_lost} of {n_made} in {:?}, during {n_changes} changes (limit {limit:.0}, syncs took {:?})",
        made.elapsed, made.syncing
    );
    assert!((n_lost as f64) < limit, "{layout}: lost {n_lost} of {n_made}, more than {limit:.0}");
    live_counters_are_shown(node);
    the_agents_counts_are_shown(node, &shown);
    agent.stop();
}

/// A load that ended.
struct Made {
    /// Connections to each Service.
    counts: Vec<u64>,
    elapsed: Duration,
    /// How long the syncs of the changes took, together.
    syncing: Duration,
}

/// Makes the connections, evenly, as long as endpoints are changed; scrapes between the changes.
fn run(node: &Node, agent: &Agent, folder: &Path, shown: &mut BTreeMap<String, u64>) -> Made {
    let (n_made, n_changes) = COUNTS[usize::from(std::env::var_os("CHAINSMITH_FULL_COUNTS").is_some())];
    let counts: Arc<Vec<AtomicU64>> = Arc::new((0..N_SERVICES).map(|_| AtomicU64::new(0)).collect());
    let is_over = Arc::new(AtomicBool::new(false));
    let (counting, over) = (counts.clone(), is_over.clone());
    let began = Instant::now();
    let load = node.namespace().spawn(move || {
        for n in 0..n_made {
            let at = n as usize % N_SERVICES;
            TcpStream::connect_timeout(&frontend(at), SOON).expect("a Service answers");
            counting[at].fetch_add(1, Ordering::Relaxed);
            // The rest at once, when there are no more changes.
            if !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(4));
            }
        }
    });
    let n_before = sync_times(agent).len();
    for change in 1..=n_changes {
        let n_syncs = sync_times(agent).len();
        write_service(folder, change % N_SERVICES, change);
        poll::until("the change is synced", SOON, || sync_times(agent).len() > n_syncs);
        if change.is_multiple_of(10) {
            scrape(node, shown);
        }
    }
    is_over.store(true, Ordering::Relaxed);
    load.expect("a thread").join().expect("every connection is made");
    let elapsed = began.elapsed();
    let syncing = sync_times(agent).into_iter().skip(n_before).sum();
    Made { counts: counts.iter().map(|n| n.load(Ordering::Relaxed)).collect(), elapsed, syncing }
}

/// The duration of each successful sync in the agent's log.
fn sync_times(agent: &Agent) -> Vec<Duration> {
    let log = agent.log();
    let of_line = |line: &str| {
        let (_, rest) = line.split_once("elapsed_ms=")?;
        line.contains("chains_written=").then_some(())?;
        let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        // Logged in whole milliseconds.
        Some(Duration::from_secs_f64((number.parse::<f64>().ok()? + 1.0) / 1e3))
    };
    log.lines().filter_map(of_line).collect()
}

/// Scrapes what was counted until now: a scrape within a second of another one shows the same.
fn settle(node: &Node, shown: &mut BTreeMap<String, u64>) {
    std::thread::sleep(Duration::from_millis(1_100));
    scrape(node, shown);
}

/// Scrapes `/metrics/services` into `shown`; the sum of all. No count falls.
fn scrape(node: &Node, shown: &mut BTreeMap<String, u64>) -> u64 {
    let answer = http::get(node, SCRAPE, "/metrics/services").expect("the metrics server answers");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let samples = answer.body.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix("chainsmith_service_connections_total{")?.split_once("} ")?;
        let service = labels.split(',').find_map(|label| label.strip_prefix("service=\""))?;
        Some((service.trim_end_matches('"').to_owned(), value.parse::<f64>().ok()? as u64))
    });
    let mut sum = 0;
    for (service, count) in samples {
        let before = shown.insert(service.clone(), count).unwrap_or(0);
        assert!(count >= before, "{service} fell from {before} to {count}");
        sum += count;
    }
    sum
}

/// `top --live` reads what the rules in force count, in both families.
fn live_counters_are_shown(node: &Node) {
    let program = env!("CARGO_BIN_EXE_chainsmith");
    let totals = || -> serde_json::Value {
        let text = node.namespace().command(program, &["top", "--live", "-o", "json"], "").unwrap();
        serde_json::from_str(&text).expect("JSON")
    };
    let count = |report: &serde_json::Value, n: usize| -> u64 {
        let ports = report["servicePorts"].as_array().expect("a list");
        let name = format!("load/{}", name(n));
        let port = ports.iter().find(|port| port["servicePort"] == name.as_str());
        port.map_or(0, |port| port["connections"].as_u64().expect("a number"))
    };
    let before = totals();
    for n in [4, 5] {
        (0..7).for_each(|_| assert!(connect(node, n)));
    }
    let after = totals();
    for (n, expected) in [(4, 7), (5, 7), (6, 0), (7, 0)] {
        assert_eq!(count(&after, n) - count(&before, n), expected, "{}: {before} {after}", name(n));
    }
}

/// `top --agent` shows what the agent has counted, across all rewrites.
fn the_agents_counts_are_shown(node: &Node, shown: &BTreeMap<String, u64>) {
    let program = env!("CARGO_BIN_EXE_chainsmith");
    let text = node.namespace().command(program, &["top", "--agent", "-o", "json"], "").unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["countsSince"], "agentStarted");
    let ports = report["servicePorts"].as_array().expect("a list");
    assert_eq!(ports.len(), N_SERVICES);
    for port in ports {
        let (_, name) = port["servicePort"].as_str().and_then(|name| name.split_once('/')).expect("a name");
        assert!(port["connections"].as_u64() >= shown.get(name).copied(), "{name}: {text}");
        assert_eq!(port["endpoints"], serde_json::Value::Null, "endpoints are not counted");
    }
    let refused = node.namespace().try_command(program, &["top", "--agent", "--by=endpoint"], "").unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && stderr.contains("connectionMetrics"), "{stderr}");
}

fn name(n: usize) -> String {
    format!("s{n}")
}

fn frontend(n: usize) -> SocketAddr {
    let text =
        if n.is_multiple_of(2) { format!("10.96.7.{n}:80") } else { format!("[fd00:10:96::7:{n}]:80") };
    text.parse().expect("an address and port")
}

/// Writes Service `n` with endpoints that differ in each of its versions, which are numbered across all Services: one
/// goes, one comes.
fn write_service(folder: &Path, n: usize, version: usize) {
    let (ip, family) = (frontend(n).ip(), if n.is_multiple_of(2) { "IPv4" } else { "IPv6" });
    let first = version.div_ceil(N_SERVICES);
    let endpoints: Vec<String> = (first..first + N_ENDPOINTS)
        .map(|at| match n % 2 {
            0 => format!("{{addresses: [10.200.{n}.{at}]}}"),
            _ => format!("{{addresses: ['fd00:200::{n}:{at}']}}"),
        })
        .collect();
    let text = format!(
        "kind: Service\nmetadata: {{name: {name}, namespace: load}}\n\
         spec: {{clusterIP: '{ip}', ipFamilies: [{family}], ports: [{{port: 80, targetPort: 8080}}]}}\n---\n\
         kind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: load, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: {family}\nports: [{{port: 8080}}]\nendpoints: [{}]\n",
        endpoints.join(", "),
        name = name(n)
    );
    let hidden = folder.join(format!(".{n}"));
    std::fs::write(&hidden, text).expect("a file can be written");
    std::fs::rename(hidden, folder.join(format!("{n}.yaml"))).expect("a file can be renamed");
}

/// Accepts connections to port 8080 of every address of `node`, as long as the process lives.
fn serve(node: &Node) {
    let listener = node.namespace().run(|| TcpListener::bind("[::]:8080")).expect("a free port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client closes first; then there is nothing to read.
            std::thread::spawn(move || {
                let mut stream = stream;
                _ = stream.read(&mut [0; 1]);
            });
        }
    });
}

fn connect(node: &Node, n: usize) -> bool {
    node.namespace().run(|| TcpStream::connect_timeout(&frontend(n), Duration::from_secs(1)).is_ok())
}
