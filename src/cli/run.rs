//! `chainsmith run`: the agent.
#![allow(clippy::disallowed_methods, reason = "reads the configuration file")]

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tracing::{error, warn};

use super::{complain, log};
use crate::agent;
use crate::config::{Config, Flags, LayoutChoice};

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    flags: Flags,
}

/// Runs the agent; whatever goes wrong is exit status 1, as with kube-proxy.
pub fn main(arguments: &RunArguments) -> ExitCode {
    let (config, warnings) = match configure(&arguments.flags) {
        Ok(configured) => configured,
        Err(error) => {
            complain(format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    log::start(&config.logging);
    warnings.iter().for_each(|warning| warn!("{warning}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.context("cannot start the async runtime").and_then(|runtime| {
        let result = runtime.block_on(agent::run(config));
        // Tasks that wait for the network need not be waited for.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn configure(flags: &Flags) -> anyhow::Result<(Config, Vec<crate::config::Warning>)> {
    let file = match flags.config() {
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.with_context(|| format!("cannot read the configuration {}", path.display()))?)
        }
        None => None,
    };
    let (config, warnings) = Config::resolve(file.as_deref(), flags)?;
    if config.layout == LayoutChoice::Compact {
        anyhow::bail!("layout compact is not built yet; use classic or auto");
    }
    Ok((config, warnings))
}
