//! The runner's side of the spawner: starts it, asks it, notices its death and starts another.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::{ARGUMENT, Command};
use crate::handover::{Bequest, Inheritance, Kept};
use crate::wire::{self, FromSpawner, Setup, ToSpawner};
use crate::{Error, sys};

/// How long a spawner may take to come up.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A handle on the spawner of one driver.
pub struct Client {
    command: Command,
    setup: Setup,
    live: Mutex<Option<Arc<Live>>>,
    /// Held while another is started, or none any more.
    starting: tokio::sync::Mutex<()>,
    /// No other is started.
    closed: AtomicBool,
}

/// A spawner as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    socket: Kept,
    process: Kept,
    pid: u32,
    /// The number of the last request: its answer may still come.
    sequence: u64,
}

/// One spawner process.
struct Live {
    socket: AsyncFd<OwnedFd>,
    process: Arc<AsyncFd<OwnedFd>>,
    waiting: Mutex<Waiting>,
    gone: watch::Sender<bool>,
    /// Nobody wants it any more: its end is no surprise.
    closing: AtomicBool,
    /// Turns true when its process has ended.
    ended: watch::Receiver<bool>,
    pid: u32,
}

#[derive(Default)]
struct Waiting {
    sequence: u64,
    /// No answer will come any more.
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<Result<Init, io::Error>>>,
}

/// A cloned init.
pub struct Init {
    pub pidfd: OwnedFd,
    /// Turns true when the spawner that made it is gone.
    pub orphaned: watch::Receiver<bool>,
    pub parent: Parent,
}

/// Tells whether the spawner of an init is gone, at once and for certain.
#[derive(Clone)]
pub struct Parent(Weak<Live>);

impl Parent {
    /// A process that ends closes its descriptors before its children learn of its death: who died of that finds this true.
    pub fn is_gone(&self) -> bool {
        let Some(live) = self.0.upgrade() else { return true };
        let mut sockets = [PollFd::new(live.socket.get_ref(), PollFlags::RDHUP)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let asked = rustix::event::poll(&mut sockets, Some(&none));
        asked.is_ok_and(|ready| ready > 0) || *live.gone.borrow()
    }
}

impl Client {
    /// Starts the spawner.
    ///
    /// # Errors
    /// [`Error::Platform`] when it does not come up.
    pub async fn start(command: Command, setup: Setup) -> Result<Self, Error> {
        let client = Self::new(command, setup, None);
        client.live().await?;
        Ok(client)
    }

    fn new(command: Command, setup: Setup, live: Option<Arc<Live>>) -> Self {
        let (starting, closed) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Self { command, setup, live: Mutex::new(live), starting, closed }
    }

    fn current(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The spawner, for the next program of this process. No sandbox may be asked for any more.
    ///
    /// # Errors
    /// When there is none at the moment; as [`Bequest::keep`].
    pub fn hand_over(&self, bequest: &mut Bequest) -> io::Result<Handed> {
        let live = self.current().clone().filter(|live| !*live.gone.borrow());
        let live = live.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"))?;
        Ok(Handed {
            socket: bequest.keep(live.socket.get_ref())?,
            process: bequest.keep(live.process.get_ref())?,
            pid: live.pid,
            sequence: live.waiting.lock().unwrap_or_else(PoisonError::into_inner).sequence,
        })
    }

    /// Goes on with a spawner of the process's former program; others are started by `command`.
    ///
    /// # Errors
    /// When it was not left.
    pub fn take_up(
        command: Command,
        setup: Setup,
        handed: Handed,
        inheritance: &mut Inheritance,
    ) -> io::Result<Self> {
        let Handed { socket, process, pid, sequence } = handed;
        let socket = sys::watch(inheritance.take(socket)?, Interest::READABLE | Interest::WRITABLE)?;
        let process = sys::watch(inheritance.take(process)?, Interest::READABLE)?;
        Ok(Self::new(command, setup, Some(Live::follow(socket, Arc::new(process), pid, sequence))))
    }

    /// An init that it cloned for the process's former program.
    ///
    /// # Errors
    /// When the spawner is gone by now.
    pub fn adopt(&self, pidfd: OwnedFd) -> io::Result<Init> {
        let live = self.current().clone();
        let live = live.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "the spawner is gone"))?;
        Ok(live.init(pidfd))
    }

    /// The spawner's process id.
    pub fn pid(&self) -> Option<u32> {
        self.current().as_ref().map(|live| live.pid)
    }

    /// Has an init cloned that listens on `control`.
    ///
    /// # Errors
    /// [`Error::Platform`] when the clone fails or the spawner is gone; the next call starts another.
    pub async fn clone_init(&self, control: OwnedFd, cgroup: Option<BorrowedFd<'_>>) -> Result<Init, Error> {
        let live = self.live().await?;
        let gone = || Error::Platform {
            step: "ask the sandbox spawner".to_owned(),
            source: io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"),
        };
        let (answer, answered) = oneshot::channel();
        let sequence = {
            let mut waiting = live.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.closed {
                return Err(gone());
            }
            waiting.sequence += 1;
            let sequence = waiting.sequence;
            waiting.answers.insert(sequence, answer);
            sequence
        };
        let message = ToSpawner::Clone { sequence, cgroup: cgroup.is_some() };
        let descriptors: Vec<_> = [control.as_fd()].into_iter().chain(cgroup).collect();
        let sent = live
            .socket
            .async_io(Interest::WRITABLE, |socket| wire::send_packet(socket.as_fd(), &message, &descriptors))
            .await;
        drop(control);
        if sent.is_err() {
            live.waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&sequence);
            return Err(gone());
        }
        match answered.await {
            Ok(Ok(init)) => Ok(init),
            Ok(Err(source)) => Err(Error::Platform { step: "clone the sandbox".to_owned(), source }),
            Err(_) => Err(gone()),
        }
    }

    /// Ends the spawner, and returns when it has cleared everything away.
    pub async fn close(&self) {
        let turn = self.starting.lock().await;
        self.closed.store(true, Ordering::Release);
        drop(turn);
        let Some(live) = self.current().take() else { return };
        live.closing.store(true, Ordering::Release);
        rustix::net::shutdown(live.socket.get_ref(), rustix::net::Shutdown::Both).ok();
        let mut ended = live.ended.clone();
        // Who says it goes only with the runtime.
        ended.wait_for(|ended| *ended).await.ok();
    }

    async fn live(&self) -> Result<Arc<Live>, Error> {
        let stands = |live: &Arc<Live>| !*live.gone.borrow();
        if let Some(live) = self.current().clone().filter(stands) {
            return Ok(live);
        }
        let _turn = self.starting.lock().await;
        // Somebody else may have started it meanwhile.
        if let Some(live) = self.current().clone().filter(stands) {
            return Ok(live);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Platform {
                step: "ask the sandbox spawner".to_owned(),
                source: io::Error::new(io::ErrorKind::BrokenPipe, "the driver was closed"),
            });
        }
        let live = self.launch().await.map_err(|source| Error::Platform {
            step: format!("start the sandbox spawner {}", self.command.program.display()),
            source,
        })?;
        *self.current() = Some(Arc::clone(&live));
        Ok(live)
    }

    async fn launch(&self) -> io::Result<Arc<Live>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = std::process::Command::new(&self.command.program);
        command
            .args(&self.command.args)
            .arg(ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        // Starting a process may take milliseconds; not on the runtime's threads.
        let child =
            tokio::task::spawn_blocking(move || command.spawn()).await.map_err(io::Error::other)??;
        let pid = child.id();
        // Not collected before its task does: the number is its own.
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let process = Arc::new(sys::watch(process, Interest::READABLE)?);
        rustix::io::ioctl_fionbio(&ours, true)?;
        let socket = sys::watch(ours, Interest::READABLE | Interest::WRITABLE)?;
        let ready = async {
            socket
                .async_io(Interest::WRITABLE, |socket| {
                    wire::send_packet(socket.as_fd(), &ToSpawner::Setup(self.setup.clone()), &[])
                })
                .await?;
            socket
                .async_io(Interest::READABLE, |socket| wire::receive_packet::<FromSpawner>(socket.as_fd()))
                .await
        };
        // It waits for the one before it (of an earlier runner of the name) to clear away.
        let ready = tokio::time::timeout(START_LIMIT, ready).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "an earlier one may still be clearing away"))
        });
        let error = match ready {
            Ok((FromSpawner::Ready, _)) => return Ok(Live::follow(socket, process, pid, 0)),
            Ok(_) => io::Error::new(io::ErrorKind::InvalidData, "it does not begin with its word"),
            Err(error) => error,
        };
        // Gone already is as good.
        pidfd_send_signal(process.get_ref(), Signal::KILL).ok();
        tokio::spawn(async move { collect(&process).await });
        let text = format!("it did not come up ({error}); does its main call spawner::run_if_asked first?");
        Err(io::Error::new(error.kind(), text))
    }
}

impl Live {
    /// Ends with the spawner, or with the driver: the last handle on the socket but the task's own closes it.
    fn follow(
        socket: AsyncFd<OwnedFd>,
        process: Arc<AsyncFd<OwnedFd>>,
        pid: u32,
        sequence: u64,
    ) -> Arc<Self> {
        let (ending, ended) = watch::channel(false);
        let live = Arc::new(Self {
            socket,
            process: Arc::clone(&process),
            waiting: Mutex::new(Waiting { sequence, ..Waiting::default() }),
            gone: watch::Sender::new(false),
            closing: AtomicBool::new(false),
            ended,
            pid,
        });
        tokio::spawn(listen(Arc::downgrade(&live), process, ending));
        live
    }

    fn init(self: &Arc<Self>, pidfd: OwnedFd) -> Init {
        Init { pidfd, orphaned: self.gone.subscribe(), parent: Parent(Arc::downgrade(self)) }
    }
}

/// Waits for the end of a process, which may take as long as it clears away, and reaps it.
pub async fn collect(process: &AsyncFd<OwnedFd>) {
    // An error is that of a runtime that ends.
    if process.readable().await.is_ok() {
        waitid(WaitId::PidFd(process.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    }
}

/// Hands answers out until the spawner is gone.
async fn listen(live: Weak<Live>, process: Arc<AsyncFd<OwnedFd>>, ending: watch::Sender<bool>) {
    // The driver may be dropped while we wait, and only its drop closes the socket: hold it only for one step at a time,
    // on a duplicate that registers for itself.
    let Some(held) = live.upgrade() else { return };
    let duplicate =
        held.socket.get_ref().try_clone().and_then(|socket| sys::watch(socket, Interest::READABLE));
    drop(held);
    if let Ok(socket) = duplicate {
        loop {
            let packet = socket
                .async_io(Interest::READABLE, |socket| wire::receive_packet::<FromSpawner>(socket.as_fd()));
            let Ok((message, mut descriptors)) = packet.await else { break };
            let Some(live) = live.upgrade() else { break };
            let (sequence, result) = match message {
                FromSpawner::Cloned { sequence, .. } => match descriptors.pop() {
                    Some(pidfd) => (sequence, Ok(live.init(pidfd))),
                    None => break,
                },
                FromSpawner::Failed { sequence, errno } => {
                    (sequence, Err(io::Error::from_raw_os_error(errno)))
                }
                FromSpawner::Ready => continue,
            };
            let answer =
                live.waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&sequence);
            if let Some(answer) = answer {
                // Nobody waiting any more means that the create was given up: its control stream is closed, the init ends.
                answer.send(result).ok();
            }
        }
    }
    if let Some(live) = live.upgrade() {
        let mut waiting = live.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.closed = true;
        waiting.answers.clear();
        drop(waiting);
        if !live.closing.load(Ordering::Acquire) {
            tracing::warn!(pid = live.pid, "the sandbox spawner is gone; its sandboxes are, too");
        }
        live.gone.send_replace(true);
    }
    collect(&process).await;
    ending.send_replace(true);
}

impl Drop for Live {
    fn drop(&mut self) {
        // The listener holds a duplicate of the socket: shutting it down is what both ends see.
        rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both).ok();
    }
}
