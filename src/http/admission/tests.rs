//! Which connections get a slot, and which are closed for them.

use super::*;

fn peer(from: &str) -> Peer {
    Peer::between(from.parse().unwrap(), Some("10.0.0.1".parse().unwrap()))
}

#[test]
fn the_bounds_follow_the_limit_of_open_files_and_leave_a_reserve() {
    for (max_open_files, n_slots, n_listeners) in [
        (0, 8, 8),
        (160, 16, 16),
        (1024, 448, 448),
        (65_536, 512, 64_896),
        (u64::MAX, 512, Semaphore::MAX_PERMITS),
    ] {
        let admission = Admission::new(max_open_files, Box::new(|_| {}));
        assert_eq!((admission.n_slots, admission.n_listeners), (n_slots, n_listeners), "{max_open_files}");
        let is_small = max_open_files < (RESERVE + 2 * MIN_CONNECTIONS) as u64;
        assert!(is_small || (n_slots + n_listeners + RESERVE) as u64 <= max_open_files);
    }
}

#[test]
fn addresses_that_one_host_can_choose_are_one_peer() {
    assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
    assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
    assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
    assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
    let own = Peer::between("2001:db8::1".parse().unwrap(), Some("2001:db8::1".parse().unwrap()));
    assert_ne!(own, peer("2001:db8::2"), "pods may share the network of the node");
}

/// The position of the connection that is closed for one from `new`; `open` has peer, stage and age in seconds.
fn closed(open: &[(&str, ConnectionStage, u64)], new: &str) -> Option<usize> {
    let now = Instant::now() + Duration::from_secs(1000);
    let mut connections = OpenConnections::default();
    for ((from, stage, age), id) in open.iter().zip(0..) {
        let progress = Progress::at(*stage, now - Duration::from_secs(*age));
        connections.insert(peer(from), OpenConnection { id, progress, eviction: Arc::default() });
    }
    let (of, id) = connections.victim(peer(new), 16, now)?;
    assert!(connections.remove(of, id).is_some() && connections.n == open.len() - 1);
    Some(id as usize)
}

#[test]
fn the_peer_with_most_connections_loses_stalled_ones_first() {
    use ConnectionStage::{Answering, Head, Idle, Sending};
    let busy = [
        ("192.0.2.1", Answering, 50),
        ("192.0.2.1", Idle, 40),
        ("192.0.2.1", Head, 0),
        ("192.0.2.1", Head, 2),
    ];
    // Full: 16 in all. The others have three each at most.
    let others: Vec<_> = ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]
        .into_iter()
        .flat_map(|from| [(from, Head, 14), (from, Sending, 30), (from, Idle, 100)])
        .collect();
    let mut open = [&busy[..], &others].concat();
    assert_eq!(open.len(), 16);
    for at in [3, 1, 2, 0] {
        assert_eq!(closed(&open, "192.0.2.9"), Some(at));
        open[at] = ("192.0.2.1", Answering, 1);
    }
    open.pop();
    assert_eq!(closed(&open, "192.0.2.9"), None, "there is room");
    assert_eq!(closed(&open, "192.0.2.1"), Some(0), "its share is taken");
}

#[tokio::test(start_paused = true)]
async fn failed_accepts_are_counted_and_wait_only_in_a_shortage() {
    let incidents = Arc::new(Mutex::new(Vec::new()));
    let recorded = incidents.clone();
    let admission = Admission::new(160, Box::new(move |incident| recorded.lock().unwrap().push(incident)));
    let started = Instant::now();
    admission.not_accepted(&io::ErrorKind::ConnectionAborted.into()).await;
    assert_eq!(started.elapsed(), Duration::ZERO, "the next one may succeed");
    admission.not_accepted(&io::Error::from_raw_os_error(Errno::EMFILE as i32)).await;
    assert_eq!(started.elapsed(), RECOVER);
    assert_eq!(*incidents.lock().unwrap(), [Incident::NotAccepted; 2]);
}
