//! Health check node ports on loopback.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use prometheus::Registry;

use super::desired_ports::DesiredPort;
use super::*;
use crate::apply::{FamilySync, Quarantine};
use crate::compile::View;
use crate::config::Config;
use crate::http::recorded::{RecordedAnswer, ask};
use crate::iptables::Ruleset;
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;
use crate::model::decode::manifest::{self, Object};
use crate::model::decode::{self, Interner};
use crate::model::host::Host;
use crate::model::{Change, ObjectName, Snapshot, Touched};
use crate::policy::Place;
use crate::rules::Settings;

fn name(text: &str) -> ServiceName {
    ObjectName::new("default", text)
}

/// A proxy that is healthy, or has a change that waits for too long.
fn proxy(is_healthy: bool) -> Arc<Health> {
    let health = Health::new(Duration::from_secs(30), true);
    let long_ago = crate::health::health_state::Moment::now().earlier_by(Duration::from_secs(60));
    health.state().updated(IpFamily::V4, long_ago);
    if !is_healthy {
        health.state().queued(IpFamily::V4, long_ago);
    }
    Arc::new(health)
}

#[tokio::test]
async fn answers_are_those_of_kube_proxy() {
    for (service, n_local, request, file) in [
        ("front", 2, "GET /", include_str!("../../../testdata/http/service-health-local.txt")),
        (
            "front",
            2,
            "PUT /any/path?x",
            include_str!("../../../testdata/http/service-health-local-any-path.txt"),
        ),
        ("front", 2, "HEAD /", include_str!("../../../testdata/http/service-health-local-head.txt")),
        ("front", 1, "GET /", include_str!("../../../testdata/http/service-health-local-v6.txt")),
        ("front", 2, "GET /", include_str!("../../../testdata/http/service-health-localhost.txt")),
        ("front", 0, "GET /", include_str!("../../../testdata/http/service-health-local-terminating.txt")),
        ("remote", 0, "GET /", include_str!("../../../testdata/http/service-health-remote.txt")),
    ] {
        let router = answers(name(service), Arc::new(AtomicUsize::new(n_local)), proxy(true));
        let (ours, recorded) = (ask(&router, request).await, RecordedAnswer::read(file.trim_end()));
        assert_eq!((ours.status, &ours.headers), (recorded.status, &recorded.headers), "{request}");
        assert_eq!(ours.body.trim_end(), recorded.body.trim_end(), "{request}");
    }
}

#[tokio::test]
async fn an_unhealthy_proxy_answers_503_for_every_service() {
    let router = answers(name("front"), Arc::new(AtomicUsize::new(2)), proxy(false));
    let answer = ask(&router, "GET /").await;
    assert_eq!((answer.status, answer.headers["x-load-balancing-endpoint-weight"].as_str()), (503, "2"));
    assert!(
        answer.body.ends_with("\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false\n}"),
        "{answer:?}"
    );
}

const PLACE: Place<'_> = Place { node: "node-1", zone: None };

/// The cluster of objects in YAML.
fn snapshot_of(yaml: &str) -> Snapshot {
    let (mut snapshot, mut interner) = (Snapshot::default(), Interner::default());
    manifest::read(yaml.as_bytes(), "test", &mut |object| {
        let change = match object {
            Object::Service(object) => decode::service(&object, &mut interner)
                .named
                .map(|(name, value)| Change::Service(name, value)),
            Object::Slice(object) => {
                decode::slice(&object, &mut interner).named.map(|(name, value)| Change::Slice(name, value))
            }
            Object::Node(object) => {
                decode::node(&object, &mut interner).0.map(|node| Change::Node(Some(node)))
            }
            Object::Pod(_) => None,
        };
        snapshot.apply(change.expect("a name"), &mut Touched::default());
    });
    snapshot
}

/// The ports of `family` that node-1 desires for objects in YAML.
fn desired_of(yaml: &str, config: &Config, family: IpFamily) -> DesiredPorts {
    let snapshot = snapshot_of(yaml);
    let host = Host {
        addresses: ["10.0.0.1", "127.0.0.1", "192.0.2.1"].map(|ip| ip.parse().unwrap()).into(),
        ..Host::default()
    };
    let settings = Settings::new(config, snapshot.node(), &host, family);
    desired_ports(View { snapshot: &snapshot, place: PLACE }, &settings, &Quarantine::new())
}

const RECORDED: &str = include_str!("../../../testdata/http/objects.yaml");

#[test]
fn the_recorded_objects_desire_the_recorded_ports() {
    let ports = |family| {
        let desired = desired_of(RECORDED, &Config::default(), family);
        let port =
            |(name, port): (ServiceName, DesiredPort)| format!("{name} {} {}", port.port, port.n_local);
        (desired.addresses, desired.services.into_iter().map(port).collect::<Vec<_>>())
    };
    let any = |ip: &str| vec![ip.parse::<IpAddr>().unwrap()];
    // Of the two Services only one has a cluster IP of IPv6; at the end of the recording one endpoint of
    // it is ready on node-1.
    let (v4, v6) = (ports(IpFamily::V4), ports(IpFamily::V6));
    assert_eq!((v4.0, v6.0), (any("0.0.0.0"), any("::")));
    assert!(v4.1.len() == 2 && v4.1[1] == "default/remote 32081 0", "{:?}", v4.1);
    assert!(v6.1.len() == 1 && v6.1[0].starts_with("default/front 32080 "), "{:?}", v6.1);
}

fn objects(spec: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\nspec: {{clusterIP: 10.96.0.1, type: LoadBalancer, \
         externalTrafficPolicy: Local, healthCheckNodePort: 32000, ports: [{{name: a, port: 80}}, {{name: b, port: 81}}]{spec}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: default, \
         labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{name: a, port: 8080}}, {{name: b, port: 8081}}]\n\
         endpoints: [{endpoints}]\n"
    )
}

/// The number of local endpoints.
fn n_local_of(endpoints: &str) -> usize {
    let desired = desired_of(&objects("", endpoints), &Config::default(), IpFamily::V4);
    desired.services[&name("web")].n_local
}

/// Case 124.
#[test]
fn an_endpoint_that_serves_two_ports_counts_once() {
    assert_eq!(n_local_of("{addresses: [10.1.0.1], nodeName: node-1}"), 1);
    let two = "{addresses: [10.1.0.1], nodeName: node-1}, {addresses: [10.1.0.2], nodeName: node-1}";
    assert_eq!(n_local_of(two), 2);
}

/// Case 125.
#[test]
fn only_ready_endpoints_of_this_node_count() {
    assert_eq!(n_local_of("{addresses: [10.1.0.1], nodeName: node-2}, {addresses: [10.1.0.2]}"), 0);
    let terminating = "conditions: {ready: false, serving: true, terminating: true}";
    assert_eq!(n_local_of(&format!("{{addresses: [10.1.0.1], nodeName: node-1, {terminating}}}")), 0);
    assert_eq!(n_local_of("{addresses: [10.1.0.1], nodeName: node-1, conditions: {ready: true}}"), 1);
}

/// A load balancer must not send packets here that no rule forwards.
#[tokio::test]
async fn endpoints_of_quarantined_service_ports_do_not_count() {
    let snapshot = snapshot_of(&objects("", "{addresses: [10.1.0.1], nodeName: node-1}"));
    let (v4, desired) = watch::channel(DesiredPorts::default());
    let ports = HealthPorts { desired: PerFamily { v4, v6: watch::channel(DesiredPorts::default()).0 } };
    let mut family = FamilySync::new(FakeIptables::new(IpFamily::V4, Backend::Nft));
    family.set_settings(Settings::new(&Config::default(), None, &Host::default(), IpFamily::V4));
    // Status and weight while the kernel rejects rules with these texts, and how many ports are quarantined.
    for (rejected, expected) in [
        (&[][..], (200, "1", 0)),
        (&["10.1.0.1:8080"], (200, "1", 1)),
        (&["10.1.0.1:8080", "10.1.0.1:8081"], (503, "0", 2)),
        (&[], (200, "1", 0)),
    ] {
        family.kernel().rejected_texts = rejected.iter().map(|text| (*text).to_owned()).collect();
        // An empty kernel, and a full rewrite.
        family.kernel().ruleset = Ruleset::with_built_in_chains();
        family.distrust(crate::drift::ReadReason::AuditDue);
        let view = View { snapshot: &snapshot, place: PLACE };
        let report = family.sync(view, &AtomicBool::new(false));
        assert_eq!(report.outcome, Ok(()), "{rejected:?}");
        let (settings, quarantine) = (family.settings().expect("set above"), family.quarantine());
        let compiled = family.compiled();
        let elapsed = Duration::ZERO;
        ports.synced(&Synced { report: &report, view, settings, quarantine, compiled, elapsed });
        let n_local = desired.borrow().services[&name("web")].n_local;
        let router = answers(name("web"), Arc::new(AtomicUsize::new(n_local)), proxy(true));
        let answer = ask(&router, "GET /").await;
        let weight = answer.headers["x-load-balancing-endpoint-weight"].as_str();
        assert_eq!((answer.status, weight, quarantine.len()), expected, "{rejected:?}: {answer:?}");
        let end = format!("\"localEndpoints\": {weight},\n\t\"serviceProxyHealthy\": true\n}}");
        assert!(answer.body.ends_with(&end), "{answer:?}");
    }
}

#[test]
fn a_service_without_ports_or_of_another_kind_has_no_health_port() {
    let desired = |objects: &str| desired_of(objects, &Config::default(), IpFamily::V4).services.len();
    let objects = objects("", "");
    assert_eq!(desired(&objects), 1);
    assert_eq!(
        desired(&objects.replace("ports: [{name: a, port: 80}, {name: b, port: 81}]", "ports: []")),
        0
    );
    assert_eq!(desired(&objects.replace("Policy: Local", "Policy: Cluster")), 0);
    assert_eq!(desired(&objects.replace("LoadBalancer", "NodePort")), 0);
}

#[test]
fn health_ports_listen_on_the_node_port_addresses() {
    let yaml = "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nnodePortAddresses: [10.0.0.0/8]\n";
    let (config, _) = Config::resolve(Some(yaml), &crate::config::Flags::default()).unwrap();
    let addresses = desired_of(&objects("", ""), &config, IpFamily::V4).addresses;
    assert_eq!(addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

/// Ports on loopback, and the failures reported.
struct Rig {
    ports: PortServers,
    failed: Arc<Mutex<Vec<String>>>,
    registry: Registry,
}

impl Rig {
    fn new() -> Rig {
        let registry = Registry::new();
        let failed = Arc::new(Mutex::new(Vec::new()));
        let reported = failed.clone();
        let ports = PortServers {
            admission: Arc::new(Admission::new(1024, Box::new(|_| {}))),
            family: IpFamily::V4,
            health: proxy(true),
            metrics: Arc::new(Metrics::register(&registry).unwrap()),
            on_failure: Arc::new(move |failure: &HealthPortFailure<'_>| {
                reported.lock().unwrap().push(failure.service.to_string())
            }),
            open: BTreeMap::new(),
            failures: BTreeMap::new(),
        };
        Rig { ports, failed, registry }
    }

    fn metric(&self, name: &str) -> String {
        let text = crate::metrics::exposition(&self.registry).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or("none 0");
        line.rsplit_once(' ').unwrap().1.to_owned()
    }

    fn n_failed(&self) -> usize {
        self.failed.lock().unwrap().len()
    }
}

/// Desired ports on loopback: name, port and local endpoints of each Service.
fn desire(services: &[(&str, u16, usize)]) -> DesiredPorts {
    let port = |(text, port, n_local): &(&str, u16, usize)| {
        (name(text), DesiredPort { port: *port, n_local: *n_local })
    };
    DesiredPorts { addresses: vec![[127, 0, 0, 1].into()], services: services.iter().map(port).collect() }
}

/// A port that no socket has now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status and weight of the answer on `port`; `None` if it is closed.
async fn weight(port: u16) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    let answer = RecordedAnswer::read(&text.replace("\r\n", "\n"));
    Some((answer.status, answer.headers["x-load-balancing-endpoint-weight"].clone()))
}

/// Case 126.
#[tokio::test]
async fn another_port_closes_the_old_one_and_opens_the_new() {
    let (mut rig, now) = (Rig::new(), Instant::now());
    let (old, new) = (free_port(), free_port());
    rig.ports.update(&desire(&[("a", old, 1)]), now).await;
    assert_eq!(weight(old).await, Some((200, "1".to_owned())));
    rig.ports.update(&desire(&[("a", new, 1)]), now).await;
    assert_eq!((weight(old).await, weight(new).await), (None, Some((200, "1".to_owned()))));
    rig.ports.update(&desire(&[("a", new, 0)]), now).await;
    assert_eq!(weight(new).await, Some((503, "0".to_owned())), "the same socket, another count");
    assert_eq!(rig.metric("chainsmith_service_health_ports{"), "1");
    rig.ports.update(&desire(&[]), now).await;
    assert_eq!(weight(new).await, None);
    assert_eq!(rig.metric("chainsmith_service_health_ports{"), "0");
}

#[tokio::test]
async fn a_port_in_use_is_reported_and_retried_ever_later_while_others_are_served() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut rig, now, port) = (Rig::new(), Instant::now(), taken.local_addr().unwrap().port());
    let other = free_port();
    let desired = desire(&[("a", port, 1), ("b", other, 3)]);
    let at = |seconds| now + Duration::from_secs(seconds);
    rig.ports.update(&desired, now).await;
    assert_eq!(weight(other).await, Some((200, "3".to_owned())));
    assert_eq!(*rig.failed.lock().unwrap(), ["default/a"]);
    assert_eq!(rig.metric("chainsmith_service_health_ports_failed"), "1");
    // 1, 2, 4, 8 s after each other: at 1, 3, 7 and 15 s.
    for (second, n_failed) in [(0, 1), (1, 2), (2, 2), (3, 3), (6, 3), (7, 4), (14, 4), (15, 5)] {
        rig.ports.update(&desired, at(second)).await;
        assert_eq!(rig.n_failed(), n_failed, "after {second} s");
    }
    assert_eq!(rig.metric("chainsmith_bind_failures_total{server=\"service_health\"}"), "5");
    drop(taken);
    rig.ports.update(&desired, at(31)).await;
    assert_eq!(weight(port).await, Some((200, "1".to_owned())));
    assert_eq!((rig.n_failed(), rig.metric("chainsmith_service_health_ports_failed")), (5, "0".to_owned()));
}

#[tokio::test]
async fn a_port_that_moves_to_another_service_never_fails_to_open() {
    let (mut rig, now, port) = (Rig::new(), Instant::now(), free_port());
    for n in 0..20 {
        let owner = if n % 2 == 0 { "a" } else { "b" };
        rig.ports.update(&desire(&[(owner, port, 1)]), now).await;
        assert_eq!((rig.n_failed(), weight(port).await), (0, Some((200, "1".to_owned()))), "{n}");
    }
}

#[tokio::test]
async fn the_port_of_a_service_that_is_gone_is_not_retried() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut rig, now, port) = (Rig::new(), Instant::now(), taken.local_addr().unwrap().port());
    rig.ports.update(&desire(&[("a", port, 1)]), now).await;
    rig.ports.update(&desire(&[]), now).await;
    assert!(rig.ports.failures.is_empty());
}

#[tokio::test]
async fn the_task_follows_the_desired_ports_and_retries() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (rig, (sender, receiver)) = (Rig::new(), watch::channel(DesiredPorts::default()));
    let failed = rig.failed.clone();
    tokio::spawn(rig.ports.follow(receiver));
    sender.send(desire(&[("a", port, 1)])).unwrap();
    let until = async |condition: &dyn Fn() -> bool| {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until(&|| !failed.lock().unwrap().is_empty()).await;
    drop(taken);
    while weight(port).await.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
