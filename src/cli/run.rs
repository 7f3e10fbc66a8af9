//! `chainsmith run`: the agent, and the flags that replace it by one action (`--version`, `--cleanup`, ...).
#![allow(clippy::disallowed_methods, reason = "reads and writes configuration files")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use tracing::{error, info, warn};

use super::{cleanup, print, print_error};
use crate::agent::{self, ConfigFile};
use crate::config::{Config, Flags, LogFormat, Logging, Warning};
use crate::kernel::open_files::{self, Raised};
use crate::log::{self, v};
use crate::metrics::release;

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(disable_version_flag = true)]
pub struct RunArguments {
    #[command(flatten)]
    flags: Flags,
    /// Print the release, and exit; `raw`: as a structure.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_name = "true|false|raw", help_heading = "kube-proxy")]
    version: Option<String>,
}

/// Runs the agent; every error is exit status 1, as with kube-proxy.
pub fn main(arguments: &RunArguments) -> ExitCode {
    match prepare(arguments) {
        Ok(Some(ready)) => run(ready),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Everything that the agent needs to start.
struct StartInput {
    config: Config,
    warnings: Vec<Warning>,
    file: Option<ConfigFile>,
    flags: Flags,
}

/// Reads and checks the configuration. `None`: a flag asked for one action, and it is done.
fn prepare(arguments: &RunArguments) -> anyhow::Result<Option<StartInput>> {
    let flags = &arguments.flags;
    let version = arguments.version.as_deref().unwrap_or("false");
    let mut warnings = Vec::new();
    match version_text(version)? {
        VersionRequest::Print(text) => {
            print(text).context("cannot print the release")?;
            return Ok(None);
        }
        VersionRequest::None => {}
        VersionRequest::Claim => warnings.push(Warning {
            place: "--version".to_owned(),
            note: format!("Chainsmith does not report {version} as its release, ignored"),
        }),
    }
    let (text, file) = match flags.config() {
        Some(path) => {
            let (text, file) = read(path)?;
            (Some(text), Some(file))
        }
        None => (None, None),
    };
    let (config, more) = Config::resolve(text.as_deref(), flags)?;
    warnings.extend(more);
    if let Some(path) = flags.write_config_to() {
        let written = std::fs::write(path, config.effective.to_file());
        written.with_context(|| format!("cannot write the configuration to {}", path.display()))?;
        // The file is written; that stdout is closed is no error.
        let _ = print(format_args!("wrote the configuration to {}", path.display()));
        return Ok(None);
    }
    Ok(Some(StartInput { config, warnings, file, flags: flags.clone() }))
}

/// The text of a configuration file, watched from before it was read.
fn read(path: &Path) -> anyhow::Result<(String, ConfigFile)> {
    let reading = || format!("cannot read the configuration {}", path.display());
    // First, so that the error of a missing file is about reading, not about watching.
    let metadata = std::fs::metadata(path).with_context(reading)?;
    if metadata.is_dir() {
        bail!("{}: it is a folder", reading());
    }
    let file = ConfigFile::watch(path)?;
    Ok((std::fs::read_to_string(path).with_context(reading)?, file))
}

/// The meaning of `--version=<text>`.
#[derive(Debug, PartialEq, Eq)]
enum VersionRequest {
    /// Run the agent.
    None,
    /// Print this and exit.
    Print(String),
    /// Report another release; ignored.
    Claim,
}

fn version_text(text: &str) -> anyhow::Result<VersionRequest> {
    let own = env!("CARGO_PKG_VERSION");
    let is_release = |text: &str| {
        text.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    Ok(match text {
        "false" | "f" | "F" | "FALSE" | "False" | "0" => VersionRequest::None,
        // Scripts take the second word.
        "true" | "t" | "T" | "TRUE" | "True" | "1" => {
            VersionRequest::Print(format!("Kubernetes v{} (Chainsmith {own})", release::KUBERNETES))
        }
        "raw" => {
            let (release, (major, minor)) = (release::KUBERNETES, release::major_minor());
            VersionRequest::Print(format!(
                "version.Info{{Major:\"{major}\", Minor:\"{minor}\", GitVersion:\"v{release}\", Chainsmith:\"{own}\", Platform:\"linux/{}\"}}",
                std::env::consts::ARCH
            ))
        }
        text if is_release(text) => VersionRequest::Claim,
        text => bail!("--version: {text:?}: must be a boolean, raw or vX.Y.Z"),
    })
}

fn run(StartInput { config, warnings, file, flags }: StartInput) -> ExitCode {
    start_log(&config.logging);
    for (name, value) in flags.all() {
        v!(1, "FLAG: --{name}={value:?}");
    }
    warnings.iter().for_each(|warning| warn!("{warning}"));
    if flags.is_cleanup() {
        return cleanup::everything();
    }
    log_settings(&config);
    let result = if flags.is_init_only() { agent::init_only(&config) } else { start(config, &flags, file) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(error = %format!("{problem:#}"), "command failed");
            ExitCode::FAILURE
        }
    }
}

/// Logs the settings that differ from the defaults, with their origins; at verbosity 1 all others.
fn log_settings(config: &Config) {
    let list = |settings: Vec<String>| settings.join(", ");
    let differences = config.differences();
    let shown = differences.iter().map(|s| format!("{}={} ({})", s.path, s.value, s.set_by));
    info!(settings = list(shown.collect()), "configuration");
    let defaults = config.effective.settings().iter().filter(|setting| setting.is_default);
    v!(
        1,
        settings = list(defaults.map(|s| format!("{}={}", s.path, s.value)).collect()),
        "settings left at their defaults"
    );
}

/// Starts the log as the configuration asks for it.
pub(super) fn start_log(logging: &Logging) {
    // The configuration has been checked: verbosities fit.
    let number = |verbosity: u32| i32::try_from(verbosity).unwrap_or(i32::MAX);
    let modules = logging.vmodule.iter();
    log::start(log::Options {
        is_json: logging.format == LogFormat::Json,
        verbosity: number(logging.verbosity),
        modules: modules.map(|module| (module.file_pattern.clone(), number(module.verbosity))).collect(),
    });
}

fn start(config: Config, flags: &Flags, file: Option<ConfigFile>) -> anyhow::Result<()> {
    match open_files::raise() {
        Ok(Raised { was, is }) => v!(2, was, is, "limit of open files"),
        Err(error) => warn!(%error, "cannot raise the limit of open files"),
    }
    agent::share_one_heap();
    let runtime = agent::runtime()?;
    let result = runtime.block_on(agent::run(config, flags.all(), file));
    // Does not wait for tasks that wait for the network.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_takes_the_texts_that_kube_proxy_takes() {
        let check = |text: &str, expected: &str| match version_text(text).unwrap() {
            VersionRequest::Print(printed) => {
                assert!(printed.starts_with(expected) && !expected.is_empty(), "{printed}")
            }
            other => assert_eq!(format!("{other:?}"), expected),
        };
        check("true", &format!("Kubernetes v{} (Chainsmith ", release::KUBERNETES));
        check("raw", "version.Info{Major:\"1\", Minor:\"36\", GitVersion:\"v1.36.");
        check("false", "None");
        check("v1.35.0", "Claim");
        assert!(version_text("1.35").is_err());
    }
}
