//! Returns free memory to the kernel. Threads that allocate and free much at once (a list of all objects, the
//! rules of all Services) leave fragmented heaps, and a node has little memory to spare.
#![allow(unsafe_code, reason = "only C functions configure the allocator")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;

use crate::sync::{Observer, Synced};

/// Makes all threads share one heap, instead of up to eight heaps for each core. To be called before another
/// thread starts. The cost is low: each thread caches small pieces.
#[cfg(target_env = "gnu")]
pub fn share_one_heap() {
    // SAFETY: sets a number under the allocator's own lock. Source: mallopt(3).
    let is_set = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) } == 1;
    if !is_set {
        crate::log::v!(2, "cannot make threads share one heap");
    }
}

/// Other allocators need no setting.
#[cfg(not(target_env = "gnu"))]
pub fn share_one_heap() {}

/// Returns the free memory of the heap after each full sync, when the list of objects before it and the
/// memory for compiling are free again.
pub(super) struct HeapTrimmer {
    runtime: Handle,
    is_pending: Arc<AtomicBool>,
}

impl HeapTrimmer {
    /// Must be called inside the runtime on whose threads it works. Other threads that allocate or free memory
    /// meanwhile wait for some milliseconds.
    pub(super) fn new() -> HeapTrimmer {
        HeapTrimmer { runtime: Handle::current(), is_pending: Arc::default() }
    }
}

impl Observer for HeapTrimmer {
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

/// Returns the free memory of the heap to the kernel.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own lock, and touches free memory only. Source: malloc_trim(3).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
