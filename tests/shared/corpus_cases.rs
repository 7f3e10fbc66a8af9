//! The recorded cases and the comparison of their rules, for tests in memory and on real tables.
#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use chainsmith::apply::FamilySync;
use chainsmith::compile::View;
use chainsmith::config::{Config, Flags};
use chainsmith::iptables::Table;
use chainsmith::kernel::Iptables;
use chainsmith::model::decode::{Interner, manifest};
use chainsmith::model::host::Host;
use chainsmith::model::{Change, Inventory, Snapshot, Touched};
use chainsmith::net::IpFamily;
use chainsmith::policy::Place;
use chainsmith::rules::{Settings, names};

/// The input of one case.
pub struct Case {
    folder: PathBuf,
    pub config: Config,
    pub host: Host,
}

impl Case {
    pub fn all() -> Vec<Case> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/corpus");
        let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
            .expect("the corpus is there")
            .map(|entry| entry.expect("a folder entry").path())
            .filter(|path| path.is_dir())
            .collect();
        folders.sort();
        folders.into_iter().map(Case::read).collect()
    }

    fn read(folder: PathBuf) -> Case {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
        // The recorded layout is kube-proxy's, also for large clusters.
        let flags = Flags::default().with("layout", "classic");
        let (config, _) = Config::resolve(Some(&read("config.yaml")), &flags).expect("a good config");
        let host = Host::parse(&read("host.yaml")).expect("a good host");
        Case { folder, config, host }
    }

    pub fn name(&self) -> String {
        self.folder.file_name().expect("a name").to_string_lossy().into_owned()
    }

    pub fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.folder.join(name)).ok()
    }

    fn node_name(&self) -> &str {
        self.config.hostname_override.as_deref().expect("cases name their node")
    }

    /// Each state: its objects, and the expected rules of both families.
    pub fn states(&self) -> Vec<(Snapshot, BTreeMap<&'static str, String>)> {
        let numbered = (1..).map_while(|n| self.file(&format!("objects.{n}.yaml")).map(|_| format!(".{n}")));
        let numbers: Vec<String> =
            if self.file("objects.yaml").is_some() { vec![String::new()] } else { numbered.collect() };
        numbers
            .iter()
            .map(|n| {
                let expected = ["v4", "v6"]
                    .map(|v| (v, self.file(&format!("expected{n}.{v}.save")).expect("expected rules")));
                (self.snapshot(&self.file(&format!("objects{n}.yaml")).expect("objects")), expected.into())
            })
            .collect()
    }

    fn snapshot(&self, objects: &str) -> Snapshot {
        let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
        let outcome = manifest::read(objects.as_bytes(), &self.name(), &mut |object| {
            inventory.add(&object, &mut interner);
        });
        assert_eq!(outcome.problems, [], "{}", self.name());
        inventory.snapshot_for(self.node_name())
    }

    pub fn settings(&self, snapshot: &Snapshot, family: IpFamily) -> Settings {
        Settings::new(&self.config, snapshot.node(), &self.host, family)
    }
}

pub fn place<'a>(case: &'a Case, snapshot: &'a Snapshot) -> Place<'a> {
    Place { node: case.node_name(), zone: snapshot.node().and_then(|node| node.zone.as_deref()) }
}

pub fn version(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "v4",
        IpFamily::V6 => "v6",
    }
}

/// The text with tables in a fixed order and, in chains where kube-proxy's order is random, service ports
/// by name. The order of rules of one service port is kept, and the node ports' tail stays last.
fn normalised(text: &str) -> String {
    const UNORDERED: [&str; 4] =
        ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];
    let mut tables: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut table = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        table = line.strip_prefix('*').unwrap_or(table);
        // iptables 1.8.7 prints a space after a rule without target.
        tables.entry(table).or_default().push(line.trim_end());
    }
    let owner = |line: &str| {
        let comment = line.split("--comment ").nth(1).unwrap_or("").trim_start_matches('"');
        let is_tail = comment.starts_with("kubernetes service nodeports;");
        // kube-proxy's order of tail rules is random too.
        (
            is_tail,
            if is_tail { line.to_owned() } else { comment.split([' ', '"']).next().unwrap_or("").to_owned() },
        )
    };
    let mut out = Vec::new();
    for lines in tables.values_mut() {
        for chain in UNORDERED {
            let prefix = format!("-A {chain} ");
            let Some(first) = lines.iter().position(|line| line.starts_with(&prefix)) else { continue };
            let n = lines[first..].iter().take_while(|line| line.starts_with(&prefix)).count();
            lines[first..first + n].sort_by_key(|line| owner(line));
        }
        out.extend(lines.iter().copied());
    }
    out.join("\n")
}

pub fn assert_same(what: &str, actual: &str, expected: &str) {
    let (actual, expected) = (normalised(actual), normalised(expected));
    if actual == expected {
        return;
    }
    let (actual, expected): (Vec<&str>, Vec<&str>) = (actual.lines().collect(), expected.lines().collect());
    let only = |a: &[&str], b: &[&str]| {
        a.iter().filter(|line| !b.contains(line)).map(|l| format!("  {l}\n")).collect::<String>()
    };
    let at =
        actual.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(actual.len().min(expected.len()));
    panic!(
        "{what}: differs from line {at}:\n  {:?}\n  {:?}\nonly ours:\n{}only kube-proxy's:\n{}",
        actual.get(at),
        expected.get(at),
        only(&actual, &expected),
        only(&expected, &actual)
    );
}

/// The events of a source that lists everything.
fn whole_state(snapshot: &Snapshot) -> [Change; 3] {
    [
        Change::Node(snapshot.node().cloned()),
        Change::AllServices(
            snapshot.services().map(|service| chainsmith::model::Service::clone(service)).collect(),
        ),
        Change::AllSlices(snapshot.slices().map(|(name, slice)| (name.clone(), slice.clone())).collect()),
    ]
}

/// One agent over its life on `kernel`, which contains the case's initial rules: each state is synced on
/// the result of the one before, and `save` shows the expected rules. A restart then writes nothing.
pub fn live<K: Iptables>(case: &Case, mut kernel: K, save: impl Fn(&mut K) -> String) {
    for table in Table::ALL {
        kernel.ensure_chain(table, names::KUBE_PROXY_CANARY).expect("a new canary");
    }
    let (family, backend) = (kernel.family(), kernel.backend());
    let mut sync = FamilySync::new(kernel);
    let mut cluster = Snapshot::default();
    for (n, (snapshot, expected)) in case.states().into_iter().enumerate() {
        let what = format!("{} state {n} {family} {backend:?}", case.name());
        let mut touched = Touched::default();
        for change in whole_state(&snapshot) {
            cluster.apply(change, &mut touched);
        }
        sync.set_settings(case.settings(&cluster, family));
        if touched.node {
            sync.touch_everything();
        }
        sync.touch(touched.services.get(family).clone());
        let view = View { snapshot: &cluster, place: place(case, &cluster) };
        let report = sync.sync(view, &AtomicBool::new(false));
        assert_eq!(report.outcome, Ok(()), "{what}");
        assert!(report.tally.n_processes <= 1, "{what}: {} processes", report.tally.n_processes);
        assert_same(&what, &save(sync.kernel()), &expected[version(family)]);
        sync.distrust(chainsmith::drift::ReadReason::AuditDue);
        let report = sync.sync(view, &AtomicBool::new(false));
        let is_done = (report.outcome, report.tally.n_processes);
        assert_eq!(is_done, (Ok(()), 0), "{what}: a restart writes something");
    }
}
