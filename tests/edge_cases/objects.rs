//! Objects as short text.

/// The Node.
pub const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: zone-a}}
spec: {podCIDRs: [10.180.1.0/24, 'fd00:10:180:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}
";

/// A Service: `<namespace>/<name>`, the text of its `spec`, and the addresses of its status.
pub fn service(name: &str, spec: &str, ingress: &[&str]) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let ingress: Vec<String> = ingress
        .iter()
        .map(|entry| if entry.starts_with('{') { (*entry).to_owned() } else { format!("{{ip: '{entry}'}}") })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{{spec}}}\n\
         status: {{loadBalancer: {{ingress: [{}]}}}}\n",
        ingress.join(", ")
    )
}

/// Service `default/web` on 10.96.0.10:80, named `p`; `more` is added to its spec.
pub fn web(more: &str) -> String {
    service("default/web", &format!("clusterIP: 10.96.0.10, ports: [{{name: p, port: 80}}], {more}"), &[])
}

/// The same with all external frontends: external IP 203.0.113.80, load balancer IP 203.0.113.90, node port
/// 30080.
pub fn open(more: &str) -> String {
    let spec = "type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{name: p, port: 80, nodePort: 30080}], \
                externalIPs: [203.0.113.80]";
    service("default/web", &format!("{spec}, {more}"), &["203.0.113.90"])
}

/// The external frontends of [`open`].
pub const CLUSTER_IP: &str = "10.96.0.10:80";
pub const EXTERNAL_IP: &str = "203.0.113.80:80";
pub const LOAD_BALANCER_IP: &str = "203.0.113.90:80";
pub const NODE_PORT: &str = "192.0.2.1:30080";
pub const EXTERNAL: [&str; 3] = [EXTERNAL_IP, LOAD_BALANCER_IP, NODE_PORT];

/// A slice: `<namespace>/<service>`, an ID, the text of its `ports`, its endpoints.
///
/// An endpoint is `<ip>[@<node>]` and words: `ready`, `unready`, `unserving`, `terminating`,
/// `zone=<hint>[,<hint>]`, `node=<hint>`.
pub fn slice(service: &str, id: &str, ports: &str, endpoints: &[&str]) -> String {
    let (namespace, name) = service.split_once('/').unwrap();
    let is_v6 = endpoints.iter().any(|endpoint| endpoint.split('@').next().unwrap().contains(':'));
    let family = if is_v6 { "IPv6" } else { "IPv4" };
    let endpoints: Vec<String> = endpoints.iter().map(|words| endpoint(words)).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: {namespace}, \
         name: {name}-{id}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
         ports: [{ports}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// The slice of Service `default/web`, port `p` 80.
pub fn pods(endpoints: &[&str]) -> String {
    slice("default/web", "a", "{name: p, port: 80}", endpoints)
}

fn endpoint(words: &str) -> String {
    let mut words = words.split(' ');
    let (ip, node) = words.next().map(|place| place.split_once('@').unwrap_or((place, ""))).unwrap();
    let (mut conditions, mut hints) = (Vec::new(), Vec::new());
    for word in words {
        let named = |list: &str| {
            list.split(',').map(|name| format!("{{name: {name}}}")).collect::<Vec<_>>().join(", ")
        };
        match word.split_once('=') {
            Some(("zone", zones)) => hints.push(format!("forZones: [{}]", named(zones))),
            Some(("node", nodes)) => hints.push(format!("forNodes: [{}]", named(nodes))),
            _ => conditions.push(match word {
                "ready" => "ready: true",
                "unready" => "ready: false",
                "unserving" => "serving: false",
                "serving" => "serving: true",
                "terminating" => "terminating: true",
                _ => panic!("what is {word}?"),
            }),
        }
    }
    let node = if node.is_empty() { String::new() } else { format!("nodeName: {node}, ") };
    let hints = if hints.is_empty() { String::new() } else { format!(", hints: {{{}}}", hints.join(", ")) };
    format!("{{addresses: ['{ip}'], {node}conditions: {{{}}}{hints}}}", conditions.join(", "))
}
