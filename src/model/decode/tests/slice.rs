//! Tests of reading EndpointSlices: edge-cases.md, section C.

use super::{Object, slice_of, slice_with};
use crate::model::decode::{Interner, slice};
use crate::model::{ProblemWeight, Slice};

/// One line for each port, then one for each endpoint.
fn summary(slice: &Slice) -> Vec<String> {
    let ports = slice.ports.iter().map(|port| format!("{}:{}/{}", port.name, port.port, port.protocol));
    let endpoints = slice.endpoints.iter().map(|endpoint| {
        let conditions = endpoint.conditions;
        let word = |is, word| if is { word } else { "" };
        let node = endpoint.node.as_deref().map(|node| format!(" on {node}")).unwrap_or_default();
        let hints = endpoint
            .hints
            .as_deref()
            .map(|hints| format!(" zones {:?} nodes {:?}", hints.zones, hints.nodes));
        format!(
            "{}{}{}{}{node}{}",
            endpoint.ip,
            word(conditions.is_ready, " ready"),
            word(conditions.is_serving, " serving"),
            word(conditions.is_terminating, " terminating"),
            hints.unwrap_or_default()
        )
    });
    ports.chain(endpoints).collect()
}

fn check(lines: &str, expected: &[&str]) {
    check_bad(lines, &[], expected);
}

fn check_bad(lines: &str, problems: &[&str], left: &[&str]) {
    let (slice, reported) = slice_with(lines);
    let problems: Vec<String> =
        problems.iter().map(|text| format!("EndpointSlice ns/web-1: {text}")).collect();
    assert_eq!(reported, problems, "{lines}");
    let slice = slice.unwrap_or_else(|| panic!("ignored: {lines}"));
    assert_eq!(slice.service.to_string(), "ns/web");
    assert_eq!(summary(&slice), left, "{lines}");
}

#[test]
fn headless_slices_are_ignored_silently_whatever_the_labels_value() {
    let (slice, problems) = slice_of(
        "kind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: web-1\n  namespace: ns\n  labels:\n    \
         kubernetes.io/service-name: web\n    service.kubernetes.io/headless: ''\n",
    );
    assert_eq!((slice, problems), (None, Vec::new()));
}

#[test]
fn a_slice_without_a_service_is_ignored() {
    for labels in ["{}", "{kubernetes.io/service-name: ''}", "{kubernetes.io/service-name: a/b}"] {
        let (slice, problems) = slice_of(&format!(
            "kind: EndpointSlice\naddressType: IPv4\nmetadata:\n  name: web-1\n  namespace: ns\n  labels: {labels}\n"
        ));
        assert_eq!(slice, None, "{labels}");
        assert_eq!(problems.len(), 1, "{labels}");
        assert!(problems[0].contains("metadata.labels[kubernetes.io/service-name]"), "{}", problems[0]);
    }
}

#[test]
fn address_types_without_a_family_are_ignored() {
    for kind in ["FQDN", "ipv4", "''"] {
        let (slice, problems) =
            slice_with(&format!("addressType: {kind}\nendpoints: [{{addresses: [a.example]}}]"));
        assert_eq!((slice, problems.len()), (None, 1), "{kind}");
    }
}

#[test]
fn ports_need_a_number_but_a_name_may_be_empty() {
    check_bad(
        "addressType: IPv4\nports:\n- {name: http, port: 8080}\n- {name: '', port: 81, protocol: UDP}\n\
         - {name: a}\n- {name: b, port: 0}\n- {name: c, port: 65536}\n- {name: d, port: 1, protocol: ICMP}\n\
         - {name: no good, port: 1}",
        &[
            r#"ports[2].port is absent; port ignored"#,
            r#"ports[3].port: "0" is not a port number; port ignored (and 1 more: "65536")"#,
            r#"ports[5].protocol: "ICMP" is not TCP, UDP or SCTP; port ignored"#,
            r#"ports[6].name: "no good" is not a DNS label; port ignored"#,
        ],
        &["http:8080/TCP", ":81/UDP"],
    );
}

#[test]
fn a_port_without_a_name_is_ignored() {
    // In a manifest an absent name gets its default. An API server can send one without.
    let object = serde_json::from_value(serde_json::json!({
        "metadata": {
            "name": "web-1", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4", "ports": [{"port": 80}],
    }))
    .unwrap();
    let decoded = super::super::slice(&object, &mut super::Interner::default());
    assert_eq!(
        super::messages(decoded.problems.clone()),
        [r#"EndpointSlice ns/web-1: ports[0].name is absent; port ignored"#]
    );
    assert!(decoded.value().unwrap().ports.is_empty());
}

#[test]
fn only_the_first_address_is_used() {
    check("addressType: IPv4\nendpoints: [{addresses: [10.1.0.01, 10.1.0.2]}]", &["10.1.0.1 ready serving"]);
    check("addressType: IPv6\nendpoints: [{addresses: ['FD00::0:1']}]", &["fd00::1 ready serving"]);
    check("addressType: IPv4\nendpoints: [{addresses: ['::ffff:10.1.0.1']}]", &["10.1.0.1 ready serving"]);
}

#[test]
fn an_endpoint_without_a_valid_address_of_the_family_is_ignored() {
    check_bad(
        "addressType: IPv4\nendpoints:\n- {addresses: []}\n- {addresses: null}\n- {addresses: [10.1.0]}\n\
         - {addresses: ['fd00::1']}\n- {addresses: [10.1.0.5]}",
        &[
            r#"endpoints[0].addresses is empty; endpoint ignored (and 1 more)"#,
            r#"endpoints[2].addresses[0]: "10.1.0" is not an IP address; endpoint ignored"#,
            r#"endpoints[3].addresses[0]: "fd00::1" is not an IPv4 address, as addressType says; endpoint ignored"#,
        ],
        &["10.1.0.5 ready serving"],
    );
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let check = |conditions: &str, expected: &str| {
        let lines =
            format!("addressType: IPv4\nendpoints: [{{addresses: [10.1.0.1], conditions: {conditions}}}]");
        check(&lines, &[format!("10.1.0.1{expected}").as_str()]);
    };
    check("null", " ready serving");
    check("{}", " ready serving");
    check("{ready: null, serving: null, terminating: null}", " ready serving");
    check("{ready: false}", " serving");
    check("{ready: false, terminating: true}", " serving terminating");
    check("{ready: false, serving: false, terminating: true}", " terminating");
    check("{ready: true, terminating: true}", " ready serving terminating");
}

#[test]
fn nodes_and_hints_are_read_and_sorted() {
    check(
        "addressType: IPv4\nendpoints:\n- addresses: [10.1.0.1]\n  nodeName: node-b.example\n\
         - addresses: [10.1.0.2]\n  nodeName: node-a.example\n  hostname: h\n  zone: z\n  hints:\n    \
         forZones: [{name: z2}, {name: z1}, {name: z2}]\n    forNodes: [{name: n2}, {name: n1}]\n\
         - addresses: [10.1.0.3]\n  hints: {}\n",
        &[
            "10.1.0.1 ready serving on node-b.example",
            r#"10.1.0.2 ready serving on node-a.example zones ["z1", "z2"] nodes ["n1", "n2"]"#,
            "10.1.0.3 ready serving",
        ],
    );
}

#[test]
fn a_slice_may_be_empty() {
    check("addressType: IPv4\nports: null\nendpoints: null", &[]);
    check("addressType: IPv6", &[]);
}

#[test]
fn the_trigger_time_is_read_with_fraction_and_offset_and_an_invalid_one_is_reported() {
    let slice = |annotation: &str| {
        super::slice_of(&format!(
            "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\naddressType: IPv4\nmetadata:\n  name: web-1\n  \
             namespace: ns\n  labels: {{kubernetes.io/service-name: web}}\n  annotations: {{{annotation}}}\n"
        ))
    };
    let key = "endpoints.kubernetes.io/last-change-trigger-time";
    let check = |text: &str, millis: Option<u64>| {
        let (slice, problems) = slice(&format!("{key}: '{text}'"));
        let time = millis.map(|millis| std::time::UNIX_EPOCH + std::time::Duration::from_millis(millis));
        assert_eq!(slice.unwrap().triggered_at, time, "{text}");
        let problem = format!(
            "EndpointSlice ns/web-1: metadata.annotations[{key}]: {text:?} is not an RFC 3339 time; ignored"
        );
        assert_eq!(problems, if millis.is_some() { vec![] } else { vec![problem] });
    };
    check("1970-01-01T00:01:00Z", Some(60_000));
    check("1970-01-01T02:00:00.25+02:00", Some(250));
    check("yesterday", None);
    check("1970-01-01", None);
    assert_eq!(slice("other: x").0.unwrap().triggered_at, None);
}

#[test]
fn the_same_error_in_fifty_thousand_entries_is_one_problem_with_a_count() {
    let endpoints: String =
        (0..50_000).map(|i| format!("- addresses: [x{i}]\n  nodeName: 'a b'\n")).collect();
    let (slice, problems) =
        slice_with(&format!("addressType: IPv4\nendpoints:\n{endpoints}- addresses: []\n"));
    assert_eq!(slice.unwrap().endpoints.len(), 0);
    assert_eq!(
        problems,
        [
            "EndpointSlice ns/web-1: endpoints[0].addresses[0]: \"x0\" is not an IP address; endpoint ignored \
             (and 49999 more: \"x1\", \"x2\", ...)",
            "EndpointSlice ns/web-1: endpoints[50000].addresses is empty; endpoint ignored",
        ]
    );
    let ports = "addressType: IPv4\nports: [{name: a}, {name: b}, {name: c, port: 0}]";
    assert_eq!(
        slice_with(ports).1,
        [
            "EndpointSlice ns/web-1: ports[0].port is absent; port ignored (and 1 more)",
            "EndpointSlice ns/web-1: ports[2].port: \"0\" is not a port number; port ignored",
        ]
    );
}

#[test]
fn legal_slices_that_no_proxy_can_use_are_not_wrong() {
    let check = |text: &str, expected: &[ProblemWeight]| {
        let Object::Slice(object) = super::only(text) else { panic!("not a slice: {text}") };
        let weights: Vec<_> =
            slice(&object, &mut Interner::default()).problems.iter().map(|problem| problem.weight).collect();
        assert_eq!(weights, expected, "{text}");
    };
    let (fine, wrong) = (ProblemWeight::NotForProxies, ProblemWeight::Wrong);
    let with = |labels: &str, rest: &str| {
        format!("{{kind: EndpointSlice, metadata: {{name: a, labels: {{{labels}}}}}, {rest}}}")
    };
    let web = "kubernetes.io/service-name: web";
    check(&with("", "addressType: IPv4"), &[fine]);
    check(&with("kubernetes.io/service-name: WEB", "addressType: IPv4"), &[wrong]);
    check(&with(web, "addressType: FQDN"), &[fine]);
    check(&with(web, "addressType: ipv4"), &[wrong]);
    check(&with(web, "addressType: IPv4, ports: [{name: a}, {name: b, port: 1}]"), &[fine]);
    check(&with(web, "addressType: IPv4, ports: [{port: 70000}]"), &[wrong]);
}
