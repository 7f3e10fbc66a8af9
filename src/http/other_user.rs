//! Sockets of another user, for tests.

use std::sync::atomic::{AtomicU32, Ordering};

/// A name for an abstract socket that no other test uses.
pub fn unused_name() -> String {
    static N: AtomicU32 = AtomicU32::new(0);
    format!("chainsmith-test-{}-{}", std::process::id(), N.fetch_add(1, Ordering::Relaxed))
}

/// Does `work` as another user, on a thread of its own: the kernel reports the user of the thread that connects.
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[allow(unsafe_code, reason = "the C library would change the user of all threads")]
fn become_user(uid: u32) {
    use nix::libc::{SYS_setresuid, syscall};
    // SAFETY: changes nothing but the user of this thread.
    let changed = unsafe { syscall(SYS_setresuid, uid, uid, uid) };
    assert_eq!(changed, 0, "tests run as root");
}
