//! Reads and decodes one manifest file, and logs its problems.

#![allow(clippy::disallowed_methods, reason = "reads manifests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use tracing::warn;

use super::listing::{FileVersion, escaped_path};
use crate::model::decode::manifest::{self, TextProblem};
use crate::model::decode::{self, Interner};
use crate::model::{
    Change, Node, ObjectKind, ObjectName, Problem, ProblemWeight, Service, ServiceName, Slice, SliceName,
};
use crate::watch::problem_log;

/// Kind and name of an object; a Node's namespace is empty.
pub type ObjectKey = (ObjectKind, ObjectName);
/// A set of objects.
pub type ObjectKeys = BTreeSet<ObjectKey>;

/// The largest file accepted, in bytes; 250 000 endpoints take a third of it.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Limit for log lines of one kind in one scan; beyond it, only their number is logged.
pub const MAX_LINES: usize = 50;

/// The content of one file.
#[derive(Default)]
pub struct Content {
    /// The version after reading; `None` when the file could not be opened.
    pub version: Option<FileVersion>,
    /// Whether it ends inside a line.
    pub ends_in_line: bool,
    /// By name; `None` for a Service that is not proxied.
    pub services: BTreeMap<ServiceName, Option<Service>>,
    /// By name; `None` for a slice of no Service.
    pub slices: BTreeMap<SliceName, Option<Slice>>,
    /// This node's Node.
    pub node: Option<Node>,
    /// The first problems.
    problems: Vec<Problem>,
    /// Number of further problems.
    n_more: usize,
    /// Number of unusable fields, by kind.
    n_fields: BTreeMap<ObjectKind, usize>,
    texts: manifest::ManifestSummary,
}

impl Content {
    /// All its objects, also those that are not proxied.
    pub fn objects(&self) -> ObjectKeys {
        let services = self.services.keys().map(|name| (ObjectKind::Service, name.clone()));
        let slices = self.slices.keys().map(|name| (ObjectKind::EndpointSlice, name.clone()));
        let node = self.node.iter().map(|node| (ObjectKind::Node, ObjectName::new("", &node.name)));
        services.chain(slices).chain(node).collect()
    }

    /// The objects that could not be decoded; and whether the text is malformed, so that the missing
    /// objects are unknown.
    pub fn undecodable(&self) -> (ObjectKeys, bool) {
        let undecodable = self.texts.problems.iter().filter_map(|problem| problem.object.as_ref());
        let undecodable = undecodable.map(|(kind, name)| match name.split_once('/') {
            Some((namespace, name)) => (*kind, ObjectName::new(namespace, name)),
            None => (*kind, ObjectName::new("", name)),
        });
        let is_malformed = self.texts.problems.iter().any(|problem| problem.object.is_none());
        (undecodable.collect(), is_malformed || self.texts.n_more_problems > 0)
    }

    fn add_problems(&mut self, problems: Vec<Problem>) {
        for problem in problems {
            *self.n_fields.entry(problem.kind).or_default() += problem.n_fields;
            if self.problems.len() < MAX_LINES {
                self.problems.push(problem);
            } else {
                self.n_more += 1;
            }
        }
    }
}

/// Reads and decodes a file. Of an object that occurs twice, the later one is used.
pub fn read(path: &Path, node: &str, interner: &mut Interner) -> Content {
    let source = path.display().to_string();
    let mut content = Content::default();
    let outcome = open(path).and_then(|file| {
        content.version = Some(FileVersion::of(&file.metadata()?));
        let mut text = BoundedFile { file: &file, n_bytes: 0, last: b'\n' };
        text.check(file.metadata()?.len())?;
        let outcome =
            read_text(BufReader::with_capacity(64 << 10, &mut text), &source, node, &mut content, interner);
        // The end of a line, or of a JSON document.
        content.ends_in_line = !b"\n}]".contains(&text.last);
        content.version = Some(FileVersion::of(&file.metadata()?));
        Ok(outcome)
    });
    content.texts = outcome.unwrap_or_else(|error| {
        let what = format!("cannot be read: {error}");
        let problems = vec![TextProblem { source, line: 1, object: None, what }];
        manifest::ManifestSummary { problems, ..manifest::ManifestSummary::default() }
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
) -> manifest::ManifestSummary {
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

/// The text of a file, with a size limit, and its last byte.
struct BoundedFile<'a> {
    file: &'a File,
    n_bytes: u64,
    last: u8,
}

impl BoundedFile<'_> {
    fn check(&self, n_bytes: u64) -> io::Result<()> {
        if n_bytes <= MAX_FILE_BYTES {
            return Ok(());
        }
        let limit = MAX_FILE_BYTES >> 20;
        Err(io::Error::other(format!("is larger than {limit} MiB")))
    }
}

impl Read for BoundedFile<'_> {
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

#[derive(Clone, Debug, Default)]
pub struct LoggedProblems {
    /// The logged lines, and the number of further ones.
    lines: (Vec<String>, usize),
    /// Number of unusable fields, by kind.
    pub problems: BTreeMap<ObjectKind, usize>,
    /// The first problems of objects.
    pub first: Arc<[Problem]>,
}

/// The problem of an object that cannot be decoded; `None` where the text has no object.
fn undecodable_object(problem: &TextProblem) -> Option<Problem> {
    let (kind, object) = problem.object.clone()?;
    let what = format!("{}; its last state stays in use", problem.what);
    let (field, text, more_texts) = Default::default();
    let weight = ProblemWeight::Wrong;
    Some(Problem { weight, kind, object, field, text, what, n_fields: 1, more_texts })
}

/// Logs the problems of a file once for each version: the first ones one by one, then the number of further
/// ones.
pub fn log_problems(content: &Content, path: &Path, is_new: bool, logged: &mut LoggedProblems) {
    logged.problems.clone_from(&content.n_fields);
    let undecodable = content.texts.problems.iter().filter_map(undecodable_object);
    logged.first = undecodable.chain(content.problems.iter().cloned()).take(MAX_LINES).collect();
    let kinds = content.texts.problems.iter().filter_map(|problem| Some(problem.object.as_ref()?.0));
    for kind in kinds {
        *logged.problems.entry(kind).or_default() += 1;
    }
    let texts = content.texts.problems.iter().map(ToString::to_string);
    let lines = texts.chain(content.problems.iter().map(ToString::to_string)).take(MAX_LINES);
    let lines: Vec<String> = lines.collect();
    let n_all = content.texts.problems.len()
        + content.texts.n_more_problems
        + content.problems.len()
        + content.n_more;
    let n_more = n_all - lines.len();
    if !is_new && logged.lines == (lines.clone(), n_more) {
        return;
    }
    let n_texts = content.texts.problems.len().min(lines.len());
    let file = escaped_path(path);
    for problem in &content.texts.problems[..n_texts] {
        let TextProblem { source: _, line, object, what } = problem;
        match object {
            Some((kind, object)) => {
                let object = object.escape_debug();
                warn!(%file, line, %kind, %object, %what, "malformed object in manifest; its last state stays in use");
            }
            None => warn!(%file, line, %what, "malformed manifest; its last readable state stays in use"),
        }
    }
    content.problems[..lines.len() - n_texts].iter().for_each(problem_log::log_problem);
    if n_more > 0 {
        warn!(%file, n_more, "more problems in manifest");
    }
    logged.lines = (lines, n_more);
}
