//! Tests with hostile text in every string field: it never becomes part of a value for rules, and is always
//! reported.

use serde_json::Value;

#[path = "../../../../tests/shared/hostile.rs"]
pub mod shared;

use super::Interner;
use crate::model::decode::{ApiNode, ApiService, ApiSlice, node, service, slice};
use shared::{full_node, full_service, full_slice, hostile, texts};

/// Sets each string field to each hostile text. `decode` returns the value, as text, and the problems.
/// Every field must be reported as one, except where `is_silent` accepts path and text.
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
            // Both are in Debug form, so a hostile text in the value would be found. The shortest texts
            // also occur in that form itself.
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
fn a_service_value_contains_only_strings_that_match_their_grammar() {
    let is_silent = |path: &str, text: &str| match path {
        // Shows only whether the Service is headless: clusterIPs holds the addresses.
        "/spec/clusterIP" => true,
        "/spec/externalIPs/0" => text.trim().is_empty(),
        // A range is read without surrounding blanks.
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
fn a_slice_value_contains_only_strings_that_match_their_grammar() {
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
fn a_node_value_contains_only_strings_that_match_their_grammar() {
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
