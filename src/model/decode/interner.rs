//! Strings that many objects share, stored once: names of nodes, zones, ports and Services.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::model::ObjectName;

/// Gives equal strings the same allocation. Unused strings are removed from time to time, so that memory
/// does not grow with the number of changes.
#[derive(Debug, Default)]
pub struct Interner {
    texts: BTreeSet<Arc<str>>,
    sweep_at: usize,
}

/// With fewer strings, a sweep is not worth its cost.
const MIN_SWEEP_SIZE: usize = 1024;

impl Interner {
    /// `text`, in its shared allocation.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        if self.texts.len() >= self.sweep_at.max(MIN_SWEEP_SIZE) {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.sweep_at = 2 * self.texts.len();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    /// The name of object `name` in `namespace`, in its shared allocation; both must match their grammar.
    pub fn object_name(&mut self, namespace: &str, name: &str) -> ObjectName {
        ObjectName(self.text(&format!("{namespace}/{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_memory() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.text("node-1"), &interner.text("node-1")));
        assert_eq!(interner.object_name("ns", "web").to_string(), "ns/web");
    }

    #[test]
    fn unused_strings_are_removed() {
        let mut interner = Interner::default();
        let held = interner.text("held");
        for i in 0..100_000 {
            interner.text(&format!("passing-{i}"));
        }
        assert!(interner.texts.len() <= MIN_SWEEP_SIZE);
        assert!(Arc::ptr_eq(&held, &interner.text("held")));
    }
}
