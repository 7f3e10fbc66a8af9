//! Objects given on the command line: files, folders, or `-` for stdin.
#![allow(clippy::disallowed_methods, reason = "reads the files that are named on the command line")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::print_error;
use crate::model::decode::{Interner, manifest};
use crate::model::{Inventory, Problem, ProblemWeight};
use crate::watch::files;

/// The objects and the problems in them.
#[derive(Debug, Default)]
pub struct Objects {
    /// The objects.
    pub inventory: Inventory,
    /// One line for each problem.
    pub problems: Vec<String>,
    /// One line for each object, or part of one, that is legal and that no rule is made for.
    pub notes: Vec<String>,
}

impl Objects {
    /// Sorts the problems of an object of `source` into problems and notes.
    pub fn add_problems(&mut self, source: &str, found: &[Problem]) {
        for problem in found {
            let line = format!("{source}: {problem}");
            match problem.weight {
                ProblemWeight::Wrong => self.problems.push(line),
                ProblemWeight::NotForProxies => self.notes.push(line),
            }
        }
    }

    /// Prints the notes on stderr, with `-v`.
    pub fn print_notes(&self, is_verbose: bool) {
        self.notes.iter().filter(|_| is_verbose).for_each(|note| print_error(format!("note: {note}")));
    }

    /// Adds a note for each Service that is not proxied.
    pub fn note_not_proxied(&mut self) {
        let services = self.inventory.not_proxied().iter();
        self.notes.extend(services.map(|(name, reason)| format!("Service {name} {reason}")));
    }
}

/// Reads all objects of `paths`. A path that cannot be read is an error; a malformed object is a problem, and
/// the others are read.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Objects> {
    let (mut objects, mut interner) = (Objects::default(), Interner::default());
    for path in paths {
        if path.as_os_str() == "-" {
            read_text(std::io::stdin().lock(), "stdin", &mut objects, &mut interner);
        } else if path.is_dir() {
            let listing =
                files::list(path).with_context(|| format!("cannot read folder {}", path.display()))?;
            for path in listing.not_regular {
                let file = path.display().to_string();
                objects.problems.push(format!("{}: is not a regular file; ignored", file.escape_debug()));
            }
            for (file, _) in listing.manifests {
                read_file(&file, &mut objects, &mut interner)?;
            }
        } else {
            read_file(path, &mut objects, &mut interner)?;
        }
    }
    objects.note_not_proxied();
    Ok(objects)
}

fn read_file(path: &Path, objects: &mut Objects, interner: &mut Interner) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read_text(BufReader::new(file), &path.display().to_string(), objects, interner);
    Ok(())
}

fn read_text(text: impl BufRead, source: &str, objects: &mut Objects, interner: &mut Interner) {
    let file = source.escape_debug().to_string();
    let outcome = manifest::read_for_operator(text, source, &mut |object| {
        let found = objects.inventory.add(&object, interner);
        objects.add_problems(&file, &found);
    });
    let problems = &mut objects.problems;
    problems.extend(outcome.problems.iter().map(ToString::to_string));
    if outcome.n_more_problems > 0 {
        problems.push(format!("{file}: {} more problems", outcome.n_more_problems));
    }
}
