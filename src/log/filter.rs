//! Which lines are on: by verbosity, by source file, and by whether they come from a dependency.

use std::sync::atomic::{AtomicI32, Ordering};

use glob::Pattern;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// From this verbosity on, dependencies log as well (requests, connections, streams).
const DEPENDENCIES: i32 = 8;

/// The verbosity of this process.
static VERBOSITY: Verbosity = Verbosity::new(0);

/// A verbosity that can be changed while lines are written.
pub struct Verbosity(AtomicI32);

impl Verbosity {
    /// Starts at `verbosity`.
    pub const fn new(verbosity: i32) -> Verbosity {
        Verbosity(AtomicI32::new(verbosity))
    }

    fn set(&self, verbosity: i32) {
        self.0.store(verbosity, Ordering::Relaxed);
        // Every call in the source keeps whether it is on until this asks the filter again.
        tracing::callsite::rebuild_interest_cache();
    }

    fn get(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Changes the verbosity of this process to the decimal number `text`, as kube-proxy's `/debug/flags/v`
/// does; the message that is answered.
///
/// # Errors
/// `text` is no number of 32 bits; nothing changes.
pub fn set_verbosity(text: &str) -> Result<String, String> {
    let verbosity = text
        .parse()
        .map_err(|error| format!("failed set klog.logging.verbosity {text}: parsing {text:?}: {error}"))?;
    VERBOSITY.set(verbosity);
    Ok(format!("successfully set klog.logging.verbosity to {text}"))
}

/// Lets a line pass if it is one of this crate's and its verbosity is on, or a dependency's error.
pub(super) struct VerbosityFilter {
    verbosity: &'static Verbosity,
    modules: Vec<ModuleVerbosity>,
}

/// One entry of `--vmodule`.
struct ModuleVerbosity {
    /// Against the name of a source file without its extension; with `/` or `::`, against its module path.
    pattern: Pattern,
    is_path: bool,
    verbosity: i32,
}

impl VerbosityFilter {
    /// Decides by the process's verbosity, which becomes `verbosity`. A malformed pattern matches no file
    /// (the configuration rejects it).
    pub(super) fn new(verbosity: i32, modules: Vec<(String, i32)>) -> VerbosityFilter {
        VERBOSITY.set(verbosity);
        VerbosityFilter::following(&VERBOSITY, modules)
    }

    pub(super) fn following(verbosity: &'static Verbosity, modules: Vec<(String, i32)>) -> VerbosityFilter {
        let modules = modules.into_iter().filter_map(|(text, verbosity)| {
            let text = text.replace("::", "/");
            let pattern = Pattern::new(&text).ok()?;
            Some(ModuleVerbosity { pattern, is_path: text.contains('/'), verbosity })
        });
        VerbosityFilter { verbosity, modules: modules.collect() }
    }

    fn is_on(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.is_span() {
            return false;
        }
        let verbosity = self.verbosity.get();
        let Some(path) = own_path(metadata) else {
            return *metadata.level() <= if verbosity >= DEPENDENCIES { Level::DEBUG } else { Level::ERROR };
        };
        let line = verbosity_of(metadata);
        line <= verbosity.max(0)
            || self.modules.iter().any(|module| line <= module.verbosity && module.matches(path, metadata))
    }
}

impl ModuleVerbosity {
    fn matches(&self, path: &str, metadata: &Metadata<'_>) -> bool {
        if self.is_path {
            let path = path.replace("::", "/");
            let inside = path.split_once('/').map_or("", |(_, inside)| inside);
            return self.pattern.matches(&path) || self.pattern.matches(inside);
        }
        let file = metadata.file().unwrap_or_default();
        let name = file.rsplit('/').next().unwrap_or_default();
        self.pattern.matches(name.split_once('.').map_or(name, |(stem, _)| stem))
    }
}

/// The module of a line of this crate; `None` for a dependency's.
fn own_path<'a>(metadata: &Metadata<'a>) -> Option<&'a str> {
    let (own, _) = module_path!().split_once("::")?;
    let target = metadata.target();
    let rest = target.strip_prefix(own)?;
    (rest.is_empty() || rest.starts_with("::")).then_some(target)
}

/// The verbosity from which a line of this crate is on.
pub(super) fn verbosity_of(metadata: &Metadata<'_>) -> i32 {
    metadata.name().strip_prefix('v').and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

impl<S: Subscriber> Layer<S> for VerbosityFilter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.is_on(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_on(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let is_plain = self.verbosity.get() <= 0 && self.modules.is_empty();
        Some(if is_plain { LevelFilter::INFO } else { LevelFilter::DEBUG })
    }
}
