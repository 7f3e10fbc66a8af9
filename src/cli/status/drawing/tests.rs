//! Golden outputs of fixed states, in `testdata/inspect/status/`; `UPDATE_GOLDEN=1` rewrites them.
#![allow(clippy::disallowed_methods, reason = "reads and writes golden files")]

use std::path::Path;

use super::*;
use crate::cli::output::json;
use crate::inspect::status::{
    InForceCounts, KeptLines, KernelRead, NodeFinding, ObjectCounts, PendingCounts, QuarantinedPort,
    SentCounts, SettingInForce, StageSeconds, WatchAge,
};

fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/inspect/status").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{}; UPDATE_GOLDEN=1 rewrites it", path.display());
}

/// Checks `draw` at both widths.
fn check_drawn(name: &str, draw: impl Fn(&mut Screen)) {
    for width in [80, 140] {
        let mut screen = Screen::new(Some(width));
        draw(&mut screen);
        let text = anstream::adapter::strip_str(screen.as_str()).to_string();
        check(&format!("{name}.{width}"), &text);
    }
}

fn healthy_family(family: &str, backend: &str) -> FamilyState {
    let partial = SyncRecord {
        seconds_ago: 12.4,
        seconds: 0.0634,
        n_services: 1,
        services: vec!["shop/db".to_owned()],
        stages: StageSeconds { compile: 0.000_031, plan: 0.0012, restore: 0.0615, ..StageSeconds::default() },
        sent: SentCounts { processes: 1, lines: 9, bytes: 812, rules: 4, chains: 2, deleted: 1 },
        ..SyncRecord::default()
    };
    let full = SyncRecord {
        seconds_ago: 93_784.0,
        seconds: 1.31,
        is_full: true,
        stages: StageSeconds { read: 0.24, compile: 0.11, plan: 0.08, lock_wait: 0.0, restore: 0.88 },
        sent: SentCounts {
            processes: 31,
            lines: 72_140,
            bytes: 9_120_441,
            rules: 61_031,
            chains: 11_020,
            deleted: 0,
        },
        reads: vec!["start".to_owned()],
        ..SyncRecord::default()
    };
    let several = SyncRecord {
        seconds_ago: 75.0,
        n_services: 3,
        services: ["shop/cart", "shop/db", "shop/web"].map(str::to_owned).to_vec(),
        ..partial.clone()
    };
    FamilyState {
        family: family.to_owned(),
        backend: backend.to_owned(),
        layout: Some("compact".to_owned()),
        in_force: InForceCounts {
            service_ports: 5_000,
            endpoints: 50_000,
            filter_rules: 12,
            nat_rules: 60_312,
            chains: 11_020,
            ..InForceCounts::default()
        },
        drift: Some(DriftState { state: "trusted".to_owned(), ..DriftState::default() }),
        last_read: Some(KernelRead { reason: "start".to_owned(), seconds_ago: 93_784.0 }),
        last_success_seconds: Some(12.4),
        n_syncs: 4_211,
        syncs: vec![partial, several, full],
        last_restore: Some(RestoreSummary { seconds_ago: 12.4, lines: 9, bytes: 812, error: None }),
        ..FamilyState::default()
    }
}

fn healthy() -> StatusReport {
    let watch = |kind: &str| WatchAge { kind: kind.to_owned(), ..WatchAge::default() };
    StatusReport {
        release: "0.1.0".to_owned(),
        replaces: "1.36.2".to_owned(),
        node: "worker-3".to_owned(),
        time: "2026-11-25T04:15:00Z".to_owned(),
        uptime_seconds: 93_785.0,
        source: "API server".to_owned(),
        objects: ObjectCounts { services: 5_000, endpoint_slices: 5_003, has_node: true },
        watches: ["Service", "EndpointSlice", "Node"].map(watch).to_vec(),
        families: vec![healthy_family("ipv4", "nft"), healthy_family("ipv6", "nft")],
        ..StatusReport::default()
    }
}

/// Everything that can be wrong at once.
fn ill() -> StatusReport {
    let message = "iptables-restore v1.8.9 (legacy): unknown option \"--hashlimit\"; line 14 failed";
    let rule = "-A KUBE-SVC-4SW47YFZTEDKD3PK -m comment --comment \"shop/db\" -j KUBE-SEP-XTX3XZWVNHNJFVXM";
    let error = format!("iptables-restore rejected line 14 ({rule:?}): {message}");
    let failed = SyncRecord {
        seconds_ago: 3.2,
        seconds: 0.412,
        is_full: true,
        stages: StageSeconds { read: 0.11, compile: 0.02, plan: 0.01, lock_wait: 0.2, restore: 0.07 },
        sent: SentCounts { processes: 2, lines: 40, bytes: 3_001, rules: 21, chains: 9, deleted: 0 },
        reads: vec!["restore_failed".to_owned()],
        n_failed_restores: 2,
        error: Some(error.clone()),
        ..SyncRecord::default()
    };
    let repaired = SyncRecord {
        seconds_ago: 64.0,
        drift: Some("nat KUBE-SERVICES, nat KUBE-SVC-4SW47YFZTEDKD3PK".to_owned()),
        n_repaired: 2,
        error: None,
        n_failed_restores: 0,
        reads: vec!["fingerprint_differs".to_owned()],
        ..failed.clone()
    };
    let port = |name: &str| QuarantinedPort {
        service_port: name.to_owned(),
        protocol: "tcp".to_owned(),
        rule: Some(rule.to_owned()),
        message: message.to_owned(),
    };
    let v4 = FamilyState {
        family: "ipv4".to_owned(),
        backend: "legacy".to_owned(),
        layout: Some("classic".to_owned()),
        in_force: InForceCounts {
            service_ports: 18,
            endpoints: 31,
            filter_rules: 14,
            nat_rules: 122,
            chains: 61,
            overlaps: 1,
            dropped_internal: 1,
            dropped_external: 2,
        },
        drift: Some(DriftState {
            state: "unknown".to_owned(),
            reason: Some("restore_failed".to_owned()),
            n_left: None,
        }),
        last_read: Some(KernelRead { reason: "restore_failed".to_owned(), seconds_ago: 3.2 }),
        last_success_seconds: Some(64.0),
        n_failures: 3,
        n_syncs: 12,
        syncs: vec![failed, repaired],
        n_quarantined: 2,
        quarantined: vec![port("shop/db:sql"), port("shop/\u{1b}[31mred")],
        affinity_lists_full: 1,
        last_restore: Some(RestoreSummary {
            seconds_ago: 3.2,
            lines: 20,
            bytes: 1_500,
            error: Some(error.clone()),
        }),
        failed_restore: Some(RestoreSummary {
            seconds_ago: 3.2,
            lines: 20,
            bytes: 1_500,
            error: Some(error),
        }),
        ..FamilyState::default()
    };
    let v6 = FamilyState {
        family: "ipv6".to_owned(),
        backend: "legacy".to_owned(),
        syncing_seconds: Some(21.0),
        ..FamilyState::default()
    };
    let setting = |path: &str, value: serde_json::Value, set_by: &str| SettingInForce {
        path: path.to_owned(),
        value,
        set_by: set_by.to_owned(),
    };
    let settings = vec![
        setting("clusterCIDR", "10.244.0.0/16,fd00:10:244::/56".into(), "file"),
        setting("chainsmith.layout", "classic".into(), "flag --layout"),
    ];
    StatusReport {
        pending: PendingCounts { services: 1, endpoint_slices: 4 },
        watches: vec![
            WatchAge { kind: "Service".to_owned(), stale_seconds: 0.0, is_stale: false },
            WatchAge { kind: "EndpointSlice".to_owned(), stale_seconds: 75.5, is_stale: true },
            WatchAge { kind: "Node".to_owned(), stale_seconds: 4.0, is_stale: false },
        ],
        findings: vec![NodeFinding {
            kind: "SecondProxy".to_owned(),
            is_warning: true,
            message:
                "another kube-proxy or Chainsmith seems to program this node: port 10256 (healthz) is taken"
                    .to_owned(),
        }],
        families: vec![v4, v6],
        settings,
        n_problems: 9,
        problems: vec![ObjectProblem {
            kind: "Service".to_owned(),
            object: "shop/legacy".to_owned(),
            message:
                "spec.externalIPs[1]: \"bogus\" is not an IP address; ignored (and 8 more: \"a\", \"b\", ...)"
                    .to_owned(),
        }],
        ..healthy()
    }
}

fn texts() -> RestoreReport {
    let piece = |first_line: usize, text: &str| KeptLines { first_line, text: text.to_owned() };
    let summary = RestoreSummary {
        seconds_ago: 3.2,
        lines: 4_000,
        bytes: 600_000,
        error: Some("iptables-restore rejected line 2000: no such chain".to_owned()),
    };
    let pieces = vec![
        piece(1, "*nat\n:KUBE-SERVICES - [0:0]\n"),
        piece(1_999, "-A KUBE-SERVICES -j KUBE-NODEPORTS\n-A KUBE-SERVICES -j GONE\n"),
        piece(4_000, "COMMIT\n"),
    ];
    let short = KeptRestore {
        family: "ipv6".to_owned(),
        summary: RestoreSummary { seconds_ago: 90.0, lines: 2, bytes: 12, error: None },
        pieces: vec![piece(1, "*nat\nCOMMIT\n")],
    };
    RestoreReport { inputs: vec![KeptRestore { family: "ipv4".to_owned(), summary, pieces }, short] }
}

#[test]
fn a_healthy_agent() {
    check_drawn("healthy", |screen| status(screen, &healthy()));
    check("healthy.json", &json("StatusReport", &healthy()));
}

#[test]
fn an_agent_with_every_trouble() {
    check_drawn("ill", |screen| status(screen, &ill()));
    check("ill.json", &json("StatusReport", &ill()));
}

#[test]
fn an_agent_that_has_just_started() {
    let family =
        FamilyState { family: "ipv4".to_owned(), backend: "nft".to_owned(), ..FamilyState::default() };
    let report = StatusReport {
        objects: ObjectCounts::default(),
        uptime_seconds: 2.0,
        watches: Vec::new(),
        source: "/etc/manifests".to_owned(),
        families: vec![family],
        ..healthy()
    };
    check_drawn("started", |screen| status(screen, &report));
}

#[test]
fn inputs_of_iptables_restore() {
    check_drawn("restore", |screen| restores(screen, &texts(), "failed"));
    check_drawn("no-restore", |screen| restores(screen, &RestoreReport::default(), "failed"));
}

#[test]
fn durations_have_two_units_at_most() {
    for (seconds, text) in [
        (0.0, "0 us"),
        (0.000_12, "120 us"),
        (0.0634, "63 ms"),
        (3.25, "3.2 s"),
        (59.9, "59 s"),
        (93.0, "1 min 33 s"),
        (7_260.0, "2 h 1 min"),
        (93_784.0, "1 d 2 h"),
    ] {
        assert_eq!(duration(seconds), text);
    }
}
