//! The runner's side of one sandbox.
//!
//! A **keeper** task owns the end of it: it hears the init, notices the death of init or spawner through the pidfd, kills
//! when told to, and removes what the sandbox held. Handles only send orders and read the result, so dropping one at any
//! moment is safe and never waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

use crate::cgroup::{Freezer, Leaf};
use crate::egress::Way;
use crate::engine::{CellLeaf, Engine, HostDirectory, Slot};
use crate::spawner::client::{Init, Parent};
use crate::sys;
use crate::wire::{self, Inbox, Launch, Launched, Order, Plan, Report};
use crate::{Error, Exit, ExitCause, Sandbox, Shared, Stdio, Usage};

/// How often a version 1 freezer is asked; it tells nothing by itself.
const FREEZER_POLL: Duration = Duration::from_millis(1);

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
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
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

/// What a sandbox holds outside its processes, given back when it is gone.
pub struct Holdings {
    pub leaf: CellLeaf,
    /// Held for its drop.
    pub _slot: Option<Slot>,
    pub directory: Option<HostDirectory>,
}

/// A sandbox of either driver.
pub struct Cell {
    id: String,
    shared: Option<Shared>,
    inner: Arc<Inner>,
    /// The parked process and the runner's ends of its pipes, until it is started.
    parked: Mutex<Option<(Channel, Stdio)>>,
}

struct Inner {
    isolate: bool,
    control: Channel,
    pidfd: AsyncFd<OwnedFd>,
    leaf: CellLeafView,
    kill: Notify,
    exit: watch::Receiver<Option<Exit>>,
    /// One freeze, thaw or listen at a time; and the answers to them.
    answers: tokio::sync::Mutex<mpsc::Receiver<(Report, Option<OwnedFd>)>>,
    /// What it had used when it ended.
    last_usage: Mutex<Option<Usage>>,
    orphaned: watch::Receiver<bool>,
    parent: Parent,
    /// Its way out, where it has one, until it is gone.
    way: Mutex<Option<Way>>,
}

/// The leaf, while the keeper has not taken it down.
struct CellLeafView(Mutex<Option<Arc<CellLeaf>>>);

impl CellLeafView {
    fn with<T>(&self, look: impl FnOnce(&Leaf) -> T) -> Option<T> {
        self.held().as_ref().and_then(|leaf| leaf.get()).map(look)
    }

    fn held(&self) -> Option<Arc<CellLeaf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn take(&self) -> Option<Arc<CellLeaf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Cell {
    /// Turns a blank into a sandbox that is parked just before its `exec`.
    ///
    /// # Errors
    /// As [`crate::Driver::create`] says. Nothing is left behind.
    pub(crate) async fn build(
        id: String,
        plan: Plan,
        inside: Option<PathBuf>,
        control: Channel,
        init: Init,
        mut holdings: Holdings,
        engine: &Arc<Engine>,
    ) -> Result<Self, Error> {
        let fail = |step: &str| {
            let step = step.to_owned();
            move |source: io::Error| Error::Platform { step, source }
        };
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| fail("make a pipe")(error.into()));
        let (stdin, our_stdin) = pipe()?;
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        for ours in [&our_stdin, &our_stdout, &our_stderr] {
            rustix::io::ioctl_fionbio(ours, true).map_err(|error| fail("make a pipe")(error.into()))?;
        }
        let (our_launch, launch) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|error| fail("make a socket pair")(error.into()))?;
        let our_launch = Channel::new(our_launch).map_err(fail("make a socket pair"))?;
        let parent = init.parent();
        let pidfd = sys::watch(init.pidfd, Interest::READABLE).map_err(fail("watch the sandbox's init"))?;

        let wants_handle = plan.shared.is_some();
        let host_shared = holdings.directory.as_mut().and_then(HostDirectory::shared);
        let (exit, exited) = watch::channel(None);
        let (answer, answers) = mpsc::channel(4);
        let leaf = Arc::new(std::mem::replace(&mut holdings.leaf, CellLeaf::new(None)));
        let inner = Arc::new(Inner {
            isolate: engine.flavour.isolate,
            control,
            pidfd,
            leaf: CellLeafView(Mutex::new(Some(leaf))),
            kill: Notify::new(),
            exit: exited,
            answers: tokio::sync::Mutex::new(answers),
            last_usage: Mutex::default(),
            orphaned: init.orphaned,
            parent,
            way: Mutex::default(),
        });
        tokio::spawn(keep(Arc::clone(&inner), exit, answer, holdings, Arc::clone(engine)));
        // From here on, dropping the cell ends it.
        let mut cell = Self { id, shared: host_shared, inner, parked: Mutex::default() };

        let pipes = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), launch.as_fd()];
        let sent = cell.inner.control.send(&Order::Build(Box::new(plan)), &pipes).await;
        drop((stdin, stdout, stderr, launch));
        if let Err(source) = sent {
            return Err(cell
                .inner
                .last_words()
                .await
                .unwrap_or_else(|| fail("instruct the sandbox's init")(source)));
        }
        let answer = async || {
            cell.inner.answers.lock().await.recv().await.ok_or_else(|| fail("build the sandbox")(died()))
        };
        let (mut report, mut handle) = answer().await?;
        if let (Report::Tunnel, Some(policy)) = (&report, &engine.flavour.egress) {
            let tunnel = handle.take().ok_or_else(|| fail("open the way out")(died()))?;
            let way = Way::serve(tunnel, Arc::clone(policy)).map_err(fail("open the way out"))?;
            *cell.inner.way.lock().unwrap_or_else(PoisonError::into_inner) = Some(way);
            (report, handle) = answer().await?;
        }
        match report {
            Report::Built => {}
            Report::Failed(failure) => return Err(failure.into()),
            _ => return Err(fail("build the sandbox")(io::ErrorKind::InvalidData.into())),
        }
        match our_launch.receive::<Launched>().await {
            Ok(Some(Launched::Parked)) => {}
            Ok(Some(Launched::Failed(failure))) => return Err(failure.into()),
            Ok(None) => return Err(fail("park the function's process")(died())),
            Err(error) => return Err(fail("park the function's process")(error)),
        }
        if wants_handle {
            let directory = handle.ok_or_else(|| fail("open the shared directory")(died()))?;
            cell.shared = inside.map(|inside| Shared { directory, inside });
        }
        let stdio = Stdio { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr };
        cell.parked = Mutex::new(Some((our_launch, stdio)));
        Ok(cell)
    }
}

fn died() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it was done")
}

impl Inner {
    /// What a failed init said before it closed its stream.
    async fn last_words(&self) -> Option<Error> {
        match self.answers.lock().await.recv().await {
            Some((Report::Failed(failure), _)) => Some(failure.into()),
            _ => None,
        }
    }

    /// Kills everything in it, without waiting.
    fn kill_now(&self) {
        let at_once = self.leaf.with(Leaf::kill).unwrap_or(false);
        if self.isolate {
            // Gone already is as good.
            pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL).ok();
        } else if !at_once {
            self.kill.notify_one();
        }
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        // The keeper goes only with the runtime.
        ended
            .ok()
            .and_then(|exit| *exit)
            .unwrap_or(Exit { cause: ExitCause::Signal(9), out_of_memory: false })
    }

    async fn ask(&self, order: Order) -> Result<(Report, Option<OwnedFd>), Error> {
        let mut answers = self.answers.lock().await;
        let step = || "give an order to the sandbox".to_owned();
        self.control.send(&order, &[]).await.map_err(|source| Error::Platform { step: step(), source })?;
        answers.recv().await.ok_or_else(|| Error::Platform {
            step: step(),
            source: io::Error::new(io::ErrorKind::BrokenPipe, "it ended"),
        })
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let ended = || Error::Platform {
            step: if frozen { "freeze" } else { "thaw" }.to_owned(),
            source: io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended"),
        };
        if self.exit.borrow().is_some() {
            return Err(ended());
        }
        let Some(freezer) = self.leaf.with(Leaf::freezer).flatten() else {
            let order = if frozen { Order::Stop } else { Order::Continue };
            return self.ask(order).await.map(drop);
        };
        let fail =
            |source| Error::Platform { step: if frozen { "freeze" } else { "thaw" }.to_owned(), source };
        freezer.set(frozen).map_err(fail)?;
        let mut exit = self.exit.clone();
        tokio::select! {
            still = settled(&freezer, frozen) => still.map_err(fail),
            _ = exit.wait_for(Option::is_some) => Err(ended()),
        }
    }

    fn usage(&self) -> Usage {
        if let Some(last) = *self.last_usage.lock().unwrap_or_else(PoisonError::into_inner) {
            return last;
        }
        self.leaf.with(usage).unwrap_or_default()
    }
}

pub(crate) fn usage(leaf: &Leaf) -> Usage {
    let (memory, memory_peak) = leaf.memory();
    Usage { memory, memory_peak, cpu: leaf.cpu() }
}

/// Waits until a freezer is in the state that was asked for.
pub(crate) async fn settled(freezer: &Freezer, frozen: bool) -> io::Result<()> {
    // Nearly always done by the time the write returns.
    if freezer.is_frozen()? == frozen {
        return Ok(());
    }
    if let Some(events) = freezer.events() {
        let file = sys::watch(std::fs::File::open(events)?.into(), Interest::PRIORITY)?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(file.get_ref(), &mut text[..], 0)?;
            if (text[..length].windows(8).any(|part| part == b"frozen 1")) == frozen {
                return Ok(());
            }
            file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
    let mut again = tokio::time::interval(FREEZER_POLL);
    while freezer.is_frozen()? != frozen {
        again.tick().await;
    }
    Ok(())
}

/// Waits until `flag` is true; for ever if it never can be.
async fn turned(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|flag| *flag).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Stays with a sandbox until it is gone, then clears away what it held.
async fn keep(
    inner: Arc<Inner>,
    exit: watch::Sender<Option<Exit>>,
    answer: mpsc::Sender<(Report, Option<OwnedFd>)>,
    holdings: Holdings,
    engine: Arc<Engine>,
) {
    let mut reported = None;
    let (mut by_watch, mut watched) = (false, 0);
    let mut heard = true;
    let mut orphaned = inner.orphaned.clone();
    let mut hunted = false;
    loop {
        tokio::select! {
            // First what the init still said, then that it is gone.
            biased;
            message = inner.control.receive::<Report>(), if heard => match message {
                Ok(Some(Report::Ended { code, signal, out_of_memory, peak })) => {
                    (by_watch, watched) = (out_of_memory, peak);
                    reported = code.map(ExitCause::Code).or(signal.map(ExitCause::Signal));
                }
                Ok(Some(Report::Orphaned)) => reported = Some(ExitCause::Lost),
                Ok(Some(report)) => {
                    // Only what we asked for is answered, one at a time; more is a lie that nobody hears.
                    answer.try_send((report, inner.control.descriptor())).ok();
                }
                Ok(None) | Err(_) => heard = false,
            },
            gone = inner.pidfd.readable() => {
                if gone.is_ok() {
                    break;
                }
            }
            () = inner.kill.notified() => {
                if inner.control.send(&Order::Kill, &[]).await.is_err() {
                    heard = false;
                }
            }
            () = turned(&mut orphaned), if !hunted => {
                // Its init dies of the spawner's death, but not while it is frozen.
                hunted = true;
                inner.kill_now();
            }
        }
    }
    // What the init said last may have arrived with its end.
    inner.control.drain();
    while let Ok(Some(report)) = inner.control.take() {
        match report {
            Report::Ended { code, signal, out_of_memory, peak } => {
                (by_watch, watched) = (out_of_memory, peak);
                reported = code.map(ExitCause::Code).or(signal.map(ExitCause::Signal));
            }
            Report::Orphaned => reported = Some(ExitCause::Lost),
            report => _ = answer.try_send((report, inner.control.descriptor())),
        }
    }
    drop(answer);
    // It would keep the network namespace.
    inner.way.lock().unwrap_or_else(PoisonError::into_inner).take();
    // Before anything that takes time: a spawner that goes later had no part in this end. What exited by itself did so, whatever
    // came after.
    let lost = !matches!(reported, Some(ExitCause::Code(_))) && inner.parent.is_gone();
    // Reaps it where its death has made it our child; the spawner does else.
    waitid(WaitId::PidFd(inner.pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    let kills = inner.leaf.with(Leaf::memory_kills).unwrap_or(0);
    let mut last = inner.leaf.with(usage).unwrap_or_default();
    last.memory_peak = last.memory_peak.max(watched);
    *inner.last_usage.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
    let leaf = inner.leaf.take();
    let cleared = tokio::task::spawn_blocking(move || {
        if let Some(leaf) = leaf {
            leaf.clear();
        }
        drop(holdings);
    });
    if cleared.await.is_err() {
        tracing::warn!("what a sandbox held could not be cleared away");
    }
    let cause = match lost {
        true => ExitCause::Lost,
        false => reported.unwrap_or(ExitCause::Signal(libc::SIGKILL)),
    };
    exit.send_replace(Some(Exit { cause, out_of_memory: kills > 0 || by_watch }));
    drop(engine);
}

#[async_trait]
impl Sandbox for Cell {
    fn id(&self) -> &str {
        &self.id
    }

    fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    async fn start(&self, env: Vec<(String, String)>) -> Result<Stdio, Error> {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (launch, stdio) = parked.ok_or_else(|| Error::Platform {
            step: "start the sandbox".to_owned(),
            source: io::Error::new(io::ErrorKind::AlreadyExists, "it was started before"),
        })?;
        let fail = |source| Error::Platform { step: "start the sandbox".to_owned(), source };
        launch.send(&Launch { env }, &[]).await.map_err(fail)?;
        match launch.receive::<Launched>().await {
            // Closed by exec, or by a death just before it, which wait and the pipes tell.
            Ok(None) => Ok(stdio),
            Ok(Some(Launched::Failed(failure))) => Err(failure.into()),
            Ok(Some(Launched::Parked)) => Err(fail(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(fail(error)),
        }
    }

    async fn listen(&self, address: SocketAddr) -> Result<std::net::TcpListener, Error> {
        let fail = |source| Error::Platform { step: format!("listen on {address} in the sandbox"), source };
        match self.inner.ask(Order::Listen(address)).await? {
            (Report::Listening, Some(listener)) => {
                let listener = std::net::TcpListener::from(listener);
                listener.set_nonblocking(true).map_err(fail)?;
                Ok(listener)
            }
            (Report::NotListening { errno }, _) => Err(fail(io::Error::from_raw_os_error(errno))),
            _ => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.inner.set_frozen(true).await
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.inner.set_frozen(false).await
    }

    async fn stop(&self, grace: Duration) -> Exit {
        if !grace.is_zero() && self.inner.exit.borrow().is_none() {
            let asked = async {
                // Not frozen or ended already are as good.
                self.inner.set_frozen(false).await.ok();
                self.inner.control.send(&Order::Terminate, &[]).await.ok();
                self.inner.exited().await
            };
            if let Ok(exit) = tokio::time::timeout(grace, asked).await {
                return exit;
            }
        }
        self.inner.kill_now();
        self.inner.exited().await
    }

    async fn wait(&self) -> Exit {
        self.inner.exited().await
    }

    async fn reclaim(&self) -> Result<u64, Error> {
        let before = self.inner.usage().memory;
        let held = self.inner.leaf.held();
        // The kernel does it while we wait, page by page: not on the thread that serves calls.
        let done = tokio::task::spawn_blocking(move || match held.as_ref().and_then(|leaf| leaf.get()) {
            Some(leaf) => leaf.reclaim(),
            None => Err(io::ErrorKind::Unsupported.into()),
        });
        match done.await.map_err(io::Error::other).flatten() {
            Ok(()) => Ok(before.saturating_sub(self.inner.usage().memory)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(Error::Unsupported(
                "memory can be taken back only where a cgroup counts it, and from what lives".to_owned(),
            )),
            Err(source) => {
                Err(Error::Platform { step: "take memory back from the sandbox".to_owned(), source })
            }
        }
    }

    async fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if self.inner.exit.borrow().is_none() {
            self.inner.kill_now();
        }
    }
}
