//! Gives memory back to the kernel: a node has little to spare, and many threads that take and give
//! back much at once (a list of all objects, the rules of all Services) leave heaps full of holes.
#![allow(unsafe_code, reason = "the allocator is told by C functions alone")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;

use crate::sync::{Observer, Synced};

/// Has all threads share one heap, instead of up to eight for each core; before any other is started.
/// Sharing costs nothing to speak of: each thread keeps small pieces of its own.
#[cfg(target_env = "gnu")]
pub fn share_one_heap() {
    // SAFETY: sets a number under the allocator's own lock. Source: mallopt(3).
    let is_set = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) } == 1;
    if !is_set {
        tracing::debug!("the allocator keeps a heap for each thread");
    }
}

/// Other allocators have nothing to be told.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

/// Gives back what the heap does not use after each full sync: the list that led to it, and what it
/// took to compile everything, are gone then.
pub(super) struct Trimmer {
    runtime: Handle,
    is_pending: Arc<AtomicBool>,
}

impl Trimmer {
    /// Inside a runtime, on whose threads it will work. Whoever takes or gives back memory meanwhile waits
    /// for some milliseconds.
    pub(super) fn new() -> Trimmer {
        Trimmer { runtime: Handle::current(), is_pending: Arc::default() }
    }
}

impl Observer for Trimmer {
    fn synced(&self, synced: &Synced<'_>) {
        if synced.report.is_full() && !self.is_pending.swap(true, Ordering::Relaxed) {
            let is_pending = self.is_pending.clone();
            self.runtime.spawn_blocking(move || {
                is_pending.store(false, Ordering::Relaxed);
                trim();
            });
        }
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own lock, and touches free memory only. Source: malloc_trim(3).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
