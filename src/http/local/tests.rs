//! Unix sockets of a name that only this process uses, and in a folder of the test.

use std::io::{Read, Write};
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::http::not_found;
use crate::http::other_user::{as_user, unused_name};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn admission() -> Arc<Admission> {
    // 16 slots, 4 of them for Unix sockets.
    Arc::new(Admission::new(160, Box::new(|_| {})))
}

fn served(admission: &Arc<Admission>, address: &UnixAddress) -> JoinSet<()> {
    let listener = bind_local(admission, address).unwrap();
    let mut server = JoinSet::new();
    server.spawn(serve_local(admission.clone(), listener, Router::new().fallback(not_found)));
    server
}

fn connect_to(name: &str) -> UnixStream {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let stream = BlockingStream::connect_addr(&address).unwrap();
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

async fn answer_to(mut client: UnixStream) -> String {
    client.write_all(REQUEST).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn root_is_answered_on_a_name_and_on_a_file() {
    let (admission, name) = (admission(), unused_name());
    let _server = served(&admission, &UnixAddress::Abstract(name.clone()));
    assert!(answer_to(connect_to(&name)).await.starts_with("HTTP/1.1 404 Not Found"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    let _other = served(&admission, &UnixAddress::Path(path.clone()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(answer_to(UnixStream::connect(&path).await.unwrap()).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_is_refused_and_takes_no_slot() {
    let (admission, name) = (admission(), unused_name());
    let _server = served(&admission, &UnixAddress::Abstract(name.clone()));
    let asked = || {
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let mut client = BlockingStream::connect_addr(&address).unwrap();
        // The connection may be closed already.
        let _ = client.write_all(REQUEST);
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    };
    for uid in [1, 1000, 65_534] {
        let answer = as_user(uid, asked);
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{uid}: {answer}");
        assert!(answer.ends_with(r#""message":"this socket answers root alone"}"#), "{answer}");
    }
    // A user that holds as many connections as it can.
    let held: Vec<BlockingStream> = as_user(1000, || {
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        (0..100).map(|_| BlockingStream::connect_addr(&address).unwrap()).collect()
    });
    assert!(answer_to(connect_to(&name)).await.starts_with("HTTP/1.1 404"));
    assert!(admission.n_open() <= 1, "{} connections", admission.n_open());
    drop(held);
}

#[tokio::test]
async fn a_name_in_use_is_tried_again_until_it_is_free() {
    let (admission, name) = (admission(), unused_name());
    let address = UnixAddress::Abstract(name.clone());
    let taken = bind_local(&admission, &address).unwrap();
    assert_eq!(bind_local(&admission, &address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    tokio::time::pause();
    let (shared, tried) = (admission.clone(), address.clone());
    tokio::spawn(
        async move { serve_local_at(shared, "test", &tried, Router::new().fallback(not_found)).await },
    );
    tokio::time::sleep(RETRY * 3 / 2).await;
    drop(taken);
    tokio::time::sleep(RETRY).await;
    tokio::time::resume();
    assert!(answer_to(connect_to(&name)).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_file_without_a_listener_is_replaced_and_one_in_use_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let address = UnixAddress::Path(folder.path().join("agent.sock"));
    let admission = admission();
    let first = bind_local(&admission, &address).unwrap();
    assert_eq!(bind_local(&admission, &address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(first);
    let again = bind_local(&admission, &address);
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test]
async fn clients_of_unix_sockets_have_a_share_and_the_oldest_is_closed_first() {
    let (admission, name) = (admission(), unused_name());
    let _server = served(&admission, &UnixAddress::Abstract(name.clone()));
    let mut clients: Vec<UnixStream> = (0..6).map(|_| connect_to(&name)).collect();
    while admission.n_open() < 4 {
        tokio::task::yield_now().await;
    }
    for (n, client) in clients.iter_mut().enumerate() {
        let closed = tokio::time::timeout(Duration::from_millis(300), client.read(&mut [0])).await;
        assert_eq!(closed.is_ok(), n < 2, "connection {n}");
    }
    assert!(answer_to(connect_to(&name)).await.starts_with("HTTP/1.1 404"));
}
