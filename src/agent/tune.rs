//! What the configuration asks of the kernel beside rules: conntrack's size and timeouts, loopback
//! routing, the out-of-memory score. Best effort: kube-proxy 1.36 ends where /proc/sys is read-only
//! (k/k#141943); here each failure is told with its key and value, and everything else goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use tracing::{debug, info, warn};

use crate::config::Conntrack;
use crate::kernel::sysctl::Sysctls;
use crate::sync::Finding;

const MAX: &str = "net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "module/nf_conntrack/parameters/hashsize";

/// Buckets that the hash table has for each four entries.
const ENTRIES_PER_BUCKET: u64 = 4;

/// Where the kernel's parameters are files.
#[derive(Clone, Debug)]
pub(super) struct Roots {
    /// `/proc/sys`.
    pub(super) sysctls: Sysctls,
    /// `/sys`.
    pub(super) sys: PathBuf,
}

impl Roots {
    /// Those of this machine.
    pub(super) fn of_kernel() -> Roots {
        Roots { sysctls: Sysctls::of_kernel(), sys: "/sys".into() }
    }
}

/// A parameter that could not be set; the kernel has what it had.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {key} to {value}: {error}")]
pub(super) struct Unset {
    /// Below `/proc/sys`, or `module/...` below `/sys`.
    pub(super) key: String,
    /// What it was to be.
    pub(super) value: u64,
    /// What the kernel said.
    pub(super) error: io::Error,
}

impl Unset {
    /// As observers are told.
    pub(super) fn finding(self) -> Finding {
        Finding::ParameterUnset { key: self.key, value: self.value, error: self.error.to_string() }
    }
}

/// Sets conntrack's parameters in kube-proxy's order, each only if it differs; what could not be set.
pub(super) fn conntrack(roots: &Roots, wanted: &Conntrack) -> Vec<Unset> {
    let mut unset = Vec::new();
    if let Some(max) = wanted.max(n_cpus(&roots.sys)) {
        unset.extend(set(&roots.sysctls, MAX, max));
        unset.extend(grow_hash(&Sysctls::below(&roots.sys), max / ENTRIES_PER_BUCKET));
    }
    for (key, value) in wanted.sysctls() {
        unset.extend(set(&roots.sysctls, &format!("net/netfilter/{key}"), value));
    }
    unset
}

/// Sets `key`; says so when it was something else.
pub(super) fn set(sysctls: &Sysctls, key: &str, value: u64) -> Option<Unset> {
    match sysctls.ensure(key, value) {
        Ok(was_written) => {
            if was_written {
                info!(key, value, "set a kernel parameter");
            }
            None
        }
        Err(error) => Some(Unset { key: key.to_owned(), value, error }),
    }
}

/// Sees to it that the hash table has at least `n_buckets`; it is never made smaller.
fn grow_hash(sys: &Sysctls, n_buckets: u64) -> Option<Unset> {
    match sys.get::<u64>(HASH_SIZE) {
        Ok(found) if found >= n_buckets => None,
        Ok(_) => set(sys, HASH_SIZE, n_buckets),
        Err(error) => Some(Unset { key: HASH_SIZE.to_owned(), value: n_buckets, error }),
    }
}

/// The machine's online CPUs, whatever part of them this process may use; where sysfs does not tell,
/// the CPUs it may run on.
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

/// Says what could not be set.
pub(super) fn warn_of(unset: &[Unset]) {
    for Unset { key, value, error } in unset {
        warn!(key, value, %error, "cannot set a kernel parameter; going on with what it is");
    }
}

/// Tells the kernel how ready it is to kill this process when memory is short: -1000 (never) to 1000.
/// Less than now needs CAP_SYS_RESOURCE.
pub(super) async fn oom_score(proc_self: &Path, score: i32) {
    const PAUSE: Duration = Duration::from_millis(100);
    let path = proc_self.join("oom_score_adj");
    let write = || fs::write(&path, score.to_string());
    if write().is_ok() {
        return;
    }
    tokio::time::sleep(PAUSE).await;
    if let Err(error) = write() {
        debug!(path = %path.display(), value = score, %error, "cannot set the out-of-memory score");
    }
}

#[cfg(test)]
mod tests;
