//! The runner's side of the monitor: starts it, asks it, and starts another when it dies.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::monitor::{ARGUMENT, FromMonitor, Setup, ToMonitor};
use crate::handover::{Bequest, Inheritance, Kept};
use crate::oci::runtime::Command;
use crate::spawner::client::collect;
use crate::{Error, spawner, sys, wire};

/// How long a monitor may take to come up. It waits for the one before it to clear away.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A handle on the monitor of one driver; dropping it ends the monitor, and all containers with it.
pub struct Client {
    shared: Arc<Shared>,
    /// Turns true when the last monitor has ended.
    ended: watch::Receiver<bool>,
}

struct Shared {
    program: spawner::Command,
    setup: Setup,
    /// Absent from the death of one monitor to the start of the next.
    live: watch::Sender<Option<Arc<Live>>>,
    /// No other is started.
    closing: AtomicBool,
}

/// A monitor as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    socket: Kept,
    process: Kept,
    pid: u32,
    /// The number of the last request: its answer may still come.
    sequence: u64,
}

/// One monitor process.
struct Live {
    socket: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
    pid: u32,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    sequence: u64,
    /// No answer will come any more.
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<i32>>,
}

fn gone() -> Error {
    Error::Platform {
        step: "ask the sandbox monitor".to_owned(),
        source: io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"),
    }
}

impl Client {
    /// Starts the monitor.
    ///
    /// # Errors
    /// [`Error::Platform`] when it does not come up.
    pub async fn start(program: spawner::Command, setup: Setup) -> Result<Self, Error> {
        let shared = Shared::new(program, setup);
        let live = shared.launch().await.map_err(|source| Error::Platform {
            step: format!("start the sandbox monitor {}", shared.program.program.display()),
            source,
        })?;
        Ok(Self::follow(shared, live))
    }

    fn follow(shared: Arc<Shared>, live: Arc<Live>) -> Self {
        let (ending, ended) = watch::channel(false);
        shared.live.send_replace(Some(Arc::clone(&live)));
        // Ends with the monitor, once the client is closed or dropped.
        tokio::spawn(supervise(Arc::clone(&shared), live, ending));
        Self { shared, ended }
    }

    /// The monitor, for the next program of this process. It may not be asked anything any more.
    ///
    /// # Errors
    /// When there is none at the moment; as [`Bequest::keep`].
    pub fn hand_over(&self, bequest: &mut Bequest) -> io::Result<Handed> {
        let live = self.shared.live.borrow().clone();
        let live = live.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"))?;
        Ok(Handed {
            socket: bequest.keep(live.socket.get_ref())?,
            process: bequest.keep(live.process.get_ref())?,
            pid: live.pid,
            sequence: live.waiting.lock().unwrap_or_else(PoisonError::into_inner).sequence,
        })
    }

    /// Goes on with a monitor of the process's former program; others are started by `program`.
    ///
    /// # Errors
    /// When it was not left.
    pub fn take_up(
        program: spawner::Command,
        setup: Setup,
        handed: Handed,
        inheritance: &mut Inheritance,
    ) -> io::Result<Self> {
        let Handed { socket, process, pid, sequence } = handed;
        let socket = sys::watch(inheritance.take(socket)?, Interest::READABLE | Interest::WRITABLE)?;
        let process = sys::watch(inheritance.take(process)?, Interest::READABLE)?;
        let waiting = Mutex::new(Waiting { sequence, ..Waiting::default() });
        Ok(Self::follow(Shared::new(program, setup), Arc::new(Live { socket, process, pid, waiting })))
    }

    /// The monitor's process id.
    pub fn pid(&self) -> Option<u32> {
        self.shared.live.borrow().as_ref().map(|live| live.pid)
    }

    /// Has a command of the runtime run. Its exit status, or minus the signal that ended it.
    ///
    /// # Errors
    /// [`Error::Platform`] when the monitor is gone.
    pub async fn run(&self, command: Command) -> Result<i32, Error> {
        self.ask(|sequence| ToMonitor::Run { sequence, command }).await
    }

    /// Has the containers of an earlier life killed and removed. How many could not be.
    ///
    /// # Errors
    /// [`Error::Platform`] when the monitor is gone.
    pub async fn clear(&self, life: PathBuf) -> Result<i32, Error> {
        self.ask(|sequence| ToMonitor::Clear { sequence, life }).await
    }

    async fn ask(&self, message: impl FnOnce(u64) -> ToMonitor) -> Result<i32, Error> {
        let mut changes = self.shared.live.subscribe();
        let mut ended = self.ended.clone();
        let live = tokio::select! {
            live = changes.wait_for(Option::is_some) => live.ok().and_then(|live| live.clone()).ok_or_else(gone)?,
            _ = ended.wait_for(|ended| *ended) => return Err(gone()),
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
        let message = message(sequence);
        let sent = live
            .socket
            .async_io(Interest::WRITABLE, |socket| wire::send_packet(socket.as_fd(), &message, &[]))
            .await;
        if let Err(source) = sent {
            live.waiting.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&sequence);
            return Err(Error::Platform { step: "ask the sandbox monitor".to_owned(), source });
        }
        answered.await.map_err(|_| gone())
    }

    /// Ends the monitor, and returns when it has cleared everything away.
    pub async fn close(&self) {
        self.end();
        let mut ended = self.ended.clone();
        // Who says it goes only with the runtime.
        ended.wait_for(|ended| *ended).await.ok();
    }

    fn end(&self) {
        self.shared.closing.store(true, Ordering::Release);
        if let Some(live) = &*self.shared.live.borrow() {
            rustix::net::shutdown(live.socket.get_ref(), Shutdown::Both).ok();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn new(program: spawner::Command, setup: Setup) -> Arc<Self> {
        let (live, closing) = (watch::Sender::new(None), AtomicBool::new(false));
        Arc::new(Self { program, setup, live, closing })
    }

    async fn launch(&self) -> io::Result<Arc<Live>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = std::process::Command::new(&self.program.program);
        command
            .args(&self.program.args)
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
        let process = sys::watch(process, Interest::READABLE)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let socket = sys::watch(ours, Interest::READABLE | Interest::WRITABLE)?;
        let ready = async {
            let setup = ToMonitor::Setup(self.setup.clone());
            socket
                .async_io(Interest::WRITABLE, |socket| wire::send_packet(socket.as_fd(), &setup, &[]))
                .await?;
            socket
                .async_io(Interest::READABLE, |socket| wire::receive_packet::<FromMonitor>(socket.as_fd()))
                .await
        };
        let ready = tokio::time::timeout(START_LIMIT, ready).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "an earlier one may still be clearing away"))
        });
        if let Ok((FromMonitor::Ready, _)) = ready {
            return Ok(Arc::new(Live { socket, process, pid, waiting: Mutex::default() }));
        }
        drop(socket);
        // Gone already is as good.
        pidfd_send_signal(process.get_ref(), Signal::KILL).ok();
        tokio::spawn(async move { collect(&process).await });
        let why = ready.err().map_or_else(|| "it answered nonsense".to_owned(), |error| error.to_string());
        Err(io::Error::other(format!(
            "it did not come up ({why}); does its main call spawner::run_if_asked first?"
        )))
    }
}

/// Hands answers out until the monitor is gone, and starts another: without one, nobody would end frozen containers when the
/// runner is killed.
async fn supervise(shared: Arc<Shared>, first: Arc<Live>, ending: watch::Sender<bool>) {
    let mut next = Some(first);
    while let Some(live) = next.take() {
        listen(&live).await;
        shared.live.send_replace(None);
        // It may take as long as it clears away.
        collect(&live.process).await;
        if shared.closing.load(Ordering::Acquire) {
            break;
        }
        tracing::warn!(pid = live.pid, "the sandbox monitor died; its containers go on with another");
        match shared.launch().await {
            Ok(live) => {
                shared.live.send_replace(Some(Arc::clone(&live)));
                // Closed meanwhile, it was not there to be told.
                if shared.closing.load(Ordering::Acquire) {
                    rustix::net::shutdown(live.socket.get_ref(), Shutdown::Both).ok();
                }
                next = Some(live);
            }
            Err(error) => tracing::error!(%error, "no other sandbox monitor could be started"),
        }
    }
    ending.send_replace(true);
}

async fn listen(live: &Live) {
    loop {
        let packet = live
            .socket
            .async_io(Interest::READABLE, |socket| wire::receive_packet::<FromMonitor>(socket.as_fd()));
        match packet.await {
            Ok((FromMonitor::Done { sequence, status }, _)) => {
                let mut waiting = live.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(answer) = waiting.answers.remove(&sequence) {
                    // Nobody waiting any more has given up.
                    answer.send(status).ok();
                }
            }
            Ok((FromMonitor::Ready, _)) => {}
            Err(_) => break,
        }
    }
    let mut waiting = live.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.closed = true;
    waiting.answers.clear();
}
