//! A short run of the fuzzing that `make lab` does at length: the same cases, the first of each kind.
#![allow(clippy::disallowed_methods, reason = "tests read files and clocks")]

mod fuzz;

use fuzz::{KINDS, attempt, try_all};

/// Cases of all kinds together; `FUZZ_CASES` in the environment overrides it.
const N_CASES: u64 = 10_000;

#[test]
fn no_input_panics_affects_other_objects_or_exceeds_its_memory_limit() {
    if let Ok(case) = std::env::var("FUZZ_CASE") {
        let (name, number) = case.split_once(':').expect("FUZZ_CASE=<kind>:<number>");
        let kind = KINDS.iter().find(|kind| kind.name == name).expect("a kind of case");
        let outcome = attempt(kind, number.parse().expect("a number"));
        println!("{} bytes at most", outcome.unwrap_or_else(|wrong| panic!("{wrong}")));
        return;
    }
    let n_cases = std::env::var("FUZZ_CASES").map_or(N_CASES, |text| text.parse().expect("a number"));
    let mut failures = Vec::new();
    for kind in &KINDS {
        match try_all(kind, n_cases * kind.share / 100, 1) {
            Ok(summary) => println!("{} ({}): {summary:?}", kind.name, kind.what),
            Err(wrong) => failures.push(wrong),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
