//! A node that ran kube-proxy: kubeadm's DaemonSet with another image, leftovers of other modes and
//! back-ends, kernels that reject every sysctl, and another process that writes the same chains.

use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::apiserver::{Cluster, TOKEN, Trust, User, kubeconfig, start_cluster};
use crate::cluster::{self, OWN, WEB, WEB_PODS};
use crate::lab::Lab;
use crate::lab::address::{CLUSTER_CIDR, FAMILIES, Family};
use crate::lab::agent::AgentOptions;
use crate::lab::client::{Host, Outcome, Protocol};
use crate::lab::host::Node;
use crate::lab::netfilter::{Backend, Netfilter};
use crate::lab::poll;
use crate::lab::process::Process;
use crate::running::{Running, listen, wait_until_synced};

/// How long a step may take, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(20);

/// The `config.conf` of kubeadm's ConfigMap (config.md 10), with the lab's pod networks.
fn kubeadm_config() -> String {
    include_str!("kubeadm/config.conf").replace("@CLUSTER_CIDR@", CLUSTER_CIDR)
}

/// The `kubeconfig.conf` of kubeadm's ConfigMap, for `server`.
fn kubeadm_kubeconfig(server: &str) -> String {
    include_str!("kubeadm/kubeconfig.conf").replace("@SERVER@", server)
}

/// Writes the DaemonSet's volumes into the node's own mounts: the ConfigMap in the kubelet's layout,
/// and service account.
fn mount_volumes(node: &Node, api: &dyn Cluster) {
    let kubeconfig = api.kubeconfig();
    let server = kubeconfig.split('"').nth(1).expect("server: \"URL\"");
    node.namespace().run(|| {
        let none = None::<&str>;
        mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), MsFlags::empty(), none)
            .expect("a /var/lib of our own");
        let write = |path: &str, text: &str| std::fs::write(path, text).expect("a file");
        let volume = "/var/lib/kube-proxy";
        std::fs::create_dir_all(format!("{volume}/..2026_01_01")).expect("a folder");
        write(&format!("{volume}/..2026_01_01/config.conf"), &kubeadm_config());
        write(&format!("{volume}/..2026_01_01/kubeconfig.conf"), &kubeadm_kubeconfig(server));
        std::os::unix::fs::symlink("..2026_01_01", format!("{volume}/..data")).expect("a link");
        for file in ["config.conf", "kubeconfig.conf"] {
            let link = format!("{volume}/{file}");
            std::os::unix::fs::symlink(format!("..data/{file}"), link).expect("a link");
        }
        let account = "/var/run/secrets/kubernetes.io/serviceaccount";
        std::fs::create_dir_all(account).expect("a folder");
        write(&format!("{account}/token"), TOKEN);
        write(&format!("{account}/ca.crt"), &api.authority());
    });
}

/// Makes the chain that shows which back-end the kubelet uses.
fn make_hint(node: &Node) {
    for family in FAMILIES {
        node.netfilter().iptables(family, &["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]).expect("a chain");
    }
}

/// kubeadm's DaemonSet and ConfigMap unchanged, on node-1: the same command line, the program
/// called kube-proxy, the same files.
pub fn kubeadm_daemonset_runs_unchanged(backend: Backend) {
    let lab = cluster::build(backend).expect("a lab");
    let api = start_cluster(listen(), Some(lab.fabric().fd().expect("a namespace"))).expect("an API server");
    api.put_yaml(cluster::OBJECTS);
    let node = lab.node(1);
    make_hint(node);
    mount_volumes(node, &*api);

    let program = lab.folder().join("kube-proxy");
    let chainsmith = std::path::PathBuf::from(env!("CARGO_BIN_EXE_chainsmith"));
    std::os::unix::fs::symlink(chainsmith, &program).expect("a link");
    let name = [("NODE_NAME", node.name().to_owned())];
    let args = [
        "--config=/var/lib/kube-proxy/config.conf".to_owned(),
        format!("--hostname-override={}", node.name()),
    ];
    let log = lab.folder().join("kube-proxy.log");
    let process = Process::start(node.namespace(), &program, &args, &name, &log).expect("it starts");
    poll::until("the node serves", SOON, || {
        assert_eq!(process.status().map(|status| status.to_string()), None, "{}", process.log());
        FAMILIES.iter().all(|family| {
            let attempt = node.attempt(Protocol::Tcp, OWN.cluster_ip(*family), Duration::from_millis(200));
            matches!(attempt.outcome, Outcome::Answered { .. })
        })
    });
    for family in FAMILIES {
        lab.pod("client-1").attempts(60, Protocol::Tcp, WEB.cluster_ip(family)).assert_spread(&WEB_PODS);
    }
    let log = process.log();
    for trouble in ["unknown field", "ignored", "deprecated"] {
        assert!(!log.contains(trouble), "{trouble}: {log}");
    }
    assert!(!log.lines().any(|line| line.starts_with('E')), "{log}");

    // When the kubelet swaps the link, the agent goes on. When the file is written in place, it ends.
    node.namespace().run(|| {
        let volume = Path::new("/var/lib/kube-proxy");
        std::fs::create_dir(volume.join("..2026_01_02")).expect("a folder");
        for file in ["config.conf", "kubeconfig.conf"] {
            std::fs::copy(volume.join(file), volume.join("..2026_01_02").join(file)).expect("a copy");
        }
        std::os::unix::fs::symlink("..2026_01_02", volume.join("..new")).expect("a link");
        std::fs::rename(volume.join("..new"), volume.join("..data")).expect("swapped");
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(process.status().is_none(), "{}", process.log());
    node.namespace().run(|| {
        let opened = "/var/lib/kube-proxy/..2026_01_01/config.conf";
        std::fs::write(opened, kubeadm_config()).expect("written in place");
    });
    assert_eq!(process.wait().code(), Some(1));
    assert!(process.log().contains("was changed or moved"), "{}", process.log());
    lab.pod("client-1").tcp(OWN.cluster_ip(Family::V4)).pod();
}

/// A kubeconfig for the API server that does not run yet.
fn unreachable_kubeconfig() -> String {
    // The server makes its certificates when it starts.
    kubeconfig(&format!("https://{}", listen()), &Trust::Unverified, &User::Token(TOKEN.to_owned()))
}

/// Leftovers of an earlier kube-proxy in the other back-end and in nftables are removed once our rules are in
/// force, and not before; foreign rules stay.
pub fn leftovers_are_removed_once_our_rules_are_in_force(backend: Backend) {
    let lab = cluster::build(backend).expect("a lab");
    let node = lab.node(1);
    let other = match backend {
        Backend::Nft => Backend::Legacy,
        Backend::Legacy => Backend::Nft,
    };
    let beside = Netfilter { namespace: node.namespace(), backend: other };
    let old = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-OLD - [0:0]\n:MINE - [0:0]\n\
        -A PREROUTING -j MINE\n-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -j KUBE-SVC-OLD\n\
        -A MINE -j RETURN\nCOMMIT\n";
    for family in FAMILIES {
        beside.restore(family, old).expect("old rules");
    }
    let nft = |text: &str| node.namespace().command("nft", &[text], "").expect("nft");
    nft("add table ip kube-proxy; add table ip6 kube-proxy; add table ip mine");
    let left = || {
        let rules = FAMILIES.map(|family| beside.save(family).expect("rules")).concat();
        let tables = nft("list tables");
        (rules.matches("-j KUBE-SVC-OLD").count(), tables.matches("kube-proxy").count())
    };
    assert_eq!(left(), (2, 2));

    // Without an API server no rule can be in force.
    let kubeconfig = unreachable_kubeconfig();
    let options = AgentOptions { kubeconfig, ..AgentOptions::default() };
    let agent = lab.start_chainsmith(node, &options).expect("an agent");
    poll::until("they are found", SOON, || {
        agent.log().matches("\"found leftover; removing it once our rules are in force\"").count() == 4
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(left(), (2, 2));

    let api = start_cluster(listen(), Some(lab.fabric().fd().expect("a namespace"))).expect("an API server");
    api.put_yaml(cluster::OBJECTS);
    wait_until_synced(node, &agent);
    poll::until("they are gone", SOON, || left() == (0, 0));
    for family in FAMILIES {
        assert!(beside.save(family).expect("rules").contains("-A PREROUTING -j MINE"), "others' rules stay");
        assert_eq!(node.tcp(OWN.cluster_ip(family)).pod(), "web-1");
    }
    assert!(nft("list tables").contains("table ip mine"));
    let log = agent.stop();
    assert_eq!(log.matches("] \"removed leftover\" ").count(), 4, "{log}");
}

/// With a read-only /proc/sys each failed sysctl is logged with key and value, and nothing else fails.
pub fn read_only_proc_sys_is_tolerated(backend: Backend) {
    let lab = cluster::build(backend).expect("a lab");
    let node = lab.node(1);
    node.namespace().sysctl("net/ipv4/conf/all/route_localnet", "0").expect("a sysctl");
    node.namespace().run(|| {
        let none = None::<&str>;
        mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none).expect("bind");
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, "/proc/sys", none, flags, none).expect("read-only");
    });
    let running =
        Running::in_lab(lab, &["--conntrack-tcp-timeout-close-wait=1234s"]).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let log = agent.log();
    for key in ["net/netfilter/nf_conntrack_tcp_timeout_close_wait\" value=1234", "route_localnet\" value=1"]
    {
        let line = log.lines().find(|line| line.contains(key) && line.starts_with('W'));
        assert!(line.is_some_and(|line| line.contains("Read-only file system")), "{key}: {log}");
    }
    assert!(log.contains("node ports do not answer on 127.0.0.1"), "{log}");
    for family in FAMILIES {
        running
            .lab
            .pod("client-1")
            .attempts(60, Protocol::Tcp, WEB.cluster_ip(family))
            .assert_spread(&WEB_PODS);
        assert_eq!(running.lab.outside().tcp(OWN.node_port(node, family)).pod(), "web-1");
    }
    let loopback = std::net::SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), OWN.node_port_number());
    assert_eq!(node.attempt(Protocol::Tcp, loopback, Duration::from_millis(500)).outcome, Outcome::Refused);
    let rules = node.netfilter().save(Family::V4).expect("rules");
    assert!(!rules.contains("block incoming localnet connections"), "{rules}");
    for agent in running.agents {
        agent.stop();
    }
}

/// The agent repairs each time chains of ours that another process changes again and again, and reports a conflicting
/// proxy once.
pub fn a_conflicting_proxy_is_reported(backend: Backend) {
    let running = Running::with_flags(backend, &["--audit-period=1s"]).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    for _ in 0..5 {
        node.netfilter().iptables(Family::V4, &["-t", "nat", "-F", "KUBE-MARK-MASQ"]).expect("it is there");
        poll::until("it is repaired", SOON, || {
            node.netfilter().save(Family::V4).expect("rules").contains("-A KUBE-MARK-MASQ ")
        });
    }
    let log = agent.log();
    let is_said =
        |line: &&str| line.starts_with('W') && line.contains("another kube-proxy or Chainsmith seems");
    assert_eq!(log.lines().filter(is_said).count(), 1, "{log}");
    for agent in running.agents {
        agent.stop();
    }
}

/// `--init-only` sets the sysctls that it can set, names the others, and writes no rule.
pub fn init_only_sets_sysctls_and_exits(backend: Backend) {
    let lab = Lab::plan(backend).node(&[]).build().expect("a lab");
    let node = lab.node(1);
    let run = |flags: &[&str]| {
        let args = ["run", "--init-only"].iter().chain(flags).copied().collect::<Vec<_>>();
        let output =
            node.namespace().try_command(env!("CARGO_BIN_EXE_chainsmith"), &args, "").expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let read = |key: &str| {
        let path = format!("/proc/sys/{key}");
        node.namespace().run(|| std::fs::read_to_string(path).expect("a key")).trim().to_owned()
    };
    // Only the first network namespace may set the size, and this is another.
    let (code, log) = run(&["--conntrack-max-per-core=0"]);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(read("net/netfilter/nf_conntrack_tcp_timeout_close_wait"), "3600");
    assert_eq!(read("net/netfilter/nf_conntrack_tcp_timeout_established"), "86400");
    assert_eq!(read("net/ipv4/conf/all/route_localnet"), "1");
    let (code, log) = run(&["--conntrack-max-per-core=70000"]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("net/netfilter/nf_conntrack_max = "), "{log}");
    for family in FAMILIES {
        assert!(!node.netfilter().save(family).expect("rules").contains("KUBE-"), "no rules");
    }
}
