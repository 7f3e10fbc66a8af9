//! Changes of objects by clients: events, status, conflicts.

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;

use crate::{client, node, service, start};

#[tokio::test]
async fn an_event_is_recorded_and_its_repetition_counted() {
    let server = start();
    let reporter = Reporter { controller: "kube-proxy".into(), instance: Some("kube-proxy-a".into()) };
    let recorder = Recorder::new(client(&server.kubeconfig()).await, reporter);
    let about =
        ObjectReference { kind: Some("Node".into()), name: Some("a".into()), ..ObjectReference::default() };
    let event = Event {
        type_: EventType::Normal,
        reason: "Starting".into(),
        note: None,
        action: "StartKubeProxy".into(),
        secondary: None,
    };
    recorder.publish(&event, &about).await.unwrap();
    recorder.publish(&event, &about).await.unwrap();
    let events = server.posted("Event");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["metadata"]["namespace"], "default");
    assert_eq!(events[0]["reportingController"], "kube-proxy");
    assert_eq!(events[0]["series"]["count"], 2);
}

#[tokio::test]
async fn status_and_spec_are_written_separately() {
    let server = start();
    server.put(node("a", "192.0.2.1"));
    let nodes: Api<Node> = Api::all(client(&server.kubeconfig()).await);
    let patch = json!({
        "metadata": { "labels": { "x": "y" } },
        "spec": { "podCIDR": "10.0.0.0/24" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.2" }] },
    });
    let stored = nodes.patch_status("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(stored.status.unwrap().addresses.unwrap()[0].address, "192.0.2.2");
    assert_eq!((stored.spec, stored.metadata.labels), (None, None));
    let stored = nodes
        .patch(
            "a",
            &PatchParams::default(),
            &Patch::Merge(&json!({
                "spec": { "podCIDR": "10.0.0.0/24" }, "status": null,
            })),
        )
        .await
        .unwrap();
    assert_eq!(stored.spec.clone().unwrap().pod_cidr.as_deref(), Some("10.0.0.0/24"));
    assert_eq!(stored.status.clone().unwrap().addresses.unwrap()[0].address, "192.0.2.2");
    let mut changed = stored;
    changed.status.as_mut().unwrap().addresses = None;
    changed.spec = None;
    let stored = nodes.replace_status("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(stored.status.unwrap().addresses, None);
    assert!(stored.spec.is_some());
}

#[tokio::test]
async fn conflicting_writes_are_rejected() {
    let server = start();
    let services: Api<Service> = Api::default_namespaced(client(&server.kubeconfig()).await);
    let given: Service = serde_json::from_value(service("a", "10.96.0.1")).unwrap();
    let made = services.create(&PostParams::default(), &given).await.unwrap();
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    };
    assert_eq!(code(services.create(&PostParams::default(), &given).await.unwrap_err()), 409);
    server.put(service("a", "10.96.0.2"));
    assert_eq!(code(services.replace("a", &PostParams::default(), &made).await.unwrap_err()), 409);
    services.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(services.delete("a", &DeleteParams::default()).await.unwrap_err()), 404);
    assert_eq!(server.counters().of("services").writes, 2);
}

#[tokio::test]
async fn an_object_keeps_its_identity_and_its_version_until_it_differs() {
    let server = start();
    let first = server.put(service("a", "10.96.0.1"));
    let stored = server.get("Service", None, "a").unwrap();
    assert_eq!(server.put(service("a", "10.96.0.1")), first);
    assert_eq!(server.put(stored.clone()), first);
    let second = server.put(service("a", "10.96.0.2"));
    assert!(second > first);
    let changed = server.get("Service", None, "a").unwrap();
    let same = |field: &str| stored["metadata"][field] == changed["metadata"][field];
    assert!(same("uid") && same("creationTimestamp") && !same("resourceVersion"));
    server.delete("Service", None, "a");
    server.put(service("a", "10.96.0.2"));
    assert_ne!(server.get("Service", None, "a").unwrap()["metadata"]["uid"], stored["metadata"]["uid"]);
}

#[tokio::test]
async fn objects_that_a_real_server_would_reject_are_stored_as_given() {
    let server = start();
    let mut broken = service("a", "10.96.0.1");
    broken["spec"]["ports"] = json!("none");
    broken["metadata"]["labels"] = json!(["not", "a", "map"]);
    server.put(broken.clone());
    let stored = server.get("Service", None, "a").unwrap();
    assert_eq!(
        (&stored["spec"], &stored["metadata"]["labels"]),
        (&broken["spec"], &broken["metadata"]["labels"])
    );
}

#[test]
fn objects_that_a_real_server_rejects_are_not_applied() {
    let server = start();
    let mut refused = crate::slice("six", "fd00:10:128:0::5");
    refused["addressType"] = "IPv6".into();
    let why = server.apply(refused.clone()).unwrap_err();
    assert!(why.contains("must be in canonical form"), "{why}");
    refused["endpoints"][0]["addresses"][0] = "fd00:10:128::5".into();
    server.apply(refused).unwrap();
    let with = |cidr: &str| {
        let mut node = node("a", "192.0.2.1");
        node["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
        server.apply(node)
    };
    with("10.128.0.0/24").unwrap();
    let why = with("10.128.1.0/24").unwrap_err();
    assert!(why.contains("may not change podCIDR"), "{why}");
    with("10.128.0.0/24").unwrap();
}

#[test]
fn empty_lists_of_a_slice_are_returned_as_null() {
    let server = start();
    let mut empty = crate::slice("a", "10.0.0.1");
    empty["endpoints"] = json!([]);
    server.apply(empty).unwrap();
    assert_eq!(server.get("EndpointSlice", None, "a").unwrap()["endpoints"], json!(null));
}

#[tokio::test]
async fn it_is_healthy_and_reports_its_version() {
    let server = start();
    let client = client(&server.kubeconfig()).await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
    let request = axum::http::Request::get("/healthz").header("accept", "*/*").body(Vec::new()).unwrap();
    assert_eq!(client.request_text(request).await.unwrap(), "ok");
    let metadata_only: Api<kube::core::PartialObjectMeta<Service>> = Api::all(client);
    let refused = metadata_only.list(&kube::api::ListParams::default()).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 406));
}
