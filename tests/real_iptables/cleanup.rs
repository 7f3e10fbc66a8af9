//! `chainsmith cleanup` on tables with kube-proxy's rules and foreign rules, in both back-ends at once:
//! exactly the rules from before kube-proxy remain.

use std::process::Command;

use chainsmith::kernel::Backend;
use chainsmith::net::IpFamily;

use super::corpus_cases::{Case, version};
use super::namespace::{in_namespace, load, saved};

/// Rules of a CNI, of Docker, of the kubelet, of an administrator.
const FOREIGN: &str = r#"*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-NWPLCY - [0:0]
-A INPUT -m comment --comment "says -j KUBE-SERVICES \"quoted\"" -j ACCEPT
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A FORWARD -j DOCKER
-A FORWARD -j KUBE-NWPLCY
-A OUTPUT -j KUBE-FIREWALL
-A DOCKER -i cni0 -j RETURN
-A KUBE-FIREWALL -m comment --comment "kubelet" -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-HOSTPORTS - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -o eth9 -j MASQUERADE
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"cni\"" -m multiport --dports 8080 -j RETURN
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
"#;

/// Leftovers of kube-proxy's ipvs mode in iptables.
const IPVS: &str = "*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER
-A KUBE-IPVS-FILTER -j RETURN
COMMIT
*nat
:KUBE-LOAD-BALANCER - [0:0]
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
COMMIT
";

fn restore_beside(family: IpFamily, backend: Backend, text: &str) {
    use std::io::Write;
    let program = chainsmith::kernel::programs::Programs::new(family, Some(backend)).restore;
    let mut child =
        Command::new(program).arg("--noflush").stdin(std::process::Stdio::piped()).spawn().expect("it runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

fn cleanup(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_chainsmith")).args(arguments).output().expect("it starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The tables as saved, without comments and counters.
fn tables(family: IpFamily, backend: Backend) -> Vec<String> {
    let lines: Vec<String> = saved(family, backend)
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" [").next().unwrap_or(line).to_owned())
        .collect();
    lines
}

fn all() -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for backend in [Backend::Nft, Backend::Legacy] {
        all.extend(IpFamily::BOTH.map(|family| tables(family, backend)));
    }
    all
}

/// The recorded rules of a case without KUBE-FIREWALL, which cleanup keeps: it belongs to the kubelet too.
fn recorded(name: &str, family: IpFamily) -> String {
    let case = Case::all().into_iter().find(|case| case.name() == name).expect("a case");
    let text = case.file(&format!("expected.{}.save", version(family))).expect("a recorded case");
    let lines = text.lines().filter(|line| {
        let is_built_in = line.starts_with(':') && !line.contains(" - ");
        !is_built_in && !line.contains("KUBE-FIREWALL")
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn cleanup_removes_our_rules_from_both_back_ends_and_nothing_else() {
    in_namespace(|| {
        for backend in [Backend::Nft, Backend::Legacy] {
            for family in IpFamily::BOTH {
                load(family, backend, FOREIGN);
            }
        }
        let before = all();
        for backend in [Backend::Nft, Backend::Legacy] {
            for family in IpFamily::BOTH {
                restore_beside(family, backend, &recorded("mixed-5", family));
                restore_beside(family, backend, IPVS);
            }
        }
        let nft = "add table ip kube-proxy; add chain ip kube-proxy services; add table ip6 kube-proxy; add table ip mine";
        assert!(Command::new("nft").arg(nft).status().expect("nft").success());
        let made = Command::new("ip").args(["link", "add", "kube-ipvs0", "type", "bridge"]).status();
        assert!(made.expect("ip").success());
        for name in ["KUBE-LOOP-BACK", "KUBE-NODE-PORT-TCP", "mine"] {
            let made = Command::new("ipset").args(["create", name, "hash:ip"]).status();
            assert!(made.expect("ipset").success());
        }
        // The kernel does not destroy a set that a rule refers to.
        let refers =
            "*nat\n-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK src -j MASQUERADE\nCOMMIT\n";
        restore_beside(IpFamily::V4, Backend::Nft, refers);
        let full = all();
        assert!(full.iter().zip(&before).all(|(full, before)| full.len() > before.len() + 50));

        let (status, listed, errors) = cleanup(&["cleanup", "--dry-run"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{listed}");
        assert_eq!(all(), full, "nothing is touched");
        for part in [
            "IPv4 nat of iptables-nft: ",
            "IPv6 filter of iptables-legacy: ",
            "IPv6 nftables table kube-proxy",
            "2 ipsets of ipvs mode",
            "interface kube-ipvs0",
        ] {
            assert!(listed.contains(&format!("would remove {part}")), "{part}: {listed}");
        }

        let (status, removed, errors) = cleanup(&["cleanup"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{removed}");
        // A dry run prints each set on a line of its own.
        let summed: String =
            listed.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
        assert!(listed.contains("\n  KUBE-LOOP-BACK\n  KUBE-NODE-PORT-TCP\n"), "{listed}");
        assert_eq!(removed, summed.replace("would remove", "removed"));
        assert_eq!(all(), before);
        let tables = Command::new("nft").args(["list", "tables"]).output().expect("nft");
        let tables = String::from_utf8(tables.stdout).expect("text");
        assert!(tables.contains("table ip mine") && !tables.contains("kube-proxy"), "{tables}");

        let sets = Command::new("ipset").args(["list", "-n"]).output().expect("ipset");
        assert_eq!(String::from_utf8(sets.stdout).expect("text"), "mine\n");

        // Without leftovers it succeeds too, also with kube-proxy's flag.
        assert_eq!(cleanup(&["cleanup"]), (Some(0), "nothing to remove\n".to_owned(), String::new()));
        let (status, removed, _) = cleanup(&["run", "--cleanup"]);
        assert_eq!((status, removed.as_str()), (Some(0), "nothing to remove\n"));
        assert_eq!(all(), before);
    });
}

/// Names of the sets in this namespace.
fn sets() -> Vec<String> {
    let listed = Command::new("ipset").args(["list", "-n"]).output().expect("ipset");
    let text = String::from_utf8(listed.stdout).expect("text");
    text.lines().map(str::to_owned).collect()
}

/// kube-router and k3s keep network policies in sets with kube-proxy's prefix.
#[test]
fn foreign_sets_stay_whatever_their_prefix() {
    in_namespace(|| {
        let of_others = ["KUBE-SRC-ZGOZKQUJLUWSN5R7", "KUBE-DST-ZGOZKQUJLUWSN5R7", "KUBE-LOOP-BACK-2"];
        let of_kube_proxy = ["KUBE-LOOP-BACK", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"];
        for name in of_others.iter().chain(&of_kube_proxy) {
            let made = Command::new("ipset").args(["create", name, "hash:ip"]).status();
            assert!(made.expect("ipset").success(), "{name}");
        }
        let (status, listed, errors) = cleanup(&["cleanup", "--dry-run"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""));
        let expected =
            "would remove 2 ipsets of ipvs mode\n  KUBE-6-NODE-PORT-LOCAL-SCTP-HAS\n  KUBE-LOOP-BACK\n";
        assert_eq!(listed, expected);
        let (status, removed, errors) = cleanup(&["cleanup"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{removed}");
        let mut left = sets();
        left.sort_unstable();
        let mut expected = of_others.map(str::to_owned);
        expected.sort_unstable();
        assert_eq!(left, expected);
    });
}

/// Read from the kernel: `iptables-save` prints a comment of letters and dashes without quotes.
#[test]
fn a_foreign_rule_with_a_comment_like_an_option_still_references_its_chain() {
    in_namespace(|| {
        let (family, backend) = (IpFamily::V4, Backend::Nft);
        restore_beside(family, backend, &recorded("mixed-5", family));
        let foreign = "*nat\n:CNI - [0:0]\n-A CNI -m comment --comment -j -j KUBE-MARK-MASQ\nCOMMIT\n";
        restore_beside(family, backend, foreign);
        let (status, _, errors) = cleanup(&["cleanup"]);
        assert_eq!(status, Some(1));
        assert!(errors.contains("KUBE-MARK-MASQ is flushed, not deleted"), "{errors}");
        let left = tables(family, backend);
        let ours: Vec<&String> = left.iter().filter(|line| line.contains("KUBE-")).collect();
        assert_eq!(ours, [":KUBE-MARK-MASQ -", "-A CNI -m comment --comment -j -j KUBE-MARK-MASQ"]);
    });
}

#[test]
fn a_chain_referenced_by_foreign_rules_is_flushed_and_reported() {
    in_namespace(|| {
        let (family, backend) = (IpFamily::V4, Backend::Nft);
        restore_beside(family, backend, &recorded("mixed-5", family));
        restore_beside(family, backend, "*nat\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\nCOMMIT\n");
        let (status, _, errors) = cleanup(&["cleanup"]);
        assert_eq!(status, Some(1));
        assert!(
            errors.contains("KUBE-MARK-MASQ is flushed, not deleted: foreign rules refer to it, in CNI"),
            "{errors}"
        );
        let left = tables(family, backend);
        let ours: Vec<&String> = left.iter().filter(|line| line.contains("KUBE-")).collect();
        assert_eq!(ours, [":KUBE-MARK-MASQ -", "-A CNI -j KUBE-MARK-MASQ"]);
    });
}

#[test]
fn cleanup_reports_a_running_agent() {
    in_namespace(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let agent = folder.path().join("kube-proxy");
        std::os::unix::fs::symlink("/bin/sleep", &agent).expect("our own file or process");
        let mut running = Command::new(&agent).arg("60").spawn().expect("it starts");
        let (status, stdout, errors) = cleanup(&["cleanup", "--dry-run"]);
        running.kill().expect("our own file or process");
        running.wait().expect("it ends");
        assert_eq!((status, stdout.as_str()), (Some(0), "nothing to remove\n"));
        let expected = format!("process {} (kube-proxy) runs in this network namespace", running.id());
        assert!(errors.contains(&expected), "{errors}");
    });
}

#[test]
fn cleanup_without_iptables_reports_nothing_to_remove() {
    in_namespace(|| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_chainsmith")).arg("cleanup").env("PATH", "/none").output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    });
}
