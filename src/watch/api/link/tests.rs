//! Tests of links to a TLS server over real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use axum::body::{Body as AxumBody, Bytes};
use futures::StreamExt;
use http_body::Frame;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;

/// A certificate authority.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate with its key, as PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl TestAuthority {
    pub fn new() -> TestAuthority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        TestAuthority { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name`, at 127.0.0.1.
    pub fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A request as the server received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedRequest {
    /// `<path>?<query> <HTTP version>`
    pub text: String,
    /// Number of the connection, from 1.
    pub connection: usize,
    /// Certificate of the client.
    pub client: Option<Vec<u8>>,
}

/// A TLS server; clones share it.
#[derive(Clone)]
pub struct TlsServer {
    pub address: SocketAddr,
    n_connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
    go_away_up_to: watch::Sender<usize>,
    acceptor: TlsAcceptor,
    handler: Handler,
}

type Handler = Arc<dyn Fn(&Request<Incoming>) -> Response<AxumBody> + Send + Sync>;

impl TlsServer {
    /// Serves the responses of `handler`, with a certificate of `authority`; requires client certificates
    /// of `clients` if given.
    pub async fn start(
        authority: &TestAuthority,
        clients: Option<&TestAuthority>,
        protocols: &[&str],
        handler: impl Fn(&Request<Incoming>) -> Response<AxumBody> + Send + Sync + 'static,
    ) -> TlsServer {
        let identity = authority.issue("server");
        let config = match clients {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(der(&clients.pem)).unwrap();
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
                ServerConfig::builder().with_client_cert_verifier(verifier)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
        let mut config = config.with_single_cert(vec![der(&identity.certificate)], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = TlsServer {
            address: listener.local_addr().unwrap(),
            n_connections: Arc::default(),
            requests: Arc::default(),
            go_away_up_to: watch::Sender::new(0),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            handler: Arc::new(handler),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            loop {
                serving.accept(listener.accept().await.unwrap().0);
            }
        });
        server
    }

    fn accept(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        tokio::spawn(self.clone().serve(stream));
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Ok(stream) = self.acceptor.accept(stream).await else { return };
        let connection = self.n_connections.fetch_add(1, Ordering::SeqCst) + 1;
        let session = stream.get_ref().1;
        let is_http2 = session.alpn_protocol() == Some(b"h2");
        let client = session.peer_certificates().map(|chain| chain[0].to_vec());
        let mut go_away_up_to = self.go_away_up_to.subscribe();
        let service = service_fn(move |request: Request<Incoming>| {
            let text = format!("{} {:?}", request.uri().path_and_query().unwrap(), request.version());
            self.requests.lock().unwrap().push(ReceivedRequest { text, connection, client: client.clone() });
            let answer = (self.handler)(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let io = TokioIo::new(stream);
        if !is_http2 {
            let _ = http1::Builder::new().serve_connection(io, service).await;
            return;
        }
        let mut serving =
            std::pin::pin!(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
        tokio::select! {
            _ = serving.as_mut() => return,
            _ = go_away_up_to.wait_for(|up_to| *up_to >= connection) => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    }

    /// Sends GOAWAY on all connections so far.
    fn send_goaway(&self) {
        self.go_away_up_to.send_replace(self.n_connections.load(Ordering::SeqCst));
    }

    pub fn n_connections(&self) -> usize {
        self.n_connections.load(Ordering::SeqCst)
    }

    /// Takes the requests so far, in order.
    pub fn take_requests(&self) -> Vec<ReceivedRequest> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// Counts connections.
#[derive(Default)]
struct Connections(AtomicUsize);

impl TrafficObserver for Connections {
    fn connection_opened(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A link to `address`, which is `server` or forwards to it.
fn link_to(address: SocketAddr, authority: &TestAuthority, observer: &Arc<dyn TrafficObserver>) -> Link {
    Link::new(&config(address, authority), None, observer).unwrap()
}

fn config(address: SocketAddr, authority: &TestAuthority) -> Config {
    let mut config = Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![der(&authority.pem).to_vec()]);
    config
}

fn get(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::empty()).unwrap()
}

const WATCH: &str = "/api/v1/services?watch=true";

/// Responds to watches with a body that never ends, and to everything else with `{}`.
fn quiet(request: &Request<Incoming>) -> Response<AxumBody> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    Response::new(match is_watch {
        true => AxumBody::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>()),
        false => AxumBody::from("{}"),
    })
}

async fn read_whole(response: Response<Unzipped>) -> Result<Vec<u8>, BoxError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = next(&mut body).await {
        bytes.extend_from_slice(&frame?.into_data().unwrap_or_default());
    }
    Ok(bytes)
}

/// The next frame that is not empty.
async fn next(body: &mut Unzipped) -> Option<Result<Frame<Bytes>, BoxError>> {
    loop {
        let frame =
            std::future::poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut *body), context));
        let frame = frame.await;
        let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
        if !frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(is_empty)) {
            return frame;
        }
    }
}

#[tokio::test]
async fn all_requests_share_one_connection() {
    let authority = TestAuthority::new();
    let server = TlsServer::start(&authority, None, &["h2", "http/1.1"], quiet).await;
    let connections = Arc::new(Connections::default());
    let link = link_to(server.address, &authority, &(connections.clone() as Arc<dyn TrafficObserver>));
    // Also requests that arrive before the connection is made.
    let all = (0..6).map(|n| link.clone().send(get(if n % 2 == 0 { WATCH } else { "/version" })));
    let answers = futures::future::join_all(all).await;
    assert!(answers.iter().all(Result::is_ok));
    link.clone().send(get("/later")).await.unwrap();
    let requests = server.take_requests();
    assert_eq!(requests.len(), 7);
    assert!(requests.iter().all(|request| request.text.ends_with("HTTP/2.0")), "{requests:?}");
    assert_eq!((server.n_connections(), connections.0.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_server_without_http2_gets_http1() {
    let authority = TestAuthority::new();
    for protocols in [&["http/1.1"][..], &[]] {
        let server = TlsServer::start(&authority, None, protocols, quiet).await;
        let link = link_to(server.address, &authority, &(Arc::new(()) as Arc<dyn TrafficObserver>));
        let post = Request::post("/events").body(Body::from(b"{}".to_vec())).unwrap();
        link.clone().send(post).await.unwrap();
        let watches = [link.clone().send(get(WATCH)).await.unwrap(), link.send(get(WATCH)).await.unwrap()];
        let requests = server.take_requests();
        assert!(requests.iter().all(|request| request.text.ends_with("HTTP/1.1")), "{requests:?}");
        assert_eq!(requests.len(), 3);
        assert_ne!(requests[1].connection, requests[2].connection, "each watch has its own connection");
        drop(watches);
    }
}

#[tokio::test]
async fn after_a_goaway_requests_use_a_new_connection_and_watches_continue() {
    let authority = TestAuthority::new();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<&str>();
    let receiver = Mutex::new(Some(receiver));
    let server = TlsServer::start(&authority, None, &["h2"], move |request| {
        let is_watch = request.uri().query().is_some();
        let Some(mut lines) = receiver.lock().unwrap().take_if(|_| is_watch) else { return quiet(request) };
        let lines = futures::stream::poll_fn(move |context| lines.poll_recv(context));
        Response::new(AxumBody::from_stream(lines.map(Ok::<_, Infallible>)))
    })
    .await;
    let link = link_to(server.address, &authority, &(Arc::new(()) as Arc<dyn TrafficObserver>));
    let mut running = link.clone().send(get(WATCH)).await.unwrap().into_body();
    sender.send("before").unwrap();
    assert_eq!(next(&mut running).await.unwrap().unwrap().into_data().unwrap(), "before");
    server.send_goaway();
    // The GOAWAY may not have arrived yet.
    let mut connection = 1;
    while connection == 1 {
        read_whole(link.clone().send(get("/version")).await.unwrap()).await.unwrap();
        connection = server.take_requests().last().unwrap().connection;
        tokio::task::yield_now().await;
    }
    sender.send("after").unwrap();
    assert_eq!(next(&mut running).await.unwrap().unwrap().into_data().unwrap(), "after");
    drop(sender);
    let end = next(&mut running).await;
    assert!(end.is_none(), "the watch ends normally: {end:?}");
    link.send(get("/version")).await.unwrap();
    assert_eq!(server.n_connections(), 2);
}

/// One end of a connection in memory, which works in simulated time.
struct WireEnd(TokioIo<tokio::io::DuplexStream>);

impl Connection for WireEnd {
    fn connected(&self) -> hyper_util::client::legacy::connect::Connected {
        hyper_util::client::legacy::connect::Connected::new()
    }
}

impl Read for WireEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for WireEnd {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Forwards bytes until the wire is cut; then sends nothing more.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut is_cut: watch::Receiver<bool>,
) {
    let mut buffer = [0; 4096];
    let is_cut = async move {
        let _ = is_cut.wait_for(|is_cut| *is_cut).await;
    };
    let mut is_cut = std::pin::pin!(is_cut);
    loop {
        let n = tokio::select! {
            n = tokio::io::AsyncReadExt::read(&mut from, &mut buffer) => n.unwrap(),
            () = is_cut.as_mut() => std::future::pending().await,
        };
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_events_continues_and_a_dead_one_is_detected_within_45_s() {
    let authority = TestAuthority::new();
    let server = TlsServer::start(&authority, None, &["h2"], quiet).await;
    let cut = watch::Sender::new(false);
    let (serving, is_cut) = (server.clone(), cut.clone());
    let tcp = tower::service_fn(move |_: Uri| {
        let ((near, client_side), (server_side, far)) = (tokio::io::duplex(65536), tokio::io::duplex(65536));
        let (from_client, to_client) = tokio::io::split(client_side);
        let (from_server, to_server) = tokio::io::split(server_side);
        tokio::spawn(forward(from_client, to_server, is_cut.subscribe()));
        tokio::spawn(forward(from_server, to_client, is_cut.subscribe()));
        serving.accept(far);
        async { Ok::<_, Infallible>(WireEnd(TokioIo::new(near))) }
    });
    let config = config(server.address, &authority);
    let service = https_client(tcp, &config, &(Arc::new(()) as Arc<dyn TrafficObserver>)).unwrap();
    let watch = Request::get(format!("https://{}{WATCH}", server.address)).body(Body::empty()).unwrap();
    let mut body = gzip::unzip(service.oneshot(watch).await.unwrap(), None).into_body();
    let quiet = tokio::time::timeout(Duration::from_secs(600), next(&mut body)).await;
    assert!(quiet.is_err(), "ten minutes without an event and without an error: {quiet:?}");
    cut.send_replace(true);
    let begun = tokio::time::Instant::now();
    let end = next(&mut body).await.expect("no normal end");
    let error = end.expect_err("an error");
    assert!(begun.elapsed() <= PING_AFTER + PING_TIMEOUT, "{:?}: {error}", begun.elapsed());
    assert_eq!(server.n_connections(), 1);
}

#[tokio::test]
async fn tcp_detects_a_dead_peer_within_two_minutes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let stream: TokioIo<TcpStream> = sockets().oneshot(uri).await.unwrap();
    let socket = socket2::SockRef::from(stream.inner());
    assert!(socket.keepalive().unwrap());
    let probes = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
    let timeout = socket.tcp_user_timeout().unwrap().expect("TCP_USER_TIMEOUT");
    // The kernel closes the connection at the first probe after the timeout.
    assert!(probes.0 < timeout && timeout + probes.1 < Duration::from_secs(120), "{probes:?} {timeout:?}");
}

#[tokio::test]
async fn compressed_events_arrive_one_by_one_in_both_forms_of_compression() {
    use std::io::Write;
    let compressed = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    // A gzip member for each event; or one member, flushed after each event.
    let mut one = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut flushed = |text: &str| {
        one.write_all(text.as_bytes()).unwrap();
        one.flush().unwrap();
        std::mem::take(one.get_mut())
    };
    let members = [compressed("first\n"), compressed("second\n")];
    let pieces = [flushed("first\n"), flushed("second\n")];
    let authority = TestAuthority::new();
    for bytes in [members, pieces] {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
        let receiver = Mutex::new(Some(receiver));
        let server = TlsServer::start(&authority, None, &["h2"], move |request| {
            assert_eq!(request.headers()["accept-encoding"], "gzip");
            let mut lines = receiver.lock().unwrap().take().unwrap();
            let lines = futures::stream::poll_fn(move |context| lines.poll_recv(context));
            let body = AxumBody::from_stream(lines.map(Ok::<_, Infallible>));
            Response::builder().header("content-encoding", "gzip").body(body).unwrap()
        })
        .await;
        let link = link_to(server.address, &authority, &(Arc::new(()) as Arc<dyn TrafficObserver>));
        let mut body = link.send(get(WATCH)).await.unwrap().into_body();
        for (bytes, text) in bytes.iter().zip(["first\n", "second\n"]) {
            sender.send(bytes.clone()).unwrap();
            assert_eq!(next(&mut body).await.unwrap().unwrap().into_data().unwrap(), text);
        }
        sender.send(b"\x1f\x8b\x08 and then no gzip, however much comes".to_vec()).unwrap();
        assert!(next(&mut body).await.unwrap().is_err(), "an error, not a panic");
    }
}

#[tokio::test]
async fn a_compressed_response_that_is_cut_off_is_an_error() {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&[b'x'; 10_000]).unwrap();
    let whole_body = encoder.finish().unwrap();
    let authority = TestAuthority::new();
    for (n, is_whole) in [(whole_body.len(), true), (whole_body.len() - 1, false), (5, false)] {
        let body = whole_body[..n].to_vec();
        let server = TlsServer::start(&authority, None, &["h2"], move |_| {
            Response::builder().header("content-encoding", "gzip").body(body.clone().into()).unwrap()
        })
        .await;
        let link = link_to(server.address, &authority, &(Arc::new(()) as Arc<dyn TrafficObserver>));
        let got = read_whole(link.send(get("/list")).await.unwrap()).await;
        assert_eq!(got.is_ok_and(|got| got.len() == 10_000), is_whole, "{n}");
    }
}
