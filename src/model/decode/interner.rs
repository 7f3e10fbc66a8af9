//! Texts that many objects share, kept once: names of nodes, zones, ports and Services.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::ObjectName;

/// Gives equal texts the same allocation. Texts that nobody holds any more are let go from time to
/// time, so that it does not grow with the changes a cluster sees over the years.
#[derive(Debug, Default)]
pub struct Interner {
    texts: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

/// Below this many texts a sweep is not worth it.
const LEAST_SWEPT: usize = 1024;

impl Interner {
    /// `text`, in the allocation that everybody shares.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() >= self.sweep_at.max(LEAST_SWEPT) {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = 2 * self.texts.len();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    /// The name of `name` in `namespace`; both have their grammar.
    pub fn object_name(&mut self, namespace: &str, name: &str) -> ObjectName {
        ObjectName(self.text(&format!("{namespace}/{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_memory() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.text("node-1"), &interner.text("node-1")));
        assert_eq!(interner.object_name("ns", "web").to_string(), "ns/web");
    }

    #[test]
    fn texts_nobody_holds_are_let_go() {
        let mut interner = Interner::default();
        let held = interner.text("held");
        for i in 0..100_000 {
            interner.text(&format!("passing-{i}"));
        }
        assert!(interner.texts.len() <= LEAST_SWEPT);
        assert!(Arc::ptr_eq(&held, &interner.text("held")));
    }
}
