//! `testdata/malformed/` holds malformed objects and manifests, each with the expected messages and the
//! objects that are used. `UPDATE_GOLDEN=1` rewrites the expectations.

#![allow(clippy::disallowed_methods, reason = "reads test data")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::model::Change;
use crate::model::decode::{Interner, change, manifest};

/// Messages, then a line for each used object.
fn report(path: &Path) -> String {
    let text = std::fs::read(path).unwrap();
    let source = path.file_name().unwrap().to_str().unwrap();
    let mut interner = Interner::default();
    let (mut messages, mut used) = (String::new(), String::new());
    let outcome = manifest::read(&text[..], source, &mut |object| {
        let (change, problems) = change(&object, &mut interner);
        problems.iter().for_each(|problem| writeln!(messages, "{problem}").unwrap());
        match change {
            Some(Change::Service(name, Some(service))) => {
                writeln!(used, "uses Service {name}, {} ports", service.ports.len()).unwrap();
            }
            Some(Change::Slice(name, Some(slice))) => {
                let (n_ports, n_endpoints) = (slice.ports.len(), slice.endpoints.len());
                writeln!(used, "uses EndpointSlice {name}, {n_ports} ports, {n_endpoints} endpoints")
                    .unwrap();
            }
            Some(Change::Node(Some(node))) => {
                writeln!(used, "uses Node {}, {} addresses", node.name, node.addresses.len()).unwrap();
            }
            _ => {}
        }
    });
    outcome.problems.iter().for_each(|problem| writeln!(messages, "{problem}").unwrap());
    if outcome.n_other_kinds > 0 {
        writeln!(used, "skips {} objects", outcome.n_other_kinds).unwrap();
    }
    messages + &used
}

#[test]
fn every_malformed_manifest_is_reported_and_its_other_objects_are_used() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/malformed");
    let mut manifests: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    manifests.retain(|path| path.extension().is_some_and(|extension| extension != "expected"));
    manifests.sort();
    assert!(manifests.len() >= 20);
    for path in manifests {
        let expected = path.with_extension("expected");
        let report = report(&path);
        assert!(!report.contains('\0') && !report.is_empty(), "{}", path.display());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected, &report).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(report, expected, "{}", path.display());
    }
}
