//! A healthy API server: quiet watches, GOAWAY, a shutdown in order, rotated credentials,
//! streaming lists rejected inside the stream. Only the simulator does so on demand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::kernel::TURNS;
use super::{AT_ONCE, Extent, Finding, Load, all_is_right};
use crate::apiserver::{ApiServer, ClientCertificate, Counters, Etcd, Proxy, TOKEN, Trust, User, kubeconfig};
use crate::cluster::{OWN, WEB, WEB_PODS, own_slice};
use crate::lab::address::Family;
use crate::lab::client::{Host, Tally};
use crate::lab::netfilter::Backend;
use crate::lab::poll;
use crate::running::Running;

/// How long an agent may need to catch up: the client waits up to 8 s between two attempts.
const CAUGHT_UP: Duration = Duration::from_secs(15);

/// Rules follow the API server through all of this, and no connection fails.
pub fn rules_follow_the_api_server(backend: Backend, extent: Extent) -> Vec<Finding> {
    let mut running = Running::with_flags(backend, &[AT_ONCE]).expect("a cluster starts");
    if running.api.simulator().is_none() {
        return Vec::new();
    }
    let findings = vec![
        quiet_watches(&running, extent),
        goaway_during_changes(&running, extent),
        orderly_end(&running, extent),
        rejected_in_the_stream(&mut running),
        rotated_certificates(&mut running),
        replaced_kubeconfig(&mut running),
    ];
    all_is_right(&running);
    findings
}

/// Changes the endpoint of `own`, and waits until it is in force on node-1; returns how long that took.
fn change(running: &Running, api: &ApiServer, turn: usize) -> Duration {
    let (address, pod) = TURNS[turn % 2];
    api.apply(own_slice(&[address])).expect("a good slice");
    let begun = Instant::now();
    let to = OWN.cluster_ip(Family::V4);
    poll::until("the change is in force", CAUGHT_UP, || running.lab.node(1).tcp(to).pod() == pod);
    begun.elapsed()
}

fn found(fault: &str, observed: String, repaired: Vec<Duration>, tally: &Tally) -> Finding {
    assert_eq!(tally.n_wrong(&WEB_PODS), 0, "{fault}: {tally}");
    Finding {
        fault: format!("API server: {fault}"),
        n_times: u32::try_from(repaired.len()).expect("a small number"),
        observed,
        repaired,
        n_tried: tally.n_attempts(),
        n_wrong: 0,
    }
}

/// With an old etcd and no event, watches are silent: the agents neither reconnect nor warn.
fn quiet_watches(running: &Running, extent: Extent) -> Finding {
    let api = running.simulator();
    let time = extent.of(Duration::from_secs(5), Duration::from_secs(240));
    api.set_etcd(Etcd::V3_4);
    let mut repaired = vec![change(running, api, 0)];
    let (before, n_warnings) = (api.counters(), warnings(running));
    thread::sleep(time);
    let now = api.counters();
    let asked = (now.requests - before.requests, now.connections - before.connections);
    assert_eq!(asked, (0, 0), "requests and connections in {} s of silence", time.as_secs());
    assert_eq!(warnings(running), n_warnings, "{}", running.agents[0].log());
    repaired.push(change(running, api, 1));
    api.set_etcd(Etcd::V3_6);
    let observed =
        format!("two nodes asked nothing and warned of nothing in {} s without a byte", time.as_secs());
    found("quiet watches (etcd 3.4)", observed, repaired, &Tally::default())
}

fn warnings(running: &Running) -> usize {
    running.agents[0].log().lines().filter(|line| line.starts_with('W')).count()
}

/// The server sends GOAWAY while endpoints change.
fn goaway_during_changes(running: &Running, extent: Extent) -> Finding {
    let api = running.simulator();
    let load = Load::on(&running.lab, WEB);
    let n_lists = |api: &ApiServer| {
        let counters = api.counters();
        counters.resources.values().map(|counts| counts.lists + counts.streaming_lists).sum::<u64>()
    };
    let (n_before, n_warnings) = (n_lists(api), warnings(running));
    let repaired = (0..extent.of(4, 100))
        .map(|turn| {
            api.go_away();
            // Every other time the watches end, too, so that requests need a new connection.
            if turn % 2 == 1 {
                api.drop_watches();
            }
            change(running, api, turn)
        })
        .collect();
    assert_eq!(n_lists(api), n_before, "nothing is listed anew");
    assert_eq!(warnings(running), n_warnings, "{}", running.agents[0].log());
    found(
        "GOAWAY during changes",
        "each change in force, no list, no warning".to_owned(),
        repaired,
        &load.stop(),
    )
}

/// The server is updated: it refuses connections, ends open watches in order, and returns.
fn orderly_end(running: &Running, extent: Extent) -> Finding {
    let api = running.simulator();
    let grace = extent.of(Duration::from_secs(2), Duration::from_secs(60));
    let load = Load::on(&running.lab, WEB);
    api.shut_down(grace);
    let begun = Instant::now();
    let mut repaired = vec![change(running, api, 0)];
    let is_over = |counters: &Counters| counters.resources.values().all(|counts| counts.open_watches == 0);
    assert!(api.wait_for(grace + CAUGHT_UP, is_over), "watches end");
    assert!(begun.elapsed() >= grace, "they went on until then");
    let (address, pod) = TURNS[1];
    api.apply(own_slice(&[address])).expect("a good slice");
    api.come_back();
    let back = Instant::now();
    let to = OWN.cluster_ip(Family::V4);
    poll::until("it catches up", CAUGHT_UP, || running.lab.node(1).tcp(to).pod() == pod);
    repaired.push(back.elapsed());
    let observed =
        format!("changes in force to the end, {} s after SIGTERM, and after its return", grace.as_secs());
    found("ends in order and is back", observed, repaired, &load.stop())
}

/// A start where an event of the stream rejects streaming lists.
fn rejected_in_the_stream(running: &mut Running) -> Finding {
    let (address, pod) = TURNS[0];
    let load = Load::on(&running.lab, WEB);
    running.simulator().set_etcd(Etcd::V3_4);
    running.api.put(own_slice(&[address]));
    let begun = Instant::now();
    running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
    let repaired = vec![begun.elapsed()];
    assert_eq!(running.lab.node(1).tcp(OWN.cluster_ip(Family::V4)).pod(), pod);
    let counters = running.simulator().counters();
    assert_eq!(counters.resources.values().map(|counts| counts.pages_from_etcd).sum::<u64>(), 0);
    running.simulator().set_etcd(Etcd::V3_6);
    let observed = "a start lists from the server's cache instead".to_owned();
    found("streaming lists rejected inside the stream", observed, repaired, &load.stop())
}

/// A file replaced as the kubelet does it, by renaming another one.
fn replace(path: &Path, text: &str) {
    let next = path.with_extension("next");
    fs::write(&next, text).expect("the lab's folder can be written to");
    fs::rename(&next, path).expect("a file can take another's place");
}

/// The server rejects the client certificate until its files are replaced; then the same for the
/// authority of the server.
fn rotated_certificates(running: &mut Running) -> Finding {
    let folder = running.lab.folder().to_owned();
    let [authority, certificate, key] = ["ca.crt", "client.crt", "client.key"].map(|name| folder.join(name));
    let api = running.simulator();
    let [old, new] = ["old", "new"].map(|name| api.client_certificate(name));
    replace(&authority, &api.authority());
    let show = |shown: &ClientCertificate| {
        replace(&certificate, &shown.certificate);
        replace(&key, &shown.key);
    };
    show(&old);
    api.require_certificate(Some(vec![old]));
    let user = User::Certificate(certificate.clone(), key.clone());
    let text = kubeconfig(&format!("https://{}", api.address()), &Trust::File(authority.clone()), &user);
    let load = Load::on(&running.lab, WEB);
    running.replace_agent(&[AT_ONCE], Some(text)).expect("an agent starts");
    let api = running.simulator();
    change(running, api, 0);

    api.require_certificate(Some(vec![new.clone()]));
    api.drop_watches();
    poll::until("it is refused", CAUGHT_UP, || running.agents[0].log().contains("Unauthorized"));
    show(&new);
    let mut repaired = vec![change(running, api, 1)];

    api.replace_authority();
    api.go_away();
    api.drop_watches();
    poll::until("the server is not trusted", CAUGHT_UP, || {
        running.agents[0].log().contains("invalid peer certificate")
    });
    replace(&authority, &api.authority());
    repaired.push(change(running, api, 0));
    api.require_certificate(None);
    // The kubeconfig of the agent of node-2 contains the old authority.
    running.renew_agents().expect("agents start");
    let observed = "rules stay; the agent reads the replaced files".to_owned();
    found("client certificate, then authority replaced in their files", observed, repaired, &load.stop())
}

/// The API server moves to another address: the kubeconfig is replaced, and the old address ends.
fn replaced_kubeconfig(running: &mut Running) -> Finding {
    let path: PathBuf = running.lab.folder().join("replaced.kubeconfig");
    let server = running.simulator().address();
    // Two load balancers before the same server.
    let proxies = [1, 2].map(|n| {
        let address = SocketAddr::new(server.ip(), server.port() + n);
        let netns = running.lab.fabric().fd().expect("a namespace");
        Proxy::start(address, Some(netns), server).expect("a proxy starts")
    });
    let leading_to = |proxy: &Proxy| {
        let text = running.simulator().kubeconfig_https(server.ip(), &User::Token(TOKEN.to_owned()));
        text.replace(&server.to_string(), &proxy.address().to_string())
    };
    let texts = [leading_to(&proxies[0]), leading_to(&proxies[1])];
    replace(&path, &texts[0]);
    let load = Load::on(&running.lab, WEB);
    let flag = format!("--kubeconfig={}", path.display());
    running.replace_agent(&[AT_ONCE, &flag], Some(String::new())).expect("an agent starts");
    change(running, running.simulator(), 0);

    replace(&path, &texts[1]);
    let [old, _new] = proxies;
    drop(old);
    let repaired = vec![change(running, running.simulator(), 1)];
    let tally = load.stop();
    running.replace_agent(&[AT_ONCE], None).expect("an agent starts");
    found("kubeconfig replaced", "the address that it names is used".to_owned(), repaired, &tally)
}
