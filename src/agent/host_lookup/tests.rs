#![allow(clippy::disallowed_methods, reason = "the tests add addresses with `ip`")]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::kernel::in_new_namespace;

const BOTH: Kernel = Kernel {
    counters: Counters { invalid: true, localhost: true },
    tcp_be_liberal: false,
    random_fully: true,
    bpf: true,
    route_localnet: true,
};

/// Counts look-ups and decides which fail.
#[derive(Default)]
struct FakeNode {
    are_lists_failing: AtomicBool,
    are_counters_failing: AtomicBool,
    n_lists: AtomicUsize,
}

fn failure() -> io::Error {
    io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with the address 192.0.2.7 and both counters; `fake` decides which look-ups fail.
fn lookups(fake: &Arc<FakeNode>) -> Arc<HostLookup> {
    let (lists, counters) = (fake.clone(), fake.clone());
    let list = move || {
        lists.n_lists.fetch_add(1, Ordering::Relaxed);
        if lists.are_lists_failing.load(Ordering::Relaxed) {
            Err(failure())
        } else {
            Ok(vec![ip("192.0.2.7")])
        }
    };
    let ensure = move |_: &str| {
        if counters.are_counters_failing.load(Ordering::Relaxed) {
            Err(EnsureCounterError::Unknown(failure()))
        } else {
            Ok(())
        }
    };
    Arc::new(HostLookup::with(BOTH, Box::new(list), Box::new(ensure)))
}

#[test]
fn after_a_failed_look_up_the_last_known_value_stays_in_use() {
    let fake = Arc::new(FakeNode::default());
    let lookups = lookups(&fake);
    let known = lookups.host();
    assert_eq!(known, Host { addresses: vec![ip("192.0.2.7")], kernel: BOTH });
    fake.are_lists_failing.store(true, Ordering::Relaxed);
    fake.are_counters_failing.store(true, Ordering::Relaxed);
    assert_eq!(lookups.host(), known);
    assert_eq!(lookups.host(), known);
    assert_eq!(lookups.retry_in(), Some(MIN_DELAY * 2));
    (0..100).for_each(|_| drop(lookups.host()));
    assert_eq!(lookups.retry_in(), Some(MAX_DELAY));
    fake.are_lists_failing.store(false, Ordering::Relaxed);
    assert_eq!(lookups.host(), known);
    assert!(lookups.retry_in().is_some(), "the counters are still unknown");
    fake.are_counters_failing.store(false, Ordering::Relaxed);
    assert_eq!((lookups.host(), lookups.retry_in()), (known, None));
}

#[test]
fn no_rule_names_a_counter_that_is_missing() {
    let is_there = Arc::new(AtomicBool::new(false));
    let there = is_there.clone();
    let ensure = move |_: &str| match there.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(EnsureCounterError::Absent(failure())),
    };
    let lookups = HostLookup::with(BOTH, Box::new(|| Ok(Vec::new())), Box::new(ensure));
    assert_eq!(lookups.host().kernel.counters, Counters::default());
    is_there.store(true, Ordering::Relaxed);
    assert_eq!(lookups.host().kernel.counters, BOTH.counters);
}

#[test]
fn counters_removed_by_another_process_are_made_again() {
    in_new_namespace(|| {
        let none = Kernel { counters: Counters::default(), ..BOTH };
        assert_eq!(HostLookup::new(none).host().kernel, none);
        assert!(nfacct::packets(fixed::INVALID_COUNTER).is_err(), "unusable counters are not made");
        // A new namespace has no counters, as after a flush.
        assert_eq!(HostLookup::new(BOTH).host(), Host { addresses: Vec::new(), kernel: BOTH });
        assert_eq!(nfacct::packets(fixed::INVALID_COUNTER).unwrap(), 0);
        assert_eq!(nfacct::packets(fixed::LOCALHOST_COUNTER).unwrap(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn the_start_waits_for_addresses_for_a_limited_time() {
    let fake = Arc::new(FakeNode::default());
    let start = Instant::now();
    lookups(&fake).wait_known().await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    fake.are_lists_failing.store(true, Ordering::Relaxed);
    let waiting = lookups(&fake);
    let recovery = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        fake.are_lists_failing.store(false, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    tokio::select! { () = waiting.wait_known() => {}, () = recovery => {} }
    assert_eq!(start.elapsed(), Duration::from_secs(7), "after 1, 3 and 7 s");
    assert_eq!(waiting.host().addresses, [ip("192.0.2.7")]);
    fake.are_lists_failing.store(true, Ordering::Relaxed);
    let start = Instant::now();
    lookups(&fake).wait_known().await;
    assert!(
        start.elapsed() <= START_TIMEOUT && start.elapsed() >= START_TIMEOUT / 4,
        "{:?}",
        start.elapsed()
    );
}

/// Runs `test` in a new network namespace, with the receiver of [`HostLookup::follow`].
fn following(lookups: Arc<HostLookup>, test: impl AsyncFnOnce(mpsc::Receiver<()>) + Send) {
    in_new_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = mpsc::channel(1);
            let following = tokio::spawn(lookups.follow(sender));
            // The task must listen before the first change.
            tokio::task::yield_now().await;
            test(receiver).await;
            following.abort();
        });
    });
}

/// Waits for a notification, at most a minute.
async fn notification(changed: &mut mpsc::Receiver<()>) {
    let received = tokio::time::timeout(Duration::from_secs(60), changed.recv()).await;
    received.expect("a notification comes").expect("the task goes on");
}

fn run(program: &str, arguments: &str) {
    assert!(Command::new(program).args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
}

#[test]
fn added_and_removed_addresses_of_either_family_are_notified() {
    let node = Arc::new(HostLookup::new(Kernel { counters: Counters::default(), ..BOTH }));
    following(node.clone(), async |mut changed| {
        for (command, expected) in [
            ("addr add 192.0.2.7/32 dev lo", &["192.0.2.7"][..]),
            ("addr add 2001:db8::7/128 dev lo", &["192.0.2.7", "2001:db8::7"]),
            ("addr del 192.0.2.7/32 dev lo", &["2001:db8::7"]),
        ] {
            run("ip", command);
            notification(&mut changed).await;
            let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
            assert_eq!(node.host().addresses, expected, "{command}");
        }
    });
}

/// 4 000 changes within a second or two are more than the kernel buffers for a socket.
#[test]
fn a_storm_of_changes_is_notified_at_most_five_times_a_second() {
    let node = Arc::new(HostLookup::new(Kernel { counters: Counters::default(), ..BOTH }));
    following(node.clone(), async |mut changed| {
        let started = Instant::now();
        let mut storm = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = "addr add 192.0.2.8/32 dev lo\naddr del 192.0.2.8/32 dev lo\n".repeat(2_000);
        lines += "addr add 192.0.2.9/32 dev lo\n";
        let mut stdin = storm.stdin.take().unwrap();
        let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
        let mut n_notified = 0;
        while node.host().addresses != [ip("192.0.2.9")] {
            notification(&mut changed).await;
            n_notified += 1;
        }
        assert!(storm.wait().unwrap().success());
        writing.join().unwrap();
        let at_most = started.elapsed().as_millis() / SETTLE_TIME.as_millis() + 1;
        assert!(n_notified >= 1 && n_notified <= at_most, "{n_notified} in {:?}", started.elapsed());
        // The rest of the storm causes at most one more notification.
        let rest = async {
            loop {
                changed.recv().await;
                n_notified += 1;
            }
        };
        let before = started.elapsed();
        assert!(tokio::time::timeout(SETTLE_TIME * 5, rest).await.is_err());
        let at_most = at_most + (started.elapsed() - before).as_millis() / SETTLE_TIME.as_millis();
        assert!(n_notified <= at_most, "{n_notified}");
    });
}

#[test]
fn a_failed_look_up_is_repeated_without_a_notification() {
    let fake = Arc::new(FakeNode::default());
    fake.are_lists_failing.store(true, Ordering::Relaxed);
    let lookups = lookups(&fake);
    following(lookups.clone(), async |mut changed| {
        assert_eq!(lookups.host().addresses, [] as [IpAddr; 0]);
        notification(&mut changed).await;
        fake.are_lists_failing.store(false, Ordering::Relaxed);
        assert_eq!(lookups.host().addresses, [ip("192.0.2.7")]);
        assert_eq!(fake.n_lists.load(Ordering::Relaxed), 2);
    });
}
