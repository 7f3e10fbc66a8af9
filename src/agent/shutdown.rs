//! How the agent exits on SIGTERM or SIGINT: at once, except that it waits for a running restore.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::kernel::programs;
use crate::sync::LoopEnd;

/// How long a running restore may take before it is killed. Less than the 30 s that the kubelet grants.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the loop may take to end while no restore runs: it may be between two restores, or reading.
const GRACE: Duration = Duration::from_millis(500);
/// How often to check for both.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// How long to wait for killed programs.
const REAP_TIMEOUT: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, which have the same effect.
pub(super) struct ExitSignals([Signal; 2]);

impl ExitSignals {
    /// Replaces the default effect of both signals, which ends the process.
    pub(super) fn listen() -> anyhow::Result<ExitSignals> {
        let listen = |kind| signal(kind).context("cannot handle signals");
        Ok(ExitSignals([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?]))
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    }
}

/// Exits before the loop has started. Programs that run only read, or make chains that are removed again.
pub(super) fn exit_at_start() -> anyhow::Result<()> {
    info!("received a signal at start; exiting");
    programs::kill_programs(REAP_TIMEOUT);
    Ok(())
}

/// Ends the loop. A running restore continues until [`RESTORE_TIMEOUT`] or a second signal: each table changes
/// as a whole or not at all, but a killed restore may have changed some tables and not the others.
pub(super) async fn end_loop(
    mut sync_loop: JoinHandle<LoopEnd>,
    mut signals: ExitSignals,
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
            ended = &mut sync_loop => {
                ended.context("the sync loop panicked")?;
                break;
            }
            () = signals.next() => {
                info!("received a second signal; exiting at once");
                break;
            }
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
        if begun.elapsed() >= RESTORE_TIMEOUT {
            warn!(limit = ?RESTORE_TIMEOUT, "restore does not end; killing it");
            break;
        }
        if programs::is_restoring() {
            idle_since = Instant::now();
        } else if idle_since.elapsed() >= GRACE {
            break;
        }
    }
    programs::kill_programs(REAP_TIMEOUT);
    Ok(())
}
