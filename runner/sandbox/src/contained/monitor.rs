//! The monitor: a small single-threaded process that clears everything away when the runner goes, and runs a runtime's commands.
//!
//! An init ends by itself when its runner is gone, but not while it is frozen, and not before it was started. Containers of a runtime become
//! the monitor's children when the command that made them ends: somebody reaps them, whoever the runner's own parent is, and can tell how
//! they ended.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use serde::{Deserialize, Serialize};

use super::client;
use crate::oci::runtime::{self, Command, Runtime};
use crate::supervisor::server::{Runner, Supervisor};
use crate::{docker, sys};

/// The last argument of a program that is to be the monitor.
pub const ARGUMENT: &str = "__stoker-monitor";
/// Exit status of a command that could not be run, as shells have it.
const NOT_RUN: i32 = 127;
/// How long a command may go on when the runner is gone, before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runner → monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToMonitor {
    /// First message: what to clear away when the runner is gone.
    Setup(Setup),
    Run {
        sequence: u64,
        command: Command,
        /// It starts a container, of whose init's end is to be told.
        #[serde(default)]
        watch: Option<Watch>,
    },
    /// Clear away what is left of an earlier life.
    Clear { sequence: u64, life: PathBuf },
}

/// The init of a container that a command is to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Watch {
    /// Under which its end is told.
    pub sequence: u64,
    /// Where the command writes its number.
    pub pid_file: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Held for as long as the monitor lives.
    pub lock: PathBuf,
    pub engine: Engine,
    /// Directories and files of this runner, removed at the end.
    pub remove: Vec<PathBuf>,
}

/// Who holds the containers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Engine {
    /// A runtime, by way of the monitor; what is known of it was written down in this directory.
    Runtime {
        life: PathBuf,
    },
    Daemon(Daemon),
}

/// A daemon, and the containers that are this life's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Daemon {
    pub socket: PathBuf,
    /// `name=value`.
    pub label: String,
}

/// Monitor → runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromMonitor {
    /// Set up: the lock is held.
    Ready,
    /// The command, or the init of its container, ended with this status, or minus a signal; or it was cleared away, less what failed.
    Done { sequence: u64, status: i32 },
}

pub struct Monitor {
    setup: Setup,
    /// Absent where a daemon holds the containers.
    runtime: Option<Runtime>,
    running: HashMap<Pid, Running>,
    /// Inits whose end is to be told, and under which number.
    inits: HashMap<Pid, u64>,
}

/// A command under way.
struct Running {
    sequence: u64,
    watch: Option<Watch>,
    /// Who else has ended meanwhile, and how: perhaps the init of its container, which becomes our child before the command is done.
    strays: Vec<(Pid, i32)>,
}

impl Supervisor for Monitor {
    type Role = client::Monitor;

    fn begin(setup: Setup) -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let runtime = match &setup.engine {
            Engine::Runtime { life } => Runtime::of(life),
            Engine::Daemon(_) => None,
        };
        Ok(Self { setup, runtime, running: HashMap::new(), inits: HashMap::new() })
    }

    fn answer(&mut self, order: ToMonitor, handed: Vec<OwnedFd>, runner: &Runner) -> bool {
        match order {
            ToMonitor::Run { sequence, command, watch } => {
                let absent = || io::Error::from(io::ErrorKind::NotFound);
                let runtime = self.runtime.as_ref().ok_or_else(absent);
                match runtime.and_then(|runtime| runtime.start(&command, handed.first())) {
                    Ok(pid) => {
                        self.running.insert(pid, Running { sequence, watch, strays: Vec::new() });
                        true
                    }
                    Err(error) => {
                        fs::write(&command.output, format!("start the runtime: {error}")).ok();
                        done(sequence, NOT_RUN, runner)
                    }
                }
            }
            ToMonitor::Clear { sequence, life } => {
                let clear = |runtime: Runtime| runtime.clear(|pid, status| self.ended(pid, status, runner));
                let left = Runtime::of(&life).map_or(0, clear);
                self.reap(runner);
                done(sequence, left, runner)
            }
            ToMonitor::Setup(_) => false,
        }
    }

    /// Collects what has ended: commands, and the containers that they left to us.
    fn reap(&mut self, runner: &Runner) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.ended(pid, status, runner);
        }
    }

    /// The runner is gone: nothing of it stays.
    fn end(&mut self, runner: &Runner, signals: BorrowedFd<'_>) {
        // A command cut off would leave what only the runtime itself can find: it may finish, within reason.
        let begun = Instant::now();
        while !self.running.is_empty() {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            poll(&mut [PollFd::from_borrowed_fd(signals, PollFlags::IN)], Some(&limit)).ok();
            while sys::next_signal(signals).is_some() {}
            self.reap(runner);
            if left.is_zero() {
                for pid in self.running.keys() {
                    kill_process(*pid, Signal::KILL).ok();
                }
                break;
            }
        }
        match (&self.setup.engine, &self.runtime) {
            (Engine::Daemon(daemon), _) => {
                if let Err(error) = docker::clear(daemon) {
                    eprintln!("sandbox monitor: remove the containers of {}: {error}", daemon.label);
                }
            }
            (Engine::Runtime { .. }, Some(runtime)) => {
                runtime.clear(|_, _| {});
                runtime.remove_cgroups();
            }
            (Engine::Runtime { .. }, None) => {}
        }
    }

    fn setup(&self) -> &Setup {
        &self.setup
    }
}

impl Monitor {
    /// Tells whom it concerns.
    fn ended(&mut self, pid: Pid, status: WaitStatus, runner: &Runner) {
        let status = told(status);
        if let Some(command) = self.running.remove(&pid) {
            if status == 0 {
                self.watch(&command, runner);
            }
            done(command.sequence, status, runner);
        } else if let Some(sequence) = self.inits.remove(&pid) {
            done(sequence, status, runner);
        } else {
            for command in self.running.values_mut().filter(|command| command.watch.is_some()) {
                command.strays.push((pid, status));
            }
        }
    }

    /// From here on, or at once, the end of the container's init is told that this command has started.
    fn watch(&mut self, command: &Running, runner: &Runner) {
        let Some(Watch { sequence, ref pid_file }) = command.watch else { return };
        let Some(init) = runtime::number(pid_file) else { return };
        match command.strays.iter().find(|(stray, _)| *stray == init) {
            Some((_, status)) => {
                done(sequence, *status, runner);
            }
            None => {
                self.inits.insert(init, sequence);
            }
        }
    }
}

fn done(sequence: u64, status: i32, runner: &Runner) -> bool {
    runner.tell(&FromMonitor::Done { sequence, status }, &[])
}

/// An exit status, or minus the signal that was in its place.
fn told(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal().map_or(NOT_RUN, |signal| -signal);
    status.exit_status().unwrap_or(signal)
}
