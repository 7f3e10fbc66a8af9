//! Starts the agent's socket.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::memory;
use crate::agent_socket::{self, AgentIdentity, Questions, StatusCollector};
use crate::config::Config;
use crate::connections::Connections;
use crate::http::{Admission, serve_local_at};
use crate::metrics::release;
use crate::sync::{HostSource, ViewRequest};
use crate::watch::api::Freshness;

/// What the socket answers from.
pub(super) struct SocketFacts {
    pub(super) config: Arc<Config>,
    /// The Node's name.
    pub(super) node: String,
    /// When the agent started.
    pub(super) started: Instant,
    /// How long ago each kind of objects was current, if there is an API server.
    pub(super) freshness: Option<Arc<Freshness>>,
    pub(super) host: HostSource,
    pub(super) collector: Arc<StatusCollector>,
    /// Counts of connections, if the configuration asks for them.
    pub(super) connections: Option<Arc<Connections>>,
}

/// Serves the socket among `tasks`, if the configuration has one; returns the loop's end of the questions. An agent
/// whose socket is in use runs without it, and tries again.
pub(super) fn start(
    facts: SocketFacts,
    admission: Arc<Admission>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> mpsc::Receiver<ViewRequest> {
    let SocketFacts { config, node, started, freshness, host, collector, connections } = facts;
    let (views, requests) = mpsc::channel(1);
    let Some(address) = config.agent_socket.clone() else { return requests };
    let questions = Arc::new(Questions::new(config.clone(), host, collector.clone(), views, memory::trim));
    let replaces = release::KUBERNETES.to_owned();
    let identity = AgentIdentity { replaces, node, started, config, freshness };
    let router = agent_socket::router(identity, collector, questions, connections);
    tasks.spawn(async move { serve_local_at(admission, "agent socket", &address, router).await });
    requests
}
