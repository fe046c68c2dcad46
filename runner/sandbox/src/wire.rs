//! What runner, spawner and inits say to each other, and how: JSON with a length in front, descriptors beside it.
//!
//! Three channels exist. The **spawner's** (one per runner, `SOCK_SEQPACKET`) carries only "clone" and its answer. Every
//! sandbox has a **control** stream to its init, and a **launch** stream to the parked process of the function, which
//! closes when its `exec` succeeds. Nothing a sandbox says is trusted beyond its own fate.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::User;

/// Descriptors in one message, at most.
const DESCRIPTORS: usize = 8;
/// The largest message: an environment may have 2 MiB (the kernel's own limit on `exec`), and JSON may escape some of it.
const LIMIT: usize = 16 << 20;

/// Runner → spawner.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToSpawner {
    /// First message: what to clear away when the runner is gone.
    Setup(Setup),
    /// Clone an init. Descriptors: its control stream, and its cgroup v2 directory if `cgroup`.
    Clone { sequence: u64, cgroup: bool },
}

/// How a spawner works for its runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Own pid namespaces; plain processes else.
    pub isolate: bool,
    /// User namespaces at the clone, for a spawner without root.
    pub rootless: bool,
    /// Held for as long as the spawner lives.
    pub lock: PathBuf,
    /// The runner's own cgroups, removed with all that is in them.
    pub cgroups: Vec<PathBuf>,
    /// Directories and files of this runner, removed at the end.
    pub remove: Vec<PathBuf>,
}

/// Spawner → runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromSpawner {
    /// Set up: the lock is held.
    Ready,
    /// Descriptor: the init's pidfd.
    Cloned {
        sequence: u64,
        pid: i32,
    },
    Failed {
        sequence: u64,
        errno: i32,
    },
}

/// Runner → init.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// First message: what can be had before anything is known about the function.
    Begin(Begin),
    /// Second message. Descriptors: stdin, stdout, stderr, launch stream.
    Build(Box<Plan>),
    /// The command's process is asked to end, by [`Plan::stop_signal`].
    Terminate,
    /// SIGKILL to the command's process.
    KillCommand,
    /// SIGKILL to everything, and the end of the sandbox.
    Kill,
    /// SIGKILL to everything but the zygote, then another process for the command; answered by [`Report::Made`]. Where the sandbox
    /// stays. Descriptors as with [`Order::Build`].
    Again,
    /// Another process beside the command's, in the same way.
    Spawn { number: u64, program: Program },
    /// SIGSTOP to everything, answered by [`Report::Stopped`] once all stand still.
    Stop,
    /// SIGCONT to everything, answered by [`Report::Continued`].
    Continue,
    /// Bind a TCP listener in the sandbox's network namespace.
    Listen(SocketAddr),
}

/// What a process runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// Init → zygote: have a process made that is parked before this. Descriptors: stdin, stdout, stderr, launch stream.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fork {
    pub program: Program,
}

/// Zygote → init: the process, as a child of the init's.
#[derive(Debug, Serialize, Deserialize)]
pub enum Forked {
    Made { pid: i32 },
    Failed { errno: i32 },
}

/// The part of a sandbox that is the same for all functions, so that it can be made ahead.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Begin {
    pub isolate: bool,
    /// Map this user and group to [`INSIDE`] and write the maps oneself: the spawner is not root.
    pub rootless: Option<(u32, u32)>,
    /// The files of cgroup v1 leaves by which to enter them.
    pub attach: Vec<PathBuf>,
    pub network: NetworkPlan,
}

/// What a sandbox has for a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkPlan {
    /// The host's.
    Host,
    /// A namespace with a loopback interface.
    Own,
    /// The same, and a tunnel; `six`: for the sixth version of the protocol, too.
    Tunnel { six: bool },
}

/// User and group of a function as itself sees them, where nothing else was asked for.
pub const INSIDE: u32 = 1000;

/// A function's sandbox, complete but for its late environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub id: String,
    pub root: RootPlan,
    pub writable_root: bool,
    pub program: Program,
    pub workdir: PathBuf,
    pub tmp_size: u64,
    pub open_files: u32,
    /// `RLIMIT_NPROC`, where no cgroup counts.
    pub processes: Option<u32>,
    /// Watch the memory of all processes, where no cgroup does.
    pub watch_memory: Option<u64>,
    /// With [`RootPlan::Host`]: a directory of the host in the place of its `/opt`.
    pub opt: Option<PathBuf>,
    pub shared: Option<PathBuf>,
    pub identity: Identity,
    /// Who it is inside, where the identity is not the host's.
    pub user: User,
    /// Further groups, where it has a user namespace that knows them.
    pub groups: Vec<u32>,
    pub stop_signal: i32,
    /// The sandbox does not end with its command.
    pub stays: bool,
    /// What names mean to it; the host's own files where it has the host's network.
    pub names: Option<Names>,
    /// The runner's home directory, never shown for a program in it.
    pub home: Option<PathBuf>,
    /// What of the host's is hidden all the same, with [`RootPlan::Host`]: see [`crate::private`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum RootPlan {
    /// The host as it is; plain processes.
    Unchanged,
    /// These top-level names of the host, read-only.
    Host(Vec<PathBuf>),
    Directory(PathBuf),
}

/// The files of `/etc` that depend on the sandbox and not on its root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub hosts: String,
    pub resolver: String,
}

/// Who a function is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Unchanged: plain processes.
    Same,
    /// This user and group of the host, shown inside as [`Plan::user`] by a user namespace. Files of an image that belong to
    /// others are shown as theirs, by way of ids from `others` on that no process ever has.
    Mapped { user: u32, others: u32 },
    /// This user and group of the host, without a user namespace.
    Plain(u32),
    /// [`INSIDE`], mapped already at the clone; [`Plan::user`] is no other.
    Inside,
    /// The same, renamed to [`Plan::user`] by a user namespace in the first.
    Renamed,
}

impl Identity {
    /// Who owns what the function may write to, in the numbers of its init.
    pub fn owner(self) -> u32 {
        match self {
            Self::Mapped { user, .. } | Self::Plain(user) => user,
            Self::Inside | Self::Renamed | Self::Same => INSIDE,
        }
    }

    /// The maps of users and of groups of the function's own user namespace, if it gets one.
    pub fn maps(self, inside: User) -> Option<[String; 2]> {
        let map = |inside: u32| match self {
            Self::Mapped { user, others } => {
                let mut lines = format!("{inside} {user} 1\n");
                let below = inside.min(IMAGE_IDS);
                if below > 0 {
                    lines.push_str(&format!("0 {others} {below}\n"));
                }
                if let Some(above) =
                    IMAGE_IDS.checked_sub(inside.saturating_add(1)).filter(|above| *above > 0)
                {
                    lines.push_str(&format!("{} {} {above}\n", inside + 1, others + inside + 1));
                }
                Some(lines)
            }
            Self::Renamed => Some(format!("{inside} {INSIDE} 1\n")),
            Self::Plain(_) | Self::Inside | Self::Same => None,
        };
        Some([map(inside.uid)?, map(inside.gid)?])
    }
}

/// Owners of files that an image may have: all that is not a number of its maker's own namespace.
pub const IMAGE_IDS: u32 = 1 << 16;

/// Init → runner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Before [`Report::Built`], where there is one. Descriptor: the tunnel's other end.
    Tunnel,
    /// All but the function's own last steps is done. Descriptor: the shared directory, if asked for.
    Built,
    Failed(Failure),
    Stopped,
    Continued,
    /// Descriptor: the listener.
    Listening,
    NotListening {
        errno: i32,
    },
    /// The process that was asked for is parked, or about to say why not.
    Made,
    /// It cannot be made.
    Refused(Failure),
    /// The command's process ended; the init is about to.
    Ended(End),
    /// A process ended and the sandbox stays: the command's (0), or that of this number.
    Over {
        number: u64,
        end: End,
    },
    /// The spawner is gone, and the init is about to, with all that it has.
    Orphaned,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct End {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The init killed it for its memory, where no cgroup counts.
    pub out_of_memory: bool,
    /// The most memory that was seen there.
    pub peak: u64,
}

/// Runner → parked function: the late environment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    pub env: Vec<(String, String)>,
}

/// Parked function → runner. After [`Launched::Parked`], end of file means that `exec` succeeded.
#[derive(Debug, Serialize, Deserialize)]
pub enum Launched {
    Parked,
    Failed(Failure),
}

/// A step that failed, and whose fault it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The function's, else the platform's.
    pub function: bool,
    /// What was attempted; for the function's faults the whole sentence.
    pub step: String,
    pub errno: i32,
}

impl Failure {
    /// The function's author must mend it.
    pub fn function(text: impl Into<String>) -> Self {
        Self { function: true, step: text.into(), errno: 0 }
    }
}

impl From<Failure> for crate::Error {
    fn from(failure: Failure) -> Self {
        if failure.function {
            return Self::Function(failure.step);
        }
        Self::Platform { step: failure.step, source: io::Error::from_raw_os_error(failure.errno) }
    }
}

/// Names the step that an error belongs to.
pub trait Step<T> {
    /// # Errors
    /// The same error with `step` said.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| {
            let errno = error.into().raw_os_error().unwrap_or(libc::EIO);
            Failure { function: false, step: step(), errno }
        })
    }
}

/// Whether an error of a socket says no more than that the other side has ended, reaped or not yet.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// A message as it goes over a stream.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::other)?;
    let length = bytes.len() - 4;
    if length > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is larger than 16 MiB"));
    }
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Sends as much of `bytes` as fits, with `descriptors` on the first byte.
///
/// # Errors
/// What `sendmsg` says, `WouldBlock` among it.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors in one message"));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Sends one frame over a blocking stream.
///
/// # Errors
/// What `sendmsg` says.
pub fn send_frame<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = frame(message)?;
    let mut sent = send(socket, &bytes, descriptors)?;
    while sent < bytes.len() {
        sent += send(socket, &bytes[sent..], &[])?;
    }
    Ok(())
}

/// One packet of a `SOCK_SEQPACKET` socket, with its descriptors.
///
/// # Errors
/// What `recvmsg` says; `UnexpectedEof` when the other side is gone; `InvalidData`.
pub fn receive_packet<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut buffer = [0; 16 << 10];
    let mut descriptors = VecDeque::new();
    let length = receive(socket, &mut buffer, &mut descriptors)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let message = serde_json::from_slice(&buffer[..length])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((message, descriptors.into()))
}

/// Sends one packet of a `SOCK_SEQPACKET` socket.
///
/// # Errors
/// What `sendmsg` says.
pub fn send_packet<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    send(socket, &bytes, descriptors).map(drop)
}

fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    for entry in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = entry {
            descriptors.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut off"));
    }
    Ok(message.bytes)
}

/// The receiving end of a stream of frames: what has arrived, whole or in part.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl Inbox {
    /// Nothing has arrived that nobody has taken.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.descriptors.is_empty()
    }

    /// Reads once. `false` at the end of the stream.
    ///
    /// # Errors
    /// What `recvmsg` says, `WouldBlock` among it.
    pub fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let length = receive(socket, &mut buffer, &mut self.descriptors)?;
        self.bytes.extend_from_slice(&buffer[..length]);
        Ok(length > 0)
    }

    /// Takes one whole message out, if there is one.
    ///
    /// # Errors
    /// `InvalidData` when it is no message of this kind.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((head, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is larger than 16 MiB"));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(body)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }

    /// Takes the oldest descriptor received and not yet taken.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Waits for one message on a blocking stream. `None` at its end.
    ///
    /// # Errors
    /// What `recvmsg` says; `InvalidData`.
    pub fn wait<T: DeserializeOwned>(&mut self, socket: &impl AsFd) -> io::Result<Option<T>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.fill(socket.as_fd())? {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests;
