//! Objects read from files, with all Nodes, before the node is chosen.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::decode::{self, Interner, manifest};
use super::{Change, Node, ObjectName, Pod, Problem, ServiceName, Snapshot, Touched};

/// All objects of one cluster, not yet seen from one node.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    snapshot: Snapshot,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: BTreeMap<ObjectName, Pod>,
    not_proxied: BTreeMap<ServiceName, &'static str>,
}

impl Inventory {
    /// Adds `object`, or replaces one of the same kind and name. Returns its problems.
    pub fn add(&mut self, object: &manifest::Object, interner: &mut Interner) -> Vec<Problem> {
        let (change, problems) = decode::change(object, interner);
        if let manifest::Object::Pod(pod) = object {
            self.pods.extend(decode::pod(pod, interner).map(|pod| (pod.name.clone(), pod)));
        }
        if let (manifest::Object::Service(object), Some(Change::Service(name, _))) = (object, &change) {
            match decode::why_not_proxied(object) {
                Some(reason) => drop(self.not_proxied.insert(name.clone(), reason)),
                None => drop(self.not_proxied.remove(name)),
            }
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

    /// Well-formed Services for which no rules are made, each with the reason, as the rest of a sentence that begins
    /// with its name: `is headless: ...`.
    pub fn not_proxied(&self) -> &BTreeMap<ServiceName, &'static str> {
        &self.not_proxied
    }

    /// The Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
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
    fn a_service_without_rules_has_a_reason_while_it_has_none() {
        let service = |spec: &str| format!("{{kind: Service, metadata: {{name: web}}, spec: {spec}}}\n---\n");
        let reason = |text: &str| {
            inventory(text)
                .not_proxied()
                .values()
                .map(|reason| reason.split([':', ',', '(']).next().unwrap().trim().to_owned())
                .collect::<String>()
        };
        assert_eq!(reason(&service("{clusterIP: None}")), "is headless");
        assert_eq!(
            reason(&service("{type: ExternalName, externalName: a.example}")),
            "is of type ExternalName"
        );
        assert_eq!(reason(&service("{ports: [{port: 80}]}")), "has no cluster IP");
        let other = service("{clusterIP: 10.96.0.1}")
            .replace("name: web", "name: web, labels: {service.kubernetes.io/service-proxy-name: ''}");
        assert_eq!(reason(&other), "belongs to another service proxy");
        assert_eq!(reason(&service("{clusterIP: 10.96.0.1}")), "");
        let replaced = service("{clusterIP: None}") + &service("{clusterIP: 10.96.0.1}");
        assert_eq!(reason(&replaced), "");
    }
}
