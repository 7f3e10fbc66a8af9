//! Tests of reading manifests: documents, lists, defaults and malformed text. More malformed manifests are
//! in `testdata/malformed/`.

use super::*;
use crate::model::decode::object::ServiceSpec;

/// Names of the objects in order, each with its kind.
fn names(text: &str) -> (Vec<String>, ManifestSummary) {
    let mut names = Vec::new();
    let outcome = read(text.as_bytes(), "f.yaml", &mut |object| {
        let (kind, name) = match &object {
            Object::Service(service) => (ObjectKind::Service, service.claimed_name()),
            Object::Slice(slice) => (ObjectKind::EndpointSlice, slice.claimed_name()),
            Object::Node(node) => (ObjectKind::Node, node.claimed_name()),
            Object::Pod(_) => panic!("rules need no Pods"),
        };
        names.push(format!("{kind} {}", name.name()));
    });
    (names, outcome)
}

fn check(text: &str, expected: &[&str]) {
    let (names, outcome) = names(text);
    assert_eq!(outcome.problems, [], "{text}");
    assert_eq!(names, expected, "{text}");
    assert_eq!(outcome.n_objects, expected.len());
}

fn check_problems(text: &str, expected: &[&str]) {
    let problems: Vec<String> = names(text).1.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems, expected, "{text}");
}

fn only_service(text: &str) -> ApiService {
    let mut found = Vec::new();
    let outcome = read(text.as_bytes(), "f.yaml", &mut |object| match object {
        Object::Service(service) => found.push(*service),
        other => panic!("{other:?}"),
    });
    assert_eq!(outcome.problems, [], "{text}");
    assert_eq!(found.len(), 1, "{text}");
    found.remove(0)
}

fn spec(text: &str) -> ServiceSpec {
    only_service(text).spec.get().unwrap().clone()
}

fn texts(list: &FieldValue<Vec<FieldValue<String>>>) -> Vec<&str> {
    list.items().iter().map(FieldValue::text).collect()
}

#[test]
fn documents_of_all_three_kinds_are_read_and_others_counted() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n# nothing\n---\n\
                apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n---\n\
                {\"apiVersion\": \"discovery.k8s.io/v1\", \"kind\": \"EndpointSlice\", \"metadata\": {\"name\": \"c\"}}\n---\n\
                kind: Node\nmetadata: {name: d}\n---\n";
    check(text, &["Service a", "EndpointSlice c", "Node d"]);
    assert_eq!(names(text).1.n_other_kinds, 1);
    check("", &[]);
    check("---\n", &[]);
}

#[test]
fn a_kind_of_another_group_is_another_kind() {
    let (names, outcome) = names("apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n");
    assert_eq!((names.len(), outcome.n_other_kinds, outcome.problems.len()), (0, 1, 0));
}

#[test]
fn items_of_lists_are_read_also_of_nested_lists() {
    check(
        "kind: List\napiVersion: v1\nitems:\n- kind: Service\n  metadata: {name: a}\n\
         - kind: List\n  items: [{kind: Node, metadata: {name: b}}]\n- kind: ServiceList\n  items: [{metadata: {name: c}}]\n",
        &["Service a", "Node b", "Service c"],
    );
    check("kind: List\nitems: []\n", &[]);
    check("kind: List\nitems: null\n", &[]);
    check("kind: List\nitems:\n", &[]);
}

#[test]
fn items_without_a_kind_have_their_lists_kind_wherever_it_is_stated() {
    let items = "items:\n- metadata: {name: a}\n- metadata: {name: b}\n";
    check(
        &format!("kind: EndpointSliceList\napiVersion: discovery.k8s.io/v1\n{items}"),
        &["EndpointSlice a", "EndpointSlice b"],
    );
    check(&format!("apiVersion: v1\n{items}kind: NodeList\n"), &["Node a", "Node b"]);
    check(&format!("apiVersion: v1\n{items}kind: PodList\n"), &[]);
}

#[test]
fn yaml_may_begin_with_a_brace() {
    check(
        "{kind: Service, metadata: {name: a}}\n---\n{\"kind\": \"Node\", \"metadata\": {\"name\": b,}}\n",
        &["Service a", "Node b"],
    );
    let items = "{kind: Service, metadata: {name: a}}, ".repeat(40_000);
    let (names, outcome) = names(&format!("{{kind: List, items: [{items}]}}\n"));
    assert_eq!((names.len(), outcome.problems), (40_000, Vec::new()), "longer than the replay limit");
}

#[test]
fn if_both_parsers_fail_the_error_of_the_one_that_got_further_is_reported() {
    check_problems(
        "{kind: Service,\n metadata: {name: [a}}\n",
        &["f.yaml:2: cannot be read as YAML: mismatched bracket '[' closed by '}'"],
    );
    check_problems(
        "{\"kind\": \"Service\",\n \"metadata\": {\"name\": \"a\"}\n \"spec\": {}}\n",
        &["f.yaml:3: cannot be read as JSON: expected `,` or `}`"],
    );
}

#[test]
fn json_documents_may_follow_each_other() {
    check(
        "{\"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}}\n{\"kind\": \"Service\", \"metadata\": {\"name\": \"b\"}}",
        &["Service a", "Service b"],
    );
    check(
        "{\"items\": [{\"metadata\": {\"name\": \"a\"}}], \"kind\": \"ServiceList\", \"apiVersion\": \"v1\"}",
        &["Service a"],
    );
}

#[test]
fn a_problem_names_the_line_of_its_object() {
    let bad = "{kind: Service, metadata: {name: a}, spec: 1}";
    let what = "Service default/a: spec: \"1\" is not an object";
    check_problems(
        &format!("# head\n\nkind: List\nitems:\n- {bad}\n- {bad}\n---\nkind: List\nitems:\n\n- {bad}\n"),
        &[&format!("f.yaml:5: {what}"), &format!("f.yaml:6: {what}"), &format!("f.yaml:11: {what}")],
    );
    let bad = "{\"kind\": \"Service\", \"metadata\": {\"name\": \"a\"},\n \"spec\": 1}";
    check_problems(
        &format!("\n{bad}\n{bad}\n---\n{{\"kind\": \"List\", \"items\": [\n{bad}]}}"),
        &[&format!("f.yaml:2: {what}"), &format!("f.yaml:4: {what}"), &format!("f.yaml:8: {what}")],
    );
}

#[test]
fn a_malformed_document_does_not_affect_other_documents() {
    let text = "kind: List\nitems:\n- {kind: Node, metadata: {name: a}}\n- {kind: Node\n---\nkind: Node\nmetadata: {name: b}\n";
    let (names, outcome) = names(text);
    assert_eq!(names, ["Node a", "Node b"]);
    assert_eq!(outcome.problems.len(), 1);
    assert_eq!(outcome.problems[0].object, None);
}

#[test]
fn a_read_error_is_a_problem() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("disk on fire"))
        }
    }
    let text = "kind: Node\nmetadata: {name: a}\n---\nkind: Node\n".as_bytes();
    let outcome = read(BufReader::new(text.chain(Failing)), "f.yaml", &mut |_| {});
    assert!(outcome.problems.iter().any(|problem| problem.what.contains("disk on fire")), "{outcome:?}");
    let outcome = read(BufReader::new(Failing), "f.yaml", &mut |_| {});
    assert_eq!(outcome.problems.len(), 1);
}

#[test]
fn the_output_of_kubectl_is_read() {
    let service = only_service(
        "apiVersion: v1
kind: Service
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"annotations\":{},\"name\":\"web\"}}
    note: >-
      folded
      ---
      text
    number: \"80\"
    word: \"yes\"
  creationTimestamp: \"2026-01-02T03:04:05Z\"
  managedFields:
  - {manager: kubectl, operation: Update, fieldsV1: {f:spec: {f:ports: {'k:{\"port\":80,\"protocol\":\"TCP\"}': {.: {}}}}}}
  name: web
  namespace: \"1\"
  resourceVersion: \"4711\"
  uid: 0e7b1f5e-0000-4000-8000-000000000000
spec:
  clusterIP: 10.0.0.1
  clusterIPs:
  - 10.0.0.1
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: \"80\"
    port: 80
    protocol: TCP
    targetPort: http
  - name: metrics
    port: 9090
    targetPort: 9090
  selector:
    app: web
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {}
",
    );
    assert_eq!(service.claimed_name().to_string(), "1/web");
    let [http, metrics] = service.spec.get().unwrap().ports.items() else { panic!("{service:?}") };
    let (http, metrics) = (http.get().unwrap(), metrics.get().unwrap());
    assert_eq!(
        (http.name.text(), &http.port, &metrics.port),
        ("80", &FieldValue::Valid(80), &FieldValue::Valid(9090))
    );
}

#[test]
fn absent_fields_of_a_service_get_their_defaults() {
    let service = only_service(
        "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n",
    );
    assert_eq!(service.claimed_name().to_string(), "default/a");
    let spec = service.spec.get().unwrap();
    assert_eq!(spec.type_.text(), "ClusterIP");
    assert_eq!(spec.session_affinity.text(), "None");
    assert_eq!(spec.internal_traffic_policy.text(), "Cluster");
    assert_eq!(spec.external_traffic_policy, FieldValue::Absent);
    assert_eq!(texts(&spec.cluster_ips), ["10.0.0.1"]);
    assert_eq!(texts(&spec.ip_families), ["IPv4"]);
    assert_eq!(spec.ports.items()[0].get().unwrap().protocol.text(), "TCP");
}

#[test]
fn cluster_ip_and_families_follow_cluster_ips() {
    let spec = spec("kind: Service\nmetadata: {name: a}\nspec: {clusterIPs: ['fd00::1', 10.0.0.1]}\n");
    assert_eq!(spec.cluster_ip.text(), "fd00::1");
    assert_eq!(texts(&spec.ip_families), ["IPv6", "IPv4"]);
}

#[test]
fn a_load_balancer_gets_its_default_policy_mode_and_affinity() {
    let service = only_service(
        "kind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, sessionAffinity: ClientIP}\n\
         status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: a.example}]}}\n",
    );
    let spec = service.spec.get().unwrap();
    assert_eq!(spec.external_traffic_policy.text(), "Cluster");
    let client_ip = spec.session_affinity_config.get().unwrap().client_ip.get().unwrap();
    assert_eq!(client_ip.timeout_seconds, FieldValue::Valid(10_800));
    let ingress = service.status.get().unwrap().load_balancer.get().unwrap().ingress.items();
    let modes: Vec<&str> = ingress.iter().map(|entry| entry.get().unwrap().ip_mode.text()).collect();
    assert_eq!(modes, ["VIP", ""]);
}

#[test]
fn headless_and_external_name_services_keep_their_type() {
    let headless = spec("kind: Service\nmetadata: {name: a}\nspec: {clusterIP: None}\n");
    assert_eq!(headless.cluster_ip.text(), "None");
    assert_eq!(texts(&headless.ip_families), [""; 0]);
    let external = spec("kind: Service\nmetadata: {name: a}\nspec: {type: ExternalName, externalName: b}\n");
    assert_eq!(
        (external.cluster_ip, external.internal_traffic_policy),
        (FieldValue::Absent, FieldValue::Absent)
    );
}

#[test]
fn ports_of_slices_get_default_name_and_protocol_and_nodes_their_cidr() {
    let mut found = Vec::new();
    let text = "kind: EndpointSlice\nmetadata: {name: a}\nports: [{port: 80}]\n---\n\
                kind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.0.0.0/24}\n";
    read(text.as_bytes(), "f", &mut |object| found.push(object));
    let [Object::Slice(slice), Object::Node(node)] = &found[..] else { panic!("{found:?}") };
    let port = slice.ports.items()[0].get().unwrap();
    assert_eq!((&port.name, port.protocol.text()), (&FieldValue::Valid(String::new()), "TCP"));
    assert_eq!(slice.claimed_name().to_string(), "default/a");
    assert_eq!(texts(&node.spec.get().unwrap().pod_cidrs), ["10.0.0.0/24"]);
}

#[test]
fn a_list_of_50_000_objects_and_as_many_documents_load() {
    let object =
        |i: usize| format!("kind: Service\n  metadata: {{name: s{i}}}\n  spec: {{clusterIP: 10.0.0.1}}\n");
    let list: String = (0..50_000).map(|i| format!("- {}", object(i))).collect();
    let documents: String = (0..50_000).map(|i| format!("---\n  {}", object(i))).collect();
    for text in [format!("kind: List\nitems:\n{list}"), documents] {
        let (names, outcome) = names(&text);
        assert_eq!(outcome.problems, []);
        assert_eq!(names.len(), 50_000);
        assert_eq!(names[49_999], "Service s49999");
    }
}

#[test]
fn messages_escape_control_characters() {
    check_problems(
        "kind: Service\nmetadata: {name: \"a\\e[2J\\nb\"}\nspec: 1\n",
        &["f.yaml:1: Service default/a\\u{1b}[2J\\nb: spec: \"1\" is not an object"],
    );
}

#[test]
fn only_true_and_false_are_booleans() {
    check("kind: Node\nmetadata: {name: n}\n---\nkind: Node\nmetadata: {name: on}\n", &["Node n", "Node on"]);
    let mut found = Vec::new();
    let text =
        "kind: EndpointSlice\nmetadata: {name: a}\nendpoints: [{conditions: {ready: yes, serving: true}}]\n";
    read(text.as_bytes(), "f", &mut |object| found.push(object));
    let [Object::Slice(slice)] = &found[..] else { panic!("{found:?}") };
    let conditions = slice.endpoints.items()[0].get().unwrap().conditions.get().unwrap();
    assert_eq!((conditions.ready.get(), conditions.serving.get()), (None, Some(&true)));
    assert!(!conditions.ready.is_absent(), "not a boolean, but present");
}

/// When each blank byte moved all following bytes, 10 MiB took 11 minutes.
#[test]
#[allow(clippy::disallowed_methods, reason = "a generous bound on time")]
fn blanks_are_read_as_fast_as_other_text() {
    let good = |name| format!("kind: Node\nmetadata: {{name: {name}}}\n");
    for blanks in [" ", "\t", "\r"] {
        let blanks = blanks.repeat(4 << 20);
        for text in [
            format!("{blanks}\n"),
            format!("{blanks}# comment\n"),
            format!("x: |\n{blanks}\n"),
            format!("x: y{blanks}\n"),
        ] {
            let text = format!("{}---\n{text}---\n{}", good("a"), good("b"));
            let start = std::time::Instant::now();
            let (names, _) = names(&text);
            assert_eq!(
                (names.first(), names.last()),
                (Some(&"Node a".to_owned()), Some(&"Node b".to_owned()))
            );
            assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
        }
    }
}

#[test]
fn an_object_above_the_limit_is_skipped_and_reported() {
    let long = "x".repeat(17 << 20);
    let node = |name| format!("{{\"kind\": \"Node\", \"metadata\": {{\"name\": \"{name}\"}}}}");
    let yaml = format!("- {}\n- kind: Node\n  x: {long}\n- {}\n", node("a"), node("never"));
    let json = format!("[{}, {{\"x\": \"{long}\"}}, {}]", node("a"), node("never"));
    for (list, line) in [
        (format!("kind: List\nitems:\n{yaml}"), 5),
        (format!("{{\"kind\": \"List\",\n\"items\": {json}}}\n"), 2),
    ] {
        let text = format!("{list}---\n{}\n", node("b"));
        let (names, outcome) = names(&text);
        assert_eq!(names, ["Node a", "Node b"]);
        let problems: Vec<String> = outcome.problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems, [format!("f.yaml:{line}: holds an object longer than 16 MiB")]);
    }
}

#[test]
fn a_list_may_be_longer_than_the_limit_for_an_object() {
    let item = |i| format!("- kind: Node\n  metadata: {{name: n{i}}}\n  x: {}\n", "x".repeat(1 << 20));
    let text: String = (0..20).map(item).collect();
    assert_eq!(names(&format!("kind: List\nitems:\n{text}")).0.len(), 20);
    let item = |i| {
        format!(
            "{{\"kind\": \"Node\", \"metadata\": {{\"name\": \"n{i}\"}}, \"x\": \"{}\"}}",
            "x".repeat(1 << 20)
        )
    };
    let items: Vec<String> = (0..20).map(item).collect();
    assert_eq!(names(&items.join("\n")).0.len(), 20);
    assert_eq!(names(&format!("{{\"kind\": \"List\", \"items\": [{}]}}", items.join(","))).0.len(), 20);
}

#[test]
fn of_many_problems_of_a_text_the_first_are_stored_and_the_rest_counted() {
    let outcome = names(&format!("kind: List\nitems:\n{}", "- 1\n".repeat(MAX_PROBLEMS + 500))).1;
    assert_eq!((outcome.problems.len(), outcome.n_more_problems), (MAX_PROBLEMS, 500));
}

proptest::proptest! {
    /// Reading any text ends without a panic.
    #[test]
    fn no_text_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        read(&bytes[..], "f", &mut |_| {});
    }

    /// The same for text that is almost a manifest.
    #[test]
    fn no_damaged_manifest_panics(
        damage in proptest::collection::vec((0usize..400, "[-:{}\\[\\]\"'|&*!%#,\n\t a\u{0}\u{1}é]"), 1..6),
        is_json in proptest::bool::ANY,
    ) {
        let yaml = "kind: List\nitems:\n- kind: Service\n  metadata: {name: a, labels: {b: 'c'}}\n  spec:\n    \
                    clusterIP: 10.0.0.1\n    ports:\n    - port: 80\n      name: |\n        http\n---\nkind: Node\n";
        let json = "{\"kind\": \"List\", \"items\": [{\"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}, \
                    \"spec\": {\"ports\": [{\"port\": 80}]}}]}\n---\n{\"kind\": \"Node\"}\n";
        let mut text: Vec<char> = if is_json { json } else { yaml }.chars().collect();
        for (at, with) in damage {
            let at = at % text.len();
            text.splice(at..=at, with.chars());
        }
        let text: String = text.into_iter().collect();
        let mut interner = crate::model::decode::Interner::default();
        read(text.as_bytes(), "f", &mut |object| {
            crate::model::decode::change(&object, &mut interner);
        });
    }
}
