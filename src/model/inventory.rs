//! Objects read from files, with all Nodes, before the node is chosen.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{self, Interner, manifest};
use super::{Change, Node, NotProxied, ObjectName, Pod, Problem, ServiceName, Snapshot, Touched};

/// All objects of one cluster, not yet seen from one node.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    snapshot: Snapshot,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: BTreeMap<ObjectName, Pod>,
    not_proxied: BTreeMap<ServiceName, NotProxied>,
}

impl Inventory {
    /// Adds `object`, or replaces one of the same kind and name. Returns its problems.
    pub fn add(&mut self, object: &manifest::Object, interner: &mut Interner) -> Vec<Problem> {
        let (change, problems) = decode::change(object, interner);
        if let manifest::Object::Pod(pod) = object {
            self.pods.extend(decode::pod(pod, interner).map(|pod| (pod.name.clone(), pod)));
        }
        if let (Some(Change::Service(name, _)), manifest::Object::Service(service)) = (&change, object) {
            match decode::not_proxied(service) {
                Some(reason) => self.not_proxied.insert(name.clone(), reason),
                None => self.not_proxied.remove(name),
            };
        }
        match change {
            Some(Change::Node(Some(node))) => drop(self.nodes.insert(node.name.clone(), node)),
            Some(change) => self.snapshot.apply(change, &mut Touched::default()),
            None => {}
        }
        problems
    }

    /// The Pods, by name.
    pub fn pods(&self) -> &BTreeMap<ObjectName, Pod> {
        &self.pods
    }

    /// The Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Services that kube-proxy does not serve, which are not in the snapshot.
    pub fn not_proxied(&self) -> &BTreeMap<ServiceName, NotProxied> {
        &self.not_proxied
    }

    /// The cluster from the point of view of node `name`, whether a Node of that name exists or not.
    pub fn snapshot_for(&self, name: &str) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        snapshot.apply(Change::Node(self.nodes.get(name).cloned()), &mut Touched::default());
        snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(text: &str) -> Inventory {
        let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
        let outcome = manifest::read_for_operator(text.as_bytes(), "test", &mut |object| {
            inventory.add(&object, &mut interner);
        });
        assert_eq!(outcome.problems, []);
        inventory
    }

    #[test]
    fn pods_are_kept_by_name_with_their_node_and_addresses() {
        let inventory = inventory(
            "{kind: Pod, metadata: {name: cart, namespace: shop}, spec: {nodeName: node-1}, \
             status: {phase: Running, podIP: 10.1.0.5, podIPs: [{ip: 10.1.0.5}, {ip: 'fd00::5'}]}}\n---\n\
             {kind: Pod, metadata: {name: agent}, spec: {nodeName: node-1, hostNetwork: true}, status: {podIP: 192.0.2.1}}\n---\n\
             {kind: Pod, metadata: {name: done}, status: {phase: Succeeded, podIP: 10.1.0.6}}\n---\n\
             {kind: Pod, metadata: {name: 'UPPER'}}\n",
        );
        let shown: Vec<String> = inventory
            .pods()
            .values()
            .map(|pod| format!("{} {:?} {:?} {}", pod.name, pod.node, pod.ips, pod.is_host_network))
            .collect();
        let expected = [
            r#"default/agent Some("node-1") [192.0.2.1] true"#,
            "default/done None [] false",
            r#"shop/cart Some("node-1") [10.1.0.5, fd00::5] false"#,
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn services_that_are_not_proxied_are_known_with_the_reason() {
        let check = |text: &str, expected: Option<NotProxied>| {
            let (mut inventory, mut interner) = (Inventory::default(), Interner::default());
            // A later object of the same name replaces the first.
            for service in ["{kind: Service, metadata: {name: a}, spec: {clusterIP: None}}", text] {
                let summary = manifest::read(service.as_bytes(), "test", &mut |object| {
                    inventory.add(&object, &mut interner);
                });
                assert_eq!(summary.n_objects, 1, "{service}");
            }
            let name = ServiceName::new("default", "a");
            assert_eq!(inventory.not_proxied().get(&name).copied(), expected, "{text}");
            let is_proxied = inventory.snapshot_for("node").service(&name).is_some();
            assert_eq!(is_proxied, expected.is_none() && !text.contains("bogus"), "{text}");
        };
        let service = |spec: &str| format!("{{kind: Service, metadata: {{name: a}}, spec: {{{spec}}}}}");
        check(&service("clusterIP: None"), Some(NotProxied::Headless));
        check(&service("clusterIP: ''"), Some(NotProxied::NoClusterIp));
        check(&service("type: ClusterIP"), Some(NotProxied::NoClusterIp));
        check(&service("clusterIP: 10.0.0.1, type: ExternalName"), Some(NotProxied::ExternalName));
        check(&service("clusterIP: 10.0.0.1"), None);
        // Malformed: a problem says so.
        check(&service("clusterIP: bogus"), None);
        let labels = "labels: {service.kubernetes.io/service-proxy-name: ''}";
        let other =
            format!("{{kind: Service, metadata: {{name: a, {labels}}}, spec: {{clusterIP: 10.0.0.1}}}}");
        check(&other, Some(NotProxied::OtherProxy));
    }
}
