//! Tests with writers that are slow, fail, never close or never stop; and with hostile files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// The output of `kubectl get services -o yaml` with `n` Services `s000`, `s001`, ...
fn list(n: usize, octet: u8) -> String {
    let item = |i| {
        format!(
            "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: s{i:03}\n    namespace: default\n  spec:\n    \
             clusterIP: 10.0.0.{octet}\n    ports:\n    - port: 80\n      protocol: TCP\n"
        )
    };
    let items: String = (0..n).map(item).collect();
    format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
}

/// Truncates and opens a file, as a shell's `>` does.
fn truncated(folder: &TempDir, name: &str) -> File {
    File::create(folder.path().join(name)).unwrap()
}

/// An action that is repeated until this is dropped.
struct RepeatedAction(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl RepeatedAction {
    fn new(every: Duration, mut action: impl FnMut(usize) + Send + 'static) -> RepeatedAction {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            for i in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                action(i);
                std::thread::sleep(every);
            }
        });
        RepeatedAction(is_over, Some(thread))
    }
}

impl Drop for RepeatedAction {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap();
    }
}

/// As a slow `kubectl get services,endpointslices,nodes -A -o yaml > cluster/objects.yaml`.
#[tokio::test]
async fn services_stay_while_their_file_is_written_in_place() {
    let folder = TempDir::new().unwrap();
    write(&folder, "objects.yaml", &list(300, 1));
    write(&folder, "z.yaml", &service("z", 0));
    let mut follower = FolderFollower::new(&[folder.path()]);
    let all = |octet: u8, other: u8| {
        let names: Vec<String> = (0..300).map(|i| format!("s{i:03}={octet}")).collect();
        format!("{} z={other}", names.join(" "))
    };
    follower.wait_for(&all(1, 0)).await;
    let mut file = truncated(&folder, "objects.yaml");
    let text = list(300, 2);
    for (round, piece) in text.as_bytes().chunks(text.len() / 3 + 1).enumerate() {
        // Another file changes meanwhile, so that the folder is scanned; each change takes effect at once.
        for part in 0..3 {
            let octet = (10 + 3 * round + part) as u8;
            write(&folder, "z.yaml", &service("z", octet));
            follower.wait_for_without_loss(&all(1, octet), 1..=1).await;
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        file.write_all(piece).unwrap();
    }
    drop(file);
    follower.wait_for_without_loss(&all(2, 18), 0..=300).await;
}

#[tokio::test]
async fn an_emptied_file_keeps_its_objects_for_a_limited_time() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    write(&folder, "z.yaml", &service("z", 9));
    let intervals = Intervals { incomplete: Duration::from_secs(4) / EMPTY_FACTOR, ..FAST };
    let mut follower = FolderFollower::with(&[folder.path()], intervals);
    follower.wait_for("a=1 z=9").await;
    // The file that kubectl leaves when it cannot reach an API server.
    drop(truncated(&folder, "a.yaml"));
    follower.check_unchanged().await;
    write(&folder, "a.yaml", &service("a", 2));
    follower.wait_for("a=2 z=9").await;
    drop(truncated(&folder, "a.yaml"));
    follower.check_unchanged().await;
    follower.wait_for("z=9").await;
    write(&folder, "a.yaml", &service("a", 3));
    follower.wait_for("a=3 z=9").await;
    // A comment shows that it is intended.
    write(&folder, "a.yaml", "# nothing\n");
    follower.wait_for("z=9").await;
}

#[tokio::test]
async fn an_open_file_keeps_its_last_state_for_a_limited_time() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &(service("a", 1) + &service("b", 1)));
    let mut follower =
        FolderFollower::with(&[folder.path()], Intervals { incomplete: Duration::from_secs(4), ..FAST });
    follower.wait_for("a=1 b=1").await;
    let mut file = truncated(&folder, "a.yaml");
    file.write_all(service("a", 2).as_bytes()).unwrap();
    follower.check_unchanged().await;
    follower.wait_for("a=2").await;
    // The writer continues: that is another change, and delays again.
    file.write_all(service("c", 3).as_bytes()).unwrap();
    follower.check_unchanged().await;
    drop(file);
    follower.wait_for("a=2 c=3").await;
}

/// Where inotify reports nothing, a complete file must end like a document.
#[tokio::test]
async fn a_file_behind_a_symlink_that_ends_inside_a_line_keeps_its_last_state() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let real = elsewhere.path().join("real");
    fs::write(&real, list(2, 1)).unwrap();
    symlink(&real, folder.path().join("a.yaml")).unwrap();
    let mut follower =
        FolderFollower::with(&[folder.path()], Intervals { incomplete: Duration::from_secs(6), ..FAST });
    follower.wait_for("s000=1 s001=1").await;
    fs::write(&real, list(1, 2).trim_end()).unwrap();
    follower.check_unchanged().await;
    fs::write(&real, list(2, 2)).unwrap();
    follower.wait_for("s000=2 s001=2").await;
    fs::write(&real, list(1, 3).trim_end()).unwrap();
    follower.check_unchanged().await;
    follower.wait_for("s000=3").await;
}

#[tokio::test]
async fn a_file_that_is_always_being_written_does_not_delay_other_files() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let intervals = Intervals { settle: Duration::from_millis(200), poll: Duration::from_secs(600), ..FAST };
    let mut follower = FolderFollower::with(&[folder.path()], intervals);
    follower.wait_for("a=1").await;
    let path = folder.path().to_path_buf();
    let _busy = RepeatedAction::new(Duration::from_millis(5), move |i| {
        for name in [".a.yaml.swp", "log.txt", "a.yaml~", "busy.yaml"] {
            fs::write(path.join(name), service("busy", (i % 2) as u8)).unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    for octet in 2..6 {
        write(&folder, "a.yaml", &service("a", octet));
        let start = Instant::now();
        while !follower.services().contains(&format!("a={octet}")) {
            follower.next_event().await;
            assert!(start.elapsed() < Duration::from_secs(8), "{}", follower.services());
        }
    }
}

/// The writer truncates, writes and closes again and again; only complete versions are used.
#[tokio::test]
async fn a_file_rewritten_in_place_again_and_again_never_loses_an_object() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &list(40, 0));
    write(&folder, "z.yaml", &service("z", 9));
    let mut follower = FolderFollower::new(&[folder.path()]);
    while follower.n_listed < 3 {
        follower.next_event().await;
    }
    let path = folder.path().to_path_buf();
    let busy = RepeatedAction::new(Duration::from_millis(1), move |i| {
        let mut file = File::create(path.join("a.yaml")).unwrap();
        for piece in list(40, (i % 200) as u8).as_bytes().chunks(1_000) {
            file.write_all(piece).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    let watch = async {
        loop {
            follower.next_event().await;
            assert_eq!(follower.snapshot.services().count(), 41);
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), watch).await.is_err());
    drop(busy);
    write(&folder, "a.yaml", &list(40, 250));
    let wait = async {
        while !follower.services().contains("s000=250") {
            follower.next_event().await;
            assert_eq!(follower.snapshot.services().count(), 41);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn files_that_are_not_regular_are_ignored_and_the_others_are_followed() {
    let folder = TempDir::new().unwrap();
    mkfifo(&folder.path().join("0.yaml"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(folder.path().join("1.yml")).unwrap();
    symlink("/dev/zero", folder.path().join("2.json")).unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1").await;
    write(&folder, "a.yaml", &service("a", 2));
    follower.wait_for("a=2").await;
    // A FIFO that later replaces a good file.
    write(&folder, "b.yaml", &service("b", 1));
    follower.wait_for("a=2 b=1").await;
    mkfifo(&folder.path().join("new"), Mode::S_IRWXU).unwrap();
    fs::rename(folder.path().join("new"), folder.path().join("b.yaml")).unwrap();
    follower.wait_for("a=2").await;
}

#[tokio::test]
async fn unreadable_files_are_problems_and_do_not_delay_other_files() {
    let folder = TempDir::new().unwrap();
    // Larger than the limit, as a sparse file.
    File::create(folder.path().join("0.yaml")).unwrap().set_len(1 << 40).unwrap();
    symlink("1.yaml", folder.path().join("1.yaml")).unwrap();
    symlink("nowhere", folder.path().join("2.yaml")).unwrap();
    // A regular file by type that fails when read.
    symlink("/proc/self/mem", folder.path().join("3.yaml")).unwrap();
    write(&folder, "4\n\u{1b}[2J.yaml", "kind: [\n");
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower = FolderFollower::new(&[folder.path()]);
    follower.wait_for("a=1").await;
    // A file that grows too large keeps its last state.
    write(&folder, "b.yaml", &service("b", 1));
    follower.wait_for("a=1 b=1").await;
    OpenOptions::new().write(true).open(folder.path().join("b.yaml")).unwrap().set_len(1 << 40).unwrap();
    follower.check_unchanged().await;
}

#[tokio::test]
async fn a_folder_replaced_by_a_file_keeps_its_objects_and_is_followed_when_it_returns() {
    let parent = TempDir::new().unwrap();
    let folder = parent.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), service("a", 1)).unwrap();
    let mut follower = FolderFollower::new(&[&folder]);
    follower.wait_for("a=1").await;
    fs::rename(&folder, parent.path().join("moved")).unwrap();
    fs::write(&folder, "a file").unwrap();
    follower.check_unchanged().await;
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("b.yaml"), service("b", 2)).unwrap();
    follower.wait_for("b=2").await;
    // Changes in the folder that was moved away have no effect.
    fs::write(parent.path().join("moved/c.yaml"), service("c", 3)).unwrap();
    follower.check_unchanged().await;
}

/// The kernel queues 16 384 events at most, and drops further ones.
#[tokio::test]
async fn changes_are_found_although_their_events_were_lost() {
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let slow = Intervals { poll: Duration::from_secs(600), ..FAST };
    let mut follower = FolderFollower::with(&[folder.path()], slow);
    follower.wait_for("a=1").await;
    // More events than the channel holds: the follower blocks.
    write(&folder, "b.yaml", &list(super::super::super::CHANNEL_CAPACITY + 100, 1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    for i in 0..10_000 {
        write(&folder, if i % 2 == 0 { "x.txt" } else { "y.txt" }, "x");
    }
    write(&folder, "a.yaml", &service("a", 2));
    let wait = async {
        while !follower.services().contains("a=2") {
            follower.next_event().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the change is found");
}
