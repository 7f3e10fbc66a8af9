use super::*;
use crate::config::Config;

/// A scratch /proc/sys and /sys.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// With these files and their contents; paths begin with `proc` or `sys`.
    fn new(files: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch { folder: tempfile::tempdir().unwrap() };
        for (path, text) in files {
            let path = scratch.folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        scratch
    }

    fn folders(&self) -> SettingsFolders {
        let below = |name| self.folder.path().join(name);
        SettingsFolders { sysctls: Sysctls::below(below("proc")), sys: below("sys") }
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap().trim().to_owned()
    }

    fn set_conntrack(&self, conntrack: &Conntrack) -> Vec<String> {
        set_conntrack(&self.folders(), conntrack).iter().map(|failure| failure.key.clone()).collect()
    }
}

const MAX_FILE: &str = "proc/net/netfilter/nf_conntrack_max";
const ESTABLISHED: &str = "proc/net/netfilter/nf_conntrack_tcp_timeout_established";
const CLOSE_WAIT: &str = "proc/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
const HASH_FILE: &str = "sys/module/nf_conntrack/parameters/hashsize";

fn scratch_node(online: &str, max: &str, hash: &str) -> Scratch {
    let mut files = vec![
        (MAX_FILE, max),
        (ESTABLISHED, "432000\n"),
        (CLOSE_WAIT, "60\n"),
        (HASH_FILE, hash),
        ("sys/devices/system/cpu/online", online),
        ("sys/devices/system/cpu/cpufreq/x", ""),
    ];
    let cpus: Vec<String> = (0..40).map(|n| format!("sys/devices/system/cpu/cpu{n}/x")).collect();
    files.extend(cpus.iter().map(|path| (path.as_str(), "")));
    Scratch::new(&files)
}

#[test]
fn the_defaults_set_size_and_two_timeouts() {
    // CPUs, nf_conntrack_max, hashsize before; both after.
    for (online, max, hash, expected_max, expected_hash) in [
        ("0", "65536", "16384", "131072", "32768"),
        ("0-3", "65536", "16384", "131072", "32768"),
        ("0-7", "65536", "16384", "262144", "65536"),
        ("0-31", "65536", "16384", "1048576", "262144"),
        ("0-39", "65536", "16384", "1048576", "262144"),
        // The maximum is lowered too, the hash table is not.
        ("0-3", "4000000", "1000000", "131072", "1000000"),
        ("0,2,4-9", "65536", "16384", "262144", "65536"),
    ] {
        let scratch = scratch_node(online, max, hash);
        assert_eq!(scratch.set_conntrack(&Config::default().conntrack), [""; 0], "{online}");
        let found = [MAX_FILE, HASH_FILE, ESTABLISHED, CLOSE_WAIT].map(|path| scratch.text(path));
        assert_eq!(found, [expected_max, expected_hash, "86400", "3600"], "{online}");
    }
}

#[test]
fn disabled_settings_keep_their_values() {
    let scratch = scratch_node("0-3", "65536", "16384");
    let conntrack = Conntrack {
        max_per_core: None,
        tcp_established_timeout: None,
        tcp_close_wait_timeout: None,
        ..Config::default().conntrack
    };
    assert_eq!(scratch.set_conntrack(&conntrack), [""; 0]);
    let found = [MAX_FILE, HASH_FILE, ESTABLISHED, CLOSE_WAIT].map(|path| scratch.text(path));
    assert_eq!(found, ["65536", "16384", "432000", "60"]);
}

#[test]
fn a_failure_affects_only_its_key() {
    let scratch = scratch_node("0-3", "65536", "16384");
    fs::remove_file(scratch.folder.path().join(MAX_FILE)).unwrap();
    fs::remove_file(scratch.folder.path().join(ESTABLISHED)).unwrap();
    let failed = scratch.set_conntrack(&Config::default().conntrack);
    assert_eq!(failed, [MAX, "net/netfilter/nf_conntrack_tcp_timeout_established"]);
    assert_eq!([HASH_FILE, CLOSE_WAIT].map(|path| scratch.text(path)), ["32768", "3600"]);
}

#[test]
fn an_unreadable_hash_size_is_reported() {
    let scratch = scratch_node("0-3", "65536", "many");
    let failures = set_conntrack(&scratch.folders(), &Config::default().conntrack);
    assert_eq!(failures.len(), 1);
    let text = failures[0].to_string();
    assert_eq!(text, format!("cannot set {HASH_SIZE} to 32768: unexpected value \"many\""));
    assert_eq!(scratch.text(HASH_FILE), "many");
}

#[test]
fn cpus_of_numa_nodes_count_if_there_are_numa_nodes() {
    let scratch = Scratch::new(&[
        ("sys/devices/system/node/node0/cpu0/x", ""),
        ("sys/devices/system/node/node0/cpu1/x", ""),
        ("sys/devices/system/node/node1/cpu2/x", ""),
        ("sys/devices/system/node/node1/cpulist", ""),
        ("sys/devices/system/node/online", "0-1"),
        ("sys/devices/system/cpu/cpu7/x", ""),
        ("sys/devices/system/cpu/online", "0-1,2\n"),
    ]);
    assert_eq!(n_cpus(&scratch.folders().sys), 3);
}

#[test]
fn without_sysfs_the_usable_cpus_count() {
    let scratch = Scratch::new(&[]);
    let usable = std::thread::available_parallelism().unwrap().get() as u32;
    assert!(n_cpus(&scratch.folders().sys) >= usable);
    // All offline, or a list that is none.
    for online in ["9", "x"] {
        let scratch =
            Scratch::new(&[("sys/devices/system/cpu/online", online), ("sys/devices/system/cpu/cpu0/x", "")]);
        assert!(n_cpus(&scratch.folders().sys) >= 1, "{online}");
    }
    assert_eq!(parse_list("0-2,5\n"), Some([0, 1, 2, 5].into()));
    assert_eq!(parse_list("0-"), None);
}

#[tokio::test(start_paused = true)]
async fn the_out_of_memory_score_is_written_and_a_failure_is_no_error() {
    let scratch = Scratch::new(&[("oom_score_adj", "0")]);
    set_oom_score(scratch.folder.path(), -999).await;
    assert_eq!(scratch.text("oom_score_adj"), "-999");
    let started = tokio::time::Instant::now();
    set_oom_score(&scratch.folder.path().join("none"), -999).await;
    assert_eq!(started.elapsed(), Duration::from_millis(100), "tried twice");
}
