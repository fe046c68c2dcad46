//! The runner's side of one sandbox that an init of ours leads, whichever driver made it.
//!
//! A **keeper** task owns the end of it: it hears the init, notices the death of init or holder, kills when told to, and has
//! removed what the sandbox held. Handles only send orders and read the result, so dropping one at any moment is safe and never
//! waits. What differs between drivers is their [`Backing`].

mod backing;
mod inner;
mod keeper;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

pub use self::backing::{Backing, Held};
use self::inner::Inner;
use crate::channel::{Channel, Ends, Parked, died};
use crate::handover::{HandedSandbox, InheritedFds, PassedFds};
use crate::wire::{self, Order, Plan, Report};
use crate::{Companion, Error, Exit, Process, Sandbox, Shared, Signal, Stdio, Usage, User};

/// What is done when the process's former program has left a sandbox.
pub const TAKE_UP: &str = "take the sandbox up";

/// How long an end may take to be told that was not asked for. It is under way already, or there is none.
const LAST_WORD: Duration = Duration::from_secs(1);

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
    pub backing: Arc<dyn Backing>,
    /// Whom the function is to the host, where that is not our own user.
    pub owner: Option<User>,
}

/// A sandbox that an init of ours leads: of any driver but `process`.
pub struct InitSandbox {
    id: String,
    shared: Option<Shared>,
    inner: Arc<Inner>,
    /// The command's process, until it is started.
    parked: Mutex<Option<Parked>>,
}

fn platform(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let step = step.into();
    move |source| Error::Platform { step, source }
}

/// Its limit is the function's own.
pub fn too_little_memory() -> Error {
    Error::Function("its memory limit is too small for a process to be started in it".to_owned())
}

impl InitSandbox {
    /// Has an init make a sandbox that is parked just before its `exec`.
    ///
    /// # Errors
    /// As [`crate::Driver::create`] says. Nothing is left behind.
    pub async fn build(making: Making) -> Result<Self, Error> {
        let Making { plan, inside, shared, control, pidfd, backing, owner } = making;
        let inner = Inner::follow(control, pidfd, backing, owner, plan.stays)?;
        // From here on, dropping the sandbox ends it.
        let mut sandbox = Self { id: plan.id.clone(), shared, inner, parked: Mutex::default() };
        let Err(error) = sandbox.fill(plan, inside).await else { return Ok(sandbox) };
        if !matches!(error, Error::Platform { .. }) {
            return Err(error);
        }
        // Nothing of the function has run yet: what was killed for memory had not even enough to begin with. Who killed it says so, where
        // that was its init.
        let told = tokio::time::timeout(LAST_WORD, sandbox.inner.command_ended()).await;
        sandbox.inner.kill_now();
        let exit = sandbox.inner.exited().await;
        let over = exit.out_of_memory || told.is_ok_and(|end| end.out_of_memory);
        Err(if over { too_little_memory() } else { error })
    }

    async fn fill(&mut self, plan: Plan, inside: Option<PathBuf>) -> Result<(), Error> {
        let wants_handle = plan.shared.is_some();
        let inner = &self.inner;
        let ends = Ends::new(inner.owner)?;
        let sent = inner.control.send(&Order::Build(Box::new(plan)), &ends.theirs()).await;
        let parked = ends.handed_over();
        if let Err(source) = sent {
            let words = inner.last_words().await;
            return Err(words.unwrap_or_else(|| platform("instruct the sandbox's init")(source)));
        }
        let answer = async || inner.answer().await.ok_or_else(|| platform("build the sandbox")(died()));
        let (mut report, mut handle) = answer().await?;
        if let Report::Tunnel = report {
            let tunnel = handle.take().ok_or_else(|| platform("open the way out")(died()))?;
            inner.backing.tunnel(tunnel)?;
            (report, handle) = answer().await?;
        }
        match report {
            Report::Built => {}
            Report::Failed(failure) => return Err(failure.into()),
            _ => return Err(platform("build the sandbox")(io::ErrorKind::InvalidData.into())),
        }
        if !parked.there().await? {
            return Err(platform("park the function's process")(died()));
        }
        if wants_handle {
            let directory = handle.ok_or_else(|| platform("open the shared directory")(died()))?;
            self.shared = inside.map(|inside| Shared { directory, inside });
        }
        self.parked = Mutex::new(Some(parked));
        Ok(())
    }

    /// Takes up a sandbox of the process's former program.
    ///
    /// # Errors
    /// [`Error::Platform`] when a part of it was not left. Then it ends.
    pub fn take_up(
        handed: HandedSandbox,
        backing: Arc<dyn Backing>,
        init: OwnedFd,
        inherited: &mut InheritedFds,
    ) -> Result<Self, Error> {
        let HandedSandbox { id, owner, stays, control, shared, parked, watched, .. } = handed;
        let take = || {
            let control = Channel::new(inherited.take(control)?)?;
            let shared = match shared {
                Some((directory, inside)) => Some(Shared { directory: inherited.take(directory)?, inside }),
                None => None,
            };
            let parked = parked.map(|parked| Parked::take_up(parked, inherited)).transpose()?;
            Ok((control, shared, parked))
        };
        let (control, shared, parked) = take().map_err(platform(TAKE_UP))?;
        let inner = Inner::follow(control, init, backing, owner, stays)?;
        inner.watched_before(watched);
        Ok(Self { id, shared, inner, parked: Mutex::new(parked) })
    }

    fn must_stay(&self) -> Result<(), Error> {
        match self.inner.stays {
            true => Ok(()),
            false => Err(Error::Unsupported("this sandbox was made to end with its command".to_owned())),
        }
    }
}

#[async_trait]
impl Sandbox for InitSandbox {
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
        let parked = self.inner.fork(Order::Again, Ends::new(self.inner.owner)?).await?;
        self.inner.companions_gone();
        // Only now is everything of the last start dead and counted.
        self.inner.count();
        self.inner.begin_anew();
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(parked);
        Ok(())
    }

    async fn spawn(&self, companion: Companion) -> Result<Process, Error> {
        self.must_stay()?;
        let (number, ended) = self.inner.companion();
        let program = wire::Program { command: companion.command, env: companion.env };
        let made = async {
            let parked =
                self.inner.fork(Order::Spawn { number, program }, Ends::new(self.inner.owner)?).await?;
            parked.start(Vec::new()).await
        };
        match made.await {
            Ok(stdio) => Ok(Process { stdio, ended }),
            Err(error) => {
                self.inner.companion_over(number, None);
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
        let init = self.inner.init().ok_or_else(|| fail(died()))?;
        let listener = match self.inner.backing.listen(init, address).await {
            Some(made) => made.map_err(fail)?,
            None => match self.inner.ask(Order::Listen(address), &[]).await? {
                (Report::Listening, Some(listener)) => listener.into(),
                (Report::NotListening { errno }, _) => {
                    return Err(fail(io::Error::from_raw_os_error(errno)));
                }
                _ => return Err(fail(io::ErrorKind::InvalidData.into())),
            },
        };
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(listener)
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.inner.set_frozen(true).await
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.inner.set_frozen(false).await
    }

    async fn stop(&self, grace: Duration) -> Exit {
        if !grace.is_zero() && !self.inner.has_ended() {
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
        self.inner.command_ended().await
    }

    async fn reclaim(&self) -> Result<u64, Error> {
        let before = self.inner.usage().memory;
        let leaf = self.inner.backing.leaf();
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

    fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedSandbox, Error> {
        let inner = &self.inner;
        if inner.has_ended() {
            return Err(platform("hand the sandbox over")(died()));
        }
        if inner.has_companions() {
            let why = "something runs beside its command".to_owned();
            return Err(Error::Unsupported(why));
        }
        let held = inner.backing.hand_over(passed)?;
        let keep = || {
            let shared = match &self.shared {
                Some(Shared { directory, inside }) => Some((passed.keep(directory)?, inside.clone())),
                None => None,
            };
            let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(HandedSandbox {
                id: self.id.clone(),
                owner: inner.owner,
                stays: inner.stays,
                control: inner.control.hand_over(passed)?,
                init: passed.keep(inner.pidfd.get_ref())?,
                shared,
                parked: parked.as_ref().map(|parked| parked.hand_over(passed)).transpose()?,
                watched: inner.watched(),
                held,
            })
        };
        keep().map_err(platform("hand the sandbox over"))
    }
}

impl Drop for InitSandbox {
    fn drop(&mut self) {
        if !self.inner.has_ended() {
            self.inner.kill_now();
        }
    }
}
