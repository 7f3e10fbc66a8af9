//! The result of decoding.

use crate::model::{ObjectName, Problem};

/// The result of decoding one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<T> {
    /// Its name, and its value if it is relevant. `Some((name, None))` is equivalent to a deleted object (a
    /// headless Service, a slice without a Service). `None` without a usable name.
    pub named: Option<(ObjectName, Option<T>)>,
    /// Its problems, in the order of its fields.
    pub problems: Vec<Problem>,
}

impl<T> Decoded<T> {
    /// The value, if the object has a name and is relevant.
    pub fn value(self) -> Option<T> {
        self.named.and_then(|(_, value)| value)
    }
}
