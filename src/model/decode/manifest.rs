//! Reads Kubernetes objects from YAML or JSON, as `kubectl get -o yaml` prints them or as written by hand,
//! and sets the API server's defaults. Decoding objects is left to the parent module, opening files to the
//! caller.
//!
//! Documents are separated by lines of `---`. Each is YAML; or JSON, if its first character is a `{` and it
//! does not parse as YAML in that form. JSON documents may follow each other without a separator. The items
//! of a list of any kind are read as objects, also in nested lists. Text is read as a stream: only one
//! object is in memory, however long the list.
//!
//! A syntax error ends its document, as does an object longer than any that an API server stores. An object
//! whose metadata, spec, ports or endpoints are of a wrong type is skipped. Each is one [`TextProblem`]
//! with its line. Other fields are checked by decoding.

mod defaults;
mod documents;
mod kinds;
mod list;

use std::cell::Cell;
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::rc::Rc;

use serde::de::{Deserialize, DeserializeSeed};
use serde_json::Value;

use super::field_reader::escape_control;
use super::field_value::FieldValue;
use super::object::{ApiNode, ApiObject, ApiPod, ApiService, ApiSlice, require_usable};
use crate::model::ObjectKind;
use crate::model::problem::quote;
use documents::{Documents, LineCounter, MAX_OBJECT_BYTES, ReplayReader};
use list::{DocumentSeed, LineSource, ListKind, ValueSink};

/// An object, with defaults.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A `v1` Service.
    Service(Box<ApiService>),
    /// A `discovery.k8s.io/v1` EndpointSlice.
    Slice(Box<ApiSlice>),
    /// A `v1` Node.
    Node(Box<ApiNode>),
    /// A `v1` Pod; only for operators ([`read_for_operator`]).
    Pod(Box<ApiPod>),
}

/// One problem of a text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextProblem {
    /// The file, by the name that the caller gave.
    pub source: String,
    /// Line of the problem, or the first line of the object; from 1.
    pub line: usize,
    /// The unusable object, `<namespace>/<name>` or the name of a Node; `None` when the text is malformed,
    /// so that the object is unknown.
    pub object: Option<(ObjectKind, String)>,
    /// The error.
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

/// Counts and problems of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestSummary {
    /// Number of objects passed to the caller.
    pub n_objects: usize,
    /// Number of objects of other kinds, which are skipped.
    pub n_other_kinds: usize,
    /// The problems in the order of the text; at most the first thousand.
    pub problems: Vec<TextProblem>,
    /// Number of further problems.
    pub n_more_problems: usize,
}

/// Limit for stored problems, so that a large malformed text does not fill the memory.
const MAX_PROBLEMS: usize = 1_000;

/// Reads all documents of `text`, named `source` in messages, and passes each Service, EndpointSlice and
/// Node to `each`.
pub fn read(text: impl BufRead, source: &str, each: &mut dyn FnMut(Object)) -> ManifestSummary {
    let outcome = ManifestSummary::default();
    read_with(text, ManifestParser { source, outcome, n_bytes: Rc::default(), is_for_operator: false, each })
}

/// Reads as [`read`], for a person who asks about the objects: also passes on Pods, and reports kinds and versions
/// that are probably typing errors, or of another version than the one that is read.
pub fn read_for_operator(text: impl BufRead, source: &str, each: &mut dyn FnMut(Object)) -> ManifestSummary {
    let outcome = ManifestSummary::default();
    read_with(text, ManifestParser { source, outcome, n_bytes: Rc::default(), is_for_operator: true, each })
}

fn read_with(text: impl BufRead, mut parser: ManifestParser<'_>) -> ManifestSummary {
    let mut documents = Documents::new(text);
    while let Some(first) = documents.next_document() {
        parser.n_bytes = documents.count_object();
        match first {
            Ok(b'{') => parser.parse_json_or_yaml(&mut documents),
            Ok(_) => {
                let first = documents.line();
                if let Err(failure) = parser.parse_yaml(documents.by_ref(), first) {
                    parser.report_document_failure(failure, first, documents.line());
                }
            }
            Err(error) => {
                parser.report_malformed(documents.line(), &format!("cannot be read: {error}"));
                break;
            }
        }
        documents.skip_rest();
    }
    parser.outcome
}

impl ManifestSummary {
    /// Everything found so far.
    fn n_seen(&self) -> usize {
        self.n_objects + self.n_other_kinds + self.problems.len() + self.n_more_problems
    }
}

/// How much of a document that begins as JSON is kept, in case it must be read again as YAML; more than is
/// written by hand. In bytes.
const MAX_REPLAY_BYTES: usize = 1 << 20;

/// Why the rest of a document cannot be read.
struct ParseFailure {
    /// Line and column within the document, from 1.
    location: (usize, usize),
    what: String,
    /// No object was passed on, and the error is one of JSON syntax.
    may_be_yaml: bool,
}

/// Parses one text.
struct ManifestParser<'a> {
    source: &'a str,
    outcome: ManifestSummary,
    /// Bytes read of the current object; 0 after its end.
    n_bytes: Rc<Cell<usize>>,
    /// Whether Pods are passed on, and unknown kinds are reported.
    is_for_operator: bool,
    each: &'a mut dyn FnMut(Object),
}

impl ManifestParser<'_> {
    /// Reads a document that begins with `{`: JSON, or else YAML. If both parsers fail, the error of the
    /// one that got further is reported.
    fn parse_json_or_yaml(&mut self, documents: &mut Documents<impl BufRead>) {
        let first = documents.line();
        let mut text = ReplayReader::new(documents.by_ref(), MAX_REPLAY_BYTES);
        let Err(json) = self.parse_json(&mut text, first) else { return };
        let failure = match text.rewind() {
            Some(text) if json.may_be_yaml => match self.parse_yaml(text, first) {
                Err(yaml) if yaml.location > json.location => yaml,
                Err(_) => json,
                Ok(()) => return,
            },
            _ => json,
        };
        self.report_document_failure(failure, first, documents.line());
    }

    /// Records that the document at line `first` cannot be read further; `reached` is the last line read.
    fn report_document_failure(&mut self, failure: ParseFailure, first: usize, reached: usize) {
        if self.n_bytes.get() > MAX_OBJECT_BYTES {
            let limit = MAX_OBJECT_BYTES >> 20;
            return self.report_malformed(reached, &format!("holds an object longer than {limit} MiB"));
        }
        self.report_malformed(first + failure.location.0 - 1, &failure.what);
    }

    fn parse_yaml(&mut self, text: impl Read, first: usize) -> Result<(), ParseFailure> {
        serde_saphyr::with_deserializer_from_reader_with_options(text, yaml_options(), |deserializer| {
            DocumentSeed { sink: self, position: LineSource::Yaml { first } }.deserialize(deserializer)
        })
        .map_err(|error| {
            // Line 0 means an unknown location.
            let location =
                error.location().map_or((1, 0), |at| (at.line().max(1) as usize, at.column() as usize));
            let what =
                format!("cannot be read as YAML: {}", strip_location(&error.without_snippet().to_string()));
            ParseFailure { location, what, may_be_yaml: true }
        })
    }

    fn parse_json(&mut self, text: impl Read, first: usize) -> Result<(), ParseFailure> {
        let lines = LineCounter::new(BufReader::with_capacity(64 << 10, text), first);
        let line = lines.line();
        let mut deserializer = serde_json::Deserializer::from_reader(lines);
        let before = self.outcome.n_seen();
        while deserializer.end().is_err() {
            self.n_bytes.set(0);
            let seed = DocumentSeed { sink: self, position: LineSource::Json(&line) };
            seed.deserialize(&mut deserializer).map_err(|error| ParseFailure {
                location: (error.line().max(1), error.column()),
                what: format!("cannot be read as JSON: {}", strip_location(&error.to_string())),
                may_be_yaml: error.is_syntax() && self.outcome.n_seen() == before,
            })?;
        }
        Ok(())
    }

    /// Records malformed text at `line`.
    fn report_malformed(&mut self, line: usize, what: &str) {
        self.report(line, None, what.to_owned());
    }

    fn report(&mut self, line: usize, object: Option<(ObjectKind, String)>, what: String) {
        if self.outcome.problems.len() == MAX_PROBLEMS {
            self.outcome.n_more_problems += 1;
            return;
        }
        let source = self.source.to_owned();
        let what = escape_control(&what);
        self.outcome.problems.push(TextProblem { source, line, object, what });
    }

    fn decode_as<T: ApiObject>(&mut self, value: &Value, line: usize, finish: impl FnOnce(T) -> Object) {
        let given = match FieldValue::<T>::deserialize(value) {
            Ok(given) => given,
            Err(error) => return self.report_malformed(line, &quote(&error.to_string())),
        };
        match require_usable(given) {
            Ok(object) => {
                self.outcome.n_objects += 1;
                (self.each)(finish(object));
            }
            Err(problem) => {
                let what = format!("{}: {:?} {}", problem.field, problem.text, problem.what);
                self.report(line, Some((T::KIND, claimed_name(value, T::KIND))), what);
            }
        }
    }
}

impl ValueSink for ManifestParser<'_> {
    /// Handles one object, or the items of a list, at `line`. An object without a kind gets it from its
    /// list, `list`.
    fn handle_value(&mut self, value: Value, line: usize, list: Option<&ListKind>) {
        let Value::Object(mut object) = value else {
            let what = format!("holds {} where an object should be", quote(&value.to_string()));
            return self.report_malformed(line, &what);
        };
        let text = |object: &serde_json::Map<String, Value>, key| {
            object.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let own = ListKind { kind: text(&object, "kind"), api_version: text(&object, "apiVersion") };
        if let Some(Value::Array(items)) = object.remove("items") {
            for item in items {
                self.handle_value(item, line, Some(&own));
            }
            return;
        }
        let Some(kind) = own.kind.or_else(|| list.and_then(ListKind::item)) else {
            return self.report_malformed(line, "holds an object without a kind");
        };
        let version = own.api_version.or_else(|| list.and_then(|list| list.api_version.clone()));
        let value = Value::Object(object);
        match (kind.as_str(), version.as_deref()) {
            ("Service", None | Some("v1")) => self.decode_as(&value, line, |mut service| {
                defaults::service(&mut service);
                Object::Service(Box::new(service))
            }),
            ("EndpointSlice", None | Some("discovery.k8s.io/v1")) => {
                self.decode_as(&value, line, |mut slice| {
                    defaults::slice(&mut slice);
                    Object::Slice(Box::new(slice))
                })
            }
            ("Node", None | Some("v1")) => self.decode_as(&value, line, |mut node| {
                defaults::node(&mut node);
                Object::Node(Box::new(node))
            }),
            ("Pod", None | Some("v1")) if self.is_for_operator => {
                if let Ok(FieldValue::Valid(pod)) = FieldValue::<ApiPod>::deserialize(&value) {
                    self.outcome.n_objects += 1;
                    (self.each)(Object::Pod(Box::new(pod)));
                }
            }
            (kind, version) => {
                self.outcome.n_other_kinds += 1;
                if self.is_for_operator
                    && let Some(what) = kinds::mistake(kind, version)
                {
                    let name = claimed_name(&value, ObjectKind::Service);
                    self.report_malformed(line, &format!("{name}: {what}"));
                }
            }
        }
    }

    fn item_read(&mut self) {
        self.n_bytes.set(0);
    }
}

/// The name in the metadata of an undecodable object: `<namespace>/<name>`, or the name of a Node.
pub fn claimed_name(object: &Value, kind: ObjectKind) -> String {
    let text = |key| object.get("metadata")?.get(key)?.as_str();
    let name = text("name").unwrap_or_default();
    match kind {
        ObjectKind::Node => quote(name),
        _ => quote(&format!("{}/{name}", text("namespace").unwrap_or("default"))),
    }
}

/// An error message without its line number, which counts from the start of the document, and without hints
/// for programmers.
fn strip_location(text: &str) -> String {
    let text = text.split_once(" at line ").map_or(text, |(what, _)| what);
    let text = text.split_once(", set DuplicateKeyPolicy").map_or(text, |(what, _)| what);
    quote(&text.replace('\n', " "))
}

/// Booleans are those of YAML 1.2, true and false, so that a name may be `n` or `on` without quotes
/// (kubectl quotes both). Limits are generous for lists, since only one object is in memory, and strict for
/// aliases, which kubectl never writes and which can expand a short text without bound.
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
