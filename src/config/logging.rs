//! The `logging` section: its fields, and what is wrong with them.

use serde::{Serialize, Serializer};

use super::Report;
use super::document::Fill;
use super::duration::GoDuration;
use super::file::Fields;
use super::tree::Tree;
use super::value::Value;
use super::{LogFormat, Logging, VModule};

/// `logging`, as in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in document")]
pub struct LoggingFields {
    pub format: String,
    pub flush_frequency: FlushFrequency,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    pub options: FormatOptions,
}

/// `logging.options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in document")]
pub struct FormatOptions {
    pub text: StreamOptions,
    pub json: StreamOptions,
}

/// `logging.options.text` or `.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in document")]
pub struct StreamOptions {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split_stream: bool,
    pub info_buffer_size: Quantity,
}

impl LoggingFields {
    pub(super) fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("format", &mut self.format);
        fields.value("flushFrequency", &mut self.flush_frequency);
        fields.value("verbosity", &mut self.verbosity);
        fields.value("vmodule", &mut self.vmodule);
        fields.section("options", |fields| {
            fields.section("text", |fields| self.options.text.read(fields));
            fields.section("json", |fields| self.options.json.read(fields));
        });
    }

    pub(super) fn fill_defaults(&mut self, fill: &mut Fill<'_>) {
        fill.value("logging.format", &mut self.format, "text".to_owned());
        let seconds = FlushFrequency(GoDuration::from_secs(5));
        fill.value("logging.flushFrequency", &mut self.flush_frequency, seconds);
    }

    /// The section checked; alpha options need `is_alpha` (gate `LoggingAlphaOptions`).
    pub(super) fn check(&self, is_alpha: bool, report: &mut Report) -> Logging {
        let format = match self.format.as_str() {
            "json" => LogFormat::Json,
            "text" => LogFormat::Text,
            other => {
                report.refuse("logging.format", super::origin::quoted(other), "must be text or json");
                LogFormat::Text
            }
        };
        if self.flush_frequency.0 <= GoDuration::ZERO {
            report.refuse("logging.flushFrequency", self.flush_frequency.0, "must be more than 0s");
        }
        if self.verbosity > i32::MAX as u32 {
            report.refuse("logging.verbosity", self.verbosity, "must be at most 2147483647");
        }
        self.check_vmodule(format, report);
        for (name, options) in [("text", &self.options.text), ("json", &self.options.json)] {
            let path = format!("logging.options.{name}");
            let needs_gate = "needs the feature gate LoggingAlphaOptions";
            if options.split_stream && !is_alpha {
                report.refuse(&format!("{path}.splitStream"), true, needs_gate);
            }
            if !options.info_buffer_size.is_zero() && !is_alpha {
                report.refuse(&format!("{path}.infoBufferSize"), &options.info_buffer_size.0, needs_gate);
            }
        }
        Logging { format, verbosity: self.verbosity, vmodule: self.vmodule.clone() }
    }

    fn check_vmodule(&self, format: LogFormat, report: &mut Report) {
        if !self.vmodule.is_empty() && format != LogFormat::Text {
            report.refuse("logging.vmodule", "", "works with the text format only");
        }
        for (i, VModule { file_pattern, verbosity }) in self.vmodule.iter().enumerate() {
            let path = format!("logging.vmodule[{i}]");
            if file_pattern.is_empty() || file_pattern.contains(['=', ',']) {
                let reason = "the file pattern must not be empty and holds neither = nor ,";
                report.refuse(&path, super::origin::quoted(file_pattern), reason);
            } else if let Err(error) = glob::Pattern::new(file_pattern) {
                report.refuse(&path, super::origin::quoted(file_pattern), error.msg);
            }
            if *verbosity > i32::MAX as u32 {
                report.refuse(&path, verbosity, "the verbosity must be at most 2147483647");
            }
        }
    }
}

impl StreamOptions {
    fn read(&mut self, fields: &mut Fields<'_>) {
        fields.value("splitStream", &mut self.split_stream);
        fields.value("infoBufferSize", &mut self.info_buffer_size);
    }
}

/// A duration that may also be a number of nanoseconds (kubeadm writes `0`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FlushFrequency(pub GoDuration);

impl Value for FlushFrequency {
    const EXPECTED: &'static str = "a duration such as \"5s\", or a number of nanoseconds";

    fn from_tree(tree: &Tree) -> Option<FlushFrequency> {
        match tree {
            Tree::Int(nanos) => i64::try_from(*nanos).ok().map(GoDuration::from_nanos),
            _ => GoDuration::from_tree(tree),
        }
        .map(FlushFrequency)
    }

    fn from_flag(texts: &[String]) -> Option<FlushFrequency> {
        GoDuration::from_flag(texts).map(FlushFrequency)
    }
}

impl Value for Vec<VModule> {
    const EXPECTED: &'static str = "a list of file patterns, each with its verbosity";

    fn from_tree(tree: &Tree) -> Option<Vec<VModule>> {
        let Tree::List(items) = tree else { return None };
        items
            .iter()
            .map(|item| {
                let Tree::Map(entries) = item else { return None };
                let get = |name| entries.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
                Some(VModule {
                    file_pattern: get("filePattern").map_or(Some(String::new()), String::from_tree)?,
                    verbosity: get("verbosity").map_or(Some(0), u32::from_tree)?,
                })
            })
            .collect()
    }

    /// `pattern=N,...`, also repeated.
    fn from_flag(texts: &[String]) -> Option<Vec<VModule>> {
        let entries = texts.iter().flat_map(|text| text.split(',')).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| {
                let (pattern, verbosity) = entry.split_once('=')?;
                Some(VModule { file_pattern: pattern.to_owned(), verbosity: verbosity.parse().ok()? })
            })
            .collect()
    }
}

/// An amount as Kubernetes writes it (`64Ki`), kept as its text; empty is 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantity(String);

impl Quantity {
    const SUFFIXES: [&str; 18] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e0", "E0"];

    fn parse(text: &str) -> Option<Quantity> {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = digits.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let is_number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
        (is_number && Quantity::SUFFIXES.contains(&suffix)).then(|| Quantity(text.to_owned()))
    }

    fn is_zero(&self) -> bool {
        !self.0.bytes().any(|b| (b'1'..=b'9').contains(&b))
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_zero() { "0" } else { &self.0 })
    }
}

impl Value for Quantity {
    const EXPECTED: &'static str = "a quantity such as \"0\" or \"64Ki\"";

    fn from_tree(tree: &Tree) -> Option<Quantity> {
        match tree {
            Tree::Text(text) => Quantity::parse(text),
            Tree::Int(value) => Quantity::parse(&value.to_string()),
            Tree::Float(value) => Quantity::parse(&value.to_string()),
            _ => None,
        }
    }

    fn from_flag(texts: &[String]) -> Option<Quantity> {
        Quantity::parse(texts.last()?)
    }
}
