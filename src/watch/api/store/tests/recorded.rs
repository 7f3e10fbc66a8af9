//! `testdata/apiserver/bodies/`: what a real kube-apiserver (1.36.2) sent: objects, lists, watches, and
//! its answers to requests that it refuses. Each is read as the watcher reads it; `decoded.txt` holds the
//! result. `UPDATE_GOLDEN=1` rewrites it.

#![allow(clippy::disallowed_methods, reason = "reads test data")]

use std::fmt::{Debug, Write};
use std::path::{Path, PathBuf};

use kube::api::WatchEvent;
use serde::Deserialize;
use serde_json::Value;

use super::*;

/// A list's objects.
#[derive(Deserialize)]
#[serde(bound = "")]
struct Items<K: Kind> {
    items: Vec<Guard<K>>,
}

/// A form that bodies have.
enum Form {
    Nothing,
    Object,
    List,
    Watch,
}

fn form(body: &str) -> Form {
    let Some(first) = serde_json::Deserializer::from_str(body).into_iter::<Value>().next() else {
        return Form::Nothing;
    };
    match first.unwrap() {
        first if first.get("items").is_some() => Form::List,
        first if first.get("object").is_some() => Form::Watch,
        _ => Form::Object,
    }
}

/// What becomes of one body: a line for each object or event, one more for each problem.
fn report<K: Kind>(body: &str, is_whole: bool) -> String
where
    K::Value: Debug,
{
    let mut interner = Interner::default();
    let mut report = String::new();
    let mut add = |word: &str, guard: Guard<K>| {
        let object = match guard.into_result() {
            Ok(object) => object,
            Err(problem) => return writeln!(report, "  {word}lost: {problem}").unwrap(),
        };
        let Decoded { named, problems } = object.decode(&mut interner);
        let what = match named {
            None => "no usable name".to_owned(),
            Some((name, None)) => format!("{name} does not count"),
            Some((name, Some(_))) if !is_whole => name.to_string(),
            Some((name, Some(value))) => format!("{name}: {value:?}"),
        };
        writeln!(report, "  {word}{what}").unwrap();
        problems.iter().for_each(|problem| writeln!(report, "    {problem}").unwrap());
    };
    match form(body) {
        Form::Nothing => {}
        Form::Object => add("", serde_json::from_str(body).unwrap()),
        Form::List => {
            let list: Items<K> = serde_json::from_str(body).unwrap();
            list.items.into_iter().for_each(|object| add("", object));
        }
        Form::Watch => {
            for line in body.lines() {
                match serde_json::from_str(line).unwrap() {
                    WatchEvent::Added(object) => add("added ", object),
                    WatchEvent::Modified(object) => add("modified ", object),
                    WatchEvent::Deleted(object) => add("deleted ", object),
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
                }
            }
        }
    }
    report
}

#[test]
fn everything_that_a_real_api_server_sent_is_decoded_or_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/apiserver/bodies");
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let folders = entries(&folder).into_iter().filter(|path| path.is_dir());
    let bodies: Vec<PathBuf> = folders.flat_map(|folder| entries(&folder)).collect();
    assert!(bodies.len() > 100);
    let mut found = String::new();
    for path in bodies {
        let name = path.strip_prefix(&folder).unwrap().display().to_string();
        let is_whole = name.starts_with("objects/");
        let body = std::fs::read_to_string(&path).unwrap();
        let report = match path.file_name().unwrap().to_str().unwrap() {
            file if file.starts_with("slice") => report::<ApiSlice>(&body, is_whole),
            file if file.starts_with("node") => report::<ApiNode>(&body, is_whole),
            _ => report::<ApiService>(&body, is_whole),
        };
        writeln!(found, "{name}").unwrap();
        found += &report;
    }
    let golden = folder.join("decoded.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(found == expected, "differs from {}; UPDATE_GOLDEN=1 shows how", golden.display());
}

#[test]
fn a_condition_without_a_time_costs_a_service_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/apiserver/bodies/objects");
    let read = |name: &str| {
        let body = std::fs::read_to_string(folder.join(format!("{name}.body"))).unwrap();
        let object: Guard<ApiService> = serde_json::from_str(&body).unwrap();
        let decoded = object.into_result().unwrap().decode(&mut Interner::default());
        assert_eq!(decoded.problems, [], "{name}");
        decoded.value().unwrap_or_else(|| panic!("{name} is not served"))
    };
    let expected = read("status-condition-full");
    for name in ["time-null", "time-missing", "time-null-strategic", "only-type-status", "json-patch"] {
        assert_eq!(read(&format!("status-condition-{name}")), expected, "{name}");
    }
}
