//! Golden outputs, as text and as JSON, and wrong command lines. `UPDATE_GOLDEN=1` rewrites `testdata/inspect/check`.
#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::{Path, PathBuf};

use clap::Parser;

use super::*;
use crate::cli::output::{self, Screen};

#[derive(Parser)]
struct CheckCommandLine {
    #[command(flatten)]
    arguments: CheckArguments,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/inspect/check")
}

fn parsed(words: &[&str]) -> Result<CheckArguments, clap::Error> {
    let argv = ["check"].iter().chain(words);
    CheckCommandLine::try_parse_from(argv).map(|line| line.arguments)
}

/// The report for the rules in the file `name`.
fn report(name: &str) -> CheckReport {
    let path = |name: &str| folder().join(name).display().to_string();
    let (rules, objects, config, host) =
        (path(name), path("shop.yaml"), path("config.yaml"), path("host.yaml"));
    let words = [&*rules, "-f", &objects, "--config", &config, "--host", &host];
    let mut report = compare(&parsed(&words).unwrap()).unwrap();
    // The path of the checkout is no part of the answer.
    report.rules = report.rules.replace(&format!("{}/", folder().display()), "");
    report
}

fn drawn(report: &CheckReport, width: Option<usize>) -> String {
    let mut screen = Screen::new(width);
    drawing::draw(report, &mut screen);
    anstream::adapter::strip_str(screen.as_str()).to_string()
}

#[track_caller]
fn check(name: &str) {
    let report = report(&format!("{name}.save"));
    let json = output::json("CheckReport", &report);
    let texts = [
        ("80.txt", drawn(&report, Some(80))),
        ("140.txt", drawn(&report, Some(140))),
        ("json", json.clone()),
    ];
    for (form, text) in texts {
        let path = folder().join(format!("{name}.{form}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).expect("a writable checkout");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, expected, "{}; if intended: UPDATE_GOLDEN=1 cargo test --lib check", path.display());
        if let Some(width) = form.split('.').next().and_then(|width| width.parse::<usize>().ok()) {
            let too_long = text.lines().find(|line| line.chars().count() > width);
            assert_eq!(too_long, None, "{} is wider than {width}", path.display());
        }
    }
    let read: CheckReport = serde_json::from_str(&json).expect("its own JSON");
    assert_eq!(read, report);
}

#[test]
fn healthy_rules() {
    check("healthy-classic");
    check("healthy-compact");
}

#[test]
fn spoiled_rules() {
    check("spoiled-classic");
    check("spoiled-compact");
}

#[test]
fn the_exit_status_says_whether_something_differs() {
    let status_of = |name: &str| format!("{:?}", status(&report(name)));
    assert_eq!(status_of("healthy-classic.save"), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(status_of("spoiled-classic.save"), format!("{:?}", ExitCode::from(1)));
    let unknown = CheckReport { result: CheckResult::Unknown, ..report("healthy-classic.save") };
    assert_eq!(format!("{:?}", status(&unknown)), format!("{:?}", ExitCode::from(2)));
}

#[test]
fn text_of_rules_and_objects_moves_no_cursor() {
    let mut report = report("spoiled-classic.save");
    report.findings[0].desired = vec!["-m comment --comment \"\u{1b}[2J\"".to_owned()];
    report.node = "a\u{1b}[2Jb".to_owned();
    assert!(!drawn(&report, Some(80)).contains('\u{1b}'));
}

#[test]
fn wrong_command_lines_are_named() {
    let cannot_parse = |words: &[&str], part: &str| {
        let error = parsed(words).unwrap_err().to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    };
    cannot_parse(&["--watch", "--period=0s"], "must be from 1s to 24h");
    cannot_parse(&["--watch", "--grace-period=soon"], "--grace-period <DURATION>");
    cannot_parse(&["--metrics-bind-address=127.0.0.1:1"], "--watch");
    cannot_parse(&["--watch", "--metrics-bind-address=here"], "--metrics-bind-address <IP:PORT>");
    cannot_parse(&["--iptables-backend=ebtables"], "nft, legacy");
    cannot_parse(&["x.save", "--watch"], "--watch");
    let cannot_run = |words: &[&str], part: &str| {
        let arguments = parsed(words).unwrap();
        let error = if arguments.watch { watch(&arguments) } else { compare(&arguments).map(drop) };
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains(part), "{words:?}: {error}");
    };
    let shop = folder().join("shop.yaml").display().to_string();
    let healthy = folder().join("healthy-classic.save").display().to_string();
    cannot_run(&["x.save"], "-f OBJECTS");
    cannot_run(&["--agent"], "--agent: check compares");
    cannot_run(&["/none.save", "-f", &shop], "cannot read /none.save");
    cannot_run(&[&shop, "-f", &shop], "cannot use");
    cannot_run(&[&healthy, "-f", &shop, "--node", "node-z"], "\"node-z\"");
    cannot_run(&["--watch", "-f", &shop], "--node");
    cannot_run(&["--watch", "-f", &shop, "--node", "n"], "-f FOLDER");
}
