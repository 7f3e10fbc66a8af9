//! Events about the Node and its Services, which `kubectl describe` shows.
//!
//! Recording an event never waits: events beyond the limit of an object, or of the queue, are counted and dropped. No
//! information is lost with an event, because the log has it too.

mod notice;
mod object_limit;
mod retry_counter;

pub use notice::{Notice, Regarding};
pub use retry_counter::EventTarget;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::apply::SyncReport;
use crate::log::v;
use crate::metrics::{EventLoss, Metrics};
use crate::model::needs_escape;
use crate::sync::{Finding, Observer, Synced};
use object_limit::ObjectLimiter;
use retry_counter::RetryCounter;

/// How many events may wait to be sent.
const QUEUE: usize = 1000;
/// How often an event is sent that does not reach the API server, and the pause between two attempts.
const ATTEMPTS: usize = 12;
const RETRY: Duration = Duration::from_secs(10);
/// How long the API server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The API's limit on a note, in bytes.
const MAX_NOTE: usize = 1024;

/// Records events from any thread, and sends them by a task.
pub struct Events {
    /// `None` without an API server.
    queue: Option<mpsc::Sender<Notice>>,
    limiter: Mutex<ObjectLimiter>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Sends events to `target` by a task among `tasks`, as the proxy on the Node `node` on the machine `machine`.
    /// Without a target no event is sent.
    pub fn start(
        target: Option<EventTarget>,
        node: &str,
        machine: &str,
        metrics: &Arc<Metrics>,
        tasks: &mut JoinSet<anyhow::Result<()>>,
    ) -> Events {
        let queue = target.map(|target| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let reporter =
                Reporter { controller: "kube-proxy".into(), instance: Some(format!("kube-proxy-{machine}")) };
            let (client, retries) = RetryCounter::around(target, metrics.clone());
            let recorder = Recorder::new(client, reporter);
            let (events, metrics) =
                (EventSender { recorder, retries, node: node.to_owned() }, metrics.clone());
            tasks.spawn(async move {
                events.send_all(receiver, &metrics).await;
                // The process ends when a task ends; the end of the queue is not a reason.
                std::future::pending().await
            });
            sender
        });
        Events { queue, limiter: Mutex::new(ObjectLimiter::default()), metrics: metrics.clone() }
    }

    /// Queues an event, or drops it if too many are queued. Never waits.
    pub fn record(&self, notice: Notice) {
        v!(4, regarding = ?notice.regarding, reason = notice.reason, note = notice.note, "event");
        let Some(queue) = &self.queue else { return };
        // Consistent even after a panic: buckets are added and removed one by one.
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let is_allowed = limiter.allows(&notice.regarding);
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
        notices(synced.report).into_iter().for_each(|notice| self.record(notice));
    }

    fn noticed(&self, finding: &Finding) {
        // On a nested node sysctls cannot be set at any start; log and metrics have that.
        if !matches!(finding, Finding::ParameterUnset { .. }) {
            self.record(Notice {
                regarding: Regarding::Node,
                is_warning: finding.is_warning(),
                reason: finding.as_str(),
                action: "LookAtNode",
                note: finding.to_string(),
            });
        }
    }
}

/// The events of a sync: quarantined service ports, frontends owned by other Services, rules changed by another
/// process.
fn notices(report: &SyncReport) -> Vec<Notice> {
    let rejected = report.quarantined.iter().map(|(port, rejection)| Notice {
        regarding: Regarding::Service(port.service.clone()),
        is_warning: true,
        reason: "ServicePortQuarantined",
        action: "ProgramRules",
        note: format!(
            "{} rules of service port {port} ({}) rejected, service port quarantined: {}; rejected: {}",
            report.family,
            port.protocol,
            rejection.message,
            rejection.text.as_deref().unwrap_or("text not available")
        ),
    });
    let drift = (!report.drift.is_empty()).then(|| Notice {
        regarding: Regarding::Node,
        is_warning: true,
        reason: "RulesChangedByOthers",
        action: "RepairRules",
        note: format!(
            "another process changed {} rules of the proxy, {}: {}",
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
        note: format!("{loss}; this Service has no {} rules for it", report.family),
    });
    rejected.chain(lost).chain(drift).collect()
}

/// Sends events to the API server, one after the other.
struct EventSender {
    recorder: Recorder,
    retries: Arc<RetryCounter>,
    /// The Node's name.
    node: String,
}

impl EventSender {
    async fn send_all(&self, mut queue: mpsc::Receiver<Notice>, metrics: &Metrics) {
        while let Some(notice) = queue.recv().await {
            let event_type = if notice.is_warning { "Warning" } else { "Normal" };
            match self.send(&notice).await {
                Ok(()) => metrics.node.count_event_sent(event_type),
                Err(error) => {
                    warn!(regarding = ?notice.regarding, reason = notice.reason, error, "event not sent");
                    metrics.node.count_event_lost(EventLoss::NotSent);
                }
            }
        }
    }

    /// Sends an event. Retries if the API server is not reached, not if it rejects the event.
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
        self.retries.begin_event();
        for attempt in 1..=ATTEMPTS {
            match tokio::time::timeout(ANSWER_LIMIT, self.recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(kube::Error::Api(status))) => return Err(status.message.clone()),
                Ok(Err(error)) => problem = error.to_string(),
                Err(_) => problem = "no answer from the API server".to_owned(),
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

/// A note cut to the API's limit, on one line. It may contain text of an object or of a program, so characters that a
/// terminal would interpret as a command or as a writing direction are escaped.
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
