//! Problems of objects in the log: each once, until the object's problems differ. What is wrong with
//! many entries of a list is one problem (`model::Problem`), and one line.

use std::collections::BTreeMap;

use tracing::warn;

use crate::model::{Problem, Shown};

/// Remembers what was said about each object that has problems.
#[derive(Debug, Default)]
pub struct Reporter {
    said: BTreeMap<String, Vec<Problem>>,
    n_told: usize,
    /// What was said before the list that is being received: forgotten with its end, unless the list
    /// gives cause to say it again.
    before: BTreeMap<String, Vec<Problem>>,
}

impl Reporter {
    /// Says what is wrong with the object called `name`, unless just that was said of it before.
    pub fn report(&mut self, name: &str, problems: Vec<Problem>) {
        if problems.is_empty() {
            return self.forget(name);
        }
        if self.said.get(name).or_else(|| self.before.get(name)) != Some(&problems) {
            problems.iter().for_each(log);
        }
        self.said.insert(name.to_owned(), problems);
    }

    /// A list of all objects begins.
    pub fn list_begins(&mut self) {
        self.before.append(&mut self.said);
    }

    /// It is complete: objects that it did not hold are gone, those too that never had a usable state.
    pub fn list_ends(&mut self) {
        self.before.clear();
    }

    /// How many fields have problems, unless they were as many when this was asked last; nothing in the
    /// middle of a list.
    pub fn news(&mut self) -> Option<usize> {
        if !self.before.is_empty() {
            return None;
        }
        let n = self.said.values().flatten().map(|problem| problem.n_fields).sum();
        (n != std::mem::replace(&mut self.n_told, n)).then_some(n)
    }

    /// The object called `name` is gone.
    pub fn forget(&mut self, name: &str) {
        self.said.remove(name);
        self.before.remove(name);
    }
}

/// Says one problem.
pub fn log(problem: &Problem) {
    let Problem { kind, object, field, text, what, n_fields, more_texts } = problem;
    let (object, field, what) = (Shown(object), Shown(field), Shown(what));
    if *n_fields == 1 {
        warn!(%kind, %object, %field, ?text, %what, "bad field in object");
    } else {
        warn!(%kind, %object, %field, ?text, %what, n_fields, ?more_texts, "bad fields in object");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectKind;

    fn bad() -> Vec<Problem> {
        let text = String::new;
        vec![Problem {
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
    fn what_a_list_does_not_hold_any_more_is_forgotten() {
        let mut reporter = Reporter::default();
        for n in 0..1_000 {
            reporter.list_begins();
            // A list that is broken off is begun again.
            reporter.report("broken off", bad());
            reporter.list_begins();
            reporter.report("stays", bad());
            reporter.report(&format!("passes {n}"), bad());
            reporter.list_ends();
            reporter.report("changes", bad());
            reporter.report("mended", bad());
            reporter.report("mended", Vec::new());
        }
        let names: Vec<&String> = reporter.said.keys().collect();
        assert_eq!(names, ["changes", "passes 999", "stays"]);
        assert!(reporter.before.is_empty());
    }
}
