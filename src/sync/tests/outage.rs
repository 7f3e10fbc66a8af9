//! The loop behind a client whose API server goes away.

use serde_json::{Value, json};

use super::*;
use crate::watch::api::fake_server::{FakeServer, Mode};
use crate::watch::api::{RequestLimit, follow};

const LIMIT: RequestLimit = RequestLimit { qps: Some(5.0), burst: 10 };

fn service_object(n: usize) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": format!("s{n}"), "namespace": "ns"},
        "spec": {"clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}]},
    })
}

fn slice_object(n: usize, addresses: &[&str]) -> Value {
    let ready = |address: &&str| json!({"addresses": [address], "conditions": {"ready": true}});
    let service = format!("s{n}");
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("s{n}-x"), "namespace": "ns", "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"name": "", "protocol": "TCP", "port": 8080}],
        "endpoints": addresses.iter().map(ready).collect::<Vec<_>>(),
    })
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_the_api_server_end_with_a_write_of_what_changed() {
    for is_compacted in [false, true] {
        let server = FakeServer::new(Mode::Serves);
        server.put("nodes", json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE}}));
        for n in 1..=50 {
            server.put("services", service_object(n));
            server.put("endpointslices", slice_object(n, &["10.180.0.1"]));
        }
        let rig = Rig::start(Config::default(), NodeWait::CLUSTER);
        tokio::spawn(follow(server.connect(LIMIT, Arc::new(())), NODE.to_owned(), rig.events.clone()));
        rig.after(Duration::from_secs(60)).await;
        let n_first: usize = rig.kernel(|kernel| kernel.inputs.iter().map(String::len).sum());
        let n_restores = rig.restores();
        server.set_mode(Mode::Unreachable);
        server.put("endpointslices", slice_object(7, &["10.180.0.2"]));
        rig.after(Duration::from_secs(600)).await;
        assert_eq!(rig.restores(), n_restores, "rules stay, and nothing is written");
        if is_compacted {
            server.compact();
        }
        server.set_mode(Mode::Serves);
        rig.after(Duration::from_secs(10)).await;
        let written = rig.kernel(|kernel| kernel.inputs.split_off(n_restores).concat());
        assert!(written.contains("10.180.0.2"), "it catches up: {written}");
        assert!(written.len() * 10 < n_first, "{} bytes, {n_first} at first:\n{written}", written.len());
        assert!(!written.contains("ns/s8"), "nobody else's chains are written: {written}");
    }
}
