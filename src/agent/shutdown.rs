//! How the agent ends when it gets SIGTERM or SIGINT: at once, but for a restore that has begun.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::kernel::programs;
use crate::sync::Ended;

/// How long a restore that has begun may take to end; then it is killed. Less than the 30 s that the
/// kubelet grants.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the loop may take to end while no restore runs: it may be between two of them, or read.
const GRACE: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long programs that were killed are waited for.
const REAP: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, which are the same here.
pub(super) struct Signals([Signal; 2]);

impl Signals {
    /// From now on they end nothing by themselves.
    pub(super) fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Signals([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?]))
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
}

/// Ends before there is a loop: whatever was started only looks, or undoes what it did.
pub(super) fn at_start() -> anyhow::Result<()> {
    info!("received a signal at start; exiting");
    programs::kill_programs(REAP);
    Ok(())
}

/// Ends the loop. A restore that has begun goes on, as long as the limit and no second signal allow: a
/// table is changed wholly or not at all, but half of the tables may be changed when it is killed.
pub(super) async fn of_loop(
    mut looping: JoinHandle<Ended>,
    mut signals: Signals,
    shutdown: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    info!("received a signal; exiting, rules left in place");
    // The loop may have ended already.
    let _ = shutdown.send(true);
    programs::end_programs();
    let begun = Instant::now();
    let mut idle_since = begun;
    loop {
        tokio::select! {
            biased;
            ended = &mut looping => {
                ended.context("the sync loop panicked")?;
                break;
            }
            () = signals.next() => {
                info!("received a second signal; exiting at once");
                break;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        if begun.elapsed() >= LIMIT {
            warn!(limit = ?LIMIT, "a restore does not end; killing it");
            break;
        }
        if programs::is_restoring() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= GRACE {
            break;
        }
    }
    programs::kill_programs(REAP);
    Ok(())
}
