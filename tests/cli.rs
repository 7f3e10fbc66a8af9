//! Tests of the real binary, as called by a user or a script.
#![allow(clippy::disallowed_methods, reason = "tests start the program and read files")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The result of a call.
struct CallResult {
    status: i32,
    stdout: String,
    stderr: String,
}

fn chainsmith(args: &[&str], stdin: &str) -> CallResult {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(args)
        .current_dir(testdata())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input has closed it.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    CallResult {
        status: output.status.code().expect("an exit status"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

/// Checks that the call fails with this exit status, prints nothing on stdout, and reports these texts.
fn check_failure(args: &[&str], stdin: &str, status: i32, expected: &[&str]) {
    let answer = chainsmith(args, stdin);
    assert_eq!((answer.status, answer.stdout.as_str()), (status, ""), "{args:?}: {}", answer.stderr);
    for text in expected {
        assert!(answer.stderr.contains(text), "{args:?}: {text:?} not in {}", answer.stderr);
    }
}

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.1.0.5]}]
";

fn node(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

const DISPATCH: &str = r#"-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "default/web cluster IP" -m tcp --dport 80 -j KUBE-SVC-LOLE4ISW44XBNF3G"#;

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn render_prints_the_recorded_rules_of_every_case() {
    let mut n_compared = 0;
    for entry in std::fs::read_dir(testdata().join("corpus")).expect("the corpus") {
        let case = entry.expect("an entry").path();
        if !case.join("objects.yaml").exists() || case.join("initial.v4.save").exists() {
            continue;
        }
        let file = |name: &str| case.join(name).to_str().expect("a path").to_owned();
        let (config, host, objects) = (file("config.yaml"), file("host.yaml"), file("objects.yaml"));
        // The recorded layout is kube-proxy's, also for large clusters.
        let arguments =
            ["render", "--layout", "classic", "--config", &config, "--host", &host, "-f", &objects];
        let both = chainsmith(&arguments, "");
        assert_eq!((both.status, both.stderr.as_str()), (0, ""), "{}", case.display());
        let (v4, v6) = both
            .stdout
            .strip_prefix("# ipv4\n")
            .expect("a heading")
            .split_once("# ipv6\n")
            .expect("two families");
        for (text, version) in [(v4, "v4"), (v6, "v6")] {
            let expected =
                std::fs::read_to_string(file(&format!("expected.{version}.save"))).expect("expected rules");
            assert_eq!(sorted(text), sorted(&expected), "{} {version}", case.display());
            n_compared += 1;
        }
    }
    assert_eq!(n_compared, 2 * (110 - 13 - 3));
}

#[test]
fn objects_come_from_files_folders_and_stdin_in_any_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let (service, slice) = WEB.split_once("---").expect("two documents");
    std::fs::write(folder.path().join("b.yml"), service).expect("written");
    std::fs::write(folder.path().join("a.yaml"), slice).expect("written");
    std::fs::write(folder.path().join("readme.txt"), "{").expect("written");
    let json = |yaml: &str| serde_saphyr::from_str::<serde_json::Value>(yaml).expect("YAML");
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [json(slice), json(service)]});
    let list_file = folder.path().join("list.txt");
    std::fs::write(&list_file, list.to_string()).expect("written");

    let expected = chainsmith(&["render", "--node", "n", "-f", "-"], WEB);
    assert!(expected.stdout.lines().any(|line| line == DISPATCH), "{}", expected.stdout);
    let path = |path: &Path| path.to_str().expect("a path").to_owned();
    for args in [
        vec![path(folder.path())],
        vec![path(&folder.path().join("a.yaml")), path(&folder.path().join("b.yml"))],
        vec![path(&list_file)],
    ] {
        let mut all = vec!["render", "--node", "n", "-f"];
        all.extend(args.iter().map(String::as_str));
        let answer = chainsmith(&all, "");
        assert_eq!((answer.status, answer.stderr.as_str()), (0, ""), "{args:?}");
        assert_eq!(answer.stdout, expected.stdout, "{args:?}");
    }
}

#[test]
fn the_node_is_the_named_one_or_the_only_one() {
    let args = ["render", "-f", "-", "--family", "ipv4"];
    check_failure(&args, WEB, 2, &["there is no Node", "--node"]);
    check_failure(&args, &format!("{WEB}{}{}", node("b"), node("a")), 2, &["a, b", "--node"]);
    assert_eq!(chainsmith(&args, &format!("{WEB}{}", node("only"))).status, 0);
    let named = [&args[..], &["--hostname-override", "b"]].concat();
    assert_eq!(chainsmith(&named, &format!("{WEB}{}{}", node("b"), node("a"))).status, 0);
}

#[test]
fn node_port_addresses_come_from_the_node_or_the_host_file() {
    let status = "status: {addresses: [{type: InternalIP, address: 192.0.2.7}]}\n";
    let objects = format!("{WEB}{}{status}", node("n"));
    let args = ["render", "-f", "-", "--family", "ipv4", "--nodeport-addresses", "192.0.2.0/24"];
    let answer = chainsmith(&args, &objects);
    assert!(answer.stdout.contains("-A KUBE-SERVICES -d 192.0.2.7/32 -m comment"), "{}", answer.stdout);
    let folder = tempfile::tempdir().expect("a folder");
    let host = folder.path().join("host.yaml");
    let with_host = |text: &str| {
        std::fs::write(&host, text).expect("written");
        chainsmith(&[&args[..], &["--host", host.to_str().expect("a path")]].concat(), &objects)
    };
    let answer = with_host("interfaces: {eth0: [192.0.2.8/24]}\nkernel: {nfacct: false}\n");
    assert!(
        answer.stdout.contains("-d 192.0.2.8/32") && !answer.stdout.contains("nfacct"),
        "{}",
        answer.stdout
    );
    let answer = with_host("interface: {}\n");
    assert_eq!(answer.status, 2);
    assert!(answer.stderr.contains("interface"), "{}", answer.stderr);
}

#[test]
fn a_malformed_object_is_skipped_and_reported() {
    let bad = "---\napiVersion: v1\nkind: Service\nmetadata: {name: worse}\nspec: {clusterIP: 10.96.0.300, ports: [{port: 1}]}\n";
    let answer =
        chainsmith(&["render", "-f", "-", "--node", "n", "--family", "ipv4"], &format!("{WEB}{bad}"));
    assert_eq!(answer.status, 1);
    assert!(answer.stdout.lines().any(|line| line == DISPATCH), "{}", answer.stdout);
    for part in ["default/worse", "spec.clusterIP", "10.96.0.300"] {
        assert!(answer.stderr.contains(part), "{}", answer.stderr);
    }
    assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
}

#[test]
fn restore_form_is_for_one_family() {
    check_failure(&["render", "-f", "-", "--node", "n", "--format", "restore"], WEB, 2, &["--family"]);
    let answer =
        chainsmith(&["render", "-f", "-", "--node", "n", "--format", "restore", "--family", "ipv4"], WEB);
    assert_eq!(answer.status, 0);
    assert!(answer.stdout.contains(DISPATCH) && !answer.stdout.contains(":INPUT "), "{}", answer.stdout);
}

#[test]
fn usage_errors_are_distinguished() {
    check_failure(&["render"], "", 2, &["-f"]);
    check_failure(&["render", "-f", "nowhere.yaml", "--node", "n"], "", 2, &["nowhere.yaml"]);
    check_failure(&["render", "-f", "-", "--node", "n", "--family", "ipv5"], WEB, 2, &["ipv5"]);
    check_failure(&["render", "-f", "-", "--config", "nowhere"], WEB, 2, &["nowhere"]);
    check_failure(&["nonsense"], "", 2, &["nonsense"]);
    check_failure(&["run", "--no-such-flag"], "", 1, &["--no-such-flag"]);
    check_failure(&["--no-such-flag"], "", 1, &["--no-such-flag"]);
    check_failure(&["run", "--config", "nowhere"], "", 1, &["nowhere"]);
}

#[test]
fn all_errors_of_a_configuration_are_reported_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                clusterCIDR: 10.0.0.0/99\nnodePortAddresses: [x]\niptables: {masqueradeBit: 77}\n";
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("a path");
    let parts = ["10.0.0.0/99", "nodePortAddresses", "77"];
    check_failure(&["render", "-f", "-", "--node", "n", "--config", path], WEB, 2, &parts);
    check_failure(&["run", "--config", path], "", 1, &parts);
}

#[test]
fn a_reader_of_only_the_beginning_causes_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(["render", "-f", "corpus/mixed-5/objects.yaml", "--node", "node-1"])
        .current_dir(testdata())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn render_prints_the_example_of_the_readme() {
    let readme = std::fs::read_to_string(testdata().join("../README.md")).expect("the README");
    let mut lines = readme.lines().filter_map(|line| line.strip_prefix("    "));
    let command = lines.find_map(|line| line.strip_prefix("$ chainsmith ")).expect("an example");
    let (args, _) =
        command.split_once(" | grep -e '-A KUBE-S'").expect("an example that shows the rules of Services");
    let args: Vec<String> = args.split(' ').map(|word| word.replace("testdata/", "")).collect();
    let answer = chainsmith(&args.iter().map(String::as_str).collect::<Vec<_>>(), "");
    assert_eq!((answer.status, answer.stderr.as_str()), (0, ""));
    let printed: Vec<&str> = answer.stdout.lines().filter(|line| line.contains("-A KUBE-S")).collect();
    let shown: Vec<&str> = lines.take_while(|line| line.starts_with("-A ")).collect();
    assert!(shown.len() > 5, "{shown:?}");
    assert_eq!(printed, shown);
}

#[test]
fn the_release_is_printed_as_scripts_expect_it() {
    let answer = chainsmith(&["run", "--version"], "");
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    assert_eq!(answer.stdout.split_whitespace().nth(1), Some("v1.36.2"), "{}", answer.stdout);
    let answer = chainsmith(&["--version=raw", "--config=/none"], "");
    assert_eq!(
        (answer.status, answer.stdout.contains("GitVersion:\"v1.36.2\"")),
        (0, true),
        "{}",
        answer.stdout
    );
    check_failure(
        &["run", "--version=1.36"],
        "",
        1,
        &["--version: \"1.36\": must be a boolean, raw or vX.Y.Z"],
    );
    let answer = chainsmith(&["--version"], "");
    assert!(answer.stdout.starts_with("chainsmith "), "{}", answer.stdout);
}

#[test]
fn the_effective_configuration_is_written_and_reads_back_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (first, second) =
        (format!("--write-config-to={}", path("a")), format!("--write-config-to={}", path("b")));
    let answer = chainsmith(&["run", &first, "--iptables-masquerade-bit=3", "--oom-score-adj=-5"], "");
    assert_eq!(answer.status, 0, "{}", answer.stderr);
    let config = format!("--config={}", path("a"));
    assert_eq!(chainsmith(&["run", &config, &second], "").status, 0);
    let read = |name: &str| std::fs::read_to_string(path(name)).expect("a written file");
    assert_eq!(read("a"), read("b"));
    assert!(
        read("a").contains("masqueradeBit: 3\n") && read("a").contains("oomScoreAdj: -5\n"),
        "{}",
        read("a")
    );
    check_failure(
        &["run", "--write-config-to=/none/x"],
        "",
        1,
        &["cannot write the configuration to /none/x"],
    );
    // An invalid configuration is not written.
    let third = format!("--write-config-to={}", path("c"));
    check_failure(&["run", &third, "--iptables-masquerade-bit=32"], "", 1, &["--iptables-masquerade-bit"]);
    assert!(!Path::new(&path("c")).exists());
}

#[test]
fn an_error_names_an_unreadable_configuration() {
    check_failure(&["run", "--config=/none"], "", 1, &["cannot read the configuration /none: No such file"]);
    let folder = testdata().to_string_lossy().into_owned();
    check_failure(&["run", &format!("--config={folder}")], "", 1, &["it is a folder"]);
}

#[test]
fn legal_objects_without_rules_are_notes_and_mistakes_are_problems() {
    let with = |more: &str| format!("{WEB}{}---\n{more}\n", node("n"));
    let render = |more: &str, verbose: bool| {
        let mut args = vec!["render", "-f", "-", "--family", "ipv4"];
        args.extend(verbose.then_some("-v"));
        let answer = chainsmith(&args, &with(more));
        assert!(answer.stdout.contains(DISPATCH), "{more}: {}", answer.stderr);
        (answer.status, answer.stderr)
    };
    let slice = |rest: &str| {
        format!("{{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, metadata: {{name: x, {rest}}}")
    };
    let label = "labels: {kubernetes.io/service-name: web}}";
    for (legal, note) in [
        (
            slice(&format!("{label}, addressType: FQDN")),
            r#"EndpointSlice default/x: addressType: "FQDN" is not a family"#,
        ),
        (
            slice("labels: {}}, addressType: IPv4"),
            "default/x: metadata.labels[kubernetes.io/service-name] is not the name",
        ),
        (
            slice(&format!("{label}, addressType: IPv4, ports: [{{name: a}}]")),
            "default/x: ports[0].port is absent",
        ),
        (
            "{kind: Service, metadata: {name: x}, spec: {clusterIP: None}}".to_owned(),
            "Service default/x is headless",
        ),
        (
            "{kind: Service, metadata: {name: x}, spec: {type: ExternalName}}".to_owned(),
            "Service default/x is of type ExternalName",
        ),
        (
            "{kind: Service, metadata: {name: x}, spec: {ports: [{port: 1}]}}".to_owned(),
            "Service default/x has no cluster IP",
        ),
    ] {
        assert_eq!(render(&legal, false), (0, String::new()), "{legal}");
        let (status, stderr) = render(&legal, true);
        assert!(
            status == 0 && stderr.contains(note) && stderr.starts_with("chainsmith: note: "),
            "{legal}: {stderr}"
        );
    }
    for (mistake, problem) in [
        (
            "{kind: service, apiVersion: v1, metadata: {name: x}}",
            r#"stdin:18: default/x: kind "service" is unknown; did you mean "Service"?"#,
        ),
        (
            "{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1beta1, metadata: {name: x}}",
            r#"EndpointSlice of apiVersion "discovery.k8s.io/v1beta1" is not read, only of "discovery.k8s.io/v1""#,
        ),
    ] {
        let (status, stderr) = render(mistake, false);
        assert!(status == 1 && stderr.contains(problem), "{mistake}: {stderr}");
    }
    assert_eq!(
        render("{kind: Deployment, apiVersion: apps/v1, metadata: {name: x}}", true),
        (0, String::new())
    );
}

#[test]
fn a_node_that_is_none_of_the_given_ones_is_named() {
    let two = format!("{WEB}{}{}", node("node-1"), node("worker"));
    let args = |name| ["render", "-f", "-", "--node", name];
    check_failure(
        &args("node-2"),
        &two,
        2,
        &[r#"--node: there is no Node "node-2"; did you mean "node-1"?"#],
    );
    check_failure(
        &args("other"),
        &two,
        2,
        &[r#"--node: there is no Node "other"; the Nodes are node-1, worker"#],
    );
    let named = chainsmith(&["render", "-f", "-", "--node", "other"], WEB);
    assert_eq!((named.status, named.stderr.as_str()), (0, ""), "without Nodes a name is enough");
}

#[test]
fn a_file_that_is_not_regular_is_reported_and_equal_problems_are_one_line() {
    let folder = tempfile::TempDir::new().unwrap();
    let folder_name = folder.path().to_str().unwrap();
    let fifo = folder.path().join("0\n\u{1b}[2J.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let bad: String = (0..20_000).map(|i| format!(", {{addresses: [x{i}]}}")).collect();
    let text = WEB.replace("[{addresses: [10.1.0.5]}]", &format!("[{{addresses: [10.1.0.5]}}{bad}]"));
    std::fs::write(folder.path().join("a.yaml"), text).unwrap();
    let answer = chainsmith(&["render", "--node", "node-1", "-f", folder_name], "");
    assert_eq!(answer.status, 1);
    assert!(answer.stdout.contains("10.1.0.5:8080"));
    let lines: Vec<&str> = answer.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", answer.stderr);
    assert!(lines[0].ends_with("/0\\n\\u{1b}[2J.yaml: is not a regular file; ignored"), "{}", lines[0]);
    assert!(lines[1].ends_with("(and 19999 more: \"x1\", \"x2\", ...)"), "{}", lines[1]);
}
