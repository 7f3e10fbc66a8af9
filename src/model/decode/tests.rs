//! Tests of decoding: every field that is read, and hostile values.

mod hostile;
mod malformed;
mod service;
mod slice;
mod wrong_types;

use super::manifest::{self, Object};
use super::{Decoded, Interner, Problem};
use crate::model::{Node, Service, Slice};

/// The objects of a manifest without problems.
fn objects(text: &str) -> Vec<Object> {
    let mut objects = Vec::new();
    let outcome = manifest::read(text.as_bytes(), "test", &mut |object| objects.push(object));
    assert_eq!(outcome.problems, [], "{text}");
    objects
}

fn only(text: &str) -> Object {
    let mut objects = objects(text);
    assert_eq!(objects.len(), 1, "{text}");
    objects.remove(0)
}

/// The same lines, indented by `n` columns.
fn indented(text: &str, n: usize) -> String {
    text.trim_matches('\n').lines().map(|line| format!("{:n$}{line}\n", "")).collect()
}

fn messages(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

/// Decodes Service `ns/web` with the lines of `spec` under `spec:`, and `more` at the top level.
fn service_with(spec: &str, more: &str) -> (Option<Service>, Vec<String>) {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: ns}}\nspec:\n{}{}",
        indented(spec, 2),
        indented(more, 0)
    );
    let Object::Service(object) = only(&text) else { panic!("not a Service: {text}") };
    let Decoded { named, problems } = super::service(&object, &mut Interner::default());
    let (name, value) = named.expect("a usable name");
    assert_eq!(name.to_string(), "ns/web");
    (value, messages(problems))
}

/// Decodes slice `ns/web-1` of Service `ns/web` with `lines` at its top level.
fn slice_with(lines: &str) -> (Option<Slice>, Vec<String>) {
    let text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  namespace: ns\n  \
         labels: {{kubernetes.io/service-name: web}}\n{}",
        indented(lines, 0)
    );
    slice_of(&text)
}

fn slice_of(text: &str) -> (Option<Slice>, Vec<String>) {
    let Object::Slice(object) = only(text) else { panic!("not a slice: {text}") };
    let Decoded { named, problems } = super::slice(&object, &mut Interner::default());
    let (name, value) = named.expect("a usable name");
    assert_eq!(name.to_string(), "ns/web-1");
    (value, messages(problems))
}

fn node_of(text: &str) -> (Option<Node>, Vec<String>) {
    let Object::Node(object) = only(text) else { panic!("not a Node: {text}") };
    let (node, problems) = super::node(&object, &mut Interner::default());
    (node, messages(problems))
}

#[test]
fn internal_addresses_of_a_node_come_before_external_ones() {
    let (node, problems) = node_of(
        "
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: zone-1, other: x}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.7/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: ExternalIP, address: 203.0.113.1}
  - {type: Hostname, address: node-a}
  - {type: InternalIP, address: 'fd00::1'}
  - {type: InternalIP, address: 192.168.1.010}
",
    );
    let node = node.unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(&*node.name, "node-a");
    assert_eq!(node.zone.as_deref(), Some("zone-1"));
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["fd00::1", "192.168.1.10", "203.0.113.1"]);
    let cidrs: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.1.0.0/24", "fd00:1::/64"]);
}

#[test]
fn a_node_may_have_nothing_but_a_name() {
    let (node, problems) = node_of(
        "kind: Node
metadata: {name: n}
",
    );
    let node = node.unwrap();
    assert!(
        problems.is_empty() && node.addresses.is_empty() && node.pod_cidrs.is_empty() && node.zone.is_none()
    );
}

#[test]
fn a_node_that_is_deleted_or_tainted_for_deletion_is_leaving() {
    let check = |metadata: &str, spec: &str, is_leaving: bool| {
        let text = format!("kind: Node\nmetadata: {{name: n{metadata}}}\nspec: {spec}\n");
        let (node, problems) = node_of(&text);
        assert_eq!((node.unwrap().is_leaving, problems), (is_leaving, vec![]), "{text}");
    };
    check("", "{}", false);
    check("", "{taints: [{key: node.kubernetes.io/not-ready, effect: NoExecute}]}", false);
    check("", "{unschedulable: true}", false);
    check(", deletionTimestamp: 2026-05-01T10:00:00Z", "{}", true);
    check(
        "",
        "{taints: [{key: a, effect: NoSchedule}, {key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]}",
        true,
    );
    check("", "{taints: [{key: ToBeDeletedByClusterAutoscaler, effect: PreferNoSchedule}]}", true);
}
