#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::PathBuf;

use clap::Parser;

use super::*;
use crate::cli::output;

#[derive(Parser)]
struct DiffWords {
    #[command(flatten)]
    diff: DiffArguments,
}

fn run(line: &str) -> anyhow::Result<DiffReport> {
    let words = std::iter::once("diff").chain(line.split_whitespace());
    compare(&DiffWords::try_parse_from(words)?.diff)
}

fn drawn(report: &DiffReport, width: usize) -> String {
    let mut screen = Screen::new(Some(width));
    draw(&mut screen, report);
    anstream::adapter::strip_str(screen.as_str()).to_string()
}

/// Each folder has `command.txt` with the arguments of `diff`, and what it prints. `UPDATE_GOLDEN=1` rewrites that.
#[test]
fn outputs_are_as_recorded() {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("testdata/inspect/diff")
        .expect("the cases")
        .map(|entry| entry.expect("a folder entry").path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    assert!(folders.len() >= 4, "{folders:?}");
    for folder in folders {
        let line = std::fs::read_to_string(folder.join("command.txt")).expect("command.txt");
        let report = run(&line).expect("a comparison");
        let outputs = [
            ("text.80.txt", drawn(&report, 80)),
            ("text.140.txt", drawn(&report, 140)),
            ("report.json", output::json("DiffReport", &report)),
        ];
        for (name, text) in outputs {
            let path = folder.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &text).expect("a golden file");
            }
            let recorded = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(text, recorded, "{}; if intended: UPDATE_GOLDEN=1", path.display());
        }
        let json = output::json("DiffReport", &report);
        let back: DiffReport = serde_json::from_str(&json).expect("what was written");
        assert_eq!(back, report);
    }
}

#[test]
fn an_unreadable_side_is_an_error_with_file_and_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let good = file("good.save", "*nat\n-A OUTPUT -d 10.0.0.1 -j ACCEPT\nCOMMIT\n");
    let v6 = file("v6.save", "*nat\n-A OUTPUT -d fd00::1 -j ACCEPT\nCOMMIT\n");
    let bad = file("bad.save", "*nat\n:X - [0:0]\n-A X -s 1.2.3.4.5 -j DROP\nCOMMIT\n");
    let cut = file("cut.save", "*nat\n-A OUTPUT -d 10.0.0.1 -j ACCEPT\n");
    let check = |line: &str, words: &[&str]| {
        let error = format!("{:#}", run(line).expect_err(line));
        words.iter().for_each(|word| assert!(error.contains(word), "{line}: {error}"));
    };
    check(&format!("{bad} {good}"), &["bad.save", "line 3", "1.2.3.4.5"]);
    check(&format!("{good} {bad} --packets"), &["bad.save", "line 3"]);
    check(&format!("{good} {cut}"), &["cut.save", "line 2", "no COMMIT"]);
    check(&format!("{good} {v6}"), &["no IP family in common"]);
    check(&format!("{good} missing.save"), &["missing.save"]);
    check(&format!("{good} objects:missing.yaml"), &["missing.yaml"]);
    check(&format!("{good} objects:"), &["objects:", "a value is missing"]);
    check(&format!("{good} cluster:"), &["cluster:", "a value is missing"]);
    check(&format!("{good} agent:nowhere"), &["nowhere"]);
    check(&format!("{good} agent:@chainsmith-of-a-test"), &["chainsmith-of-a-test"]);
    check("- -", &["stdin"]);
    check("- objects:-", &["stdin"]);
    check(&format!("{good} {good} --family ipv6"), &["no IP family in common"]);
    check(&good, &["<B>"]);
}

#[test]
fn long_lists_are_cut_with_their_number() {
    let names: Vec<String> = (0..30).map(|n| format!("n{n}")).collect();
    assert_eq!(listed(&names, 30), "n0, n1, n2, n3, n4, n5, n6, n7 and 22 more");
    assert_eq!(listed(&names[..2], 2), "n0, n1");
    assert_eq!(listed(&names[..9], 9), "n0, n1, n2, n3, n4, n5, n6, n7, n8");
    assert_eq!(listed(&names[..2], 5), "n0, n1 and 3 more");
}

#[test]
fn a_sample_of_sources_is_named_as_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let compared = |n_sources: usize| {
        let rules: String = (0..n_sources)
            .map(|n| {
                format!("-A FORWARD -s 10.1.{}.{}/32 -d 10.9.9.9/32 -j DROP\n", n / 100, 2 * (n % 100) + 1)
            })
            .collect();
        let path = folder.path().join("rules.save");
        std::fs::write(&path, format!("*filter\n{rules}COMMIT\n")).expect("a file");
        let report = run(&format!("{0} {0} --packets", path.display())).expect("a comparison");
        let packets = report.families[0].packets.as_ref().expect("packets");
        (packets.n_sampled_destinations, drawn(&report, 140))
    };
    let (n_sampled, text) = compared(20);
    assert!(n_sampled == 0 && !text.contains("sample"), "{text}");
    let (n_sampled, text) = compared(200);
    assert!(n_sampled > 0 && text.contains("packets compared, a sample"), "{text}");
    assert!(text.contains("a sample of the sources that rules name, 128 for each"), "{text}");
}
