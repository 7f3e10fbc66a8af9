//! What an event says, and about which object.

use crate::model::ServiceName;

/// The object of an event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regarding {
    /// This node.
    Node,
    /// A Service.
    Service(ServiceName),
}

/// The content of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub regarding: Regarding,
    /// Whether the type is `Warning`: a person should look into it.
    pub is_warning: bool,
    /// One word, `UpperCamelCase`.
    pub reason: &'static str,
    /// The action of the agent that the event is about, one word, `UpperCamelCase`.
    pub action: &'static str,
    /// A sentence; escaped and cut as needed when it is sent.
    pub note: String,
}
