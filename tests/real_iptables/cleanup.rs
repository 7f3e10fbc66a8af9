//! `chainsmith cleanup` on tables full of kube-proxy's rules and of others', in both back-ends at
//! once: what was there before kube-proxy came is what is left.

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

/// What kube-proxy's ipvs mode leaves in iptables.
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
    let program = chainsmith::kernel::iptables::Programs::new(family, Some(backend)).restore;
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

/// The recorded rules of a case without KUBE-FIREWALL, which cleanup leaves: the kubelet has its own.
fn recorded(name: &str, family: IpFamily) -> String {
    let case = Case::all().into_iter().find(|case| case.name() == name).expect("a case");
    let text = case.file(&format!("expected.{}.save", version(family))).expect("it is recorded");
    let lines = text.lines().filter(|line| {
        let is_built_in = line.starts_with(':') && !line.contains(" - ");
        !is_built_in && !line.contains("KUBE-FIREWALL")
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn cleanup_takes_ours_out_of_both_back_ends_and_nothing_else() {
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
        let full = all();
        assert!(full.iter().zip(&before).all(|(full, before)| full.len() > before.len() + 50));

        let (status, listed, errors) = cleanup(&["cleanup", "--dry-run"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{listed}");
        assert_eq!(all(), full, "nothing is touched");
        for part in [
            "IPv4 nat of iptables-nft: ",
            "IPv6 filter of iptables-legacy: ",
            "IPv6 nftables table kube-proxy",
            "interface kube-ipvs0",
        ] {
            assert!(listed.contains(&format!("would remove {part}")), "{part}: {listed}");
        }

        let (status, removed, errors) = cleanup(&["cleanup"]);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{removed}");
        assert_eq!(removed, listed.replace("would remove", "removed"));
        assert_eq!(all(), before);
        let tables = Command::new("nft").args(["list", "tables"]).output().expect("nft");
        let tables = String::from_utf8(tables.stdout).expect("text");
        assert!(tables.contains("table ip mine") && !tables.contains("kube-proxy"), "{tables}");

        // Where there is nothing it is as good, and so is the flag of kube-proxy.
        assert_eq!(cleanup(&["cleanup"]), (Some(0), "nothing to remove\n".to_owned(), String::new()));
        let (status, removed, _) = cleanup(&["run", "--cleanup"]);
        assert_eq!((status, removed.as_str()), (Some(0), "nothing to remove\n"));
        assert_eq!(all(), before);
    });
}

#[test]
fn a_chain_that_others_lead_to_is_emptied_and_named() {
    in_namespace(|| {
        let (family, backend) = (IpFamily::V4, Backend::Nft);
        restore_beside(family, backend, &recorded("mixed-5", family));
        restore_beside(family, backend, "*nat\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\nCOMMIT\n");
        let (status, _, errors) = cleanup(&["cleanup"]);
        assert_eq!(status, Some(1));
        assert!(
            errors.contains("KUBE-MARK-MASQ is empty now, but stays: 1 rules of others lead to it"),
            "{errors}"
        );
        let left = tables(family, backend);
        let ours: Vec<&String> = left.iter().filter(|line| line.contains("KUBE-")).collect();
        assert_eq!(ours, [":KUBE-MARK-MASQ -", "-A CNI -j KUBE-MARK-MASQ"]);
    });
}

#[test]
fn cleanup_without_iptables_says_that_there_is_nothing() {
    in_namespace(|| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_chainsmith")).arg("cleanup").env("PATH", "/none").output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    });
}
