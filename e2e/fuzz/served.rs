//! The good neighbour, and that it is served whatever other objects exist.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use chainsmith::compile::{self, Compiled, NoRules, PortCompiler, Source, View};
use chainsmith::config::{Config, LayoutChoice};
use chainsmith::iptables::{ChainContent, Ruleset, Table, write};
use chainsmith::kernel::Backend;
use chainsmith::kernel::fake::FakeIptables;
use chainsmith::model::decode::manifest::{self, Object};
use chainsmith::model::decode::{self, Interner};
use chainsmith::model::host::Host;
use chainsmith::model::{Change, Service, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::plan::Restore;
use chainsmith::policy::Place;
use chainsmith::rules::Settings;

/// The node that rules are made for.
const NODE: &str = "node-1";

/// A Service with all kinds of addresses, and its slice.
pub const NEIGHBOUR: &str = "
apiVersion: v1
kind: Service
metadata: {name: good, namespace: neighbour}
spec:
  type: LoadBalancer
  clusterIPs: [10.111.0.1, 'fd00:111::1']
  externalIPs: [198.51.100.77]
  loadBalancerSourceRanges: [203.0.113.0/24]
  sessionAffinity: ClientIP
  externalTrafficPolicy: Local
  healthCheckNodePort: 32111
  ports: [{name: http, port: 80, nodePort: 30111}, {name: dns, port: 53, protocol: UDP, nodePort: 30112}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.177}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: good-1, namespace: neighbour, labels: {kubernetes.io/service-name: good}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [10.222.0.1], nodeName: node-1}, {addresses: [10.222.0.2]}]
";

/// The neighbour's objects.
pub static GOOD: LazyLock<Vec<Object>> = LazyLock::new(|| read(NEIGHBOUR.as_bytes()).1);

/// The content of a manifest.
pub fn read(text: &[u8]) -> (manifest::ManifestSummary, Vec<Object>) {
    let mut objects = Vec::new();
    let outcome = manifest::read(text, "fuzz", &mut |object| objects.push(object));
    (outcome, objects)
}

/// Claims that a message is fit for the log.
pub fn is_one_line(message: &str) -> Result<(), String> {
    match message.len() > 1_500 || message.chars().any(char::is_control) {
        true => Err(format!("not one short line: {message:?}")),
        false => Ok(()),
    }
}

/// The cluster of `objects` and the neighbour, as far as each object can be used.
pub fn cluster(objects: &[Object]) -> Result<Snapshot, String> {
    let (mut snapshot, mut interner) = (Snapshot::default(), Interner::default());
    for object in objects.iter().chain(&*GOOD) {
        let (change, problems) = decode::change(object, &mut interner);
        problems.iter().try_for_each(|problem| is_one_line(&problem.to_string()))?;
        if let Some(change) = change {
            snapshot.apply(change, &mut Touched::default());
        }
    }
    Ok(snapshot)
}

/// The default settings.
pub fn defaults(family: IpFamily) -> Settings {
    static CONFIG: LazyLock<Config> = LazyLock::new(Config::default);
    Settings::new(&CONFIG, None, &Host::of_node(&["192.0.2.1".parse().expect("an address")]), family)
}

/// Claims that a kernel accepts the rules of `snapshot`, which holds the neighbour, that their text
/// means the same as their values, and that they serve the neighbour as if it were alone.
pub fn check(snapshot: &Snapshot, settings: &Settings) -> Result<(), String> {
    for layout in [LayoutChoice::Classic, LayoutChoice::Compact] {
        check_layout(snapshot, &Settings { layout, ..settings.clone() })?;
    }
    Ok(())
}

fn check_layout(snapshot: &Snapshot, settings: &Settings) -> Result<(), String> {
    let family = settings.family;
    let place = Place { node: NODE, zone: None };
    let ruleset = compile::ruleset(settings, snapshot, place);
    is_text_harmless(family, &ruleset)?;
    let mut kernel = FakeIptables::new(family, Backend::Nft);
    kernel.begin();
    kernel.write(&write::restore(family, &ruleset));
    kernel.end().map_err(|error| error.to_string())?;
    if kernel.ruleset != ruleset {
        return Err(format!(
            "read back otherwise than it was written: {}",
            write::save(family, &kernel.ruleset)
        ));
    }
    let mut compiled = Compiled::default();
    compiled.apply(Source { settings, view: View { snapshot, place } }, &BTreeSet::new(), &NoRules);
    let (alone, neighbour) = &*ALONE;
    let mut compiler = PortCompiler::new(Source { settings, view: View { snapshot: alone, place } });
    let mut is_served = false;
    for port in alone.ports_of(neighbour, family).iter() {
        for chain in compiler.chains(compiled.layout(), &port.name()) {
            let there = ruleset.chain(Table::Nat, &chain.name);
            if there != Some(&ChainContent { policy: None, rules: chain.rules }) {
                return Err(format!("the neighbour's {} is {there:?}", chain.name));
            }
            is_served = true;
        }
        for (shared, rule) in compiler.entries(&port.name()) {
            // In compact it may stand in a dispatch chain.
            let is_there = |chain: &ChainContent| chain.rules.contains(&rule);
            if !ruleset.tables[&shared.table()].values().any(is_there) {
                return Err(format!("the neighbour's entry in {} is lost: {rule:?}", shared.name()));
            }
        }
    }
    if is_served || family == IpFamily::V6 { Ok(()) } else { Err("the neighbour has no rules".to_owned()) }
}

/// The cluster of the neighbour alone.
static ALONE: LazyLock<(Snapshot, Service)> = LazyLock::new(|| {
    let mut snapshot = Snapshot::default();
    let mut interner = Interner::default();
    for object in &*GOOD {
        let (change, _) = decode::change(object, &mut interner);
        snapshot.apply(change.expect("it is good"), &mut Touched::default());
    }
    let service = Service::clone(snapshot.services().next().expect("it is good"));
    (snapshot, service)
});

/// Claims that each line has the intended form; checked without our own parser.
fn is_text_harmless(family: IpFamily, ruleset: &Ruleset) -> Result<(), String> {
    let text = write::restore(family, ruleset);
    let n_rules: usize =
        ruleset.tables.values().flat_map(|chains| chains.values()).map(|chain| chain.rules.len()).sum();
    let mut n_found = 0;
    for line in text.lines() {
        if !line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(format!("a line with other than visible characters: {line:?}"));
        }
        let is_rule = ["-A ", "-I "].iter().any(|command| line.starts_with(command));
        n_found += usize::from(is_rule);
        let is_frame = line == "COMMIT" || line.starts_with([':', '*', '#']) || line.starts_with("-X ");
        if !is_rule && !is_frame {
            return Err(format!("a line that is no command: {line:?}"));
        }
    }
    if n_found == n_rules { Ok(()) } else { Err(format!("{n_found} lines for {n_rules} rules")) }
}

/// Whether the change concerns the neighbour.
pub fn is_neighbours(change: &Change) -> bool {
    match change {
        Change::Service(name, _) => name.to_string().starts_with("neighbour/"),
        Change::Slice(_, slice) => {
            slice.as_ref().is_some_and(|slice| slice.service.to_string().starts_with("neighbour/"))
        }
        _ => false,
    }
}
