//! Golden answers for recorded cases and for rules of other programs, as text and as JSON.
//! `UPDATE_GOLDEN=1` rewrites `testdata/inspect/trace`.
#![allow(clippy::disallowed_methods, reason = "tests read files")]

use std::path::Path;

use clap::Parser;

use super::*;
use crate::cli::output::{self, Screen};

#[derive(Parser)]
struct CommandLine {
    #[command(flatten)]
    arguments: TraceArguments,
}

/// The answer to `trace` with these words; `CASE` stands for the options of a recorded case, and paths are below
/// testdata.
fn answer(case: &str, words: &str) -> TraceReport {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let file = |name: &str| root.join("corpus").join(case).join(name).display().to_string();
    let mut argv = vec!["trace".to_owned()];
    if !case.is_empty() {
        argv.extend(["-f".to_owned(), file("objects.yaml")]);
        argv.extend(["--config".to_owned(), file("config.yaml"), "--host".to_owned(), file("host.yaml")]);
    }
    let path = |word: &str| match word.strip_prefix('@') {
        Some(path) => root.join("inspect/trace").join(path).display().to_string(),
        None => word.to_owned(),
    };
    argv.extend(words.split(' ').map(path));
    let arguments = CommandLine::try_parse_from(&argv).unwrap_or_else(|error| panic!("{argv:?}: {error}"));
    let mut report = arguments.arguments.answer().unwrap_or_else(|error| panic!("{argv:?}: {error:#}"));
    // The path of the checkout is no part of the answer.
    report.rules = report.rules.replace(&root.display().to_string(), "testdata");
    report
}

fn drawn(report: &TraceReport, width: Option<usize>) -> String {
    let mut screen = Screen::new(width);
    journey_text::draw(report, &mut screen);
    anstream::adapter::strip_str(screen.as_str()).to_string()
}

/// Checks the answer at 80 and 140 columns and as JSON against the files called `name`.
#[track_caller]
fn check(name: &str, case: &str, words: &str) {
    let report = answer(case, words);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/inspect/trace");
    let json = output::json("TraceReport", &report);
    let mut texts = vec![("80.txt", drawn(&report, Some(80))), ("140.txt", drawn(&report, Some(140)))];
    // Hundreds of endpoints as JSON are for programs, not for the eye.
    if json.len() < 100_000 {
        texts.push(("json", json.clone()));
    }
    for (form, text) in texts {
        let path = folder.join(format!("{name}.{form}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).expect("a writable checkout");
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, expected, "{}; if intended: UPDATE_GOLDEN=1 cargo test --lib trace", path.display());
        if let Some(width) = form.split('.').next().and_then(|width| width.parse::<usize>().ok()) {
            let too_long = text.lines().find(|line| line.chars().count() > width && line.contains(' '));
            assert_eq!(too_long, None, "{} is wider than {width}", path.display());
        }
    }
    let read: TraceReport = serde_json::from_str(&json).expect("its own JSON");
    assert!(drawn(&read, None) == drawn(&report, None), "{name}: JSON holds everything that is drawn");
}

#[test]
fn a_cluster_ip_from_a_pod() {
    check("cluster-ip", "clusterip-three-endpoints", "--to svc/default/web");
    check(
        "cluster-ip-compact",
        "clusterip-three-endpoints",
        "--to default/web:http --layout compact --from pod",
    );
    check("cluster-ip-elsewhere", "clusterip-three-endpoints", "--to 10.96.10.5:80 --from pod-elsewhere");
    check("cluster-ip-v6", "dual-stack-prefer", "--to default/ds --family ipv6 --from pod");
}

#[test]
fn a_client_that_is_its_own_endpoint() {
    check("hairpin", "clusterip-three-endpoints", "--to default/web --from 10.128.0.5");
    check(
        "hairpin-compact",
        "clusterip-three-endpoints",
        "--to default/web --from 10.128.0.5 --layout compact",
    );
}

#[test]
fn several_ports_and_families_have_a_journey_each() {
    check("several-ports", "clusterip-several-ports", "--to default/multi --from node");
    check("both-families", "dual-stack-prefer", "--to default/ds --from node");
}

#[test]
fn packets_that_nothing_serves_have_a_reason() {
    check("no-endpoints", "nodeport-no-endpoints", "--to default/np:http --from external");
    check("no-local-endpoint", "etp-local-without-local", "--to default/etp --from external");
    check("no-local-endpoint-internal", "itp-local-without-local", "--to default/itp --from pod");
    check("outside-source-ranges", "lb-source-ranges-v4", "--to 203.0.113.9:80 --from 198.51.100.77");
    check("inside-source-ranges", "lb-source-ranges-v4", "--to 203.0.113.9:80 --from 203.0.113.200");
    check("invalid", "clusterip-three-endpoints", "--to 10.128.0.5:8080 --from external --state invalid");
}

#[test]
fn policies_affinity_and_hints_decide_who_serves() {
    check("external-local", "etp-local-with-local", "--to default/etp --from external");
    check("external-local-from-node", "etp-local-with-local", "--to 127.0.0.1:30201 --from localhost");
    check("external-cluster-v6", "nodeport-dual-stack", "--to default/np --family ipv6 --from external");
    check("load-balancer-v6", "ipv6-single-stack", "--to default/v6 --from external");
    check("affinity", "affinity-default", "--to default/aff --from pod");
    check("hints", "hints-zone-missing-in-one", "--to default/th --from pod");
    check("terminating", "endpoints-terminating-mix", "--to default/web --from pod");
}

#[test]
fn the_configuration_decides_about_masquerading() {
    check("masquerade-all", "config-masquerade-all", "--to default/web --from pod --family ipv4");
    check("no-cluster-cidr", "config-no-cluster-cidr", "--to default/web --from external --family ipv4");
    check("detect-bridge", "config-detect-bridge", "--to default/web --from pod --family ipv4");
}

#[test]
fn a_long_list_of_endpoints_is_shortened_for_people_only() {
    check("many-endpoints", "large-cluster", "--to default/big --from pod --family ipv4");
    check(
        "many-endpoints-compact",
        "large-cluster",
        "--to default/big --from pod --family ipv4 --layout compact",
    );
    let report = answer("large-cluster", "--to default/big --from pod --family ipv4");
    assert!(report.journeys[0].ends[0].endpoints.len() > 100);
}

#[test]
fn rules_of_other_programs_count_or_are_named() {
    check("foreign", "", "--to shop/db --from external @foreign.save");
    check("foreign-drop", "", "--to 10.1.0.66:5432 --from external --in eth0 @foreign.save");
    check("foreign-pod", "", "--to shop/db --from pod @foreign.save");
}

#[test]
fn pods_are_named() {
    check("pods", "", "--to shop/db --from pod/shop/cart -f @shop.yaml --node node-a");
    check("pod-elsewhere", "", "--to shop/db:sql --from pod/shop/mail -f @shop.yaml --node node-a");
    check("pod-to-pod", "", "--to pod/shop/db-0:5432 --from pod/shop/cart -f @shop.yaml --node node-a");
}

#[test]
fn an_address_of_no_service_goes_on_unchanged() {
    check("no-service", "clusterip-three-endpoints", "--to 9.9.9.9:53/udp --from pod");
}

#[test]
fn text_of_rules_moves_no_cursor() {
    let report = answer("", "--to 10.1.0.66:5432 --from external --in eth0 @hostile.save");
    let text = drawn(&report, None);
    assert!(text.contains("\\u{1b}[2J"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}
