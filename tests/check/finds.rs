//! Each way to spoil a healthy node is found, and nothing else.

use super::node::on_each_node;

#[test]
fn a_healthy_node_has_no_finding_and_its_layout_is_told() {
    on_each_node(|node| {
        let (status, report) = node.check();
        assert_eq!((status, &report["result"]), (Some(0), &"same".into()), "{report:#}");
        for family in report["families"].as_array().expect("families") {
            assert_eq!(family["layout"], node.layout, "{report:#}");
            assert_eq!(family["backend"], node.backend.as_str(), "{report:#}");
        }
        assert_eq!(report["families"].as_array().map(Vec::len), Some(2));
        assert_eq!(report["unknown"].as_array().map(Vec::len), Some(0), "{report:#}");
    });
}

#[test]
fn each_way_to_spoil_the_rules_is_found() {
    on_each_node(|node| {
        let check = |commands: &str, kind: &str, table: &str, chain: &str| {
            node.sh(commands);
            assert_eq!(
                node.findings(),
                [[kind, table, chain]],
                "{:?} {}: {commands}",
                node.backend,
                node.layout
            );
            node.repair();
        };
        check("$I -t nat -D KUBE-POSTROUTING 1", "ruleMissing", "nat", "KUBE-POSTROUTING");
        check("$I -t nat -I KUBE-SERVICES -d 10.96.0.12/32 -j RETURN", "ruleAdded", "nat", "KUBE-SERVICES");
        let swap = "rule=$($I -S KUBE-FORWARD 1); $I -D KUBE-FORWARD 1; eval $I $rule";
        check(swap, "orderChanged", "filter", "KUBE-FORWARD");
        check("$I -t nat -F KUBE-MARK-MASQ", "chainFlushed", "nat", "KUBE-MARK-MASQ");
        check("$I -I OUTPUT -p tcp --dport 8443 -j DROP", "foreignRule", "filter", "OUTPUT");
        check("$I -t nat -I PREROUTING -d 10.96.0.0/16 -j ACCEPT", "foreignRule", "nat", "PREROUTING");
        check("$I -t nat -D PREROUTING 1", "jumpMissing", "nat", "PREROUTING");
        check(
            "$I -t nat -D KUBE-POSTROUTING 1; $I -F KUBE-POSTROUTING 2> /dev/null || true",
            "ruleMissing",
            "nat",
            "KUBE-POSTROUTING",
        );
        assert_eq!(node.findings().len(), 0);
    });
}

#[test]
fn wrong_sysctls_are_found() {
    on_each_node(|node| {
        for key in ["ipv4/conf/all/route_localnet", "ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            node.sh(&format!("echo 0 > /proc/sys/net/{key}"));
            assert_eq!(node.findings(), [["sysctl", "", ""]], "{key}");
            node.repair();
        }
    });
}

#[test]
fn rules_in_both_back_ends_are_found() {
    on_each_node(|node| {
        let other = if node.backend.as_str() == "nft" { "legacy" } else { "nft" };
        // The one to compare with is given: both hold rules of Services.
        let spoil = format!(
            "O=iptables-{other}; $O -t nat -N KUBE-SERVICES; $O -t nat -A OUTPUT -j KUBE-SERVICES; \
             $O -t nat -A KUBE-SERVICES -d 192.0.2.1/32 -j ACCEPT"
        );
        node.sh(&spoil);
        let (_, report) = node.check();
        if node.backend.as_str() == "nft" {
            let kinds: Vec<_> =
                report["findings"].as_array().expect("findings").iter().map(|f| &f["kind"]).collect();
            assert_eq!(kinds, ["bothBackends"], "{report:#}");
        }
        node.sh(&format!("O=iptables-{other}; $O -t nat -F; $O -t nat -X"));
    });
}

#[test]
fn changed_objects_differ_by_their_service() {
    on_each_node(|node| {
        let path = node.objects().join("shop.yaml");
        let text = std::fs::read_to_string(&path).expect("objects");
        std::fs::write(&path, text.replace("10.180.1.9", "10.180.1.99")).expect("written");
        let (status, report) = node.check();
        assert_eq!(status, Some(1));
        for finding in report["findings"].as_array().expect("findings") {
            if finding["severity"] != "notice" {
                assert_eq!(finding["services"], serde_json::json!(["shop/db:sql"]), "{report:#}");
            }
        }
        std::fs::write(&path, text).expect("written");
    });
}
