//! What the agent reports: metrics, health, events. Starts their servers and tasks, and returns the observers of the
//! loop that feed them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use prometheus::Registry;
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::Config;
use crate::events::{EventTarget, Events, Notice, Regarding};
use crate::health::{self, Health, HealthPortFailure, HealthPorts};
use crate::http::{Admission, BindFailure, Incident, serve_at};
use crate::kernel::{nfacct, programs};
use crate::log;
use crate::measure::SyncMeter;
use crate::metrics::{self, Metrics, Pages, ReadPackets, ReadServices, RequestSample};
use crate::model::ObjectKind;
use crate::model::host::Counters;
use crate::rules::fixed;
use crate::sync::{Finding, Observer};
use crate::watch::api;

/// How long to wait for the last event to be sent before the process exits.
const LAST_EVENT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long another process must have a port of ours to count as a conflicting proxy: longer than an old agent takes
/// to exit.
const HANDOVER_TIME: Duration = Duration::from_secs(90);

/// Counts the traffic with the API server in the metrics.
pub(super) struct TrafficMeter(pub(super) Arc<Metrics>);

impl api::TrafficObserver for TrafficMeter {
    fn request_finished(&self, exchange: &api::Exchange<'_>) {
        let api::Exchange { method, host, code, rate_limited_for, elapsed, n_bytes } = *exchange;
        self.0.requests.record(&RequestSample { method, host, status: code, elapsed, n_sent: n_bytes });
        self.0.requests.record_delay(method, host, rate_limited_for);
    }

    fn body_received(&self, method: &str, host: &str, n_bytes: u64) {
        self.0.requests.record_received(method, host, n_bytes);
    }

    fn connection_opened(&self) {
        self.0.requests.count_connection();
    }

    fn watch_restarted(&self, plural: &str) {
        self.0.cluster.count_watch_restart(match plural {
            "services" => ObjectKind::Service.as_str(),
            "endpointslices" => ObjectKind::EndpointSlice.as_str(),
            "nodes" => ObjectKind::Node.as_str(),
            other => other,
        });
    }
}

/// Facts about the agent that reports need.
pub(super) struct AgentFacts<'a> {
    pub(super) config: &'a Config,
    /// Every flag with its value.
    pub(super) flags: Vec<(&'static str, String)>,
    /// The Node's name.
    pub(super) node: &'a str,
    /// The host name.
    pub(super) machine: &'a str,
    /// The API server to send events to, if there is one.
    pub(super) server: Option<EventTarget>,
    /// How long ago each kind of objects was current, if there is an API server.
    pub(super) freshness: Option<Arc<api::Freshness>>,
    /// The nfacct counters that the kernel has.
    pub(super) counters: Counters,
    /// Reads the counts for `/metrics/services`, if connections are counted.
    pub(super) services: Option<ReadServices>,
    /// The limit of open files of this process.
    pub(super) max_open_files: u64,
}

/// Observers of the loop, in the order in which they are notified.
type Observers = Vec<Arc<dyn Observer>>;

/// Starts servers and tasks among `tasks`; returns the observers, and the bound of all servers.
pub(super) fn start(
    facts: AgentFacts<'_>,
    registry: Registry,
    metrics: Arc<Metrics>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<(Observers, Arc<Admission>)> {
    let AgentFacts { config, flags, node, machine, server, freshness, counters, services, max_open_files } =
        facts;
    metrics.show_build(config.gates.iter())?;
    metrics.show_packets(
        counters.invalid.then(|| counter(fixed::INVALID_COUNTER)),
        counters.localhost.then(|| counter(fixed::LOCALHOST_COUNTER)),
    )?;
    metrics.show_largest_child(programs::peak_child_memory)?;
    metrics.show_lost_log_lines(log::n_lost)?;
    let events = Arc::new(Events::start(server, node, machine, &metrics, tasks));
    let mut health = Health::new(config.sync_period, config.manifests.is_empty());
    if let Some(freshness) = freshness {
        let shown = freshness.clone();
        metrics.show_watch_ages(Box::new(move || by_name(shown.ages())))?;
        health = health.showing(Box::new(move || by_name(freshness.stale_kinds())));
    }
    let health = Arc::new(health);
    let admission = admission(max_open_files, &metrics);
    let servers = Servers { admission: &admission, config, metrics: &metrics, events: &events };
    if let Some(address) = config.healthz_bind_address {
        let router = health::router(health.clone(), metrics.clone());
        servers.start("healthz", "FailedToStartProxierHealthcheck", address, router, tasks);
    }
    if let Some(address) = config.metrics_bind_address {
        let pages = Pages {
            configz: config.effective.configz(),
            flags: config.gates.is_on("ComponentFlagz").then_some(flags),
            has_statusz: config.gates.is_on("ComponentStatusz"),
            is_profiling: config.enable_profiling,
            set_verbosity: log::set_verbosity,
            services,
            started: (Instant::now(), SystemTime::now()),
        };
        let router = metrics::router(registry, pages);
        servers.start("metrics", "FailedToStartMetricServer", address, router, tasks);
    }
    let recorder = events.clone();
    let node = node.to_owned();
    let on_failure: health::OnHealthPortFailure =
        Arc::new(move |failure| recorder.record(notice_of(failure, &node)));
    let ports = HealthPorts::start(&admission, &health, &metrics, &on_failure, tasks);
    events.record(Notice {
        regarding: Regarding::Node,
        is_warning: false,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    });
    // Health observes a sync before the ports do, so that their answers after a sync describe that sync.
    Ok((vec![Arc::new(SyncMeter::new(metrics)), health, Arc::new(ports), events], admission))
}

/// Kinds as metrics and answers name them.
fn by_name(ages: Vec<(ObjectKind, Duration)>) -> Vec<(&'static str, Duration)> {
    ages.into_iter().map(|(kind, age)| (kind.as_str(), age)).collect()
}

fn counter(name: &'static str) -> ReadPackets {
    Box::new(move || nfacct::packets(name))
}

/// One bound for all servers, whose incidents are counted.
fn admission(max_open_files: u64, metrics: &Arc<Metrics>) -> Arc<Admission> {
    let metrics = metrics.clone();
    let count = move |incident| match incident {
        Incident::NotAccepted => metrics.node.count_accept_failure(),
        Incident::Evicted => metrics.node.count_eviction(),
    };
    Arc::new(Admission::new(max_open_files, Box::new(count)))
}

struct Servers<'a> {
    admission: &'a Arc<Admission>,
    config: &'a Config,
    metrics: &'a Arc<Metrics>,
    events: &'a Arc<Events>,
}

impl Servers<'_> {
    /// Starts to serve `router`. `reason` is the reason of the event about the first failure.
    fn start(
        &self,
        server: &'static str,
        reason: &'static str,
        address: SocketAddr,
        router: Router,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) {
        let hard_fail = self.config.bind_address_hard_fail;
        let (metrics, events) = (self.metrics.clone(), self.events.clone());
        let admission = self.admission.clone();
        tasks.spawn(async move {
            let is_conflict_reported = AtomicBool::new(false);
            let failed = |failure: &BindFailure<'_>| {
                metrics.node.count_bind_failure(server);
                let is_final = failure.is_final;
                if failure.n == 1 {
                    let note = format!("cannot serve {server} on {address}: {}", failure.error);
                    let (regarding, action) = (Regarding::Node, "StartKubeProxy");
                    events.record(Notice { regarding, is_warning: true, reason, action, note });
                }
                if is_conflict(failure) && !is_conflict_reported.swap(true, Ordering::Relaxed) {
                    let finding = Finding::ConflictingProxy(format!("port {} ({server}) is taken", address.port()));
                    warn!(port = address.port(), server, "port taken by another process; another kube-proxy or Chainsmith seems to run on this node");
                    metrics.node.count_finding(finding.as_str());
                    events.noticed(&finding);
                }
                async move {
                    if is_final {
                        tokio::time::sleep(LAST_EVENT_TIMEOUT).await;
                    }
                }
            };
            serve_at(admission, server, address, router, hard_fail, failed).await
        });
    }
}

/// Whether another process has the port, for longer than a handover takes.
fn is_conflict(failure: &BindFailure<'_>) -> bool {
    failure.error.kind() == io::ErrorKind::AddrInUse && failure.lasted > HANDOVER_TIME
}

fn notice_of(failure: &HealthPortFailure<'_>, node: &str) -> Notice {
    let HealthPortFailure { service, address, error } = failure;
    Notice {
        regarding: Regarding::Service((*service).clone()),
        is_warning: true,
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
        note: format!(
            "node {node} cannot answer health checks of service \"{service}\" on port {} ({address}): {error}",
            address.port()
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::api::TrafficObserver as _;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_taken_port_is_an_event_and_later_a_conflicting_proxy_each_once() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let events_sent: Arc<Mutex<Vec<String>>> = Arc::default();
        let api = events_sent.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let bytes = request.into_body().collect_bytes().await?;
                let event: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
                api.lock().unwrap().push(format!("{}: {}", event["reason"], event["note"]));
                let answer = http::Response::builder().status(201);
                Ok::<_, kube::Error>(
                    answer.body(kube::client::Body::from(bytes.to_vec())).expect("an answer"),
                )
            }
        });
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::register(&registry).unwrap());
        let (config, mut tasks) = (Config::default(), JoinSet::new());
        let client = kube::Client::new(service, "default");
        let server = Some(EventTarget { client, host: "api.test:443".to_owned() });
        let events = Arc::new(Events::start(server, "node-1", "machine", &metrics, &mut tasks));
        let admission = admission(1024, &metrics);
        let servers = Servers { admission: &admission, config: &config, metrics: &metrics, events: &events };
        servers.start("healthz", "FailedToStartProxierHealthcheck", address, Router::new(), &mut tasks);
        let unserved = format!("\"FailedToStartProxierHealthcheck\": \"cannot serve healthz on {address}: ");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sent = events_sent.lock().unwrap().clone();
        assert!(sent.len() == 1 && sent[0].starts_with(&unserved), "{sent:?}");
        tokio::time::sleep(Duration::from_secs(600)).await;
        let sent = events_sent.lock().unwrap().clone();
        let conflict = format!("port {} (healthz) is taken\"", address.port());
        assert!(
            sent.len() == 2 && sent[1].starts_with("\"SecondProxy\"") && sent[1].ends_with(&conflict),
            "{sent:?}"
        );
        let text = metrics::exposition(&registry).unwrap();
        assert!(text.contains("{kind=\"SecondProxy\"} 1\n"), "{text}");
    }

    #[test]
    fn traffic_with_the_api_server_is_counted_under_client_gos_names() {
        let registry = Registry::new();
        let traffic = TrafficMeter(Arc::new(Metrics::register(&registry).unwrap()));
        let exchange = api::Exchange {
            method: "GET",
            host: "10.0.0.1:6443",
            code: Some(200),
            rate_limited_for: Duration::from_secs(3),
            elapsed: Duration::from_millis(20),
            n_bytes: 0,
        };
        traffic.request_finished(&exchange);
        traffic.request_finished(&api::Exchange { code: None, ..exchange });
        traffic.body_received("GET", "10.0.0.1:6443", 100);
        for plural in ["services", "endpointslices", "endpointslices", "nodes"] {
            traffic.watch_restarted(plural);
        }
        let text = metrics::exposition(&registry).unwrap();
        for line in [
            r#"rest_client_requests_total{code="200",host="10.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_requests_total{code="<error>",host="10.0.0.1:6443",method="GET"} 1"#,
            r#"rest_client_request_duration_seconds_bucket{host="10.0.0.1:6443",verb="GET",le="0.025"} 2"#,
            r#"rest_client_rate_limiter_duration_seconds_sum{host="10.0.0.1:6443",verb="GET"} 6"#,
            r#"rest_client_response_size_bytes_sum{host="10.0.0.1:6443",verb="GET"} 100"#,
            r#"chainsmith_watch_restarts_total{kind="EndpointSlice"} 2"#,
            r#"chainsmith_watch_restarts_total{kind="Node"} 1"#,
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
    }
}
