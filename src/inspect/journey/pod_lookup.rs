//! The Pods that questions name.

use super::asked::QuestionError;
use crate::inspect::Subject;
use crate::model::{ObjectName, Pod, nearest};

/// The Pod called `name`, with at least one address; an error names `flag`.
pub(super) fn find_pod<'a>(
    subject: &'a Subject,
    name: &ObjectName,
    flag: &str,
) -> Result<&'a Pod, QuestionError> {
    let not_found = |what: String| QuestionError::NotFound(format!("{flag}: {what}"));
    let pods = match &subject.cluster {
        Some(cluster) if !cluster.pods.is_empty() => &cluster.pods,
        _ => {
            let what = format!(
                "no Pod is known, so pod/{name} has no address; give its manifest with -f, or its IP"
            );
            return Err(not_found(what));
        }
    };
    let Some(pod) = pods.get(name) else {
        let names: Vec<String> = pods.keys().map(ToString::to_string).collect();
        let near = nearest(&name.to_string(), names.iter().map(String::as_str));
        let near = near.map_or(String::new(), |near| format!("; did you mean pod/{near}?"));
        return Err(not_found(format!("there is no Pod {name}{near}")));
    };
    match pod.ips.is_empty() {
        true => Err(not_found(format!("Pod {name} has no address: it is not running"))),
        false => Ok(pod),
    }
}
