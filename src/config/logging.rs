//! Types and checks of the `logging` section that no other section has.

use serde::Serialize;
use serde_json::{Value as Json, json};

use super::checked::{LogFormat, VModule};
use super::diagnostics::quoted;
use super::duration::GoDuration;
use super::resolver::Resolver;
use super::setting::FlagSyntax;
use super::setting_value::SettingValue;
use super::yaml::FileValue;

/// A duration that may also be a number of nanoseconds (kubeadm writes `0`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct FlushFrequency(pub(super) GoDuration);

impl SettingValue for FlushFrequency {
    const EXPECTED: &'static str = "a duration such as \"5s\", or a number of nanoseconds";

    fn from_file(value: &FileValue) -> Option<FlushFrequency> {
        match value {
            FileValue::Int(nanos) => Some(GoDuration::from_nanos(*nanos)),
            _ => GoDuration::from_file(value),
        }
        .map(FlushFrequency)
    }

    fn from_text(text: &str) -> Option<FlushFrequency> {
        GoDuration::parse(text).map(FlushFrequency)
    }

    fn quoted(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for Vec<VModule> {
    const EXPECTED: &'static str = "a list of file patterns, each with its verbosity";
    const SYNTAX: FlagSyntax = FlagSyntax::Many;

    fn from_file(value: &FileValue) -> Option<Vec<VModule>> {
        let FileValue::List(items) = value else { return None };
        items
            .iter()
            .map(|item| {
                let FileValue::Map(entries) = item else { return None };
                let get = |name| entries.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
                Some(VModule {
                    file_pattern: get("filePattern").map_or(Some(String::new()), String::from_file)?,
                    verbosity: get("verbosity").map_or(Some(0), u32::from_file)?,
                })
            })
            .collect()
    }

    /// `pattern=N,...`
    fn from_text(text: &str) -> Option<Vec<VModule>> {
        text.split(',')
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let (pattern, verbosity) = entry.split_once('=')?;
                Some(VModule { file_pattern: pattern.to_owned(), verbosity: verbosity.parse().ok()? })
            })
            .collect()
    }

    /// The first match counts, so the flag's come first.
    fn over(mut self, file: Option<Vec<VModule>>) -> Vec<VModule> {
        self.extend(file.unwrap_or_default());
        self
    }
}

/// Reports malformed entries of `logging.vmodule`.
pub(super) fn check_vmodule(resolver: &mut Resolver<'_>, vmodule: &[VModule], format: LogFormat) {
    if !vmodule.is_empty() && format != LogFormat::Text {
        resolver.refuse("logging.vmodule", "", "works with the text format only");
    }
    for (i, VModule { file_pattern, verbosity }) in vmodule.iter().enumerate() {
        let path = format!("logging.vmodule[{i}]");
        if file_pattern.is_empty() || file_pattern.contains(['=', ',']) {
            let reason = "the file pattern must not be empty and holds neither = nor ,";
            resolver.refuse(&path, quoted(file_pattern), reason);
        } else if let Err(error) = glob::Pattern::new(file_pattern) {
            resolver.refuse(&path, quoted(file_pattern), error.msg);
        }
        if *verbosity > i32::MAX as u32 {
            resolver.refuse(&path, verbosity, "the verbosity must be at most 2147483647");
        }
    }
}

/// An amount as Kubernetes writes it (`64Ki`), kept as its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Quantity(String);

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

    pub(super) fn is_zero(&self) -> bool {
        !self.0.bytes().any(|b| (b'1'..=b'9').contains(&b))
    }
}

impl SettingValue for Quantity {
    const EXPECTED: &'static str = "a quantity such as \"0\" or \"64Ki\"";

    fn from_file(value: &FileValue) -> Option<Quantity> {
        match value {
            FileValue::Text(text) => Quantity::parse(text),
            FileValue::Int(value) => Quantity::parse(&value.to_string()),
            FileValue::Float(value) => Quantity::parse(&value.to_string()),
            _ => None,
        }
    }

    fn from_text(text: &str) -> Option<Quantity> {
        Quantity::parse(text)
    }

    fn to_json(&self) -> Json {
        json!(if self.is_zero() { "0" } else { &self.0 })
    }

    fn quoted(&self) -> String {
        self.0.clone()
    }
}
