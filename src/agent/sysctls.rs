//! Kernel settings other than rules: the sysctls of conntrack and of loopback routing, and the out-of-memory
//! score. Best effort: kube-proxy 1.36 exits if /proc/sys is read-only (k/k#141943); here each failure is logged
//! with its key and value, and the agent continues.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tracing::{info, warn};

use crate::config::Conntrack;
use crate::kernel::sysctl::Sysctls;
use crate::log::v;
use crate::sync::Finding;

const MAX: &str = "net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "module/nf_conntrack/parameters/hashsize";

/// Conntrack entries for each bucket of the hash table.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The folders in which the kernel's settings are files.
#[derive(Clone, Debug)]
pub(super) struct SettingsFolders {
    /// `/proc/sys`.
    pub(super) sysctls: Sysctls,
    /// `/sys`.
    pub(super) sys: PathBuf,
}

impl SettingsFolders {
    /// Those of this node.
    pub(super) fn of_kernel() -> SettingsFolders {
        SettingsFolders { sysctls: Sysctls::of_kernel(), sys: "/sys".into() }
    }
}

/// A sysctl that could not be set; it keeps its value.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {key} to {value}: {error}")]
pub(super) struct SetError {
    /// Below `/proc/sys`, or `module/...` below `/sys`.
    pub(super) key: String,
    /// The value to set.
    pub(super) value: u64,
    /// Why it could not be set.
    pub(super) error: io::Error,
}

impl SetError {
    /// The finding for observers.
    pub(super) fn finding(self) -> Finding {
        Finding::ParameterUnset { key: self.key, value: self.value, error: self.error.to_string() }
    }
}

/// Sets conntrack's sysctls in kube-proxy's order, each only if it differs; returns the failures.
pub(super) fn set_conntrack(folders: &SettingsFolders, conntrack: &Conntrack) -> Vec<SetError> {
    let mut failures = Vec::new();
    if let Some(max) = conntrack.max(n_cpus(&folders.sys)) {
        failures.extend(set(&folders.sysctls, MAX, max));
        failures.extend(grow_hash(&Sysctls::below(&folders.sys), max / ENTRIES_PER_BUCKET));
    }
    for (key, value) in conntrack.sysctls() {
        failures.extend(set(&folders.sysctls, &format!("net/netfilter/{key}"), value));
    }
    failures
}

/// Sets `key`, and logs it if the value was another one.
pub(super) fn set(sysctls: &Sysctls, key: &str, value: u64) -> Option<SetError> {
    match sysctls.ensure(key, value) {
        Ok(was_written) => {
            if was_written {
                info!(key, value, "sysctl set");
            }
            None
        }
        Err(error) => Some(SetError { key: key.to_owned(), value, error }),
    }
}

/// Grows the hash table to `n_buckets`; never shrinks it.
fn grow_hash(sys: &Sysctls, n_buckets: u64) -> Option<SetError> {
    match sys.get::<u64>(HASH_SIZE) {
        Ok(found) if found >= n_buckets => None,
        Ok(_) => set(sys, HASH_SIZE, n_buckets),
        Err(error) => Some(SetError { key: HASH_SIZE.to_owned(), value: n_buckets, error }),
    }
}

/// The online CPUs of this node, by which conntrack's size is computed.
pub fn n_online_cpus() -> u32 {
    n_cpus(Path::new("/sys"))
}

/// The online CPUs of the node, whichever of them this process may use; without sysfs the CPUs it may use.
fn n_cpus(sys: &Path) -> u32 {
    let online = fs::read_to_string(sys.join("devices/system/cpu/online")).ok();
    let online = online.as_deref().and_then(parse_list);
    let mut cpus = BTreeSet::new();
    for node in numbered(&sys.join("devices/system/node"), "node") {
        cpus.extend(numbered(&sys.join(format!("devices/system/node/node{node}")), "cpu"));
    }
    if cpus.is_empty() {
        cpus = numbered(&sys.join("devices/system/cpu"), "cpu");
    }
    let n_online =
        cpus.iter().filter(|cpu| online.as_ref().is_none_or(|online| online.contains(cpu))).count();
    if n_online > 0 { n_online as u32 } else { n_usable_cpus() }
}

/// The numbers `N` for which there is an entry `<prefix>N` in `folder`.
fn numbered(folder: &Path, prefix: &str) -> BTreeSet<u32> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect()
}

/// Reads `0-3,5`.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

fn n_usable_cpus() -> u32 {
    let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return 1 };
    let n = (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count();
    n.max(1) as u32
}

/// Logs each failure.
pub(super) fn log_failures(failures: &[SetError]) {
    for SetError { key, value, error } in failures {
        warn!(key, value, %error, "cannot set sysctl; keeping its value");
    }
}

/// Sets how likely the kernel kills this process when memory is short: from -1000 (never) to 1000. A lower value
/// than the current one needs CAP_SYS_RESOURCE.
pub(super) async fn set_oom_score(proc_self: &Path, score: i32) {
    const RETRY_DELAY: Duration = Duration::from_millis(100);
    let path = proc_self.join("oom_score_adj");
    let write = || fs::write(&path, score.to_string());
    if write().is_ok() {
        return;
    }
    tokio::time::sleep(RETRY_DELAY).await;
    if let Err(error) = write() {
        v!(2, path = %path.display(), value = score, %error, "cannot set the out-of-memory score");
    }
}

#[cfg(test)]
mod tests;
