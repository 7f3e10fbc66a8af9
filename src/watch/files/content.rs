//! What one manifest file holds, decoded, and what there is to say about it.

#![allow(clippy::disallowed_methods, reason = "reads manifests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use tracing::warn;

use crate::model::decode::manifest::{self, TextProblem};
use crate::model::decode::{self, Interner};
use crate::model::{Change, Node, ObjectKind, ObjectName, Problem, Service, ServiceName, Slice, SliceName};
use crate::watch::report;

/// An object's kind and name; a Node's namespace is empty.
pub type Name = (ObjectKind, ObjectName);
/// Many of them.
pub type Names = BTreeSet<Name>;

/// What one file was found to hold.
#[derive(Default)]
pub struct Content {
    /// By name; `None` for one that is not proxied.
    pub services: BTreeMap<ServiceName, Option<Service>>,
    /// By name; `None` for one that counts for no Service.
    pub slices: BTreeMap<SliceName, Option<Slice>>,
    /// This node's.
    pub node: Option<Node>,
    problems: Vec<Problem>,
    text_problems: Vec<TextProblem>,
}

impl Content {
    /// All objects it holds, also those that do not count.
    pub fn names(&self) -> Names {
        let services = self.services.keys().map(|name| (ObjectKind::Service, name.clone()));
        let slices = self.slices.keys().map(|name| (ObjectKind::EndpointSlice, name.clone()));
        let node = self.node.iter().map(|node| (ObjectKind::Node, ObjectName::new("", &node.name)));
        services.chain(slices).chain(node).collect()
    }

    /// Objects that could not be decoded, and whether the text itself was broken.
    pub fn lost(&self) -> (Names, bool) {
        let lost = self.text_problems.iter().filter_map(|problem| problem.object.as_ref());
        let lost = lost.map(|(kind, name)| match name.split_once('/') {
            Some((namespace, name)) => (*kind, ObjectName::new(namespace, name)),
            None => (*kind, ObjectName::new("", name)),
        });
        (lost.collect(), self.text_problems.iter().any(|problem| problem.object.is_none()))
    }
}

/// Reads and decodes a file; of the same object twice, the later counts.
pub fn read(path: &Path, node: &str, interner: &mut Interner) -> Content {
    let source = path.display().to_string();
    let mut content = Content::default();
    let file = File::open(path).and_then(|file| match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("not a file")),
    });
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            let what = format!("cannot be opened: {error}");
            content.text_problems.push(TextProblem { source, line: 1, object: None, what });
            return content;
        }
    };
    let file = BufReader::with_capacity(64 << 10, file);
    let outcome = manifest::read(file, &source, &mut |object| {
        let (change, problems) = decode::change(&object, interner);
        content.problems.extend(problems);
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
    });
    content.text_problems = outcome.problems;
    content
}

/// What was said to be wrong with a file.
#[derive(Clone, Debug, Default)]
pub struct Said {
    texts: Vec<String>,
    /// Fields of objects that cannot be used, by kind.
    pub problems: BTreeMap<ObjectKind, usize>,
}

/// Says what is wrong with a file, once for each version of it.
pub fn say(content: &Content, path: &Path, is_new: bool, said: &mut Said) {
    said.problems.clear();
    let of_texts = content.text_problems.iter().filter_map(|problem| Some(problem.object.as_ref()?.0));
    for kind in of_texts.chain(content.problems.iter().map(|problem| problem.kind)) {
        *said.problems.entry(kind).or_default() += 1;
    }
    let texts = content.text_problems.iter().map(ToString::to_string);
    let say: Vec<String> = texts.chain(content.problems.iter().map(ToString::to_string)).collect();
    if !is_new && said.texts == say {
        return;
    }
    let file = path.display();
    for problem in &content.text_problems {
        let TextProblem { source: _, line, object, what } = problem;
        match object {
            Some((kind, object)) => {
                let object = object.escape_debug();
                warn!(%file, line, %kind, %object, %what, "bad object in manifest, its last state stays");
            }
            None => warn!(%file, line, %what, "broken manifest, its last good state stays"),
        }
    }
    content.problems.iter().for_each(report::log);
    said.texts = say;
}
