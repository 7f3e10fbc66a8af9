//! Problems of objects in the log: each once, until the object's problems differ.

use std::collections::BTreeMap;

use tracing::warn;

use crate::model::Problem;

/// Remembers what was said about each object that has problems.
#[derive(Debug, Default)]
pub struct Reporter {
    said: BTreeMap<String, Vec<Problem>>,
    n_told: usize,
}

impl Reporter {
    /// Says what is wrong with the object called `name`, unless just that was said of it before.
    pub fn report(&mut self, name: &str, problems: Vec<Problem>) {
        if problems.is_empty() {
            self.said.remove(name);
            return;
        }
        if self.said.get(name) != Some(&problems) {
            problems.iter().for_each(log);
            self.said.insert(name.to_owned(), problems);
        }
    }

    /// How many problems there are, unless they were as many when this was asked last.
    pub fn news(&mut self) -> Option<usize> {
        let n = self.said.values().map(Vec::len).sum();
        (n != std::mem::replace(&mut self.n_told, n)).then_some(n)
    }

    /// The object called `name` is gone.
    pub fn forget(&mut self, name: &str) {
        self.said.remove(name);
    }
}

/// Says one problem.
pub fn log(problem: &Problem) {
    let Problem { kind, object, field, text, what } = problem;
    warn!(%kind, object = %object.escape_debug(), %field, ?text, what, "bad field in object");
}
