//! From what lists and watches of one kind bring to `WatchEvent`s: gathers lists until they are complete, and knows
//! the names of what there is, so that what vanished while nobody looked is found.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::Resource;
use kube_runtime::watcher::Event;
use tracing::info;

use super::guard::Guard;
use crate::model::decode::{self, ApiNode, ApiObject, ApiService, ApiSlice, Decoded, Interner};
use crate::model::{Change, Node, ObjectName, Problem, Service, Slice};
use crate::watch::WatchEvent;
use crate::watch::report::Reporter;

/// A kind of object that is watched.
pub trait Kind: ApiObject {
    /// What the API calls it, and where it is asked for.
    type Api: Resource<DynamicType = ()>;
    /// What it is decoded to.
    type Value;
    /// Objects that are watched, by label.
    const LABELS: Option<&str>;
    /// The event that says all are known.
    const LISTED: WatchEvent;

    /// Objects that are watched, by field, on the node called `node`.
    fn fields(node: &str) -> Option<String>;
    /// Decodes one.
    fn decode(&self, interner: &mut Interner) -> Decoded<Self::Value>;
    /// One is there, or gone.
    fn change(name: ObjectName, value: Option<Self::Value>) -> Change;
    /// Exactly these are there.
    fn all(values: Vec<(ObjectName, Self::Value)>) -> Change;
}

impl Kind for ApiService {
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

    fn all(values: Vec<(ObjectName, Service)>) -> Change {
        Change::AllServices(values.into_iter().map(|(_, value)| value).collect())
    }
}

impl Kind for ApiSlice {
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

    fn all(values: Vec<(ObjectName, Slice)>) -> Change {
        Change::AllSlices(values)
    }
}

impl Kind for ApiNode {
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

    fn all(mut values: Vec<(ObjectName, Node)>) -> Change {
        Change::Node(values.pop().map(|(_, node)| node))
    }
}

/// What is known of the objects of one kind: their names, nothing more.
pub struct Store<'a, K: Kind> {
    interner: &'a Mutex<Interner>,
    known: BTreeSet<ObjectName>,
    list: Option<List<K>>,
    is_listed: bool,
    reporter: Reporter,
}

/// A list that is being received.
struct List<K: Kind> {
    seen: BTreeSet<ObjectName>,
    /// `None` for one that does not count, in case it did before.
    values: Vec<(ObjectName, Option<K::Value>)>,
    /// Whether an object that was known could not be decoded: its last state stays.
    keeps_some: bool,
}

impl<'a, K: Kind> Store<'a, K> {
    /// Knows nothing yet; texts are shared through `interner`.
    pub fn new(interner: &'a Mutex<Interner>) -> Store<'a, K> {
        Store {
            interner,
            known: BTreeSet::new(),
            list: None,
            is_listed: false,
            reporter: Reporter::default(),
        }
    }

    /// What an event means for the cluster's state, in order.
    pub fn take(&mut self, event: Event<Guard<K>>) -> Vec<WatchEvent> {
        let mut events = self.changes(event);
        events.extend(self.reporter.news().map(|n| WatchEvent::Problems(K::KIND, n)));
        events
    }

    fn changes(&mut self, event: Event<Guard<K>>) -> Vec<WatchEvent> {
        match event {
            Event::Init => {
                self.reporter.list_begins();
                self.list = Some(List { seen: BTreeSet::new(), values: Vec::new(), keeps_some: false });
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listed(object);
                Vec::new()
            }
            Event::InitDone => self.complete(),
            Event::Apply(object) => {
                let name = object.name();
                let decoded = object.into_result().map(|object| self.decode(&object));
                match decoded {
                    Ok(Some((name, value))) => {
                        self.known.insert(name.clone());
                        vec![WatchEvent::Change(K::change(name, value))]
                    }
                    Ok(None) => Vec::new(),
                    Err(bad) => {
                        self.undecodable(&name, *bad);
                        Vec::new()
                    }
                }
            }
            Event::Delete(object) => {
                let name = object.name();
                self.reporter.forget(&name.to_string());
                self.known.remove(&name);
                vec![WatchEvent::Change(K::change(name, None))]
            }
        }
    }

    fn listed(&mut self, object: Guard<K>) {
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
                self.undecodable(&name, *bad);
                if let Some(list) = &mut self.list
                    && self.known.contains(&name)
                {
                    list.seen.insert(name);
                    list.keeps_some = true;
                }
            }
        }
    }

    /// The list is complete: swaps it in, or, where the last state of an object has to stay, says
    /// each change by itself, deletions last.
    fn complete(&mut self) -> Vec<WatchEvent> {
        let Some(list) = self.list.take() else { return Vec::new() };
        info!(kind = %K::KIND, n_objects = list.seen.len(), "listed");
        let gone: Vec<ObjectName> = self.known.difference(&list.seen).cloned().collect();
        self.reporter.list_ends();
        self.known = list.seen;
        let mut events: Vec<WatchEvent> = if list.keeps_some {
            let (here, uncounted): (Vec<_>, Vec<_>) =
                list.values.into_iter().partition(|(_, value)| value.is_some());
            let gone = gone.into_iter().map(|name| (name, None));
            let changes = here.into_iter().chain(uncounted).chain(gone);
            changes.map(|(name, value)| WatchEvent::Change(K::change(name, value))).collect()
        } else {
            let values = list.values.into_iter();
            vec![WatchEvent::Change(K::all(
                values.filter_map(|(name, value)| Some((name, value?))).collect(),
            ))]
        };
        if !std::mem::replace(&mut self.is_listed, true) {
            events.push(K::LISTED);
        }
        events
    }

    fn decode(&mut self, object: &K) -> Option<(ObjectName, Option<K::Value>)> {
        // Another watch may have panicked: what it left is still a set of texts.
        let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
        let Decoded { named, problems } = object.decode(&mut interner);
        self.reporter.report(&object.claimed_name().to_string(), problems);
        named
    }

    /// Reports an object that cannot be decoded.
    fn undecodable(&mut self, name: &ObjectName, bad: Problem) {
        let what = format!("{}; its last state stays", bad.what);
        self.reporter.report(&name.to_string(), vec![Problem { what, ..bad }]);
    }
}

#[cfg(test)]
mod tests;
