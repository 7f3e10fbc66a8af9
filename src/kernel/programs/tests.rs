//! Shared helpers for tests of programs.
#![allow(clippy::disallowed_methods, reason = "the tests start shell scripts")]

use std::io::Write;
use std::process::{Command, Stdio};

/// A shell script of these lines, in a folder of its own. Another process writes the file: if a child of
/// this process had it open for writing, the kernel would not run it.
pub(super) fn script(lines: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program").to_str().unwrap().to_owned();
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$0\" && chmod 755 \"$0\"", &path]).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    writer.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{lines}\n").as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    (folder, path)
}
