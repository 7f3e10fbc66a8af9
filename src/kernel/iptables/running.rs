//! The programs that run now, so that they end with the agent: one that hangs must not outlive it or hold
//! it up, a restore that has begun is left to end.
#![allow(clippy::disallowed_methods, reason = "looks in /proc for programs that have to be ended")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// All programs of this process.
pub(super) static PROGRAMS: Running = Running::new();

/// How often it is looked whether programs that were killed have ended.
const POLL: Duration = Duration::from_millis(5);

/// What a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Reads, or does something small that may be done half: killed without regret.
    Reads,
    /// Changes tables, each wholly or not at all.
    Restores,
}

/// How a program is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// It leads this process group, and has not been waited for.
    Group(Pid),
    /// It is a child of this thread.
    ChildrenOf(Pid),
}

/// A register of programs.
pub(super) struct Running(Mutex<State>);

struct State {
    /// No more are started.
    is_ending: bool,
    next: u64,
    programs: BTreeMap<u64, (Purpose, Option<Target>)>,
}

impl Running {
    pub(super) const fn new() -> Running {
        Running(Mutex::new(State { is_ending: false, next: 0, programs: BTreeMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a program that is about to be started; an error once the agent is ending.
    pub(super) fn register(&'static self, purpose: Purpose) -> io::Result<Registered> {
        let mut state = self.state();
        if state.is_ending {
            return Err(io::Error::other("the agent is ending"));
        }
        state.next += 1;
        let id = state.next;
        state.programs.insert(id, (purpose, None));
        Ok(Registered { programs: self, id })
    }

    /// Has no program started any more, and kills those that do not restore.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_ending = true;
        state.kill(|purpose| purpose == Purpose::Reads);
    }

    /// Whether any restore runs.
    pub(super) fn is_restoring(&self) -> bool {
        self.state().programs.values().any(|(purpose, _)| *purpose == Purpose::Restores)
    }

    /// Has no program started any more, kills all, and waits until they have ended, no longer than `limit`.
    pub(super) fn kill_all(&self, limit: Duration) {
        let until = Instant::now() + limit;
        loop {
            let mut state = self.state();
            state.is_ending = true;
            // Once more each time: one may have been about to start.
            state.kill(|_| true);
            if state.programs.is_empty() || Instant::now() >= until {
                return;
            }
            drop(state);
            std::thread::sleep(POLL);
        }
    }

    /// Whether the agent is ending.
    pub(super) fn is_ending(&self) -> bool {
        self.state().is_ending
    }
}

impl State {
    fn kill(&self, is_meant: impl Fn(Purpose) -> bool) {
        for (_, target) in self.programs.values().filter(|(purpose, _)| is_meant(*purpose)) {
            // Those that are no more are no concern.
            match target {
                Some(Target::Group(leader)) => drop(killpg(*leader, Signal::SIGKILL)),
                Some(Target::ChildrenOf(thread)) => drop(kill_children(*thread)),
                None => {}
            }
        }
    }
}

/// A program that is registered for as long as this lives: until just before it is waited for, as its
/// number may be another's then.
pub(super) struct Registered {
    programs: &'static Running,
    id: u64,
}

impl Registered {
    /// It was started, and leads the process group of its own number.
    pub(super) fn leads(&self, leader: u32) {
        self.found(Target::Group(Pid::from_raw(leader.cast_signed())));
    }

    /// It is started by the thread of this number.
    pub(super) fn is_child_of(&self, thread: Pid) {
        self.found(Target::ChildrenOf(thread));
    }

    fn found(&self, target: Target) {
        let mut state = self.programs.state();
        if let Some((_, place)) = state.programs.get_mut(&self.id) {
            *place = Some(target);
        }
        // It was about to start when the others were killed.
        if state.is_ending {
            state.kill(|purpose| purpose == Purpose::Reads);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.programs.state().programs.remove(&self.id);
    }
}

/// Kills what the thread of this number started and has not waited for; whether there was anything. A
/// kernel without `CONFIG_PROC_CHILDREN` does not tell.
pub(super) fn kill_children(thread: Pid) -> bool {
    let children = std::fs::read_to_string(format!("/proc/self/task/{thread}/children"));
    let children = children.unwrap_or_default();
    let numbers = children.split_whitespace().filter_map(|number| number.parse().ok());
    // Not `any`: all of them.
    numbers.filter(|number| kill(Pid::from_raw(*number), Signal::SIGKILL).is_ok()).count() > 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use nix::unistd::gettid;

    use super::*;

    fn running() -> &'static Running {
        Box::leak(Box::new(Running::new()))
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    fn started(programs: &'static Running, purpose: Purpose) -> (Child, Registered) {
        let registered = programs.register(purpose).unwrap();
        let child = sleeper();
        registered.leads(child.id());
        (child, registered)
    }

    #[test]
    fn when_the_agent_ends_readers_are_killed_restores_go_on_and_nothing_is_started() {
        let programs = running();
        let (mut reader, _of_reader) = started(programs, Purpose::Reads);
        let (mut restore, of_restore) = started(programs, Purpose::Restores);
        let late = programs.register(Purpose::Reads).unwrap();
        programs.end();
        assert!(!reader.wait().unwrap().success());
        assert!(programs.is_ending() && programs.is_restoring());
        assert_eq!(restore.try_wait().unwrap(), None, "a restore that has begun is left to end");
        let refused = programs.register(Purpose::Restores).err().expect("nothing is started any more");
        assert_eq!(refused.to_string(), "the agent is ending");
        let mut child = sleeper();
        late.leads(child.id());
        assert!(!child.wait().unwrap().success(), "it was about to start");
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
    fn a_program_that_a_thread_waits_for_is_killed_with_the_others() {
        let programs = running();
        let registered = programs.register(Purpose::Reads).unwrap();
        let waiting = std::thread::spawn(move || {
            registered.is_child_of(gettid());
            Command::new("sleep").arg("600").status().unwrap().success()
        });
        // Also when it starts only now.
        programs.kill_all(Duration::from_secs(60));
        assert!(!waiting.join().unwrap());
    }

    #[test]
    fn a_thread_without_children_has_nobody_to_kill() {
        assert!(!std::thread::spawn(|| kill_children(gettid())).join().unwrap());
        assert!(!kill_children(Pid::from_raw(i32::MAX)));
    }
}
