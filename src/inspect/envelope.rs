//! The JSON of a report: its fields behind `apiVersion` and `kind`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The version of every report's JSON.
pub const API_VERSION: &str = "chainsmith.dev/v1alpha1";

/// JSON that is no report of the expected kind and version.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It is no JSON, or a field has another type.
    #[error("it is no report that this release reads: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is of another version.
    #[error("its apiVersion is {0}, and this release reads {API_VERSION}")]
    Version(String),
    /// It is of another kind.
    #[error("it is a {found}, not a {expected}")]
    Kind {
        /// The kind that it says it is.
        found: String,
        /// The kind to be read.
        expected: String,
    },
}

/// The JSON of `report`, which is of this `kind`; ends with a line feed.
pub fn to_json<T: Serialize>(kind: &str, report: &T) -> String {
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), API_VERSION.into());
    object.insert("kind".to_owned(), kind.into());
    match serde_json::to_value(report).expect("reports have text keys and finite numbers") {
        Value::Object(fields) => object.extend(fields),
        other => drop(object.insert("items".to_owned(), other)),
    }
    let mut text = serde_json::to_string_pretty(&object).expect("a value is JSON");
    text.push('\n');
    text
}

/// Reads a report of this `kind`. Unknown fields are ignored.
pub fn from_json<T: DeserializeOwned>(kind: &str, json: &[u8]) -> Result<T, EnvelopeError> {
    let object: Value = serde_json::from_slice(json)?;
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or("missing").to_owned();
    if text("apiVersion") != API_VERSION {
        return Err(EnvelopeError::Version(text("apiVersion")));
    }
    if text("kind") != kind {
        return Err(EnvelopeError::Kind { found: text("kind"), expected: kind.to_owned() });
    }
    Ok(serde_json::from_value(object)?)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Report {
        n: u8,
    }

    #[test]
    fn a_report_has_its_version_and_kind_first_and_is_read_back() {
        let json = to_json("X", &Report { n: 1 });
        assert_eq!(
            json,
            format!("{{\n  \"apiVersion\": \"{API_VERSION}\",\n  \"kind\": \"X\",\n  \"n\": 1\n}}\n")
        );
        assert_eq!(from_json::<Report>("X", json.as_bytes()).unwrap(), Report { n: 1 });
        let newer = json.replace("\"n\": 1", "\"n\": 1, \"new\": {}");
        assert_eq!(from_json::<Report>("X", newer.as_bytes()).unwrap(), Report { n: 1 });
    }

    #[test]
    fn another_version_or_kind_is_an_error_that_names_it() {
        let json = to_json("X", &Report { n: 1 });
        let error =
            |kind: &str, json: &str| from_json::<Report>(kind, json.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("Y", &json), "it is a X, not a Y");
        let v2 = json.replace("v1alpha1", "v2");
        assert_eq!(
            error("X", &v2),
            "its apiVersion is chainsmith.dev/v2, and this release reads chainsmith.dev/v1alpha1"
        );
        assert_eq!(
            error("X", "{}"),
            "its apiVersion is missing, and this release reads chainsmith.dev/v1alpha1"
        );
        assert!(error("X", "<html>").starts_with("it is no report that this release reads: "));
        let wrong = json.replace("1\n", "\"one\"\n");
        assert!(error("X", &wrong).starts_with("it is no report that this release reads: "));
    }
}
