//! The begin of a watch: the objects of a state, or only changes.

use super::Shared;
use super::answer::{Cause, Refusal};
use super::fault::Fault;
use super::list::stale;
use super::request::Query;
use super::resource::Resource;
use super::watching::Phase;

/// The first events that the client asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The state, and a bookmark after it.
    List,
    /// The state, if no version gives the begin.
    State,
    /// Only changes, from now on if no version is given.
    Changes,
}

/// The first events of a watch, and the version that the client has after them.
pub fn begin_at(
    shared: &Shared,
    resource: &Resource,
    asked: Option<u64>,
    begin: Begin,
    wants_bookmarks: bool,
    fault: Option<&Fault>,
) -> (Phase, u64) {
    let store = shared.store();
    let is_any = asked == Some(0);
    match asked.filter(|asked| *asked > 0) {
        Some(asked) if begin != Begin::List => return (Phase::Follow, asked),
        None if begin == Begin::Changes => return (Phase::Follow, store.version()),
        _ => {}
    }
    if let Some(Fault::StaleList { .. }) = fault {
        shared.faults.met();
    }
    let behind = match fault {
        Some(Fault::StaleList { at }) if is_any => Some(*at),
        other => other.and_then(Fault::stuck_at),
    };
    let (objects, version) = match behind {
        Some(at) => stale(&store, resource, at),
        None => (store.state(resource), store.version()),
    };
    let is_understood = fault != Some(&Fault::IgnoreStreamingLists);
    (Phase::Initial { objects, after: None, has_end: wants_bookmarks && is_understood }, version)
}

/// The first events, or why the request is rejected.
pub fn check_streaming(query: &Query, fault: Option<&Fault>) -> Result<Begin, Refusal> {
    const FIELD: &str = "resourceVersionMatch";
    let refuse = |causes: &[Cause]| Err(Refusal::invalid_options(causes));
    let rule = query.text(FIELD);
    if query.text("sendInitialEvents").is_empty() {
        if rule.is_empty() {
            return Ok(Begin::State);
        }
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        return refuse(&[Cause::forbidden(FIELD, why)]);
    }
    match fault {
        Some(Fault::RefuseStreamingLists) => {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            refuse(&[Cause::forbidden("sendInitialEvents", why)])
        }
        Some(Fault::IgnoreStreamingLists) => Ok(Begin::State),
        _ if rule != "NotOlderThan" => {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            let mut causes = vec![Cause::forbidden(FIELD, why)];
            if !rule.is_empty() {
                causes.push(Cause::unsupported(FIELD, &rule.into(), &["NotOlderThan"]));
            }
            refuse(&causes)
        }
        _ if query.claims("sendInitialEvents") => Ok(Begin::List),
        _ => Ok(Begin::Changes),
    }
}
