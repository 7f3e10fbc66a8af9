use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use jiff::tz::TimeZone;
use tracing_subscriber::layer::SubscriberExt;

use super::filter::{Verbosity, VerbosityFilter};
use super::line::KlogLine;

/// Hostile text, and how klog's text and JSON show it.
const HOSTILE: &str =
    "a\nb\r\t\u{1b}[2J\u{7f}\u{9b}31m\u{85}\u{2028}\u{202e}\u{2066}\u{200f}\u{e0001}\\\"\u{fc}\u{1f980}";
const AS_GO: &str =
    "a\\nb\\r\\t\\x1b[2J\\x7f\\u009b31m\\u0085\\u2028\\u202e\\u2066\\u200f\\U000e0001\\\\\\\"\u{fc}\u{1f980}";

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `run` logs at a verbosity and with `--vmodule`, at a fixed time in a zone east of Greenwich.
pub(crate) fn logged(is_json: bool, verbosity: i32, modules: &[(&str, i32)], run: impl FnOnce()) -> String {
    let captured = Captured::default();
    let now = || {
        let time = jiff::Timestamp::from_nanosecond(1_764_012_491_845_514_250).unwrap();
        time.to_zoned(TimeZone::fixed(jiff::tz::offset(1)))
    };
    let line = KlogLine { is_json, pid: 12345, now: Box::new(now) };
    let writer = captured.clone();
    let verbosity: &'static Verbosity = Box::leak(Box::new(Verbosity::new(verbosity)));
    let modules = modules.iter().map(|(pattern, verbosity)| ((*pattern).to_owned(), *verbosity)).collect();
    let subscriber = tracing_subscriber::registry()
        .with(VerbosityFilter::following(verbosity, modules))
        .with(tracing_subscriber::fmt::layer().event_format(line).with_writer(move || writer.clone()));
    tracing::subscriber::with_default(subscriber, run);
    String::from_utf8(captured.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn text_is_klogs() {
    let error = io::Error::other("the \"disk\" is full");
    let first = line!() + 2;
    let text = logged(false, 0, &[], || {
        tracing::info!(family = "IPv4", n = 3, ratio = 0.5, is_full = true, retry_in = ?std::time::Duration::from_millis(1500), "synced");
        tracing::warn!(%error, "cannot write");
        tracing::error!("a message alone: --v=\"2\"");
        v!(1, "off");
    });
    let at = |severity, line| format!("{severity}1124 20:28:11.845514   12345 tests.rs:{line}] ");
    let expected = [
        at('I', first) + r#""synced" family="IPv4" n=3 ratio=0.5 is_full=true retry_in="1.5s""#,
        at('W', first + 1) + r#""cannot write" err="the \"disk\" is full""#,
        at('E', first + 2) + r#"a message alone: --v="2""#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn json_has_klogs_keys() {
    let error = io::Error::other("the \"disk\" is full");
    let first = line!() + 2;
    let text = logged(true, 4, &[], || {
        tracing::info!(family = "IPv4", n = 3, ratio = f64::NAN, is_full = true, "synced");
        tracing::warn!(%error, "cannot write");
        tracing::error!(error = &error as &dyn std::error::Error, "cannot write");
        v!(4, n = -1, "event");
    });
    let at = |line| format!("{{\"ts\":1764012491845.5142,\"caller\":\"log/tests.rs:{line}\",\"msg\":");
    let expected = [
        at(first) + r#""synced","v":0,"level":"info","family":"IPv4","n":3,"ratio":"NaN","is_full":true}"#,
        at(first + 1) + r#""cannot write","v":0,"level":"warn","err":"the \"disk\" is full"}"#,
        at(first + 2) + r#""cannot write","level":"error","err":"the \"disk\" is full"}"#,
        at(first + 3) + r#""event","v":4,"level":"info","n":-1}"#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

fn log_hostile_text() {
    tracing::warn!(shown = %HOSTILE, debug = ?"x\ny", plain = HOSTILE, "of {HOSTILE}");
    tracing::warn!("alone {HOSTILE}");
}

#[test]
fn hostile_text_in_messages_and_fields_stays_on_its_line() {
    let text = logged(false, 0, &[], log_hostile_text);
    let lines: Vec<&str> = text.lines().map(|line| line.split_once("] ").unwrap().1).collect();
    let bare = AS_GO.replace("\\\\\\\"", "\\\"");
    let all = format!(r#""of {AS_GO}" shown="{AS_GO}" debug="\"x\\ny\"" plain="{AS_GO}""#);
    assert_eq!(lines, [all, format!("alone {bare}")]);
}

#[test]
fn hostile_text_in_json_is_escaped_and_reads_back_as_it_was() {
    let text = logged(true, 0, &[], log_hostile_text);
    assert!(
        text.chars().all(|c| c == '\n' || (!c.is_control() && !"\u{202e}\u{2028}".contains(c))),
        "{text:?}"
    );
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let object: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!((&object["shown"], &object["plain"]), (&HOSTILE.into(), &HOSTILE.into()));
    assert_eq!(object["msg"], format!("of {HOSTILE}"));
    assert_eq!(serde_json::from_str::<serde_json::Value>(second).unwrap()["msg"], format!("alone {HOSTILE}"));
}

#[test]
fn a_failure_that_goes_on_becomes_an_error() {
    let log_failures = || (1u32..=16).for_each(|n| failure!(n, family = "IPv4", "cannot list"));
    let text = logged(false, 0, &[], log_failures);
    let shown: Vec<String> =
        text.lines().map(|line| line[..1].to_owned() + line.split_once("] ").unwrap().1).collect();
    let line = |severity, n| format!("{severity}\"cannot list\" n_failures={n} family=\"IPv4\"");
    assert_eq!(shown, [line('W', 1), line('W', 2), line('W', 4), line('E', 8), line('E', 16)]);
    assert_eq!(logged(false, 2, &[], log_failures).lines().count(), 16);
}

/// One line of each verbosity, and what dependencies may log.
fn log_everything() {
    tracing::info!(n = 0, "line");
    v!(1, n = 1, "line");
    v!(2, n = 2, "line");
    v!(4, n = 4, "line");
    v!(5, n = 5, "line");
    v!(6, n = 6, "line");
    v!(9, n = 9, "line");
    tracing::error!(target: "hyper", n = "error of another crate", "line");
    tracing::warn!(target: "hyper", n = "warning of another crate", "line");
    tracing::debug!(target: "chainsmithy", n = "detail of another crate", "line");
    tracing::trace!(target: "hyper", n = "traces are never on", "line");
    tracing::info_span!("no span is on").in_scope(|| ());
}

#[track_caller]
fn check_on(verbosity: i32, modules: &[(&str, i32)], expected: &[&str]) {
    let text = logged(false, verbosity, modules, log_everything);
    let shown: Vec<&str> =
        text.lines().map(|line| line.split_once(" n=").unwrap().1.trim_matches('"')).collect();
    assert_eq!(shown, expected, "verbosity {verbosity}, modules {modules:?}");
}

#[test]
fn each_verbosity_shows_its_lines_and_those_below() {
    let error = "error of another crate";
    let (warning, detail) = ("warning of another crate", "detail of another crate");
    check_on(-1, &[], &["0", error]);
    check_on(0, &[], &["0", error]);
    check_on(2, &[], &["0", "1", "2", error]);
    check_on(3, &[], &["0", "1", "2", error]);
    check_on(4, &[], &["0", "1", "2", "4", error]);
    check_on(5, &[], &["0", "1", "2", "4", "5", error]);
    check_on(7, &[], &["0", "1", "2", "4", "5", "6", error]);
    check_on(8, &[], &["0", "1", "2", "4", "5", "6", error, warning, detail]);
    check_on(9, &[], &["0", "1", "2", "4", "5", "6", "9", error, warning, detail]);
}

#[test]
fn vmodule_raises_the_verbosity_of_files_and_modules() {
    let error = "error of another crate";
    for pattern in ["tests", "t?sts", "test*", "[rst]ests", "log::tests", "log/*", "chainsmith::log::*"] {
        check_on(0, &[(pattern, 4)], &["0", "1", "2", "4", error]);
    }
    for pattern in ["log", "test", "tests.rs", "Tests", "src/log/tests", "sync::*", "[", "hyper"] {
        check_on(0, &[(pattern, 9)], &["0", error]);
    }
    check_on(2, &[("other", 9), ("tests", 1)], &["0", "1", "2", error]);
}

#[test]
fn the_verbosity_is_changed_by_a_number_and_nothing_else() {
    for (text, why) in
        [("", "cannot parse"), ("2\n", "invalid digit"), ("1e3", "invalid"), ("2147483648", "too large")]
    {
        let refused = super::set_verbosity(text).unwrap_err();
        assert!(refused.starts_with(&format!("failed set klog.logging.verbosity {text}: ")), "{refused}");
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(super::set_verbosity("0").unwrap(), "successfully set klog.logging.verbosity to 0");
}
