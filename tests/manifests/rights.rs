//! Compares the agent's requests to an API server with the permissions in the ClusterRole of
//! least-privilege.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use k8s_openapi::api::rbac::v1::ClusterRole;
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use super::{documents, read};

/// API group, resource, verb.
type Right = (String, String, String);

/// The ClusterRole `system:node-proxier`, which every API server creates. Source: Kubernetes 1.36.
const NODE_PROXIER: [(&[&str], &[&str], &[&str]); 5] = [
    (&[""], &["services", "endpoints"], &["list", "watch"]),
    (&[""], &["nodes"], &["get", "list", "watch"]),
    (&["", "events.k8s.io"], &["events"], &["create", "update", "patch"]),
    (&["networking.k8s.io"], &["servicecidrs"], &["list", "watch"]),
    (&["discovery.k8s.io"], &["endpointslices"], &["list", "watch"]),
];

fn product<S: AsRef<str>>(groups: &[S], resources: &[S], verbs: &[S]) -> BTreeSet<Right> {
    let text = |part: &S| part.as_ref().to_owned();
    let mut rights = BTreeSet::new();
    for group in groups {
        for resource in resources {
            rights.extend(verbs.iter().map(|verb| (text(group), text(resource), text(verb))));
        }
    }
    rights
}

/// The permissions in the ClusterRole of least-privilege.
fn granted() -> BTreeSet<Right> {
    let role = documents(&read("manifests/overlays/least-privilege/rbac.yaml")).remove(0);
    let role: ClusterRole = serde_json::from_value(role).expect("a ClusterRole");
    let rules = role.rules.expect("rules");
    let list = |texts: &Option<Vec<String>>| texts.clone().unwrap_or_default();
    rules
        .iter()
        .flat_map(|rule| product(&list(&rule.api_groups), &list(&rule.resources), &rule.verbs))
        .collect()
}

/// An API server with only a Node that enforces the ClusterRole.
#[derive(Debug, Default)]
struct Server {
    granted: BTreeSet<Right>,
    asked: Mutex<BTreeSet<Right>>,
    event: Mutex<Bytes>,
}

/// The permission that a request needs.
fn right(method: &Method, path: &str, query: &str) -> Option<Right> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match &parts[..] {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let rest = if let ["namespaces", _, inner @ ..] = rest { inner } else { rest };
    let verb = match (method.as_str(), rest) {
        ("GET", [_]) if query.contains("watch=") => "watch",
        ("GET", [_]) => "list",
        ("GET", [_, ..]) => "get",
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("PUT", _) => "update",
        _ => "delete",
    };
    Some((group.to_owned(), (*rest.first()?).to_owned(), verb.to_owned()))
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16(),
    });
    answer(code, body.to_string())
}

fn answer(code: StatusCode, body: impl Into<Body>) -> Response {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(body.into()).expect("a response")
}

async fn serve(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let Some(right) = right(&head.method, head.uri.path(), &query) else {
        return status(StatusCode::NOT_FOUND, "NotFound");
    };
    let is_granted = server.granted.contains(&right);
    server.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(right.clone());
    if !is_granted {
        return status(StatusCode::FORBIDDEN, "Forbidden");
    }
    match right.2.as_str() {
        "list" => {
            // The agent waits for a missing Node.
            let node = json!({
                "metadata": {"name": "node-1", "resourceVersion": "1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            });
            let items = if right.1 == "nodes" { vec![node] } else { vec![] };
            let list = json!({
                "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items,
            });
            answer(StatusCode::OK, list.to_string())
        }
        // Like a server without streaming lists; the agent then requests plain lists.
        "watch" if query.contains("sendInitialEvents") => status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
        "watch" => answer(
            StatusCode::OK,
            Body::from_stream(futures::stream::pending::<Result<Bytes, axum::Error>>()),
        ),
        _ => {
            let body = axum::body::to_bytes(body, 1 << 20).await.expect("a small body");
            let mut event = server.event.lock().unwrap_or_else(PoisonError::into_inner);
            if right.2 == "create" {
                *event = body;
            }
            answer(StatusCode::CREATED, event.clone())
        }
    }
}

impl Server {
    /// Serves in the network namespace of this thread, on a thread that ends with the process.
    fn start(self: &Arc<Server>) -> SocketAddr {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = Router::new().fallback(serve).with_state(Arc::clone(self));
        std::thread::spawn(move || runtime.block_on(async { axum::serve(listener, router).await }));
        address
    }

    fn asked(&self) -> BTreeSet<Right> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The agent; killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Number of rules in the agent's chain; 0 before its first sync.
fn rules_of_postrouting() -> usize {
    let mut command = Command::new("iptables-nft");
    let output =
        command.args(["-w", "5", "-t", "nat", "-S", "KUBE-POSTROUTING"]).output().expect("iptables runs");
    String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("-A ")).count()
}

/// Runs the agent until it has used every permission, or for a minute.
fn requested_rights(log: &Path) -> BTreeSet<Right> {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may create namespaces");
    assert!(run("ip", &["link", "set", "lo", "up"]));
    let server = Arc::new(Server { granted: granted(), ..Server::default() });
    let address = server.start();
    let log = std::fs::File::create(log).expect("a log");
    let child = Command::new(env!("CARGO_BIN_EXE_chainsmith"))
        .args(["run", "--hostname-override=node-1", "--iptables-backend=nft", "-v=4"])
        .arg(format!("--master=http://{address}"))
        .stderr(log)
        .spawn()
        .expect("the program starts");
    let mut agent = Agent(child);
    let end = Instant::now() + Duration::from_secs(60);
    let mut n_repaired = 0;
    // Rules changed by another process are reported by an event, which is patched from the second time on;
    // the agent tries this whether it is permitted or not.
    while (server.asked() != server.granted || n_repaired < 4) && Instant::now() < end {
        assert!(agent.0.try_wait().expect("a child").is_none(), "the agent ended");
        if rules_of_postrouting() > 0 {
            n_repaired += 1;
            assert!(run("iptables-nft", &["-w", "5", "-t", "nat", "-F", "KUBE-POSTROUTING"]));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(n_repaired >= 4, "the agent repaired nothing");
    // Any other request follows soon.
    std::thread::sleep(Duration::from_secs(1));
    server.asked()
}

#[test]
fn the_agent_uses_exactly_the_rights_of_least_privilege() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let asked = std::thread::scope(|scope| scope.spawn(|| requested_rights(&log)).join());
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(asked.unwrap_or_else(|_| panic!("{log}")), granted(), "{log}");
}

#[test]
fn least_privilege_grants_no_more_than_kube_proxy_has() {
    let all: BTreeSet<Right> = NODE_PROXIER
        .iter()
        .flat_map(|(groups, resources, verbs)| product(groups, resources, verbs))
        .collect();
    let (granted, names) = (granted(), |right: &Right| format!("{right:?}"));
    let more: Vec<String> = granted.difference(&all).map(names).collect();
    assert_eq!(more, [""; 0]);
    assert!(!granted.is_empty());
}

#[test]
fn roles_are_bound_to_the_service_account_of_the_pod() {
    let account = super::object("base/serviceaccount.yaml");
    let pod = super::object("base/daemonset.yaml");
    assert_eq!(pod["spec"]["template"]["spec"]["serviceAccountName"], account["metadata"]["name"]);
    let least = documents(&read("manifests/overlays/least-privilege/rbac.yaml"));
    for (binding, role) in
        [(&super::object("base/rbac.yaml"), "system:node-proxier"), (&least[1], "chainsmith")]
    {
        assert_eq!(binding["kind"], "ClusterRoleBinding");
        assert_eq!(binding["roleRef"]["name"], role);
        let subject = &binding["subjects"][0];
        assert_eq!(subject["kind"], "ServiceAccount");
        assert_eq!(subject["name"], account["metadata"]["name"]);
        assert_eq!(subject["namespace"], account["metadata"]["namespace"]);
    }
    assert_eq!(least[0]["metadata"]["name"], "chainsmith");
    // Least-privilege removes what the base binds.
    let gone = super::object("overlays/least-privilege/binding.yaml");
    assert_eq!(gone["metadata"], super::object("base/rbac.yaml")["metadata"]);
    assert_eq!(gone["$patch"], "delete");
}
