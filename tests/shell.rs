//! Completions in a real bash, manual pages, help, and colours on a real terminal.
#![allow(clippy::disallowed_methods, reason = "tests start programs and write files")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chainsmith");

/// A folder with `web.yaml`: Service default/web with two endpoints, and a Node.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/example/web.yaml");
    let objects = std::fs::read_to_string(example).expect("the example");
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n";
    std::fs::write(folder.path().join("web.yaml"), objects + node).expect("written");
    folder
});

/// The candidates that bash offers at the end of `line`.
fn completed(line: &str) -> Vec<String> {
    let script = r#"source <(chainsmith completions bash); COMP_LINE=$1; COMP_POINT=${#1}; _chainsmith; printf '%s\n' "${COMPREPLY[@]}""#;
    let folder = Path::new(PROGRAM).parent().expect("a folder");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["--norc", "-c", script, "bash", line])
        .current_dir(FOLDER.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_names_of_the_source() {
    assert_eq!(completed("chainsmith expl"), ["explain"]);
    assert!(completed("chainsmith trace --no").contains(&"--node".to_owned()));
    assert_eq!(completed("chainsmith render --format re"), ["restore"]);
    assert_eq!(completed("chainsmith explain -f web.yaml --family ipv4 default/w"), ["default/web"]);
    assert_eq!(completed("chainsmith explain -n default -f web.yaml --family ipv4 w"), ["web"]);
    assert_eq!(completed("chainsmith trace -f web.yaml --to svc/"), ["svc/default/web"]);
    // Bash replaces only what follows the last colon or equals sign.
    assert_eq!(completed("chainsmith trace -f web.yaml --to svc/default/web:"), ["80"]);
    assert_eq!(completed("chainsmith trace -f web.yaml --node=no"), ["node-1"]);
    assert!(completed("chainsmith trace -f web.yaml --from pod-").contains(&"pod-elsewhere".to_owned()));
    // A source that cannot be read has no names, and no message on the terminal.
    assert_eq!(completed("chainsmith trace -f /nonexistent --to svc/"), Vec::<String>::new());
}

#[test]
fn a_source_that_does_not_answer_holds_the_shell_up_for_2_seconds() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address");
    let folder = tempfile::tempdir().expect("a folder");
    let kubeconfig = folder.path().join("config");
    let text = format!(
        "current-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nclusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let begin = std::time::Instant::now();
    let line = format!("chainsmith explain --kubeconfig {} shop/", kubeconfig.display());
    assert_eq!(completed(&line), Vec::<String>::new());
    let elapsed = begin.elapsed();
    assert!((1.9..20.0).contains(&elapsed.as_secs_f32()), "{elapsed:?}");
}

#[test]
fn every_shell_has_a_script_that_asks_the_program() {
    for (shell, part) in
        [("bash", "complete -o"), ("zsh", "#compdef chainsmith"), ("fish", "complete --keep-order")]
    {
        let output = Command::new(PROGRAM).args(["completions", shell]).output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.contains(part) && text.contains("CHAINSMITH_COMPLETE"), "{shell}: {text}");
    }
}

#[test]
fn each_command_has_a_manual_page_and_two_lengths_of_help() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(PROGRAM).arg("man").arg(folder.path().join("man1")).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    for command in [
        "run",
        "render",
        "trace",
        "explain",
        "diff",
        "check",
        "top",
        "status",
        "cleanup",
        "completions",
        "man",
    ] {
        let page = folder.path().join(format!("man1/chainsmith-{command}.1"));
        let text =
            std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.contains(".SH OPTIONS") && text.contains(".TH chainsmith"), "{command}: {text}");
        let help = |flag: &str| {
            let output = Command::new(PROGRAM).args([command, flag]).output().expect("it runs");
            assert!(output.status.success(), "{command} {flag}");
            output.stdout.len()
        };
        assert!(help("-h") > 0 && help("--help") >= help("-h"), "{command}");
    }
}

/// What the program prints on a terminal of `columns` columns.
fn on_terminal(args: &[&str], columns: u16, no_color: bool) -> String {
    let size = nix::pty::Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).expect("a terminal");
    let end = |end: &OwnedFd| Stdio::from(end.try_clone().expect("a descriptor"));
    let mut command = Command::new(PROGRAM);
    command
        .args(args)
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env_remove("COLUMNS")
        .env_remove("CLICOLOR");
    command.current_dir(FOLDER.path());
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(end(&pty.slave))
        .stderr(end(&pty.slave))
        .spawn()
        .expect("it starts");
    // The command and `pty` hold the program's side open.
    drop(command);
    drop(pty.slave);
    let mut text = Vec::new();
    // A terminal whose last writer has ended answers EIO.
    let _ = std::fs::File::from(pty.master).read_to_end(&mut text);
    assert!(child.wait().expect("it ends").success());
    String::from_utf8(text).expect("UTF-8")
}

#[test]
fn colours_and_width_are_those_of_the_terminal() {
    let args = ["explain", "default/web", "-f", "web.yaml", "--family", "ipv4"];
    let plain = |text: &str| anstream::adapter::strip_str(text).to_string();
    for columns in [80, 140] {
        let coloured = on_terminal(&args, columns, false);
        assert!(coloured.contains("\u{1b}["), "{coloured:?}");
        let longest = plain(&coloured).lines().map(|line| line.trim_end().chars().count()).max();
        assert!(
            longest <= Some(usize::from(columns)),
            "{longest:?} of {columns} columns:\n{}",
            plain(&coloured)
        );
        let without = on_terminal(&args, columns, true);
        assert!(!without.contains('\u{1b}'), "NO_COLOR: {without:?}");
        assert_eq!(without, plain(&coloured));
    }
}
