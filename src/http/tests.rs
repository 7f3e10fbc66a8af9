//! Sockets and connections of this machine's loopback.

use std::net::TcpStream as Client;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connection::{MAX_HEAD, MAX_HEADERS};
use super::progress::{EXCHANGE_LIMIT, HEAD_LIMIT, IDLE_LIMIT};
use super::*;

/// The admission of a process with `max_open_files`.
fn admission_of(max_open_files: u64) -> Arc<Admission> {
    Arc::new(Admission::new(max_open_files, Box::new(|_| {})))
}

fn admission() -> Arc<Admission> {
    admission_of(4096)
}

fn bind(address: SocketAddr, wildcard: Wildcard) -> io::Result<Listener> {
    super::bind(&admission(), address, wildcard)
}

impl Listener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

async fn serve(listener: Listener, router: Router) {
    super::serve(admission(), listener, router).await;
}

fn any(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 0)
}

/// Whether each of the two loopback addresses accepts connections on `port`.
fn answers(port: u16) -> [bool; 2] {
    ["127.0.0.1", "::1"].map(|ip| Client::connect((ip, port)).is_ok())
}

#[tokio::test]
async fn an_unspecified_address_accepts_both_families_or_its_own() {
    for (ip, wildcard, expected) in [
        ("0.0.0.0", Wildcard::DualStack, [true, true]),
        ("::", Wildcard::DualStack, [true, true]),
        ("0.0.0.0", Wildcard::OneFamily, [true, false]),
        ("::", Wildcard::OneFamily, [false, true]),
        ("127.0.0.1", Wildcard::DualStack, [true, false]),
        ("::1", Wildcard::DualStack, [false, true]),
    ] {
        let listener = bind(any(ip), wildcard).unwrap();
        assert_eq!(answers(listener.local_addr().unwrap().port()), expected, "{ip} {wildcard:?}");
    }
}

#[tokio::test]
async fn both_families_listen_on_one_port_each_with_a_socket_of_its_own() {
    let v4 = bind(any("0.0.0.0"), Wildcard::OneFamily).unwrap();
    let port = v4.local_addr().unwrap().port();
    let v6 = bind(SocketAddr::new(any("::").ip(), port), Wildcard::OneFamily).unwrap();
    assert_eq!(answers(port), [true, true]);
    drop(v6);
    assert_eq!(answers(port), [true, false]);
}

#[tokio::test]
async fn a_port_in_use_in_one_family_is_not_bound_in_the_other() {
    let taken = bind(any("0.0.0.0"), Wildcard::OneFamily).unwrap();
    let address = SocketAddr::new(any("0.0.0.0").ip(), taken.local_addr().unwrap().port());
    assert_eq!(bind(address, Wildcard::DualStack).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_retried_and_each_failure_reported() {
    let taken = bind(any("127.0.0.1"), Wildcard::OneFamily).unwrap();
    let address = taken.local_addr().unwrap();
    tokio::time::pause();
    let n_failures = Arc::new(AtomicUsize::new(0));
    let counted = n_failures.clone();
    tokio::spawn(async move {
        let failed = |failure: &BindFailure<'_>| {
            assert_eq!((failure.error.kind(), failure.is_final), (io::ErrorKind::AddrInUse, false));
            let n = counted.fetch_add(1, Ordering::Relaxed) as u64;
            let lasted = Duration::from_secs((failure.lasted.as_secs_f64() / 5.0).round() as u64 * 5);
            assert_eq!((failure.n, lasted), (n + 1, RETRY * n as u32));
            std::future::ready(())
        };
        serve_at(admission(), "test", address, Router::new().fallback(not_found), false, failed).await
    });
    tokio::time::sleep(RETRY * 3 - Duration::from_millis(1)).await;
    assert_eq!(n_failures.load(Ordering::Relaxed), 3);
    drop(taken);
    tokio::time::sleep(RETRY).await;
    tokio::time::resume();
    assert!(Client::connect(address).is_ok());
    assert_eq!(n_failures.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn with_hard_fail_an_address_that_cannot_be_bound_is_an_error() {
    let taken = bind(any("127.0.0.1"), Wildcard::OneFamily).unwrap();
    let address = taken.local_addr().unwrap();
    let failed = |failure: &BindFailure<'_>| {
        assert!(failure.is_final);
        std::future::ready(())
    };
    let error = serve_at(admission(), "test", address, Router::new(), true, failed).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot serve test on {address}"));
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let (_server, _, mut client) = connected(Router::new().fallback(not_found), "").await;
    tokio::time::pause();
    let kept = kept(&mut client).await;
    assert!(kept >= HEAD_LIMIT / 2 && kept < HEAD_LIMIT * 2, "{kept:?}");
}

#[tokio::test]
async fn a_server_that_ends_closes_its_connections() {
    let listener = bind(any("127.0.0.1"), Wildcard::OneFamily).unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, Router::new().fallback(not_found)));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 404");
    drop(server);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection was kept open");
    assert!(TcpStream::connect(address).await.is_err(), "the socket is closed");
}

/// A server of this router, and a connection to it on which `request` was sent.
async fn connected(router: Router, request: &str) -> (JoinSet<()>, SocketAddr, TcpStream) {
    let listener = bind(any("127.0.0.1"), Wildcard::OneFamily).unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, router));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    (server, address, client)
}

/// How long the server keeps the connection, whatever it sends meanwhile, in paused time.
async fn kept(client: &mut TcpStream) -> Duration {
    let started = Instant::now();
    // Closing a connection with unread bytes resets it.
    let _ = client.read_to_end(&mut Vec::new()).await;
    started.elapsed()
}

const REQUEST: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn an_idle_connection_outlives_the_interval_between_two_scrapes() {
    let (_server, _, mut client) = connected(Router::new().fallback(not_found), REQUEST).await;
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    tokio::time::pause();
    // A request after each pause: the connection is idle again after its answer.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(120)).await;
        client.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut some = [0; 400];
        assert!(client.read(&mut some).await.unwrap() > 0);
    }
    let kept = kept(&mut client).await;
    assert!(kept > IDLE_LIMIT / 2 && kept < IDLE_LIMIT * 2, "{kept:?}");
}

#[tokio::test]
async fn idle_connections_end_earlier_while_slots_are_scarce() {
    // 16 slots, 4 for each peer.
    let (_server, address) = served(&admission_of(160));
    let mut clients = Vec::new();
    for peer in 2..5 {
        for _ in 0..3 {
            let mut client = connect_from([127, 0, 0, peer], address).await;
            client.write_all(REQUEST.as_bytes()).await.unwrap();
            client.read_exact(&mut [0; 12]).await.unwrap();
            clients.push(client);
        }
    }
    tokio::time::pause();
    let kept = kept(&mut clients[0]).await;
    assert!(kept < HEAD_LIMIT * 2, "{kept:?}");
}

/// A server on loopback.
fn served(admission: &Arc<Admission>) -> (JoinSet<()>, SocketAddr) {
    let listener = super::bind(admission, any("127.0.0.1"), Wildcard::OneFamily).unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(super::serve(admission.clone(), listener, Router::new().fallback(not_found)));
    (server, address)
}

/// A connection from this address of loopback.
async fn connect_from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// The status line of the answer to a complete request from `ip`; it has to arrive within 10 s.
async fn status_for(ip: [u8; 4], to: SocketAddr) -> String {
    let ask = async {
        let mut client = connect_from(ip, to).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    tokio::time::timeout(Duration::from_secs(10), ask).await.expect("an answer at once")
}

/// Keeps `n` connections with half a head open from `ip`: one that is closed is opened again.
fn hold(ip: [u8; 4], to: SocketAddr, n: usize, holders: &mut JoinSet<()>) {
    for _ in 0..n {
        holders.spawn(async move {
            loop {
                let mut client = connect_from(ip, to).await;
                let _ = client.write_all(b"GET / HTTP/1.1\r\n").await;
                let _ = client.read_to_end(&mut Vec::new()).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_take_every_slot_and_reconnect_keep_no_other_peer_out() {
    let admission = admission_of(160);
    let (_one, at) = served(&admission);
    let (_other, other) = served(&admission);
    let mut holders = JoinSet::new();
    for peer in 2..6 {
        hold([127, 0, 0, peer], at, 8, &mut holders);
    }
    while admission.n_open() < 16 {
        tokio::task::yield_now().await;
    }
    for _ in 0..50 {
        assert_eq!(status_for([127, 0, 0, 1], at).await, "HTTP/1.1 404 Not Found");
        assert_eq!(status_for([127, 0, 0, 9], other).await, "HTTP/1.1 404 Not Found", "of another server");
        assert!(admission.n_open() <= 16, "{}", admission.n_open());
    }
    holders.shutdown().await;
}

#[tokio::test]
async fn one_peer_has_a_share_and_its_oldest_connection_is_closed_first() {
    let admission = admission_of(160);
    let (_server, at) = served(&admission);
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(connect_from([127, 0, 0, 2], at).await);
    }
    // By the time of this answer all of them have been accepted.
    assert_eq!(status_for([127, 0, 0, 3], at).await, "HTTP/1.1 404 Not Found");
    for (n, client) in clients.iter_mut().enumerate() {
        let is_closed = tokio::time::timeout(Duration::from_millis(300), client.read(&mut [0])).await.is_ok();
        assert_eq!(is_closed, n < 2, "connection {n}");
    }
}

#[tokio::test]
async fn without_permits_for_listeners_a_port_is_not_opened() {
    let admission = admission_of(160);
    let open = || super::bind(&admission, any("127.0.0.1"), Wildcard::OneFamily);
    let listeners: Vec<Listener> = (0..16).map(|_| open().unwrap()).collect();
    let error = open().expect_err("no permit is left").to_string();
    assert_eq!(error, "the limit of open files leaves no more than 16 for listeners");
    drop(listeners);
    assert!(open().is_ok());
}

/// The status line of the answer to `head`, which may be incomplete; reads until the server closes.
async fn answered(head: String) -> String {
    let (_server, _, mut client) = connected(Router::new().fallback(not_found), "").await;
    let _ = client.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let all = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut answer)).await;
    assert!(all.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431_before_it_is_complete() {
    let head = |n: usize| format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}", "x".repeat(n));
    assert_eq!(answered(head(MAX_HEAD)).await, "HTTP/1.1 431 Request Header Fields Too Large");
    let whole = format!("{}\r\nconnection: close\r\n\r\n", head(MAX_HEAD - 200));
    assert_eq!(answered(whole).await, "HTTP/1.1 404 Not Found");
    let with = |n: usize| {
        let headers: String = (0..n).map(|n| format!("x{n}: y\r\n")).collect();
        format!("GET / HTTP/1.1\r\n{headers}connection: close\r\n\r\n")
    };
    assert_eq!(answered(with(MAX_HEADERS - 1)).await, "HTTP/1.1 404 Not Found");
    assert_eq!(answered(with(MAX_HEADERS)).await, "HTTP/1.1 431 Request Header Fields Too Large");
}

#[tokio::test]
async fn a_connection_with_an_incomplete_head_is_closed() {
    let (_server, _, mut client) = connected(Router::new().fallback(not_found), "GET / HT").await;
    tokio::time::pause();
    let kept = kept(&mut client).await;
    assert!(kept >= HEAD_LIMIT / 2 && kept < HEAD_LIMIT * 2, "{kept:?}");
}

#[tokio::test]
async fn an_answer_that_is_not_read_or_not_made_ends_the_connection_after_a_minute() {
    let large = Router::new().fallback(async || "x".repeat(64 << 20));
    let never = Router::new().fallback(std::future::pending::<String>);
    for (router, is_large) in [(large, true), (never, false)] {
        let (_server, _, mut client) = connected(router, REQUEST).await;
        if is_large {
            // The answer has begun, and fills the buffers of the kernel.
            client.read_exact(&mut [0; 12]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::pause();
        tokio::time::sleep(EXCHANGE_LIMIT + Duration::from_secs(2)).await;
        tokio::time::resume();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.len() < 64 << 20, "{} bytes, {ended:?}", rest.len());
    }
}
