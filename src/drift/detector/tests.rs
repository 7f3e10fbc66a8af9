//! When tables are checked, and what commits of other processes lead to.

use super::*;
use crate::iptables::{ChainName, Rule, Table};
use crate::kernel::Backend;
use crate::kernel::fake::FakeIptables;
use crate::rules::names::KUBE_SERVICES;

const AUDIT: Duration = Duration::from_secs(300);
const SETTLE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_millis(1_500);
const MILLISECOND: Duration = Duration::from_millis(1);

/// IPv4 tables with one chain of ours, after one sync that ended at a generation.
struct Node {
    tables: FamilyTables<FakeIptables>,
    detector: DriftDetector,
}

impl Node {
    fn new(backend: Backend) -> Node {
        let tables = FamilyTables::new(FakeIptables::new(IpFamily::V4, backend));
        Node { tables, detector: DriftDetector::new(backend == Backend::Nft, AUDIT) }
    }

    /// A sync between the generations `before` and `after`.
    fn sync(&mut self, before: u32, after: u32, n_commits: usize) {
        self.sync_with(before, after, n_commits, false);
    }

    fn sync_with(&mut self, before: u32, after: u32, n_commits: usize, has_drifted: bool) {
        self.tables.kernel.n_commits = before;
        self.detector.sync_begins(&mut [&mut self.tables]);
        self.restore();
        self.tables.kernel.n_commits = after;
        self.detector.sync_ended(n_commits, true, has_drifted, &mut [&mut self.tables]);
    }

    /// Writes our chain, and reads the kernel before if need be.
    fn restore(&mut self) {
        let (mut committed, _) = self.tables.take();
        let rules = vec![Rule::default()];
        committed.nat.insert(KUBE_SERVICES, Some(crate::iptables::Digest::of(&rules)));
        committed.fingerprints.mark_pending(Table::Nat, KUBE_SERVICES);
        self.tables.kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules = rules;
        for (number, jump) in self.tables.jumps.clone().into_iter().enumerate() {
            if committed.jumps.insert(number) {
                self.tables.kernel.ruleset.chain_mut(jump.table, jump.from).rules.push(jump.rule);
            }
        }
        self.tables.put_back(committed);
    }

    fn after_sync(before: u32, after: u32, n_commits: usize) -> Node {
        let mut node = Node::new(Backend::Nft);
        node.sync(before, after, n_commits);
        node
    }

    fn notified(&mut self, generation: Option<u32>) {
        self.detector.notified(generation, &mut [&mut self.tables]);
    }

    /// Another process commits up to `generation`, and is notified.
    fn written(&mut self, generation: u32) {
        self.tables.kernel.n_commits = generation;
        self.notified(Some(generation));
    }

    /// How long until the next check; `None` when only the audit is due.
    fn check_in(&self) -> Option<Duration> {
        (!self.detector.schedule.is_audit_next()).then(|| self.detector.next_at() - Instant::now())
    }

    fn check(&mut self) -> Checked {
        self.detector.check(&mut [&mut self.tables])
    }

    /// What the next audit reads and compares: whether it reads, and how many dumps it takes.
    async fn audit(&mut self) -> (bool, usize) {
        while self.check_in().is_some() {
            tokio::time::sleep_until(self.detector.next_at()).await;
            self.check();
        }
        let n_dumps = self.tables.kernel.n_dumps;
        let checked = self.check();
        assert!(checked.is_audit);
        (!checked.resync.is_empty(), self.tables.kernel.n_dumps - n_dumps)
    }

    fn is_trusted(&self) -> bool {
        self.tables.knowledge() == Knowledge::Trusted
    }
}

fn clear(node: &mut Node) {
    node.tables.kernel.ruleset.chain_mut(Table::Nat, KUBE_SERVICES).rules.clear();
}

#[tokio::test(start_paused = true)]
async fn our_own_commits_ask_for_no_check() {
    let mut node = Node::after_sync(7, 9, 2);
    node.notified(Some(8));
    node.notified(Some(9));
    assert_eq!(node.check_in(), None);
    assert_eq!(node.audit().await, (false, 0), "no other process wrote");
}

#[tokio::test(start_paused = true)]
async fn an_external_commit_is_checked_once_it_has_settled() {
    let mut node = Node::after_sync(7, 9, 2);
    node.written(10);
    assert_eq!(node.check_in(), Some(SETTLE));
    assert_eq!(node.check(), Checked::default());
    assert_eq!((node.check_in(), node.is_trusted()), (None, true));
    assert_eq!(node.audit().await, (false, 0), "everything was compared");
}

#[tokio::test(start_paused = true)]
async fn an_audit_compares_what_no_notification_announced() {
    let mut node = Node::after_sync(7, 9, 2);
    node.tables.kernel.n_commits = 10;
    let (is_read, n_dumps) = node.audit().await;
    assert!(!is_read && n_dumps > 0);
    assert_eq!(node.audit().await, (false, 0), "once");
}

#[tokio::test(start_paused = true)]
async fn what_a_check_could_not_compare_is_left_to_the_audit() {
    let mut node = Node::after_sync(7, 9, 2);
    // Foreign rules refer to a chain of ours: only reading tells whether they still do.
    node.tables.references.flushed.insert(ChainName::literal("KUBE-SVC-A"));
    node.written(10);
    assert_eq!(node.check(), Checked::default());
    assert_eq!(node.tables.knowledge(), Knowledge::Unverified);
    // Nothing is left for another check at the same generation.
    assert_eq!(node.check_in(), None);
    assert!(node.audit().await.0);
    node.tables.references.flushed.clear();
    node.sync(10, 10, 0);
    assert_eq!(node.audit().await, (false, 0), "everything was read");
}

#[tokio::test(start_paused = true)]
async fn a_sync_does_not_make_an_external_commit_before_it_ours() {
    for (before, after) in [(10, 11), (9, 11)] {
        // Before the sync, or during it.
        let mut node = Node::after_sync(7, 9, 2);
        assert!(node.is_trusted());
        node.sync(before, after, 1);
        node.sync(11, 12, 1);
        assert!(!node.is_trusted(), "not checked");
        assert_eq!(node.check_in(), Some(SETTLE));
        assert!(node.tables.is_unverified(), "an audit would compare");
        node.check();
        // The fingerprint of what was written meanwhile was dropped: it is read.
        node.sync(12, 13, 1);
        assert_eq!((node.is_trusted(), node.check_in()), (true, None));
    }
}

#[tokio::test(start_paused = true)]
async fn pending_fingerprints_are_recorded_when_it_is_quiet() {
    let mut node = Node::after_sync(7, 9, 2);
    let (mut committed, _) = node.tables.take();
    committed.fingerprints.mark_pending(Table::Nat, KUBE_SERVICES);
    node.tables.put_back(committed);
    node.detector.schedule.disturbed(Instant::now().into_std());
    assert_eq!(node.check_in(), Some(SETTLE));
    let n_dumps = node.tables.kernel.n_dumps;
    assert_eq!(node.check(), Checked::default());
    assert_eq!((node.check_in(), node.tables.kernel.n_dumps), (None, n_dumps + 1));
    assert!(!node.tables.has_pending_fingerprints() && node.is_trusted());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_writes_all_the_time_does_not_make_us_read_all_the_time() {
    for (reading, has_drifted, expected) in [
        (100 * MILLISECOND, true, SETTLE),
        (20 * MILLISECOND, false, 400 * MILLISECOND),
        (MILLISECOND, false, SETTLE),
        // A flush is still repaired in time.
        (2_000 * MILLISECOND, false, MAX_PAUSE),
    ] {
        let mut node = Node::after_sync(7, 9, 2);
        clear(&mut node);
        node.written(10);
        assert_eq!(node.check().resync, [IpFamily::V4]);
        tokio::time::advance(reading).await;
        node.sync_with(10, 10, 0, has_drifted);
        node.written(11);
        assert_eq!(node.check_in(), Some(expected), "{reading:?}, drift: {has_drifted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_between_ours_is_noticed() {
    let node = Node::after_sync(7, 10, 2);
    assert_eq!(node.check_in(), Some(SETTLE));
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_notified_after_a_check_at_its_generation_is_checked_again() {
    let mut node = Node::after_sync(7, 9, 2);
    node.notified(Some(10));
    node.tables.kernel.n_commits = 11;
    node.check();
    assert!(node.is_trusted());
    node.notified(Some(11));
    assert_eq!((node.check_in(), node.is_trusted()), (Some(SETTLE), false));
    node.check();
    assert_eq!((node.check_in(), node.is_trusted()), (None, true));
}

#[tokio::test(start_paused = true)]
async fn generations_wrap_around() {
    let mut node = Node::after_sync(u32::MAX, 1, 2);
    node.notified(Some(u32::MAX));
    assert_eq!(node.check_in(), None);
    node.notified(Some(2));
    assert!(node.check_in().is_some());
}

#[tokio::test(start_paused = true)]
async fn lost_notifications_are_external_commits() {
    let mut node = Node::after_sync(1, 1, 0);
    node.notified(None);
    assert!(node.check_in().is_some());
}

#[tokio::test(start_paused = true)]
async fn without_notifications_there_is_a_check_each_second_that_costs_little() {
    let mut node = Node::new(Backend::Legacy);
    node.sync(0, 0, 1);
    assert_eq!(node.check_in(), Some(900 * MILLISECOND));
    node.detector.schedule.checked(
        false,
        Instant::now().into_std() - 100 * MILLISECOND,
        Instant::now().into_std(),
    );
    assert_eq!(node.check_in(), Some(MAX_PAUSE), "a flush is still repaired in time");
    // An audit always compares.
    let n_dumps = node.tables.kernel.n_dumps;
    tokio::time::advance(AUDIT).await;
    node.check();
    while node.check_in().is_some() {
        tokio::time::sleep_until(node.detector.next_at()).await;
        node.check();
    }
    assert!(node.check().is_audit && node.tables.kernel.n_dumps > n_dumps);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_checked_before_the_first_sync() {
    let mut node = Node::new(Backend::Nft);
    node.notified(Some(5));
    assert_eq!(node.check_in(), None);
}

#[tokio::test(start_paused = true)]
async fn no_check_comes_before_the_retry_of_a_failed_sync() {
    let mut node = Node::after_sync(7, 9, 2);
    node.detector.sync_begins(&mut [&mut node.tables]);
    node.tables.distrust(ReadReason::RestoreFailed);
    node.detector.sync_ended(0, false, false, &mut [&mut node.tables]);
    node.written(10);
    assert_eq!(node.check_in(), None, "the retry reads the kernel itself");
    node.sync(10, 11, 1);
    assert_eq!(node.check_in(), Some(SETTLE), "another process wrote before it");
}
