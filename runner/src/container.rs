//! One container: a sandbox, the way into it, and what it said. How it is launched, thawed and ended; when, is the
//! [pool](crate::pool)'s to decide.

pub mod endpoint;
pub mod state;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::error::Blame;
use stoker_core::function::{Format, FunctionSpec, Network, Root};
use stoker_core::{Code, ContainerId, Error};
use stoker_sandbox::{Driver, Exit, ExitCause, Sandbox, Usage};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::logs::{ContainerLog, Logs, Source};

/// Processes and threads of one container.
const PIDS: u32 = 512;
const TMP_SIZE: u64 = 64 << 20;
const OPEN_FILES: u32 = 4096;
/// Where http-stream functions find the directory of their socket.
const SHARED: &str = "/tmp/iofs";
/// The end of a process and the last of its output arrive by different ways; this long one waits for the other.
const SETTLE: Duration = Duration::from_millis(500);

/// An idle connection older than this is not used again: some kits close theirs, and would race the next call.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(1);

/// Why a container did not become ready.
#[derive(Debug)]
pub enum LaunchError {
    /// The function's fault, or the platform's in a way that the call must know.
    Function(Error),
    /// The machine's fault: another runner may do better.
    Platform(String),
    /// What the function asks for is nothing that this runner can do, now or later.
    Impossible(String),
    /// There is no room, and none has come for longer than was expected.
    Full { retry_after: Duration },
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
            LaunchError::Full { .. } | LaunchError::Stopping => None,
        }
    }
}

/// How long the phases of a launch took.
#[derive(Debug, Clone, Copy)]
pub struct Launched {
    pub began: Instant,
    pub create: Duration,
    pub start: Duration,
    pub init: Duration,
}

/// A container that is ready for calls, or (`default`) parked just before its only one.
pub struct Container {
    pub id: ContainerId,
    pub spec: Arc<FunctionSpec>,
    pub log: Arc<ContainerLog>,
    pub launched: Launched,
    sandbox: Box<dyn Sandbox>,
    /// It may stand still: whoever wants to use it passes the gate first.
    still: AtomicBool,
    gate: tokio::sync::Mutex<bool>,
    /// What it had used when it was last looked at.
    used: Mutex<Usage>,
    /// Kept open: a function that reads its STDIN must not see an end where its format has none.
    _stdin: Mutex<Option<OwnedFd>>,
}

/// The pipes of a `default` call.
pub struct Pipes {
    pub stdin: pipe::Sender,
    pub stdout: pipe::Receiver,
}

/// Starts a container of a function and returns it with its first connection, where its format has them. `stop` gives it up
/// while the function makes itself ready; nothing of it is left then.
pub async fn launch(
    driver: &dyn Driver,
    logs: &Logs,
    id: ContainerId,
    spec: Arc<FunctionSpec>,
    stop: &CancellationToken,
) -> Result<(Container, Option<UnixStream>), LaunchError> {
    let begun = Instant::now();
    let sandbox = driver.create(sandbox_spec(&id, &spec)).await.map_err(launch_error)?;
    let log = ContainerLog::new(id.clone(), logs.ring(&spec.name));
    let mut container = Container {
        id,
        spec,
        log,
        launched: Launched {
            began: begun,
            create: begun.elapsed(),
            start: Duration::ZERO,
            init: Duration::ZERO,
        },
        sandbox,
        still: AtomicBool::new(false),
        gate: tokio::sync::Mutex::new(false),
        used: Mutex::default(),
        _stdin: Mutex::new(None),
    };
    if stop.is_cancelled() {
        container.stop(Duration::ZERO).await;
        return Err(LaunchError::Stopping);
    }
    if container.spec.format == Format::Default {
        return Ok((container, None));
    }
    let lost = |what: &str| LaunchError::Platform(format!("{what} of {}", container.id));
    let shared = container.sandbox.shared().ok_or_else(|| lost("no shared directory"))?;
    let inside = shared.inside.join(endpoint::NAME);
    let watch = endpoint::Watch::new(&shared.directory)
        .map_err(|e| LaunchError::Platform(format!("watch the socket's directory: {e}")))?;
    let started = Instant::now();
    let env = vec![("FN_LISTENER".to_owned(), format!("unix:{}", inside.display()))];
    let stdio = container.sandbox.start(env).await.map_err(launch_error)?;
    let pipe = |fd| {
        pipe::Receiver::from_owned_fd(fd).map_err(|e| LaunchError::Platform(format!("read a pipe: {e}")))
    };
    container.log.follow(Source::Stdout, pipe(stdio.stdout)?);
    container.log.follow(Source::Stderr, pipe(stdio.stderr)?);
    container._stdin = Mutex::new(Some(stdio.stdin));
    container.launched.start = started.elapsed();
    let waiting = Instant::now();
    let shared =
        container.sandbox.shared().ok_or_else(|| LaunchError::Platform("no shared directory".to_owned()))?;
    let connection = tokio::select! {
        () = stop.cancelled() => {
            container.stop(Duration::ZERO).await;
            return Err(LaunchError::Stopping);
        }
        exit = container.sandbox.wait() => {
            let error = container.exited(exit, Phase::Init).await;
            return Err(match error.code {
                Code::RunnerLost => LaunchError::Platform(error.message),
                _ => LaunchError::Function(error),
            });
        }
        first = watch.first(&shared.directory) => match first {
            Ok(connection) => connection,
            Err(endpoint::Problem::Broken(why)) => {
                let error = Error::new(Code::FunctionInitFailed, format!("the function's socket is not usable: {why}"));
                return Err(LaunchError::Function(error.log_tail(container.log.tail())));
            }
            Err(problem) => return Err(LaunchError::Platform(format!("connect to the function: {problem:?}"))),
        },
        () = tokio::time::sleep(container.spec.init_timeout()) => {
            let seen = match endpoint::exists(&shared.directory) {
                true => "the socket is there, but nobody listens on it",
                false => "the socket never appeared",
            };
            let error = Error::new(
                Code::FunctionInitTimeout,
                format!("the function did not listen on FN_LISTENER within {:?}: {seen}", container.spec.init_timeout()),
            );
            return Err(LaunchError::Function(error.log_tail(container.log.tail())));
        }
    };
    container.launched.init = waiting.elapsed();
    container.look().await;
    Ok((container, Some(connection)))
}

/// What a process was doing when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It was not ready yet.
    Init,
    /// It ran a call.
    Call,
}

impl Container {
    /// Starts the process of a `default` call.
    pub async fn start(&self, env: Vec<(String, String)>) -> Result<Pipes, LaunchError> {
        let stdio = self.sandbox.start(env).await.map_err(launch_error)?;
        let platform = |e: std::io::Error| LaunchError::Platform(format!("use a pipe: {e}"));
        self.log.follow(Source::Stderr, pipe::Receiver::from_owned_fd(stdio.stderr).map_err(platform)?);
        Ok(Pipes {
            stdin: pipe::Sender::from_owned_fd(stdio.stdin).map_err(platform)?,
            stdout: pipe::Receiver::from_owned_fd(stdio.stdout).map_err(platform)?,
        })
    }

    /// Another connection to an http-stream function.
    pub async fn connect(&self) -> Result<UnixStream, String> {
        let shared = self.sandbox.shared().ok_or("there is no shared directory")?;
        endpoint::again(&shared.directory).await.map_err(|problem| match problem {
            endpoint::Problem::NotYet => "the function does not listen any more".to_owned(),
            endpoint::Problem::Broken(why) => why,
            endpoint::Problem::System(error) => error.to_string(),
        })
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

    /// Makes sure that it runs. Costs nothing for one that was not about to be frozen.
    pub async fn thaw(&self) -> Result<Duration, stoker_sandbox::Error> {
        if !self.still.load(Ordering::Acquire) {
            return Ok(Duration::ZERO);
        }
        let begun = Instant::now();
        let mut frozen = self.gate.lock().await;
        if *frozen {
            self.sandbox.thaw().await?;
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

    /// Ends it. Returns when nothing of it is left running.
    pub async fn stop(&self, grace: Duration) -> Exit {
        self.sandbox.stop(grace).await
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        self.sandbox.wait().await
    }

    /// How it ended, if it does so within a moment.
    pub async fn exit_soon(&self) -> Option<Exit> {
        tokio::time::timeout(SETTLE, self.sandbox.wait()).await.ok()
    }

    /// The error of a process that ended when it should not have.
    pub async fn exited(&self, exit: Exit, phase: Phase) -> Error {
        // A child that keeps a pipe open must not hold the error back.
        _ = tokio::time::timeout(SETTLE, self.log.drained()).await;
        let limit = stoker_core::units::format_size(self.spec.memory);
        if exit.out_of_memory {
            return Error::new(
                Code::FunctionOutOfMemory,
                format!("the function needed more than its memory limit of {limit}; raise `memory`"),
            )
            .log_tail(self.log.tail());
        }
        let how = match exit.cause {
            ExitCause::Code(code) => format!("exited with status {code}"),
            ExitCause::Signal(signal) => format!("was ended by signal {signal}"),
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
            Phase::Call => {
                Error::new(Code::FunctionCrashed, format!("the function {how} before it had answered"))
            }
        }
        .log_tail(self.log.tail())
    }
}

fn launch_error(error: stoker_sandbox::Error) -> LaunchError {
    match error {
        stoker_sandbox::Error::Function(text) => LaunchError::Function(Error::new(
            Code::FunctionInitFailed,
            format!("the function cannot be started: {text}"),
        )),
        stoker_sandbox::Error::Unsupported(text) => LaunchError::Impossible(text),
        other => LaunchError::Platform(other.to_string()),
    }
}

fn sandbox_spec(id: &ContainerId, spec: &FunctionSpec) -> stoker_sandbox::Spec {
    stoker_sandbox::Spec {
        id: id.as_str().to_owned(),
        root: match &spec.root {
            Root::Host => stoker_sandbox::Root::Host,
            Root::Rootfs(path) => stoker_sandbox::Root::Directory(path.clone()),
        },
        writable_root: false,
        command: spec.command.clone(),
        env: environment(spec),
        workdir: spec.workdir.clone(),
        memory: spec.memory,
        cpu_millis: spec.cpu_millis,
        pids: PIDS,
        tmp_size: TMP_SIZE,
        open_files: OPEN_FILES,
        network: match spec.network {
            Network::None => stoker_sandbox::Network::None,
            Network::Egress => stoker_sandbox::Network::Egress,
            Network::Host => stoker_sandbox::Network::Host,
        },
        shared: (spec.format == Format::HttpStream).then(|| SHARED.into()),
    }
}

/// The function's own variables, then those of the platform, which win. Their names are Fn's: what its server sets, what its
/// contract lists (`FN_NAME`) and what its kits read (`FN_FN_NAME`).
fn environment(spec: &FunctionSpec) -> Vec<(String, String)> {
    let mut env = vec![
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        // The home of whoever has the function's user id on the host is none of its business; this it can write to.
        ("HOME".to_owned(), "/tmp".to_owned()),
    ];
    env.extend(spec.env.iter().map(|(k, v)| (k.clone(), v.clone())));
    let mut ours = vec![
        ("FN_FORMAT", spec.format.as_str().to_owned()),
        ("FN_APP_NAME", spec.name.app().to_owned()),
        ("FN_NAME", spec.name.function().to_owned()),
        ("FN_FN_NAME", spec.name.function().to_owned()),
        ("FN_PATH", "/invoke".to_owned()),
        ("FN_MEMORY", (spec.memory >> 20).to_string()),
        ("FN_TYPE", "sync".to_owned()),
        ("FN_FN_ID", spec.name.id()),
        ("FN_APP_ID", spec.name.app_id()),
    ];
    if spec.cpu_millis > 0 {
        ours.push(("FN_CPUS", format!("{}m", spec.cpu_millis)));
    }
    for (key, value) in ours {
        env.retain(|(k, _)| k != key);
        env.push((key.to_owned(), value));
    }
    let mut seen = std::collections::HashSet::new();
    env.reverse();
    env.retain(|(k, _)| seen.insert(k.clone()));
    env.reverse();
    env
}
