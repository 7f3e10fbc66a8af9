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

/// How often addresses are listed and counters asked for, and whether that fails.
#[derive(Default)]
struct Source {
    are_lists_failing: AtomicBool,
    are_counters_failing: AtomicBool,
    n_lists: AtomicUsize,
}

fn refused() -> io::Error {
    io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Look-ups on a node with the address 192.0.2.7 and both counters, which fail when `source` says so.
fn lookups(source: &Arc<Source>) -> Arc<Lookups> {
    let (lists, counters) = (source.clone(), source.clone());
    let list = move || {
        lists.n_lists.fetch_add(1, Ordering::Relaxed);
        if lists.are_lists_failing.load(Ordering::Relaxed) {
            Err(refused())
        } else {
            Ok(vec![ip("192.0.2.7")])
        }
    };
    let ensure = move |_: &str| {
        if counters.are_counters_failing.load(Ordering::Relaxed) {
            Err(EnsureCounterError::Unknown(refused()))
        } else {
            Ok(())
        }
    };
    Arc::new(Lookups::with(BOTH, Box::new(list), Box::new(ensure)))
}

#[test]
fn what_cannot_be_looked_up_is_as_it_was_last_known() {
    let source = Arc::new(Source::default());
    let lookups = lookups(&source);
    let known = lookups.host();
    assert_eq!(known, Host { addresses: vec![ip("192.0.2.7")], kernel: BOTH });
    source.are_lists_failing.store(true, Ordering::Relaxed);
    source.are_counters_failing.store(true, Ordering::Relaxed);
    assert_eq!(lookups.host(), known);
    assert_eq!(lookups.host(), known);
    assert_eq!(lookups.retry_in(), Some(FIRST_RETRY * 2));
    (0..100).for_each(|_| drop(lookups.host()));
    assert_eq!(lookups.retry_in(), Some(LONGEST_RETRY));
    source.are_lists_failing.store(false, Ordering::Relaxed);
    assert_eq!(lookups.host(), known);
    assert!(lookups.retry_in().is_some(), "the counters are still not known");
    source.are_counters_failing.store(false, Ordering::Relaxed);
    assert_eq!((lookups.host(), lookups.retry_in()), (known, None));
}

#[test]
fn a_counter_that_is_known_to_be_missing_stands_in_no_rule() {
    let is_there = Arc::new(AtomicBool::new(false));
    let there = is_there.clone();
    let ensure = move |_: &str| match there.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(EnsureCounterError::Absent(refused())),
    };
    let lookups = Lookups::with(BOTH, Box::new(|| Ok(Vec::new())), Box::new(ensure));
    assert_eq!(lookups.host().kernel.counters, Counters::default());
    is_there.store(true, Ordering::Relaxed);
    assert_eq!(lookups.host().kernel.counters, BOTH.counters);
}

#[test]
fn counters_that_another_process_removed_are_made_again() {
    in_new_namespace(|| {
        let none = Kernel { counters: Counters::default(), ..BOTH };
        assert_eq!(Lookups::of_machine(none).host().kernel, none);
        assert!(nfacct::packets(fixed::INVALID_COUNTER).is_err(), "what is not usable is not made");
        // A namespace without any is one whose counters were flushed.
        assert_eq!(Lookups::of_machine(BOTH).host(), Host { addresses: Vec::new(), kernel: BOTH });
        assert_eq!(nfacct::packets(fixed::INVALID_COUNTER).unwrap(), 0);
        assert_eq!(nfacct::packets(fixed::LOCALHOST_COUNTER).unwrap(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_addresses_that_cannot_be_listed_but_not_for_ever() {
    let source = Arc::new(Source::default());
    let start = Instant::now();
    lookups(&source).begin().await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    source.are_lists_failing.store(true, Ordering::Relaxed);
    let waiting = lookups(&source);
    let recovery = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        source.are_lists_failing.store(false, Ordering::Relaxed);
        std::future::pending::<()>().await;
    };
    tokio::select! { () = waiting.begin() => {}, () = recovery => {} }
    assert_eq!(start.elapsed(), Duration::from_secs(7), "after 1, 3 and 7 s");
    assert_eq!(waiting.host().addresses, [ip("192.0.2.7")]);
    source.are_lists_failing.store(true, Ordering::Relaxed);
    let start = Instant::now();
    lookups(&source).begin().await;
    assert!(start.elapsed() <= PATIENCE && start.elapsed() >= PATIENCE / 4, "{:?}", start.elapsed());
}

/// Runs `test` in a network namespace of its own; it is given what [`Lookups::follow`] sends.
fn following(lookups: Arc<Lookups>, test: impl AsyncFnOnce(mpsc::Receiver<()>) + Send) {
    in_new_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sender, receiver) = mpsc::channel(1);
            let following = tokio::spawn(lookups.follow(sender));
            // The task listens before anything changes.
            tokio::task::yield_now().await;
            test(receiver).await;
            following.abort();
        });
    });
}

/// Waits for a notification; a minute without one is a failure.
async fn notification(changed: &mut mpsc::Receiver<()>) {
    let received = tokio::time::timeout(Duration::from_secs(60), changed.recv()).await;
    received.expect("a notification comes").expect("the task goes on");
}

fn run(program: &str, arguments: &str) {
    assert!(Command::new(program).args(arguments.split(' ')).status().unwrap().success(), "{arguments}");
}

#[test]
fn an_address_that_comes_or_goes_is_notified_in_either_family() {
    let machine = Arc::new(Lookups::of_machine(Kernel { counters: Counters::default(), ..BOTH }));
    following(machine.clone(), async |mut changed| {
        for (command, expected) in [
            ("addr add 192.0.2.7/32 dev lo", &["192.0.2.7"][..]),
            ("addr add 2001:db8::7/128 dev lo", &["192.0.2.7", "2001:db8::7"]),
            ("addr del 192.0.2.7/32 dev lo", &["2001:db8::7"]),
        ] {
            run("ip", command);
            notification(&mut changed).await;
            let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
            assert_eq!(machine.host().addresses, expected, "{command}");
        }
    });
}

/// 4 000 changes within a second or two, which are more than the kernel keeps for a socket.
#[test]
fn a_storm_of_changes_is_notified_five_times_a_second_at_most() {
    let machine = Arc::new(Lookups::of_machine(Kernel { counters: Counters::default(), ..BOTH }));
    following(machine.clone(), async |mut changed| {
        let started = Instant::now();
        let mut storm = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut lines = "addr add 192.0.2.8/32 dev lo\naddr del 192.0.2.8/32 dev lo\n".repeat(2_000);
        lines += "addr add 192.0.2.9/32 dev lo\n";
        let mut stdin = storm.stdin.take().unwrap();
        let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
        let mut n_notified = 0;
        while machine.host().addresses != [ip("192.0.2.9")] {
            notification(&mut changed).await;
            n_notified += 1;
        }
        assert!(storm.wait().unwrap().success());
        writing.join().unwrap();
        let at_most = started.elapsed().as_millis() / SETTLE.as_millis() + 1;
        assert!(n_notified >= 1 && n_notified <= at_most, "{n_notified} in {:?}", started.elapsed());
        // What was left over of it is one more notification at most.
        let rest = async {
            loop {
                changed.recv().await;
                n_notified += 1;
            }
        };
        let before = started.elapsed();
        assert!(tokio::time::timeout(SETTLE * 5, rest).await.is_err());
        let at_most = at_most + (started.elapsed() - before).as_millis() / SETTLE.as_millis();
        assert!(n_notified <= at_most, "{n_notified}");
    });
}

#[test]
fn a_look_up_that_failed_is_tried_again_without_any_notification() {
    let source = Arc::new(Source::default());
    source.are_lists_failing.store(true, Ordering::Relaxed);
    let lookups = lookups(&source);
    following(lookups.clone(), async |mut changed| {
        assert_eq!(lookups.host().addresses, [] as [IpAddr; 0]);
        notification(&mut changed).await;
        source.are_lists_failing.store(false, Ordering::Relaxed);
        assert_eq!(lookups.host().addresses, [ip("192.0.2.7")]);
        assert_eq!(source.n_lists.load(Ordering::Relaxed), 2);
    });
}
