//! A recorded case of kube-proxy: its input, and what it left in the kernel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chainsmith::config::host::Host;
use chainsmith::config::{Config, Flags};
use chainsmith::model::decode::{Interner, manifest};
use chainsmith::model::{Change, Inventory, Snapshot};
use chainsmith::net::IpFamily;
use chainsmith::policy::Place;
use chainsmith::rules::Settings;

/// The input of one case.
pub struct Case {
    folder: PathBuf,
    /// Its configuration.
    pub config: Config,
    /// What only the node knows.
    pub host: Host,
}

impl Case {
    /// All of them, by name.
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
        let (config, _) =
            Config::resolve(Some(&read("config.yaml")), &Flags::default()).expect("a good config");
        let host = Host::parse(&read("host.yaml")).expect("a good host");
        Case { folder, config, host }
    }

    /// Its folder's name.
    pub fn name(&self) -> String {
        self.folder.file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// A file of it.
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
        inventory.seen_from(self.node_name())
    }

    /// What shapes its rules beside the objects.
    pub fn settings(&self, snapshot: &Snapshot, family: IpFamily) -> Settings {
        Settings::new(&self.config, snapshot.node(), &self.host, family)
    }
}

/// The node of the case.
pub fn place<'a>(case: &'a Case, snapshot: &'a Snapshot) -> Place<'a> {
    Place { node: case.node_name(), zone: snapshot.node().and_then(|node| node.zone.as_deref()) }
}

/// The word for `family` in the names of files.
pub fn version(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "v4",
        IpFamily::V6 => "v6",
    }
}

/// What a source tells when it lists everything.
pub fn whole_state(snapshot: &Snapshot) -> [Change; 3] {
    [
        Change::Node(snapshot.node().cloned()),
        Change::AllServices(snapshot.services().cloned().collect()),
        Change::AllSlices(snapshot.slices().map(|(name, slice)| (name.clone(), slice.clone())).collect()),
    ]
}
