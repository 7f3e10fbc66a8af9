//! Tests of what is logged, of limits on log lines, and of following without inotify.

use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

use super::super::manifest_folders::ManifestFolders;
use super::*;

/// Captured log lines.
#[derive(Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl io::Write for CapturedLog {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for CapturedLog {
    type Writer = CapturedLog;

    fn make_writer(&self) -> CapturedLog {
        self.clone()
    }
}

impl CapturedLog {
    /// Captures what `run` logs on this thread.
    fn of(run: impl FnOnce()) -> String {
        let log = CapturedLog::default();
        let to = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(to).with_ansi(false).without_time().finish();
        tracing::subscriber::with_default(subscriber, run);
        let text = log.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap()
    }
}

/// Folders that a test scans itself.
fn unscanned(folder: &TempDir) -> (ManifestFolders, FolderEvents) {
    let folders = vec![folder.path().to_path_buf()];
    let wait = Duration::from_secs(30);
    let settle_times = SettleTimes { recheck: wait, incomplete: wait, empty: wait };
    let folder_events = FolderEvents::new(&folders);
    (ManifestFolders::new(folders, "node-a".into(), settle_times), folder_events)
}

fn count(events: &[WatchEvent], expected: ObjectKind) -> usize {
    let n = events.iter().find_map(|event| match event {
        WatchEvent::Problems(kind, n, _) if *kind == expected => Some(*n),
        _ => None,
    });
    n.unwrap_or_default()
}

#[tokio::test]
async fn fifty_thousand_bad_addresses_log_one_line_and_two_thousand_bad_objects_fifty_one() {
    let folder = TempDir::new().unwrap();
    let endpoints: String = (0..50_000).map(|i| format!("- addresses: [x{i}]\n")).collect();
    let slice = format!(
        "kind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: a}}}}\n\
         addressType: IPv4\nendpoints:\n{endpoints}"
    );
    write(&folder, "a.yaml", &slice);
    let (mut manifests, mut folder_events) = unscanned(&folder);
    let mut events = Vec::new();
    let log = CapturedLog::of(|| events = manifests.scan(&mut folder_events, Instant::now()));
    let problems: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(problems.len(), 1, "{log}");
    for word in ["endpoints[0].addresses[0]", "x0", "n_fields=50000", "x1", "x2"] {
        assert!(problems[0].contains(word), "{word}: {}", problems[0]);
    }
    assert_eq!(count(&events, ObjectKind::EndpointSlice), 50_000);

    let bad = |i| {
        format!(
            "---\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{clusterIP: 10.0.0.1, externalIPs: [x, y], ports: [{{port: 0}}]}}\n"
        )
    };
    let unreadable = |i| format!("---\nkind: Service\nmetadata: {{name: u{i}}}\nspec: 1\n");
    let text: String = (0..1_000).map(|i| bad(i) + &unreadable(i)).collect();
    write(&folder, "a.yaml", &text);
    let log = CapturedLog::of(|| events = manifests.scan(&mut folder_events, Instant::now()));
    let n_lines = log.lines().filter(|line| line.contains("WARN")).count();
    assert_eq!(n_lines, 51, "{log}");
    assert!(log.contains("n_more=2950"), "{log}");
    assert_eq!(count(&events, ObjectKind::Service), 4_000);
    // The same again is not logged again.
    assert_eq!(CapturedLog::of(|| drop(manifests.scan(&mut folder_events, Instant::now()))), "");
}

#[tokio::test]
async fn a_file_that_is_not_regular_is_logged_once() {
    let folder = TempDir::new().unwrap();
    let (mut manifests, mut folder_events) = unscanned(&folder);
    let mut scan = || CapturedLog::of(|| drop(manifests.scan(&mut folder_events, Instant::now())));
    scan();
    let fifo = folder.path().join("a.yaml");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    assert!(scan().contains("not a regular file"));
    assert_eq!(scan(), "");
    fs::remove_file(&fifo).unwrap();
    assert_eq!(scan(), "");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    assert!(scan().contains("not a regular file"));
}

#[tokio::test]
async fn duplicates_of_a_large_manifest_log_fifty_lines_and_a_number() {
    let folder = TempDir::new().unwrap();
    let text: String = (0..1_000).map(|i| service(&format!("s{i}"), 1)).collect();
    write(&folder, "a.yaml", &text);
    write(&folder, "b.yaml", &text);
    let (mut manifests, mut folder_events) = unscanned(&folder);
    let log = CapturedLog::of(|| drop(manifests.scan(&mut folder_events, Instant::now())));
    assert_eq!(log.lines().filter(|line| line.contains("WARN")).count(), 51, "{log}");
    assert!(log.contains("n_more=950"), "{log}");
}

#[test]
fn the_number_of_files_in_a_folder_is_limited() {
    let folder = TempDir::new().unwrap();
    for i in 0..100_000 {
        drop(fs::File::create(folder.path().join(format!("{i}.yaml"))).unwrap());
    }
    write(&folder, "notes.txt", "");
    assert_eq!(list(folder.path()).unwrap().manifests.len(), 100_000);
    write(&folder, "one-more.yaml", "");
    assert_eq!(list(folder.path()).unwrap_err().to_string(), "holds more than 100000 manifests");
}

/// A FIFO may take a file's place after the folder was listed.
#[test]
fn a_fifo_that_replaces_a_listed_file_does_not_block() {
    let folder = TempDir::new().unwrap();
    mkfifo(&folder.path().join("a.yaml"), Mode::S_IRWXU).unwrap();
    let mut interner = crate::model::decode::Interner::default();
    let content = content::read(&folder.path().join("a.yaml"), "node-a", &mut interner);
    let mut logged = content::LoggedProblems::default();
    let log =
        CapturedLog::of(|| content::log_problems(&content, &folder.path().join("a.yaml"), true, &mut logged));
    assert!(log.contains("cannot be read: is not a regular file"), "{log}");
}

#[tokio::test]
async fn names_and_values_cannot_forge_log_lines() {
    let folder = TempDir::new().unwrap();
    let evil = "x\n WARN forged\u{1b}[2J\u{85}";
    write(&folder, &format!("{evil}0.yaml"), "kind: [\n");
    write(&folder, &format!("{evil}1.yaml"), &service("a", 1));
    write(&folder, &format!("{evil}2.yaml"), &service("a", 1));
    symlink("nowhere", folder.path().join(format!("{evil}3.yaml"))).unwrap();
    mkfifo(&folder.path().join(format!("{evil}4.yaml")), Mode::S_IRWXU).unwrap();
    let metadata = serde_json::json!({"name": evil, "annotations": {evil: 1}});
    let object = serde_json::json!({"kind": "Service", "metadata": metadata, "spec": evil});
    write(&folder, "5.json", &object.to_string());
    let port = serde_json::json!({"port": 80, "name": evil});
    let object = serde_json::json!({"kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": evil, "ports": [port]}});
    write(&folder, "6.json", &object.to_string());
    let (mut manifests, mut folder_events) = unscanned(&folder);
    let log = CapturedLog::of(|| drop(manifests.scan(&mut folder_events, Instant::now())));
    for word in [
        "malformed manifest",
        "two files",
        "cannot be read",
        "not a regular file",
        "last state stays",
        "bad field",
    ] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(
        log.lines()
            .all(|line| line.trim_start().starts_with("WARN chainsmith") || line.contains("INFO chainsmith")),
        "{log}"
    );
    assert!(!log.contains(['\u{1b}', '\u{85}']), "{log}");
}

/// Runs [`follows_a_folder_without_inotify`] in a user namespace in which `limit` of inotify is 0.
fn check_without_inotify(limit: &str, expected: &str) {
    let script =
        format!("echo 0 > /proc/sys/user/{limit} && exec \"$0\" --ignored --exact --nocapture \"$1\"");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .arg("watch::files::tests::log_lines::follows_a_folder_without_inotify")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_folder_is_followed_when_inotify_has_no_watches_left_and_the_log_says_so() {
    check_without_inotify("max_inotify_watches", "raise fs.inotify.max_user_watches");
}

#[test]
fn a_folder_is_followed_when_inotify_has_no_instances_left_and_the_log_says_so() {
    check_without_inotify("max_inotify_instances", "raise fs.inotify.max_user_instances");
}

#[tokio::test]
#[ignore = "run by the two tests above, each in a namespace"]
async fn follows_a_folder_without_inotify() {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let folder = TempDir::new().unwrap();
    write(&folder, "a.yaml", &service("a", 1));
    let mut follower =
        FolderFollower::with(&[folder.path()], Intervals { poll: Duration::from_secs(600), ..FAST });
    follower.wait_for("a=1").await;
    write(&folder, "a.yaml", &service("a", 2));
    follower.wait_for("a=2").await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    write(&folder, "b.yaml", &service("b", 1));
    follower.wait_for("b=1").await;
}
