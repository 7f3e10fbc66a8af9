//! What is shown of recorded counters.
#![allow(clippy::disallowed_methods, reason = "reads and writes golden files")]

use super::*;
use crate::cli::output;
use crate::inspect::{HostView, RulesOrigin, Subject};
use crate::iptables::replay;
use crate::net::IpFamily;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/inspect/top");

/// The report of a text.
fn report(name: &str, families: &[IpFamily]) -> TopReport {
    let text = std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap();
    let rulesets = replay::families(&text, families).unwrap();
    let origin = RulesOrigin::Text(name.to_owned());
    let subject = Subject { rulesets, origin, cluster: None, host: HostView::default() };
    counted_source::of_text(&text, &subject, families).unwrap()
}

fn check_golden(name: &str, text: &str) {
    let path = format!("{FOLDER}/{name}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{name}; if intended: UPDATE_GOLDEN=1 cargo test --lib cli::top");
}

/// Draws at 80 and 140 columns.
fn check_drawn(name: &str, report: &TopReport, by: By, max: usize) {
    for width in [80, 140] {
        let mut screen = Screen::new(Some(width));
        drawing::draw(&mut screen, report, TopView { by, order: TopOrder::Rate, max });
        let text = anstream::adapter::strip_str(screen.as_str()).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
        check_golden(&format!("{name}.{width}.txt"), &text);
    }
}

#[test]
fn both_layouts_show_the_same_counts() {
    let of = |name| {
        let mut report = report(name, &IpFamily::BOTH);
        report.sort(TopOrder::Rate);
        TopReport { origin: "rules in saved.txt".to_owned(), ..report }
    };
    let report = of("classic.save");
    assert_eq!(report, of("compact.save"));
    check_drawn("by-service", &report, By::Service, 20);
    check_drawn("by-endpoint", &report, By::Endpoint, 8);
    check_golden("both.json", &output::json(KIND, &report));
}

#[test]
fn one_family_is_shown_alone() {
    let mut report = report("compact.save", &[IpFamily::V6]);
    report.sort(TopOrder::Name);
    check_drawn("ipv6", &report, By::Endpoint, 20);
}

#[test]
fn two_readings_have_rates() {
    let mut now = report("classic.save", &IpFamily::BOTH);
    let mut earlier = now.clone();
    earlier.all.connections -= 2_468;
    for (port, n) in earlier.service_ports.iter_mut().zip([2_345, 3, 40, 80]) {
        port.all.connections -= n;
        port.endpoints
            .iter_mut()
            .flatten()
            .take(1)
            .for_each(|endpoint| endpoint.all.connections -= n.min(16));
    }
    now.add_rates(&earlier, 2.04);
    now.sort(TopOrder::Rate);
    now.n_left_out = 1_234;
    check_drawn("rates", &now, By::Service, 3);
    check_golden("rates.json", &output::json(KIND, &now));
}

#[test]
fn nothing_counted_is_said_in_one_line() {
    let report = TopReport {
        origin: "agent".to_owned(),
        counts_since: crate::inspect::busiest::CountsSince::AgentStarted,
        interval_seconds: Some(2.0),
        all: Default::default(),
        service_ports: Vec::new(),
        n_left_out: 0,
    };
    check_drawn("nothing", &report, By::Service, 20);
    assert!(check_by(&report, By::Endpoint).is_ok());
}

#[test]
fn an_interval_is_a_number_of_seconds() {
    for (text, seconds) in [("2", 2.0), ("0.5s", 0.5), ("86400", 86_400.0)] {
        assert_eq!(interval(text), Ok(Duration::from_secs_f64(seconds)));
    }
    for text in ["0", "-1", "nan", "inf", "1m", "", "1e300"] {
        assert_eq!(interval(text), Err("must be 0.1 to 86400 seconds".to_owned()), "{text}");
    }
}
