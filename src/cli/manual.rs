//! `chainsmith man DIR`: the manual pages, made from the command line's own help.
#![allow(clippy::disallowed_methods, reason = "writes the pages")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};

use super::{print, print_error};

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManualArguments {
    /// Folder for the pages; made if it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Writes `chainsmith.1` and a page `chainsmith-COMMAND.1` for each command; prints their paths.
pub fn main(arguments: &ManualArguments, command: Command) -> ExitCode {
    let folder = &arguments.folder;
    match write_pages(folder, command) {
        Ok(pages) => {
            // The pages are written; that stdout is closed is no error.
            let _ = pages.iter().try_for_each(|page| print(page.display()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(format!("cannot write the pages to {}: {error}", folder.display()));
            ExitCode::FAILURE
        }
    }
}

fn write_pages(folder: &Path, mut command: Command) -> io::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    command.build();
    let commands =
        command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    let pages: Vec<Command> = commands.cloned().collect();
    let mut paths = Vec::new();
    for page in [command].into_iter().chain(pages) {
        let name = page.get_display_name().unwrap_or_else(|| page.get_name()).to_owned();
        let path = folder.join(format!("{name}.1"));
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        fs::write(&path, text)?;
        paths.push(path);
    }
    Ok(paths)
}
