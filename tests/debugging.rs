//! docs/debugging.md: every command in a `console` block is run as written, and its output compared. README.md, "Look
//! inside": the same with shortened outputs.
//! `UPDATE_GOLDEN=1` writes the outputs into the page. Needs root and namespaces.
//!
//! The prompt says where: `$` on a workstation, in testdata/debugging, with a kubeconfig of a simulated API server;
//! `node-1#` in the network and mount namespace of a node on which an agent runs.
#![allow(clippy::disallowed_methods, reason = "tests start the program and read files")]

#[path = "../e2e/apiserver.rs"]
mod apiserver;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use apiserver::ApiServer;

/// How long the agent may take to put its rules in force, on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: node-1
conntrack: {maxPerCore: 0}
chainsmith: {manifests: [/run/cluster], iptablesBackend: nft, connectionMetrics: endpoint}
";

/// Makes a node of fresh namespaces, and becomes its agent. Packets to other machines end on its loopback device.
const NODE: &str = "set -e
for at in /run /var/lib; do mount -t tmpfs tmpfs $at; done
mkdir /run/cluster /var/lib/kube-proxy
cp shop.yaml /run/cluster
cp \"$1/config.conf\" /var/lib/kube-proxy
ip link set lo up
echo 1 | tee /proc/sys/net/ipv4/ip_forward >/proc/sys/net/ipv6/conf/all/forwarding
ip address add 192.0.2.1/32 dev lo
ip route add 10.0.0.0/8 dev lo src 192.0.2.1
exec chainsmith run --config /var/lib/kube-proxy/config.conf";

/// `kubectl`, as far as the page uses it: plugins, and a command in the agent's pod.
const KUBECTL: &str = r#"#!/bin/sh
case "$*" in
"chainsmith "*) shift; exec kubectl-chainsmith "$@" ;;
"-n kube-system exec ds/kube-proxy -- "*) shift 5; exec on-node "$@" ;;
esac
echo "no such command: kubectl $*" >&2; exit 1
"#;

/// A workstation, a cluster and a node.
struct Lab {
    home: tempfile::TempDir,
    agent: Child,
    _server: ApiServer,
}

impl Lab {
    fn start() -> Lab {
        let home = tempfile::tempdir().expect("a folder");
        let server = ApiServer::start(([127, 0, 0, 1], 0).into(), None).expect("loopback has a free port");
        let objects = fs::read_to_string(example().join("shop.yaml")).expect("objects");
        server.put_yaml(&objects);
        let folder = |name: &str| fs::create_dir(home.path().join(name)).expect("a folder");
        ["bin", ".kube"].into_iter().for_each(folder);
        fs::write(home.path().join(".kube/config"), server.kubeconfig()).expect("written");
        fs::write(home.path().join("config.conf"), CONFIG).expect("written");
        for name in ["chainsmith", "kubectl-chainsmith"] {
            let link = home.path().join("bin").join(name);
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chainsmith"), link).expect("a link");
        }
        let log = fs::File::create(home.path().join("agent.log")).expect("a file");
        let mut agent = command(home.path(), "unshare");
        let script = ["-nm", "sh", "-c", NODE, "sh"];
        agent.args(script).arg(home.path()).stdout(Stdio::null()).stderr(log);
        let lab = Lab { agent: agent.spawn().expect("unshare starts"), _server: server, home };
        lab.write_program("kubectl", KUBECTL);
        let enter = format!("#!/bin/sh\nexec nsenter -t {} -n -m --wd=. \"$@\"\n", lab.agent.id());
        lab.write_program("on-node", &enter);
        lab.wait_for_rules();
        lab
    }

    fn write_program(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.home.path().join("bin").join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Waits until the agent has synced and found its rules as it wrote them.
    fn wait_for_rules(&self) {
        let end = Instant::now() + SOON;
        loop {
            let status = self.run("on-node chainsmith status");
            if status.0.matches("as the agent left them").count() == 2
                && status.0.matches("syncs of 2").count() == 2
            {
                return;
            }
            let log = || fs::read_to_string(self.home.path().join("agent.log")).unwrap_or_default();
            assert!(Instant::now() < end, "{status:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A client on the node that tries to connect to shop/db `n` times.
    fn connect(&self, n: usize) {
        for _ in 0..n {
            self.run("on-node timeout 0.3 bash -c 'echo >/dev/tcp/10.96.0.20/5432'");
        }
    }

    /// What a shell prints on stdout and stderr for `line`.
    fn run(&self, line: &str) -> (String, String) {
        let output = command(self.home.path(), "sh").args(["-c", line]).output().expect("a shell");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (text(output.stdout), text(output.stderr))
    }

    /// What the command of a line with a prompt prints.
    fn output(&self, line: &str) -> String {
        let command = match line.split_once(' ').expect("a prompt") {
            ("$", command) => command.to_owned(),
            ("node-1#", command) => format!("on-node {command}"),
            _ => panic!("no prompt: {line:?}"),
        };
        let (stdout, stderr) = self.run(&command);
        assert_eq!(stderr, "", "{line}");
        stdout
    }

    /// The page with the outputs of its commands as they are now, and the number of commands.
    fn with_outputs(&self, page: &str) -> (String, usize) {
        const BEGIN: &str = "```console\n";
        let (mut text, mut n_commands, mut rest) = (String::new(), 0, page);
        while let Some(at) = rest.find(BEGIN) {
            let (before, block) = rest.split_at(at + BEGIN.len());
            let (block, after) = block.split_once("```\n").expect("a block ends");
            let (command, shown) = block.split_once('\n').expect("a block has a command");
            let mut output = self.output(command);
            if without_times(&output) == without_times(shown) {
                output = shown.to_owned();
            }
            text.push_str(&format!("{before}{command}\n{output}```\n"));
            (n_commands, rest) = (n_commands + 1, after);
        }
        (text + rest, n_commands)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/debugging")
}

/// A program on the workstation.
fn command(home: &Path, program: &str) -> Command {
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new(program);
    command.current_dir(example()).stdin(Stdio::null()).env("HOME", home);
    command.env("PATH", format!("{}:{path}", home.join("bin").display()));
    for variable in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "HTTP_PROXY", "http_proxy", "COLUMNS"] {
        command.env_remove(variable);
    }
    command
}

/// `text` with `#` in place of each point in time and each duration (a number before a unit of time), and without
/// the spaces that align columns.
fn without_times(text: &str) -> String {
    let is_number = |word: &str| word.parse::<f64>().is_ok();
    let is_unit = |word: &str| matches!(word.trim_end_matches([',', ';']), "us" | "ms" | "s" | "min" | "h");
    let is_time = |word: &str| word.starts_with("20") && word.contains('T') && word.contains("Z");
    let without = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut result = Vec::new();
        for (n, word) in words.iter().enumerate() {
            let is_volatile =
                is_time(word) || is_number(word) && words.get(n + 1).is_some_and(|next| is_unit(next));
            let follows = n > 0 && is_unit(word) && is_number(words[n - 1]);
            match (is_volatile, follows) {
                (true, _) => result.push("#"),
                (_, true) => {}
                _ => result.push(word),
            }
        }
        result.join(" ")
    };
    text.lines().map(without).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_command_of_the_page_answers_as_shown() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/debugging.md");
    let lab = Lab::start();
    lab.connect(3);
    let page = fs::read_to_string(&path).expect("the page");
    let (now, n_commands) = lab.with_outputs(&page);
    assert!(n_commands >= 13, "{n_commands} commands");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &now).expect("written");
    }
    let page = fs::read_to_string(&path).expect("the page");
    for (shown, is) in page.lines().zip(now.lines()) {
        assert_eq!(shown, is);
    }
    assert_eq!(page, now);
}

/// In the README, outputs are shortened: `...` stands for any lines.
#[test]
fn the_readme_shows_lines_of_real_outputs() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("the page");
    let (_, section) = page.split_once("\n## Look inside\n").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("its end");
    let lab = Lab::start();
    lab.connect(3);
    let (mut n_commands, mut output) = (0, Vec::new());
    let mut is_exact = false;
    for line in section.lines().filter_map(|line| line.strip_prefix("    ")) {
        if line.starts_with("$ ") || line.starts_with("# ") {
            let text = lab.output(&line.replacen("# ", "node-1# ", usize::from(line.starts_with('#'))));
            output = text.lines().map(str::to_owned).collect();
            (n_commands, is_exact) = (n_commands + 1, true);
        } else if line == "..." {
            is_exact = false;
        } else {
            let at = output.iter().position(|real| real == line);
            let at = at.unwrap_or_else(|| panic!("not shown: {line:?}\n{output:#?}"));
            assert!(at == 0 || !is_exact, "lines before {line:?} are left out: {output:#?}");
            output.drain(..=at);
            is_exact = true;
        }
    }
    assert_eq!(n_commands, 6);
}

#[test]
fn only_times_and_alignment_are_not_compared() {
    let shown = "up 4.0 s; 2026-11-25T07:51:13Z\n  3 s  14 ms  -  28";
    assert_eq!(without_times(shown), "up # #\n# # - 28");
    assert_ne!(without_times("3 rules, 2 s"), without_times("4 rules, 2 s"));
}
