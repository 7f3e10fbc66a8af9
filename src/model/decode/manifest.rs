//! Text of YAML or JSON as Kubernetes objects: what `kubectl get -o yaml` prints or a person
//! writes, with the defaults that an API server fills in. Decoding the objects is left to the
//! parent module, opening files to the caller.
//!
//! Documents are separated by lines of `---`; each is YAML, or JSON when its first character is a
//! `{` (then several may follow one another) and it is not YAML of that form. A list of any kind may stand for its items, nested
//! too. Text is read as a stream: what is in memory is one object, however long the list.
//!
//! A document that is not YAML or JSON costs itself from there on, as does an object longer than any
//! that an API server stores; an object whose metadata, spec, ports or endpoints are of a wrong type costs
//! itself; each is one [`TextProblem`] that names the line. Other fields are left to decoding.

mod defaults;
mod document;
mod list;

use std::cell::Cell;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

use serde::de::{Deserialize, DeserializeSeed};
use serde_json::Value;

use super::field::one_line;
use super::given::Given;
use super::object::{ApiNode, ApiObject, ApiService, ApiSlice, whole};
use crate::model::ObjectKind;
use crate::model::problem::quote;
use document::{Documents, Kept, LONGEST_OBJECT, LineCounter};
use list::{DocumentSeed, Position};

/// An object of a kind that matters, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A `v1` Service.
    Service(Box<ApiService>),
    /// A `discovery.k8s.io/v1` EndpointSlice.
    Slice(Box<ApiSlice>),
    /// A `v1` Node.
    Node(Box<ApiNode>),
}

/// One thing wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextProblem {
    /// The file, as the caller called it.
    pub source: String,
    /// Line of the text at fault, or the first line of the object; from 1.
    pub line: usize,
    /// The object that was lost, `<namespace>/<name>` or the bare name of a Node; `None` when the
    /// text itself is broken, so that nobody knows what was lost.
    pub object: Option<(ObjectKind, String)>,
    /// What is wrong.
    pub what: String,
}

/// `<source>:<line>: Service default/web: spec: "5" is not an object`
impl fmt::Display for TextProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.source.escape_debug(), self.line)?;
        if let Some((kind, name)) = &self.object {
            write!(f, "{kind} {}: ", name.escape_debug())?;
        }
        f.write_str(&self.what)
    }
}

/// What a text held beside the objects handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects handed out.
    pub n_objects: usize,
    /// Objects of other kinds, passed over.
    pub n_others: usize,
    /// What could not be used, in the order of the text: no more than the first thousand.
    pub problems: Vec<TextProblem>,
    /// How much more could not be used.
    pub n_more_problems: usize,
}

/// Problems of a text that are kept, so that a large text of nothing else does not fill the memory.
const MOST_PROBLEMS: usize = 1_000;

/// Reads all documents of `text`, which messages call `source`, and gives each Service,
/// EndpointSlice and Node to `each`.
pub fn read(text: impl BufRead, source: &str, each: &mut dyn FnMut(Object)) -> Outcome {
    let mut documents = Documents::new(text);
    let mut reading = Reading { source, outcome: Outcome::default(), n_bytes: Rc::default(), each };
    while let Some(first) = documents.next_document() {
        reading.n_bytes = documents.count_object();
        match first {
            Ok(b'{') => reading.json_or_yaml(&mut documents),
            Ok(_) => {
                let first = documents.line();
                if let Err(broken) = reading.yaml(documents.by_ref(), first) {
                    reading.document_broken(broken, first, documents.line());
                }
            }
            Err(error) => {
                reading.broken(documents.line(), &format!("cannot be read: {error}"));
                break;
            }
        }
        documents.skip_rest();
    }
    reading.outcome
}

impl Outcome {
    /// Whatever was found so far.
    fn n_seen(&self) -> usize {
        self.n_objects + self.n_others + self.problems.len() + self.n_more_problems
    }
}

/// How much of a document that begins as JSON is kept, in case it turns out to be YAML: more than
/// anybody writes by hand. In bytes.
const LONGEST_KEPT: usize = 1 << 20;

/// A document that cannot be read on.
struct Broken {
    /// Line and column within the document, from 1.
    place: (usize, usize),
    what: String,
    /// Nothing was handed out, and the fault is one of JSON's grammar.
    may_be_yaml: bool,
}

/// Where the objects of one text go.
struct Reading<'a> {
    source: &'a str,
    outcome: Outcome,
    /// Bytes read of the current object; set to 0 at its end.
    n_bytes: Rc<Cell<usize>>,
    each: &'a mut dyn FnMut(Object),
}

impl Reading<'_> {
    /// Reads a document that begins with a `{`: JSON, or else YAML. What is neither is said to be the
    /// one that it is for longer.
    fn json_or_yaml(&mut self, documents: &mut Documents<impl BufRead>) {
        let first = documents.line();
        let mut text = Kept::new(documents.by_ref(), LONGEST_KEPT);
        let Err(json) = self.json(&mut text, first) else { return };
        let broken = match text.rewound() {
            Some(text) if json.may_be_yaml => match self.yaml(text, first) {
                Err(yaml) if yaml.place > json.place => yaml,
                Err(_) => json,
                Ok(()) => return,
            },
            _ => json,
        };
        self.document_broken(broken, first, documents.line());
    }

    /// Notes that the document that begins on line `first` cannot be read on; `reached` is the line that
    /// was read last.
    fn document_broken(&mut self, broken: Broken, first: usize, reached: usize) {
        if self.n_bytes.get() > LONGEST_OBJECT {
            let limit = LONGEST_OBJECT >> 20;
            return self.broken(reached, &format!("holds an object longer than {limit} MiB"));
        }
        self.broken(first + broken.place.0 - 1, &broken.what);
    }

    fn yaml(&mut self, text: impl Read, first: usize) -> Result<(), Broken> {
        serde_saphyr::with_deserializer_from_reader_with_options(text, yaml_options(), |deserializer| {
            DocumentSeed { reading: self, position: Position::Yaml { first } }.deserialize(deserializer)
        })
        .map_err(|error| {
            // A location of line 0 means that the parser knows none.
            let place =
                error.location().map_or((1, 0), |at| (at.line().max(1) as usize, at.column() as usize));
            let what =
                format!("cannot be read as YAML: {}", without_place(&error.without_snippet().to_string()));
            Broken { place, what, may_be_yaml: true }
        })
    }

    fn json(&mut self, text: impl Read, first: usize) -> Result<(), Broken> {
        let lines = LineCounter::new(BufReader::with_capacity(64 << 10, text), first);
        let line = lines.line();
        let mut deserializer = serde_json::Deserializer::from_reader(lines);
        let before = self.outcome.n_seen();
        while deserializer.end().is_err() {
            self.n_bytes.set(0);
            let seed = DocumentSeed { reading: self, position: Position::Json(&line) };
            seed.deserialize(&mut deserializer).map_err(|error| Broken {
                place: (error.line().max(1), error.column()),
                what: format!("cannot be read as JSON: {}", without_place(&error.to_string())),
                may_be_yaml: error.is_syntax() && self.outcome.n_seen() == before,
            })?;
        }
        Ok(())
    }

    /// Notes that the text itself is broken at `line`.
    fn broken(&mut self, line: usize, what: &str) {
        self.lost(line, None, what.to_owned());
    }

    fn lost(&mut self, line: usize, object: Option<(ObjectKind, String)>, what: String) {
        if self.outcome.problems.len() == MOST_PROBLEMS {
            self.outcome.n_more_problems += 1;
            return;
        }
        let source = self.source.to_owned();
        let what = one_line(&what);
        self.outcome.problems.push(TextProblem { source, line, object, what });
    }

    /// Takes in one object, or the items of a list, found at `line`; `list` is the list it comes
    /// from, which knows the kind when the object does not say it.
    fn object(&mut self, value: Value, line: usize, list: Option<&ListKind>) {
        let Value::Object(mut object) = value else {
            let what = format!("holds {} where an object should be", quote(&value.to_string()));
            return self.broken(line, &what);
        };
        let text = |object: &serde_json::Map<String, Value>, key| {
            object.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let own = ListKind { kind: text(&object, "kind"), api_version: text(&object, "apiVersion") };
        if let Some(Value::Array(items)) = object.remove("items") {
            for item in items {
                self.object(item, line, Some(&own));
            }
            return;
        }
        let Some(kind) = own.kind.or_else(|| list.and_then(ListKind::item)) else {
            return self.broken(line, "holds an object without a kind");
        };
        let version = own.api_version.or_else(|| list.and_then(|list| list.api_version.clone()));
        let value = Value::Object(object);
        match (kind.as_str(), version.as_deref()) {
            ("Service", None | Some("v1")) => self.typed(&value, line, |mut service| {
                defaults::service(&mut service);
                Object::Service(Box::new(service))
            }),
            ("EndpointSlice", None | Some("discovery.k8s.io/v1")) => self.typed(&value, line, |mut slice| {
                defaults::slice(&mut slice);
                Object::Slice(Box::new(slice))
            }),
            ("Node", None | Some("v1")) => self.typed(&value, line, |mut node| {
                defaults::node(&mut node);
                Object::Node(Box::new(node))
            }),
            _ => self.outcome.n_others += 1,
        }
    }

    fn typed<T: ApiObject>(&mut self, value: &Value, line: usize, finish: impl FnOnce(T) -> Object) {
        let given = match Given::<T>::deserialize(value) {
            Ok(given) => given,
            Err(error) => return self.broken(line, &quote(&error.to_string())),
        };
        match whole(given) {
            Ok(object) => {
                self.outcome.n_objects += 1;
                (self.each)(finish(object));
            }
            Err(problem) => {
                let what = format!("{}: {:?} {}", problem.field, problem.text, problem.what);
                self.lost(line, Some((T::KIND, claimed_name(value, T::KIND))), what);
            }
        }
    }
}

/// Kind and version of a list: what its items are when they do not say it.
struct ListKind {
    kind: Option<String>,
    api_version: Option<String>,
}

impl ListKind {
    /// `Service` for a `ServiceList`.
    fn item(&self) -> Option<String> {
        let item = self.kind.as_deref()?.strip_suffix("List")?;
        (!item.is_empty()).then(|| item.to_owned())
    }
}

/// The name that an object which cannot be decoded gives itself: `<namespace>/<name>`, or the bare
/// name of a Node.
pub fn claimed_name(object: &Value, kind: ObjectKind) -> String {
    let text = |key| object.get("metadata")?.get(key)?.as_str();
    let name = text("name").unwrap_or_default();
    match kind {
        ObjectKind::Node => quote(name),
        _ => quote(&format!("{}/{name}", text("namespace").unwrap_or("default"))),
    }
}

/// An error message without its own idea of the line, which counts from the document's start, and
/// without advice for programmers.
fn without_place(text: &str) -> String {
    let text = text.split_once(" at line ").map_or(text, |(what, _)| what);
    let text = text.split_once(", set DuplicateKeyPolicy").map_or(text, |(what, _)| what);
    quote(&text.replace('\n', " "))
}

/// Booleans are YAML 1.2's, true and false, so that a name may be `n` or `on` without quotes (kubectl
/// prints neither without). Limits: generous for lists (an object is in memory, not the list), strict for aliases, which
/// kubectl never writes and which can make much of little.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(4 << 30),
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_depth: 64,
            max_documents: 2,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 10_000,
            max_recorded_anchor_bytes: 64 << 10,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 8,
        },
        strict_booleans: true,
        emit_comments: false,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests;
