//! What the handles of a sandbox and its keeper share: the way to the init, what was counted, and how it ended.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{Backing, keeper, platform};
use crate::cgroup::{Freezer, Leaf};
use crate::channel::{Channel, Ends, Parked};
use crate::init::processes;
use crate::wire::{self, Order, Report};
use crate::{Error, Exit, ExitCause, Usage, User, sys};

/// How often a version 1 freezer is asked; it tells nothing by itself.
const FREEZER_POLL: Duration = Duration::from_millis(1);

pub struct Inner {
    pub(super) control: Channel,
    pub(super) pidfd: AsyncFd<OwnedFd>,
    pub(super) backing: Arc<dyn Backing>,
    pub(super) owner: Option<User>,
    pub(super) stays: bool,
    pub(super) kill: Notify,
    exit: watch::Receiver<Option<Exit>>,
    /// How the command ended that was started last.
    pub(super) command: watch::Sender<Option<Exit>>,
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
    /// The most memory that an init or we saw, where no cgroup counts; and the CPU time.
    watched: u64,
    timed: Duration,
    over: bool,
}

impl Inner {
    /// Has a keeper look after an init from now on.
    pub fn follow(
        control: Channel,
        init: OwnedFd,
        backing: Arc<dyn Backing>,
        owner: Option<User>,
        stays: bool,
    ) -> Result<Arc<Self>, Error> {
        let pidfd = sys::watch(init, Interest::READABLE).map_err(platform("watch the sandbox's init"))?;
        let (exit, exited) = watch::channel(None);
        let (answer, answers) = mpsc::channel(4);
        let inner = Arc::new(Self {
            control,
            pidfd,
            backing,
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

    /// What its init answers next. None if it is gone.
    pub async fn answer(&self) -> Option<(Report, Option<OwnedFd>)> {
        self.answers.lock().await.recv().await
    }

    /// What a failed init said before it closed its stream.
    pub async fn last_words(&self) -> Option<Error> {
        match self.answer().await {
            Some((Report::Failed(failure), _)) => Some(failure.into()),
            _ => None,
        }
    }

    /// Kills everything in it, without waiting.
    pub fn kill_now(&self) {
        if self.backing.lingers() {
            self.count();
        }
        if !self.backing.kill(self.pidfd.get_ref().as_fd()) {
            self.kill.notify_one();
        }
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub async fn exited(&self) -> Exit {
        told(self.exit.clone()).await
    }

    /// Waits for the end of the command that was started last.
    pub async fn command_ended(&self) -> Exit {
        match self.stays {
            true => told(self.command.subscribe()).await,
            false => self.exited().await,
        }
    }

    /// # Errors
    /// [`Error::Platform`] when it has ended.
    pub async fn ask(
        &self,
        order: Order,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Report, Option<OwnedFd>), Error> {
        let step = || platform("give an order to the sandbox");
        let mut answers = self.answers.lock().await;
        match self.control.send(&order, descriptors).await {
            Err(error) if wire::is_gone(&error) => return Err(step()(ended())),
            sent => sent.map_err(step())?,
        }
        answers.recv().await.ok_or_else(|| step()(ended()))
    }

    /// Has another process made from the zygote, and parked.
    ///
    /// # Errors
    /// [`Error::Function`] when the function has ended the zygote; [`Error::Platform`].
    pub async fn fork(&self, order: Order, ends: Ends) -> Result<Parked, Error> {
        let (report, _) = self.ask(order, &ends.theirs()).await?;
        let parked = ends.handed_over();
        match report {
            Report::Made => {}
            Report::Refused(failure) => return Err(failure.into()),
            _ => return Err(platform("start another process")(io::ErrorKind::InvalidData.into())),
        }
        // One that did not live to see it has ended like one that did not live long.
        parked.there().await?;
        Ok(parked)
    }

    /// Freezes or thaws all of it, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::Platform`] when it has ended.
    pub async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let step = || platform(if frozen { "freeze" } else { "thaw" });
        if self.has_ended() {
            return Err(step()(ended()));
        }
        let done = async {
            let freezer = self.backing.leaf().and_then(|leaf| leaf.freezer());
            let Some(freezer) = freezer.filter(|freezer| freezer.set(frozen).is_ok()) else {
                if let Some(done) = self.backing.set_frozen(frozen).await {
                    return done;
                }
                let order = if frozen { Order::Stop } else { Order::Continue };
                return self.ask(order, &[]).await.map(drop);
            };
            // What is thawed runs when the write returns: a call waits for that, and for nothing else.
            if frozen { frozen_through(&freezer).await.map_err(step()) } else { Ok(()) }
        };
        let mut exit = self.exit.clone();
        let done = tokio::select! {
            done = done => done,
            _ = exit.wait_for(Option::is_some) => Err(step()(ended())),
        };
        // Of one that is ending everything fails in its own way, and why is known.
        done.map_err(|error| if self.is_ending() { step()(ended()) } else { error })
    }

    /// Its init's number among the processes that we see. None once it was reaped.
    pub fn init(&self) -> Option<Pid> {
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.get_ref().as_raw_fd());
        let text = std::fs::read_to_string(path).ok()?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
        Pid::from_raw(number.trim().parse().ok().filter(|pid| *pid > 0)?)
    }

    /// Its init is dead, reaped or not.
    fn is_ending(&self) -> bool {
        let mut processes = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut processes, Some(&none)).is_ok_and(|ready| ready > 0)
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the cgroup has counted, while it can be read.
    pub fn count(&self) {
        let Some(leaf) = self.backing.leaf() else { return };
        let (now, kills) = (usage(&leaf), leaf.memory_kills());
        let mut counted = self.counted();
        if counted.usage.is_none() || now != Usage::default() {
            counted.usage = Some(now);
        }
        counted.kills = counted.kills.max(kills);
    }

    /// What ends from now on is of another start.
    pub fn begin_anew(&self) {
        let mut counted = self.counted();
        (counted.earlier, counted.over) = (counted.kills, false);
        drop(counted);
        self.command.send_replace(None);
    }

    /// How a command ended that was ended by this.
    pub fn exit(&self, cause: ExitCause) -> Exit {
        let counted = self.counted();
        Exit { cause, out_of_memory: counted.kills > counted.earlier || counted.over }
    }

    /// What an init says of the end of a process.
    pub fn over(&self, end: wire::End) -> Option<ExitCause> {
        let mut counted = self.counted();
        counted.over |= end.out_of_memory;
        counted.watched = counted.watched.max(end.peak);
        drop(counted);
        end.code.map(ExitCause::Code).or(end.signal.map(ExitCause::Signal))
    }

    /// The most memory that an init has seen.
    pub fn watched(&self) -> u64 {
        self.counted().watched
    }

    /// What an init had seen for the process's former program.
    pub fn watched_before(&self, peak: u64) {
        self.counted().watched = peak;
    }

    fn companions(&self) -> MutexGuard<'_, Companions> {
        self.companions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A companion to be: its number, and how it will have ended.
    pub fn companion(&self) -> (u64, oneshot::Receiver<ExitCause>) {
        let (over, ended) = oneshot::channel();
        let mut companions = self.companions();
        companions.last += 1;
        let number = companions.last;
        companions.ends.insert(number, over);
        (number, ended)
    }

    pub fn has_companions(&self) -> bool {
        !self.companions().ends.is_empty()
    }

    /// One has ended, like this; or never came to be.
    pub fn companion_over(&self, number: u64, cause: Option<ExitCause>) {
        let ended = self.companions().ends.remove(&number);
        if let (Some(ended), Some(cause)) = (ended, cause) {
            // Who does not care has dropped it.
            ended.send(cause).ok();
        }
    }

    /// All have gone with what they were beside.
    pub fn companions_gone(&self) {
        self.companions().ends.clear();
    }

    pub fn usage(&self) -> Usage {
        let mut counted = self.counted();
        let ended = self.has_ended();
        let now = self.backing.leaf().filter(|_| !ended).map(|leaf| usage(&leaf));
        let mut usage = now.or(counted.usage).unwrap_or_default();
        if usage.memory == 0 && !ended {
            // No cgroup counts it.
            let seen = self
                .init()
                .map(|init| processes::usage_below(init.as_raw_nonzero().get()))
                .unwrap_or_default();
            usage.memory = seen.memory;
            counted.watched = counted.watched.max(seen.memory_peak);
            counted.timed = counted.timed.max(seen.cpu);
        }
        // Kernels before 5.19 know only what there is now.
        counted.watched = counted.watched.max(usage.memory);
        usage.memory_peak = usage.memory_peak.max(counted.watched);
        if usage.cpu.is_zero() {
            usage.cpu = counted.timed;
        }
        usage
    }
}

/// What orders meet in one that is gone.
fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended")
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

/// Waits until everything in a freezer stands still, as was asked for.
async fn frozen_through(freezer: &Freezer) -> io::Result<()> {
    // Nearly always done by the time the write returns.
    if freezer.is_frozen()? {
        return Ok(());
    }
    if let Some(events) = freezer.events() {
        let file = sys::watch(std::fs::File::open(events)?.into(), Interest::PRIORITY)?;
        loop {
            let mut text = [0; 256];
            let length = rustix::io::pread(file.get_ref(), &mut text[..], 0)?;
            if text[..length].windows(8).any(|part| part == b"frozen 1") {
                return Ok(());
            }
            file.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
    let mut again = tokio::time::interval(FREEZER_POLL);
    while !freezer.is_frozen()? {
        again.tick().await;
        freezer.insist()?;
    }
    Ok(())
}
