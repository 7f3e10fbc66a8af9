//! Lists: pages, versions, selectors, namespaces, compression.

use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::raw::{self, Request};
use crate::{client, get, names, service, start};

#[tokio::test]
async fn items_of_a_list_have_no_kind_and_an_object_has() {
    let server = start();
    let version = server.put(service("a", "10.96.0.1"));
    let client = client(&server.kubeconfig()).await;
    let list = get(&client, "/api/v1/services").await.unwrap();
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["metadata"]["resourceVersion"], version.to_string());
    assert!(list["items"][0].get("kind").is_none());
    let object = get(&client, "/api/v1/namespaces/default/services/a").await.unwrap();
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("Service"), &json!("v1")));
    assert_eq!(object["metadata"]["uid"].as_str().map(str::len), Some(36));
    assert!(object["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(get(&client, "/api/v1/namespaces/default/services/b").await, Err(404));
}

#[tokio::test]
async fn an_empty_list_has_a_version_that_is_not_zero() {
    let server = start();
    let client = client(&server.kubeconfig()).await;
    let list = get(&client, "/apis/discovery.k8s.io/v1/endpointslices?limit=500").await.unwrap();
    assert_eq!(list["metadata"]["resourceVersion"], "1");
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn pages_show_one_state_while_objects_change() {
    let server = start();
    for index in 0..1200 {
        server.put(service(&format!("s{index:04}"), "10.96.0.1"));
    }
    let services: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut found = Vec::new();
    let mut left = Vec::new();
    let mut token = None;
    for _ in 0..3 {
        let params = ListParams { limit: Some(500), continue_token: token, ..ListParams::default() };
        let page = services.list(&params).await.unwrap();
        assert_eq!(page.metadata.resource_version.as_deref(), Some("1201"));
        found.extend(page.items.into_iter().map(|service| service.metadata.name.unwrap()));
        left.push(page.metadata.remaining_item_count);
        token = page.metadata.continue_;
        server.delete("Service", None, "s0000");
        server.delete("Service", None, "s0900");
        server.put(service("s0500x", "10.96.0.1"));
        server.put(service("s1100", "10.96.9.9"));
    }
    assert_eq!(token, None);
    assert_eq!(left, [Some(700), Some(200), None]);
    let all: Vec<_> = (0..1200).map(|index| format!("s{index:04}")).collect();
    assert_eq!(found, all);
    let counts = server.counters().of("services");
    assert_eq!((counts.lists, counts.pages), (1, 3));
}

#[tokio::test]
async fn a_last_page_can_be_empty_and_a_selector_hides_how_much_remains() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("b", "None"));
    let client = client(&server.kubeconfig()).await;
    let path = "/api/v1/services?limit=1&fieldSelector=spec.clusterIP!%3DNone";
    let first = get(&client, path).await.unwrap();
    assert_eq!(names(&first), ["a"]);
    assert!(first["metadata"].get("remainingItemCount").is_none());
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&client, &format!("{path}&continue={token}")).await.unwrap();
    assert_eq!(names(&second), [""; 0]);
    assert!(second["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn a_continued_list_after_compaction_is_gone() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("b", "10.96.0.2"));
    let client = client(&server.kubeconfig()).await;
    let first = get(&client, "/api/v1/services?limit=1").await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    server.compact();
    assert_eq!(get(&client, &format!("/api/v1/services?limit=1&continue={token}")).await, Err(410));
    assert_eq!(get(&client, "/api/v1/services?limit=1&continue=nonsense").await, Err(400));
    assert_eq!(server.counters().of("services").gone, 1);
}

#[tokio::test]
async fn a_list_is_as_of_the_version_asked_for() {
    let server = start();
    let first = server.put(service("a", "10.96.0.1"));
    let second = server.put(service("b", "10.96.0.2"));
    server.delete("Service", None, "a");
    let client = client(&server.kubeconfig()).await;
    let list = async |query: &str| {
        let list = get(&client, &format!("/api/v1/services?{query}")).await?;
        Ok::<_, u16>(names(&list).join(" "))
    };
    assert_eq!(list(&format!("resourceVersion={first}&resourceVersionMatch=Exact")).await.unwrap(), "a");
    assert_eq!(list(&format!("resourceVersion={second}&resourceVersionMatch=Exact")).await.unwrap(), "a b");
    assert_eq!(list(&format!("resourceVersion={second}&limit=1")).await.unwrap(), "a");
    assert_eq!(
        list(&format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan")).await.unwrap(),
        "b"
    );
    assert_eq!(list("resourceVersion=0").await.unwrap(), "b");
    server.set_pace(30);
    assert_eq!(list("resourceVersion=1000").await, Err(504));
    assert_eq!(list("resourceVersion=x").await, Err(400));
    server.set_history(1);
    server.put(service("c", "10.96.0.3"));
    assert_eq!(list(&format!("resourceVersion={first}&resourceVersionMatch=Exact")).await, Err(410));
}

#[tokio::test]
async fn version_zero_gives_all_whatever_the_limit() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("b", "10.96.0.2"));
    let client = client(&server.kubeconfig()).await;
    let list = get(&client, "/api/v1/services?resourceVersion=0&limit=1").await.unwrap();
    assert_eq!(names(&list), ["a", "b"]);
}

#[tokio::test]
async fn selectors_choose_as_a_real_server_does() {
    let server = start();
    let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: plain, namespace: one}, spec: {clusterIP: 10.96.0.1}}
- {apiVersion: v1, kind: Service, metadata: {name: blue, namespace: two, labels: {tier: blue}}, spec: {clusterIP: None}}
---
kind: ServiceList
apiVersion: v1
items:
- {metadata: {name: green, namespace: two, labels: {tier: green, service.kubernetes.io/service-proxy-name: x}}}
---
";
    server.put_yaml(text);
    let client = client(&server.kubeconfig()).await;
    let check = async |path: &str, selector: &str, expected: &str| {
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([selector.split_once('/').unwrap()])
            .finish();
        let list = get(&client, &format!("{path}?{query}")).await.unwrap();
        assert_eq!(names(&list).join(" "), expected, "{path} {selector}");
    };
    let all = "/api/v1/services";
    check(all, "labelSelector/tier", "blue green").await;
    check(all, "labelSelector/!service.kubernetes.io/service-proxy-name", "plain blue").await;
    check(all, "labelSelector/tier=blue", "blue").await;
    check(all, "labelSelector/tier==green", "green").await;
    check(all, "labelSelector/tier!=blue", "plain green").await;
    check(all, "labelSelector/tier in (blue, red)", "blue").await;
    check(all, "labelSelector/tier notin (blue, red),tier", "green").await;
    check(all, "fieldSelector/spec.clusterIP!=None", "plain green").await;
    check(all, "fieldSelector/spec.clusterIP==None", "blue").await;
    check(all, "fieldSelector/metadata.name=plain,metadata.namespace=one", "plain").await;
    check("/api/v1/namespaces/two/services", "labelSelector/", "blue green").await;
    check("/api/v1/namespaces/one/services", "labelSelector/tier", "").await;
    assert_eq!(get(&client, "/api/v1/services?fieldSelector=spec.nothing%3D1").await, Err(400));
    assert_eq!(get(&client, "/api/v1/services?labelSelector=a%20b").await, Err(400));
    assert_eq!(get(&client, "/api/v1/widgets").await, Err(404));
}

#[tokio::test]
async fn a_large_list_is_compressed_on_request() {
    let server = start();
    for index in 0..1000 {
        server.put(service(&format!("s{index:04}"), "10.96.0.1"));
    }
    let headers = vec![("Accept-Encoding", "gzip")];
    let request = Request { method: "GET", target: "/api/v1/services", headers, body: String::new() };
    let answer = raw::ask(server.address(), &request).await.expect("an answer");
    let list: Value = serde_json::from_reader(GzDecoder::new(&answer.body[..])).expect("compressed JSON");
    assert_eq!(names(&list).len(), 1000);
    let counters = server.counters();
    let n_bytes = counters.of("services").bytes;
    assert!(n_bytes > 128 * 1024, "{n_bytes}");
    assert!(counters.wire_bytes < n_bytes / 4, "{} of {n_bytes}", counters.wire_bytes);
}
