//! Tests with values of the wrong type in every used field, and any value in unused fields.

use serde_json::{Value, json};

use super::Interner;
use super::hostile::shared::{full_node, full_service, full_slice};
use crate::model::decode::{ApiNode, ApiObject, ApiService, ApiSlice, node, require_usable, service, slice};

/// The result of decoding: the value as text, and the problems; `Err` with the problem that makes the
/// object unusable.
type DecodeResult = Result<(String, Vec<String>), String>;

fn decode_as<T: ApiObject>(object: &Value) -> Result<T, String> {
    require_usable(serde_json::from_str(&object.to_string()).unwrap()).map_err(|problem| problem.to_string())
}

fn of_service(object: &Value) -> DecodeResult {
    let decoded = service(&decode_as::<ApiService>(object)?, &mut Interner::default());
    Ok((format!("{:?}", decoded.named), super::messages(decoded.problems)))
}

fn of_slice(object: &Value) -> DecodeResult {
    let decoded = slice(&decode_as::<ApiSlice>(object)?, &mut Interner::default());
    Ok((format!("{:?}", decoded.named), super::messages(decoded.problems)))
}

fn of_node(object: &Value) -> DecodeResult {
    let (value, problems) = node(&decode_as::<ApiNode>(object)?, &mut Interner::default());
    Ok((format!("{value:?}"), super::messages(problems)))
}

fn a_service() -> Value {
    let mut object = full_service();
    object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 60}});
    object
}

fn a_slice() -> Value {
    let mut object = full_slice();
    object["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-05-01T10:00:00Z"});
    object["endpoints"][0]["conditions"] = json!({"ready": false, "serving": false, "terminating": true});
    object
}

fn a_node() -> Value {
    let mut object = full_node();
    object["metadata"]["deletionTimestamp"] = "2026-05-01T10:00:00Z".into();
    object["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler"}]);
    object
}

/// JSON pointers of all values inside `value`.
fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| (i.to_string(), item)).collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (key.replace('/', "~1"), item)).collect(),
        _ => Vec::new(),
    };
    for (key, child) in children {
        let path = format!("{path}/{key}");
        places(child, &path, found);
        found.push(path);
    }
}

/// `spec.ports[0].port` for `/spec/ports/0/port`.
fn field(pointer: &str) -> String {
    let mut field = String::new();
    for part in pointer[1..].split('/') {
        let is_key = ["metadata.labels", "metadata.annotations"].contains(&field.as_str());
        match is_key || part.parse::<usize>().is_ok() {
            true => field += &format!("[{}]", part.replace("~1", "/")),
            false if field.is_empty() => field += part,
            false => field += &format!(".{part}"),
        }
    }
    field
}

fn with(object: &Value, place: &str, value: Value) -> Value {
    let mut object = object.clone();
    *object.pointer_mut(place).unwrap() = value;
    object
}

/// A wrong type at each place has the effect of an absent or invalid value there, and is reported. At the
/// `essential` places it makes the object unusable.
fn check(object: &Value, essential: &[&str], decode: fn(&Value) -> DecodeResult) {
    let (_, problems) = decode(object).unwrap();
    assert_eq!(problems, [""; 0]);
    let mut found = Vec::new();
    places(object, "", &mut found);
    assert!(found.len() > 15);
    let kinds = [json!(5), json!("x\n\u{1b}"), json!(true), json!([{}]), json!({"a": [null]}), json!(1.5)];
    for place in &found {
        let good = object.pointer(place).unwrap();
        let same_type =
            |other: &&Value| std::mem::discriminant(*other) != std::mem::discriminant(good) || other.is_f64();
        for wrong in kinds.iter().filter(same_type) {
            let outcome = decode(&with(object, place, wrong.clone()));
            if essential.contains(&place.as_str()) {
                let problem = outcome.unwrap_err();
                assert!(problem.contains(&format!(" {}: ", field(place))), "{place}: {problem}");
                continue;
            }
            let (value, problems) = outcome.unwrap();
            let instead = [Value::Null, json!("-\n")].map(|other| decode(&with(object, place, other)));
            let is_same = |other: &DecodeResult| other.as_ref().is_ok_and(|(other, _)| *other == value);
            assert!(instead.iter().any(is_same), "{place}: {wrong}: {value}");
            let named = format!(" {}: \"", field(place));
            let is_named =
                problems.iter().any(|problem| problem.contains(&named) && problem.contains(" is not "));
            assert!(is_named, "{place}: {wrong}: {problems:?}");
            assert!(problems.iter().all(|problem| !problem.contains(['\n', '\u{1b}'])), "{problems:?}");
        }
    }
}

#[test]
fn a_field_of_the_wrong_type_is_ignored_and_reported() {
    check(&a_service(), &["/metadata", "/spec", "/spec/ports"], of_service);
    check(&a_slice(), &["/metadata", "/ports", "/endpoints"], of_slice);
    check(&a_node(), &["/metadata"], of_node);
}

#[test]
fn null_is_equivalent_to_absent() {
    let check = |object: Value, decode: fn(&Value) -> DecodeResult| {
        let mut found = Vec::new();
        places(&object, "", &mut found);
        for place in found {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let mut without = object.clone();
            let Some(map) = without.pointer_mut(parent).unwrap().as_object_mut() else { continue };
            map.remove(&key.replace("~1", "/")).unwrap();
            assert_eq!(decode(&with(&object, &place, Value::Null)), decode(&without), "{place}");
        }
    };
    check(a_service(), of_service);
    check(a_slice(), of_slice);
    check(a_node(), of_node);
}

#[test]
fn fields_that_no_rule_needs_may_have_any_value() {
    let check = |object: Value, decode: fn(&Value) -> DecodeResult| {
        let expected = decode(&object);
        let mut found = vec![String::new()];
        places(&object, "", &mut found);
        for place in found {
            for anything in [json!(null), json!(5), json!([{"a": "\u{0}"}]), json!({"x": [[[1.5e300]]]})] {
                let mut more = object.clone();
                let Some(map) = more.pointer_mut(&place).unwrap().as_object_mut() else { continue };
                for key in ["managedFields", "conditions2", "targetPort", "nodeInfo", "Name", "\n"] {
                    map.insert(key.to_owned(), anything.clone());
                }
                assert_eq!(decode(&more), expected, "{place}: {anything}");
            }
        }
    };
    check(a_service(), of_service);
    check(a_slice(), of_slice);
    check(a_node(), of_node);
    // Kubernetes' own test "should complete a service status lifecycle" creates such a condition.
    let mut object = a_service();
    object["status"]["conditions"] = json!([{"type": "X", "status": "True", "lastTransitionTime": null}]);
    assert_eq!(of_service(&object), of_service(&a_service()));
}

#[test]
fn skipped_fields_take_no_memory() {
    let bytes = |n_skipped: usize| {
        let mut object = a_service();
        object["metadata"]["managedFields"] = json!(vec![json!({"fieldsV1": {"f:spec": {}}}); n_skipped]);
        object["metadata"]["annotations"] = json!({"note": "x\\n\u{1}".repeat(n_skipped)});
        object["status"]["conditions"] = json!(vec![json!({"message": "y"}); n_skipped]);
        let text = object.to_string();
        let used = allocation_counter::measure(|| {
            let object: ApiService = serde_json::from_str(&text).unwrap();
            assert_eq!(object.claimed_name().to_string(), "ns/web");
        });
        used.bytes_total
    };
    assert_eq!(bytes(50_000), bytes(1));
}

#[test]
fn the_cost_of_decoding_grows_linearly_with_the_ports() {
    let used = |n_ports: usize| {
        let mut object = a_service();
        // Names that differ near the end, each of them twice.
        let port = |i: usize| json!({"name": format!("port-{}", i % (n_ports / 2)), "port": i % 60_000 + 1});
        object["spec"]["ports"] = (0..n_ports).map(port).collect();
        let text = object.to_string();
        let used = allocation_counter::measure(|| {
            let object: ApiService = serde_json::from_str(&text).unwrap();
            let decoded = service(&object, &mut Interner::default());
            let n_fields: usize = decoded.problems.iter().map(|problem| problem.n_fields).sum();
            assert_eq!((decoded.problems.len(), n_fields), (1, n_ports / 2));
            assert_eq!(decoded.value().unwrap().ports.len(), n_ports / 2);
        });
        (used.count_total, used.bytes_total)
    };
    let ((few, few_bytes), (many, many_bytes)) = (used(2_000), used(20_000));
    assert!(many < 12 * few && many_bytes < 20 * few_bytes, "{few} {many} {few_bytes} {many_bytes}");
}
