//! The monitor: a small single-threaded process that clears everything away when the runner goes, and runs a runtime's commands.
//!
//! It is started as the spawner of native sandboxes is, and for the same reasons: an init ends by itself when its runner is gone, but
//! not while it is frozen, and not before it was started. Containers of a runtime become its children when the command that made them
//! ends, so somebody reaps them, whoever the runner's own parent is.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use serde::{Deserialize, Serialize};

use crate::oci::runtime::{Command, Runtime};
use crate::{docker, sys, wire};

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
    },
    /// Clear away what is left of an earlier life.
    Clear {
        sequence: u64,
        life: PathBuf,
    },
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
    /// The command ended with this status, or minus a signal; or it was cleared away, less what failed.
    Done { sequence: u64, status: i32 },
}

/// Runs as the monitor on the socket that is our standard input.
pub fn run() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandbox monitor: {error}");
            1
        }
    };
    std::process::exit(code);
}

struct Monitor {
    socket: OwnedFd,
    setup: Setup,
    /// Absent where a daemon holds the containers.
    runtime: Option<Runtime>,
    running: HashMap<Pid, u64>,
}

fn serve() -> io::Result<()> {
    // A Ctrl-C or a service manager's SIGTERM means the runner, which drains; we end when it has.
    sys::ignore_signals(&[
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGPIPE,
        libc::SIGUSR2,
    ]);
    // Fails only for the leader of a group, which has what this is for.
    if let Err(error) = rustix::process::setsid()
        && error != rustix::io::Errno::PERM
    {
        return Err(error.into());
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 10)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    sys::place(null.as_fd(), 0)?;
    drop(null);
    rustix::thread::set_name(c"stoker-monitor")?;
    let (message, _) = wire::receive_packet::<ToMonitor>(socket.as_fd())?;
    let ToMonitor::Setup(setup) = message else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message must be the setup"));
    };
    let lock = File::options().create(true).truncate(false).write(true).open(&setup.lock)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
    wire::send_packet(socket.as_fd(), &FromMonitor::Ready, &[])?;

    let runtime = match &setup.engine {
        Engine::Runtime { life } => Runtime::of(life),
        Engine::Daemon(_) => None,
    };
    let mut monitor = Monitor { socket, setup, runtime, running: HashMap::new() };
    loop {
        let mut ready = [PollFd::new(&monitor.socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (asked, child) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        if child {
            while sys::next_signal(signals.as_fd()).is_some() {}
            monitor.reap();
        }
        if asked && !monitor.answer() {
            break;
        }
    }
    monitor.end(&signals);
    drop(lock);
    Ok(())
}

impl Monitor {
    /// Takes one request. `false` when the runner is gone, or speaks in tongues.
    fn answer(&mut self) -> bool {
        match wire::receive_packet(self.socket.as_fd()) {
            Ok((ToMonitor::Run { sequence, command }, _)) => {
                let absent = || io::Error::from(io::ErrorKind::NotFound);
                match self.runtime.as_ref().ok_or_else(absent).and_then(|runtime| runtime.start(&command)) {
                    Ok(pid) => {
                        self.running.insert(pid, sequence);
                        true
                    }
                    Err(error) => {
                        fs::write(&command.output, format!("start the runtime: {error}")).ok();
                        self.done(sequence, NOT_RUN)
                    }
                }
            }
            Ok((ToMonitor::Clear { sequence, life }, _)) => {
                let left = Runtime::of(&life).map_or(0, |runtime| runtime.clear());
                self.reap();
                self.done(sequence, left)
            }
            Ok((ToMonitor::Setup(_), _)) | Err(_) => false,
        }
    }

    fn done(&self, sequence: u64, status: i32) -> bool {
        wire::send_packet(self.socket.as_fd(), &FromMonitor::Done { sequence, status }, &[]).is_ok()
    }

    /// Collects what has ended: commands, and the containers that they left to us.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(sequence) = self.running.remove(&pid) {
                let signal = status.terminating_signal().map_or(NOT_RUN, |signal| -signal);
                // Nobody there to hear it shows on the socket, too.
                self.done(sequence, status.exit_status().unwrap_or(signal));
            }
        }
    }

    /// The runner is gone: nothing of it stays.
    fn end(mut self, signals: &OwnedFd) {
        // A command cut off would leave what only the runtime itself can find: it may finish, within reason.
        let begun = Instant::now();
        while !self.running.is_empty() {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&limit)).ok();
            while sys::next_signal(signals.as_fd()).is_some() {}
            self.reap();
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
                runtime.clear();
                runtime.remove_cgroups();
            }
            (Engine::Runtime { .. }, None) => {}
        }
        for path in &self.setup.remove {
            let removed = match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
                Ok(_) => fs::remove_file(path),
                Err(_) => continue,
            };
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                eprintln!("sandbox monitor: remove {}: {error}", path.display());
            }
        }
    }
}
