//! Checks the boundaries between modules (ARCHITECTURE.md): which module may use which, and that the pure
//! half has no IO.
#![allow(clippy::disallowed_methods, reason = "reads the source")]

#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use source::Source;

/// Each module with the modules that it may use. Modules above `kernel` are pure.
const MAY_USE: &[(&str, &[&str])] = &[
    ("net", &[]),
    ("iptables", &["net"]),
    ("config", &["net"]),
    ("model", &["net"]),
    ("policy", &["net", "model"]),
    ("rules", &["net", "config", "iptables", "model", "policy"]),
    ("compile", &["net", "config", "iptables", "model", "policy", "rules"]),
    ("inspect", &["net", "config", "iptables", "model", "policy", "rules", "compile"]),
    ("plan", &["net", "iptables"]),
    ("log", &[]),
    ("flows", &["net", "model"]),
    ("kernel", &["log", "net", "iptables", "model", "plan"]),
    ("drift", &["log", "net", "iptables", "rules", "plan", "kernel"]),
    ("leftovers", &["log", "net", "iptables", "plan", "rules", "kernel"]),
    ("http", &["log", "net"]),
    ("metrics", &["net", "http"]),
    ("watch", &["log", "net", "model"]),
    (
        "apply",
        &[
            "log", "net", "config", "iptables", "model", "policy", "rules", "compile", "plan", "kernel",
            "drift",
        ],
    ),
    (
        "sync",
        &[
            "log", "net", "config", "model", "policy", "rules", "compile", "flows", "kernel", "drift",
            "apply", "watch",
        ],
    ),
    ("conntrack", &["log", "net", "model", "rules", "compile", "plan", "flows", "kernel", "apply", "sync"]),
    ("affinity", &["log", "net", "iptables", "model", "rules", "compile", "kernel", "apply", "sync"]),
    (
        "connections",
        &["log", "net", "iptables", "model", "rules", "compile", "inspect", "kernel", "apply", "sync"],
    ),
    ("measure", &["net", "iptables", "model", "compile", "flows", "metrics", "apply", "sync"]),
    ("health", &["log", "net", "model", "rules", "compile", "metrics", "http", "apply", "sync"]),
    ("events", &["log", "model", "metrics", "apply", "sync"]),
    (
        "agent_socket",
        &[
            "log",
            "net",
            "config",
            "iptables",
            "model",
            "policy",
            "rules",
            "compile",
            "inspect",
            "plan",
            "kernel",
            "drift",
            "http",
            "watch",
            "apply",
            "sync",
            "connections",
        ],
    ),
    (
        "agent",
        &[
            "agent_socket",
            "log",
            "net",
            "config",
            "iptables",
            "model",
            "policy",
            "rules",
            "compile",
            "plan",
            "kernel",
            "drift",
            "metrics",
            "measure",
            "apply",
            "conntrack",
            "affinity",
            "connections",
            "http",
            "watch",
            "sync",
            "leftovers",
            "health",
            "events",
        ],
    ),
    (
        "cli",
        &[
            "log",
            "net",
            "config",
            "iptables",
            "model",
            "policy",
            "rules",
            "compile",
            "inspect",
            "plan",
            "kernel",
            "connections",
            "metrics",
            "http",
            "watch",
            "agent",
            "agent_socket",
            "leftovers",
        ],
    ),
    ("main", &[]),
    ("lib", &[]),
];

const PURE: [&str; 10] =
    ["net", "iptables", "config", "model", "policy", "rules", "compile", "inspect", "plan", "flows"];

/// Pure files of modules that are not.
const PURE_FILES: [&str; 4] = ["drift/machine", "drift/reason", "drift/generations", "drift/schedule"];

/// Every source file with its module; tests included.
fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("the source") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&root).expect("below src").with_extension("");
            let module = relative.iter().next().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect("the source");
            (module, relative, text)
        })
        .collect()
}

/// The crate's modules in paths of `text` that begin with `crate::`.
fn used(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = code.collect::<Vec<_>>().join("\n");
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with('$'))
        .flat_map(|(at, word)| {
            let rest = &code[at + word.len()..];
            let names = match rest.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap_or("").split(',').collect(),
                None => vec![rest],
            };
            names
                .into_iter()
                .map(|name| {
                    let name = name.trim();
                    name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
                })
                .collect::<Vec<_>>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_only_what_is_below_them() {
    let mut n_uses = 0;
    for (module, file, text) in sources() {
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(name, _)| **name == module)
            .unwrap_or_else(|| panic!("{module}: not in the table"));
        let is_test = file.to_string_lossy().contains("tests");
        for name in used(&text).iter().filter(|name| **name != module) {
            n_uses += 1;
            assert!(is_test || allowed.contains(&name.as_str()), "{} uses {name}", file.display());
        }
    }
    assert!(n_uses > 50, "only {n_uses} uses found; is the search correct?");
}

#[test]
fn only_decoding_and_watching_know_the_api_types() {
    for (_, file, text) in sources() {
        let file = file.to_string_lossy();
        if !["model/decode", "watch", "events"].iter().any(|module| file.starts_with(module)) {
            assert!(!text.contains("k8s_openapi::"), "{file} names k8s_openapi");
        }
    }
}

#[test]
fn pure_code_allows_no_disallowed_method() {
    for (module, file, text) in sources() {
        let is_test = file.to_string_lossy().contains("tests");
        let is_pure = PURE.contains(&module.as_str()) || PURE_FILES.contains(&&*file.to_string_lossy());
        if is_pure && !is_test {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in
                ["disallowed_methods", "disallowed_types", "tracing::", "tokio::", "std::fs", "std::process"]
            {
                assert!(!code.contains(word), "{}: {word}", file.display());
            }
        }
    }
}

/// Setting the system clock, forwards or back, changes no period, wait or retry: they use monotonic time.
#[test]
fn nothing_that_waits_uses_the_time_of_day() {
    let mut n_files = 0;
    for (module, file, text) in sources() {
        let file_name = file.to_string_lossy();
        // The start time is displayed as a time of day; nothing waits for it.
        let tells = file_name == "agent/reporting";
        let waits = ["kernel", "drift", "apply", "sync", "conntrack", "affinity", "agent", "leftovers"]
            .contains(&module.as_str())
            && !tells;
        if waits && !file_name.contains("tests") {
            n_files += 1;
            assert!(!text.contains("SystemTime"), "{} uses the time of day", file.display());
        }
    }
    assert!(n_files > 20, "only {n_files} files found; is the search correct?");
}

/// A line that is not always logged has a verbosity (`log::v!`): `-v` and `--vmodule` decide by that alone.
#[test]
fn every_line_that_is_not_always_logged_has_a_verbosity() {
    for (module, file, text) in sources() {
        if module != "log" {
            assert!(!text.contains("debug!(") && !text.contains("trace!("), "{}", file.display());
        }
    }
}

#[test]
fn no_module_is_called_mod_or_utils() {
    for (_, file, _) in sources() {
        let name = file.file_name().expect("a name").to_string_lossy();
        assert!(!["mod", "utils", "common", "helpers", "types"].contains(&&*name), "{}", file.display());
    }
}

/// A reader can start at any file and read only downwards.
#[test]
fn no_files_of_a_module_import_from_each_other_in_a_circle() {
    let source = Source::read();
    let imports = source.imports();
    let n_imports: usize = imports.values().map(|targets| targets.len()).sum();
    assert!(n_imports > 200, "only {n_imports} imports found: is the search right?");
    let circles = source::circles(&imports);
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let path = |name: &str| vec!["m".to_owned(), name.to_owned()];
    let (a, b, c, d) = (path("a"), path("b"), path("c"), path("d"));
    let imports = [(&a, [&b]), (&b, [&c]), (&c, [&b]), (&d, [&a])];
    let imports = imports.into_iter().map(|(from, to)| (from, to.into())).collect();
    assert_eq!(source::circles(&imports), [["m/b", "m/c"]]);
}

/// A name has one meaning in the whole tree, so that a search for it finds one thing. Associated types of
/// foreign traits have the names that these give them.
#[test]
fn a_type_name_is_used_once() {
    let source = Source::read();
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (module, file) in &source.files {
        file.types.iter().for_each(|name| places.entry(name).or_default().push(module.join("/")));
    }
    assert!(places.len() > 300, "only {} types found: is the search right?", places.len());
    let twice: Vec<_> = places.into_iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:#?}");
}
