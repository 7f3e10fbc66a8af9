//! A running agent answers root's questions, from where `kubectl exec` runs them, and nobody else's.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::cluster::own_slice;
use crate::health::{REFUSE, REFUSED};
use crate::lab::client::Host;
use crate::lab::host::Node;
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long a step may take, on a machine busy with other tests.
const SOON: Duration = Duration::from_secs(30);

/// Runs Chainsmith on `node` behind `wrapper`.
fn chainsmith(node: &Node, wrapper: &[&str], args: &[&str]) -> Output {
    let words: Vec<&str> = wrapper
        .iter()
        .copied()
        .chain([env!("CARGO_BIN_EXE_chainsmith")])
        .chain(args.iter().copied())
        .collect();
    node.namespace().try_command(words[0], &words[1..], "").expect("it starts")
}

/// What Chainsmith prints on `node`, in a mount namespace in which nothing can be written.
fn printed(node: &Node, args: &[&str]) -> String {
    let read_only = "for at in $(cut -d ' ' -f 5 /proc/self/mountinfo); do \
                     mount -o remount,bind,ro \"$at\" 2>/dev/null; done; \
                     ! touch /probe 2>/dev/null || exit 77; exec \"$@\"";
    let output = chainsmith(node, &["unshare", "-m", "sh", "-c", read_only, "sh"], args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).expect("text")
}

/// The state of the agent on `node`.
fn status(node: &Node) -> Value {
    serde_json::from_str(&printed(node, &["status", "-o", "json"])).expect("JSON")
}

/// Explains, traces and shows the state of a node with a read-only root file system; refuses another user; shows a
/// rejected service port, and the input at which iptables-restore failed, with its message.
pub fn a_running_agent_answers_root(backend: Backend) {
    let running = Running::start(backend).expect("a cluster starts");
    let (node, agent) = (running.lab.node(1), &running.agents[0]);
    let state = status(node);
    assert_eq!(state["node"], node.name());
    for (at, family) in ["ipv4", "ipv6"].into_iter().enumerate() {
        let state = &state["families"][at];
        let name = if backend == Backend::Nft { "nft" } else { "legacy" };
        assert_eq!((state["family"].as_str(), state["backend"].as_str()), (Some(family), Some(name)));
        assert!(state["inForce"]["natRules"].as_u64() > Some(20), "{state:#}");
        assert_eq!(state["lastRestore"]["error"], Value::Null);
    }
    let explained = printed(node, &["explain", "default/web"]);
    assert!(
        explained.contains("desired rules of the agent") && explained.contains("last sync"),
        "{explained}"
    );
    let traced = printed(node, &["trace", "--to", "svc/default/web:http", "--family", "ipv4"]);
    assert!(traced.contains("KUBE-SERVICES") && !traced.contains("IPv6"), "{traced}");
    let rules = printed(node, &["status", "--rules"]);
    assert!(rules.starts_with("# ipv4\n*mangle\n") && rules.contains("default/web:http"), "{rules}");
    assert_eq!(printed(node, &["status", "--restore", "failed"]), "no restore has failed\n");

    let other = chainsmith(node, &["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"], &["status"]);
    let refusal = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && refusal.contains("answers root alone"), "{refusal}");

    agent.sabotage(Some(REFUSE));
    running.api.put(own_slice(&[REFUSED]));
    let quarantined = poll::until_some("both ports are quarantined", SOON, || {
        let state = status(node)["families"][0].take();
        (state["nQuarantined"] == 2).then_some(state)
    });
    let ports = &quarantined["quarantined"];
    assert_eq!(ports[0]["servicePort"], "default/own:echo", "{quarantined:#}");
    assert!(ports[0]["rule"].as_str().is_some_and(|rule| rule.contains(REFUSED)), "{ports:#}");
    assert!(quarantined["failedRestore"]["error"].as_str().is_some_and(|error| error.contains(REFUSED)));
    let failed = printed(node, &["status", "--restore", "failed"]);
    assert!(
        failed.contains("; failed: ") && failed.contains(&format!("--to-destination {REFUSED}:")),
        "{failed}"
    );
    let text = printed(node, &["status"]);
    assert!(
        text.contains("IPv4: 2 service ports quarantined") && text.contains("default/own:echo"),
        "{text}"
    );
    let explained = printed(node, &["explain", "default/own"]);
    assert!(explained.to_lowercase().contains("quarantined"), "{explained}");
    agent.sabotage(None);
    running.api.put(own_slice(&["10.128.1.5"]));
    poll::until("they are served again", SOON, || status(node)["families"][0]["nQuarantined"] == 0);
}
