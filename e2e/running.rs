//! The cluster of [`crate::cluster`] with an API server in the fabric and Chainsmith on each node.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::apiserver::{ApiServer, Cluster, start_cluster};
use crate::cluster;
use crate::lab::agent::{Agent, AgentOptions};
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::{Lab, address, poll};

/// The port of the API server.
const API_PORT: u16 = 6443;

/// How long the first sync may take, on a machine that is busy with other tests.
pub const FIRST_SYNC: Duration = Duration::from_secs(30);

/// Texts in the rules of a node after its first sync: one of each table for each Service.
const SYNCED: [&str; 8] = [
    "default/web:http",
    "default/web:echo",
    "default/local:http",
    "default/local:echo",
    "default/own:http",
    "default/own:echo",
    "default/empty:http has no endpoints",
    "default/empty:echo has no endpoints",
];

/// A running cluster. Dropped in this order: agents, API server, lab.
pub struct Running {
    /// The agent of each node, in order.
    pub agents: Vec<Agent>,
    /// The API server, holding the objects of `cluster.yaml`.
    pub api: Box<dyn Cluster>,
    /// The machines.
    pub lab: Lab,
    options: AgentOptions,
}

impl Running {
    /// Starts everything and waits for the first syncs.
    pub fn start(backend: Backend) -> Result<Self> {
        Self::with_flags(backend, &[])
    }

    /// Starts everything, the agents with these flags too, and waits for the first syncs.
    pub fn with_flags(backend: Backend, flags: &[&str]) -> Result<Self> {
        Self::in_lab(cluster::build(backend)?, flags)
    }

    /// Starts everything in `lab`, which has at least the pods of [`cluster::plan`], and waits.
    pub fn in_lab(lab: Lab, flags: &[&str]) -> Result<Self> {
        let api = start_cluster(listen(), Some(lab.fabric().fd()?)).context("starting an API server")?;
        Self::on(lab, api, flags)
    }

    fn on(lab: Lab, api: Box<dyn Cluster>, flags: &[&str]) -> Result<Self> {
        api.put_yaml(cluster::OBJECTS);
        for node in lab.nodes().iter().filter(|node| !cluster::OBJECTS.contains(node.name())) {
            api.put(cluster::node_object(node));
        }
        let args = flags.iter().map(|&flag| flag.to_owned()).collect();
        let options = AgentOptions { kubeconfig: api.kubeconfig(), args, ..AgentOptions::default() };
        let mut running = Self { agents: Vec::new(), api, lab, options };
        for node in running.lab.nodes() {
            running.agents.push(running.lab.start_chainsmith(node, &running.options)?);
        }
        for (node, agent) in running.lab.nodes().iter().zip(&running.agents) {
            wait_until_synced(node, agent);
        }
        Ok(running)
    }

    /// The configuration of its agents.
    pub fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// The simulated API server.
    ///
    /// # Panics
    /// If it is a real server.
    pub fn simulator(&self) -> &ApiServer {
        self.api.simulator().expect("no KUBEBUILDER_ASSETS names a real one")
    }

    /// Kills the agent of node-1 and starts another with these flags, and with this kubeconfig if one is
    /// given; waits for its first syncs.
    pub fn replace_agent(&mut self, flags: &[&str], kubeconfig: Option<String>) -> Result<()> {
        self.agents.remove(0).kill9();
        let args = flags.iter().map(|&flag| flag.to_owned()).collect();
        let kubeconfig = kubeconfig.unwrap_or_else(|| self.options.kubeconfig.clone());
        self.start_instead(AgentOptions { kubeconfig, args, ..AgentOptions::default() })
    }

    /// Kills the agent of node-1 and starts another that `under` replaces; waits for its first syncs.
    pub fn replace_agent_under(&mut self, under: &[&str]) -> Result<()> {
        self.agents.remove(0).kill9();
        let under = under.iter().map(|&word| word.to_owned()).collect();
        self.start_instead(AgentOptions { under, ..self.options.clone() })
    }

    fn start_instead(&mut self, options: AgentOptions) -> Result<()> {
        let agent = self.lab.start_chainsmith(self.lab.node(1), &options)?;
        poll::until("the new agent has synced both families", FIRST_SYNC, || agent.syncs().len() >= 2);
        self.agents.insert(0, agent);
        Ok(())
    }

    /// Restarts all agents with a new kubeconfig, and waits for their first syncs.
    pub fn renew_agents(&mut self) -> Result<()> {
        self.options.kubeconfig = self.api.kubeconfig();
        self.agents.drain(..).for_each(|agent| drop(agent.kill9()));
        for node in self.lab.nodes() {
            self.agents.push(self.lab.start_chainsmith(node, &self.options)?);
        }
        for agent in &self.agents {
            poll::until("a new agent has synced both families", FIRST_SYNC, || agent.syncs().len() >= 2);
        }
        Ok(())
    }

    /// Starts an agent on `node`, configured like the first ones.
    pub fn start_agent(&self, node: &Node) -> Result<Agent> {
        self.lab.start_chainsmith(node, &self.options)
    }

    /// Starts an agent on `node`, configured like the first ones, whose programs run `script` first.
    pub fn start_sabotaged(&self, node: &Node, script: &str) -> Result<Agent> {
        let options = AgentOptions { sabotage: Some(script.to_owned()), ..self.options.clone() };
        self.lab.start_chainsmith(node, &options)
    }
}

/// Where the API server listens.
pub fn listen() -> SocketAddr {
    SocketAddr::new(address::fabric().v4.into(), API_PORT)
}

/// Waits until `node` holds rules for all Services of the cluster, in both families.
#[track_caller]
pub fn wait_until_synced(node: &Node, agent: &Agent) {
    poll::until(&format!("{} synced", node.name()), FIRST_SYNC, || {
        if let Some(status) = agent.process().status() {
            panic!("the agent of {} ended: {status}", node.name());
        }
        address::FAMILIES.into_iter().all(|family| {
            let rules = node.netfilter().save(family).expect("rules can be read");
            SYNCED.iter().all(|word| rules.contains(word))
        })
    });
}
