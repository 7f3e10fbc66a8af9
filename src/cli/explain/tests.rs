//! What `explain` prints. Expected texts are in `testdata/inspect/explain`, at 80 and 140 columns;
//! `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "reads the expectations")]

use std::path::{Path, PathBuf};

use clap::Parser;

use super::*;
use crate::cli::output::{Screen, json};
use crate::inspect::Subject;
use crate::inspect::explanation::{ExplainReport, NoSuchService};

/// The arguments on a command line of their own.
#[derive(Debug, Parser)]
struct ExplainCommand {
    #[command(flatten)]
    arguments: ExplainArguments,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The source and the question of a command line; `CASE` in it is a folder of the corpus, `HERE` that of the expectations.
fn parsed(line: &str) -> (Subject, ExplainQuestion) {
    let folder = root().join("testdata");
    let expand = |word: &str| match word.split_once('/') {
        Some(("CORPUS", rest)) => folder.join("corpus").join(rest).display().to_string(),
        Some(("HERE", rest)) => folder.join("inspect/explain").join(rest).display().to_string(),
        _ => word.to_owned(),
    };
    let words = std::iter::once("explain".to_owned()).chain(line.split(' ').map(expand));
    let ExplainCommand { arguments } = ExplainCommand::try_parse_from(words).unwrap();
    (arguments.source.load().unwrap(), question(&arguments).unwrap())
}

fn explained(line: &str) -> Result<ExplainReport, NoSuchService> {
    let (mut subject, question) = parsed(line);
    // Paths differ between machines.
    if let crate::inspect::RulesOrigin::Text(name) = &mut subject.origin {
        *name = Path::new(name).file_name().unwrap().to_string_lossy().into_owned();
    }
    if let Some(cluster) = &mut subject.cluster {
        for problem in &mut cluster.problems {
            *problem = problem.replace(&format!("{}/", root().display()), "");
        }
    }
    explain(&subject, &question)
}

fn drawn(report: &ExplainReport, width: usize) -> String {
    let mut screen = Screen::new(Some(width));
    service_drawing::draw(&mut screen, report);
    anstream::adapter::strip_str(screen.as_str()).to_string()
}

#[track_caller]
fn check_golden(file: &str, text: &str) {
    let path = root().join("testdata/inspect/explain").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{file}; if intended: UPDATE_GOLDEN=1 cargo test --lib cli::explain");
}

/// Checks the text of both widths; no line is wider, and both have the same words.
#[track_caller]
fn check(name: &str, line: &str) {
    let report = explained(line).unwrap();
    for width in [80, 140] {
        let text = drawn(&report, width);
        let too_wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > width).collect();
        // Sentences stand on lines of their own, which the terminal wraps.
        let sentence = |line: &&str| line.starts_with("  ") && line.contains(' ') && !line.contains("    ");
        assert!(too_wide.iter().all(sentence), "{name}: {too_wide:#?}");
        check_golden(&format!("{name}.{width}.txt"), &text);
    }
    let parsed: ExplainReport = serde_json::from_str(&json("ExplainReport", &report)).unwrap();
    assert_eq!(parsed, report, "{name}: the JSON holds the whole report");
}

/// `-f` with the objects of a case of the corpus, its configuration and its host.
fn case(name: &str) -> String {
    let file = |file| format!("CORPUS/{name}/{file}");
    format!("-f {} --config {} --host {}", file("objects.yaml"), file("config.yaml"), file("host.yaml"))
}

#[test]
fn policies() {
    check("external-local", &format!("default/etp {}", case("etp-local-with-local")));
    check(
        "external-local-without-endpoints-here",
        &format!("default/etp {}", case("etp-local-without-local")),
    );
    check(
        "internal-local-without-endpoints-here",
        &format!("default/itp {}", case("itp-local-without-local")),
    );
    check("both-local", &format!("default/bl {}", case("both-local")));
    check("both-local-and-affinity", &format!("default/affe {}", case("affinity-with-local-policies")));
    check("no-endpoints", &format!("default/np {}", case("nodeport-no-endpoints")));
}

#[test]
fn frontends() {
    check("source-ranges-dual-stack", &format!("default/lb {}", case("lb-source-ranges-dual")));
    check("several-load-balancer-ips", &format!("default/lb {}", case("lb-several-ingress")));
    check("external-ips", &format!("default/x {}", case("external-ips")));
    check("node-port-addresses", &format!("default/web {}", case("config-nodeport-addresses")));
    check("pods-by-interface", &format!("default/web {}", case("config-detect-bridge")));
    check("frontend-of-another-service", "shop/late -f HERE/overlap.yaml --cluster-cidr 10.128.0.0/14");
    check("frontend-kept", "shop/early -f HERE/overlap.yaml --cluster-cidr 10.128.0.0/14");
}

#[test]
fn endpoints() {
    check("hints-for-zones", &format!("default/th {}", case("hints-zone-all")));
    check("hints-missing-in-one", &format!("default/th {}", case("hints-zone-missing-in-one")));
    check("hints-for-nodes", &format!("default/tf {}", case("hints-node")));
    check("terminating", &format!("default/web {}", case("endpoints-terminating-mix")));
    check("terminating-here", &format!("default/ett {}", case("etp-local-terminating")));
    check("port-name-mismatch", &format!("default/odd {}", case("port-name-mismatch")));
    check("duplicate-endpoints", &format!("default/web {}", case("slices-duplicate-endpoints")));
    check("slices-of-other-family", &format!("default/six {}", case("slices-other-family")));
    check("ipv6", &format!("default/v6 {}", case("ipv6-single-stack")));
}

#[test]
fn services_that_kube_proxy_does_not_serve() {
    check("headless", &format!("default/peers {}", case("headless-and-external-name")));
    check("external-name", &format!("default/ext {}", case("headless-and-external-name")));
}

#[test]
fn rules_alone() {
    check("rules-alone", "default/etp CORPUS/etp-local-with-local/expected.v4.save");
    check("rules-alone-source-ranges", "default/lb CORPUS/lb-source-ranges-dual/expected.v4.save");
    check("rules-alone-no-endpoints", "default/np CORPUS/nodeport-no-endpoints/expected.v4.save");
    check("rules-alone-compact", "shop/early HERE/compact.save");
    check("foreign-rules", "shop/early HERE/foreign.save -f HERE/overlap.yaml --cluster-cidr 10.128.0.0/14");
}

#[test]
fn problems_of_objects() {
    check("problems", "shop/broken -f HERE/problems.yaml");
}

#[test]
fn json_is_documented_by_example() {
    let report = explained(&format!("default/bl {}", case("both-local"))).unwrap();
    check_golden("both-local.json", &json("ExplainReport", &report));
    let report = explained("default/etp CORPUS/etp-local-with-local/expected.v4.save").unwrap();
    check_golden("rules-alone.json", &json("ExplainReport", &report));
}

#[test]
fn a_name_that_does_not_exist_has_near_ones() {
    let fails = |line: &str, expected: &str| {
        assert_eq!(explained(line).unwrap_err().to_string(), expected, "{line}");
    };
    let objects = "-f HERE/overlap.yaml";
    fails(
        &format!("shop/erly {objects}"),
        "no Service \"shop/erly\" in the objects; did you mean shop/early?",
    );
    fails(
        &format!("default/late {objects}"),
        "no Service \"default/late\" in the objects; did you mean shop/late?",
    );
    fails(&format!("a/b {objects}"), "no Service \"a/b\" in the objects");
    fails(
        &format!("shop/early:81 {objects}"),
        "Service shop/early has no port \"81\"; its ports are web (80, TCP)",
    );
    let rules = "CORPUS/etp-local-with-local/expected.v4.save";
    fails(
        &format!("default/etb {rules}"),
        "no Service \"default/etb\" in the rules in expected.v4.save; did you mean default/etp?",
    );
    fails(
        &format!("default/etp:x {rules}"),
        "Service default/etp has no port \"x\"; its ports are http (80, TCP)",
    );
}

#[test]
fn a_port_is_chosen_by_name_or_number() {
    for port in ["web", "80"] {
        let report = explained(&format!("shop/early:{port} -f HERE/overlap.yaml")).unwrap();
        let names: Vec<&str> = report.ports.iter().map(|port| &*port.name).collect();
        assert_eq!(names, ["web"], "{port}");
    }
}
