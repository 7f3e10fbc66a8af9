//! `--cluster`: commands that read their objects from an API server, tested with the program and a simulated server.
#![allow(clippy::disallowed_methods, reason = "tests start the program and write files")]

#[path = "../e2e/apiserver.rs"]
mod apiserver;

use std::path::Path;
use std::process::{Command, Stdio};

use apiserver::{ApiServer, Fault};
use serde_json::json;

/// The result of a call.
#[derive(Debug)]
struct Answer {
    status: i32,
    stdout: String,
    stderr: String,
}

const OBJECTS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {type: ClusterIP, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], ports: [{port: 5432, protocol: TCP}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}, addressType: IPv4, ports: [{name: '', port: 5432, protocol: TCP}], endpoints: [{addresses: [10.1.0.5], nodeName: node-1}]}
---
{apiVersion: v1, kind: Service, metadata: {name: none, namespace: shop}, spec: {clusterIP: None, ports: [{port: 1, protocol: TCP}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
";

const SECOND_NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: node-2}, spec: {podCIDR: 10.2.0.0/24}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}";

/// A server with objects, and a home folder with its kubeconfig.
struct Lab {
    server: ApiServer,
    home: tempfile::TempDir,
}

impl Lab {
    fn new(objects: &str) -> Lab {
        let server = ApiServer::start(([127, 0, 0, 1], 0).into(), None).expect("loopback has a free port");
        server.put_yaml(objects);
        let home = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(home.path().join(".kube")).expect("a folder");
        std::fs::write(home.path().join(".kube/config"), server.kubeconfig()).expect("written");
        Lab { server, home }
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("HOME", self.home.path()).stdin(Stdio::null());
        for variable in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "http_proxy", "COLUMNS"] {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Answer {
        run(self.command(Path::new(env!("CARGO_BIN_EXE_chainsmith")), args))
    }

    /// Checks that the call fails with `status` and that stderr holds each text of `expected`.
    fn check_failure(&self, args: &[&str], status: i32, expected: &[&str]) {
        let answer = self.run(args);
        assert_eq!((answer.status, answer.stdout.as_str()), (status, ""), "{args:?}: {answer:?}");
        expected.iter().for_each(|text| {
            assert!(answer.stderr.contains(text), "{args:?}: {text:?} not in {}", answer.stderr)
        });
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
    }
}

fn run(mut command: Command) -> Answer {
    let output = command.output().expect("the program ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Answer {
        status: output.status.code().expect("an exit status"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

const RENDER: [&str; 4] = ["render", "--cluster", "--family", "ipv4"];

#[test]
fn the_rules_of_a_cluster_are_those_of_its_objects_in_a_file() {
    let lab = Lab::new(OBJECTS);
    let file = lab.home.path().join("objects.yaml");
    std::fs::write(&file, OBJECTS).expect("written");
    let of_file = lab.run(&["render", "--family", "ipv4", "-f", file.to_str().unwrap()]);
    let of_cluster = lab.run(&RENDER);
    assert_eq!((of_cluster.status, of_cluster.stderr.as_str()), (0, ""));
    assert_eq!(of_cluster.stdout, of_file.stdout);
    assert!(of_cluster.stdout.contains("shop/db cluster IP"), "{}", of_cluster.stdout);
    let verbose = lab.run(&[&RENDER[..], &["-v"]].concat());
    assert_eq!(
        verbose.stderr,
        "chainsmith: note: Service shop/none is headless (clusterIP: None): DNS answers with the addresses of its endpoints\n"
    );
    let counts = lab.server.counters();
    let watches: u64 = counts.resources.values().map(|counts| counts.watches).sum();
    assert_eq!(watches, 0, "everything is read once");
}

#[test]
fn long_lists_come_in_pages_of_one_state() {
    let lab = Lab::new(OBJECTS);
    for i in 0..1_200 {
        lab.server.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{i}"), "namespace": "many"},
            "spec": {"type": "ClusterIP", "clusterIP": format!("10.97.{}.{}", i / 250, i % 250 + 1), "ports": [{"port": 80, "protocol": "TCP"}]},
        }));
    }
    let answer = lab.run(&RENDER);
    assert_eq!((answer.status, answer.stderr.as_str()), (0, ""));
    let n_rejected =
        answer.stdout.lines().filter(|line| line.contains("many/s") && line.contains("REJECT")).count();
    assert_eq!(n_rejected, 1_200);
    assert_eq!(lab.server.counters().resources["services"].pages, 3);
}

#[test]
fn only_the_named_node_is_read_and_a_wrong_name_has_a_near_match() {
    let lab = Lab::new(&format!("{OBJECTS}---\n{SECOND_NODE}\n"));
    lab.check_failure(&RENDER, 2, &["there are several Nodes: node-1, node-2; name one with --node"]);
    let n_lists = || lab.server.counters().resources["nodes"].lists;
    let before = n_lists();
    let answer = lab.run(&[&RENDER[..], &["--node", "node-2"]].concat());
    assert_eq!((answer.status, answer.stderr.as_str(), n_lists()), (0, "", before));
    lab.check_failure(
        &[&RENDER[..], &["--node", "nod-2"]].concat(),
        2,
        &[r#"--node: there is no Node "nod-2"; did you mean "node-2"?"#],
    );
}

#[test]
fn errors_name_the_server_the_kubeconfig_and_the_missing_right() {
    let lab = Lab::new(OBJECTS);
    let config = lab.home.path().join(".kube/config");
    let cluster = format!(
        "of the cluster at http://{} (context \"test\" of {}): ",
        lab.server.address(),
        config.display()
    );
    lab.server.set_fault_on("endpointslices", Some(Fault::Status(403)));
    let right = "needs the right to list endpointslices.discovery.k8s.io of all namespaces";
    lab.check_failure(
        &RENDER,
        2,
        &["cannot read endpointslices ", &cluster, "endpointslices.discovery.k8s.io is forbidden", right],
    );
    lab.server.set_fault(Some(Fault::Status(401)));
    lab.check_failure(&RENDER, 2, &[&cluster, "the API server rejects the credentials: Unauthorized"]);
    lab.server.set_fault(Some(Fault::Away));
    lab.check_failure(&RENDER, 2, &[&cluster]);
    lab.server.set_fault(Some(Fault::Garbage(b"<html>".to_vec())));
    lab.check_failure(&RENDER, 2, &[&cluster, "the list is not readable"]);
    lab.server.set_fault(Some(Fault::HalfObject));
    lab.check_failure(&RENDER, 2, &[&cluster]);
}

#[test]
fn the_kubeconfig_is_kubectls() {
    let lab = Lab::new(OBJECTS);
    let other = Lab::new(SECOND_NODE);
    let file = |name: &str, text: String| {
        let path = lab.home.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let second = file("second", other.server.kubeconfig().replace("test", "second"));
    let is_second = |answer: Answer| {
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""));
        !answer.stdout.contains("shop/db")
    };
    assert!(!is_second(lab.run(&RENDER)), "~/.kube/config");
    assert!(is_second(lab.run(&["render", "--kubeconfig", &second])), "--kubeconfig implies --cluster");
    let with_variable = |value: &str, args: &[&str]| {
        let mut command = lab.command(Path::new(env!("CARGO_BIN_EXE_chainsmith")), args);
        command.env("KUBECONFIG", value);
        run(command)
    };
    assert!(is_second(with_variable(&second, &RENDER)), "KUBECONFIG");
    // Files are merged, missing ones are skipped, and the first one has the current context.
    let home = lab.home.path().join(".kube/config");
    let both = format!("/nonexistent::{}:{second}", home.display());
    assert!(!is_second(with_variable(&both, &RENDER)));
    assert!(is_second(with_variable(&both, &["render", "--context", "second"])));
    let answer = with_variable(&both, &["render", "--context", "secnod"]);
    assert!(answer.status == 2 && answer.stderr.contains("did you mean \"second\"?"), "{answer:?}");
    let answer = with_variable("/nonexistent", &RENDER);
    let expected =
        "no kubeconfig found (/nonexistent), and this is not a pod; name one with --kubeconfig or KUBECONFIG";
    assert!(answer.status == 2 && answer.stderr.contains(expected), "{answer:?}");
    // In a pod without a service account.
    let mut command = lab.command(Path::new(env!("CARGO_BIN_EXE_chainsmith")), &RENDER);
    command
        .env("HOME", "/nonexistent")
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .env("KUBERNETES_SERVICE_PORT", "443");
    let answer = run(command);
    assert!(answer.status == 2 && answer.stderr.contains("reading the pod's service account"), "{answer:?}");
}

#[test]
fn kube_proxys_configuration_is_read_from_the_cluster_on_request() {
    let lab = Lab::new(OBJECTS);
    let with_config = [&RENDER[..], &["--config", "cluster"]].concat();
    lab.check_failure(
        &with_config,
        2,
        &["--config: cannot read configmap kube-system/kube-proxy of the cluster at "],
    );
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\niptables: {masqueradeAll: true}\n";
    let map = |name: &str, data: serde_json::Value| {
        lab.server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kube-system"}, "data": data}));
    };
    map("kube-proxy", json!({"config.conf": config}));
    let is_masqueraded = |answer: Answer| {
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""));
        answer.stdout.contains("-d 10.96.0.10/32 -p tcp -m comment --comment \"shop/db cluster IP\" -m tcp --dport 5432 -j KUBE-MARK-MASQ")
    };
    assert!(is_masqueraded(lab.run(&with_config)));
    assert!(!is_masqueraded(lab.run(&RENDER)), "only on request");
    map("empty", json!({}));
    let missing = [&RENDER[..], &["--config", "cluster:kube-system/empty"]].concat();
    lab.check_failure(&missing, 2, &["--config: ConfigMap kube-system/empty has no key config.conf"]);
}

#[test]
fn as_a_kubectl_plugin_names_are_asked_of_the_cluster() {
    let lab = Lab::new(OBJECTS);
    let plugin = lab.home.path().join("kubectl-chainsmith");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chainsmith"), &plugin).expect("a link");
    let call = |args: &[&str]| run(lab.command(&plugin, args));
    let full = call(&["explain", "shop/db:5432"]);
    assert_eq!((full.status, full.stderr.as_str()), (0, ""));
    assert!(full.stdout.contains("10.1.0.5:5432"), "{}", full.stdout);
    assert_eq!(call(&["explain", "-n", "shop", "db:5432"]).stdout, full.stdout, "-n, as kubectl");
    let config = lab.server.kubeconfig().replace("user: test}", "user: test, namespace: shop}");
    std::fs::write(lab.home.path().join(".kube/config"), config).expect("written");
    assert_eq!(call(&["explain", "svc/db:5432"]).stdout, full.stdout, "the context's namespace");
    // Another source is no question to the cluster.
    let file = lab.home.path().join("objects.yaml");
    std::fs::write(&file, SECOND_NODE).expect("written");
    let of_file = call(&["render", "-f", file.to_str().unwrap(), "--family", "ipv4"]);
    assert!(of_file.status == 0 && !of_file.stdout.contains("shop/db"), "{of_file:?}");
    let help = call(&[]);
    assert!(help.status == 0 && help.stdout.contains("Usage: kubectl chainsmith <COMMAND>"), "{help:?}");
    let usage = call(&["explain"]);
    assert!(usage.status == 2 && usage.stderr.contains("kubectl chainsmith explain"), "{usage:?}");
}
