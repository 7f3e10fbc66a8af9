//! How long each stage of a sync takes.

use std::time::Duration;

use tokio::time::Instant;

use crate::iptables::{ChainName, Table};
use crate::kernel::Iptables;
use crate::plan::Restore;

/// How long each stage of a sync took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Reading the kernel's tables.
    pub read: Duration,
    /// Compiling rules, as far as it did not run in parallel with another stage.
    pub compile: Duration,
    /// Comparing with the committed state, ordering, writing text.
    pub plan: Duration,
    /// Waiting for other processes to release the xtables lock.
    pub lock_wait: Duration,
    /// Feeding `iptables-restore` and waiting for it.
    pub restore: Duration,
}

/// Adds up the stages of one sync. Time outside the other stages is planning.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    started: Option<Instant>,
    stages: Stages,
}

impl Stopwatch {
    pub(super) fn start() -> Stopwatch {
        Stopwatch { started: Some(Instant::now()), stages: Stages::default() }
    }

    /// Does `work`, which reads the kernel, and adds its duration.
    pub(super) fn reading<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.stages.read += started.elapsed();
        done
    }

    pub(super) fn compiling(&mut self, elapsed: Duration) {
        self.stages.compile += elapsed;
    }

    pub(super) fn restoring(&mut self, elapsed: Duration) {
        self.stages.restore += elapsed;
    }

    /// Ends the sync. `lock_wait` is the part of restoring that was spent waiting for the xtables lock.
    pub(super) fn stop(&mut self, lock_wait: Duration) -> Stages {
        let elapsed = self.started.take().map_or(Duration::ZERO, |started| started.elapsed());
        let mut stages = std::mem::take(&mut self.stages);
        stages.plan = elapsed.saturating_sub(stages.read + stages.compile + stages.restore);
        stages.lock_wait = lock_wait.min(stages.restore);
        stages.restore -= stages.lock_wait;
        stages
    }
}

/// A kernel, and how long its restores took.
pub(super) struct TimedRestore<'a, K> {
    kernel: &'a mut K,
    elapsed: Duration,
}

impl<'a, K> TimedRestore<'a, K> {
    pub(super) fn new(kernel: &'a mut K) -> TimedRestore<'a, K> {
        TimedRestore { kernel, elapsed: Duration::ZERO }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn time<T>(&mut self, work: impl FnOnce(&mut K) -> T) -> T {
        let started = Instant::now();
        let done = work(self.kernel);
        self.elapsed += started.elapsed();
        done
    }
}

impl<K: Iptables> Restore for TimedRestore<'_, K> {
    type Error = K::Error;

    fn begin(&mut self) {
        self.time(K::begin);
    }

    fn write(&mut self, text: &str) {
        self.time(|kernel| kernel.write(text));
    }

    fn end(&mut self) -> Result<(), K::Error> {
        self.time(K::end)
    }

    fn observes_commits(&self) -> bool {
        self.kernel.observes_commits()
    }

    fn before_commit(&mut self, table: Table, chains: &[ChainName]) {
        self.time(|kernel| kernel.before_commit(table, chains));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_no_other_stage_is_planning() {
        let seconds = Duration::from_secs;
        let mut watch = Stopwatch::start();
        tokio::time::advance(seconds(20)).await;
        watch.compiling(seconds(3));
        watch.restoring(seconds(9));
        let stages = Stages {
            read: seconds(0),
            compile: seconds(3),
            plan: seconds(8),
            lock_wait: seconds(2),
            restore: seconds(7),
        };
        assert_eq!(watch.stop(seconds(2)), stages);
        assert_eq!(watch.stop(seconds(2)), Stages::default(), "a new sync begins at zero");
    }
}
