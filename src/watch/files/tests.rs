//! Folders of manifests on a real file system, followed with real inotify.

#![allow(clippy::disallowed_methods, reason = "writes manifests")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::mpsc::{self, Receiver};

use super::*;
use crate::model::{Change, ObjectKind, Snapshot, Touched};

/// A Service called `name` with cluster IP 10.0.0.`octet`, as one document.
fn service(name: &str, octet: u8) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.{octet}, ports: [{{port: 80}}]}}\n"
    )
}

const SLICE: &str = "---\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\n\
                     addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]\n";

/// What follows some folders, and the cluster as it tells it.
struct Follower {
    events: Receiver<WatchEvent>,
    snapshot: Snapshot,
    n_listed: usize,
    problems: BTreeMap<ObjectKind, usize>,
}

/// Quick enough for tests.
const FAST: Pace = Pace {
    settle: Duration::from_millis(20),
    recheck: Duration::from_millis(50),
    poll: Duration::from_secs(1),
    patience: Duration::from_secs(30),
};

impl Follower {
    fn new(folders: &[&Path]) -> Follower {
        Follower::with(folders, FAST)
    }

    fn with(folders: &[&Path], pace: Pace) -> Follower {
        let (sender, events) = mpsc::channel(super::super::CHANNEL_CAPACITY);
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        tokio::spawn(async move { follow_at(folders, "node-a".into(), sender, pace).await.unwrap() });
        Follower { events, snapshot: Snapshot::default(), n_listed: 0, problems: BTreeMap::new() }
    }

    /// Services as `name=last octet`, by name.
    fn services(&self) -> String {
        let services = self.snapshot.services().map(|service| {
            let ip = service.frontends.v4.as_ref().unwrap().cluster_ip.to_string();
            format!("{}={}", service.name.name(), ip.rsplit_once('.').unwrap().1)
        });
        services.collect::<Vec<_>>().join(" ")
    }

    async fn take(&mut self) {
        match self.events.recv().await.expect("the follower lives") {
            WatchEvent::Change(change) => self.snapshot.apply(change, &mut Touched::default()),
            WatchEvent::Problems(kind, n) => drop(self.problems.insert(kind, n)),
            _ => self.n_listed += 1,
        }
    }

    /// Waits for the Services to be these.
    async fn becomes(&mut self, expected: &str) {
        let wait = async {
            while self.n_listed < 3 || self.services() != expected {
                self.take().await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "waited for {expected:?}, there are {:?}", self.services());
    }

    /// Waits for the Services to be these, by as many changes as said, none of which takes one away.
    async fn becomes_steadily(&mut self, expected: &str, n_changes: RangeInclusive<usize>) {
        let n_services = self.snapshot.services().count();
        let mut n = 0;
        let wait = async {
            while self.services() != expected {
                self.take().await;
                n += 1;
                assert!(self.snapshot.services().count() >= n_services, "{n}: {}", self.services());
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "waited for {expected:?}, there are {:?}", self.services());
        assert!(n_changes.contains(&n), "{n}");
    }

    /// Sees to it that nothing changes for a second and a half, longer than a poll.
    async fn stays(&mut self) {
        let before = self.services();
        let wait = async {
            loop {
                self.take().await;
                assert_eq!(self.services(), before);
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(1500), wait).await.is_err());
    }
}

fn write(folder: &TempDir, name: &str, text: &str) {
    fs::write(folder.path().join(name), text).unwrap();
}

#[tokio::test]
async fn everything_is_sent_before_it_is_called_listed() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + SLICE));
    write(&folder, "b.yml", &service("b", 2));
    write(&folder, "c.json", r#"{"kind": "Node", "metadata": {"name": "node-a"}}"#);
    write(&folder, "d.json", r#"{"kind": "Node", "metadata": {"name": "node-b"}}"#);
    write(&folder, "e.txt", &service("e", 5));
    write(&folder, ".f.yaml", &service("f", 6));
    fs::create_dir(folder.path().join("g.yaml")).unwrap();
    let mut follower = Follower::new(&[folder.path()]);
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(match follower.events.recv().await.unwrap() {
            WatchEvent::Change(Change::AllServices(services)) => format!("{} services", services.len()),
            WatchEvent::Change(Change::AllSlices(slices)) => format!("{} slices", slices.len()),
            WatchEvent::Change(Change::Node(node)) => node.unwrap().name.to_string(),
            other => format!("{other:?}"),
        });
    }
    let expected = ["2 services", "ServicesListed", "1 slices", "SlicesListed", "node-a", "NodeListed"];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn an_empty_folder_at_the_start_is_an_empty_cluster() {
    let folder = TempDir::new().unwrap();
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("").await;
    write(&folder, "a.yaml", &service("a", 1));
    follower.becomes("a=1").await;
}

#[tokio::test]
async fn nothing_is_listed_before_every_folder_is_there() {
    let folder = TempDir::new().unwrap();
    let late = folder.path().join("late");
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = Follower::new(&[folder.path(), &late]);
    follower.stays().await;
    fs::create_dir(&late).unwrap();
    follower.becomes("a=1").await;
}

#[tokio::test]
async fn files_that_come_change_and_go_are_followed() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1").await;
    write(&folder, "b.yaml", &(service("b", 2) + &service("c", 3)));
    follower.becomes("a=1 b=2 c=3").await;
    write(&folder, "b.yaml", &(service("b", 20) + &service("d", 4)));
    follower.becomes("a=1 b=20 d=4").await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    follower.becomes("b=20 d=4").await;
    fs::rename(folder.path().join("b.yaml"), folder.path().join("z.yaml")).unwrap();
    follower.stays().await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_state_until_it_is_repaired() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + &service("b", 2)));
    write(&folder, "z.yaml", &service("z", 9));
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1 b=2 z=9").await;
    write(&folder, "a.yaml", &(service("a", 100) + "---\nkind: Service\n  metadata: {name\n"));
    follower.stays().await;
    write(&folder, "z.yaml", &service("z", 10));
    follower.becomes("a=1 b=2 z=10").await;
    write(&folder, "a.yaml", &service("a", 11));
    follower.becomes("a=11 z=10").await;
}

#[tokio::test]
async fn an_object_of_the_wrong_type_keeps_its_last_state_and_its_neighbours_go_on() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + &service("b", 2)));
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1 b=2").await;
    let bad = "---\nkind: Service\nmetadata: {name: b}\nspec: {ports: 80}\n";
    let unknown = "---\nkind: Service\nmetadata: {name: c}\nspec: {ports: 80}\n";
    write(&folder, "a.yaml", &(service("a", 10) + bad + unknown));
    follower.becomes("a=10 b=2").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.becomes("a=10").await;
}

#[tokio::test]
async fn a_file_that_is_broken_from_the_start_gives_what_is_readable() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + "---\nkind: [\n" + &service("b", 2)));
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1 b=2").await;
    write(&folder, "a.yaml", &(service("a", 10) + "---\nkind: [\n"));
    follower.becomes("a=10 b=2").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.becomes("a=10").await;
}

#[tokio::test]
async fn of_an_object_in_two_files_the_later_counts_and_the_other_stands_in() {
    let folder = TempDir::new().unwrap();
    let second = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    write(&folder, "b.yaml", &service("a", 2));
    write(&second, "0.yaml", &service("a", 3));
    let mut follower = Follower::new(&[folder.path(), second.path()]);
    follower.becomes("a=3").await;
    write(&second, "0.yaml", &service("other", 4));
    follower.becomes("a=2 other=4").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.stays().await;
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    follower.becomes("a=10 other=4").await;
}

#[tokio::test]
async fn a_config_map_volume_is_followed_through_its_links() {
    let folder = TempDir::new().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("a.yaml"), text).unwrap();
    };
    version("..2026_01", &service("a", 1));
    symlink("..2026_01", folder.path().join("..data")).unwrap();
    symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1").await;
    version("..2026_02", &service("a", 2));
    symlink("..2026_02", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    fs::remove_dir_all(folder.path().join("..2026_01")).unwrap();
    follower.becomes("a=2").await;
}

#[tokio::test]
async fn a_file_behind_a_link_is_seen_by_the_poll() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(&elsewhere, "real", &service("a", 1));
    symlink(elsewhere.path().join("real"), folder.path().join("a.yaml")).unwrap();
    let mut follower = Follower::new(&[folder.path()]);
    follower.becomes("a=1").await;
    write(&elsewhere, "real", &service("a", 2));
    follower.becomes("a=2").await;
}

#[tokio::test]
async fn a_folder_that_vanishes_or_empties_keeps_its_state() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), service("a", 1)).unwrap();
    let mut follower = Follower::new(&[&folder]);
    follower.becomes("a=1").await;
    fs::remove_dir_all(&folder).unwrap();
    follower.stays().await;
    fs::create_dir(&folder).unwrap();
    follower.stays().await;
    fs::write(folder.join("b.yaml"), service("b", 2)).unwrap();
    follower.becomes("b=2").await;
    fs::write(folder.join("b.yaml"), "# nothing\n").unwrap();
    follower.stays().await;
    fs::write(folder.join("c.yaml"), service("c", 3)).unwrap();
    follower.becomes("c=3").await;
}

#[tokio::test]
async fn it_ends_when_nobody_listens_any_more() {
    let folder = TempDir::new().unwrap();
    let (sender, events) = mpsc::channel(16);
    let task = tokio::spawn(follow(vec![folder.path().to_path_buf()], "n".into(), sender));
    drop(events);
    tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn ten_thousand_files_are_read_and_one_of_them_changes() {
    let folder = TempDir::new().unwrap();
    for i in 0..10_000 {
        write(&folder, &format!("{i:05}.yaml"), &service(&format!("s{i}"), 1));
    }
    let mut follower = Follower::new(&[folder.path()]);
    while follower.n_listed < 3 {
        follower.take().await;
    }
    assert_eq!(follower.snapshot.services().count(), 10_000);
    write(&folder, "05000.yaml", &service("s5000", 2));
    let Some(WatchEvent::Change(Change::Service(name, Some(_)))) = follower.events.recv().await else {
        panic!("something else")
    };
    assert_eq!(name.name(), "s5000");
}

#[tokio::test]
async fn problems_are_counted_over_all_files_until_they_are_gone() {
    let folder = TempDir::new().unwrap();
    let bad =
        "kind: Service\nmetadata: {name: x, namespace: ns}\nspec: {clusterIP: no, ports: [{port: 80}]}\n";
    write(&folder, "a.yaml", bad);
    write(&folder, "b.yaml", &bad.replace("name: x", "name: y"));
    let mut follower = Follower::new(&[folder.path()]);
    let until = async |follower: &mut Follower, n: usize| {
        let wait = async {
            while follower.problems.get(&ObjectKind::Service) != Some(&n) {
                follower.take().await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "waited for {n}, there are {:?}", follower.problems);
    };
    until(&mut follower, 2).await;
    write(&folder, "a.yaml", &service("a", 1));
    until(&mut follower, 1).await;
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    until(&mut follower, 0).await;
}

mod log;
mod writers;
