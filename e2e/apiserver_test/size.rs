//! A large cluster is served in seconds, and a slow or absent reader costs nothing.

use std::time::Instant;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::Api;
use kube_runtime::watcher::Config;
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::mirror::Mirror;
use crate::{client, slice, start};

fn fill(server: &ApiServer, n_slices: usize) {
    for index in 0..n_slices {
        let mut slice = slice(&format!("s{index:05}"), "10.0.0.1");
        slice["endpoints"] = (0..10)
            .map(|last| json!({ "addresses": [format!("10.0.0.{last}")], "nodeName": "node-a", "conditions": { "ready": true } }))
            .collect();
        server.put(slice);
    }
}

async fn check(n_slices: usize) {
    let server = start();
    let started = Instant::now();
    fill(&server, n_slices);
    println!("{n_slices} slices put in {:?}", started.elapsed());
    for config in [Config::default(), Config::default().streaming_lists()] {
        let api: Api<EndpointSlice> = Api::all(client(&server.kubeconfig()).await);
        let started = Instant::now();
        let mut mirror = Mirror::new(api, config);
        mirror.listed().await;
        assert_eq!(mirror.objects.len(), n_slices);
        println!("  listed in {:?}", started.elapsed());
        // The client waits between two pages while the objects change; the next list is complete all the same.
        let started = Instant::now();
        for index in 0..n_slices / 10 {
            let name = format!("s{:05}", index * 10);
            server.put(slice(&name, &format!("10.1.{}.1", mirror.n_lists)));
            server.put(slice(&name, "10.9.9.9"));
        }
        mirror.until("all changes", |mirror| mirror.steps.len() == n_slices / 10 * 2).await;
        println!("  {} changes followed in {:?}", mirror.steps.len(), started.elapsed());
    }
}

#[tokio::test]
async fn five_thousand_slices_are_listed_and_followed() {
    check(5_000).await;
}

#[tokio::test]
#[ignore = "prints times; run by hand"]
async fn fifty_thousand_slices_are_listed_and_followed() {
    check(50_000).await;
}
