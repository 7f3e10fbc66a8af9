//! A running agent seen from outside: health check node ports, `/healthz` and `/livez`, metrics,
//! events; and occupied ports.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::stop_all;
use crate::cluster::{LOCAL, LOCAL_PODS, OWN, own_slice};
use crate::lab::address::{FAMILIES, Family};
use crate::lab::agent::Agent;
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::Node;
use crate::lab::http::get;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a change may take to show, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(10);

/// The health check node port of the Service `local`.
pub const HEALTH_PORT: u16 = 30111;
/// The proxy's own health, and its metrics.
const HEALTHZ: u16 = 10256;
const METRICS: u16 = 10249;

fn at(node: &Node, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(node.address().of(family), port)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Status and weight of the health check node port of `local` on `node`, as a load balancer asks.
fn weight(running: &Running, node: &Node, family: Family) -> Option<(u16, String)> {
    let answer = get(running.lab.outside(), at(node, family, HEALTH_PORT), "/")?;
    let weight = answer.header("X-Load-Balancing-Endpoint-Weight")?.to_owned();
    Some((answer.status, weight))
}

fn is(status: u16, weight: u32) -> Option<(u16, String)> {
    Some((status, weight.to_string()))
}

/// The IPv4 slice of the Service `local`: its two pods on node-1 in these conditions (ready, serving,
/// terminating), and one on node-2 that is ready.
fn local_slice(conditions: &[(bool, bool, bool)]) -> Value {
    let mut endpoints = vec![json!({"addresses": ["10.128.1.5"], "nodeName": "node-2"})];
    for ((ready, serving, terminating), host) in conditions.iter().zip(5..) {
        endpoints.push(json!({
            "addresses": [format!("10.128.0.{host}")], "nodeName": "node-1",
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        }));
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "local-v4", "namespace": "default", "labels": {"kubernetes.io/service-name": "local"},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 8080}, {"name": "echo", "protocol": "UDP", "port": 8080},
        ],
        "endpoints": endpoints,
    })
}

const READY: (bool, bool, bool) = (true, true, false);
const TERMINATING: (bool, bool, bool) = (false, true, true);

/// Load balancers choose another node when the last local pod leaves, and already when only
/// terminating ones are left, to which traffic is still sent.
pub fn health_port_follows_the_local_pods(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let (one, two) = (running.lab.node(1), running.lab.node(2));
    for family in FAMILIES {
        poll::until("node-1 has two pods", SOON, || weight(&running, one, family) == is(200, 2));
        poll::until("node-2 has none", SOON, || weight(&running, two, family) == is(503, 0));
    }
    let any_path = get(one, loopback(HEALTH_PORT), "/any/path").expect("it answers itself too");
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"local\"\n\t},\n\t\
                \"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!((any_path.status, any_path.body.as_str()), (200, body));

    running.api.put(local_slice(&[READY, TERMINATING]));
    poll::until("one is left", SOON, || weight(&running, one, Family::V4) == is(200, 1));
    running.api.put(local_slice(&[TERMINATING, TERMINATING]));
    poll::until("only terminating ones are left", SOON, || weight(&running, one, Family::V4) == is(503, 0));
    // A client that connects all the same is served.
    let served = running.lab.outside().tcp(LOCAL.node_port(one, Family::V4));
    assert!(LOCAL_PODS.contains(&served.pod()), "{served:?}");
    assert_eq!(weight(&running, two, Family::V4), is(200, 1), "the load balancer has somewhere to go");
    running.api.put(local_slice(&[]));
    poll::until("no endpoint is left", SOON, || {
        let outcome = running.lab.outside().attempt(
            Protocol::Tcp,
            LOCAL.node_port(one, Family::V4),
            Duration::from_millis(300),
        );
        outcome.outcome == Outcome::TimedOut
    });
    assert_eq!(weight(&running, one, Family::V4), is(503, 0));
    assert_eq!(weight(&running, one, Family::V6), is(200, 2), "the other family has its own slice");

    assert!(running.api.delete("Service", Some("default"), LOCAL.name), "there was a Service");
    for family in FAMILIES {
        poll::until("the port is closed", SOON, || weight(&running, one, family).is_none());
    }
    stop_all(running);
}

/// Status of `/healthz` and `/livez` of `node`, as a load balancer sees them.
fn health(running: &Running, node: &Node, family: Family) -> [Option<u16>; 2] {
    ["/healthz", "/livez"]
        .map(|path| get(running.lab.outside(), at(node, family, HEALTHZ), path).map(|answer| answer.status))
}

/// The Node object of node-1 with these taints.
fn tainted(node: &Node, taints: &Value) -> Value {
    let mut object = crate::cluster::node_object(node);
    object["spec"]["taints"] = taints.clone();
    object
}

/// Load balancers leave a node that is about to be removed; its agent is not restarted for that.
pub fn a_node_that_is_leaving_is_unhealthy_but_alive(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let node = running.lab.node(1);
    for family in FAMILIES {
        assert_eq!(health(&running, node, family), [Some(200), Some(200)], "one socket takes both families");
    }
    let answer = get(node, loopback(HEALTHZ), "/healthz").expect("it answers itself too");
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)));
    assert_eq!(body["status"].as_object().map(serde_json::Map::len), Some(2), "{body}");

    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
    running.api.put(tainted(node, &taint));
    poll::until("the node is left", SOON, || health(&running, node, Family::V4) == [Some(503), Some(200)]);
    let weight_of = |family| weight(&running, node, family);
    assert_eq!(weight_of(Family::V4), is(200, 2), "Services' own health says nothing of the Node");
    running.api.put(tainted(node, &json!([])));
    poll::until("the node stays", SOON, || health(&running, node, Family::V4) == [Some(200), Some(200)]);
    stop_all(running);
}

/// An agent that cannot write rules for twice the sync period is unhealthy until it can.
pub fn a_stale_proxy_turns_unhealthy(backend: Backend) {
    let flags = ["--iptables-sync-period=2s", "--iptables-min-sync-period=1ms"];
    let running = Running::with_flags(backend, &flags).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    poll::until("Services are answered for", SOON, || weight(&running, node, Family::V4) == is(200, 2));
    agent.sabotage(Some("case \"$program $1\" in iptables*-restore\\ -w) cat > /dev/null; exit 1;; esac\n"));
    let changed = Instant::now();
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("it is stale", SOON, || health(&running, node, Family::V4) == [Some(503), Some(503)]);
    let elapsed = changed.elapsed();
    assert!(elapsed >= Duration::from_secs(4), "after {elapsed:?}");
    assert!(elapsed < Duration::from_secs(7), "after {elapsed:?}");
    let answer = get(node, loopback(HEALTHZ), "/livez").expect("it answers");
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    let of = |family: &str| body["status"][family]["healthy"].clone();
    assert_eq!((of("IPv4"), of("IPv6")), (json!(false), json!(true)), "{body}");
    assert_eq!(weight(&running, node, Family::V4), is(503, 2));
    assert_eq!(weight(&running, node, Family::V6), is(503, 2), "all families count for Services");
    let failures =
        metric(node, "kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv4\"}");
    assert!(failures >= Some(2.0), "{failures:?}");
    agent.sabotage(None);
    poll::until("it has caught up", SOON, || health(&running, node, Family::V4) == [Some(200), Some(200)]);
    assert_eq!(node.tcp(OWN.cluster_ip(Family::V4)).pod(), "web-3");
    assert_eq!(weight(&running, node, Family::V4), is(200, 2));
    stop_all(running);
}

/// The value of a series of the agent on `node`, by the series' whole name.
fn metric(node: &Node, series: &str) -> Option<f64> {
    let text = get(node, loopback(METRICS), "/metrics")?.body;
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

/// Occupied ports are reported and retried; everything else goes on.
pub fn ports_in_use_are_reported_and_retried(backend: Backend) {
    let mut running = Running::start(backend).expect("a cluster starts");
    running.agents.remove(0).stop();
    let listen = |address: String| TcpListener::bind(address).expect("a port is free");
    let taken: Vec<TcpListener> = running
        .lab
        .node(1)
        .namespace()
        .run(|| vec![listen(format!("0.0.0.0:{HEALTH_PORT}")), listen(format!("[::]:{HEALTHZ}"))]);
    let agent = running.start_agent(running.lab.node(1)).expect("an agent starts");
    let node = running.lab.node(1);
    poll::until("the agent has synced both families", SOON, || agent.syncs().len() >= 2);
    poll::until("the other family answers", SOON, || {
        get(running.lab.outside(), at(node, Family::V6, HEALTH_PORT), "/")
            .is_some_and(|answer| answer.status == 200)
    });
    let says = |agent: &Agent, words: &[&str]| {
        agent.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    let health_port = ["cannot open health check node port", "default/local", "0.0.0.0:30111"];
    poll::until("it is logged", SOON, || {
        says(&agent, &health_port) && says(&agent, &["cannot listen", "0.0.0.0:10256", "healthz"])
    });
    assert!(metric(node, "chainsmith_bind_failures_total{server=\"healthz\"}") >= Some(1.0));
    assert_eq!(metric(node, "chainsmith_service_health_ports_failed{ip_family=\"IPv4\"}"), Some(1.0));
    let event = poll::until_some("there is an event about the Service", SOON, || {
        let events = running.api.events();
        events.into_iter().find(|event| event["reason"] == "FailedToStartServiceHealthcheck")
    });
    assert_eq!(
        (&event["regarding"]["name"], &event["type"]),
        (&json!("local"), &json!("Warning")),
        "{event}"
    );
    assert!(
        event["note"].as_str().is_some_and(|note| note.contains("node node-1") && note.contains("30111")),
        "{event}"
    );
    let starting = running.api.events();
    assert!(
        starting.iter().any(|event| event["reason"] == "Starting" && event["regarding"]["kind"] == "Node")
    );

    // Changes go on meanwhile.
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("web-3 has taken over", SOON, || node.tcp(OWN.cluster_ip(Family::V4)).pod() == "web-3");
    drop(taken);
    poll::until("the proxy's health is answered for", SOON, || {
        health(&running, node, Family::V4) == [Some(200), Some(200)]
    });
    poll::until("the Service's health is answered for", SOON * 3, || {
        weight(&running, node, Family::V4) == is(200, 2)
    });
    assert_eq!(metric(node, "chainsmith_service_health_ports_failed{ip_family=\"IPv4\"}"), Some(0.0));
    running.agents.insert(0, agent);
    stop_all(running);
}

/// With `bindAddressHardFail` an occupied port ends the process, and an event gives the reason.
pub fn with_hard_fail_a_port_in_use_ends_the_process(backend: Backend) {
    let mut running = Running::with_flags(backend, &["--bind-address-hard-fail"]).expect("a cluster starts");
    running.agents.remove(0).stop();
    let node = running.lab.node(1);
    let listen = || TcpListener::bind(("127.0.0.1", METRICS)).expect("a port is free");
    let _taken = node.namespace().run(listen);
    let agent = running.start_agent(node).expect("an agent starts");
    let status = agent.process().wait();
    assert_eq!(status.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("cannot serve metrics on 127.0.0.1:10249"), "{}", agent.log());
    let events = running.api.events();
    let event = events.iter().find(|event| event["reason"] == "FailedToStartMetricServer");
    assert_eq!(event.map(|event| &event["regarding"]["kind"]), Some(&json!("Node")), "{events:?}");
    stop_all(running);
}

/// The metrics show the rules in the kernel, their latency, and the changes behind them.
pub fn metrics_show_the_rules_in_the_kernel(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let node = running.lab.node(1);
    let mut slice = own_slice(&["10.128.1.5"]);
    let now = jiff::Timestamp::now().to_string();
    slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
    running.api.put(slice);
    poll::until("web-3 has taken over", SOON, || node.tcp(OWN.cluster_ip(Family::V4)).pod() == "web-3");
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    poll::until("its latency is measured", SOON, || metric(node, count) == Some(1.0));
    let sum = metric(node, &count.replace("_count", "_sum")).expect("a histogram has a sum");
    assert!(sum > 0.0 && sum < SOON.as_secs_f64(), "{sum} s");

    for (family, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let rules = node.netfilter().save(family).expect("rules can be read");
        for table in ["filter", "nat"] {
            let of_table = rules.split('*').find(|part| part.starts_with(table)).expect("the table is there");
            let n_rules = of_table.lines().filter(|line| line.starts_with("-A KUBE-")).count();
            let total = format!(
                "kubeproxy_sync_proxy_rules_iptables_total{{ip_family=\"{name}\",table=\"{table}\"}}"
            );
            assert_eq!(metric(node, &total), Some(n_rules as f64), "{total}");
        }
        let full = format!("kubeproxy_sync_full_proxy_rules_duration_seconds_count{{ip_family=\"{name}\"}}");
        assert!(metric(node, &full) >= Some(1.0), "{full}");
    }
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    // A change may have been synced together with a full sync.
    let mut turns = ["10.128.0.5", "10.128.1.5"].into_iter().cycle();
    poll::until("a change alone is a partial sync", SOON, || {
        running.api.put(own_slice(&[turns.next().expect("it has no end")]));
        metric(node, partial) >= Some(1.0)
    });
    assert_eq!(metric(node, "chainsmith_objects{kind=\"Service\"}"), Some(5.0));
    let backend = backend.flag();
    let info =
        format!("chainsmith_rules_info{{backend=\"{backend}\",ip_family=\"IPv4\",layout=\"classic\"}}");
    assert_eq!(metric(node, &info), Some(1.0));
    assert!(metric(node, "process_resident_memory_bytes") > Some(1e6));
    assert!(metric(node, "chainsmith_largest_child_resident_memory_bytes") > Some(1e6));
    assert_eq!(
        get(node, loopback(METRICS), "/proxyMode").map(|answer| answer.body).as_deref(),
        Some("iptables")
    );
    let configz = get(node, loopback(METRICS), "/configz").expect("it answers").body;
    let configz: Value = serde_json::from_str(&configz).expect("JSON");
    assert_eq!(configz["kubeproxy.config.k8s.io"]["hostnameOverride"], "node-1");
    stop_all(running);
}

/// An address of a pod that the sabotaged programs reject, and how they do it.
pub const REFUSED: &str = "10.128.0.99";
pub const REFUSE: &str = r#"case "$program $1" in *-restore\ -w)
    input=$(cat)
    line=$(echo "$input" | grep -n '10.128.0.99:8080' | head -n 1 | cut -d: -f1)
    [ -z "$line" ] || { echo "$program: line $line failed: Invalid argument" >&2; exit 1; }
    echo "$input" | "$program" "$@"; exit $?
;; esac
"#;

/// Events report a quarantined service port, and another process that writes to our chains; the
/// proxy stays healthy.
pub fn quarantine_and_drift_are_reported_by_events(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let event = |reason: &str| {
        let words = ["kind", "name"].map(|field| format!("/regarding/{field}"));
        poll::until_some(&format!("there is an event {reason}"), SOON, || {
            let events = running.api.events();
            let event = events.iter().find(|event| event["reason"] == reason)?;
            let about =
                words.each_ref().map(|path| event.pointer(path).and_then(Value::as_str).map(str::to_owned));
            let note = event["note"].as_str()?.to_owned();
            Some((about.map(Option::unwrap_or_default), note))
        })
    };
    node.netfilter().flush(Family::V4, "nat").expect("a table can be flushed");
    let (about, note) = event("RulesChangedByOthers");
    assert_eq!(about, ["Node", "node-1"]);
    assert!(note.contains("IPv4") && note.contains("nat KUBE-") && note.contains("repaired"), "{note}");
    assert!(metric(node, "chainsmith_drift_repaired_total{ip_family=\"IPv4\"}") >= Some(1.0));

    agent.sabotage(Some(REFUSE));
    running.api.put(own_slice(&[REFUSED]));
    let (about, note) = event("ServicePortQuarantined");
    assert_eq!(about, ["Service", "own"]);
    assert!(note.contains("default/own:") && note.contains(REFUSED), "{note}");
    let quarantined = "chainsmith_quarantined_service_ports{ip_family=\"IPv4\"}";
    poll::until("both ports are counted", SOON, || metric(node, quarantined) == Some(2.0));
    assert_eq!(health(&running, node, Family::V4), [Some(200), Some(200)]);
    agent.sabotage(None);
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("it is served again", SOON, || metric(node, quarantined) == Some(0.0));
    stop_all(running);
}
