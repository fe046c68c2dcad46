//! The spawner's own work: clone on request, reap, and kill everything at the end.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, wait};

use super::client;
use crate::supervisor::server::{Runner, Supervisor};
use crate::sys::{self, Side};
use crate::wire::{FromSpawner, Setup, ToSpawner};
use crate::{cgroup, init};

/// Numbers under which a cloned init finds its descriptors.
pub const CONTROL: i32 = 3;
pub const ALIVE: i32 = 4;

pub struct Spawner {
    setup: Setup,
    inits: HashMap<Pid, OwnedFd>,
    /// Its other end is only ours: when it closes, we are gone, and every init knows.
    alive: OwnedFd,
    /// Held for its end alone.
    _held: OwnedFd,
}

impl Supervisor for Spawner {
    type Role = client::Spawner;

    fn begin(setup: Setup) -> io::Result<Self> {
        init::ahead();
        if !setup.isolate {
            // What a plain process left running becomes our child, and is found and killed.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        // Away from the low numbers, which belong to what is cloned.
        let (alive, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let alive = rustix::io::fcntl_dupfd_cloexec(&alive, 10)?;
        let held = rustix::io::fcntl_dupfd_cloexec(&held, 10)?;
        Ok(Self { setup, inits: HashMap::new(), alive, _held: held })
    }

    fn answer(&mut self, order: ToSpawner, descriptors: Vec<OwnedFd>, runner: &Runner) -> bool {
        let ToSpawner::Clone { sequence, cgroup } = order else { return false };
        let mut descriptors = descriptors.into_iter();
        let (control, directory) = (descriptors.next(), descriptors.next());
        let Some(control) = control.filter(|_| directory.is_some() == cgroup) else { return false };
        let mut namespaces = 0;
        if self.setup.isolate {
            namespaces |= libc::CLONE_NEWPID;
        }
        if self.setup.rootless {
            namespaces |= libc::CLONE_NEWUSER;
        }
        match sys::clone(namespaces, directory.as_ref().map(AsFd::as_fd)) {
            Ok(Side::Child) => {
                // Everything else of the spawner (other sandboxes' descriptors above all) is none of its business.
                if sys::place(control.as_fd(), CONTROL).and(sys::place(self.alive.as_fd(), ALIVE)).is_err() {
                    sys::exit(70);
                }
                sys::close_from(ALIVE as u32 + 1);
                init::run();
            }
            Ok(Side::Parent { pid, pidfd }) => {
                let word = FromSpawner::Cloned { sequence, pid: pid.as_raw_nonzero().get() };
                let told = runner.tell(&word, &[pidfd.as_fd()]);
                self.inits.insert(pid, pidfd);
                told
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                runner.tell(&FromSpawner::Failed { sequence, errno }, &[])
            }
        }
    }

    fn reap(&mut self, _runner: &Runner) {
        while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
            self.inits.remove(&pid);
        }
        if !self.setup.isolate {
            self.kill_strays();
        }
    }

    fn end(&mut self, _runner: &Runner, _signals: BorrowedFd<'_>) {
        for base in &self.setup.cgroups {
            cgroup::kill_all(base);
        }
        for pidfd in self.inits.values() {
            if self.setup.isolate {
                // Gone already is as good.
                pidfd_send_signal(pidfd.as_fd(), Signal::KILL).ok();
            }
        }
        // Plain processes: an init that sees its control stream close kills what it has, and ends. It would not see it
        // while stopped.
        while !self.inits.is_empty() {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, _))) => {
                    self.inits.remove(&pid);
                }
                Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if !self.setup.isolate {
            loop {
                self.kill_strays();
                match wait(WaitOptions::empty()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        for base in &self.setup.cgroups {
            if let Err(error) = cgroup::remove_tree(base) {
                eprintln!("sandbox spawner: remove {}: {error}", base.display());
            }
        }
    }

    fn setup(&self) -> &Setup {
        &self.setup
    }
}

impl Spawner {
    /// Kills children that we did not make: what an init that was killed itself left behind.
    fn kill_strays(&self) {
        for pid in init::processes::children() {
            if let Some(pid) = Pid::from_raw(pid)
                && !self.inits.contains_key(&pid)
            {
                // Gone already is as good.
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}
