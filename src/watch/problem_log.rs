//! Logs each problem of an object once, until the object's problems change. Equal problems of several
//! entries of one list are one `model::Problem` and one line.

use std::collections::BTreeMap;

use tracing::warn;

use super::MAX_PROBLEMS;
use crate::model::{EscapedValue, Problem};

/// The problems of each object that were logged last.
#[derive(Debug, Default)]
pub struct ProblemLog {
    logged: BTreeMap<String, Vec<Problem>>,
    /// Whether the problems differ from those that [`ProblemLog::take_changed`] returned last.
    is_changed: bool,
    /// Problems logged before the list that is being received; discarded when the list is complete.
    before_list: BTreeMap<String, Vec<Problem>>,
}

impl ProblemLog {
    /// Logs the problems of the object called `name`, unless the same problems were logged last.
    pub fn log_new(&mut self, name: &str, problems: Vec<Problem>) {
        if problems.is_empty() {
            return self.remove(name);
        }
        if self.logged.get(name).or_else(|| self.before_list.get(name)) != Some(&problems) {
            problems.iter().for_each(log_problem);
            self.is_changed = true;
        }
        self.logged.insert(name.to_owned(), problems);
    }

    /// Begins a list of all objects.
    pub fn begin_list(&mut self) {
        self.before_list.append(&mut self.logged);
    }

    /// Ends the list: discards the problems of objects that it did not contain.
    pub fn end_list(&mut self) {
        self.is_changed |= self.before_list.keys().any(|name| !self.logged.contains_key(name));
        self.before_list.clear();
    }

    /// The number of fields with problems, and the first problems, if they differ from what was returned last; `None`
    /// inside a list.
    pub fn take_changed(&mut self) -> Option<(usize, Vec<Problem>)> {
        if !self.before_list.is_empty() || !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let problems = || self.logged.values().flatten();
        let n = problems().map(|problem| problem.n_fields).sum();
        Some((n, problems().take(MAX_PROBLEMS).cloned().collect()))
    }

    /// Discards the problems of the object called `name`.
    pub fn remove(&mut self, name: &str) {
        let removed = (self.logged.remove(name), self.before_list.remove(name));
        self.is_changed |= removed != (None, None);
    }
}

/// Logs one problem at warn.
pub fn log_problem(problem: &Problem) {
    let Problem { weight: _, kind, object, field, text, what, n_fields, more_texts } = problem;
    let (object, field, what) = (EscapedValue(object), EscapedValue(field), EscapedValue(what));
    if *n_fields == 1 {
        warn!(%kind, %object, %field, ?text, %what, "bad field in object");
    } else {
        warn!(%kind, %object, %field, ?text, %what, n_fields, ?more_texts, "bad fields in object");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKind, ProblemWeight};

    fn bad() -> Vec<Problem> {
        let text = String::new;
        vec![Problem {
            weight: ProblemWeight::Wrong,
            kind: ObjectKind::Service,
            object: text(),
            field: text(),
            text: text(),
            what: text(),
            n_fields: 1,
            more_texts: Vec::new(),
        }]
    }

    #[test]
    fn problems_of_objects_missing_from_a_list_are_discarded() {
        let mut problem_log = ProblemLog::default();
        for n in 0..1_000 {
            problem_log.begin_list();
            // A list that is cut off begins again.
            problem_log.log_new("cut off", bad());
            problem_log.begin_list();
            problem_log.log_new("stays", bad());
            problem_log.log_new(&format!("passes {n}"), bad());
            problem_log.end_list();
            problem_log.log_new("changes", bad());
            problem_log.log_new("repaired", bad());
            problem_log.log_new("repaired", Vec::new());
        }
        let names: Vec<&String> = problem_log.logged.keys().collect();
        assert_eq!(names, ["changes", "passes 999", "stays"]);
        assert!(problem_log.before_list.is_empty());
    }
}
