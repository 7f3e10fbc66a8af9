//! The configuration: command line and `KubeProxyConfiguration` text to one checked [`Config`].
//!
//! Every setting stands once in `table`, which says how to add one. `file` turns the
//! file's text into values by path, `flags` holds the flags that were given, `resolver` picks the value
//! that counts and records its origin. Every error is reported at once. Nothing here reads files, the clock
//! or the environment: the agent looks up what depends on the machine (host name, CPUs, addresses).

mod check;
mod checked;
mod command_line;
mod diagnostics;
mod duration;
mod effective;
mod file;
mod flags;
mod gates;
mod logging;
mod resolver;
mod setting;
mod setting_value;
mod table;
mod yaml;

pub use checked::{
    BackendChoice, Client, Config, ConnectionMetrics, Conntrack, DetectLocal, LayoutChoice, LogFormat,
    Logging, NodePortAddresses, VModule,
};
pub use command_line::{FLAGS, RuleFlags, normalise};
pub use diagnostics::{ConfigError, ConfigErrors, SetBy, Warning};
pub use duration::GoDuration;
pub use effective::{Effective, EffectiveSetting};
pub use flags::Flags;
pub use gates::Gates;
pub use setting::{FlagScope, Setting};
pub use table::DEFAULT_AGENT_SOCKET;

use diagnostics::Diagnostics;
use resolver::Resolver;

impl Config {
    /// The checked configuration of `file` (the text of `--config`, if given) and `flags`, with its
    /// warnings; or every error in it.
    pub fn resolve(file: Option<&str>, flags: &Flags) -> Result<(Config, Vec<Warning>), ConfigErrors> {
        let mut diagnostics = Diagnostics::default();
        let values = file.map(|text| file::read(text, &table::SETTINGS, &mut diagnostics));
        let mut resolver = Resolver::new(values, flags, diagnostics);
        let config = table::read(&mut resolver);
        resolver.finish().map(|warnings| (config, warnings))
    }
}

/// kube-proxy's configuration without a file and without flags.
impl Default for Config {
    fn default() -> Config {
        let (config, _) = Config::resolve(None, &Flags::default()).expect("the defaults are valid");
        config
    }
}

#[cfg(test)]
mod tests;
