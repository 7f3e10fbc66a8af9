//! docs/debugging.md: every command in a `console` block is run as written, and its output compared.
//! `UPDATE_GOLDEN=1` writes the outputs into the page.
#![allow(clippy::disallowed_methods, reason = "tests start the program and read files")]

use std::path::Path;
use std::process::{Command, Stdio};

/// What the program prints on stdout for a line `$ chainsmith ...`, in the folder of the example.
fn output(line: &str) -> String {
    let command = line.strip_prefix("$ chainsmith ").unwrap_or_else(|| panic!("not a command: {line:?}"));
    let output = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(command.split(' '))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/debugging"))
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The page with the outputs of its commands as they are now, and the number of commands.
fn with_outputs(page: &str) -> (String, usize) {
    const BEGIN: &str = "```console\n";
    let (mut text, mut n_commands, mut rest) = (String::new(), 0, page);
    while let Some(at) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(at + BEGIN.len());
        let (block, after) = block.split_once("```\n").expect("a block ends");
        let command = block.lines().next().expect("a block has a command");
        text.push_str(&format!("{before}{command}\n{}```\n", output(command)));
        (n_commands, rest) = (n_commands + 1, after);
    }
    (text + rest, n_commands)
}

#[test]
fn every_command_of_the_page_answers_as_shown() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/debugging.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    let (now, n_commands) = with_outputs(&page);
    assert!(n_commands >= 6, "{n_commands} commands");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).expect("written");
    }
    let page = std::fs::read_to_string(&path).expect("the page");
    for (shown, is) in page.lines().zip(now.lines()) {
        assert_eq!(shown, is);
    }
    assert_eq!(page, now);
}
