//! Runs a program under ptrace, with every process and thread that it starts, and reports each system call by which
//! it could change the node: requests to netfilter that are not known to read, options that replace tables, files
//! opened for writing, and a few calls that nothing that only reads makes.
//!
//! Requests are allowed by a list, so one that is new to this file counts as a write.

use std::collections::BTreeSet;
use std::io::{IoSliceMut, Write};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What a program and its child processes did.
#[derive(Debug, Default)]
pub struct Watched {
    /// The exit status of the program; `None` when a signal ended it.
    pub status: Option<i32>,
    /// Each system call that writes, with its arguments.
    pub writes: BTreeSet<String>,
    /// How many requests to netfilter only read.
    pub n_reads: usize,
    /// How many processes ran: the program itself and those that it started.
    pub n_processes: usize,
}

/// Files that may be opened for writing: what is written there is nowhere.
const SINKS: [&str; 2] = ["/dev/null", "/dev/tty"];

/// Runs `command` to its end. `during` runs beside it, with its process ID; if it panics, the program is killed.
#[allow(clippy::zombie_processes, reason = "`trace` waits for it, as for every process that it traces")]
pub fn watch(command: &[&str], during: impl FnOnce(Pid) + Send) -> Watched {
    // The shell waits for a line, so that no system call of the program is missed.
    let mut shell = Command::new("sh");
    shell.args(["-c", "read -r go; exec \"$@\" < /dev/null", "sh"]).args(command);
    let mut child = shell.stdin(Stdio::piped()).spawn().expect("sh runs");
    let pid = Pid::from_raw(child.id().cast_signed());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).expect("root may trace its own child");
    ptrace::interrupt(pid).expect("a running process");
    child.stdin.take().expect("piped").write_all(b"go\n").expect("it waits for a line");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(pid)));
            if let Err(panic) = outcome {
                let _ = kill(pid, Signal::SIGKILL);
                std::panic::resume_unwind(panic);
            }
        });
        trace(pid)
    })
}

fn trace(program: Pid) -> Watched {
    let mut watched = Watched::default();
    let mut is_running = false;
    loop {
        // Only children of this thread: other tests have children of their own.
        let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return watched,
            Err(error) => panic!("waitpid: {error}"),
        };
        let (pid, signal) = match status {
            WaitStatus::PtraceSyscall(pid) => {
                if is_running {
                    examine(pid, &mut watched);
                }
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, _, event) => {
                if event == libc::PTRACE_EVENT_EXEC {
                    // From the shell's exec on.
                    is_running = true;
                    watched.n_processes += 1;
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => {
                (pid, Some(signal).filter(|signal| *signal != Signal::SIGTRAP))
            }
            WaitStatus::Exited(pid, status) => {
                if pid == program {
                    watched.status = Some(status);
                }
                continue;
            }
            _ => continue,
        };
        match ptrace::syscall(pid, signal) {
            // Killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("ptrace: {error}"),
        }
    }
}

/// Looks at a system call on its entry.
fn examine(pid: Pid, watched: &mut Watched) {
    let Some((number, arguments)) = entered(pid) else { return };
    match call(pid, number, arguments) {
        Some(Call::Writes(text)) => drop(watched.writes.insert(text)),
        Some(Call::Requests { n_reads, writes }) => {
            watched.n_reads += n_reads;
            watched.writes.extend(writes);
        }
        None => {}
    }
}

/// Number and arguments of the system call that `pid` enters; `None` on its return.
#[allow(unsafe_code, reason = "the field of a union that its tag names")]
fn entered(pid: Pid) -> Option<(i64, [u64; 6])> {
    let call = ptrace::syscall_info(pid).ok().filter(|call| call.op == libc::PTRACE_SYSCALL_INFO_ENTRY)?;
    // SAFETY: `op` says that `entry` is the field that the kernel filled.
    let entry = unsafe { call.u.entry };
    Some((entry.nr.cast_signed(), entry.args))
}

/// A system call that matters.
enum Call {
    /// It may change the node.
    Writes(String),
    /// It sends requests over netlink.
    Requests { n_reads: usize, writes: Vec<String> },
}

/// Calls that a program that only reads does not make. `io_uring` would hide calls from this watch.
const FORBIDDEN: &[(i64, &str)] = &[
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_truncate, "truncate"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_init_module, "init_module"),
    (libc::SYS_finit_module, "finit_module"),
    (libc::SYS_delete_module, "delete_module"),
    (libc::SYS_bpf, "bpf"),
    (libc::SYS_io_uring_setup, "io_uring_setup"),
    (libc::SYS_sethostname, "sethostname"),
];

fn call(pid: Pid, number: i64, arguments: [u64; 6]) -> Option<Call> {
    let [first, second, third, ..] = arguments;
    let descriptor = first as i32;
    match number {
        libc::SYS_openat => opened(pid, second, third as i32).map(Call::Writes),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => opened(pid, first, second as i32).map(Call::Writes),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_creat => opened(pid, first, libc::O_WRONLY).map(Call::Writes),
        // How an openat2 opens stands in memory; the flags are its first field.
        libc::SYS_openat2 => {
            let flags = read(pid, third, 8).try_into().map_or(0, u64::from_ne_bytes);
            opened(pid, second, flags as i32).map(Call::Writes)
        }
        libc::SYS_setsockopt => {
            let is_ip = [libc::SOL_IP, libc::IPPROTO_IPV6].contains(&(second as i32));
            // IPT_SO_SET_REPLACE, IPT_SO_SET_ADD_COUNTERS and all of their range.
            (is_ip && third as i32 >= 64 && third as i32 <= 96)
                .then(|| Call::Writes(format!("setsockopt(level {second}, option {third})")))
        }
        libc::SYS_sendto | libc::SYS_write => requests(pid, descriptor, &[(second, third)]),
        libc::SYS_sendmsg => requests(pid, descriptor, &buffers_of_message(pid, second)),
        libc::SYS_writev | libc::SYS_pwritev => requests(pid, descriptor, &buffers(pid, second, third)),
        libc::SYS_sendmmsg => {
            // struct mmsghdr: a msghdr of 56 bytes, a length, padding.
            let each = |n| buffers_of_message(pid, second + n * 64);
            requests(pid, descriptor, &(0..third.min(1024)).flat_map(each).collect::<Vec<_>>())
        }
        _ => {
            let (_, name) = FORBIDDEN.iter().find(|(forbidden, _)| *forbidden == number)?;
            Some(Call::Writes((*name).to_owned()))
        }
    }
}

/// A file that is opened so that it could be written.
fn opened(pid: Pid, path: u64, flags: i32) -> Option<String> {
    let is_written =
        flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let path = text(pid, path);
    (is_written && !SINKS.contains(&path.as_str())).then(|| format!("open({path:?}) for writing"))
}

/// The bytes that a `struct msghdr` points to: address and length of each part.
fn buffers_of_message(pid: Pid, header: u64) -> Vec<(u64, u64)> {
    // The parts and their number are its third and fourth word.
    let words = read(pid, header, 32);
    let word = |n: usize| {
        words.get(n * 8..n * 8 + 8).map_or(0, |word| u64::from_ne_bytes(word.try_into().expect("8")))
    };
    buffers(pid, word(2), word(3))
}

/// The parts of a `struct iovec` array.
fn buffers(pid: Pid, parts: u64, n: u64) -> Vec<(u64, u64)> {
    let words = read(pid, parts, n.min(1024) * 16);
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
    words.chunks_exact(16).map(|part| (word(&part[..8]), word(&part[8..]))).collect()
}

/// The requests in what is sent to `descriptor`; `None` if that is not netlink.
fn requests(pid: Pid, descriptor: i32, parts: &[(u64, u64)]) -> Option<Call> {
    let protocol = netlink_protocol(pid, descriptor)?;
    let data: Vec<u8> = parts.iter().flat_map(|(at, length)| read(pid, *at, *length)).collect();
    let (mut n_reads, mut writes) = (0, Vec::new());
    let mut rest = &data[..];
    while let Some((header, _)) = rest.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        // The kernel ignores the rest as well.
        if length < header.len() || length > rest.len() {
            break;
        }
        match is_read(protocol, kind, rest.get(16)) {
            true => n_reads += usize::from(protocol == libc::NETLINK_NETFILTER),
            false => writes.push(format!("netlink {protocol} message {kind:#x}")),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Call::Requests { n_reads, writes })
}

/// Messages of nfnetlink that read: subsystem and message.
const READS: &[(u16, &[u16])] = &[
    // nf_tables: tables, chains, rules, sets, elements, generation, objects, flow tables. Not the variants that reset
    // counters.
    (10, &[1, 4, 7, 10, 13, 16, 19, 23]),
    // nft_compat: revisions of extensions.
    (11, &[0]),
    // nfacct: counters, without resetting them.
    (7, &[1]),
    // ipset: protocol, list, save, header, type, by name and by index.
    (6, &[1, 7, 8, 12, 13, 14, 15]),
    // conntrack: entries and statistics.
    (1, &[1, 4, 5]),
];

/// Whether a message with this type, and this first byte after its header, only reads.
fn is_read(protocol: i32, kind: u16, first: Option<&u8>) -> bool {
    match protocol {
        libc::NETLINK_NETFILTER => READS
            .iter()
            .any(|(subsystem, messages)| kind >> 8 == *subsystem && messages.contains(&(kind & 0xff))),
        // Of each four messages of rtnetlink the third gets.
        libc::NETLINK_ROUTE => kind >= 16 && kind & 3 == 2,
        // The controller's look-ups; IPVS's GET messages.
        libc::NETLINK_GENERIC => kind == 16 || first.is_some_and(|command| [4, 8, 12, 13].contains(command)),
        _ => false,
    }
}

/// The protocol of a netlink socket; `None` for any other descriptor.
fn netlink_protocol(pid: Pid, descriptor: i32) -> Option<i32> {
    let link = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}")).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).ok()?;
    // `sk Eth Pid Groups ... Inode`.
    sockets.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        (columns.last() == Some(&inode.as_str())).then(|| columns.get(1)?.parse().ok())?
    })
}

/// `length` bytes of the memory of `pid`, fewer where it ends.
fn read(pid: Pid, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length.min(64 << 20) as usize];
    let remote = [RemoteIoVec { base: at as usize, len: bytes.len() }];
    let n = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).unwrap_or(0);
    bytes.truncate(n);
    bytes
}

/// The text at `at` up to its NUL. A read stops at the end of a page that is the last one mapped.
fn text(pid: Pid, at: u64) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < 4096 {
        let next = at + bytes.len() as u64;
        let part = read(pid, next, 256 - next % 256);
        let end = part.iter().position(|byte| *byte == 0);
        bytes.extend_from_slice(&part[..end.unwrap_or(part.len())]);
        if end.is_some() || part.is_empty() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::namespace::in_namespace;
    use super::*;

    /// The writes of a shell command.
    fn writes(command: &str) -> Vec<String> {
        let watched = watch(&["sh", "-c", command], |_| {});
        assert_eq!(watched.status, Some(0), "{command}");
        watched.writes.into_iter().collect()
    }

    #[test]
    fn each_way_to_write_is_seen() {
        in_namespace(|| {
            let check = |command: &str, expected: &str| {
                let writes = writes(command);
                assert!(writes.iter().any(|write| write.contains(expected)), "{command}: {writes:?}");
            };
            check("iptables-nft -A INPUT -j ACCEPT", "netlink 12 message 0xa06");
            check("iptables-legacy -A INPUT -j ACCEPT", "setsockopt(level 0, option 64)");
            check("ip6tables-legacy -A INPUT -j ACCEPT", "setsockopt(level 41, option 64)");
            check(
                "printf '*nat\\n:X - [0:0]\\nCOMMIT\\n' | iptables-nft-restore -n",
                "netlink 12 message 0xa03",
            );
            check("iptables-nft -Z", "netlink 12 message");
            check("ip link set lo up", "netlink 0 message 0x10");
            check(
                "echo 1 > /proc/sys/net/ipv4/ip_forward",
                "open(\"/proc/sys/net/ipv4/ip_forward\") for writing",
            );
            check("mkdir /run/x; rm -r /run/x", "unlinkat");
            // Also of a child that a child left behind.
            check("(iptables-nft -A OUTPUT -j ACCEPT &) ; sleep 0.3", "netlink 12 message 0xa06");
        });
    }

    #[test]
    fn reading_is_no_write() {
        in_namespace(|| {
            writes("iptables-nft -N X; iptables-legacy -N X");
            for command in
                ["iptables-nft-save", "iptables-legacy-save", "ip addr", "cat /proc/sys/net/ipv4/ip_forward"]
            {
                assert_eq!(writes(command), [""; 0], "{command}");
            }
            let watched = watch(&["iptables-nft-save"], |_| {});
            assert!(watched.n_reads > 3 && watched.n_processes > 0, "{watched:?}");
        });
    }
}
