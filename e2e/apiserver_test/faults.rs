//! Faults: each affects a client as its doc says, and the client catches up when it ends.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, WatchEvent};
use kube_runtime::watcher::Config;
use tokio::time::Instant;

use crate::apiserver::{ApiServer, Fault, Proxy};
use crate::mirror::Mirror;
use crate::{LIMIT, client, get, service, start};

/// A server with services `a` and `b`, and a client that has listed them and watches.
async fn followed(config: Config) -> (ApiServer, Mirror<Service>) {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.put(service("b", "10.96.0.1"));
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api, config);
    mirror.listed().await;
    server.put(service("first", "10.96.0.1"));
    mirror.until("watching", |mirror| !mirror.steps.is_empty()).await;
    (server, mirror)
}

async fn check_catches_up(server: &ApiServer, mirror: &mut Mirror<Service>) {
    server.put(service("last", "10.96.0.1"));
    server.delete("Service", None, "a");
    mirror.until("caught up", |mirror| mirror.names() == ["b", "first", "last"]).await;
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_is_reopened_and_nothing_is_lost() {
    let (server, mut mirror) = followed(Config::default()).await;
    for after in (0..1200).step_by(61) {
        server.set_fault(Some(Fault::Cut { after, times: 1 }));
        server.drop_watches();
        let name = format!("s{after:04}");
        server.put(service(&name, "10.96.0.1"));
        mirror.until(&name, |mirror| mirror.objects.contains_key(&format!("default/{name}"))).await;
    }
    server.set_fault(None);
    check_catches_up_among(&server, &mut mirror).await;
    assert_eq!(mirror.n_lists, 1, "{:?}", mirror.errors);
}

async fn check_catches_up_among(server: &ApiServer, mirror: &mut Mirror<Service>) {
    server.put(service("last", "10.96.0.1"));
    mirror.until("last", |mirror| mirror.objects.contains_key("default/last")).await;
    assert_eq!(Some(mirror.objects.len()), server_count(server).await);
}

async fn server_count(server: &ApiServer) -> Option<usize> {
    let client = client(&server.kubeconfig()).await;
    Some(get(&client, "/api/v1/services").await.ok()?["items"].as_array()?.len())
}

#[tokio::test]
async fn a_list_cut_at_any_byte_is_repeated() {
    for config in [Config::default().page_size(1), Config::default().streaming_lists()] {
        for after in (0..1600).step_by(173) {
            let server = start();
            server.put(service("a", "10.96.0.1"));
            server.put(service("b", "10.96.0.1"));
            server.set_fault(Some(Fault::Cut { after, times: 1 }));
            let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
            let mut mirror = Mirror::new(api, config.clone());
            mirror.listed().await;
            assert_eq!(mirror.names(), ["a", "b"], "cut after {after}");
        }
    }
}

#[tokio::test]
async fn an_idle_connection_is_cut_too() {
    let (server, mut mirror) = followed(Config::default()).await;
    let n_connections = server.counters().connections;
    server.set_fault(Some(Fault::Cut { after: 0, times: 1 }));
    mirror.until("reconnected", |_| server.counters().connections > n_connections).await;
    check_catches_up(&server, &mut mirror).await;
    assert_eq!(mirror.n_lists, 1);
}

#[tokio::test]
async fn clients_return_after_an_outage_of_the_server() {
    let (server, mut mirror) = followed(Config::default()).await;
    server.set_fault(Some(Fault::Away));
    server.put(service("meanwhile", "10.96.0.1"));
    mirror.until("refused", |mirror| mirror.errors.len() > 3).await;
    assert_eq!(mirror.names(), ["a", "b", "first"]);
    assert_eq!(server.counters().of("services").open_watches, 0);
    server.set_fault(None);
    server.delete("Service", None, "meanwhile");
    check_catches_up(&server, &mut mirror).await;
    assert_eq!(mirror.n_lists, 1);
}

#[tokio::test]
async fn a_silent_server_keeps_its_connections_open() {
    let (server, mut mirror) = followed(Config::default()).await;
    server.set_fault(Some(Fault::Silent));
    // A write is counted after it was made: the client can have it before.
    mirror.follow_for(Duration::from_millis(50), usize::MAX).await;
    let before = server.counters().wire_bytes;
    server.put(service("meanwhile", "10.96.0.1"));
    mirror.follow_for(Duration::from_millis(200), usize::MAX).await;
    assert_eq!((mirror.names(), mirror.errors.len()), (vec!["a", "b", "first"], 0));
    assert_eq!(server.counters().wire_bytes, before);
    server.set_fault(None);
    mirror.until("meanwhile", |mirror| mirror.objects.contains_key("default/meanwhile")).await;
    assert_eq!(server.counters().of("services").watches, 1);
}

#[tokio::test]
async fn a_slow_server_takes_its_time() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.set_fault(Some(Fault::Slow { chunk: 50, pause: Duration::from_millis(20) }));
    let started = Instant::now();
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api, Config::default());
    mirror.listed().await;
    // Head and body are more than 400 bytes.
    assert!(started.elapsed() > Duration::from_millis(8 * 20), "{:?}", started.elapsed());
    assert_eq!(mirror.names(), ["a"]);
}

#[tokio::test]
async fn while_all_versions_are_gone_lists_are_repeated() {
    let (server, mut mirror) = followed(Config::default()).await;
    server.set_fault(Some(Fault::Gone));
    mirror.until("listed again", |mirror| mirror.n_lists > 3).await;
    assert!(mirror.errors.iter().all(|error| error.contains("410")), "{:?}", mirror.errors);
    assert_eq!(mirror.names(), ["a", "b", "first"]);
    server.set_fault(None);
    check_catches_up(&server, &mut mirror).await;
}

#[tokio::test]
async fn an_error_status_applies_to_one_resource_or_to_all() {
    let server = start();
    let client = client(&server.kubeconfig()).await;
    for code in [401, 403, 500, 503] {
        server.set_fault(Some(Fault::Status(code)));
        assert_eq!(get(&client, "/api/v1/services").await, Err(code));
        server.set_fault_on("nodes", Some(Fault::Status(code)));
        assert_eq!(get(&client, "/api/v1/nodes").await, Err(code));
        assert!(get(&client, "/api/v1/services").await.is_ok());
    }
    server.set_fault(None);
    assert!(get(&client, "/api/v1/nodes").await.is_ok());
}

#[tokio::test]
async fn garbage_is_an_error_and_loses_no_event() {
    for bytes in [&b"<html>bad gateway</html>"[..], b"\xff\xfe\x00", b"{\"type\":\"ADDED\",\"object\":7}"] {
        let (server, mut mirror) = followed(Config::default()).await;
        server.set_fault(Some(Fault::Garbage(bytes.to_vec())));
        mirror.until("an error", |mirror| !mirror.errors.is_empty()).await;
        let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
        assert!(api.list(&kube::api::ListParams::default()).await.is_err());
        server.set_fault(None);
        check_catches_up(&server, &mut mirror).await;
        assert_eq!(mirror.n_lists, 1);
    }
}

#[tokio::test]
async fn an_incomplete_object_is_not_accepted() {
    let (server, mut mirror) = followed(Config::default()).await;
    server.set_fault(Some(Fault::HalfObject));
    server.put(service("meanwhile", "10.96.0.1"));
    mirror.follow_for(Duration::from_millis(200), usize::MAX).await;
    assert_eq!(mirror.names(), ["a", "b", "first"]);
    assert!(server.counters().of("services").watches > 1);
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    assert!(api.list(&kube::api::ListParams::default()).await.is_err());
    server.set_fault(None);
    server.delete("Service", None, "meanwhile");
    check_catches_up(&server, &mut mirror).await;
    assert_eq!(mirror.n_lists, 1);
}

#[tokio::test]
async fn a_stale_list_shows_old_state_and_the_watch_updates_it() {
    // The kube client omits version 0 in lists in pages.
    let any = Config { page_size: None, ..Config::default().any_semantic() };
    for config in [any, Config::default().streaming_lists()] {
        let server = start();
        server.put(service("a", "10.96.0.1"));
        let past = server.put(service("b", "10.96.0.1"));
        server.delete("Service", None, "a");
        server.put(service("b", "10.96.0.2"));
        server.put(service("c", "10.96.0.1"));
        server.set_fault(Some(Fault::StaleList { at: past }));
        let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
        let mut mirror = Mirror::new(api.clone(), config);
        mirror.listed().await;
        assert_eq!(mirror.names(), ["a", "b"]);
        mirror.follow_for(Duration::from_millis(50), usize::MAX).await;
        assert_eq!(mirror.names(), ["a", "b"]);
        // A client that requires the current version gets it.
        let mut other = Mirror::new(api, Config::default().page_size(1));
        other.listed().await;
        assert_eq!(other.names(), ["b", "c"]);
        server.set_fault(None);
        mirror.until("three steps", |mirror| mirror.steps.len() == 3).await;
        assert_eq!((mirror.names(), mirror.steps.join(" ").as_str()), (vec!["b", "c"], "-a +b +c"));
    }
}

#[tokio::test]
async fn a_proxy_has_the_faults_of_connections() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let proxy = Proxy::start(([127, 0, 0, 1], 0).into(), None, server.address()).unwrap();
    let kubeconfig = server.kubeconfig().replace(&server.address().to_string(), &proxy.address().to_string());
    let api: Api<Service> = Api::all(client(&kubeconfig).await);
    let mut mirror = Mirror::new(api, Config::default());
    mirror.listed().await;
    mirror.follow_for(Duration::from_millis(100), usize::MAX).await;
    proxy.set_fault(Some(Fault::Away));
    mirror.until("refused", |mirror| mirror.errors.len() > 3).await;
    assert!(proxy.faults_met() > 0);
    proxy.set_fault(Some(Fault::Cut { after: 100, times: 2 }));
    server.put(service("b", "10.96.0.1"));
    mirror.until("cut twice", |_| proxy.faults_met() == 2).await;
    mirror.until("b", |mirror| mirror.names() == ["a", "b"]).await;
    proxy.set_fault(Some(Fault::Silent));
    server.put(service("c", "10.96.0.1"));
    mirror.follow_for(Duration::from_millis(200), usize::MAX).await;
    assert_eq!(mirror.names(), ["a", "b"]);
    proxy.set_fault(Some(Fault::Slow { chunk: 50, pause: Duration::from_millis(5) }));
    let begun = Instant::now();
    mirror.until("c", |mirror| mirror.names() == ["a", "b", "c"]).await;
    assert!(begun.elapsed() > Duration::from_millis(20), "{:?}", begun.elapsed());
    assert_eq!(mirror.n_lists, 1);
}

#[tokio::test]
async fn streaming_lists_can_be_rejected() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    server.set_fault(Some(Fault::RefuseStreamingLists));
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let mut mirror = Mirror::new(api.clone(), Config::default().streaming_lists());
    mirror.until("refused", |mirror| !mirror.errors.is_empty()).await;
    assert!(mirror.errors[0].contains("422"), "{:?}", mirror.errors);
    let mut fallen_back = Mirror::new(api, Config::default());
    fallen_back.listed().await;
    assert_eq!(fallen_back.names(), ["a"]);
}

#[tokio::test]
async fn streaming_lists_can_be_misunderstood() {
    let server = start();
    server.set_bookmark_interval(Duration::from_millis(1));
    server.put(service("a", "10.96.0.1"));
    server.set_fault(Some(Fault::IgnoreStreamingLists));
    let api: Api<Service> = Api::all(client(&server.kubeconfig()).await);
    let params = kube::api::WatchParams::default().initial_events();
    let mut events = api.watch(&params, "0").await.unwrap().boxed();
    let mut next = async || tokio::time::timeout(LIMIT, events.try_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(next().await, WatchEvent::Added(_)));
    let WatchEvent::Bookmark(bookmark) = next().await else { panic!("no bookmark") };
    assert!(bookmark.metadata.annotations.is_empty());
}

#[tokio::test]
async fn a_token_is_required() {
    let server = start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "right").unwrap();
    server.require_token(Some("right"));
    let without = client(&server.kubeconfig()).await;
    assert_eq!(get(&without, "/api/v1/services").await, Err(401));
    let with = client(&server.kubeconfig_at(server.address().ip(), Some(&file))).await;
    assert!(get(&with, "/api/v1/services").await.is_ok());
    server.require_token(Some("another"));
    assert_eq!(get(&with, "/api/v1/services").await, Err(401));
}
