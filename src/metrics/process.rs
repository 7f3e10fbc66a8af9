//! This process as `/proc` knows it, read at each scrape.
#![allow(clippy::disallowed_methods, reason = "reads /proc/self")]

use std::path::{Path, PathBuf};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// Reads `/proc`. What cannot be read is left out.
pub(super) struct Process {
    proc: PathBuf,
    descriptions: Vec<Desc>,
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}
use Kind::{Counter as C, Gauge as G};

type Known = (Kind, &'static str, &'static str);
const CPU: Known = (C, "process_cpu_seconds_total", "Total user and system CPU time spent in seconds.");
const MAX_FDS: Known = (G, "process_max_fds", "Maximum number of open file descriptors.");
const RECEIVED: Known =
    (C, "process_network_receive_bytes_total", "Number of bytes received by the process over the network.");
const SENT: Known =
    (C, "process_network_transmit_bytes_total", "Number of bytes sent by the process over the network.");
const OPEN_FDS: Known = (G, "process_open_fds", "Number of open file descriptors.");
const RESIDENT: Known = (G, "process_resident_memory_bytes", "Resident memory size in bytes.");
const START: Known =
    (G, "process_start_time_seconds", "Start time of the process since unix epoch in seconds.");
const VIRTUAL: Known = (G, "process_virtual_memory_bytes", "Virtual memory size in bytes.");
const VIRTUAL_MAX: Known =
    (G, "process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.");
const CHILD: Known = (
    G,
    "chainsmith_largest_child_resident_memory_bytes",
    "Most resident memory that any program was seen to have that was started",
);
const LOST_LINES: Known = (
    C,
    "chainsmith_log_lines_lost_total",
    "Lines of the log that could not be written: the disk is full, or the reader of a pipe is gone",
);
const ALL: [Known; 9] = [CPU, MAX_FDS, RECEIVED, SENT, OPEN_FDS, RESIDENT, START, VIRTUAL, VIRTUAL_MAX];

impl Process {
    /// Of this process, by the files under `proc`.
    pub(super) fn new(proc: impl Into<PathBuf>) -> prometheus::Result<Process> {
        let descriptions = ALL.into_iter().map(description).collect::<Result<_, _>>()?;
        Ok(Process { proc: proc.into(), descriptions })
    }

    /// When this process started, in seconds since 1970.
    pub(super) fn started(&self) -> Option<f64> {
        Stat::read(&self.proc)?.started(&self.proc)
    }

    fn values(&self) -> Vec<(Known, f64)> {
        let stat = Stat::read(&self.proc);
        let of_stat = |value: fn(&Stat) -> f64| stat.as_ref().map(value);
        let of_net = |key| self.file("self/net/netstat").and_then(|text| ip_octets(&text, key));
        let of_limits = |key| self.file("self/limits").and_then(|text| limit(&text, key));
        let fds = std::fs::read_dir(self.proc.join("self/fd")).ok().map(|entries| entries.count() as f64);
        let values = [
            (CPU, of_stat(|stat| stat.cpu_ticks as f64 / ticks_per_second())),
            (MAX_FDS, of_limits("Max open files")),
            (RECEIVED, of_net("InOctets")),
            (SENT, of_net("OutOctets")),
            (OPEN_FDS, fds),
            (RESIDENT, of_stat(|stat| stat.resident_pages as f64 * page_size())),
            (START, self.started()),
            (VIRTUAL, of_stat(|stat| stat.virtual_bytes as f64)),
            (VIRTUAL_MAX, of_limits("Max address space")),
        ];
        values.into_iter().filter_map(|(known, value)| Some((known, value?))).collect()
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.proc.join(name)).ok()
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.values().into_iter().flat_map(|(known, value)| sample(known, value)).collect()
    }
}

fn description((_, name, help): Known) -> prometheus::Result<Desc> {
    Desc::new(name.into(), help.into(), vec![], Default::default())
}

fn sample((kind, name, help): Known, value: f64) -> Vec<MetricFamily> {
    let sample = match kind {
        C => Counter::new(name, help).map(|counter| {
            counter.inc_by(value);
            counter.collect()
        }),
        G => Gauge::new(name, help).map(|gauge| {
            gauge.set(value);
            gauge.collect()
        }),
    };
    sample.unwrap_or_default()
}

/// Tells how much memory the largest program had that this process started, in bytes; `None`: unknown.
pub type ReadLargest = fn() -> Option<u64>;

/// A number that another module keeps, asked for at each scrape; left out while it is unknown.
pub(super) struct External {
    known: Known,
    read: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    description: Desc,
}

impl External {
    /// The memory of programs that this process started.
    pub(super) fn children(largest: ReadLargest) -> prometheus::Result<External> {
        External::new(CHILD, largest)
    }

    /// Lines of the log that could not be written.
    pub(super) fn lost_lines(n_lost: fn() -> u64) -> prometheus::Result<External> {
        External::new(LOST_LINES, move || Some(n_lost()))
    }

    fn new(
        known: Known,
        read: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> prometheus::Result<External> {
        Ok(External { known, read: Box::new(read), description: description(known)? })
    }
}

impl Collector for External {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.read)().map(|value| sample(self.known, value as f64)).unwrap_or_default()
    }
}

/// What is read of `/proc/self/stat`; see proc_pid_stat(5).
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn read(proc: &Path) -> Option<Stat> {
        let text = std::fs::read_to_string(proc.join("self/stat")).ok()?;
        // The name of the program may hold anything, also a parenthesis.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The third field of the file is the first here.
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: number(14)? + number(15)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }

    fn started(&self, proc: &Path) -> Option<f64> {
        let text = std::fs::read_to_string(proc.join("stat")).ok()?;
        let booted: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(booted + self.start_ticks as f64 / ticks_per_second())
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

/// The soft limit called `key`; `unlimited` is what an unsigned number of 64 bits can hold.
fn limit(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

/// A number of the line `IpExt:`, by the name that the line above has in its place.
fn ip_octets(text: &str, key: &str) -> Option<f64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_ascii_whitespace().position(|name| name == key)?;
    values.split_ascii_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(process: &Process) -> std::collections::BTreeMap<&'static str, f64> {
        process.values().into_iter().map(|((_, name, _), value)| (name, value)).collect()
    }

    #[test]
    fn the_files_are_read_as_the_kernel_writes_them() {
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
        let values = values(&Process::new(proc.path()).unwrap());
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
    fn without_proc_what_it_tells_is_left_out() {
        assert_eq!(values(&Process::new("/nonexistent").unwrap()), Default::default());
    }

    #[test]
    fn what_children_took_is_shown_once_it_is_known() {
        let of = |largest: ReadLargest| External::children(largest).unwrap().collect();
        assert_eq!(of(|| None), []);
        let shown = of(|| Some(4096));
        assert_eq!(
            (shown.len(), shown[0].name(), shown[0].get_metric()[0].get_gauge().get_value()),
            (1, CHILD.1, 4096.0)
        );
        let lost = External::lost_lines(|| 3).unwrap().collect();
        assert_eq!((lost[0].name(), lost[0].get_metric()[0].get_counter().get_value()), (LOST_LINES.1, 3.0));
    }

    #[test]
    fn this_process_tells_all_of_them() {
        assert_eq!(values(&Process::new("/proc").unwrap()).len(), ALL.len());
    }
}
