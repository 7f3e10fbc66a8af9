//! The kinds that the simulator serves, and their names in objects and in paths.

/// One kind of object and its path.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// In objects: `EndpointSlice`.
    pub kind: &'static str,
    /// In objects: `discovery.k8s.io/v1`; without a slash for the core group.
    pub api_version: &'static str,
    /// In paths: `endpointslices`. No two entries of [`RESOURCES`] share it.
    pub plural: &'static str,
    /// Whether objects live in namespaces.
    pub is_namespaced: bool,
    /// Fields that a field selector may name besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
}

/// All kinds that are served.
pub static RESOURCES: [Resource; 10] = [
    resource("ConfigMap", "v1", "configmaps", true, &[]),
    resource("Endpoints", "v1", "endpoints", true, &[]),
    resource("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", true, &[]),
    resource("Event", "events.k8s.io/v1", "events", true, &["reason", "type"]),
    resource("Lease", "coordination.k8s.io/v1", "leases", true, &[]),
    resource("Namespace", "v1", "namespaces", false, &["status.phase"]),
    resource("Node", "v1", "nodes", false, &["spec.unschedulable"]),
    resource("Pod", "v1", "pods", true, &["spec.nodeName", "status.phase", "status.podIP"]),
    resource("Service", "v1", "services", true, &["spec.clusterIP", "spec.type"]),
    resource("ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", false, &[]),
];

const EMPTY_NODE: &str = concat!(
    r#","spec":{},"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":0}},"nodeInfo":{"machineID":"","#,
    r#""systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","#,
    r#""kubeletVersion":"","kubeProxyVersion":"","operatingSystem":"","architecture":""}}"#
);

const fn resource(
    kind: &'static str,
    api_version: &'static str,
    plural: &'static str,
    is_namespaced: bool,
    fields: &'static [&'static str],
) -> Resource {
    Resource { kind, api_version, plural, is_namespaced, fields }
}

impl Resource {
    /// The API group; empty for the core group.
    pub fn group(&self) -> &'static str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The fields of an object besides `kind`, `apiVersion` and `metadata` when none is set, as
    /// in bookmarks.
    pub fn empty(&self) -> &'static str {
        match self.kind {
            "Service" => r#","spec":{},"status":{"loadBalancer":{}}"#,
            "EndpointSlice" => r#","addressType":"","endpoints":null,"ports":null"#,
            "Node" => EMPTY_NODE,
            _ => "",
        }
    }

    /// The resource with this `kind`.
    pub fn of_kind(kind: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|resource| resource.kind == kind)
    }

    /// The resource served under `/api/<version>` or `/apis/<group>/<version>` as `plural`.
    pub fn of_path(api_version: &str, plural: &str) -> Option<&'static Resource> {
        RESOURCES.iter().find(|known| known.api_version == api_version && known.plural == plural)
    }

    /// `services`, or `endpointslices.discovery.k8s.io`, as a real server's messages write it.
    pub fn long_name(&self) -> String {
        match self.group() {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}
