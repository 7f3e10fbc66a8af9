//! The server inside a network namespace. Needs root, as the e2e tests do.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::apiserver::{ApiServer, RealServer, start_cluster};
use crate::service;

#[test]
fn it_listens_in_the_namespace_that_it_is_given() {
    let listen = ([127, 0, 0, 1], 0).into();
    let inside = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("iproute2 is installed").success());
        let netns: OwnedFd = File::open("/proc/thread-self/ns/net").unwrap().into();
        let server = ApiServer::start(listen, Some(netns)).unwrap();
        TcpStream::connect(server.address()).expect("reachable in its namespace");
        server
    });
    let server = inside.join().unwrap();
    TcpStream::connect(server.address()).expect_err("not reachable outside of it");
}

#[test]
fn it_releases_its_port_when_dropped() {
    let server = ApiServer::start(([127, 0, 0, 1], 0).into(), None).unwrap();
    let address = server.address();
    assert!(ApiServer::start(address, None).is_err());
    let client = TcpStream::connect(address).unwrap();
    drop(server);
    TcpStream::connect(address).expect_err("the server has ended");
    drop(client);
}

#[test]
fn the_chosen_cluster_creates_and_deletes_objects() {
    let cluster = start_cluster(([127, 0, 0, 1], 0).into(), None).unwrap();
    assert!(cluster.put(service("a", "10.96.0.77")) > 0);
    assert!(cluster.delete("Service", Some("default"), "a"));
    assert!(!cluster.delete("Service", Some("default"), "a"));
    assert!(cluster.kubeconfig().contains("127.0.0.1"));
}

#[test]
fn a_folder_without_programs_is_an_error_that_names_one() {
    let empty = tempfile::tempdir().unwrap();
    let error = RealServer::start(empty.path(), ([127, 0, 0, 1], 0).into(), None).unwrap_err();
    assert!(format!("{error:#}").contains("etcd"), "{error:#}");
}
