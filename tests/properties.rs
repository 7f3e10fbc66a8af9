//! Claims about all clusters, tested with many random ones. The cases are the same in every run.

#[path = "properties/cluster.rs"]
mod cluster;
#[path = "properties/comparison.rs"]
mod comparison;
#[path = "properties/fates.rs"]
mod fates;
#[path = "properties/junk.rs"]
mod junk;
#[path = "properties/layouts.rs"]
mod layouts;
#[path = "properties/live.rs"]
mod live;
#[path = "properties/order.rs"]
mod order;
#[path = "properties/ruleset.rs"]
mod ruleset;
#[path = "shared/rulesets.rs"]
mod rulesets;
#[path = "properties/steps.rs"]
mod steps;
#[path = "properties/text.rs"]
mod text;
#[path = "properties/traced.rs"]
mod traced;
#[path = "properties/truth.rs"]
mod truth;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseResult, TestRng, TestRunner};

/// Tests `claim` with `n_cases` values of `strategy`, the same in every run; shrinks a counterexample.
fn for_all<S: Strategy>(n_cases: u32, strategy: S, claim: impl Fn(S::Value) -> TestCaseResult) {
    let config =
        Config { cases: n_cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    if let Err(error) = runner.run(&strategy, claim) {
        panic!("{error}");
    }
}
