//! The runner's ends of what leads to a sandbox: streams of frames, and the pipes of a process to be.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Gid, Uid, fchown};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::handover::{FdNumber, InheritedFds, PassedFds};
use crate::wire::{self, Inbox, Launch, Launched};
use crate::{Error, Stdio, User, sys};

/// One end of a stream of frames.
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
    inbox: Mutex<Inbox>,
    sending: tokio::sync::Mutex<()>,
}

impl Channel {
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = sys::watch(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, inbox: Mutex::default(), sending: tokio::sync::Mutex::default() })
    }

    /// Sends a whole frame.
    ///
    /// # Errors
    /// When the other side is gone.
    pub async fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = wire::frame(message)?;
        let _turn = self.sending.lock().await;
        let mut descriptors = descriptors;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let sent = self
                .socket
                .async_io(Interest::WRITABLE, |socket| wire::send(socket.as_fd(), rest, descriptors))
                .await?;
            descriptors = &[];
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// The next frame; `None` at the end. Loses nothing when it is dropped halfway. One reader at a time.
    ///
    /// # Errors
    /// What the socket says, or that the frame makes no sense.
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let locked = || self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(message) = locked().take()? {
                return Ok(Some(message));
            }
            let more = self.socket.async_io(Interest::READABLE, |socket| locked().fill(socket.as_fd())).await;
            match more {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) if wire::is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the other side is still there, at this moment.
    pub fn is_open(&self) -> bool {
        let mut sockets = [PollFd::new(self.socket.get_ref(), PollFlags::RDHUP)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut sockets, Some(&none)).is_ok_and(|ready| ready == 0)
    }

    /// Its socket, for the next program of this process. Nothing that was read is kept back.
    ///
    /// # Errors
    /// `WouldBlock` while half a frame is here; as [`PassedFds::keep`].
    pub fn hand_over(&self, passed: &mut PassedFds) -> io::Result<FdNumber> {
        if !self.inbox.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "something is being said on a stream"));
        }
        passed.keep(self.socket.get_ref())
    }

    /// Reads what has arrived, whether or not the runtime has noticed it.
    pub fn drain(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        while inbox.fill(self.socket.get_ref().as_fd()).is_ok_and(|more| more) {}
    }

    /// A whole frame that has arrived.
    pub fn take<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The oldest descriptor that has arrived.
    pub fn descriptor(&self) -> Option<OwnedFd> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).descriptor()
    }
}

/// Both ends of the pipes of a process to be, and of the stream by which it is started.
pub struct Ends {
    ours: Parked,
    theirs: [OwnedFd; 4],
}

impl Ends {
    /// `owner` is whom the process is to the host, where that is not our own user: else `/dev/stdout` would be closed to it.
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub fn new(owner: Option<User>) -> Result<Self, Error> {
        let fail =
            |source: io::Error| Error::Platform { step: "make the pipes of a process".to_owned(), source };
        let made = || {
            let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (
                pipe_with(PipeFlags::CLOEXEC)?,
                pipe_with(PipeFlags::CLOEXEC)?,
                pipe_with(PipeFlags::CLOEXEC)?,
            );
            for ours in [&our_stdin, &our_stdout, &our_stderr] {
                rustix::io::ioctl_fionbio(ours, true)?;
            }
            if let Some(User { uid, gid }) = owner {
                for theirs in [&stdin, &stdout, &stderr] {
                    fchown(theirs, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                }
            }
            let (our_launch, launch) =
                socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            let stdio = Stdio { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr };
            let ours = Parked { launch: Channel::new(our_launch)?, stdio };
            Ok(Self { ours, theirs: [stdin, stdout, stderr, launch] })
        };
        made().map_err(fail)
    }

    /// What the process gets, in the order in which its init expects them.
    pub fn theirs(&self) -> [BorrowedFd<'_>; 4] {
        self.theirs.each_ref().map(AsFd::as_fd)
    }

    /// Lets go of what the process has now.
    pub fn handed_over(self) -> Parked {
        self.ours
    }
}

/// A process just before its `exec`.
pub struct Parked {
    launch: Channel,
    stdio: Stdio,
}

impl Parked {
    /// Launch stream, STDIN, STDOUT and STDERR, for the next program of this process.
    ///
    /// # Errors
    /// As [`Channel::hand_over`].
    pub fn hand_over(&self, passed: &mut PassedFds) -> io::Result<[FdNumber; 4]> {
        let Stdio { stdin, stdout, stderr } = &self.stdio;
        let launch = self.launch.hand_over(passed)?;
        Ok([launch, passed.keep(stdin)?, passed.keep(stdout)?, passed.keep(stderr)?])
    }

    /// One that the former program has left.
    ///
    /// # Errors
    /// When a part of it was not left.
    pub fn take_up(kept: [FdNumber; 4], inherited: &mut InheritedFds) -> io::Result<Self> {
        let [launch, stdin, stdout, stderr] = kept.map(|kept| inherited.take(kept));
        Ok(Self {
            launch: Channel::new(launch?)?,
            stdio: Stdio { stdin: stdin?, stdout: stdout?, stderr: stderr? },
        })
    }

    /// Waits until it is there. `false` if it has ended before: then its end tells why.
    ///
    /// # Errors
    /// Why it never is.
    pub async fn there(&self) -> Result<bool, Error> {
        let fail = |source| Error::Platform { step: "park the function's process".to_owned(), source };
        match self.launch.receive::<Launched>().await {
            Ok(Some(Launched::Parked)) => Ok(true),
            Ok(Some(Launched::Failed(failure))) => Err(failure.into()),
            Ok(None) => Ok(false),
            Err(error) => Err(fail(error)),
        }
    }

    /// Has it run its program, with `env` added to its environment.
    ///
    /// # Errors
    /// As [`crate::Sandbox::start`].
    pub async fn start(self, env: Vec<(String, String)>) -> Result<Stdio, Error> {
        let fail = |source| Error::Platform { step: "start the sandbox".to_owned(), source };
        match self.launch.send(&Launch { env }, &[]).await {
            // As if it had died a moment later.
            Err(error) if wire::is_gone(&error) => return Ok(self.stdio),
            sent => sent.map_err(fail)?,
        }
        match self.launch.receive::<Launched>().await {
            // Closed by exec, or by a death just before it, which wait and the pipes tell.
            Ok(None) => Ok(self.stdio),
            Ok(Some(Launched::Failed(failure))) => Err(failure.into()),
            Ok(Some(Launched::Parked)) => Err(fail(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(fail(error)),
        }
    }
}

pub fn died() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it was done")
}
