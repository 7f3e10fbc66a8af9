//! A missing, too old or forbidden iptables causes one clear message and exit status 1.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::namespace::in_namespace;

/// Runs the agent, which must exit by itself; checks that it logs `expected`, and nothing else.
#[track_caller]
fn check(prepare: impl Fn(&mut Command) + Sync, arguments: &[&str], expected: &[&str]) {
    let manifests = tempfile::tempdir().expect("a folder");
    fs::set_permissions(manifests.path(), fs::Permissions::from_mode(0o755)).expect("our own file");
    let output = in_namespace(|| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chainsmith"));
        command
            .args(["run", "--hostname-override", "n", "--manifests"])
            .arg(manifests.path())
            .args(arguments);
        prepare(&mut command);
        command.output().expect("it starts")
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with('E')).collect();
    // Before it only what was configured.
    let n_others = stderr.lines().filter(|line| !line.contains("] \"configuration\" settings=")).count() - 1;
    assert_eq!((errors.len(), n_others), (1, 0), "{stderr}");
    for part in expected {
        assert!(errors[0].contains(part), "{part:?} is not in {stderr}");
    }
}

/// Creates programs that print `version`.
fn programs(folder: &Path, names: &[&str], version: &str) {
    for name in names {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    }
}

const ALL: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

#[test]
fn a_missing_program_is_reported() {
    let empty = tempfile::tempdir().expect("a folder");
    let without = |command: &mut Command| {
        command.env("PATH", empty.path());
    };
    check(without, &[], &["iptables cannot be run", "install iptables, or check PATH"]);
    check(without, &["--iptables-backend", "legacy"], &["iptables-legacy cannot be run", "install iptables"]);
    let half = tempfile::tempdir().expect("a folder");
    programs(half.path(), &["iptables", "iptables-save"], "iptables v1.8.9 (nf_tables)");
    let without_restore = |command: &mut Command| {
        command.env("PATH", half.path());
    };
    check(without_restore, &[], &["iptables-restore cannot be run"]);
}

#[test]
fn a_program_that_is_too_old_is_reported_with_its_version() {
    for (version, shown) in
        [("iptables v1.4.21", "1.4.21"), ("iptables v1.6.1", "1.6.1"), ("BusyBox", "BusyBox")]
    {
        let old = tempfile::tempdir().expect("a folder");
        programs(old.path(), &ALL, version);
        let with = |command: &mut Command| {
            command.env("PATH", old.path());
        };
        check(with, &[], &["iptables has version", shown, "version 1.6.2 or newer is needed"]);
    }
}

#[test]
fn missing_permission_is_reported() {
    let as_nobody = |command: &mut Command| {
        command.uid(65534).gid(65534);
    };
    for backend in ["nft", "legacy"] {
        let expected = ["-t nat does not work", "run as root with CAP_NET_ADMIN"];
        check(as_nobody, &["--iptables-backend", backend], &expected);
    }
}

#[test]
fn a_lock_that_is_held_at_start_disables_no_family() {
    let (folder, manifests) =
        (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let real = "#!/bin/sh\nexec /usr/sbin/$(basename $0 | sed s/tables/tables-legacy/) \"$@\"\n";
    let busy = "#!/bin/sh\n[ \"$1\" = --version ] || [ -e $0.was ] || { touch $0.was\n\
                echo 'Another app is currently holding the xtables lock.' >&2; exit 4; }\n\
                exec /usr/sbin/iptables-legacy \"$@\"\n";
    for name in ALL {
        let path = folder.path().join(name);
        fs::write(&path, if name == "iptables" { busy } else { real }).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    }
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let stderr = in_namespace(|| {
        let mut command = Command::new("timeout");
        command.args(["8", env!("CARGO_BIN_EXE_chainsmith"), "run", "--hostname-override", "n"]);
        command.arg("--manifests").arg(manifests.path()).env("PATH", &path);
        String::from_utf8_lossy(&command.output().expect("it starts").stderr).into_owned()
    });
    assert!(stderr.contains("the xtables lock") && stderr.contains("cannot use iptables yet"), "{stderr}");
    assert!(stderr.contains("families=\"IPv4,IPv6\""), "{stderr}");
}
