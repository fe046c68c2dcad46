//! One container: a sandbox, the way into it, and what it said. How it is launched, thawed and ended; when, is the
//! [pool](crate::pool)'s to decide.

pub mod channel;
pub mod endpoint;
pub mod handover;
pub mod lambda;
mod launch;
pub mod state;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use stoker_core::error::Blame;
use stoker_core::function::{Format, FunctionSpec};
use stoker_core::{CallId, Code, ContainerId, Error};
use stoker_format::Codec;
use stoker_image::Image;
use stoker_lambda::RuntimeApi;
use stoker_sandbox::{Exit, ExitCause, Sandbox, Usage};
use tokio::net::UnixStream;

use crate::logs::{ContainerLog, Source};
use crate::observe::Seen;
use crate::secrets::Print;
use channel::{Channel, Eye, Pipes, Unfit};
pub use launch::Launcher;

/// The end of a process is told later than the end of what it had open, by some drivers on a busy machine much later. A process
/// that closed its channel and stays is rare: the error of its call may take this long.
const LEAVE: Duration = Duration::from_secs(2);
/// The end of a process and the last of its output arrive by different ways; this long one waits for the other.
const SETTLE: Duration = Duration::from_millis(500);

/// An idle connection older than this is not used again: some kits close theirs, and would race the next call.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(1);

/// How long a function that asks for its calls may take to do so after its last one, before another is called instead.
const RETURN: Duration = Duration::from_secs(1);

/// Why a container did not become ready.
#[derive(Debug, Clone)]
pub enum LaunchError {
    /// The function's fault, or the platform's in a way that the call must know.
    Function(Error),
    /// The machine's fault: another runner may do better.
    Platform(String),
    /// What the function asks for is nothing that this runner can do, now or later.
    Impossible(String),
    /// There is no room, and none has come for longer than was expected.
    Full { retry_after: Duration },
    /// The call's image is not here, and its deadline is.
    Late(String),
    /// The runner stops.
    Stopping,
}

impl LaunchError {
    /// Whose fault it is, where it is one.
    pub fn blame(&self) -> Option<Blame> {
        match self {
            LaunchError::Function(error) => Some(error.blame()),
            LaunchError::Platform(_) => Some(Blame::Platform),
            LaunchError::Impossible(_) => Some(Blame::Function),
            LaunchError::Full { .. } | LaunchError::Late(_) | LaunchError::Stopping => None,
        }
    }
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaunchError::Function(error) => write!(f, "{error}"),
            LaunchError::Platform(why) | LaunchError::Impossible(why) | LaunchError::Late(why) => {
                f.write_str(why)
            }
            LaunchError::Full { .. } => {
                f.write_str("no memory, CPU or slot came free in the time that was expected")
            }
            LaunchError::Stopping => f.write_str("the runner is stopping"),
        }
    }
}

/// How long the phases of a launch took.
#[derive(Debug, Clone, Copy)]
pub struct Launched {
    pub began: Instant,
    /// The image was fetched, or found.
    pub image: Duration,
    pub create: Duration,
    pub start: Duration,
    pub init: Duration,
}

/// A container that is ready for calls, or, where a process has one call, parked just before it.
pub struct Container {
    pub id: ContainerId,
    pub spec: Arc<FunctionSpec>,
    /// How it is spoken to, where it does not ask for its calls itself.
    pub codec: Option<Codec>,
    pub log: Arc<ContainerLog>,
    pub launched: Launched,
    /// What traces say of it.
    pub seen: Seen,
    sandbox: Arc<dyn Sandbox>,
    /// Of the secrets that it was launched with, where it has any.
    secrets: Option<Print>,
    /// It may stand still: whoever wants to use it passes the gate first.
    still: AtomicBool,
    gate: tokio::sync::Mutex<bool>,
    /// What it had used when it was last looked at.
    used: Mutex<Usage>,
    /// How it asks for its calls, where it does.
    lambda: Option<lambda::Asking>,
    /// Where its calls come on STDIN: there while it has none.
    pipes: Mutex<Option<Pipes>>,
    /// Its root stays while it is held; let go after the sandbox.
    image: Option<Image>,
    /// Kept open: a function that reads its STDIN must not see an end where its format has none.
    stdin: Option<OwnedFd>,
    /// What its log is read from, for whoever goes on with that.
    outputs: Mutex<Vec<(Source, OwnedFd)>>,
}

/// What a process was doing when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It was not ready yet.
    Init,
    /// It ran this call.
    Call(CallId),
}

impl Phase {
    fn call(self) -> Option<CallId> {
        match self {
            Phase::Init => None,
            Phase::Call(call) => Some(call),
        }
    }
}

impl Container {
    /// The way in for a call, proved to carry nothing of another: `connection` if it still stands, where the format has them. The
    /// proof is the one system call of a warm call beside its write and its read.
    ///
    /// # Errors
    /// Why it takes no call.
    pub async fn open(&self, connection: Option<UnixStream>) -> Result<Channel, Unfit> {
        match self.spec.format {
            _ if !self.spec.is_hot() => Ok(Channel::Process),
            Format::HttpStream => {
                endpoint::open(self.sandbox.shared(), connection).await.map(Channel::Socket)
            }
            Format::Lambda => self.asks_again().await.map(|()| Channel::Api),
            _ => {
                let pipes = self.pipes().take();
                let mut pipes = pipes.ok_or_else(|| Unfit::System("its pipes are gone".to_owned()))?;
                pipes.check()?;
                Ok(Channel::Pipes(pipes))
            }
        }
    }

    /// The API that it asks for its calls.
    pub fn lambda(&self) -> Option<Arc<RuntimeApi>> {
        self.lambda.as_ref().map(lambda::Asking::api)
    }

    /// The function asks for another invocation.
    async fn asks_again(&self) -> Result<(), Unfit> {
        let Some(api) = self.lambda() else { return Ok(()) };
        tokio::select! {
            biased;
            idle = api.takes_more() => idle.map_err(|failure| Unfit::Noise(failure.told())),
            _ = self.wait() => Err(Unfit::Closed("connection to the Runtime API")),
            () = tokio::time::sleep(RETURN) => {
                Err(Unfit::Noise("nothing: it did not ask for another invocation after its last".to_owned()))
            }
        }
    }

    /// The pipes are free for the next call.
    pub fn give_back(&self, pipes: Pipes) {
        *self.pipes() = Some(pipes);
    }

    fn pipes(&self) -> MutexGuard<'_, Option<Pipes>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens an eye on a container without a call, where its calls come on STDIN. `None` where there is nothing to see, or a
    /// call has come.
    ///
    /// # Errors
    /// Why it takes no call.
    pub fn eye(&self) -> Result<Option<Eye>, Unfit> {
        let mut held = self.pipes();
        let Some(pipes) = held.as_mut() else { return Ok(None) };
        // The eye first: what comes between the two is seen by the check.
        let eye = pipes.eye().map_err(|e| Unfit::System(format!("watch a pipe: {e}")))?;
        pipes.check()?;
        Ok(Some(eye))
    }

    /// Looks what it used. Costs some reads of files, 10 to 20 µs: not for every call.
    pub async fn look(&self) {
        let now = self.sandbox.usage().await;
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// What it had used when it was last [looked at](Self::look); `None` where nothing is known.
    pub fn used(&self) -> Option<Usage> {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        (used != Usage::default()).then_some(used)
    }

    /// Whether it was launched with these secrets.
    pub fn was_told(&self, secrets: &[(String, String)]) -> bool {
        self.secrets == Some(Print::of(&self.id, secrets))
    }

    /// Makes sure that it runs. Costs nothing for one that was not about to be frozen.
    pub async fn thaw(&self) -> Result<Duration, stoker_sandbox::Error> {
        if !self.still.load(Ordering::Acquire) {
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        let mut frozen = self.gate.lock().await;
        if *frozen {
            match self.sandbox.thaw().await {
                // It has ended while it stood still: who opens it finds that out, and takes another.
                Err(stoker_sandbox::Error::Platform { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                thawed => thawed?,
            }
            *frozen = false;
        }
        self.still.store(false, Ordering::Release);
        Ok(begun.elapsed())
    }

    /// Freezes it if `still_idle` says so under the gate: a call that takes it from then on waits at the gate.
    pub async fn freeze(&self, still_idle: impl FnOnce() -> bool) -> Result<bool, stoker_sandbox::Error> {
        let mut frozen = self.gate.lock().await;
        self.still.store(true, Ordering::Release);
        if !still_idle() {
            self.still.store(false, Ordering::Release);
            return Ok(false);
        }
        // From here on it may stand still, whatever comes of it.
        *frozen = true;
        self.sandbox.freeze().await?;
        Ok(true)
    }

    /// Gives memory back that it does not need while it stands still. How much less it holds.
    ///
    /// # Errors
    /// Where none can be taken.
    pub async fn squeeze(&self) -> Result<u64, stoker_sandbox::Error> {
        let freed = self.sandbox.reclaim().await;
        self.look().await;
        freed
    }

    /// Ends it. Returns when nothing of it is left running.
    pub async fn stop(&self, grace: Duration) -> Exit {
        let begun = Instant::now();
        if let Some(api) = self.lambda()
            && !grace.is_zero()
            && api.waits_for_the_end()
            && self.thaw().await.is_ok()
        {
            self.wind_up(&api, "spindown", grace).await;
        }
        self.sandbox.stop(grace.saturating_sub(begun.elapsed())).await
    }

    /// Waits until the function's process has ended.
    pub async fn wait(&self) -> Exit {
        match self.lambda {
            Some(_) => self.sandbox.ended().await,
            None => self.sandbox.wait().await,
        }
    }

    /// What its calls break may be started [again](Self::start_again) in the same sandbox.
    pub fn starts_again(&self) -> bool {
        self.lambda.is_some()
    }

    /// Waits until nothing inside is at work any more, for as long as a call may take: a function that has answered may have extensions
    /// that have not done with it.
    pub async fn rests(&self) {
        let Some(api) = self.lambda() else { return };
        tokio::select! {
            _ = api.idle() => {}
            _ = self.sandbox.wait() => {}
            () = tokio::time::sleep(self.spec.timeout()) => {}
        }
    }

    /// How it ended, if it does so within a moment.
    pub async fn exit_soon(&self) -> Option<Exit> {
        tokio::time::timeout(LEAVE, self.wait()).await.ok()
    }

    /// Waits for the last lines of a process that has ended.
    async fn said_all(&self) {
        // A child that keeps a pipe open must not hold them back.
        _ = tokio::time::timeout(SETTLE, self.log.drained()).await;
    }

    /// The error of a process that ended when it should not have.
    pub async fn exited(&self, exit: Exit, phase: Phase) -> Error {
        self.said_all().await;
        let limit = stoker_core::units::format_size(self.spec.memory);
        if exit.out_of_memory {
            // By itself the kernel lets nobody have more than the limit, but for what is counted late.
            let peak = match self.sandbox.usage().await.memory_peak {
                0 => String::new(),
                peak => format!(
                    " (it had {} at most)",
                    stoker_core::units::format_size(peak.next_multiple_of(1 << 20))
                ),
            };
            return Error::new(
                Code::FunctionOutOfMemory,
                format!(
                    "the function needed more than its memory limit of {limit}{peak}; raise `memory`, which what it writes to /tmp counts as, too"
                ),
            )
            .log_tail(self.log.tail(phase.call()));
        }
        let how = match exit.cause {
            ExitCause::Code(code) => format!("exited with status {code}"),
            ExitCause::Signal(signal) => format!("was ended by signal {signal}{}", name_of(signal)),
            ExitCause::Lost => {
                return Error::new(
                    Code::RunnerLost,
                    "the runner lost the process that holds its sandboxes, and the function with it",
                );
            }
        };
        match phase {
            Phase::Init => {
                Error::new(Code::FunctionInitFailed, format!("the function {how} before it was ready"))
            }
            Phase::Call(_) => {
                Error::new(Code::FunctionCrashed, format!("the function {how} before it had answered"))
            }
        }
        .log_tail(self.log.tail(phase.call()))
    }
}

/// What people call a signal that ends a process which did not expect it.
fn name_of(signal: i32) -> &'static str {
    match Signal::from_named_raw(signal) {
        Some(Signal::ABORT) => " (SIGABRT: it gave up)",
        Some(Signal::BUS) => " (SIGBUS: memory that is not there)",
        Some(Signal::FPE) => " (SIGFPE: impossible arithmetic)",
        Some(Signal::ILL) => " (SIGILL: an instruction that this processor does not have)",
        Some(Signal::KILL) => " (SIGKILL)",
        Some(Signal::PIPE) => " (SIGPIPE)",
        Some(Signal::SEGV) => " (SIGSEGV: memory that is not its own)",
        Some(Signal::SYS) => " (SIGSYS: a system call that is not allowed)",
        Some(Signal::TERM) => " (SIGTERM)",
        _ => "",
    }
}
