//! Questions about the node's rules: one is answered at a time, a few wait, and more are refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::answer;
use super::status_collector::StatusCollector;
use crate::compile;
use crate::config::{Config, LayoutChoice};
use crate::inspect::{ClusterView, HostOrigin, HostView, RulesOrigin, Subject};
use crate::iptables::Ruleset;
use crate::kernel::addrs;
use crate::model::host::Host;
use crate::net::{IpFamily, PerFamily};
use crate::policy::Place;
use crate::rules::{Layout, Settings};
use crate::sync::{HostSource, LoopFamily, LoopView, ViewRequest};

/// How many questions wait for the one that is being answered.
pub(super) const MAX_WAITING: usize = 8;
/// How long a question waits for those before it.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the loop may take to say what it knows: it does so at once, except while it compares the kernel's tables.
const VIEW_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers questions about the node's rules from what the loop knows.
pub struct Questions {
    config: Arc<Config>,
    host: HostSource,
    collector: Arc<StatusCollector>,
    views: mpsc::Sender<ViewRequest>,
    /// A permit for each question that waits or is answered.
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
    /// Called after each answer, when much memory is free again.
    answered: fn(),
}

/// Why a question is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unanswered {
    /// Too many questions wait.
    #[error("{} other questions wait for an answer; ask again later", MAX_WAITING)]
    Busy,
    /// The questions before it took too long.
    #[error("other questions are being answered, for more than {} s; ask again later", TURN_TIMEOUT.as_secs())]
    Late,
    /// The loop does not answer.
    #[error("the agent does not say what it knows within {} s; see its log", VIEW_TIMEOUT.as_secs())]
    NoView,
    /// The first lists are not complete.
    #[error(
        "the agent has no rules yet: it waits for the first list of Services, EndpointSlices and the Node"
    )]
    NotListed,
}

impl From<Unanswered> for Response {
    fn from(why: Unanswered) -> Response {
        answer::error(StatusCode::SERVICE_UNAVAILABLE, why.to_string())
    }
}

/// A question's turn: no other is answered until it is dropped.
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Questions {
    /// Answers for an agent with this configuration, whose loop receives `views`. `answered` is called after each
    /// answer.
    pub fn new(
        config: Arc<Config>,
        host: HostSource,
        collector: Arc<StatusCollector>,
        views: mpsc::Sender<ViewRequest>,
        answered: fn(),
    ) -> Questions {
        let (places, turn) = (Arc::new(Semaphore::new(1 + MAX_WAITING)), Arc::new(Semaphore::new(1)));
        Questions { config, host, collector, views, places, turn, answered }
    }

    /// Waits for the turn of a question.
    pub(super) async fn turn(&self) -> Result<Turn, Unanswered> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| Unanswered::Busy)?;
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.turn.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| Unanswered::Late)?.map_err(|_| Unanswered::Late)?;
        Ok(Turn { _place: place, _turn: turn })
    }

    /// What the loop knows; `None` if it does not say so within `limit`.
    pub(super) async fn view(&self, limit: Duration) -> Option<LoopView> {
        let (sender, receiver) = oneshot::channel();
        let ask = async {
            self.views.send(sender).await.ok()?;
            receiver.await.ok()
        };
        tokio::time::timeout(limit, ask).await.ok()?
    }

    /// Does `work` on the desired rules of `families`, in turn, on a blocking thread. A client that goes away does not
    /// end it; the next question waits.
    pub(super) async fn with_subject<T: Send + 'static>(
        &self,
        families: &[IpFamily],
        work: impl FnOnce(Subject) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let turn = self.turn().await?;
        let view = self.view(VIEW_TIMEOUT).await.ok_or(Unanswered::NoView)?;
        if !view.is_listed || view.families.iter().any(|family| family.settings.is_none()) {
            return Err(Unanswered::NotListed);
        }
        let (config, host) = (self.config.clone(), self.host.clone());
        let (problems, families, answered) =
            (self.collector.problem_lines(), families.to_vec(), self.answered);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(subject(view, &config, &host(), problems, &families));
            answered();
            drop(turn);
            done
        });
        match done.await {
            Ok(done) => Ok(done),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// The desired rules of `families` in the layouts that are in force, with the objects and the host.
fn subject(
    view: LoopView,
    config: &Config,
    host: &Host,
    problems: Vec<String>,
    families: &[IpFamily],
) -> Subject {
    let LoopView { snapshot, node_name, families: views, .. } = view;
    let settings = |family| {
        let known = views.iter().find(|view| view.family == family).and_then(|view| view.settings.clone());
        known.unwrap_or_else(|| Settings::new(config, snapshot.node(), host, family))
    };
    let settings = PerFamily { v4: settings(IpFamily::V4), v6: settings(IpFamily::V6) };
    let mut quarantined: PerFamily<BTreeMap<_, _>> = PerFamily::default();
    for view in &views {
        let rejections = view.quarantine.iter();
        let messages = rejections.map(|(port, rejection)| (port.clone(), rejection.message.clone()));
        *quarantined.get_mut(view.family) = messages.collect();
    }
    let nodes = snapshot.node().map(|node| (node.name.clone(), node.clone())).into_iter().collect();
    let pods = BTreeMap::new();
    let not_proxied = BTreeMap::new();
    let cluster =
        ClusterView { snapshot, node_name, nodes, pods, settings, not_proxied, problems, quarantined };
    let mut rulesets = PerFamily::default();
    for view in views.iter().filter(|view| families.contains(&view.family)) {
        *rulesets.get_mut(view.family) = Some(ruleset(view, &cluster, cluster.place()));
    }
    Subject { rulesets, origin: RulesOrigin::Agent, cluster: Some(cluster), host: live_host(host) }
}

/// The desired rules of one family in the layout that is in force, without quarantined service ports.
fn ruleset(view: &LoopFamily, cluster: &ClusterView, place: Place<'_>) -> Ruleset {
    let layout = match view.layout {
        Layout::Classic { .. } => LayoutChoice::Classic,
        Layout::Compact => LayoutChoice::Compact,
    };
    let settings = Settings { layout, ..cluster.settings.get(view.family).clone() };
    let excluded = view.quarantine.keys().cloned().collect();
    compile::ruleset_without(&settings, &cluster.snapshot, place, &excluded)
}

/// The addresses and routes of this machine; without routes where they cannot be read.
fn live_host(host: &Host) -> HostView {
    let known = HostView { origin: HostOrigin::Live, ..HostView::default() };
    let addresses = host.addresses.iter().copied().collect();
    HostView {
        addresses,
        interfaces: addrs::interfaces().unwrap_or_default(),
        routes: addrs::routes().unwrap_or_default(),
        ..known
    }
}
