//! The log: to stderr, as text or JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// Starts it. kube-proxy's verbosity: 2 says what each sync did, 4 and above what the steps do.
pub fn start(logging: &Logging) {
    let level = match logging.verbosity {
        0 | 1 => "info",
        2 | 3 => "debug",
        _ => "trace",
    };
    let others = if logging.verbosity >= 6 { "debug" } else { "error" };
    let filter = EnvFilter::new(format!("{others},chainsmith={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Somebody may have started one already (tests); theirs stays.
    let _ = match logging.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
