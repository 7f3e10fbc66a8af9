//! Where counts come from: the live kernel, a text, or a running agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use super::super::source::{self, SourceArguments};
use crate::agent_socket::client;
use crate::connections::read_settled;
use crate::inspect::busiest::{CountsSince, TopReport};
use crate::inspect::labels::ChainLabels;
use crate::inspect::ledger::{Ledger, PortTotal, rules_of};
use crate::inspect::{HostView, RulesOrigin, Subject};
use crate::iptables::{
    ChainName, DnatRule, FirstPackets, L4Protocol, Rule, Table, Target, replay, saved_counters,
};
use crate::kernel::counter_reader::CounterReader;
use crate::kernel::programs::{self, KernelIptables};
use crate::kernel::{Backend, Iptables};
use crate::model::{ObjectName, ServicePortName};
use crate::net::{IpFamily, PerFamily, Protocol, UnixAddress};
use crate::rules::ownership::ChainOwner;

/// How often, at most, all rules are read again because chains without a known Service appeared.
const RELOAD_PAUSE: Duration = Duration::from_secs(10);

/// The kind of the report.
pub(super) const KIND: &str = "TopReport";

/// The source of counts.
pub(super) enum CountedSource<'a> {
    /// The counters of the kernel.
    Live(Box<LiveCounters<'a>>),
    /// What a running agent has counted.
    Agent(UnixAddress),
    /// The counters in a text: one reading.
    Text(Box<TopReport>),
}

impl<'a> CountedSource<'a> {
    /// Opens the source that `arguments` name: `agent`, if there is one.
    pub(super) fn open(
        arguments: &'a SourceArguments,
        agent: Option<UnixAddress>,
    ) -> anyhow::Result<CountedSource<'a>> {
        if let Some(address) = agent {
            return Ok(CountedSource::Agent(address));
        }
        if arguments.live {
            return Ok(CountedSource::Live(Box::new(LiveCounters::open(arguments)?)));
        }
        let Some(path) = &arguments.rules else {
            bail!("objects have no counters; give --live, --agent, or RULES with -f beside it");
        };
        let (text, families) = (source::read_text(path)?, arguments.node.families());
        let context = || format!("cannot use {}", path.display());
        let rulesets = replay::families(&text, &families).with_context(context)?;
        let origin = RulesOrigin::Text(path.display().to_string());
        let subject = match arguments.objects.is_empty() {
            true => Subject { rulesets, origin, cluster: None, host: HostView::default() },
            // The objects name chains whose rules have no comments.
            false => {
                let objects = SourceArguments { rules: None, ..arguments.clone() };
                Subject { rulesets, origin, ..objects.load()? }
            }
        };
        let report = of_text(&text, &subject, &families).with_context(context)?;
        Ok(CountedSource::Text(Box::new(report)))
    }

    /// Whether each reading is the same.
    pub(super) fn is_once(&self) -> bool {
        matches!(self, CountedSource::Text(_))
    }

    /// Reads the counters.
    pub(super) fn read(&mut self) -> anyhow::Result<TopReport> {
        match self {
            CountedSource::Live(live) => live.read(),
            CountedSource::Agent(address) => client::get(address, KIND, "/v1/top"),
            CountedSource::Text(report) => Ok((**report).clone()),
        }
    }
}

/// The report of a text with counters, whose rules are those of `subject`.
pub(super) fn of_text(text: &str, subject: &Subject, families: &[IpFamily]) -> anyhow::Result<TopReport> {
    let counted = saved_counters::dnat_rules(text, families)?;
    if counted == PerFamily::default() {
        bail!("the rules have no counters; save them with iptables-save -c");
    }
    let mut ledgers = PerFamily { v4: Ledger::of_all_counts(true), v6: Ledger::of_all_counts(true) };
    for family in IpFamily::BOTH {
        let owners = owners(subject, family);
        let mut rules = counted.get(family).clone().unwrap_or_default();
        rules.sort_unstable_by_key(|rule| rule.chain);
        for (chain, owner) in &owners {
            ledgers.get_mut(family).record(*chain, owner, rules_of(&rules, chain));
        }
    }
    Ok(report(&subject.origin, &ledgers))
}

/// The service port of each chain of one that has DNAT rules.
fn owners(subject: &Subject, family: IpFamily) -> BTreeMap<ChainName, ServicePortName> {
    let labels = ChainLabels::of(subject, family);
    let nat = subject.rulesets.get(family).as_ref().and_then(|ruleset| ruleset.tables.get(&Table::Nat));
    let ours = nat.into_iter().flatten().filter(|(chain, _)| is_counted(chain));
    ours.filter_map(|(chain, content)| {
        let protocol = content.rules.iter().find_map(dnat_protocol)?;
        Some((*chain, owner(chain, labels.service_port(chain), protocol)))
    })
    .collect()
}

/// Whether `chain` belongs to a service port.
fn is_counted(chain: &ChainName) -> bool {
    matches!(ChainOwner::of(Table::Nat, chain), ChainOwner::ServicePort(_) | ChainOwner::Group)
}

/// The protocol of a DNAT rule.
fn dnat_protocol(rule: &Rule) -> Option<Protocol> {
    match (&rule.target, &rule.protocol) {
        (Some(Target::Dnat(_)), Some(protocol)) => match protocol.value {
            L4Protocol::Service(protocol) => Some(protocol),
            L4Protocol::Other(_) => None,
        },
        _ => None,
    }
}

/// The service port called `name`, `<ns>/<name>[:<port>]`; without one, a name made of the chain's.
fn owner(chain: &ChainName, name: Option<&str>, protocol: Protocol) -> ServicePortName {
    let unknown = || (ObjectName::new("", chain.as_str()), "");
    let (service, port) = name
        .and_then(|name| {
            let (service, port) = name.split_once(':').unwrap_or((name, ""));
            let (namespace, service) = service.split_once('/')?;
            Some((ObjectName::new(namespace, service), port))
        })
        .unwrap_or_else(unknown);
    ServicePortName { service, port: port.into(), protocol }
}

fn report(origin: &RulesOrigin, ledgers: &PerFamily<Ledger>) -> TopReport {
    let mut totals: BTreeMap<ServicePortName, PortTotal> = BTreeMap::new();
    let mut all = FirstPackets::default();
    for family in IpFamily::BOTH {
        all += ledgers.get(family).all();
        for (port, total) in ledgers.get(family).ports() {
            totals.entry(port.clone()).or_default().add(total);
        }
    }
    TopReport::new(origin.to_string(), CountsSince::RulesWritten, &totals, all, true)
}

/// The counters of the kernel of this machine.
pub(super) struct LiveCounters<'a> {
    arguments: &'a SourceArguments,
    backend: Backend,
    kernels: Vec<KernelIptables>,
    ledgers: PerFamily<Ledger>,
    owners: PerFamily<BTreeMap<ChainName, ServicePortName>>,
    /// The chains of service ports when the rules were read.
    known: PerFamily<BTreeSet<ChainName>>,
    loaded: Instant,
}

impl<'a> LiveCounters<'a> {
    fn open(arguments: &'a SourceArguments) -> anyhow::Result<LiveCounters<'a>> {
        let subject = arguments.load()?;
        let backend = source::live_backend();
        let families = arguments.node.families();
        let families = families.into_iter().filter(|family| subject.rulesets.get(*family).is_some());
        let open = |family| {
            programs::open(family, backend)
                .with_context(|| format!("cannot read the {family} rules in force"))
        };
        let kernels: Vec<KernelIptables> = families.map(open).collect::<anyhow::Result<_>>()?;
        let backend = kernels.first().context("no family has rules")?.backend();
        let ledger = || Ledger::of_all_counts(true);
        let ledgers = PerFamily { v4: ledger(), v6: ledger() };
        let (owners, known) = (owners_of_both(&subject), known_of_both(&subject));
        Ok(LiveCounters { arguments, backend, kernels, ledgers, owners, known, loaded: Instant::now() })
    }

    fn read(&mut self) -> anyhow::Result<TopReport> {
        if self.has_strangers()? && self.loaded.elapsed() >= RELOAD_PAUSE {
            let subject = self.arguments.load()?;
            (self.owners, self.known) = (owners_of_both(&subject), known_of_both(&subject));
            self.loaded = Instant::now();
        }
        for kernel in &self.kernels {
            let family = kernel.family();
            let (owners, ledger) = (self.owners.get(family), self.ledgers.get_mut(family));
            let chains: Vec<ChainName> = owners.keys().copied().collect();
            for slice in chains.chunks(self.backend.slice().min(chains.len()).max(1)) {
                let has_fallen = |rules: &[DnatRule]| ledger.has_fallen(rules);
                let rules = read_settled(&self.backend, family, slice, has_fallen)
                    .with_context(|| format!("cannot read the counters of the {family} rules in force"))?;
                for chain in slice {
                    if let Some(owner) = owners.get(chain) {
                        ledger.record(*chain, owner, rules_of(&rules, chain));
                    }
                }
            }
        }
        Ok(report(&RulesOrigin::Live, &self.ledgers))
    }

    /// Whether there are chains of service ports that were not there when the rules were read.
    fn has_strangers(&mut self) -> anyhow::Result<bool> {
        let mut has_strangers = false;
        for kernel in &mut self.kernels {
            let known = self.known.get(kernel.family());
            kernel.chain_names(Table::Nat, &mut |name| {
                let Some(name) = ChainName::new(name) else { return };
                has_strangers |= is_counted(&name) && !known.contains(&name);
            })?;
        }
        Ok(has_strangers)
    }
}

fn owners_of_both(subject: &Subject) -> PerFamily<BTreeMap<ChainName, ServicePortName>> {
    PerFamily { v4: owners(subject, IpFamily::V4), v6: owners(subject, IpFamily::V6) }
}

/// The chains of service ports.
fn known_of_both(subject: &Subject) -> PerFamily<BTreeSet<ChainName>> {
    let of = |family| {
        let nat = subject.rulesets.get(family).as_ref().and_then(|ruleset| ruleset.tables.get(&Table::Nat));
        nat.into_iter().flat_map(|chains| chains.keys()).copied().filter(is_counted).collect()
    };
    PerFamily { v4: of(IpFamily::V4), v6: of(IpFamily::V6) }
}
