//! A supervisor's own life: it comes up, answers, reaps, and clears everything away at the end.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::Role;
use super::holder::Holder;
use crate::{sys, wire};

/// What one kind of supervisor does.
pub trait Supervisor: Sized {
    type Role: Role;

    /// Before the first order.
    ///
    /// # Errors
    /// What stops it from working.
    fn begin(setup: <Self::Role as Role>::Setup) -> io::Result<Self>;

    /// Takes one order. `false` when nobody can be told what came of it, or it makes no sense.
    fn answer(
        &mut self,
        order: <Self::Role as Role>::Order,
        descriptors: Vec<OwnedFd>,
        runner: &Runner,
    ) -> bool;

    /// Collects the children that have ended.
    fn reap(&mut self, runner: &Runner);

    /// The runner is gone: ends and removes what hangs on it. A child's end shows on `signals`.
    fn end(&mut self, runner: &Runner, signals: BorrowedFd<'_>);

    /// What it was set up with.
    fn setup(&self) -> &<Self::Role as Role>::Setup;
}

/// Whom it works for.
pub struct Runner(OwnedFd);

impl Runner {
    /// Says a word. `false` when nobody is there to hear it, which shows as no order, too.
    pub fn tell<W: serde::Serialize>(&self, word: &W, descriptors: &[BorrowedFd<'_>]) -> bool {
        wire::send_packet(self.0.as_fd(), word, descriptors).is_ok()
    }
}

/// Runs as a supervisor on the socket that is our standard input.
pub fn run<A: Supervisor>() -> ! {
    let code = match serve::<A>() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}: {error}", A::Role::NAME);
            1
        }
    };
    std::process::exit(code);
}

/// A Ctrl-C, or what a service manager sends to all of a service, means the runner, which drains; supervisors and inits end when it has.
pub const IGNORED: &[libc::c_int] =
    &[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR2];

fn serve<A: Supervisor>() -> io::Result<()> {
    sys::ignore_signals(IGNORED);
    // Fails only for the leader of a group, which has what this is for.
    if let Err(error) = rustix::process::setsid()
        && error != Errno::PERM
    {
        return Err(error.into());
    }
    // Away from the low numbers, which belong to what is started.
    let away = |descriptor: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(descriptor, 10);
    let runner = Runner(away(rustix::stdio::stdin())?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    sys::place(null.as_fd(), 0)?;
    drop(null);
    rustix::thread::set_name(A::Role::PROCESS)?;

    let (order, _) = wire::receive_packet(runner.0.as_fd())?;
    let Some(setup) = A::Role::setup(order) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first message must be the setup"));
    };
    let lock = File::options().create(true).truncate(false).write(true).open(A::Role::lock(&setup))?;
    take::<A::Role>(&lock)?;
    let _lock = away(lock.as_fd())?;
    drop(lock);
    let mut supervisor = A::begin(setup)?;
    let signals = away(sys::signal_descriptor(&[libc::SIGCHLD])?.as_fd())?;
    wire::send_packet(runner.0.as_fd(), &A::Role::READY, &[])?;
    loop {
        let mut ready = [PollFd::new(&runner.0, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (asked, child) = (!ready[0].revents().is_empty(), !ready[1].revents().is_empty());
        if child {
            while sys::next_signal(signals.as_fd()).is_some() {}
            supervisor.reap(&runner);
        }
        if asked {
            let order = wire::receive_packet(runner.0.as_fd());
            if !order.is_ok_and(|(order, descriptors)| supervisor.answer(order, descriptors, &runner)) {
                break;
            }
        }
    }
    supervisor.end(&runner, signals.as_fd());
    remove::<A::Role>(supervisor.setup());
    Ok(())
}

/// Takes the lock when the one before has cleared away. One that was stopped would never: it is made to go on, which harms nobody, since
/// its runner is gone. Ours has the name, or had seen it end.
fn take<T: Role>(lock: &File) -> io::Result<()> {
    match flock(lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => {}
        taken => return Ok(taken?),
    }
    if let Some(holder) = Holder::of(lock)? {
        if holder.stopped {
            eprintln!(
                "{}: {holder} is made to go on, so that it clears away what its runner has left",
                T::NAME
            );
        }
        // One that was told to stop may not have come to it yet: this takes back a stop that is still to come, too. Gone already is as good.
        pidfd_send_signal(&holder.process, Signal::CONT).ok();
    }
    Ok(flock(lock, FlockOperation::LockExclusive)?)
}

fn remove<T: Role>(setup: &T::Setup) {
    for path in T::remove(setup) {
        let removed = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(_) => continue,
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("{}: remove {}: {error}", T::NAME, path.display());
        }
    }
}
