//! The registry of running programs, so that they end with the agent. A program that hangs must neither
//! outlive nor block the agent; a restore that has begun may end on its own.
#![allow(clippy::disallowed_methods, reason = "finds child processes in /proc")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// All programs of this process.
pub(super) static PROCESSES: ProcessRegistry = ProcessRegistry::new();

/// How often the registry is checked for killed programs that have not ended.
const POLL: Duration = Duration::from_millis(5);

/// What a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProcessRole {
    /// Reads, or makes a small change that may stay incomplete: it may be killed at any time.
    Reads,
    /// Changes tables, each completely or not at all.
    Restores,
}

/// How a program can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KillTarget {
    /// It leads this process group, and has not been waited for.
    Group(Pid),
    /// It is a child of this thread.
    ChildrenOf(Pid),
}

/// A registry of programs.
pub(super) struct ProcessRegistry(Mutex<RegistryState>);

struct RegistryState {
    /// No more programs are started.
    is_shutting_down: bool,
    next: u64,
    programs: BTreeMap<u64, (ProcessRole, Option<KillTarget>)>,
}

impl ProcessRegistry {
    pub(super) const fn new() -> ProcessRegistry {
        ProcessRegistry(Mutex::new(RegistryState {
            is_shutting_down: false,
            next: 0,
            programs: BTreeMap::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, RegistryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a program before it is started; an error once the agent is shutting down.
    pub(super) fn register(&'static self, role: ProcessRole) -> io::Result<Registration> {
        let mut state = self.state();
        if state.is_shutting_down {
            return Err(io::Error::other("the agent is shutting down"));
        }
        state.next += 1;
        let id = state.next;
        state.programs.insert(id, (role, None));
        Ok(Registration { programs: self, id })
    }

    /// Starts no more programs, and kills those that only read.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_shutting_down = true;
        state.kill(|role| role == ProcessRole::Reads);
    }

    /// Whether a restore is running.
    pub(super) fn is_restoring(&self) -> bool {
        self.state().programs.values().any(|(role, _)| *role == ProcessRole::Restores)
    }

    /// Starts no more programs, kills all of them, and waits until they have ended, for `limit` at most.
    pub(super) fn kill_all(&self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            let mut state = self.state();
            state.is_shutting_down = true;
            // Repeated each time, since a program may just be starting.
            state.kill(|_| true);
            if state.programs.is_empty() || Instant::now() >= until {
                return;
            }
            drop(state);
            std::thread::sleep(POLL);
        }
    }

    /// Whether the agent is shutting down.
    pub(super) fn is_shutting_down(&self) -> bool {
        self.state().is_shutting_down
    }
}

impl RegistryState {
    fn kill(&self, is_selected: impl Fn(ProcessRole) -> bool) {
        for (_, target) in self.programs.values().filter(|(role, _)| is_selected(*role)) {
            // Programs that have already ended cause no error.
            match target {
                Some(KillTarget::Group(leader)) => drop(killpg(*leader, Signal::SIGKILL)),
                Some(KillTarget::ChildrenOf(thread)) => drop(kill_children(*thread)),
                None => {}
            }
        }
    }
}

/// The registration of one program. Dropped just before the program is waited for, since its process ID may
/// be reused after that.
pub(super) struct Registration {
    programs: &'static ProcessRegistry,
    id: u64,
}

impl Registration {
    /// Records that the program was started and leads the process group with its own ID.
    pub(super) fn set_group(&self, leader: u32) {
        self.set_target(KillTarget::Group(Pid::from_raw(leader.cast_signed())));
    }

    /// Records that the thread with this ID starts the program.
    pub(super) fn set_parent_thread(&self, thread: Pid) {
        self.set_target(KillTarget::ChildrenOf(thread));
    }

    fn set_target(&self, target: KillTarget) {
        let mut state = self.programs.state();
        if let Some((_, current)) = state.programs.get_mut(&self.id) {
            *current = Some(target);
        }
        // The program was starting when the others were killed.
        if state.is_shutting_down {
            state.kill(|role| role == ProcessRole::Reads);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.programs.state().programs.remove(&self.id);
    }
}

/// Kills the unreaped children of this thread; returns whether there was any. A kernel without
/// `CONFIG_PROC_CHILDREN` does not list them.
pub(super) fn kill_children(thread: Pid) -> bool {
    let children = std::fs::read_to_string(format!("/proc/self/task/{thread}/children"));
    let children = children.unwrap_or_default();
    let numbers = children.split_whitespace().filter_map(|number| number.parse().ok());
    // Not `any`, since all of them must be killed.
    numbers.filter(|number| kill(Pid::from_raw(*number), Signal::SIGKILL).is_ok()).count() > 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use nix::unistd::gettid;

    use super::*;

    fn process_registry() -> &'static ProcessRegistry {
        Box::leak(Box::new(ProcessRegistry::new()))
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    fn started(programs: &'static ProcessRegistry, role: ProcessRole) -> (Child, Registration) {
        let registration = programs.register(role).unwrap();
        let child = sleeper();
        registration.set_group(child.id());
        (child, registration)
    }

    #[test]
    fn at_shutdown_readers_are_killed_restores_continue_and_nothing_is_started() {
        let programs = process_registry();
        let (mut reader, _of_reader) = started(programs, ProcessRole::Reads);
        let (mut restore, of_restore) = started(programs, ProcessRole::Restores);
        let late = programs.register(ProcessRole::Reads).unwrap();
        programs.end();
        assert!(!reader.wait().unwrap().success());
        assert!(programs.is_shutting_down() && programs.is_restoring());
        assert_eq!(restore.try_wait().unwrap(), None, "a restore that has begun continues");
        let rejected = programs.register(ProcessRole::Restores).err().expect("no more programs are started");
        assert_eq!(rejected.to_string(), "the agent is shutting down");
        let mut child = sleeper();
        late.set_group(child.id());
        assert!(!child.wait().unwrap().success(), "it was starting");
        let waiting = std::thread::spawn(move || {
            let status = restore.wait().unwrap();
            drop(of_restore);
            status.success()
        });
        programs.kill_all(Duration::from_millis(100));
        assert!(!waiting.join().unwrap());
        assert!(!programs.is_restoring());
    }

    #[test]
    fn a_program_started_by_a_thread_is_killed_with_the_others() {
        let programs = process_registry();
        let registration = programs.register(ProcessRole::Reads).unwrap();
        let waiting = std::thread::spawn(move || {
            registration.set_parent_thread(gettid());
            Command::new("sleep").arg("600").status().unwrap().success()
        });
        // Also when it starts only now.
        programs.kill_all(Duration::from_secs(60));
        assert!(!waiting.join().unwrap());
    }

    #[test]
    fn a_thread_without_children_has_nothing_to_kill() {
        assert!(!std::thread::spawn(|| kill_children(gettid())).join().unwrap());
        assert!(!kill_children(Pid::from_raw(i32::MAX)));
    }
}
