//! Which of nf_tables' commits are the agent's, by the ruleset's generation: each commit of any process raises it by one.

use super::reason::ReadReason;

/// The generations that the agent knows. Both families share the ruleset's.
#[derive(Debug, Default)]
pub(super) struct Generations {
    /// After the last commit of ours or the last check; `None` on the legacy back-end, and before the first.
    seen: Option<u32>,
    /// After our last commit, whatever was checked since.
    committed: Option<u32>,
    /// How often in a row the generation could not be read. Meanwhile the last one counts.
    n_unreadable: u32,
    /// Whether one could not be read since the last sync or check.
    was_unreadable: bool,
}

impl Generations {
    /// Records that the generation was read.
    pub(super) fn mark_readable(&mut self) {
        self.n_unreadable = 0;
    }

    /// Records that the generation could not be read; how often in a row.
    pub(super) fn mark_unreadable(&mut self) -> u32 {
        self.n_unreadable = self.n_unreadable.saturating_add(1);
        self.was_unreadable = true;
        self.n_unreadable
    }

    /// Whether the generation could not be read the last time.
    pub(super) fn is_unreadable(&self) -> bool {
        self.n_unreadable > 0
    }

    /// Whether `generation` is that of the last commit of ours or check.
    pub(super) fn is_current(&self, generation: Option<u32>) -> bool {
        self.seen.is_some() && generation == self.seen
    }

    /// Whether no other process committed between the last commit of ours or check and `generation`; also before the
    /// first.
    pub(super) fn is_continued(&self, generation: Option<u32>) -> bool {
        self.seen.is_none() || generation == self.seen
    }

    /// Whether a notification of `generation` (`None`: notifications were lost) is of a commit of another process.
    /// `false` before our first sync, when nothing is known that could be changed.
    ///
    /// The kernel notifies a commit when it takes effect, a moment after it counts. So a check in between saw the
    /// generation and not the changes, and its generation does not tell: only that of our last commit does.
    pub(super) fn is_external(&self, generation: Option<u32>) -> bool {
        // Generations wrap around: one less than half a round behind is old.
        let is_old = |committed: u32| {
            generation.is_some_and(|generation| committed.wrapping_sub(generation) < u32::MAX / 2)
        };
        self.committed.is_some_and(|committed| !is_old(committed))
    }

    /// Records a sync that made `n_commits` between two generations. Returns why another process may have written
    /// during the sync or before it.
    pub(super) fn synced(
        &mut self,
        before: Option<u32>,
        after: Option<u32>,
        n_commits: usize,
    ) -> Option<ReadReason> {
        let is_external = before.is_some()
            && after.is_some()
            && !(is_alone(before, after, n_commits) && self.is_continued(before));
        if std::mem::take(&mut self.was_unreadable) {
            (self.seen, self.committed) = (after.or(self.seen), after.or(self.committed));
            return Some(ReadReason::GenerationUnreadable);
        }
        (self.seen, self.committed) = (after, after);
        is_external.then_some(ReadReason::ExternalCommit)
    }

    /// Records a check that began at the generation `seen`.
    pub(super) fn checked(&mut self, seen: Option<u32>) {
        self.seen = seen.or(self.seen);
        self.committed = self.committed.or(seen);
        self.was_unreadable = false;
    }
}

/// Whether our `n_commits` are all commits between two generations.
pub(super) fn is_alone(before: Option<u32>, after: Option<u32>, n_commits: usize) -> bool {
    matches!((before, after), (Some(before), Some(after)) if after.wrapping_sub(before) as usize == n_commits)
}
