//! The runner's side of a supervisor: starts it, asks it, and starts another when it dies.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::holder::Holder;
use super::{Received, Role};
use crate::handover::{FdNumber, InheritedFds, PassedFds};
use crate::spawner::Command;
use crate::{Error, sys, wire};

/// How long a supervisor may take to come up. It waits for the one before it to clear away.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A handle on the supervisor of one driver. Dropping it ends the supervisor, and what hangs on that.
pub struct Client<T: Role>(Arc<Shared<T>>);

struct Shared<T: Role> {
    program: Command,
    setup: T::Setup,
    live: Mutex<Option<Arc<Live<T>>>>,
    /// Held while another is started, or none any more.
    starting: tokio::sync::Mutex<()>,
    /// No other is started.
    closed: AtomicBool,
}

/// A supervisor as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    socket: FdNumber,
    process: FdNumber,
    pid: u32,
    /// The number of the last order: its answer may still come.
    sequence: u64,
}

/// What comes of an order, and the descriptor that came with it.
pub type Answered<T> = (<T as Role>::Answer, Option<OwnedFd>);

/// One supervisor process.
pub struct Live<T: Role> {
    socket: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
    pid: u32,
    waiting: Mutex<Waiting<Answered<T>>>,
    /// Nothing is heard of it any more.
    gone: watch::Sender<bool>,
    /// Its process has ended.
    ended: watch::Sender<bool>,
}

struct Waiting<A> {
    sequence: u64,
    /// No answer will come any more.
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<A>>,
}

impl<T: Role> Client<T> {
    /// Starts the supervisor.
    ///
    /// # Errors
    /// [`Error::Platform`] when it does not come up.
    pub async fn start(program: Command, setup: T::Setup) -> Result<Self, Error> {
        let client = Self::new(program, setup);
        client.live().await?;
        Ok(client)
    }

    fn new(program: Command, setup: T::Setup) -> Self {
        let (starting, closed) = (tokio::sync::Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Shared { program, setup, live: Mutex::default(), starting, closed }))
    }

    /// The supervisor, for the next program of this process. Nothing may be asked of it any more.
    ///
    /// # Errors
    /// When there is none at the moment; as [`PassedFds::keep`].
    pub fn hand_over(&self, passed: &mut PassedFds) -> io::Result<Handed> {
        let live = self.current()?;
        Ok(Handed {
            socket: passed.keep(live.socket.get_ref())?,
            process: passed.keep(live.process.get_ref())?,
            pid: live.pid,
            sequence: live.waiting().sequence,
        })
    }

    /// Goes on with a supervisor of the process's former program; others are started by `program`.
    ///
    /// # Errors
    /// When it was not left.
    pub fn take_up(
        program: Command,
        setup: T::Setup,
        handed: Handed,
        inherited: &mut InheritedFds,
    ) -> io::Result<Self> {
        let Handed { socket, process, pid, sequence } = handed;
        let socket = sys::watch(inherited.take(socket)?, Interest::READABLE | Interest::WRITABLE)?;
        let process = sys::watch(inherited.take(process)?, Interest::READABLE)?;
        let client = Self::new(program, setup);
        client.0.follow(Live::new(socket, process, pid, sequence));
        Ok(client)
    }

    /// The supervisor's process id.
    pub fn pid(&self) -> Option<u32> {
        self.0.live().as_ref().map(|live| live.pid)
    }

    /// The supervisor there is.
    ///
    /// # Errors
    /// When there is none at the moment.
    pub fn current(&self) -> io::Result<Arc<Live<T>>> {
        let live = self.0.live().clone().filter(|live| live.stands());
        live.ok_or_else(|| io::Error::new(io::ErrorKind::BrokenPipe, "it is gone"))
    }

    /// The supervisor, started if there is none.
    ///
    /// # Errors
    /// [`Error::Platform`] when none comes up, or after [`Client::close`].
    pub async fn live(&self) -> Result<Arc<Live<T>>, Error> {
        self.0.start().await
    }

    /// Ends the supervisor, and returns when it has cleared everything away.
    pub async fn close(&self) {
        let turn = self.0.starting.lock().await;
        self.0.closed.store(true, Ordering::Release);
        drop(turn);
        let Some(live) = self.0.live().take() else { return };
        live.hang_up();
        // Who says it goes only with the runtime.
        live.ended.subscribe().wait_for(|ended| *ended).await.ok();
    }
}

impl<T: Role> Drop for Client<T> {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        if let Some(live) = &*self.0.live() {
            live.hang_up();
        }
    }
}

impl<T: Role> Shared<T> {
    fn live(&self) -> MutexGuard<'_, Option<Arc<Live<T>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(self: &Arc<Self>) -> Result<Arc<Live<T>>, Error> {
        let standing = || self.live().clone().filter(|live| live.stands());
        if let Some(live) = standing() {
            return Ok(live);
        }
        let _turn = self.starting.lock().await;
        // Somebody else may have started it meanwhile.
        if let Some(live) = standing() {
            return Ok(live);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(unheard::<T>("the driver was closed"));
        }
        let live = self.launch().await.map_err(|source| Error::Platform {
            step: format!("start the {} {}", T::NAME, self.program.program.display()),
            source,
        })?;
        self.follow(Arc::clone(&live));
        // Dropped meanwhile, the client did not find it there to be told.
        if self.closed.load(Ordering::Acquire) {
            live.hang_up();
        }
        Ok(live)
    }

    /// Has somebody listen to it. Ends with the supervisor, and starts another if that was not meant to end.
    fn follow(self: &Arc<Self>, live: Arc<Live<T>>) {
        *self.live() = Some(Arc::clone(&live));
        tokio::spawn(attend(Arc::clone(self), live));
    }

    async fn launch(&self) -> io::Result<Arc<Live<T>>> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = std::process::Command::new(&self.program.program);
        command
            .args(&self.program.args)
            .arg(T::ARGUMENT)
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
            let setup = T::Order::from(self.setup.clone());
            socket
                .async_io(Interest::WRITABLE, |socket| wire::send_packet(socket.as_fd(), &setup, &[]))
                .await?;
            let word = socket
                .async_io(Interest::READABLE, |socket| wire::receive_packet::<T::Message>(socket.as_fd()))
                .await;
            Ok::<Received<T::Answer>, io::Error>(word?.0.into())
        };
        let (kind, why) = match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(Ok(Received::Ready)) => return Ok(Live::new(socket, process, pid, 0)),
            Ok(Ok(Received::Answer { .. })) => {
                (io::ErrorKind::InvalidData, "it does not begin with its word".to_owned())
            }
            Ok(Err(error)) => {
                (error.kind(), format!("{error}; does its main call spawner::run_if_asked first?"))
            }
            Err(_) => (io::ErrorKind::TimedOut, self.late()),
        };
        drop(socket);
        // Gone already is as good.
        pidfd_send_signal(process.get_ref(), Signal::KILL).ok();
        tokio::spawn(async move { collect(&process).await });
        Err(io::Error::new(kind, format!("it did not come up: {why}")))
    }

    /// Why one has not come up in its time: whom it waits for, where it waits for somebody.
    fn late(&self) -> String {
        let path = T::lock(&self.setup);
        let holder = File::open(path).and_then(|lock| Holder::of(&lock));
        match holder {
            Ok(Some(holder)) => format!(
                "{holder} still has {}: end it with `kill -9 {}`, and start the runner again",
                path.display(),
                holder.pid
            ),
            _ => format!("it said nothing in {START_LIMIT:?}"),
        }
    }
}

impl<T: Role> Live<T> {
    fn new(socket: AsyncFd<OwnedFd>, process: AsyncFd<OwnedFd>, pid: u32, sequence: u64) -> Arc<Self> {
        let waiting = Mutex::new(Waiting { sequence, closed: false, answers: HashMap::new() });
        let (gone, ended) = (watch::Sender::new(false), watch::Sender::new(false));
        Arc::new(Self { socket, process, pid, waiting, gone, ended })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<Answered<T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands(&self) -> bool {
        !*self.gone.borrow()
    }

    /// Turns true when nothing is heard of it any more.
    pub fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }

    /// Whether it is gone, at once and for certain: a process that ends closes its descriptors before its children learn of its death, so who
    /// died of that finds this true.
    pub fn is_gone(&self) -> bool {
        let mut sockets = [PollFd::new(self.socket.get_ref(), PollFlags::RDHUP)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let asked = rustix::event::poll(&mut sockets, Some(&none));
        asked.is_ok_and(|ready| ready > 0) || !self.stands()
    }

    /// A number for an order, and what will come of it.
    ///
    /// # Errors
    /// [`Error::Platform`] when nothing will.
    pub fn expect(&self) -> Result<(u64, oneshot::Receiver<Answered<T>>), Error> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err(unheard::<T>("it is gone"));
        }
        waiting.sequence += 1;
        let sequence = waiting.sequence;
        waiting.answers.insert(sequence, answer);
        Ok((sequence, answered))
    }

    /// Nothing will come of this order.
    pub fn forget(&self, sequence: u64) {
        self.waiting().answers.remove(&sequence);
    }

    /// Gives an order, and waits for what comes of it.
    ///
    /// # Errors
    /// [`Error::Platform`] when it is gone.
    pub async fn ask(
        &self,
        order: impl FnOnce(u64) -> T::Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answered<T>, Error> {
        let (sequence, answered) = self.expect()?;
        let order = order(sequence);
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, |socket| wire::send_packet(socket.as_fd(), &order, descriptors))
            .await;
        if let Err(source) = sent {
            self.forget(sequence);
            return Err(Error::Platform { step: format!("ask the {}", T::NAME), source });
        }
        answered.await.map_err(|_| unheard::<T>("it is gone"))
    }

    /// Both sides see it.
    fn hang_up(&self) {
        shutdown(self.socket.get_ref(), Shutdown::Both).ok();
    }

    /// Hands answers out until it is gone.
    async fn listen(&self) {
        loop {
            let packet = self
                .socket
                .async_io(Interest::READABLE, |socket| wire::receive_packet::<T::Message>(socket.as_fd()));
            let Ok((word, mut descriptors)) = packet.await else { break };
            let Received::Answer { sequence, answer } = word.into() else { continue };
            if let Some(waiting) = self.waiting().answers.remove(&sequence) {
                // Nobody waiting any more has given up; a descriptor closes.
                waiting.send((answer, descriptors.pop())).ok();
            }
        }
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.answers.clear();
        drop(waiting);
        self.gone.send_replace(true);
    }
}

/// Waits for the end of a process, which may take as long as it clears away, and reaps it.
async fn collect(process: &AsyncFd<OwnedFd>) {
    // An error is that of a runtime that ends.
    if process.readable().await.is_ok() {
        waitid(WaitId::PidFd(process.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    }
}

/// Listens to a supervisor until its end, and starts another where that was not asked for: what is there is to end with the runner,
/// and what is made next is not to wait.
async fn attend<T: Role>(shared: Arc<Shared<T>>, live: Arc<Live<T>>) {
    live.listen().await;
    let closed = || shared.closed.load(Ordering::Acquire);
    if !closed() {
        tracing::warn!(pid = live.pid, "the {} died: {}", T::NAME, T::LOST);
    }
    collect(&live.process).await;
    live.ended.send_replace(true);
    if closed() {
        return;
    }
    if let Err(error) = shared.start().await
        && !closed()
    {
        tracing::error!(%error, "no other {} could be started; it is tried again with the next sandbox", T::NAME);
    }
}

fn unheard<T: Role>(why: &str) -> Error {
    Error::Platform {
        step: format!("ask the {}", T::NAME),
        source: io::Error::new(io::ErrorKind::BrokenPipe, why.to_owned()),
    }
}
