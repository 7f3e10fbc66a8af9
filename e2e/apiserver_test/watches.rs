//! Watches: both ways to begin, selectors, bookmarks, ends, expired versions.

use std::fmt::Debug;
use std::io::Read;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Resource, WatchEvent, WatchParams};
use kube_runtime::watcher::Config;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::apiserver::{ApiServer, Etcd, Gzip};
use crate::mirror::Mirror;
use crate::raw::{self, Request};
use crate::{LIMIT, client, get, node, service, slice, start};

/// Follows objects of one kind through creation, change and deletion, with both strategies.
async fn check_follows<K>(make: fn(&str, &str) -> Value)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    for config in [Config::default().page_size(2), Config::default().streaming_lists()] {
        let server = start();
        for name in ["a", "b", "c", "d", "e"] {
            server.put(make(name, "10.0.0.1"));
        }
        let api: Api<K> = Api::all(client(&server.kubeconfig()).await);
        let mut mirror = Mirror::new(api, config);
        mirror.listed().await;
        assert_eq!(mirror.names(), ["a", "b", "c", "d", "e"]);
        server.put(make("f", "10.0.0.1"));
        server.put(make("a", "10.0.0.2"));
        server.delete(&K::kind(&()), None, "b");
        mirror.until("three steps", |mirror| mirror.steps.len() == 3).await;
        assert_eq!(mirror.steps, ["+f", "+a", "-b"]);
        assert_eq!(mirror.names(), ["a", "c", "d", "e", "f"]);
        assert_eq!(mirror.errors, [""; 0]);
    }
}

#[tokio::test]
async fn services_are_followed() {
    check_follows::<Service>(service).await;
}

#[tokio::test]
async fn endpoint_slices_are_followed() {
    check_follows::<EndpointSlice>(slice).await;
}

#[tokio::test]
async fn nodes_are_followed() {
    check_follows::<Node>(node).await;
}

#[tokio::test]
async fn both_strategies_send_the_expected_requests() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    Mirror::new(api.clone(), Config::default().streaming_lists()).listed().await;
    let counts = server.counters().of("services");
    assert_eq!((counts.lists, counts.watches, counts.streaming_lists), (0, 1, 1));
    Mirror::new(api, Config::default()).listed().await;
    assert_eq!(server.counters().of("services").lists, 1);
}

#[tokio::test]
async fn an_object_that_leaves_the_selector_is_deleted_and_one_that_enters_is_added() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("headless", "None"));
    let mut proxied_elsewhere = service("a", "10.96.0.1");
    proxied_elsewhere["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "other".into();
    let params = WatchParams::default()
        .labels("!service.kubernetes.io/service-proxy-name")
        .fields("spec.clusterIP!=None")
        .disable_bookmarks();
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut events = api.watch(&params, &server.version().to_string()).await.unwrap().boxed();
    let left = server.put(proxied_elsewhere);
    server.put(service("headless", "10.96.0.2"));
    server.put(service("a", "10.96.0.1"));
    server.put(service("a", "10.96.0.9"));
    server.put(service("headless", "None"));
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let event = tokio::time::timeout(LIMIT, events.try_next()).await.unwrap().unwrap().unwrap();
        let (what, object) = match event {
            WatchEvent::Added(object) => ("ADDED", object),
            WatchEvent::Modified(object) => ("MODIFIED", object),
            WatchEvent::Deleted(object) => ("DELETED", object),
            other => panic!("{other:?}"),
        };
        if seen.is_empty() {
            // Its last content that matched, with the version of the step.
            assert_eq!(object.metadata.resource_version, Some(left.to_string()));
            assert_eq!(object.metadata.labels.as_ref().unwrap().len(), 1);
        }
        let ip = object.spec.unwrap().cluster_ip.unwrap();
        seen.push(format!("{what} {} {ip}", object.metadata.name.unwrap()));
    }
    let expected = [
        "DELETED a 10.96.0.1",
        "ADDED headless 10.96.0.2",
        "ADDED a 10.96.0.1",
        "MODIFIED a 10.96.0.9",
        "DELETED headless 10.96.0.2",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn one_node_is_watched_by_its_name() {
    let server = start();
    server.put(node("a", "192.0.2.1"));
    server.put(node("b", "192.0.2.2"));
    let api: Api<Node> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api, Config::default().fields("metadata.name=b").streaming_lists());
    mirror.listed().await;
    server.put(node("a", "192.0.2.3"));
    server.put(node("b", "192.0.2.4"));
    mirror.until("a step", |mirror| !mirror.steps.is_empty()).await;
    assert_eq!((mirror.names(), mirror.steps.clone()), (vec!["b"], vec!["+b".to_owned()]));
}

/// The next bookmark of a watch over `path`: its version, and whether it ends a list.
async fn bookmark(server: &ApiServer, query: &str) -> (u64, bool) {
    let client = client(&server.kubeconfig()).await;
    let request =
        axum::http::Request::get(format!("/api/v1/nodes?watch=true&{query}")).body(Vec::new()).unwrap();
    let mut events = client.request_events::<Node>(request).await.unwrap().boxed();
    loop {
        let event = tokio::time::timeout(LIMIT, events.next()).await.unwrap().unwrap().unwrap();
        if let WatchEvent::Bookmark(bookmark) = event {
            let is_end = bookmark.metadata.annotations.contains_key("k8s.io/initial-events-end");
            return (bookmark.metadata.resource_version.parse().unwrap(), is_end);
        }
    }
}

#[tokio::test]
async fn bookmarks_carry_versions_of_other_kinds_on() {
    let server = start();
    server.set_bookmark_interval(Duration::from_millis(1));
    let version = server.put(node("a", "192.0.2.1"));
    let newest = server.put(service("a", "10.96.0.1"));
    let query = format!("allowWatchBookmarks=true&resourceVersion={version}");
    assert_eq!(bookmark(&server, &query).await, (newest, false));
    let list = "allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    assert_eq!(bookmark(&server, list).await, (newest, true));
    // A state that comes first because no version was given ends likewise.
    assert_eq!(bookmark(&server, "allowWatchBookmarks=true").await, (newest, true));
}

#[tokio::test]
async fn with_an_old_etcd_bookmarks_only_reflect_events_of_the_kind() {
    let server = start();
    server.set_etcd(Etcd::V3_4);
    server.set_bookmark_interval(Duration::from_millis(5));
    let version = server.put(service("a", "10.96.0.1"));
    let query = format!("allowWatchBookmarks=true&resourceVersion={version}");
    server.put(service("b", "10.96.0.2"));
    let none = tokio::time::timeout(Duration::from_millis(100), bookmark(&server, &query)).await;
    assert!(none.is_err(), "{none:?}");
    let changed = server.put(node("a", "192.0.2.1"));
    server.put(service("c", "10.96.0.3"));
    assert_eq!(bookmark(&server, &query).await, (changed, false));
}

#[tokio::test]
async fn streaming_lists_are_compressed_by_servers_that_do() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("b", "10.96.0.1"));
    let list = "/api/v1/services?watch=true&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true\
                &resourceVersionMatch=NotOlderThan";
    let watch = "/api/v1/services?watch=true&timeoutSeconds=1&resourceVersion=0";
    let ask = async |target: &str| {
        let headers = vec![("Accept-Encoding", "gzip")];
        let request = Request { method: "GET", target, headers, body: String::new() };
        let answer = raw::ask(server.address(), &request).await.expect("an answer");
        let is_compressed = answer.headers.contains_key("content-encoding");
        let mut text = String::new();
        match is_compressed {
            true => MultiGzDecoder::new(&answer.body[..]).read_to_string(&mut text).map(drop).expect("gzip"),
            false => text = String::from_utf8(answer.body).expect("text"),
        }
        (is_compressed, text.lines().count())
    };
    assert_eq!((ask(list).await, ask(watch).await), ((false, 3), (false, 2)));
    for compression in [Gzip::Flushed, Gzip::MemberPerEvent] {
        server.set_compression(Some(compression));
        assert_eq!((ask(list).await, ask(watch).await), ((true, 3), (false, 2)), "{compression:?}");
    }
}

#[tokio::test]
async fn a_watch_ends_on_time_and_continues_from_its_last_bookmark() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api, Config::default().timeout(3));
    mirror.listed().await;
    server.put(node("n", "192.0.2.1"));
    mirror.until("watched again", |_| server.counters().of("services").watches >= 2).await;
    assert_eq!(server.counters().of("services").bookmarks, 2, "2 s and 1 s before the end");
    server.put(service("b", "10.96.0.2"));
    mirror.until("b", |mirror| mirror.objects.contains_key("default/b")).await;
    assert_eq!((mirror.n_lists, mirror.errors.len()), (1, 0));
}

#[tokio::test]
async fn a_dropped_watch_resumes_without_a_list_and_without_loss() {
    for config in [Config::default(), Config::default().streaming_lists()] {
        let server = start();
        server.put(service("a", "10.96.0.1"));
        let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
        let mut mirror = Mirror::new(api, config);
        mirror.listed().await;
        for index in 0..20 {
            server.put(service(&format!("s{index:02}"), "10.96.0.1"));
            server.drop_watches();
            server.put(service(&format!("t{index:02}"), "10.96.0.1"));
            mirror.until("both", |mirror| mirror.steps.len() == 2 * (index + 1)).await;
        }
        assert_eq!((mirror.n_lists, mirror.objects.len()), (1, 41));
    }
}

#[tokio::test]
async fn a_watcher_behind_the_history_gets_gone_and_lists_again() {
    for config in [Config::default(), Config::default().streaming_lists()] {
        let server = start();
        server.put(service("a", "10.96.0.1"));
        server.put(service("b", "10.96.0.1"));
        let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
        let mut mirror = Mirror::new(api, config);
        mirror.listed().await;
        server.drop_watches();
        server.delete("Service", None, "a");
        server.compact();
        mirror.until("listed again", |mirror| mirror.n_lists == 2).await;
        assert_eq!(mirror.names(), ["b"]);
        assert_eq!(mirror.steps, [""; 0]);
        assert!(mirror.errors.iter().all(|error| error.contains("410")), "{:?}", mirror.errors);
        assert!(server.counters().of("services").gone >= 1);
    }
}

#[tokio::test]
async fn watches_that_a_real_server_rejects_are_rejected() {
    let server = start();
    let client = client(&server.kubeconfig()).await;
    let code = async |query: &str| get(&client, &format!("/api/v1/services?{query}")).await.unwrap_err();
    assert_eq!(code("watch=true&sendInitialEvents=true").await, 422);
    assert_eq!(code("watch=true&resourceVersionMatch=NotOlderThan").await, 422);
    assert_eq!(code("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").await, 422);
    server.set_pace(30);
    let to_come = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=99";
    let refused = get(&client, &format!("/api/v1/services?{to_come}")).await.unwrap();
    assert_eq!((&refused["type"], &refused["object"]["code"]), (&"ERROR".into(), &504.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_can_wait_for_what_a_client_does() {
    let server = start();
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api, Config::default());
    let follow = tokio::spawn(async move { mirror.follow_for(LIMIT, usize::MAX).await });
    assert!(server.wait_for(LIMIT, |now| now.of("services").open_watches == 1));
    follow.abort();
    assert!(server.wait_for(LIMIT, |now| now.of("services").open_watches == 0));
    assert!(!server.wait_for(Duration::from_millis(1), |now| now.of("nodes").lists > 0));
}
