//! Events about the Node and its Services, for whoever reads `kubectl describe`.
//!
//! Whoever has something to tell never waits: what is too much about one object, or for the API
//! server, is counted and dropped. Losing an event is harmless; everything told is in the log too.
#![allow(clippy::disallowed_methods, reason = "events are limited by time")]

mod attempts;
mod limit;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{trace, warn};

use crate::metrics::{EventLoss, Metrics};
use crate::model::{ServiceName, needs_escape};
use crate::sync::{Finding, Observer, Report, Synced};
use attempts::Attempts;
use limit::Limiter;

/// How many may wait to be sent.
const QUEUE: usize = 1000;
/// How often one is tried that does not reach the API server, and how long after each time.
const ATTEMPTS: usize = 12;
const RETRY: Duration = Duration::from_secs(10);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the API allows a note, in bytes.
const MAX_NOTE: usize = 1024;

/// The API server that events are sent to.
pub struct Server {
    /// Sends requests.
    pub client: Client,
    /// Its `addr:port`, for counting only.
    pub host: String,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(ServiceName),
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it is about.
    pub regarding: Regarding,
    /// Whether somebody has to look at it.
    pub is_warning: bool,
    /// One word, `UpperCamelCase`.
    pub reason: &'static str,
    /// What was being done, likewise.
    pub action: &'static str,
    /// A sentence; escaped and cut as needed when it is sent.
    pub note: String,
}

/// Takes notices, from anywhere.
pub struct Events {
    /// `None` where there is nobody to send them to.
    queue: Option<mpsc::Sender<Notice>>,
    limiter: Mutex<Limiter>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Sends to `server`, as the proxy on the node called `node` on the machine called `machine`, by a
    /// task among `tasks`. Without a server nothing is sent.
    pub fn start(
        server: Option<Server>,
        node: &str,
        machine: &str,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> Events {
        let queue = server.map(|server| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let reporter =
                Reporter { controller: "kube-proxy".into(), instance: Some(format!("kube-proxy-{machine}")) };
            let (client, attempts) = Attempts::through(server, metrics.clone());
            let recorder = Recorder::new(client, reporter);
            let (sending, metrics) = (Sending { recorder, attempts, node: node.to_owned() }, metrics.clone());
            tasks.spawn(async move {
                sending.send_all(receiver, &metrics).await;
                // The end of what is told is not the end of the process.
                std::future::pending().await
            });
            sender
        });
        Events { queue, limiter: Mutex::new(Limiter::default()), metrics: metrics.clone() }
    }

    /// Tells `notice`, or drops it when there is too much to tell. Never waits.
    pub fn tell(&self, notice: Notice) {
        trace!(?notice, "event");
        let Some(queue) = &self.queue else { return };
        // A limiter is a few numbers, always whole.
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let is_allowed = limiter.allows(&notice.regarding, Instant::now());
        drop(limiter);
        if !is_allowed {
            self.metrics.node.count_event_lost(EventLoss::Limited);
        } else if queue.try_send(notice).is_err() {
            self.metrics.node.count_event_lost(EventLoss::QueueFull);
        }
    }
}

impl Observer for Events {
    fn synced(&self, synced: &Synced<'_>) {
        notices(synced.report).into_iter().for_each(|notice| self.tell(notice));
    }

    fn noticed(&self, finding: &Finding) {
        // What cannot be set is so at every start of a nested node: for the log and the metrics.
        if !matches!(finding, Finding::ParameterUnset { .. }) {
            self.tell(Notice {
                regarding: Regarding::Node,
                is_warning: finding.is_warning(),
                reason: finding.as_str(),
                action: "LookAtNode",
                note: finding.to_string(),
            });
        }
    }
}

/// What of a sync is worth telling: who was left out, and that somebody else wrote to our chains.
fn notices(report: &Report) -> Vec<Notice> {
    let refused = report.quarantined.iter().map(|(port, refusal)| Notice {
        regarding: Regarding::Service(port.service.clone()),
        is_warning: true,
        reason: "ServicePortQuarantined",
        action: "ProgramRules",
        note: format!(
            "the kernel refuses the {} rules of service port {port} ({}), which is left out: {}; refused: {}",
            report.family,
            port.protocol,
            refusal.message,
            refusal.text.as_deref().unwrap_or("text no longer at hand")
        ),
    });
    let drift = (!report.drift.is_empty()).then(|| Notice {
        regarding: Regarding::Node,
        is_warning: true,
        reason: "RulesChangedByOthers",
        action: "RepairRules",
        note: format!(
            "somebody else changed {} rules that belong to the proxy, {}: {}",
            report.family,
            if report.outcome.is_ok() { "repaired" } else { "not repaired yet" },
            report.drift
        ),
    });
    let lost = report.losses.iter().map(|loss| Notice {
        regarding: Regarding::Service(loss.service.clone()),
        is_warning: true,
        reason: "FrontendOwnedByOther",
        action: "ProgramRules",
        note: format!("{loss}; the {} rules of this Service for it are left out", report.family),
    });
    refused.chain(lost).chain(drift).collect()
}

/// How events get to the API server.
struct Sending {
    recorder: Recorder,
    attempts: Arc<Attempts>,
    /// The Node's name.
    node: String,
}

impl Sending {
    async fn send_all(&self, mut queue: mpsc::Receiver<Notice>, metrics: &Metrics) {
        while let Some(notice) = queue.recv().await {
            let kind = if notice.is_warning { "Warning" } else { "Normal" };
            match self.send(&notice).await {
                Ok(()) => metrics.node.count_event_sent(kind),
                Err(error) => {
                    warn!(regarding = ?notice.regarding, reason = notice.reason, error, "the event is not sent");
                    metrics.node.count_event_lost(EventLoss::NotSent);
                }
            }
        }
    }

    /// Sends one; tries again when the API server is not reached, not when it refuses.
    async fn send(&self, notice: &Notice) -> Result<(), String> {
        let event = Event {
            type_: if notice.is_warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.to_owned(),
            note: (!notice.note.is_empty()).then(|| printable(&notice.note)),
            action: notice.action.to_owned(),
            secondary: None,
        };
        let reference = reference(&notice.regarding, &self.node);
        let mut problem = String::new();
        self.attempts.begin();
        for attempt in 1..=ATTEMPTS {
            match tokio::time::timeout(PATIENCE, self.recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(kube::Error::Api(status))) => return Err(status.message.clone()),
                Ok(Err(error)) => problem = error.to_string(),
                Err(_) => problem = "the API server does not answer".to_owned(),
            }
            if attempt < ATTEMPTS {
                tokio::time::sleep(RETRY).await;
            }
        }
        Err(problem)
    }
}

fn reference(regarding: &Regarding, node: &str) -> ObjectReference {
    let (kind, namespace, name) = match regarding {
        Regarding::Node => ("Node", None, node),
        Regarding::Service(service) => ("Service", Some(service.namespace().to_owned()), service.name()),
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

/// As much of a note as the API takes, on one line: it may hold text of an object or of a program, and
/// what a terminal would take for a command, or for the direction of text, is escaped.
fn printable(note: &str) -> String {
    let mut text = String::with_capacity(note.len().min(MAX_NOTE));
    for c in note.chars() {
        let is_escaped = needs_escape(c);
        let length = if is_escaped { c.escape_default().len() } else { c.len_utf8() };
        if text.len() + length > MAX_NOTE {
            break;
        }
        if is_escaped { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

#[cfg(test)]
mod tests;
