//! Restores that fail.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use chainsmith::apply::{FamilySync, SyncError};
use chainsmith::compile::View;
use chainsmith::config::Config;
use chainsmith::kernel::programs::{KernelIptables, Programs, open};
use chainsmith::kernel::{Backend, RestoreError};
use chainsmith::model::Snapshot;
use chainsmith::model::host::Host;
use chainsmith::net::IpFamily;
use chainsmith::plan::Restore;
use chainsmith::policy::Place;
use chainsmith::rules::Settings;
use nix::fcntl::{Flock, FlockArg};

use super::namespace::{everywhere, in_namespace, load, saved};

fn restore(kernel: &mut KernelIptables, input: &str) -> Result<(), RestoreError> {
    kernel.begin();
    // In pieces, as a plan is sent.
    input.split_inclusive('\n').for_each(|line| kernel.write(line));
    kernel.end()
}

#[test]
fn a_rejected_line_is_found_and_its_table_is_unchanged() {
    everywhere(|family, backend| {
        let mut kernel = open(family, Some(backend)).expect("iptables works");
        load(family, backend, "*nat\n:KEPT - [0:0]\n-A KEPT -j RETURN\nCOMMIT\n");
        let before = saved(family, backend);
        let input = "*filter\n:F - [0:0]\nCOMMIT\n*nat\n:KEPT - [0:0]\n:X - [0:0]\n-A X -j NOWHERE\nCOMMIT\n";
        let Err(RestoreError::Refused { line, text, message }) = restore(&mut kernel, input) else {
            panic!("{family} {backend:?}: not rejected");
        };
        // nf_tables resolves chains when it commits.
        let expected = match backend {
            Backend::Nft => (8, "COMMIT"),
            Backend::Legacy => (7, "-A X -j NOWHERE"),
        };
        assert_eq!((line, text.as_deref()), (expected.0, Some(expected.1)), "{message}");
        let after = saved(family, backend);
        let nat = |text: &str| text[text.find("*nat").expect("nat is there")..].to_owned();
        assert_eq!(without_notes(&nat(&after)), without_notes(&nat(&before)));
        assert!(after.contains(":F - "), "tables above it are committed");
    });
}

/// Without lines with the time.
fn without_notes(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn invalid_input_is_rejected_with_its_line() {
    everywhere(|family, backend| {
        let mut kernel = open(family, Some(backend)).expect("iptables works");
        for bad in [
            "-A X --no-such-option",
            "-A X -d 999.1.1.1 -j RETURN",
            "-A X -p tcp -m tcp --dport 99999 -j RETURN",
        ] {
            match restore(&mut kernel, &format!("*nat\n:X - [0:0]\n{bad}\nCOMMIT\n")) {
                Err(RestoreError::Refused { line: 3, text: Some(text), .. }) => assert_eq!(text, bad),
                other => panic!("{family} {backend:?} {bad}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_held_lock_is_distinguished_from_a_rejection() {
    in_namespace(|| {
        let mut kernel = open(IpFamily::V4, Some(Backend::Legacy)).expect("iptables works");
        let input = "*nat\n:X - [0:0]\nCOMMIT\n";
        let file =
            OpenOptions::new().create(true).append(true).open("/run/xtables.lock").expect("a lock file");
        let lock = Flock::lock(file, FlockArg::LockExclusive).expect("a free lock");
        assert_eq!(restore(&mut kernel, input), Err(RestoreError::Locked(std::time::Duration::from_secs(5))));
        assert!(!saved(IpFamily::V4, Backend::Legacy).contains(":X "));
        drop(lock);
        assert_eq!(restore(&mut kernel, input), Ok(()));
        assert!(saved(IpFamily::V4, Backend::Legacy).contains(":X "));
    });
}

#[test]
fn a_missing_program_is_not_started_and_nothing_changes() {
    let programs = Programs { restore: "iptables-restore-that-is-gone", ..Programs::new(IpFamily::V4, None) };
    let mut kernel = KernelIptables::new(IpFamily::V4, Backend::Nft, programs);
    match restore(&mut kernel, "*nat\nCOMMIT\n") {
        Err(RestoreError::NotStarted(message)) => {
            assert!(message.contains("iptables-restore-that-is-gone"), "{message}")
        }
        other => panic!("{other:?}"),
    }
}

/// A restore that is killed `before` or after it takes effect.
fn program(folder: &Path, restore: &str, before: bool) -> &'static str {
    let kill = "if [ ! -e \"$0.done\" ]; then : > \"$0.done\"; kill -9 $$; fi";
    let script = match before {
        true => format!("#!/bin/sh\n{kill}\nexec {restore} \"$@\"\n"),
        false => format!("#!/bin/sh\n{restore} \"$@\" || exit $?\n{kill}\n"),
    };
    let path = folder.join(format!("{restore}-{before}"));
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    // Another thread that forks just now may have the script open for writing.
    drop(File::open(&path));
    String::leak(path.to_str().expect("text").to_owned())
}

#[test]
fn a_killed_restore_is_repaired_whether_it_took_effect_or_not() {
    let folder = tempfile::tempdir().expect("a folder");
    everywhere(|family, backend| {
        let clean = in_namespace(|| synced(family, backend, Programs::new(family, Some(backend)), 0));
        for before in [true, false] {
            let programs = Programs::new(family, Some(backend));
            let restore = program(folder.path(), programs.restore, before);
            let after_kill = in_namespace(|| synced(family, backend, Programs { restore, ..programs }, 1));
            assert_eq!(after_kill, clean, "{family} {backend:?} before: {before}");
        }
    });
}

/// Syncs a cluster without Services until it succeeds; `n_kills` restores are killed. Returns the rules.
fn synced(family: IpFamily, backend: Backend, programs: Programs, n_kills: usize) -> Vec<String> {
    let mut sync = FamilySync::new(KernelIptables::new(family, backend, programs));
    let host = Host::default();
    sync.set_settings(Settings::new(&Config::default(), None, &host, family));
    let snapshot = Snapshot::default();
    let view = View { snapshot: &snapshot, place: Place { node: "n", zone: None } };
    for _ in 0..n_kills {
        let report = sync.sync(view, &AtomicBool::new(false));
        assert_eq!(report.outcome, Err(SyncError::Restore(RestoreError::Killed(9))));
    }
    let report = sync.sync(view, &AtomicBool::new(false));
    assert_eq!(report.outcome, Ok(()));
    without_notes(&saved(family, backend))
}
