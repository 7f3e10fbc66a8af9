//! In a user namespace the buffers of netlink sockets are small: the kernel rejects a large commit
//! (EMSGSIZE), whatever its content. The commit is split, and all rules are written.

use std::fmt::Write;
use std::process::Command;

/// Services with three endpoints each, more than fits into one commit there. (A single chain must fit: with
/// some 250 Services `KUBE-SERVICES` alone is too large.)
const N_SERVICES: usize = 120;

fn objects() -> String {
    let mut text = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n".to_owned();
    for n in 0..N_SERVICES {
        let (high, low) = (n / 250, n % 250 + 1);
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{clusterIP: 10.96.{high}.{low}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}-1, labels: {{kubernetes.io/service-name: s{n}}}}}\n\
             addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.{high}.{low}.1]}}, {{addresses: [10.{high}.{low}.2]}}, {{addresses: [10.{high}.{low}.3]}}]\n"
        )
        .expect("writing to a string");
    }
    text
}

#[test]
fn in_a_user_namespace_large_commits_are_split() {
    let folder = tempfile::tempdir().expect("a folder");
    let manifests = folder.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a folder");
    std::fs::write(manifests.join("objects.yaml"), objects()).expect("a file");
    let script = r#"
        mount -t tmpfs x /run
        "$0" run --manifests "$1/manifests" --hostname-override n --iptables-backend nft -v 2 2> "$1/log" &
        agent=$!
        for i in $(seq 300); do
            [ "$(grep -c ' synced ' "$1/log")" -ge 2 ] && break
            sleep 0.1
        done
        iptables-nft-save -t nat > "$1/nat"
        kill $agent
        wait $agent
    "#;
    let status = Command::new("unshare")
        .args(["-rnm", "sh", "-c", script, env!("CARGO_BIN_EXE_chainsmith")])
        .arg(folder.path())
        .status()
        .expect("unshare runs");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("a written file");
    let (log, nat) = (read("log"), read("nat"));
    assert!(status.success(), "{log}");
    assert_eq!(nat.matches("\n-A KUBE-SEP-").count(), 2 * 3 * N_SERVICES, "{log}");
    assert_eq!(nat.matches(" cluster IP\"").count(), N_SERVICES, "{log}");
    assert!(!log.contains("service port quarantined") && !log.contains("sync failed"), "{log}");
}
