//! Tests with folders of manifests on a real file system and real inotify.

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

/// A Service `name` with cluster IP 10.0.0.`octet`, as one document.
fn service(name: &str, octet: u8) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.0.0.{octet}, ports: [{{port: 80}}]}}\n"
    )
}

const SLICE: &str = "---\nkind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\n\
                     addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.1.0.1]}]\n";

/// A follower of some folders, and the cluster state from its events.
struct FolderFollower {
    events: Receiver<WatchEvent>,
    snapshot: Snapshot,
    n_listed: usize,
    problems: BTreeMap<ObjectKind, usize>,
}

/// Short intervals for tests.
const FAST: Intervals = Intervals {
    settle: Duration::from_millis(20),
    recheck: Duration::from_millis(50),
    poll: Duration::from_secs(1),
    incomplete: Duration::from_secs(30),
};

impl FolderFollower {
    fn new(folders: &[&Path]) -> FolderFollower {
        FolderFollower::with(folders, FAST)
    }

    fn with(folders: &[&Path], intervals: Intervals) -> FolderFollower {
        let (sender, events) = mpsc::channel(super::super::CHANNEL_CAPACITY);
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        tokio::spawn(async move { follow_at(folders, "node-a".into(), sender, intervals).await.unwrap() });
        FolderFollower { events, snapshot: Snapshot::default(), n_listed: 0, problems: BTreeMap::new() }
    }

    /// Services as `name=last octet`, by name.
    fn services(&self) -> String {
        let services = self.snapshot.services().map(|service| {
            let ip = service.frontends.v4.as_ref().unwrap().cluster_ip.to_string();
            format!("{}={}", service.name.name(), ip.rsplit_once('.').unwrap().1)
        });
        services.collect::<Vec<_>>().join(" ")
    }

    async fn next_event(&mut self) {
        match self.events.recv().await.expect("the follower runs") {
            WatchEvent::Change(change) => self.snapshot.apply(change, &mut Touched::default()),
            WatchEvent::Problems(kind, n, _) => drop(self.problems.insert(kind, n)),
            _ => self.n_listed += 1,
        }
    }

    /// Waits until exactly these Services exist.
    async fn wait_for(&mut self, expected: &str) {
        let wait = async {
            while self.n_listed < 3 || self.services() != expected {
                self.next_event().await;
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "waited for {expected:?}, there are {:?}", self.services());
    }

    /// Waits until exactly these Services exist, within this number of changes, none of which removes a
    /// Service.
    async fn wait_for_without_loss(&mut self, expected: &str, n_changes: RangeInclusive<usize>) {
        let n_services = self.snapshot.services().count();
        let mut n = 0;
        let wait = async {
            while self.services() != expected {
                self.next_event().await;
                n += 1;
                assert!(self.snapshot.services().count() >= n_services, "{n}: {}", self.services());
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "waited for {expected:?}, there are {:?}", self.services());
        assert!(n_changes.contains(&n), "{n}");
    }

    /// Checks that nothing changes for a second and a half, longer than the polling interval.
    async fn check_unchanged(&mut self) {
        let before = self.services();
        let wait = async {
            loop {
                self.next_event().await;
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
async fn all_objects_are_sent_before_the_listed_events() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + SLICE));
    write(&folder, "b.yml", &service("b", 2));
    write(&folder, "c.json", r#"{"kind": "Node", "metadata": {"name": "node-a"}}"#);
    write(&folder, "d.json", r#"{"kind": "Node", "metadata": {"name": "node-b"}}"#);
    write(&folder, "e.txt", &service("e", 5));
    write(&folder, ".f.yaml", &service("f", 6));
    fs::create_dir(folder.path().join("g.yaml")).unwrap();
    let mut follower = FolderFollower::new(&[folder.path()]);
    let mut received = Vec::new();
    for _ in 0..6 {
        received.push(match follower.events.recv().await.unwrap() {
            WatchEvent::Change(Change::AllServices(services)) => format!("{} services", services.len()),
            WatchEvent::Change(Change::AllSlices(slices)) => format!("{} slices", slices.len()),
            WatchEvent::Change(Change::Node(node)) => node.unwrap().name.to_string(),
            other => format!("{other:?}"),
        });
    }
    let expected = ["2 services", "ServicesListed", "1 slices", "SlicesListed", "node-a", "NodeListed"];
    assert_eq!(received, expected);
}

#[tokio::test]
async fn a_folder_that_is_empty_at_the_start_is_an_empty_cluster() {
    let folder = TempDir::new().unwrap();
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("").await;
    write(&folder, "a.yaml", &service("a", 1));
    follower.wait_for("a=1").await;
}

#[tokio::test]
async fn nothing_is_listed_before_every_folder_exists() {
    let folder = TempDir::new().unwrap();
    let late = folder.path().join("late");
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = FolderFollower::new(&[folder.path(), &late]);
    follower.check_unchanged().await;
    fs::create_dir(&late).unwrap();
    follower.wait_for("a=1").await;
}

#[tokio::test]
async fn added_changed_and_deleted_files_are_followed() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1").await;
    write(&folder, "b.yaml", &(service("b", 2) + &service("c", 3)));
    follower.wait_for("a=1 b=2 c=3").await;
    write(&folder, "b.yaml", &(service("b", 20) + &service("d", 4)));
    follower.wait_for("a=1 b=20 d=4").await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    follower.wait_for("b=20 d=4").await;
    fs::rename(folder.path().join("b.yaml"), folder.path().join("z.yaml")).unwrap();
    follower.check_unchanged().await;
}

#[tokio::test]
async fn a_malformed_file_keeps_its_last_readable_state_until_it_is_repaired() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + &service("b", 2)));
    write(&folder, "z.yaml", &service("z", 9));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1 b=2 z=9").await;
    write(&folder, "a.yaml", &(service("a", 100) + "---\nkind: Service\n  metadata: {name\n"));
    follower.check_unchanged().await;
    write(&folder, "z.yaml", &service("z", 10));
    follower.wait_for("a=1 b=2 z=10").await;
    write(&folder, "a.yaml", &service("a", 11));
    follower.wait_for("a=11 z=10").await;
}

#[tokio::test]
async fn an_undecodable_object_keeps_its_last_state_and_the_others_are_updated() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + &service("b", 2)));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1 b=2").await;
    let bad = "---\nkind: Service\nmetadata: {name: b}\nspec: {ports: 80}\n";
    let unknown = "---\nkind: Service\nmetadata: {name: c}\nspec: {ports: 80}\n";
    write(&folder, "a.yaml", &(service("a", 10) + bad + unknown));
    follower.wait_for("a=10 b=2").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.wait_for("a=10").await;
}

#[tokio::test]
async fn of_a_file_malformed_from_the_start_the_readable_part_is_used() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + "---\nkind: [\n" + &service("b", 2)));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1 b=2").await;
    write(&folder, "a.yaml", &(service("a", 10) + "---\nkind: [\n"));
    follower.wait_for("a=10 b=2").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.wait_for("a=10").await;
}

#[tokio::test]
async fn of_an_object_in_two_files_the_later_is_used_and_the_other_is_the_fallback() {
    let folder = TempDir::new().unwrap();
    let second = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    write(&folder, "b.yaml", &service("a", 2));
    write(&second, "0.yaml", &service("a", 3));
    let mut follower = FolderFollower::new(&[folder.path(), second.path()]);
    follower.wait_for("a=3").await;
    write(&second, "0.yaml", &service("other", 4));
    follower.wait_for("a=2 other=4").await;
    write(&folder, "a.yaml", &service("a", 10));
    follower.check_unchanged().await;
    fs::remove_file(folder.path().join("b.yaml")).unwrap();
    follower.wait_for("a=10 other=4").await;
}

#[tokio::test]
async fn a_config_map_volume_is_followed_through_its_symlinks() {
    let folder = TempDir::new().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("a.yaml"), text).unwrap();
    };
    version("..2026_01", &service("a", 1));
    symlink("..2026_01", folder.path().join("..data")).unwrap();
    symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1").await;
    version("..2026_02", &service("a", 2));
    symlink("..2026_02", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    fs::remove_dir_all(folder.path().join("..2026_01")).unwrap();
    follower.wait_for("a=2").await;
}

#[tokio::test]
async fn a_change_behind_a_symlink_is_found_by_polling() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(&elsewhere, "real", &service("a", 1));
    symlink(elsewhere.path().join("real"), folder.path().join("a.yaml")).unwrap();
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1").await;
    write(&elsewhere, "real", &service("a", 2));
    follower.wait_for("a=2").await;
}

#[tokio::test]
async fn a_folder_that_disappears_or_loses_all_objects_keeps_its_state() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), service("a", 1)).unwrap();
    let mut follower = FolderFollower::new(&[&folder]);
    follower.wait_for("a=1").await;
    fs::remove_dir_all(&folder).unwrap();
    follower.check_unchanged().await;
    fs::create_dir(&folder).unwrap();
    follower.check_unchanged().await;
    fs::write(folder.join("b.yaml"), service("b", 2)).unwrap();
    follower.wait_for("b=2").await;
    fs::write(folder.join("b.yaml"), "# nothing\n").unwrap();
    follower.check_unchanged().await;
    fs::write(folder.join("c.yaml"), service("c", 3)).unwrap();
    follower.wait_for("c=3").await;
}

#[tokio::test]
async fn following_ends_when_the_receiver_is_dropped() {
    let folder = TempDir::new().unwrap();
    let (sender, events) = mpsc::channel(16);
    let task = tokio::spawn(follow(vec![folder.path().to_path_buf()], "n".into(), sender));
    drop(events);
    tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_change_of_one_of_ten_thousand_files_is_one_event() {
    let folder = TempDir::new().unwrap();
    for i in 0..10_000 {
        write(&folder, &format!("{i:05}.yaml"), &service(&format!("s{i}"), 1));
    }
    let mut follower = FolderFollower::new(&[folder.path()]);
    while follower.n_listed < 3 {
        follower.next_event().await;
    }
    assert_eq!(follower.snapshot.services().count(), 10_000);
    write(&folder, "05000.yaml", &service("s5000", 2));
    let Some(WatchEvent::Change(Change::Service(name, Some(_)))) = follower.events.recv().await else {
        panic!("unexpected event")
    };
    assert_eq!(name.name(), "s5000");
}

#[tokio::test]
async fn problems_are_counted_over_all_files_until_they_are_fixed() {
    let folder = TempDir::new().unwrap();
    let bad =
        "kind: Service\nmetadata: {name: x, namespace: ns}\nspec: {clusterIP: no, ports: [{port: 80}]}\n";
    write(&folder, "a.yaml", bad);
    write(&folder, "b.yaml", &bad.replace("name: x", "name: y"));
    let mut follower = FolderFollower::new(&[folder.path()]);
    let until = async |follower: &mut FolderFollower, n: usize| {
        let wait = async {
            while follower.problems.get(&ObjectKind::Service) != Some(&n) {
                follower.next_event().await;
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

mod log_lines;
mod writers;
