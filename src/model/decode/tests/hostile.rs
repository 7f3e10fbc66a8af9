//! Hostile text in every string field: never in a value that a rule is made of, always said.

use serde_json::Value;

#[path = "../../../../tests/shared/hostile.rs"]
pub mod shared;

use super::Interner;
use crate::model::decode::{ApiNode, ApiService, ApiSlice, node, service, slice};
use shared::{full_node, full_service, full_slice, hostile, texts};

/// Puts each hostile text into each text field. `decode` gives the value, as text, and the
/// problems; every field must be named as one, except where `is_silent` says so of path and text.
fn check(
    object: Value,
    is_silent: impl Fn(&str, &str) -> bool,
    decode: impl Fn(Value) -> (String, Vec<String>),
) {
    let (clean, problems) = decode(object.clone());
    assert_eq!(problems, [""; 0], "{clean}");
    let mut paths = Vec::new();
    texts(&object, String::new(), &mut paths);
    assert!(paths.len() > 4);
    for path in &paths {
        for text in hostile() {
            let mut object = object.clone();
            *object.pointer_mut(path).unwrap() = Value::String(text.clone());
            let (value, problems) = decode(object);
            // Both are in Debug form, so a text that got in would be found. The shortest ones are
            // also parts of the form itself.
            let escaped = format!("{text:?}");
            assert!(!value.contains(&escaped), "{path}: {value}");
            assert!(text.len() <= 2 || !value.contains(escaped.trim_matches('"')), "{path}: {value}");
            assert_eq!(problems.is_empty(), is_silent(path, &text), "{path}: {text:?}: {problems:?}");
            for problem in problems {
                assert!(!problem.contains(['\n', '\0', '\r']) && problem.len() < 1000, "{problem:?}");
            }
        }
    }
}

#[test]
fn no_text_of_a_service_gets_into_a_value_unless_it_has_its_grammar() {
    let is_silent = |path: &str, text: &str| match path {
        // Says only whether there is one: clusterIPs holds the addresses.
        "/spec/clusterIP" => true,
        "/spec/externalIPs/0" => text.trim().is_empty(),
        // A padded range is read as if it were not.
        "/spec/loadBalancerSourceRanges/0" => text.trim().is_empty() || text == "0.0.0.0/0\n",
        _ => false,
    };
    check(full_service(), is_silent, |object| {
        let object: ApiService = serde_json::from_value(object).unwrap();
        let decoded = service(&object, &mut Interner::default());
        (format!("{:?}", decoded.named), super::messages(decoded.problems))
    });
}

#[test]
fn no_text_of_a_slice_gets_into_a_value_unless_it_has_its_grammar() {
    check(
        full_slice(),
        |_, _| false,
        |object| {
            let object: ApiSlice = serde_json::from_value(object).unwrap();
            let decoded = slice(&object, &mut Interner::default());
            (format!("{:?}", decoded.named), super::messages(decoded.problems))
        },
    );
}

#[test]
fn no_text_of_a_node_gets_into_a_value_unless_it_has_its_grammar() {
    check(
        full_node(),
        |path, _| path == "/status/addresses/0/type",
        |object| {
            let object: ApiNode = serde_json::from_value(object).unwrap();
            let (value, problems) = node(&object, &mut Interner::default());
            (format!("{value:?}"), super::messages(problems))
        },
    );
}
