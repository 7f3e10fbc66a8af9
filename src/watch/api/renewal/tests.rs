//! Tests of credentials that are replaced while in use.

#![allow(clippy::disallowed_methods, reason = "writes files")]

use std::path::PathBuf;

use axum::body::{Body as AxumBody, Bytes};
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use kube::client::Body;
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use super::*;
use crate::watch::api::link::tests::{Identity, ReceivedRequest, TestAuthority, TlsServer};
use crate::watch::api::{RequestLimit, connect, follow};

/// A folder with a kubeconfig, certificates and a key.
struct CredentialFolder(tempfile::TempDir);

impl CredentialFolder {
    fn new(server: &TlsServer, authority: &TestAuthority, client: &Identity) -> CredentialFolder {
        let folder = CredentialFolder(tempfile::tempdir().unwrap());
        folder.write("ca.crt", &authority.pem);
        folder.put(client);
        folder.write("kubeconfig", &kubeconfig(server));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn put(&self, client: &Identity) {
        self.write("client.crt", &client.certificate);
        self.write("client.key", &client.key);
    }

    async fn renewal(&self) -> Renewal {
        self.renewal_of("kubeconfig").await
    }

    async fn renewal_of(&self, name: &str) -> Renewal {
        let source = ApiServerSource { kubeconfig: Some(self.path(name)), master: None };
        let config = source.config().await.unwrap();
        Renewal::new(source.clone(), source.files(), config, Arc::new(())).unwrap()
    }
}

fn kubeconfig(server: &TlsServer) -> String {
    format!(
        "
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]
users: [{{name: u, user: {{client-certificate: client.crt, client-key: client.key}}}}]
",
        server.address
    )
}

fn quiet(request: &Request<Incoming>) -> Response<AxumBody> {
    Response::new(match request.uri().query() {
        Some(_) => AxumBody::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()),
        None => AxumBody::from("{}"),
    })
}

/// Sends a request after the last check of the files has expired; returns the client certificate that the
/// server received.
async fn send_request(renewal: &Renewal, server: &TlsServer) -> Vec<u8> {
    tokio::time::pause();
    tokio::time::advance(CHECK_VALID_FOR).await;
    tokio::time::resume();
    server.take_requests();
    let request = Request::get("/version").body(Body::empty()).unwrap();
    assert_eq!(renewal.current().await.send(request).await.unwrap().status(), StatusCode::OK);
    server.take_requests().pop().unwrap().client.unwrap()
}

fn der(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn a_replaced_client_certificate_is_used_and_watches_move_over_to_it() {
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let (one, two) = (clients.issue("one"), clients.issue("two"));
    let server = TlsServer::start(&authority, Some(&clients), &["h2"], quiet).await;
    let folder = CredentialFolder::new(&server, &authority, &one);
    let renewal = folder.renewal().await;
    assert_eq!(send_request(&renewal, &server).await, der(&one));
    let watch = Request::get("/api/v1/services?watch=true").body(Body::empty()).unwrap();
    let mut running = renewal.current().await.send(watch).await.unwrap().into_body();
    assert_eq!(send_request(&renewal, &server).await, der(&one));
    assert_eq!(server.n_connections(), 1, "unchanged files cause no new connection");

    folder.put(&two);
    assert_eq!(send_request(&renewal, &server).await, der(&two));
    assert_eq!(server.n_connections(), 2);
    let end =
        std::future::poll_fn(|context| http_body::Body::poll_frame(std::pin::pin!(&mut running), context));
    assert!(end.await.is_none(), "the running watch ends normally");
}

#[tokio::test]
async fn unusable_files_keep_the_last_usable_ones_in_use() {
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let (one, two) = (clients.issue("one"), clients.issue("two"));
    let server = TlsServer::start(&authority, Some(&clients), &["h2"], quiet).await;
    let folder = CredentialFolder::new(&server, &authority, &one);
    let renewal = folder.renewal().await;
    // A key without its certificate, an empty file, garbage, a kubeconfig while it is written, one that
    // names a missing file.
    for (name, text) in [
        ("client.key", &*two.key),
        ("client.crt", ""),
        ("ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("kubeconfig", "contexts: ["),
        ("kubeconfig", &kubeconfig(&server).replace("client.crt", "missing.crt")),
    ] {
        folder.write(name, text);
        assert_eq!(send_request(&renewal, &server).await, der(&one), "{name} is {text:?}");
        assert!(renewal.state.lock().await.unusable.is_some(), "{name} is {text:?}");
        folder.put(&one);
        folder.write("ca.crt", &authority.pem);
        folder.write("kubeconfig", &kubeconfig(&server));
        assert_eq!(send_request(&renewal, &server).await, der(&one));
    }
    // Missing files may appear later.
    folder.write("kubeconfig", &kubeconfig(&server).replace("client.", "missing."));
    assert_eq!(send_request(&renewal, &server).await, der(&one));
    folder.write("missing.crt", &two.certificate);
    folder.write("missing.key", &two.key);
    assert_eq!(send_request(&renewal, &server).await, der(&two));
    std::fs::remove_dir_all(folder.0.path()).unwrap();
    assert_eq!(send_request(&renewal, &server).await, der(&two));
}

#[tokio::test]
async fn a_kubeconfig_replaced_by_rename_or_symlink_is_reloaded() {
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let one = clients.issue("one");
    let first = TlsServer::start(&authority, Some(&clients), &["h2"], quiet).await;
    // The second server has another authority.
    let other = TestAuthority::new();
    let second = TlsServer::start(&other, Some(&clients), &["h2"], quiet).await;
    let folder = CredentialFolder::new(&first, &authority, &one);

    let renewal = folder.renewal().await;
    send_request(&renewal, &first).await;
    folder.write("other.crt", &other.pem);
    folder.write("new", &kubeconfig(&second).replace("ca.crt", "other.crt"));
    std::fs::rename(folder.path("new"), folder.path("kubeconfig")).unwrap();
    send_request(&renewal, &second).await;

    // As kubelet mounts a ConfigMap or a Secret: folders, and a symlink that is switched between them.
    for (name, server, pem) in [("1", &first, &authority.pem), ("2", &second, &other.pem)] {
        std::fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/kubeconfig"), &kubeconfig(server));
        folder.write(&format!("{name}/ca.crt"), pem);
        folder.write(&format!("{name}/client.crt"), &one.certificate);
        folder.write(&format!("{name}/client.key"), &one.key);
        std::os::unix::fs::symlink(name, folder.path(&format!("data{name}"))).unwrap();
    }
    std::fs::rename(folder.path("data1"), folder.path("data")).unwrap();
    let renewal = folder.renewal_of("data/kubeconfig").await;
    send_request(&renewal, &first).await;
    std::fs::rename(folder.path("data2"), folder.path("data")).unwrap();
    send_request(&renewal, &second).await;
}

#[tokio::test]
async fn after_a_change_of_server_lists_are_as_of_now() {
    // The second server's versions are lower, as with another etcd: it would send nothing to a watch from a
    // version of the first.
    let serve = |version: u32| {
        move |request: &Request<Incoming>| {
            let bookmark = serde_json::json!({"type": "BOOKMARK", "object": {"metadata": {
                "resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"},
            }}});
            let line = Ok::<_, std::io::Error>(Bytes::from(format!("{bookmark}\n")));
            let is_list = request.uri().query().is_some_and(|query| query.contains("sendInitialEvents=true"));
            let lines = futures::stream::iter(is_list.then_some(line));
            Response::new(AxumBody::from_stream(lines.chain(futures::stream::pending())))
        }
    };
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let one = clients.issue("one");
    let first = TlsServer::start(&authority, Some(&clients), &["h2"], serve(1_000)).await;
    let second = TlsServer::start(&authority, Some(&clients), &["h2"], serve(10)).await;
    let folder = CredentialFolder::new(&first, &authority, &one);
    let kubeconfig_file = folder.path("kubeconfig");
    let limit = RequestLimit { qps: None, burst: 1 };
    let connection = connect(Some(&kubeconfig_file), None, limit, Arc::new(())).await.unwrap();
    let (sender, _receiver) = mpsc::channel(64);
    tokio::spawn(follow(connection.clone(), "node-a".into(), sender));
    let next_requests = async |server: &TlsServer, n: usize| {
        let mut received = Vec::new();
        while received.len() < n {
            tokio::time::sleep(Duration::from_millis(20)).await;
            received.extend(server.take_requests());
        }
        received
    };
    let wait = Duration::from_secs(60);
    tokio::time::timeout(wait, next_requests(&first, 3)).await.expect("each kind is listed");
    folder.write("new", &kubeconfig(&second));
    std::fs::rename(folder.path("new"), &kubeconfig_file).unwrap();
    let requests = tokio::time::timeout(wait, next_requests(&second, 3))
        .await
        .expect("each kind is listed at the new server");
    for ReceivedRequest { text, .. } in requests {
        assert!(text.contains("sendInitialEvents=true") && !text.contains("resourceVersion=1000"), "{text}");
    }
}

#[tokio::test]
async fn after_rejected_credentials_the_wait_ends_when_they_change() {
    let (authority, clients) = (TestAuthority::new(), TestAuthority::new());
    let server = TlsServer::start(&authority, Some(&clients), &["h2"], quiet).await;
    let folder = CredentialFolder::new(&server, &authority, &clients.issue("one"));
    let renewal = folder.renewal().await;
    tokio::time::pause();
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, renewal.wait_renewed()).await.is_err(), "unchanged");
    folder.write("client.crt", "");
    assert!(tokio::time::timeout(minute, renewal.wait_renewed()).await.is_err(), "no credentials");
    folder.put(&clients.issue("two"));
    assert!(tokio::time::timeout(RECHECK_INTERVAL * 2, renewal.wait_renewed()).await.is_ok());
}

#[tokio::test]
async fn each_request_carries_the_token_in_the_file() {
    let authority = TestAuthority::new();
    let server = TlsServer::start(&authority, None, &["h2"], |request| {
        let token = request.headers()["authorization"].to_str().unwrap().to_owned();
        assert_eq!(request.headers()["user-agent"], concat!("chainsmith/", env!("CARGO_PKG_VERSION")));
        Response::builder().header("received", token).body(AxumBody::empty()).unwrap()
    })
    .await;
    let client = authority.issue("one");
    let folder = CredentialFolder::new(&server, &authority, &client);
    let text = kubeconfig(&server)
        .replace("client-certificate: client.crt, client-key: client.key", "tokenFile: token");
    folder.write("token", "first");
    folder.write("kubeconfig", &text);
    let renewal = folder.renewal().await;
    for token in ["first", "second"] {
        folder.write("token", token);
        let request = Request::get("/version").body(Body::empty()).unwrap();
        let answer = renewal.current().await.send(request).await.unwrap();
        assert_eq!(answer.headers()["received"], format!("Bearer {token}"));
    }
    assert_eq!(server.n_connections(), 1);
}
