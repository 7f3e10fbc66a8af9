//! This process as the kernel shows it under `/proc`, read at each scrape.
//!
//! Not the `process` collector of the `prometheus` crate: it counts CPU time in whole seconds, lacks the network and
//! the limit of virtual memory, and shows `process_threads`, which kube-proxy does not have.
#![allow(clippy::disallowed_methods, reason = "reads /proc/self")]

use std::path::{Path, PathBuf};

use super::define::ScrapeKind::{Counter, Gauge};
use super::define::{Definer, ScrapeKind};

/// Type, name, help and reader of each metric. What cannot be read is left out of the scrape.
const METRICS: [(ScrapeKind, &str, &str, ReadProc); 9] = [
    (
        Counter,
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        ProcFiles::cpu,
    ),
    (Gauge, "process_max_fds", "Maximum number of open file descriptors.", |files| {
        files.limit("Max open files")
    }),
    (
        Counter,
        "process_network_receive_bytes_total",
        "Number of bytes received by the process over the network.",
        |files| files.ip_octets("InOctets"),
    ),
    (
        Counter,
        "process_network_transmit_bytes_total",
        "Number of bytes sent by the process over the network.",
        |files| files.ip_octets("OutOctets"),
    ),
    (Gauge, "process_open_fds", "Number of open file descriptors.", ProcFiles::open_fds),
    (Gauge, "process_resident_memory_bytes", "Resident memory size in bytes.", ProcFiles::resident),
    (
        Gauge,
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        ProcFiles::start_time,
    ),
    (Gauge, "process_virtual_memory_bytes", "Virtual memory size in bytes.", |files| files.stat(23)),
    (
        Gauge,
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
        |files| files.limit("Max address space"),
    ),
];

type ReadProc = fn(&ProcFiles) -> Option<f64>;

/// Defines the metrics of this process.
pub(super) fn define_process(define: &Definer<'_>) -> anyhow::Result<()> {
    METRICS.into_iter().try_for_each(|(kind, name, help, read)| {
        let files = ProcFiles::of_kernel();
        define.on_scrape(kind, name, help, move || read(&files))
    })
}

/// When this process started, in seconds since 1970.
pub(super) fn start_time() -> Option<f64> {
    ProcFiles::of_kernel().start_time()
}

/// The files of a `/proc`; see proc(5).
struct ProcFiles(PathBuf);

impl ProcFiles {
    fn of_kernel() -> ProcFiles {
        ProcFiles("/proc".into())
    }

    fn read(&self, name: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(self.0.join(name)).ok()
    }

    /// Field `n` (from 1, above 2) of `/proc/self/stat`; see proc_pid_stat(5).
    fn stat(&self, n: usize) -> Option<f64> {
        let text = self.read("self/stat")?;
        // Field 2, the program's name in parentheses, may contain anything, also a parenthesis.
        let (_, from_third) = text.rsplit_once(')')?;
        from_third.split_ascii_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
    }

    /// Seconds.
    fn cpu(&self) -> Option<f64> {
        Some((self.stat(14)? + self.stat(15)?) / ticks_per_second())
    }

    /// Seconds since 1970.
    fn start_time(&self) -> Option<f64> {
        let text = self.read("stat")?;
        let booted: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(booted + self.stat(22)? / ticks_per_second())
    }

    /// Bytes.
    fn resident(&self) -> Option<f64> {
        Some(self.stat(24)? * page_size())
    }

    fn open_fds(&self) -> Option<f64> {
        Some(std::fs::read_dir(self.0.join("self/fd")).ok()?.count() as f64)
    }

    /// The soft limit called `key`; for `unlimited` the largest unsigned number of 64 bits, as kube-proxy shows it.
    fn limit(&self, key: &str) -> Option<f64> {
        let text = self.read("self/limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        match line.split_ascii_whitespace().next()? {
            "unlimited" => Some(u64::MAX as f64),
            number => number.parse().ok(),
        }
    }

    /// The value that the `IpExt:` lines of `netstat` name `key`: one line has the names, the next the values.
    fn ip_octets(&self, key: &str) -> Option<f64> {
        let text = self.read("self/net/netstat")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let at = names.split_ascii_whitespace().position(|name| name == key)?;
        values.split_ascii_whitespace().nth(at)?.parse().ok()
    }
}

fn ticks_per_second() -> f64 {
    system_value(nix::unistd::SysconfVar::CLK_TCK, 100.0)
}

fn page_size() -> f64 {
    system_value(nix::unistd::SysconfVar::PAGE_SIZE, 4096.0)
}

fn system_value(variable: nix::unistd::SysconfVar, otherwise: f64) -> f64 {
    nix::unistd::sysconf(variable).ok().flatten().map_or(otherwise, |value| value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(proc: impl Into<PathBuf>) -> std::collections::BTreeMap<&'static str, f64> {
        let files = ProcFiles(proc.into());
        METRICS.into_iter().filter_map(|(_, name, _, read)| Some((name, read(&files)?))).collect()
    }

    #[test]
    fn the_files_are_read_in_the_form_of_the_kernel() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = proc.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 9 0 0 300 200 0 0 20 0 5 0 5000 1048576 3 184467 1 1";
        write("self/stat", stat);
        write("stat", "cpu  1 2 3\nbtime 1000\nprocesses 5\n");
        write(
            "self/limits",
            "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\nMax address space   unlimited   unlimited   bytes\n",
        );
        write(
            "self/net/netstat",
            "TcpExt: InOctets A\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 11 22\n",
        );
        write("self/fd/0", "");
        write("self/fd/1", "");
        let values = values(proc.path());
        let ticks = ticks_per_second();
        for (name, expected) in [
            ("process_cpu_seconds_total", 500.0 / ticks),
            ("process_start_time_seconds", 1000.0 + 5000.0 / ticks),
            ("process_virtual_memory_bytes", 1_048_576.0),
            ("process_resident_memory_bytes", 3.0 * page_size()),
            ("process_max_fds", 1024.0),
            ("process_virtual_memory_max_bytes", u64::MAX as f64),
            ("process_network_receive_bytes_total", 11.0),
            ("process_network_transmit_bytes_total", 22.0),
            ("process_open_fds", 2.0),
        ] {
            assert_eq!(values[name], expected, "{name}");
        }
    }

    #[test]
    fn without_proc_the_metrics_read_from_it_are_left_out() {
        assert_eq!(values("/nonexistent"), Default::default());
    }

    #[test]
    fn every_metric_of_this_process_can_be_read() {
        assert_eq!(values("/proc").len(), METRICS.len());
    }
}
