//! What the agent logs at each verbosity, in which form, and the verbosity changed while it runs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use chainsmith::kernel::Backend;
use chainsmith::net::IpFamily;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::{in_namespace, saved};

/// How long something may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A running agent whose objects are files and whose log is a file.
struct LoggedAgent {
    folder: tempfile::TempDir,
    child: Child,
}

impl LoggedAgent {
    /// Starts it, called `name`, in a namespace with loopback, and waits for the rules of its Service.
    fn start(name: &str, arguments: &[&str]) -> LoggedAgent {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs").success());
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("manifests")).expect("a folder");
        let program = folder.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chainsmith"), &program).expect("a link");
        let log = File::create(folder.path().join("log")).expect("a file");
        put_endpoint(folder.path(), 0);
        let mut command = Command::new(program);
        command.args(["--hostname-override=n", "--iptables-backend=nft", "--manifests"]);
        command.arg(folder.path().join("manifests")).args(arguments).stderr(log);
        let agent = LoggedAgent { child: command.spawn().expect("it starts"), folder };
        agent.wait_for_endpoint(0);
        agent.poll("both families are in force", || agent.log().matches("rules in force").count() == 2);
        agent
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    fn wait_for_endpoint(&self, n: u8) {
        let address = format!("--to-destination 10.1.0.{n}:8080");
        self.poll("the endpoint is in force", || saved(IpFamily::V4, Backend::Nft).contains(&address));
    }

    fn poll(&self, what: &str, mut is_done: impl FnMut() -> bool) {
        let until = Instant::now() + SOON;
        while !is_done() {
            assert!(Instant::now() < until, "not in time: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; its log.
    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).expect("it runs");
        assert!(self.child.wait().expect("it ends").success());
        self.log()
    }
}

/// The one Service has the endpoint 10.1.0.`n` from now on.
fn put_endpoint(folder: &Path, n: u8) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\n\
         ports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.1.0.{n}]}}]\n"
    );
    let new: PathBuf = folder.join("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, folder.join("manifests/web.yaml")).expect("put in place");
}

/// Status and body of an answer of the metrics server.
fn ask(method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect("127.0.0.1:10249").expect("it listens");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    // A server that refuses a long body may close before it has read it.
    let _ = stream.write_all((head + body).as_bytes());
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status"), body.to_owned())
}

/// A message of each verbosity.
const KINDS: [(i32, &str); 5] = [
    (2, "synced"),
    (4, "object added or changed"),
    (5, "ran command"),
    (6, "served request"),
    (9, "restore input"),
];

#[test]
fn each_verbosity_shows_its_kind_of_lines_and_is_set_while_the_agent_runs() {
    in_namespace(|| {
        let agent = LoggedAgent::start("chainsmith", &["--profiling"]);
        for (n, verbosity) in (1..).zip([1, 2, 4, 5, 6, 9, 0]) {
            let (status, answer) = ask("PUT", "/debug/flags/v", &verbosity.to_string());
            let expected = format!("successfully set klog.logging.verbosity to {verbosity}\n");
            assert_eq!((status, answer), (200, expected));
            let n_before = agent.log().len();
            put_endpoint(agent.folder.path(), n);
            agent.wait_for_endpoint(n);
            assert_eq!(ask("GET", "/proxyMode", ""), (200, "iptables".to_owned()));
            let expected: Vec<&str> =
                KINDS.iter().filter(|(from, _)| *from <= verbosity).map(|(_, kind)| *kind).collect();
            let shown = || -> Vec<&str> {
                let log = agent.log();
                let is_shown = |kind: &&str| log[n_before..].contains(&format!("] \"{kind}\" "));
                KINDS.iter().map(|(_, kind)| *kind).filter(is_shown).collect()
            };
            agent.poll(&format!("lines of -v {verbosity}"), || shown() == expected);
        }
        // What is no number, not sent with PUT, or too long changes nothing.
        assert_eq!(ask("GET", "/debug/flags/v", ""), (406, "unsupported http method\n".to_owned()));
        assert_eq!(ask("POST", "/debug/flags/v", "9"), (406, "unsupported http method\n".to_owned()));
        for body in ["", "x", "9\n", "1e1", "99999999999"] {
            let (status, answer) = ask("PUT", "/debug/flags/v", body);
            assert_eq!(status, 400);
            assert!(answer.starts_with(&format!("failed set klog.logging.verbosity {body}: ")), "{answer}");
        }
        assert_eq!(ask("PUT", "/debug/flags/v", &"9".repeat(100_000)).0, 400);
        let n_before = agent.log().len();
        put_endpoint(agent.folder.path(), 100);
        agent.wait_for_endpoint(100);
        let log = agent.stop();
        assert!(!log[n_before..].contains("\"synced\""), "{log}");
    });
}

#[test]
fn the_verbosity_cannot_be_set_without_profiling() {
    in_namespace(|| {
        let agent = LoggedAgent::start("chainsmith", &["--v=2"]);
        assert_eq!(ask("PUT", "/debug/flags/v", "9").0, 404);
        assert!(!agent.stop().contains("restore input"));
    });
}

/// Whether `line` begins as klog's lines do: `I1124 19:28:11.845514   12345 file.rs:123] `.
fn has_klogs_header(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut next = || words.next().unwrap_or_default();
    let is_of_digits = |text: &str, n| text.len() == n && text.bytes().all(|b| b.is_ascii_digit());
    let (date, time, pid, caller) = (next(), next(), next(), next());
    let (file, number) = caller.split_once(':').unwrap_or_default();
    date.starts_with(['I', 'W', 'E'])
        && is_of_digits(&date[1..], 4)
        && time.split([':', '.']).map(str::len).eq([2, 2, 2, 6])
        && pid.parse::<u32>().is_ok()
        && line[21..].starts_with(&format!(" {pid:>7} {caller} "))
        && file.ends_with(".rs")
        && number.strip_suffix(']').is_some_and(|number| number.parse::<u32>().is_ok())
}

#[test]
fn called_kube_proxy_every_line_has_klogs_form() {
    in_namespace(|| {
        let log = LoggedAgent::start("kube-proxy", &["-v=9"]).stop();
        for line in log.lines() {
            assert!(has_klogs_header(line), "{line}");
        }
        for shown in [
            "] FLAG: --hostname-override=\"n\"\n",
            "] \"configuration\" settings=\"",
            "chainsmith.iptablesBackend=\\\"nft\\\" (",
            "] \"settings left at their defaults\" settings=\"",
            "] \"rules in force\" family=\"IPv4\" service_ports=1 endpoints=1 quarantined=0 elapsed_ms=",
            "] \"rules in force\" family=\"IPv6\" service_ports=0 endpoints=0 quarantined=0 elapsed_ms=",
            "] \"ran command\" command=\"iptables-nft-restore -w 5 --noflush --counters\" elapsed_ms=",
            "-j KUBE-MARK-MASQ\\n-A ",
            "] \"object added or changed\" kind=\"EndpointSlice\" object=\"default/web-1\"\n",
        ] {
            assert!(log.contains(shown), "{shown} is not in {log}");
        }
    });
}

#[test]
fn in_json_every_line_has_klogs_keys() {
    in_namespace(|| {
        let log = LoggedAgent::start("kube-proxy", &["-v=4", "--logging-format=json"]).stop();
        let mut n_of = [0; 5];
        for line in log.lines() {
            let object: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(
                object["ts"].as_f64().is_some_and(|ts| ts > 1.7e12) && object["msg"].is_string(),
                "{line}"
            );
            assert!(object["caller"].as_str().is_some_and(|caller| caller.contains(".rs:")), "{line}");
            n_of[object["v"].as_u64().expect("no line is an error") as usize] += 1;
        }
        assert!(n_of[0] > 0 && n_of[1] > 0 && n_of[2] > 0 && n_of[4] > 0, "{n_of:?}");
    });
}

#[test]
fn vmodule_shows_more_of_one_module() {
    in_namespace(|| {
        let log = LoggedAgent::start("chainsmith", &["--vmodule=kernel::programs::*=5"]).stop();
        assert!(log.contains("\"ran command\"") && !log.contains("\"restore input\""), "{log}");
        assert!(!log.contains("\"synced\""), "{log}");
    });
}
