//! `testdata/apiserver/bodies/` holds responses of a real kube-apiserver (1.36.2): objects, lists, watches
//! and errors. Each is read as the watcher reads it; `decoded.txt` holds the result. `UPDATE_GOLDEN=1`
//! rewrites it.

#![allow(clippy::disallowed_methods, reason = "reads test data")]

use std::fmt::{Debug, Write};
use std::path::{Path, PathBuf};

use kube::api::WatchEvent;
use serde::Deserialize;
use serde_json::Value;

use super::*;

/// The objects of a list.
#[derive(Deserialize)]
#[serde(bound = "")]
struct RecordedList<K: WatchedKind> {
    items: Vec<ReceivedObject<K>>,
}

/// The shape of a recorded body.
enum BodyShape {
    Empty,
    Object,
    List,
    Watch,
}

fn shape(body: &str) -> BodyShape {
    let Some(first) = serde_json::Deserializer::from_str(body).into_iter::<Value>().next() else {
        return BodyShape::Empty;
    };
    match first.unwrap() {
        first if first.get("items").is_some() => BodyShape::List,
        first if first.get("object").is_some() => BodyShape::Watch,
        _ => BodyShape::Object,
    }
}

/// The result of one body: a line for each object or event, and one for each problem.
fn report<K: WatchedKind>(body: &str, is_whole: bool) -> String
where
    K::Value: Debug,
{
    let mut interner = Interner::default();
    let mut report = String::new();
    let mut add = |word: &str, guard: ReceivedObject<K>| {
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
    match shape(body) {
        BodyShape::Empty => {}
        BodyShape::Object => add("", serde_json::from_str(body).unwrap()),
        BodyShape::List => {
            let list: RecordedList<K> = serde_json::from_str(body).unwrap();
            list.items.into_iter().for_each(|object| add("", object));
        }
        BodyShape::Watch => {
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
fn every_recorded_object_is_decoded_or_reported() {
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
    assert!(
        found == expected,
        "differs from {}; run with UPDATE_GOLDEN=1 to see the difference",
        golden.display()
    );
}

#[test]
fn a_condition_without_a_time_has_no_effect_on_a_service() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/apiserver/bodies/objects");
    let read = |name: &str| {
        let body = std::fs::read_to_string(folder.join(format!("{name}.body"))).unwrap();
        let object: ReceivedObject<ApiService> = serde_json::from_str(&body).unwrap();
        let decoded = object.into_result().unwrap().decode(&mut Interner::default());
        assert_eq!(decoded.problems, [], "{name}");
        decoded.value().unwrap_or_else(|| panic!("{name} is not served"))
    };
    let expected = read("status-condition-full");
    for name in ["time-null", "time-missing", "time-null-strategic", "only-type-status", "json-patch"] {
        assert_eq!(read(&format!("status-condition-{name}")), expected, "{name}");
    }
}
