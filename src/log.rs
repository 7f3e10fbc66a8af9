//! The log: klog's verbosities, text and JSON, on stderr.
//!
//! The rest of the crate writes lines with `tracing`'s `info!`, `warn!` and `error!`, which are always
//! on, with [`v!`](v), which is on from a verbosity up, and with [`failure!`](failure). Uses nothing of
//! the crate.

mod filter;
mod line;
mod quote;
mod stderr;

pub use filter::set_verbosity;
pub use stderr::n_lost;

use filter::VerbosityFilter;
use line::KlogLine;
use stderr::{BoundedStderr, LossyWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Writes a line of the log at a klog verbosity: `v!(2, family = %family, "synced")`.
///
/// | verbosity | for |
/// |---|---|
/// | 1 | flags; settings left at their defaults |
/// | 2 | each sync |
/// | 3 | what a sync decides |
/// | 4 | each API event |
/// | 5 | each command that is started |
/// | 6 | each HTTP request, sent or served |
/// | 9 | the text given to `iptables-restore` |
///
/// The verbosity is the name in the event's metadata (`v2`): [`filter`] decides once for each call in the
/// source, and a call that is off evaluates none of its fields.
macro_rules! v {
    ($verbosity:literal, $($line:tt)+) => {
        ::tracing::event!(name: concat!("v", $verbosity), ::tracing::Level::DEBUG, $($line)+)
    };
}
pub(crate) use v;

/// Logs a failure of something that is tried again, for the `n_failures`th time in a row (from 1):
/// `failure!(n_failures, %error, "cannot listen")`.
///
/// The 1st, 2nd and 4th are warnings, the 8th, 16th and so on errors, as a person has to act by then;
/// those between are on from verbosity 2.
macro_rules! failure {
    ($n_failures:expr, $($line:tt)+) => {{
        let n_failures = u64::from($n_failures);
        if !n_failures.is_power_of_two() {
            $crate::log::v!(2, n_failures, $($line)+)
        } else if n_failures < 8 {
            ::tracing::warn!(n_failures, $($line)+)
        } else {
            ::tracing::error!(n_failures, $($line)+)
        }
    }};
}
pub(crate) use failure;

/// Where the log begins: how lines are written, and which.
pub struct Options {
    /// JSON with klog's keys, or klog's text.
    pub is_json: bool,
    /// From 0; what [`set_verbosity`] changes later.
    pub verbosity: i32,
    /// For some source files, a pattern (klog's `--vmodule`) and a verbosity that counts if it is higher.
    pub modules: Vec<(String, i32)>,
}

/// Starts the log of this process. A log that is already started (by a test) stays.
pub fn start(options: Options) {
    let lines = tracing_subscriber::fmt::layer()
        .event_format(KlogLine::new(options.is_json))
        .with_writer(|| LossyWriter(BoundedStderr))
        // Errors of writing are counted (`n_lost`); reporting them on stderr could panic.
        .log_internal_errors(false);
    let filter = VerbosityFilter::new(options.verbosity, options.modules);
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

#[cfg(test)]
pub(crate) mod tests;
