//! What the processes of a sandbox that stays are copies of: the function's own process, with its identity, limits and filter, but
//! before any program. The init has given up what it would take to make another such process, and keeps this one instead.
//!
//! A copy becomes the init's child, never the zygote's, so who reaps and who counts is the same as without one. The function could
//! end the zygote (it is the same user), and would have a sandbox that is not started again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, getpid, getppid, waitpid};
use rustix::thread::sched_yield;

use super::launch;
use crate::sys;
use crate::wire::{self, Failure, Fork, Forked, Inbox, Plan, Program, Step};

/// A copy is made in a fraction of a millisecond; who does not get to it in this time was stopped by the function.
const LIMIT: Duration = Duration::from_secs(10);

/// The way between init and zygote, where there is to be one: the init's end and the zygote's.
pub fn sockets(plan: &Plan) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let make = || socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    Ok(plan.stays.then(make).transpose()?)
}

/// The zygote as the init has it.
pub struct Zygote {
    pub pid: Pid,
    socket: OwnedFd,
    inbox: Inbox,
}

impl Zygote {
    pub fn new(pid: Pid, socket: OwnedFd) -> Self {
        Self { pid, socket, inbox: Inbox::default() }
    }

    /// The process of the first start, which the zygote makes unasked. None if it is gone.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn first(&mut self) -> Result<Option<Pid>, Failure> {
        self.answer()
    }

    /// Has a process made. None if the zygote is gone, reaped or not yet.
    ///
    /// # Errors
    /// When it is not made.
    pub fn fork(&mut self, program: Program, pipes: &[OwnedFd; 4]) -> Result<Option<Pid>, Failure> {
        let pipes = pipes.each_ref().map(AsFd::as_fd);
        match wire::send_frame(self.socket.as_fd(), &Fork { program }, &pipes) {
            Err(error) if wire::is_gone(&error) => Ok(None),
            sent => {
                sent.step(step)?;
                self.answer()
            }
        }
    }

    fn answer(&mut self) -> Result<Option<Pid>, Failure> {
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        loop {
            if let Some(forked) = self.inbox.take::<Forked>().step(step)? {
                return match forked {
                    Forked::Made { pid } => Ok(Pid::from_raw(pid)),
                    // By the limit on its processes, or by the machine's, which is far off.
                    Forked::Failed { errno: libc::EAGAIN } => {
                        Err(Failure::function("the function has as many processes as it may have"))
                    }
                    Forked::Failed { errno } => Err(Failure { function: false, step: step(), errno }),
                };
            }
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(0) => return Err(Failure { function: false, step: step(), errno: libc::ETIMEDOUT }),
                ready => _ = ready.step(step)?,
            }
            match self.inbox.fill(self.socket.as_fd()) {
                Err(error) if wire::is_gone(&error) => return Ok(None),
                more => {
                    if !more.step(step)? {
                        return Ok(None);
                    }
                }
            }
        }
    }
}

fn step() -> String {
    "copy the function's process".to_owned()
}

/// Runs as the zygote, sealed already. Ends with the init.
pub fn run(plan: &Plan, socket: &OwnedFd, first: [OwnedFd; 4]) -> ! {
    // Nothing that the function says to all processes is meant for it; and its memory is none of the function's business.
    sys::ignore_signals(&(1..=64).filter(|signal| *signal != libc::SIGCHLD).collect::<Vec<_>>());
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).ok();
    rustix::thread::set_name(c"stoker-zygote").ok();
    let mut inbox = Inbox::default();
    let mut next = Some((plan.program.clone(), first));
    let (own, init) = (getpid(), getppid());
    while let Some((program, pipes)) = next.take().or_else(|| asked(&mut inbox, socket)) {
        let copy = sys::sibling();
        match copy {
            Ok(None) if getppid() == Some(own) => disown(init, socket, &program, pipes),
            Ok(None) => launch::copied(&program, pipes),
            // Only one that is our own child is waited for: it has told the init.
            Ok(Some(pid)) if waitpid(Some(pid), WaitOptions::empty()).is_ok() => continue,
            _ => {}
        }
        if wire::send_frame(socket.as_fd(), &told(copy), &[]).is_err() {
            break;
        }
    }
    sys::exit(0)
}

/// Runs as a copy that is the zygote's child, as gVisor makes it, whose kernel takes the flag and does nothing with it. It makes another and ends, so
/// that the other becomes the init's.
fn disown(init: Option<Pid>, socket: &OwnedFd, program: &Program, pipes: [OwnedFd; 4]) -> ! {
    let copy = sys::fork();
    if let Ok(None) = copy {
        // It is to die with the init, and not with us.
        while getppid() != init {
            sched_yield();
        }
        launch::copied(program, pipes);
    }
    // The init may be gone; then nobody needs to know.
    wire::send_frame(socket.as_fd(), &told(copy), &[]).ok();
    sys::exit(0)
}

/// What the init is told of a copy.
fn told(copy: io::Result<Option<Pid>>) -> Forked {
    match copy {
        Ok(pid) => Forked::Made { pid: Pid::as_raw(pid) },
        Err(error) => Forked::Failed { errno: error.raw_os_error().unwrap_or(libc::EIO) },
    }
}

fn asked(inbox: &mut Inbox, socket: &OwnedFd) -> Option<(Program, [OwnedFd; 4])> {
    let Fork { program } = inbox.wait(socket).ok()??;
    let mut descriptor = || inbox.descriptor();
    Some((program, [descriptor()?, descriptor()?, descriptor()?, descriptor()?]))
}
