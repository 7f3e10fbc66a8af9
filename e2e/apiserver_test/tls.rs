//! https and HTTP/2: certificates, credentials, GOAWAY, an orderly end, and faults of connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::apiserver::{ApiServer, ClientCertificate, Fault, User};
use crate::{LIMIT, client, get, service, start};

/// The TLS settings of a client that trusts `server`, with a certificate or without.
fn tls(server: &ApiServer, certificate: Option<&ClientCertificate>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.authority().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match certificate {
        None => config.with_no_client_auth(),
        Some(ClientCertificate { certificate, key, .. }) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            config
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// One HTTP/2 connection, and the tasks that end with it.
async fn http2(
    server: &ApiServer,
    config: ClientConfig,
) -> std::io::Result<(SendRequest<Body>, JoinHandle<()>)> {
    let stream = TcpStream::connect(server.address()).await?;
    let name = ServerName::from(server.address().ip());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(std::io::Error::other)?;
    Ok((sender, tokio::spawn(async move { drop(connection.await) })))
}

async fn ask(
    sender: &mut SendRequest<Body>,
    server: &ApiServer,
    path: &str,
) -> Result<(StatusCode, Body), hyper::Error> {
    let uri = format!("https://{}{path}", server.address());
    let request = Request::get(uri).body(Body::empty()).expect("a good path");
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    Ok((answer.status(), Body::new(answer.into_body())))
}

/// The next bytes of a body; `None` at its end.
async fn next_chunk(body: &mut Body) -> Option<Bytes> {
    loop {
        let frame = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(std::pin::Pin::new(&mut *body), context)
        });
        let frame = tokio::time::timeout(LIMIT, frame).await.expect("in time")?;
        let bytes = frame.expect("no error").into_data().expect("no trailers");
        // The end can come in a frame of its own.
        if !bytes.is_empty() {
            return Some(bytes);
        }
    }
}

const WATCH: &str = "/api/v1/services?watch=true&allowWatchBookmarks=true&resourceVersion=0";

#[tokio::test]
async fn its_settings_are_those_of_a_real_server() {
    let server = start();
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let name = ServerName::from(server.address().ip());
    let connector = TlsConnector::from(Arc::new(tls(&server, None)));
    let mut stream = connector.connect(name, stream).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3..], [4, 0, 0, 0, 0, 0], "a SETTINGS frame");
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.unwrap();
    let entry = |six: &[u8]| {
        (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]))
    };
    let settings: BTreeMap<u16, u32> = settings.chunks_exact(6).map(entry).collect();
    // MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE.
    for (id, value) in [(3, 100), (4, 262_144), (5, 262_144), (6, 1_048_896)] {
        assert_eq!(settings.get(&id), Some(&value), "setting {id} of {settings:?}");
    }
}

#[tokio::test]
async fn one_connection_carries_all_requests_over_http2() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let (mut sender, _) = http2(&server, tls(&server, None)).await.unwrap();
    let mut watches = Vec::new();
    for _ in 0..10 {
        let (status, mut body) = ask(&mut sender, &server, WATCH).await.unwrap();
        assert_eq!(status, 200);
        next_chunk(&mut body).await.expect("the state");
        watches.push(body);
    }
    server.put(service("b", "10.96.0.2"));
    for body in &mut watches {
        assert!(next_chunk(body).await.is_some_and(|chunk| chunk.starts_with(br#"{"type":"ADDED""#)));
    }
    let counters = server.counters();
    assert_eq!((counters.connections, counters.requests), (1, 10));
}

#[tokio::test]
async fn after_goaway_a_watch_continues_and_requests_need_another_connection() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let (mut sender, ended) = http2(&server, tls(&server, None)).await.unwrap();
    let (_, mut body) = ask(&mut sender, &server, WATCH).await.unwrap();
    next_chunk(&mut body).await.expect("the state");
    server.go_away();
    let refused = async {
        while ask(&mut sender, &server, "/version").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("no more requests are taken");
    server.put(service("b", "10.96.0.2"));
    assert!(next_chunk(&mut body).await.is_some());
    server.drop_watches();
    assert_eq!(next_chunk(&mut body).await, None);
    tokio::time::timeout(LIMIT, ended).await.expect("the connection ends with its last stream").unwrap();
    let (mut sender, _) = http2(&server, tls(&server, None)).await.unwrap();
    assert_eq!(ask(&mut sender, &server, "/version").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_server_that_shuts_down_rejects_connections_and_ends_watches_normally() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let (mut sender, ended) = http2(&server, tls(&server, None)).await.unwrap();
    let (_, mut body) = ask(&mut sender, &server, WATCH).await.unwrap();
    next_chunk(&mut body).await.expect("the state");
    server.shut_down(Duration::from_secs(1));
    while TcpStream::connect(server.address()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.put(service("b", "10.96.0.2"));
    assert!(next_chunk(&mut body).await.is_some(), "events come until the end");
    assert_eq!(next_chunk(&mut body).await, None);
    tokio::time::timeout(LIMIT, ended).await.expect("the connection ends").unwrap();
    server.come_back();
    let begun = tokio::time::Instant::now();
    while TcpStream::connect(server.address()).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "it listens again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_with_a_watch_is_not() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    // 90 s become half a second.
    server.set_pace(180);
    let (mut sender, ended) = http2(&server, tls(&server, None)).await.unwrap();
    assert_eq!(ask(&mut sender, &server, "/version").await.unwrap().0, 200);
    let (mut watching, watch_ended) = http2(&server, tls(&server, None)).await.unwrap();
    let (_, mut body) = ask(&mut watching, &server, WATCH).await.unwrap();
    next_chunk(&mut body).await.expect("the state");
    tokio::time::timeout(LIMIT, ended).await.expect("the server closes it").unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!watch_ended.is_finished());
    server.put(service("b", "10.96.0.2"));
    assert!(next_chunk(&mut body).await.is_some());
}

#[tokio::test]
async fn client_certificates_are_requested_and_can_be_rejected() {
    let server = start();
    let [old, new] = ["old", "new"].map(|name| server.client_certificate(name));
    server.require_certificate(Some(vec![old.clone()]));
    let status = async |certificate: Option<&ClientCertificate>| {
        let (mut sender, _) = http2(&server, tls(&server, certificate)).await.unwrap();
        ask(&mut sender, &server, "/api/v1/services").await.unwrap().0.as_u16()
    };
    assert_eq!((status(None).await, status(Some(&old)).await, status(Some(&new)).await), (401, 200, 401));
    // As on a real server each request on an open connection is authenticated anew.
    let (mut sender, _) = http2(&server, tls(&server, Some(&old))).await.unwrap();
    server.require_certificate(Some(vec![new.clone()]));
    assert_eq!(ask(&mut sender, &server, "/api/v1/services").await.unwrap().0, 401);
    assert_eq!((status(Some(&old)).await, status(Some(&new)).await), (401, 200));
}

#[tokio::test]
async fn a_client_with_another_authority_does_not_connect() {
    let server = start();
    let before = tls(&server, None);
    http2(&server, before.clone()).await.unwrap();
    server.replace_authority();
    http2(&server, before).await.expect_err("another authority");
    http2(&server, tls(&server, None)).await.unwrap();
}

#[tokio::test]
async fn kubeconfigs_use_https() {
    let server = start();
    server.require_token(Some("right"));
    let kubeconfig = |user: &User| server.kubeconfig_https(server.reachable(), user);
    let right = client(&kubeconfig(&User::Token("right".to_owned()))).await;
    assert!(get(&right, "/api/v1/services").await.is_ok());
    let folder = tempfile::tempdir().unwrap();
    let files = ["certificate", "key"].map(|name| folder.path().join(name));
    let certificate = server.client_certificate("a");
    std::fs::write(&files[0], &certificate.certificate).unwrap();
    std::fs::write(&files[1], &certificate.key).unwrap();
    let [file, key] = files;
    let shown = client(&kubeconfig(&User::Certificate(file, key))).await;
    assert_eq!(get(&shown, "/api/v1/services").await, Err(401));
    server.require_certificate(Some(vec![certificate]));
    assert!(get(&shown, "/api/v1/services").await.is_ok());
    assert_eq!(get(&client(&kubeconfig(&User::Anonymous)).await, "/api/v1/services").await, Err(401));
}

#[tokio::test]
async fn faults_of_connections_meet_http2_too() {
    let server = start();
    server.put(service("a", "10.96.0.1"));
    let (mut sender, ended) = http2(&server, tls(&server, None)).await.unwrap();
    let (_, mut body) = ask(&mut sender, &server, WATCH).await.unwrap();
    next_chunk(&mut body).await.expect("the state");
    server.set_fault(Some(Fault::Silent));
    server.put(service("b", "10.96.0.2"));
    let silence = tokio::time::timeout(Duration::from_millis(200), next_chunk(&mut body)).await;
    assert!(silence.is_err(), "{silence:?}");
    server.set_fault(None);
    assert!(next_chunk(&mut body).await.is_some());
    server.set_fault(Some(Fault::Cut { after: 0, times: 1 }));
    tokio::time::timeout(LIMIT, ended).await.expect("the connection is cut").unwrap();
}
