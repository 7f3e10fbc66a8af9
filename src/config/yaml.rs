//! The text of a file (YAML or JSON) as a value that keeps the order and the duplicates of its keys.
//! The meaning of the fields is left to `file`.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// One value of a file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum FileValue {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<FileValue>),
    /// In the order of the file; a key may occur twice.
    #[serde(deserialize_with = "entries")]
    Map(Vec<(String, FileValue)>),
}

/// The result of [`FileValue::parse`].
pub(super) struct Parsed {
    /// The first document.
    pub(super) value: FileValue,
    /// The number of documents after the first that are not empty; kube-proxy ignores them.
    pub(super) n_ignored: usize,
}

impl FileValue {
    /// Reads the first document; the error is one line.
    pub(super) fn parse(text: &str) -> Result<Parsed, String> {
        // JSON allows what YAML does not: tabs, and keys of more than 1024 characters.
        if text.trim_start().starts_with('{')
            && let Ok(value) = serde_json::from_str::<FileValue>(text)
        {
            return Ok(Parsed { value, n_ignored: 0 });
        }
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            legacy_octal_numbers: true,
            with_snippet: false,
            // A few aliases can expand a small file to a huge one.
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        };
        let documents: Vec<FileValue> = serde_saphyr::from_multiple_with_options(text, options)
            .map_err(|error| one_line(&error.to_string()))?;
        let mut documents = documents.into_iter().filter(|value| *value != FileValue::Null);
        let value = documents.next().unwrap_or(FileValue::Null);
        Ok(Parsed { value, n_ignored: documents.count() })
    }
}

/// `text` without control characters, at most 300 characters.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// As messages show it: JSON, cut after 100 characters.
impl fmt::Display for FileValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.json();
        match text.char_indices().nth(100) {
            Some((end, _)) => write!(f, "{}...", &text[..end]),
            None => f.write_str(&text),
        }
    }
}

impl FileValue {
    fn json(&self) -> String {
        match self {
            FileValue::Null => "null".to_owned(),
            FileValue::Bool(value) => value.to_string(),
            FileValue::Int(value) => value.to_string(),
            FileValue::Float(value) => value.to_string(),
            FileValue::Text(text) => format!("{text:?}"),
            FileValue::List(items) => {
                let items: Vec<String> = items.iter().map(FileValue::json).collect();
                format!("[{}]", items.join(", "))
            }
            FileValue::Map(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|(key, value)| format!("{key:?}: {}", value.json())).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }
}

/// Reads a mapping with its duplicate keys.
fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, FileValue)>, D::Error> {
    struct PairsVisitor;
    impl<'de> Visitor<'de> for PairsVisitor {
        type Value = Vec<(String, FileValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a mapping")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            std::iter::from_fn(|| entries.next_entry().transpose()).collect()
        }
    }
    deserializer.deserialize_map(PairsVisitor)
}
