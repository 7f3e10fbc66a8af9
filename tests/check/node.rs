//! A node in a network namespace: the rules of a small cluster, its sysctls, and `chainsmith check` on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use chainsmith::kernel::Backend;
use chainsmith::net::IpFamily;
use serde_json::Value;

use super::namespace::{in_namespace, load};

/// The program.
pub const CHAINSMITH: &str = env!("CARGO_BIN_EXE_chainsmith");

/// Sysctls of conntrack as kube-proxy leaves them where it may not set any.
const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
    clusterCIDR: 10.180.0.0/16,fd00:10:180::/48\n\
    conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}\n";

/// The sysctls that a healthy node has.
const SYSCTLS: [(&str, &str); 3] =
    [("ipv4/ip_forward", "1"), ("ipv4/conf/all/route_localnet", "1"), ("ipv6/conf/all/forwarding", "1")];

/// A node with rules in force.
pub struct CheckedNode {
    pub backend: Backend,
    pub layout: &'static str,
    folder: tempfile::TempDir,
}

/// Runs `test` on a healthy node with each back-end and layout.
pub fn on_each_node(test: impl Fn(&CheckedNode) + Sync) {
    for backend in [Backend::Nft, Backend::Legacy] {
        for layout in ["classic", "compact"] {
            in_namespace(|| test(&CheckedNode::new(backend, layout)));
        }
    }
}

/// Runs `test` on a healthy node with each back-end; for tests that take long.
pub fn on_two_nodes(test: impl Fn(&CheckedNode) + Sync) {
    for (backend, layout) in [(Backend::Nft, "compact"), (Backend::Legacy, "classic")] {
        in_namespace(|| test(&CheckedNode::new(backend, layout)));
    }
}

impl CheckedNode {
    pub fn new(backend: Backend, layout: &'static str) -> CheckedNode {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.conf"), CONFIG).expect("written");
        let objects = folder.path().join("objects");
        std::fs::create_dir(&objects).expect("made");
        let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/inspect/check/shop.yaml");
        std::fs::copy(shop, objects.join("shop.yaml")).expect("copied");
        let node = CheckedNode { backend, layout, folder };
        node.sh("ip link set lo up");
        node.repair();
        node
    }

    pub fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Makes the node healthy.
    pub fn repair(&self) {
        for (key, value) in SYSCTLS {
            std::fs::write(format!("/proc/sys/net/{key}"), value).expect(key);
        }
        for family in IpFamily::BOTH {
            let rules = self.chainsmith(&[
                "render",
                "--family",
                &family.to_string().to_lowercase(),
                "--layout",
                self.layout,
            ]);
            assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
            load(family, self.backend, &String::from_utf8(rules.stdout).expect("text"));
        }
    }

    /// The arguments of a command about this node.
    pub fn arguments(&self, command: &[&str]) -> Vec<String> {
        let (config, objects) = (self.folder.path().join("config.conf"), self.objects());
        let own = ["--config", config.to_str().expect("text"), "-f", objects.to_str().expect("text")];
        command.iter().chain(&own).map(|text| (*text).to_owned()).collect()
    }

    fn chainsmith(&self, command: &[&str]) -> std::process::Output {
        Command::new(CHAINSMITH).args(self.arguments(command)).output().expect("chainsmith runs")
    }

    /// Runs shell commands, with `$I` for iptables of the back-end.
    pub fn sh(&self, commands: &str) {
        let iptables = format!("iptables-{}", self.backend.as_str());
        let status = Command::new("sh").args(["-ec", commands]).env("I", iptables).status().expect("sh runs");
        assert!(status.success(), "{commands}");
    }

    /// Exit status and report of `check`.
    pub fn check(&self) -> (Option<i32>, Value) {
        let output = self.chainsmith(&["check", "--node", "node-a", "-o", "json"]);
        let report = serde_json::from_slice(&output.stdout);
        let report =
            report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code(), report)
    }

    /// Kind, table and chain of each finding that counts.
    pub fn findings(&self) -> Vec<[String; 3]> {
        let (status, report) = self.check();
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let findings = report["findings"].as_array().expect("findings").iter();
        let findings: Vec<_> = findings
            .filter(|finding| finding["severity"] != "notice")
            .map(|finding| ["kind", "table", "chain"].map(|key| text(finding, key)))
            .collect();
        assert_eq!(status, Some(i32::from(!findings.is_empty())), "{report:#}");
        findings
    }
}
