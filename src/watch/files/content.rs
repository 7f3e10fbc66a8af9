//! What one manifest file holds, decoded, and what there is to say about it.

#![allow(clippy::disallowed_methods, reason = "reads manifests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use tracing::warn;

use super::listing::{Stamp, shown};
use crate::model::decode::manifest::{self, TextProblem};
use crate::model::decode::{self, Interner};
use crate::model::{Change, Node, ObjectKind, ObjectName, Problem, Service, ServiceName, Slice, SliceName};
use crate::watch::report;

/// An object's kind and name; a Node's namespace is empty.
pub type Name = (ObjectKind, ObjectName);
/// Many of them.
pub type Names = BTreeSet<Name>;

/// The largest file that is read, in bytes: 250 000 endpoints are a third of it.
const LARGEST_FILE: u64 = 256 << 20;
/// Messages of one kind about one look at a file that are logged; of further ones their number.
pub const MOST_LINES: usize = 50;

/// What one file was found to hold.
#[derive(Default)]
pub struct Content {
    /// The version that was read, as it was after reading; `None` when it could not be opened.
    pub stamp: Option<Stamp>,
    /// Whether it ends in the middle of a line.
    pub is_cut: bool,
    /// By name; `None` for one that is not proxied.
    pub services: BTreeMap<ServiceName, Option<Service>>,
    /// By name; `None` for one that counts for no Service.
    pub slices: BTreeMap<SliceName, Option<Slice>>,
    /// This node's.
    pub node: Option<Node>,
    /// The first ones.
    problems: Vec<Problem>,
    /// How many there are beyond those.
    n_more: usize,
    /// Fields of objects that cannot be used, by kind.
    n_fields: BTreeMap<ObjectKind, usize>,
    texts: manifest::Outcome,
}

impl Content {
    /// All objects it holds, also those that do not count.
    pub fn names(&self) -> Names {
        let services = self.services.keys().map(|name| (ObjectKind::Service, name.clone()));
        let slices = self.slices.keys().map(|name| (ObjectKind::EndpointSlice, name.clone()));
        let node = self.node.iter().map(|node| (ObjectKind::Node, ObjectName::new("", &node.name)));
        services.chain(slices).chain(node).collect()
    }

    /// Objects that could not be decoded, and whether the text itself was broken, so that it is not
    /// known which objects were lost.
    pub fn lost(&self) -> (Names, bool) {
        let lost = self.texts.problems.iter().filter_map(|problem| problem.object.as_ref());
        let lost = lost.map(|(kind, name)| match name.split_once('/') {
            Some((namespace, name)) => (*kind, ObjectName::new(namespace, name)),
            None => (*kind, ObjectName::new("", name)),
        });
        let is_broken = self.texts.problems.iter().any(|problem| problem.object.is_none());
        (lost.collect(), is_broken || self.texts.n_more_problems > 0)
    }

    fn add_problems(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            *self.n_fields.entry(problem.kind).or_default() += problem.n_fields;
            if self.problems.len() < MOST_LINES {
                self.problems.push(problem);
            } else {
                self.n_more += 1;
            }
        }
    }
}

/// Reads and decodes a file; of the same object twice, the later counts.
pub fn read(path: &Path, node: &str, interner: &mut Interner) -> Content {
    let source = path.display().to_string();
    let mut content = Content::default();
    let outcome = open(path).and_then(|file| {
        content.stamp = Some(Stamp::of(&file.metadata()?));
        let mut text = Bounded { file: &file, n_bytes: 0, last: b'\n' };
        text.check(file.metadata()?.len())?;
        let outcome =
            read_text(BufReader::with_capacity(64 << 10, &mut text), &source, node, &mut content, interner);
        // A line, or a document of JSON.
        content.is_cut = !b"\n}]".contains(&text.last);
        content.stamp = Some(Stamp::of(&file.metadata()?));
        Ok(outcome)
    });
    content.texts = outcome.unwrap_or_else(|error| {
        let what = format!("cannot be read: {error}");
        let problems = vec![TextProblem { source, line: 1, object: None, what }];
        manifest::Outcome { problems, ..manifest::Outcome::default() }
    });
    content
}

/// Opens a file without blocking: a FIFO may have taken its place.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a regular file")),
    }
}

fn read_text(
    text: impl io::BufRead,
    source: &str,
    node: &str,
    content: &mut Content,
    interner: &mut Interner,
) -> manifest::Outcome {
    manifest::read(text, source, &mut |object| {
        let (change, problems) = decode::change(&object, interner);
        content.add_problems(problems);
        match change {
            Some(Change::Service(name, service)) => {
                content.services.insert(name, service);
            }
            Some(Change::Slice(name, slice)) => {
                content.slices.insert(name, slice);
            }
            Some(Change::Node(Some(found))) if *found.name == *node => content.node = Some(found),
            _ => {}
        }
    })
}

/// The text of a file, up to a limit, and its last byte.
struct Bounded<'a> {
    file: &'a File,
    n_bytes: u64,
    last: u8,
}

impl Bounded<'_> {
    fn check(&self, n_bytes: u64) -> io::Result<()> {
        if n_bytes <= LARGEST_FILE {
            return Ok(());
        }
        let limit = LARGEST_FILE >> 20;
        Err(io::Error::other(format!("is larger than {limit} MiB")))
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.n_bytes += n as u64;
        self.check(self.n_bytes)?;
        if n > 0 {
            self.last = out[n - 1];
        }
        Ok(n)
    }
}

/// What was said to be wrong with a file.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// The lines that were logged, and how many more there would have been.
    lines: (Vec<String>, usize),
    /// Fields of objects that cannot be used, by kind.
    pub problems: BTreeMap<ObjectKind, usize>,
}

/// Says what is wrong with a file, once for each version of it: the first problems one by one, then
/// how many more there are.
pub fn say(content: &Content, path: &Path, is_new: bool, said: &mut Said) {
    said.problems.clone_from(&content.n_fields);
    let of_texts = content.texts.problems.iter().filter_map(|problem| Some(problem.object.as_ref()?.0));
    for kind in of_texts {
        *said.problems.entry(kind).or_default() += 1;
    }
    let texts = content.texts.problems.iter().map(ToString::to_string);
    let lines = texts.chain(content.problems.iter().map(ToString::to_string)).take(MOST_LINES);
    let lines: Vec<String> = lines.collect();
    let n_all = content.texts.problems.len()
        + content.texts.n_more_problems
        + content.problems.len()
        + content.n_more;
    let n_more = n_all - lines.len();
    if !is_new && said.lines == (lines.clone(), n_more) {
        return;
    }
    let n_texts = content.texts.problems.len().min(lines.len());
    let file = shown(path);
    for problem in &content.texts.problems[..n_texts] {
        let TextProblem { source: _, line, object, what } = problem;
        match object {
            Some((kind, object)) => {
                let object = object.escape_debug();
                warn!(%file, line, %kind, %object, %what, "bad object in manifest, its last state stays");
            }
            None => warn!(%file, line, %what, "broken manifest, its last good state stays"),
        }
    }
    content.problems[..lines.len() - n_texts].iter().for_each(report::log);
    if n_more > 0 {
        warn!(%file, n_more, "manifest has more problems than are logged");
    }
    said.lines = (lines, n_more);
}
