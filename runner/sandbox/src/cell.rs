//! The runner's side of one sandbox, whatever holds it.
//!
//! A **keeper** task owns the end of it: it hears the init, notices the death of init or holder, kills when told to, and has
//! removed what the sandbox held. Handles only send orders and read the result, so dropping one at any moment is safe and never
//! waits. What differs between drivers is their [`Grip`].

mod keeper;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::cgroup::{Freezer, Leaf};
use crate::channel::{Channel, Ends, Parked, died};
use crate::handover::{Bequest, HandedSandbox, Inheritance, Kept};
use crate::wire::{self, Order, Plan, Report};
use crate::{
    Companion, Error, Exit, ExitCause, Process, Sandbox, Shared, Signal, Stdio, Usage, User, contained, sys,
};

/// What is done when the process's former program has left a sandbox.
pub const TAKE_UP: &str = "take the sandbox up";

/// How often a version 1 freezer is asked; it tells nothing by itself.
const FREEZER_POLL: Duration = Duration::from_millis(1);

/// How a driver holds a sandbox: its cgroup, and what there is to be removed.
#[async_trait]
pub trait Grip: Send + Sync {
    /// Its cgroup, as long as that may be looked at.
    fn leaf(&self) -> Option<Arc<Leaf>>;

    /// Kills all of it without waiting. `false` where only its init can.
    fn kill(&self, init: BorrowedFd<'_>) -> bool;

    /// Freezes and thaws what has no cgroup that we may write to; `None` where its init does it by signals.
    async fn set_frozen(&self, _frozen: bool) -> Option<Result<(), Error>> {
        None
    }

    /// Takes the other end of its tunnel.
    ///
    /// # Errors
    /// When it cannot be served.
    fn tunnel(&self, _tunnel: OwnedFd) -> Result<(), Error> {
        Err(Error::Unsupported("nobody asked for a way out".to_owned()))
    }

    /// Returns when nobody looks after it any more but us, if that can be.
    async fn orphaned(&self) {
        std::future::pending().await
    }

    /// What held it went away, and it with it.
    fn lost(&self) -> bool {
        false
    }

    /// Its init waits to be killed when the function has ended, so that its cgroup can still be read.
    fn lingers(&self) -> bool {
        false
    }

    /// Removes what it held, before its end is told.
    async fn clear(&self) {}

    /// Has written off what is left, after its end was told: where somebody else takes his time for it.
    async fn write_off(&self) {}

    /// What the next program of this process needs to hold it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while it hangs on more than descriptors and names.
    fn hand_over(&self, bequest: &mut Bequest) -> Result<Held, Error>;
}

/// What a sandbox holds outside its processes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Held {
    pub leaf: Option<Leaf>,
    /// The number of its user id.
    pub slot: Option<u32>,
    /// A directory of the host that it shares, and what that lies in.
    pub directory: Option<[PathBuf; 2]>,
    /// What an engine has of it.
    pub container: Option<contained::Handed>,
    /// The other end of its tunnel, where it has a way out.
    pub tunnel: Option<Kept>,
}

/// What a sandbox is made from, once there is an init that waits for its plan.
pub struct Making {
    pub plan: Plan,
    /// Where the function finds the shared directory, where the init makes it.
    pub inside: Option<PathBuf>,
    /// The shared directory, where it is there already.
    pub shared: Option<Shared>,
    pub control: Channel,
    /// The init's.
    pub pidfd: OwnedFd,
    pub grip: Arc<dyn Grip>,
    /// Whom the function is to the host, where that is not our own user.
    pub owner: Option<User>,
}

/// A sandbox of any driver.
pub struct Cell {
    id: String,
    shared: Option<Shared>,
    inner: Arc<Inner>,
    /// The command's process, until it is started.
    parked: Mutex<Option<Parked>>,
}

struct Inner {
    control: Channel,
    pidfd: AsyncFd<OwnedFd>,
    grip: Arc<dyn Grip>,
    owner: Option<User>,
    stays: bool,
    kill: Notify,
    exit: watch::Receiver<Option<Exit>>,
    /// How the command ended that was started last.
    command: watch::Sender<Option<Exit>>,
    companions: Mutex<Companions>,
    /// One order at a time that is answered; and the answers.
    answers: tokio::sync::Mutex<mpsc::Receiver<(Report, Option<OwnedFd>)>>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Companions {
    last: u64,
    ends: HashMap<u64, oneshot::Sender<ExitCause>>,
}

/// What was read of the cgroup, for when it is gone.
#[derive(Default)]
struct Counted {
    usage: Option<Usage>,
    /// Processes killed for memory, and how many of them before the last start.
    kills: u64,
    earlier: u64,
    /// The most memory that an init saw, where no cgroup counts.
    watched: u64,
    over: bool,
}

fn platform(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let step = step.into();
    move |source| Error::Platform { step, source }
}

impl Cell {
    /// Has an init make a sandbox that is parked just before its `exec`.
    ///
    /// # Errors
    /// As [`crate::Driver::create`] says. Nothing is left behind.
    pub async fn build(making: Making) -> Result<Self, Error> {
        let Making { plan, inside, shared, control, pidfd, grip, owner } = making;
        let wants_handle = plan.shared.is_some();
        let inner = Inner::follow(control, pidfd, grip, owner, plan.stays)?;
        // From here on, dropping the cell ends it.
        let mut cell = Self { id: plan.id.clone(), shared, inner, parked: Mutex::default() };
        let ends = Ends::new(owner)?;
        let sent = cell.inner.control.send(&Order::Build(Box::new(plan)), &ends.theirs()).await;
        let parked = ends.handed_over();
        if let Err(source) = sent {
            let words = cell.inner.last_words().await;
            return Err(words.unwrap_or_else(|| platform("instruct the sandbox's init")(source)));
        }
        let answer = async || {
            let answer = cell.inner.answers.lock().await.recv().await;
            answer.ok_or_else(|| platform("build the sandbox")(died()))
        };
        let (mut report, mut handle) = answer().await?;
        if let Report::Tunnel = report {
            let tunnel = handle.take().ok_or_else(|| platform("open the way out")(died()))?;
            cell.inner.grip.tunnel(tunnel)?;
            (report, handle) = answer().await?;
        }
        match report {
            Report::Built => {}
            Report::Failed(failure) => return Err(failure.into()),
            _ => return Err(platform("build the sandbox")(io::ErrorKind::InvalidData.into())),
        }
        parked.there().await?;
        if wants_handle {
            let directory = handle.ok_or_else(|| platform("open the shared directory")(died()))?;
            cell.shared = inside.map(|inside| Shared { directory, inside });
        }
        cell.parked = Mutex::new(Some(parked));
        Ok(cell)
    }

    /// Takes up a sandbox of the process's former program.
    ///
    /// # Errors
    /// [`Error::Platform`] when a part of it was not left. Then it ends.
    pub fn take_up(
        handed: HandedSandbox,
        grip: Arc<dyn Grip>,
        init: OwnedFd,
        inheritance: &mut Inheritance,
    ) -> Result<Self, Error> {
        let HandedSandbox { id, owner, stays, control, shared, parked, watched, .. } = handed;
        let take = || {
            let control = Channel::new(inheritance.take(control)?)?;
            let shared = match shared {
                Some((directory, inside)) => Some(Shared { directory: inheritance.take(directory)?, inside }),
                None => None,
            };
            let parked = parked.map(|parked| Parked::take_up(parked, inheritance)).transpose()?;
            Ok((control, shared, parked))
        };
        let (control, shared, parked) = take().map_err(platform(TAKE_UP))?;
        let inner = Inner::follow(control, init, grip, owner, stays)?;
        inner.counted().watched = watched;
        Ok(Self { id, shared, inner, parked: Mutex::new(parked) })
    }

    fn must_stay(&self) -> Result<(), Error> {
        match self.inner.stays {
            true => Ok(()),
            false => Err(Error::Unsupported("this sandbox was made to end with its command".to_owned())),
        }
    }
}

impl Inner {
    /// Has a keeper look after an init from now on.
    fn follow(
        control: Channel,
        init: OwnedFd,
        grip: Arc<dyn Grip>,
        owner: Option<User>,
        stays: bool,
    ) -> Result<Arc<Self>, Error> {
        let pidfd = sys::watch(init, Interest::READABLE).map_err(platform("watch the sandbox's init"))?;
        let (exit, exited) = watch::channel(None);
        let (answer, answers) = mpsc::channel(4);
        let inner = Arc::new(Self {
            control,
            pidfd,
            grip,
            owner,
            stays,
            kill: Notify::new(),
            exit: exited,
            command: watch::Sender::new(None),
            companions: Mutex::default(),
            answers: tokio::sync::Mutex::new(answers),
            counted: Mutex::default(),
        });
        // Ends with the sandbox.
        tokio::spawn(keeper::keep(Arc::clone(&inner), exit, answer));
        Ok(inner)
    }

    /// What a failed init said before it closed its stream.
    async fn last_words(&self) -> Option<Error> {
        match self.answers.lock().await.recv().await {
            Some((Report::Failed(failure), _)) => Some(failure.into()),
            _ => None,
        }
    }

    /// Kills everything in it, without waiting.
    fn kill_now(&self) {
        if self.grip.lingers() {
            self.count();
        }
        if !self.grip.kill(self.pidfd.get_ref().as_fd()) {
            self.kill.notify_one();
        }
    }

    async fn exited(&self) -> Exit {
        told(self.exit.clone()).await
    }

    async fn ask(
        &self,
        order: Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Report, Option<OwnedFd>), Error> {
        const STEP: &str = "give an order to the sandbox";
        let mut answers = self.answers.lock().await;
        self.control.send(&order, descriptors).await.map_err(platform(STEP))?;
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "it ended");
        answers.recv().await.ok_or_else(|| platform(STEP)(ended()))
    }

    /// Has another process made from the stem, and parked.
    async fn grow(&self, order: Order, ends: Ends) -> Result<Parked, Error> {
        let (report, _) = self.ask(order, &ends.theirs()).await?;
        let parked = ends.handed_over();
        match report {
            Report::Made => {}
            Report::Refused(failure) => return Err(failure.into()),
            _ => return Err(platform("start another process")(io::ErrorKind::InvalidData.into())),
        }
        parked.there().await?;
        Ok(parked)
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let step = if frozen { "freeze" } else { "thaw" };
        let ended = || platform(step)(io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended"));
        if self.exit.borrow().is_some() {
            return Err(ended());
        }
        let freezer = self.grip.leaf().and_then(|leaf| leaf.freezer());
        let Some(freezer) = freezer.filter(|freezer| freezer.set(frozen).is_ok()) else {
            if let Some(done) = self.grip.set_frozen(frozen).await {
                return done;
            }
            let order = if frozen { Order::Stop } else { Order::Continue };
            return self.ask(order, &[]).await.map(drop);
        };
        let mut exit = self.exit.clone();
        tokio::select! {
            still = settled(&freezer, frozen) => still.map_err(platform(step)),
            _ = exit.wait_for(Option::is_some) => Err(ended()),
        }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the cgroup has counted, while it can be read.
    fn count(&self) {
        let Some(leaf) = self.grip.leaf() else { return };
        let (now, kills) = (usage(&leaf), leaf.memory_kills());
        let mut counted = self.counted();
        if counted.usage.is_none() || now != Usage::default() {
            counted.usage = Some(now);
        }
        counted.kills = counted.kills.max(kills);
    }

    /// What ends from now on is of another start.
    fn begin_anew(&self) {
        let mut counted = self.counted();
        (counted.earlier, counted.over) = (counted.kills, false);
        drop(counted);
        self.command.send_replace(None);
    }

    /// How a command ended that was ended by this.
    fn exit(&self, cause: ExitCause) -> Exit {
        let counted = self.counted();
        Exit { cause, out_of_memory: counted.kills > counted.earlier || counted.over }
    }

    /// What an init says of the end of a process.
    fn over(&self, end: wire::End) -> Option<ExitCause> {
        let mut counted = self.counted();
        counted.over |= end.out_of_memory;
        counted.watched = counted.watched.max(end.peak);
        drop(counted);
        end.code.map(ExitCause::Code).or(end.signal.map(ExitCause::Signal))
    }

    fn companions(&self) -> MutexGuard<'_, Companions> {
        self.companions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usage(&self) -> Usage {
        let counted = self.counted();
        let ended = self.exit.borrow().is_some();
        let now = self.grip.leaf().filter(|_| !ended).map(|leaf| usage(&leaf));
        let mut usage = now.or(counted.usage).unwrap_or_default();
        usage.memory_peak = usage.memory_peak.max(counted.watched);
        usage
    }
}

/// Waits for an exit to be told. Who tells it goes only with the runtime.
async fn told(mut exit: watch::Receiver<Option<Exit>>) -> Exit {
    let ended = exit.wait_for(Option::is_some).await;
    let killed = Exit { cause: ExitCause::Signal(libc::SIGKILL), out_of_memory: false };
    ended.ok().and_then(|exit| *exit).unwrap_or(killed)
}

fn usage(leaf: &Leaf) -> Usage {
    let (memory, memory_peak) = leaf.memory();
    Usage { memory, memory_peak, cpu: leaf.cpu() }
}

/// Waits until a freezer is in the state that was asked for.
async fn settled(freezer: &Freezer, frozen: bool) -> io::Result<()> {
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
        let twice = || io::Error::new(io::ErrorKind::AlreadyExists, "it was started before");
        parked.ok_or_else(|| platform("start the sandbox")(twice()))?.start(env).await
    }

    async fn clear(&self) -> Result<(), Error> {
        self.must_stay()?;
        // What never started goes like the rest.
        drop(self.parked.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.inner.set_frozen(false).await?;
        let parked = self.inner.grow(Order::Again, Ends::new(self.inner.owner)?).await?;
        self.inner.companions().ends.clear();
        // Only now is everything of the last start dead and counted.
        self.inner.count();
        self.inner.begin_anew();
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(parked);
        Ok(())
    }

    async fn spawn(&self, companion: Companion) -> Result<Process, Error> {
        self.must_stay()?;
        let (over, ended) = oneshot::channel();
        let number = {
            let mut companions = self.inner.companions();
            companions.last += 1;
            let number = companions.last;
            companions.ends.insert(number, over);
            number
        };
        let program = wire::Program { command: companion.command, env: companion.env };
        let made = async {
            let parked =
                self.inner.grow(Order::Spawn { number, program }, Ends::new(self.inner.owner)?).await?;
            parked.start(Vec::new()).await
        };
        match made.await {
            Ok(stdio) => Ok(Process { stdio, ended }),
            Err(error) => {
                self.inner.companions().ends.remove(&number);
                Err(error)
            }
        }
    }

    async fn signal(&self, signal: Signal) -> Result<(), Error> {
        let order = match signal {
            Signal::Stop => Order::Terminate,
            Signal::Kill => Order::KillCommand,
        };
        self.inner.control.send(&order, &[]).await.map_err(platform("signal the command"))
    }

    async fn listen(&self, address: SocketAddr) -> Result<std::net::TcpListener, Error> {
        let fail = |source| platform(format!("listen on {address} in the sandbox"))(source);
        match self.inner.ask(Order::Listen(address), &[]).await? {
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
                self.ended().await
            };
            let ended = tokio::time::timeout(grace, asked).await;
            if let (Ok(exit), false) = (ended, self.inner.stays) {
                return exit;
            }
        }
        self.inner.kill_now();
        self.inner.exited().await
    }

    async fn wait(&self) -> Exit {
        self.inner.exited().await
    }

    async fn ended(&self) -> Exit {
        match self.inner.stays {
            true => told(self.inner.command.subscribe()).await,
            false => self.inner.exited().await,
        }
    }

    async fn reclaim(&self) -> Result<u64, Error> {
        let before = self.inner.usage().memory;
        let leaf = self.inner.grip.leaf();
        // The kernel does it while we wait, page by page: not on the thread that serves calls.
        let done = tokio::task::spawn_blocking(move || match leaf {
            Some(leaf) => leaf.reclaim(),
            None => Err(io::ErrorKind::Unsupported.into()),
        });
        match done.await.map_err(io::Error::other).flatten() {
            Ok(()) => Ok(before.saturating_sub(self.inner.usage().memory)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(Error::Unsupported(
                "memory can be taken back only where a cgroup counts it, and from what lives".to_owned(),
            )),
            Err(source) => Err(platform("take memory back from the sandbox")(source)),
        }
    }

    async fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn hand_over(&self, bequest: &mut Bequest) -> Result<HandedSandbox, Error> {
        let inner = &self.inner;
        if inner.exit.borrow().is_some() {
            return Err(platform("hand the sandbox over")(died()));
        }
        if !inner.companions().ends.is_empty() {
            let why = "something runs beside its command".to_owned();
            return Err(Error::Unsupported(why));
        }
        let held = inner.grip.hand_over(bequest)?;
        let keep = || {
            let shared = match &self.shared {
                Some(Shared { directory, inside }) => Some((bequest.keep(directory)?, inside.clone())),
                None => None,
            };
            let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(HandedSandbox {
                id: self.id.clone(),
                owner: inner.owner,
                stays: inner.stays,
                control: inner.control.hand_over(bequest)?,
                init: bequest.keep(inner.pidfd.get_ref())?,
                shared,
                parked: parked.as_ref().map(|parked| parked.hand_over(bequest)).transpose()?,
                watched: inner.counted().watched,
                held,
            })
        };
        keep().map_err(platform("hand the sandbox over"))
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if self.inner.exit.borrow().is_none() {
            self.inner.kill_now();
        }
    }
}
