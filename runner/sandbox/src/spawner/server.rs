//! The spawner's own life: clone on request, reap, and clear everything away at the end.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, wait};

use crate::sys::{self, Side};
use crate::wire::{self, FromSpawner, Setup, ToSpawner};
use crate::{cgroup, init};

/// Numbers under which a cloned init finds its descriptors.
pub const CONTROL: i32 = 3;
pub const ALIVE: i32 = 4;

/// Runs as the spawner on the socket that is our standard input.
pub fn run() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sandbox spawner: {error}");
            1
        }
    };
    std::process::exit(code);
}

struct Spawner {
    socket: OwnedFd,
    setup: Setup,
    inits: HashMap<Pid, OwnedFd>,
    /// Its other end is only ours: when it closes, we are gone, and every init knows.
    alive: OwnedFd,
}

fn serve() -> io::Result<()> {
    // A Ctrl-C, or what a service manager sends to all of a service, means the runner; we end when it has.
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
    // Away from the low numbers, which belong to what is cloned.
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 10)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    sys::place(null.as_fd(), 0)?;
    drop(null);
    rustix::thread::set_name(c"stoker-spawner")?;
    // For all that are cloned: kernels before 6.4 tell it by a file that is closed to an init that hides its memory.
    rustix::param::page_size();

    let (message, _) = wire::receive_packet::<ToSpawner>(socket.as_fd())?;
    let ToSpawner::Setup(setup) = message else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message must be the setup"));
    };
    let lock = File::options().create(true).truncate(false).write(true).open(&setup.lock)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let lock = rustix::io::fcntl_dupfd_cloexec(&lock, 10)?;
    if !setup.isolate {
        // What a plain process left running becomes our child, and is found and killed.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    let (alive, held) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let alive = rustix::io::fcntl_dupfd_cloexec(&alive, 10)?;
    let _held = rustix::io::fcntl_dupfd_cloexec(&held, 10)?;
    drop(held);
    let signals = sys::signal_descriptor(&[libc::SIGCHLD])?;
    let signals = rustix::io::fcntl_dupfd_cloexec(&signals, 10)?;
    wire::send_packet(socket.as_fd(), &FromSpawner::Ready, &[])?;

    let mut spawner = Spawner { socket, setup, inits: HashMap::new(), alive };
    loop {
        let mut ready = [PollFd::new(&spawner.socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (asked, child) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        if child {
            while sys::next_signal(signals.as_fd()).is_some() {}
            spawner.reap();
        }
        if asked && !spawner.answer() {
            break;
        }
    }
    spawner.end();
    drop(lock);
    Ok(())
}

impl Spawner {
    /// Takes one request. `false` when the runner is gone, or speaks in tongues.
    fn answer(&mut self) -> bool {
        let (sequence, cgroup, descriptors) = match wire::receive_packet(self.socket.as_fd()) {
            Ok((ToSpawner::Clone { sequence, cgroup }, descriptors)) => (sequence, cgroup, descriptors),
            _ => return false,
        };
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
        let answer = match sys::clone(namespaces, directory.as_ref().map(AsFd::as_fd)) {
            Ok(Side::Child) => {
                // Everything else of the spawner (other sandboxes' descriptors above all) is none of its business.
                if sys::place(control.as_fd(), CONTROL).and(sys::place(self.alive.as_fd(), ALIVE)).is_err() {
                    sys::exit(70);
                }
                sys::close_from(ALIVE as u32 + 1);
                init::run();
            }
            Ok(Side::Parent { pid, pidfd }) => {
                let message = FromSpawner::Cloned { sequence, pid: pid.as_raw_nonzero().get() };
                let sent = wire::send_packet(self.socket.as_fd(), &message, &[pidfd.as_fd()]);
                self.inits.insert(pid, pidfd);
                sent
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                wire::send_packet(self.socket.as_fd(), &FromSpawner::Failed { sequence, errno }, &[])
            }
        };
        answer.is_ok()
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
            self.inits.remove(&pid);
        }
        if !self.setup.isolate {
            self.kill_strays();
        }
    }

    /// Kills children that we did not make: what an init that was killed itself left behind.
    fn kill_strays(&self) {
        let me = rustix::process::getpid().as_raw_nonzero();
        for pid in init::processes::children_of(me.get()) {
            if let Some(pid) = Pid::from_raw(pid)
                && !self.inits.contains_key(&pid)
            {
                // Gone already is as good.
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
    }

    /// The runner is gone: nothing of it stays.
    fn end(mut self) {
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
        for path in &self.setup.remove {
            let removed = match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
                Ok(_) => std::fs::remove_file(path),
                Err(_) => continue,
            };
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                eprintln!("sandbox spawner: remove {}: {error}", path.display());
            }
        }
    }
}
