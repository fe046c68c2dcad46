//! The Unix socket on which an http-stream function listens.
//!
//! The directory belongs to the function, so nothing in it is trusted: a link is followed once, by us, and only to a
//! name in the same directory; what it names is opened without following, must be a socket, and is connected to through that
//! very handle, so that swapping names wins nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use stoker_core::backoff::Backoff;
use stoker_sandbox::Shared;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use super::channel::Unfit;

/// The name that `FN_LISTENER` gives.
pub const NAME: &str = "lsnr.sock";

/// Bytes of a request that may lie between the runner and the function: half of a call's window, two pieces, while the other half comes. The kernel gives twice this for
/// its bookkeeping, at most `net.core.wmem_max`.
const ON_THE_WAY: usize = stoker_core::call::WINDOW as usize / 2;

/// Watches the directory from before the function starts.
pub struct Watch {
    /// Present until it is dropped.
    events: Option<AsyncFd<OwnedFd>>,
}

impl Drop for Watch {
    /// Closing an inotify descriptor waits for a grace period of the kernel, 10 to 15 ms: not on the thread that serves calls.
    fn drop(&mut self) {
        if let (Some(events), Ok(runtime)) = (self.events.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn_blocking(move || drop(events));
        }
    }
}

/// Why there is no connection (yet).
#[derive(Debug)]
pub enum Problem {
    /// Nothing stands there, or nobody listens, yet.
    NotYet,
    /// What stands there breaks the contract.
    Broken(String),
    /// The machine's.
    System(io::Error),
}

impl Watch {
    pub fn new(directory: &OwnedFd) -> io::Result<Self> {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &events,
            format!("/proc/self/fd/{}", directory.as_raw_fd()),
            WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB | WatchFlags::ONLYDIR,
        )?;
        #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
        let events = AsyncFd::new(events)?;
        Ok(Self { events: Some(events) })
    }

    /// The first connection. Woken by what happens in the directory. Only between `bind` and `listen`, which no event tells
    /// apart, is it tried again by time. The caller limits how long.
    pub async fn first(&self, directory: &OwnedFd) -> Result<UnixStream, Problem> {
        let mut pause =
            Backoff::new(Duration::from_millis(1), Duration::from_millis(50), directory.as_raw_fd() as u64);
        loop {
            let there = match resolve(directory) {
                Ok(socket) => match connect(&socket).await {
                    Err(Problem::NotYet) => true,
                    other => return other,
                },
                Err(Problem::NotYet) => false,
                Err(other) => return Err(other),
            };
            tokio::select! {
                changed = self.changed() => changed.map_err(Problem::System)?,
                () = tokio::time::sleep(pause.next().unwrap_or_default()), if there => {}
            }
        }
    }

    async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let Some(events) = &self.events else { return std::future::pending().await };
        events
            .async_io(tokio::io::Interest::READABLE, |fd| match rustix::io::read(fd, &mut buffer) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            })
            .await
    }
}

/// A connection to a function that is ready: this one, if it still stands and is silent, else a new one.
///
/// # Errors
/// Why the function takes no call.
pub async fn open(shared: Option<&Shared>, connection: Option<UnixStream>) -> Result<UnixStream, Unfit> {
    if let Some(stream) = connection {
        match look(&stream) {
            Idle::Fine => return Ok(stream),
            Idle::Noise => return Err(Unfit::Noise("bytes on its connection".to_owned())),
            Idle::Closed => {}
        }
    }
    let shared = shared.ok_or_else(|| Unfit::System("it has no shared directory".to_owned()))?;
    let again = async { connect(&resolve(&shared.directory)?).await };
    again.await.map_err(|problem| match problem {
        Problem::NotYet => Unfit::Closed("socket"),
        Problem::Broken(why) => Unfit::Noise(why),
        Problem::System(error) => Unfit::System(format!("connect to the function: {error}")),
    })
}

fn resolve(directory: &OwnedFd) -> Result<OwnedFd, Problem> {
    let at = |name: &str| match rustix::fs::openat(
        directory.as_fd(),
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => {
            let stat = rustix::fs::fstat(&fd).map_err(|e| Problem::System(e.into()))?;
            Ok((fd, FileType::from_raw_mode(stat.st_mode)))
        }
        Err(Errno::NOENT) => Err(Problem::NotYet),
        Err(error) => Err(Problem::System(error.into())),
    };
    let (link, kind) = at(NAME)?;
    match kind {
        FileType::Socket => return Ok(link),
        FileType::Symlink => {}
        other => return Err(Problem::Broken(format!("{NAME} is no socket but a {other:?}"))),
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new()).map_err(|e| Problem::System(e.into()))?;
    let target = target.to_str().unwrap_or_default().trim_start_matches("./").to_owned();
    if target.is_empty() || target.contains('/') || target == ".." || target == "." {
        return Err(Problem::Broken(format!(
            "{NAME} is a link out of its directory; link to a name within it"
        )));
    }
    match at(&target)? {
        (socket, FileType::Socket) => Ok(socket),
        (_, other) => {
            Err(Problem::Broken(format!("{NAME} links to {target:?}, which is no socket but a {other:?}")))
        }
    }
}

async fn connect(socket: &OwnedFd) -> Result<UnixStream, Problem> {
    match UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await {
        Ok(stream) => {
            // What the kernel refuses leaves the default, which works: only slower.
            rustix::net::sockopt::set_socket_send_buffer_size(&stream, ON_THE_WAY).ok();
            Ok(stream)
        }
        Err(error) => match error.kind() {
            // Not listening yet, not permitted yet (a chmod follows), or its backlog is full.
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::WouldBlock => Err(Problem::NotYet),
            _ if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => {
                Err(Problem::Broken(format!("{NAME} is not a socket of streams: listen with SOCK_STREAM")))
            }
            _ => Err(Problem::System(error)),
        },
    }
}

/// Whether an idle connection still stands and is silent.
enum Idle {
    Fine,
    Closed,
    /// The function said something that nobody asked for.
    Noise,
}

/// Looks at a connection without taking anything from it.
fn look(stream: &UnixStream) -> Idle {
    let mut one = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(stream, &mut one[..], flags) {
        Ok((0, _)) => Idle::Closed,
        Ok(_) => Idle::Noise,
        Err(Errno::AGAIN) => Idle::Fine,
        Err(_) => Idle::Closed,
    }
}

/// Whether the socket's file can be seen at all: for the error of a function that never listens.
pub fn exists(directory: &OwnedFd) -> bool {
    rustix::fs::statat(directory.as_fd(), NAME, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}
