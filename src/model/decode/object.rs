//! The API types, reduced to the fields that rules need. Source: Kubernetes v1.36, `core/v1` and
//! `discovery/v1`; the choice of fields: kube-proxy v1.36.

use serde::de::{Deserialize, Deserializer, Error};

use super::field_value::{FieldType, FieldValue, FirstItem, WrongTypeValue, api_type};
use crate::model::problem::quote;
use crate::model::{ObjectKind, ObjectName, Problem, ProblemWeight};

/// An object of one of the three kinds.
pub trait ApiObject: FieldType {
    /// Its kind.
    const KIND: ObjectKind;

    /// Its metadata.
    fn metadata(&self) -> &FieldValue<Metadata>;

    /// The first field whose wrong type makes the object unusable.
    fn unusable_field(&self) -> Option<UnusableField<'_>>;

    /// The name in its metadata, unchecked; a Node's namespace is empty.
    fn claimed_name(&self) -> ObjectName {
        let text = |field: fn(&Metadata) -> &FieldValue<String>| {
            self.metadata().get().map_or("", |m| field(m).text())
        };
        ObjectName::new(text(|metadata| &metadata.namespace), text(|metadata| &metadata.name))
    }
}

/// A field of a wrong type that makes its object unusable.
#[derive(Clone, Copy, Debug)]
pub struct UnusableField<'a> {
    /// Path of the field.
    field: &'static str,
    /// The given value.
    wrong: &'a WrongTypeValue,
    /// Name of the expected type.
    name: &'static str,
}

/// The field at this path, if it is of a wrong type.
fn unusable_field<'a, T: FieldType>(
    field: &'static str,
    given: &'a FieldValue<T>,
) -> Option<UnusableField<'a>> {
    match given {
        FieldValue::WrongType(wrong) => Some(UnusableField { field, wrong, name: T::NAME }),
        FieldValue::Absent | FieldValue::Valid(_) => None,
    }
}

/// Returns the object, or the problem that makes it unusable. Then the caller cannot know whether the
/// object is relevant, so its last state stays in use.
pub fn require_usable<T: ApiObject>(given: FieldValue<T>) -> Result<T, Box<Problem>> {
    let (object, field, text, name) = match given {
        FieldValue::Valid(object) => match object.unusable_field() {
            None => return Ok(object),
            Some(UnusableField { field, wrong, name }) => {
                (object.claimed_name().to_string(), field, wrong.0.to_string(), name)
            }
        },
        FieldValue::Absent => (String::new(), "object", "null".to_owned(), T::NAME),
        FieldValue::WrongType(wrong) => (String::new(), "object", wrong.0.into(), T::NAME),
    };
    Err(Box::new(Problem {
        weight: ProblemWeight::Wrong,
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
    ($type:ident, $kind:ident, $unusable_field:expr) => {
        impl ApiObject for $type {
            const KIND: ObjectKind = ObjectKind::$kind;

            fn metadata(&self) -> &FieldValue<Metadata> {
                &self.metadata
            }

            fn unusable_field(&self) -> Option<UnusableField<'_>> {
                let other: fn(&$type) -> Option<UnusableField<'_>> = $unusable_field;
                unusable_field("metadata", &self.metadata).or_else(|| other(self))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            /// Fails for a value that is not an object.
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                match FieldValue::deserialize(deserializer)? {
                    FieldValue::Valid(object) => Ok(object),
                    FieldValue::Absent | FieldValue::WrongType(_) => {
                        Err(D::Error::custom("is not an object"))
                    }
                }
            }
        }
    };
}

api_object!(ApiService, Service, |service| {
    let ports = service.spec.get().and_then(|spec| unusable_field("spec.ports", &spec.ports));
    unusable_field("spec", &service.spec).or(ports)
});
api_object!(ApiSlice, EndpointSlice, |slice| {
    unusable_field("ports", &slice.ports).or(unusable_field("endpoints", &slice.endpoints))
});
api_object!(ApiNode, Node, |_| None);

api_type! {
    /// `metadata` of any object.
    Metadata {
        /// Name.
        name: "name" => String,
        /// Namespace.
        namespace: "namespace" => String,
        /// Resource version, from which a watch can continue.
        resource_version: "resourceVersion" => String,
        /// Time of creation.
        creation_timestamp: "creationTimestamp" => String,
        /// Time of deletion, if a finalizer delays it.
        deletion_timestamp: "deletionTimestamp" => String,
        /// The labels that are used.
        labels: "labels" => Labels,
        /// The annotations that are used.
        annotations: "annotations" => Annotations,
    }
}

api_type! {
    /// Labels.
    Labels {
        /// On Services of another proxy.
        service_proxy_name: "service.kubernetes.io/service-proxy-name" => String,
        /// On slices of headless Services.
        headless: "service.kubernetes.io/headless" => String,
        /// On slices: their Service.
        service_name: "kubernetes.io/service-name" => String,
        /// On Nodes.
        zone: "topology.kubernetes.io/zone" => String,
    }
}

api_type! {
    /// Annotations.
    Annotations {
        /// On slices: the time of the cause of their last change.
        trigger_time: "endpoints.kubernetes.io/last-change-trigger-time" => String,
    }
}

api_type! {
    /// `v1` Service.
    ApiService {
        /// Identity and labels.
        metadata: "metadata" => Metadata,
        /// The desired state.
        spec: "spec" => ServiceSpec,
        /// State of the load balancer.
        status: "status" => ServiceStatus,
    }
}

api_type! {
    /// `spec` of a Service.
    ServiceSpec {
        /// Type.
        type_: "type" => String,
        /// The first cluster IP.
        cluster_ip: "clusterIP" => String,
        /// All cluster IPs.
        cluster_ips: "clusterIPs" => Vec<FieldValue<String>>,
        /// Family of each cluster IP.
        ip_families: "ipFamilies" => Vec<FieldValue<String>>,
        /// External IPs.
        external_ips: "externalIPs" => Vec<FieldValue<String>>,
        /// Allowed sources.
        load_balancer_source_ranges: "loadBalancerSourceRanges" => Vec<FieldValue<String>>,
        /// Ports.
        ports: "ports" => Vec<FieldValue<ServicePortEntry>>,
        /// Internal traffic policy.
        internal_traffic_policy: "internalTrafficPolicy" => String,
        /// External traffic policy.
        external_traffic_policy: "externalTrafficPolicy" => String,
        /// Session affinity.
        session_affinity: "sessionAffinity" => String,
        /// Configuration of session affinity.
        session_affinity_config: "sessionAffinityConfig" => AffinityConfig,
        /// Health check node port.
        health_check_node_port: "healthCheckNodePort" => i64,
    }
}

api_type! {
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

api_type! {
    /// `spec.sessionAffinityConfig`.
    AffinityConfig {
        /// Configuration of ClientIP affinity.
        client_ip: "clientIP" => ClientIpConfig,
    }
}

api_type! {
    /// `spec.sessionAffinityConfig.clientIP`.
    ClientIpConfig {
        /// Seconds.
        timeout_seconds: "timeoutSeconds" => i64,
    }
}

api_type! {
    /// `status` of a Service.
    ServiceStatus {
        /// The load balancer.
        load_balancer: "loadBalancer" => LoadBalancerStatus,
    }
}

api_type! {
    /// `status.loadBalancer`.
    LoadBalancerStatus {
        /// Its addresses.
        ingress: "ingress" => Vec<FieldValue<Ingress>>,
    }
}

api_type! {
    /// An entry of `status.loadBalancer.ingress`.
    Ingress {
        /// Address.
        ip: "ip" => String,
        /// Whether packets arrive with that address as their destination.
        ip_mode: "ipMode" => String,
    }
}

api_type! {
    /// `discovery.k8s.io/v1` EndpointSlice.
    ApiSlice {
        /// Identity, labels, trigger time.
        metadata: "metadata" => Metadata,
        /// Family.
        address_type: "addressType" => String,
        /// Ports.
        ports: "ports" => Vec<FieldValue<SlicePortEntry>>,
        /// Endpoints.
        endpoints: "endpoints" => Vec<FieldValue<EndpointEntry>>,
    }
}

api_type! {
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

api_type! {
    /// An entry of a slice's `endpoints`.
    EndpointEntry {
        /// Addresses; only the first is used.
        addresses: "addresses" => FirstItem<String>,
        /// Conditions.
        conditions: "conditions" => ConditionsEntry,
        /// Node.
        node_name: "nodeName" => String,
        /// Hints.
        hints: "hints" => HintsEntry,
    }
}

api_type! {
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

api_type! {
    /// `hints` of an endpoint.
    HintsEntry {
        /// Zones.
        for_zones: "forZones" => Vec<FieldValue<NamedEntry>>,
        /// Nodes.
        for_nodes: "forNodes" => Vec<FieldValue<NamedEntry>>,
    }
}

api_type! {
    /// An entry of a list of names.
    NamedEntry {
        /// Name.
        name: "name" => String,
    }
}

api_type! {
    /// `v1` Node.
    ApiNode {
        /// Identity, zone, deletion.
        metadata: "metadata" => Metadata,
        /// Pod CIDRs and taints.
        spec: "spec" => NodeSpec,
        /// Addresses.
        status: "status" => NodeStatus,
    }
}

api_type! {
    /// `spec` of a Node.
    NodeSpec {
        /// The first pod CIDR.
        pod_cidr: "podCIDR" => String,
        /// All pod CIDRs.
        pod_cidrs: "podCIDRs" => Vec<FieldValue<String>>,
        /// Taints.
        taints: "taints" => Vec<FieldValue<TaintEntry>>,
    }
}

api_type! {
    /// An entry of a Node's `spec.taints`.
    TaintEntry {
        /// JsonKey.
        key: "key" => String,
    }
}

api_type! {
    /// `status` of a Node.
    NodeStatus {
        /// Addresses.
        addresses: "addresses" => Vec<FieldValue<AddressEntry>>,
    }
}

api_type! {
    /// An entry of a Node's `status.addresses`.
    AddressEntry {
        /// Type: `InternalIP`, `ExternalIP` or another one.
        type_: "type" => String,
        /// Address.
        address: "address" => String,
    }
}

api_type! {
    /// `v1` Pod.
    ApiPod {
        /// Identity.
        metadata: "metadata" => Metadata,
        /// Its node.
        spec: "spec" => PodSpec,
        /// Its addresses.
        status: "status" => PodStatus,
    }
}

api_type! {
    /// `spec` of a Pod.
    PodSpec {
        /// Node.
        node_name: "nodeName" => String,
        /// Whether it uses the network of its node.
        host_network: "hostNetwork" => bool,
    }
}

api_type! {
    /// `status` of a Pod.
    PodStatus {
        /// Phase; the addresses of a Pod that has ended may belong to another one.
        phase: "phase" => String,
        /// The first address.
        pod_ip: "podIP" => String,
        /// All addresses.
        pod_ips: "podIPs" => Vec<FieldValue<PodIpEntry>>,
    }
}

api_type! {
    /// An entry of a Pod's `status.podIPs`.
    PodIpEntry {
        /// Address.
        ip: "ip" => String,
    }
}
