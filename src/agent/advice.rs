//! Says once, when the node is known, what its settings mean that is hardly meant.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use crate::config::Config;
use crate::net::IpFamily;
use crate::rules::advice::advice;
use crate::sync::{Observer, Synced};

/// Waits for the first sync.
pub(super) struct Advice {
    config: Arc<Config>,
    families: Vec<IpFamily>,
    is_said: AtomicBool,
}

impl Advice {
    /// About `config` on a machine that proxies `families`.
    pub(super) fn new(config: Arc<Config>, families: Vec<IpFamily>) -> Advice {
        Advice { config, families, is_said: AtomicBool::new(false) }
    }
}

impl Observer for Advice {
    fn synced(&self, synced: &Synced<'_>) {
        if !self.is_said.swap(true, Ordering::Relaxed) {
            let said = advice(&self.config, synced.view.snapshot.node(), &self.families);
            said.iter().for_each(|text| warn!("{text}"));
        }
    }
}
