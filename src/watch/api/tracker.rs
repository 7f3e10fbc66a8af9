//! Turns the list and watch events of one kind into `WatchEvent`s. Collects a list until it is complete,
//! and keeps the names of existing objects, so that a later list shows which objects were deleted in
//! between.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::Resource;
use kube_runtime::watcher::Event;
use tracing::info;

use super::received::ReceivedObject;
use crate::log::v;
use crate::model::decode::{self, ApiNode, ApiObject, ApiService, ApiSlice, Decoded, Interner};
use crate::model::{Change, Node, ObjectName, Problem, Service, Slice};
use crate::watch::WatchEvent;
use crate::watch::problem_log::ProblemLog;

/// A watched kind of object.
pub trait WatchedKind: ApiObject {
    /// The API type, for name and path.
    type Api: Resource<DynamicType = ()>;
    /// The model type.
    type Value;
    /// Label selector.
    const LABELS: Option<&str>;
    /// The event after the first complete list.
    const LISTED: WatchEvent;

    /// Field selector, on the node called `node`.
    fn fields(node: &str) -> Option<String>;
    /// Decodes one object.
    fn decode(&self, interner: &mut Interner) -> Decoded<Self::Value>;
    /// The change that sets one object, or removes it.
    fn change(name: ObjectName, value: Option<Self::Value>) -> Change;
    /// The change that replaces all objects of the kind.
    fn replace_all(values: Vec<(ObjectName, Self::Value)>) -> Change;
}

impl WatchedKind for ApiService {
    type Api = core::Service;
    type Value = Service;
    const LABELS: Option<&str> = Some("!service.kubernetes.io/service-proxy-name");
    const LISTED: WatchEvent = WatchEvent::ServicesListed;

    fn fields(_: &str) -> Option<String> {
        Some("spec.clusterIP!=None".to_owned())
    }

    fn decode(&self, interner: &mut Interner) -> Decoded<Service> {
        decode::service(self, interner)
    }

    fn change(name: ObjectName, value: Option<Service>) -> Change {
        Change::Service(name, value)
    }

    fn replace_all(values: Vec<(ObjectName, Service)>) -> Change {
        Change::AllServices(values.into_iter().map(|(_, value)| value).collect())
    }
}

impl WatchedKind for ApiSlice {
    type Api = discovery::EndpointSlice;
    type Value = Slice;
    const LABELS: Option<&str> = Some("!service.kubernetes.io/headless");
    const LISTED: WatchEvent = WatchEvent::SlicesListed;

    fn fields(_: &str) -> Option<String> {
        None
    }

    fn decode(&self, interner: &mut Interner) -> Decoded<Slice> {
        decode::slice(self, interner)
    }

    fn change(name: ObjectName, value: Option<Slice>) -> Change {
        Change::Slice(name, value)
    }

    fn replace_all(values: Vec<(ObjectName, Slice)>) -> Change {
        Change::AllSlices(values)
    }
}

impl WatchedKind for ApiNode {
    type Api = core::Node;
    type Value = Node;
    const LABELS: Option<&str> = None;
    const LISTED: WatchEvent = WatchEvent::NodeListed;

    fn fields(node: &str) -> Option<String> {
        Some(format!("metadata.name={node}"))
    }

    fn decode(&self, interner: &mut Interner) -> Decoded<Node> {
        let (node, problems) = decode::node(self, interner);
        let named = node.map(|node| (ObjectName::new("", &node.name), Some(node)));
        Decoded { named, problems }
    }

    fn change(_: ObjectName, value: Option<Node>) -> Change {
        Change::Node(value)
    }

    fn replace_all(mut values: Vec<(ObjectName, Node)>) -> Change {
        Change::Node(values.pop().map(|(_, node)| node))
    }
}

/// Names of the known objects of one kind.
pub struct KindTracker<'a, K: WatchedKind> {
    interner: &'a Mutex<Interner>,
    known: BTreeSet<ObjectName>,
    list: Option<PendingList<K>>,
    is_listed: bool,
    problem_log: ProblemLog,
}

/// A list that is still being received.
struct PendingList<K: WatchedKind> {
    seen: BTreeSet<ObjectName>,
    /// `None` for an object that is not proxied; it may have been before.
    values: Vec<(ObjectName, Option<K::Value>)>,
    /// Whether a known object could not be decoded: its last state stays in use.
    has_undecodable: bool,
}

impl<'a, K: WatchedKind> KindTracker<'a, K> {
    /// Starts without objects; strings are shared through `interner`.
    pub fn new(interner: &'a Mutex<Interner>) -> KindTracker<'a, K> {
        KindTracker {
            interner,
            known: BTreeSet::new(),
            list: None,
            is_listed: false,
            problem_log: ProblemLog::default(),
        }
    }

    /// Turns an event into changes of the cluster's state, in order.
    pub fn apply(&mut self, event: Event<ReceivedObject<K>>) -> Vec<WatchEvent> {
        let mut events = self.changes(event);
        let problems = self.problem_log.take_changed();
        events.extend(problems.map(|(n, first)| WatchEvent::Problems(K::KIND, n, first)));
        events
    }

    fn changes(&mut self, event: Event<ReceivedObject<K>>) -> Vec<WatchEvent> {
        match event {
            Event::Init => {
                self.problem_log.begin_list();
                self.list =
                    Some(PendingList { seen: BTreeSet::new(), values: Vec::new(), has_undecodable: false });
                Vec::new()
            }
            Event::InitApply(object) => {
                self.add_to_list(object);
                Vec::new()
            }
            Event::InitDone => self.complete_list(),
            Event::Apply(object) => {
                let name = object.name();
                v!(4, kind = %K::KIND, object = %name, "object added or changed");
                let decoded = object.into_result().map(|object| self.decode(&object));
                match decoded {
                    Ok(Some((name, value))) => {
                        self.known.insert(name.clone());
                        vec![WatchEvent::Change(K::change(name, value))]
                    }
                    Ok(None) => Vec::new(),
                    Err(bad) => {
                        self.log_undecodable(&name, *bad);
                        Vec::new()
                    }
                }
            }
            Event::Delete(object) => {
                let name = object.name();
                v!(4, kind = %K::KIND, object = %name, "object deleted");
                self.problem_log.remove(&name.to_string());
                self.known.remove(&name);
                vec![WatchEvent::Change(K::change(name, None))]
            }
        }
    }

    fn add_to_list(&mut self, object: ReceivedObject<K>) {
        let name = object.name();
        match object.into_result() {
            Ok(object) => {
                let decoded = self.decode(&object);
                if let (Some((name, value)), Some(list)) = (decoded, &mut self.list) {
                    list.seen.insert(name.clone());
                    list.values.push((name, value));
                }
            }
            Err(bad) => {
                self.log_undecodable(&name, *bad);
                if let Some(list) = &mut self.list
                    && self.known.contains(&name)
                {
                    list.seen.insert(name);
                    list.has_undecodable = true;
                }
            }
        }
    }

    /// Completes the list: replaces all objects; or, if a known object could not be decoded and its last
    /// state must stay, sends each change on its own, deletions last.
    fn complete_list(&mut self) -> Vec<WatchEvent> {
        let Some(list) = self.list.take() else { return Vec::new() };
        info!(kind = %K::KIND, n_objects = list.seen.len(), "list complete");
        let deleted: Vec<ObjectName> = self.known.difference(&list.seen).cloned().collect();
        self.problem_log.end_list();
        self.known = list.seen;
        let mut events: Vec<WatchEvent> = if list.has_undecodable {
            let (present, not_proxied): (Vec<_>, Vec<_>) =
                list.values.into_iter().partition(|(_, value)| value.is_some());
            let deleted = deleted.into_iter().map(|name| (name, None));
            let changes = present.into_iter().chain(not_proxied).chain(deleted);
            changes.map(|(name, value)| WatchEvent::Change(K::change(name, value))).collect()
        } else {
            let values = list.values.into_iter();
            vec![WatchEvent::Change(K::replace_all(
                values.filter_map(|(name, value)| Some((name, value?))).collect(),
            ))]
        };
        if !std::mem::replace(&mut self.is_listed, true) {
            events.push(K::LISTED);
        }
        events
    }

    fn decode(&mut self, object: &K) -> Option<(ObjectName, Option<K::Value>)> {
        // If another watch panicked, its interner is still a valid set of strings.
        let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
        let Decoded { named, problems } = object.decode(&mut interner);
        self.problem_log.log_new(&object.claimed_name().to_string(), problems);
        named
    }

    /// Logs an object that cannot be decoded.
    fn log_undecodable(&mut self, name: &ObjectName, bad: Problem) {
        let what = format!("{}; its last state stays in use", bad.what);
        self.problem_log.log_new(&name.to_string(), vec![Problem { what, ..bad }]);
    }
}

#[cfg(test)]
mod tests;
