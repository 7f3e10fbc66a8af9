//! The API objects with the fields that rules need, and no others. Source: Kubernetes v1.36,
//! `core/v1` and `discovery/v1`; which fields are needed: kube-proxy v1.36.

use serde::de::{Deserialize, Deserializer, Error};

use super::given::{First, Given, Shape, Wrong, shape};
use crate::model::problem::quote;
use crate::model::{ObjectKind, ObjectName, Problem};

/// An object of one of the three kinds.
pub trait ApiObject: Shape {
    /// Its kind.
    const KIND: ObjectKind;

    /// Its metadata.
    fn metadata(&self) -> &Given<Metadata>;

    /// The first field whose wrong type makes the object unusable.
    fn broken(&self) -> Option<Broken<'_>>;

    /// The name it gives itself, whatever that is made of; a Node's namespace is empty.
    fn claimed_name(&self) -> ObjectName {
        let text =
            |field: fn(&Metadata) -> &Given<String>| self.metadata().get().map_or("", |m| field(m).text());
        ObjectName::new(text(|metadata| &metadata.namespace), text(|metadata| &metadata.name))
    }
}

/// A field of a wrong type that costs its object.
#[derive(Clone, Copy, Debug)]
pub struct Broken<'a> {
    /// Path of the field.
    field: &'static str,
    /// What was given.
    wrong: &'a Wrong,
    /// What it is not.
    name: &'static str,
}

/// The field at the path, if it is of a wrong type.
fn broken<'a, T: Shape>(field: &'static str, given: &'a Given<T>) -> Option<Broken<'a>> {
    match given {
        Given::Wrong(wrong) => Some(Broken { field, wrong, name: T::NAME }),
        Given::Absent | Given::Good(_) => None,
    }
}

/// Returns the object, or the problem that makes it unusable: the caller cannot tell whether the object
/// counts, so its last state stays in use.
pub fn whole<T: ApiObject>(given: Given<T>) -> Result<T, Box<Problem>> {
    let (object, field, text, name) = match given {
        Given::Good(object) => match object.broken() {
            None => return Ok(object),
            Some(Broken { field, wrong, name }) => {
                (object.claimed_name().to_string(), field, wrong.0.to_string(), name)
            }
        },
        Given::Absent => (String::new(), "object", "null".to_owned(), T::NAME),
        Given::Wrong(wrong) => (String::new(), "object", wrong.0.into(), T::NAME),
    };
    Err(Box::new(Problem {
        kind: T::KIND,
        object: quote(object.trim_start_matches('/')),
        field: field.to_owned(),
        text,
        what: format!("is not {name}"),
        n_fields: 1,
        more_texts: Vec::new(),
    }))
}

macro_rules! api_object {
    ($type:ident, $kind:ident, $broken:expr) => {
        impl ApiObject for $type {
            const KIND: ObjectKind = ObjectKind::$kind;

            fn metadata(&self) -> &Given<Metadata> {
                &self.metadata
            }

            fn broken(&self) -> Option<Broken<'_>> {
                let more: fn(&$type) -> Option<Broken<'_>> = $broken;
                broken("metadata", &self.metadata).or_else(|| more(self))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            /// Fails for what is no object at all.
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                match Given::deserialize(deserializer)? {
                    Given::Good(object) => Ok(object),
                    Given::Absent | Given::Wrong(_) => Err(D::Error::custom("is not an object")),
                }
            }
        }
    };
}

api_object!(ApiService, Service, |service| {
    let ports = service.spec.get().and_then(|spec| broken("spec.ports", &spec.ports));
    broken("spec", &service.spec).or(ports)
});
api_object!(ApiSlice, EndpointSlice, |slice| {
    broken("ports", &slice.ports).or(broken("endpoints", &slice.endpoints))
});
api_object!(ApiNode, Node, |_| None);

shape! {
    /// `metadata` of any object.
    Metadata {
        /// Name.
        name: "name" => String,
        /// Namespace.
        namespace: "namespace" => String,
        /// Version, for the watch that goes on behind it.
        resource_version: "resourceVersion" => String,
        /// When it was made.
        creation_timestamp: "creationTimestamp" => String,
        /// When it was deleted, if something still holds it.
        deletion_timestamp: "deletionTimestamp" => String,
        /// The labels that matter.
        labels: "labels" => Labels,
        /// The annotations that matter.
        annotations: "annotations" => Annotations,
    }
}

shape! {
    /// Labels.
    Labels {
        /// Of Services that another proxy serves.
        service_proxy_name: "service.kubernetes.io/service-proxy-name" => String,
        /// Of slices of headless Services.
        headless: "service.kubernetes.io/headless" => String,
        /// Of slices: their Service.
        service_name: "kubernetes.io/service-name" => String,
        /// Of Nodes.
        zone: "topology.kubernetes.io/zone" => String,
    }
}

shape! {
    /// Annotations.
    Annotations {
        /// Of slices: when the change began that led to them.
        trigger_time: "endpoints.kubernetes.io/last-change-trigger-time" => String,
    }
}

shape! {
    /// `v1` Service.
    ApiService {
        /// Identity and labels.
        metadata: "metadata" => Metadata,
        /// What a user wants.
        spec: "spec" => ServiceSpec,
        /// What a load balancer gave.
        status: "status" => ServiceStatus,
    }
}

shape! {
    /// `spec` of a Service.
    ServiceSpec {
        /// Type.
        type_: "type" => String,
        /// The first cluster IP.
        cluster_ip: "clusterIP" => String,
        /// All cluster IPs.
        cluster_ips: "clusterIPs" => Vec<Given<String>>,
        /// Family of each cluster IP.
        ip_families: "ipFamilies" => Vec<Given<String>>,
        /// External IPs.
        external_ips: "externalIPs" => Vec<Given<String>>,
        /// Allowed sources.
        load_balancer_source_ranges: "loadBalancerSourceRanges" => Vec<Given<String>>,
        /// Ports.
        ports: "ports" => Vec<Given<ServicePortEntry>>,
        /// Internal traffic policy.
        internal_traffic_policy: "internalTrafficPolicy" => String,
        /// External traffic policy.
        external_traffic_policy: "externalTrafficPolicy" => String,
        /// Session affinity.
        session_affinity: "sessionAffinity" => String,
        /// How long it lasts.
        session_affinity_config: "sessionAffinityConfig" => AffinityConfig,
        /// Health check node port.
        health_check_node_port: "healthCheckNodePort" => i64,
    }
}

shape! {
    /// An entry of `spec.ports`.
    ServicePortEntry {
        /// Name.
        name: "name" => String,
        /// Protocol.
        protocol: "protocol" => String,
        /// Port.
        port: "port" => i64,
        /// Node port.
        node_port: "nodePort" => i64,
    }
}

shape! {
    /// `spec.sessionAffinityConfig`.
    AffinityConfig {
        /// Of ClientIP affinity.
        client_ip: "clientIP" => ClientIpConfig,
    }
}

shape! {
    /// `spec.sessionAffinityConfig.clientIP`.
    ClientIpConfig {
        /// Seconds.
        timeout_seconds: "timeoutSeconds" => i64,
    }
}

shape! {
    /// `status` of a Service.
    ServiceStatus {
        /// The load balancer.
        load_balancer: "loadBalancer" => LoadBalancerStatus,
    }
}

shape! {
    /// `status.loadBalancer`.
    LoadBalancerStatus {
        /// Its addresses.
        ingress: "ingress" => Vec<Given<Ingress>>,
    }
}

shape! {
    /// An entry of `status.loadBalancer.ingress`.
    Ingress {
        /// Address.
        ip: "ip" => String,
        /// Whether packets arrive with that address.
        ip_mode: "ipMode" => String,
    }
}

shape! {
    /// `discovery.k8s.io/v1` EndpointSlice.
    ApiSlice {
        /// Identity, labels, trigger time.
        metadata: "metadata" => Metadata,
        /// Family.
        address_type: "addressType" => String,
        /// Ports.
        ports: "ports" => Vec<Given<SlicePortEntry>>,
        /// Endpoints.
        endpoints: "endpoints" => Vec<Given<EndpointEntry>>,
    }
}

shape! {
    /// An entry of a slice's `ports`.
    SlicePortEntry {
        /// Name.
        name: "name" => String,
        /// Protocol.
        protocol: "protocol" => String,
        /// Port.
        port: "port" => i64,
    }
}

shape! {
    /// An entry of a slice's `endpoints`.
    EndpointEntry {
        /// Its addresses, of which the first one counts.
        addresses: "addresses" => First<String>,
        /// Conditions.
        conditions: "conditions" => ConditionsEntry,
        /// Node.
        node_name: "nodeName" => String,
        /// Hints.
        hints: "hints" => HintsEntry,
    }
}

shape! {
    /// `conditions` of an endpoint.
    ConditionsEntry {
        /// Ready.
        ready: "ready" => bool,
        /// Serving.
        serving: "serving" => bool,
        /// Terminating.
        terminating: "terminating" => bool,
    }
}

shape! {
    /// `hints` of an endpoint.
    HintsEntry {
        /// Zones.
        for_zones: "forZones" => Vec<Given<NamedEntry>>,
        /// Nodes.
        for_nodes: "forNodes" => Vec<Given<NamedEntry>>,
    }
}

shape! {
    /// An entry of a list of names.
    NamedEntry {
        /// Name.
        name: "name" => String,
    }
}

shape! {
    /// `v1` Node.
    ApiNode {
        /// Identity, zone, whether it is about to go.
        metadata: "metadata" => Metadata,
        /// Pod CIDRs and taints.
        spec: "spec" => NodeSpec,
        /// Addresses.
        status: "status" => NodeStatus,
    }
}

shape! {
    /// `spec` of a Node.
    NodeSpec {
        /// The first pod CIDR.
        pod_cidr: "podCIDR" => String,
        /// All pod CIDRs.
        pod_cidrs: "podCIDRs" => Vec<Given<String>>,
        /// Taints.
        taints: "taints" => Vec<Given<TaintEntry>>,
    }
}

shape! {
    /// An entry of a Node's `spec.taints`.
    TaintEntry {
        /// Key.
        key: "key" => String,
    }
}

shape! {
    /// `status` of a Node.
    NodeStatus {
        /// Addresses.
        addresses: "addresses" => Vec<Given<AddressEntry>>,
    }
}

shape! {
    /// An entry of a Node's `status.addresses`.
    AddressEntry {
        /// Type: `InternalIP`, `ExternalIP` or another one.
        type_: "type" => String,
        /// Address.
        address: "address" => String,
    }
}
