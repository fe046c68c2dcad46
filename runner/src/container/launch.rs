//! How a container comes up: its sandbox, its environment, and what makes its function ready.
//!
//! Ready means by format: `http-stream` listens on its socket; `mless` has answered its greeting; both within `init_timeout`. The
//! other formats on STDIN and STDOUT have no word for it: they are ready when they have been started, and since nobody can tell
//! their loading from their work, their first call may take `init_timeout` longer. Those of one call per process are parked just
//! before it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use stoker_core::function::{Format, FunctionSpec, Network, Root};
use stoker_core::{Code, ContainerId, Error};
use stoker_format::{Codec, Startup};
use stoker_image::Image;
use stoker_sandbox::{Description, Driver, Exit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::channel::Pipes;
use super::{Container, LaunchError, Launched, Phase, endpoint};
use crate::images::{self, Images};
use crate::logs::{ContainerLog, Logs, Source};
use crate::observe::Seen;
use crate::secrets::{Print, Secrets};

/// Processes and threads of one container.
const PIDS: u32 = 512;
const TMP_SIZE: u64 = 64 << 20;
/// The same where functions come from AWS Lambda: what it gives them.
const LAMBDA_TMP_SIZE: u64 = 512 << 20;
const OPEN_FILES: u32 = 4096;
/// Where http-stream functions find the directory of their socket.
const SHARED: &str = "/tmp/iofs";

/// What containers are launched with.
pub struct Launcher {
    pub driver: Arc<dyn Driver>,
    pub images: Arc<Images>,
    pub secrets: Secrets,
    pub logs: Arc<Logs>,
}

impl Launcher {
    /// Starts a container of a function, `ahead` of any call that needs it, and returns it with its first connection, where its format has them. `stop`
    /// gives it up while the function makes itself ready; nothing of it is left then.
    ///
    /// # Errors
    /// Whose fault it is that there is none: the function's, or the platform's.
    pub async fn launch(
        &self,
        id: ContainerId,
        spec: Arc<FunctionSpec>,
        ahead: bool,
        stop: &CancellationToken,
    ) -> Result<(Container, Option<UnixStream>), LaunchError> {
        let Self { driver, images, secrets, logs } = self;
        let began = Instant::now();
        if spec.root.is_image() && !driver.describe().isolates {
            let name = driver.describe().name;
            return Err(LaunchError::Impossible(format!(
                "a function with an image needs a sandbox, and `{name}` is none"
            )));
        }
        let image = tokio::select! {
            image = images.prepare(&spec) => image?,
            () = stop.cancelled() => return Err(LaunchError::Stopping),
        };
        let found = if image.is_some() { began.elapsed() } else { Duration::ZERO };
        let secrets = secrets.resolve(&spec).await?;
        let print = (!secrets.is_empty()).then(|| Print::of(&id, &secrets));
        let mut sandbox = sandbox_spec(&id, &spec, image.as_ref(), secrets, driver.describe())?;
        let lambda = match spec.format {
            Format::Lambda => Some(super::lambda::Plan::new(&mut sandbox, &spec, ahead).await?),
            _ => None,
        };
        let sandbox = driver.create(sandbox).await.map_err(launch_error)?;
        let log = ContainerLog::new(id.clone(), logs.ring(&spec.name));
        let none = Duration::ZERO;
        let mut container = Container {
            seen: Seen::new(&id, &spec, driver.describe().name),
            id,
            codec: Codec::new(&spec),
            spec,
            log,
            launched: Launched {
                began,
                image: found,
                create: began.elapsed() - found,
                start: none,
                init: none,
            },
            sandbox: sandbox.into(),
            secrets: print,
            still: AtomicBool::new(false),
            gate: tokio::sync::Mutex::new(false),
            used: Mutex::default(),
            lambda: None,
            pipes: Mutex::default(),
            image,
            stdin: None,
            outputs: Mutex::default(),
        };
        if stop.is_cancelled() {
            container.stop(Duration::ZERO).await;
            return Err(LaunchError::Stopping);
        }
        let connection = match (container.spec.format, lambda) {
            _ if !container.spec.is_hot() => return Ok((container, None)),
            (Format::HttpStream, _) => Some(container.listen(stop).await?),
            (_, Some(plan)) => {
                if let Err(error) = container.ask(plan, stop).await {
                    container.stop(Duration::ZERO).await;
                    return Err(error);
                }
                None
            }
            _ => {
                container.greet(stop).await?;
                None
            }
        };
        container.look().await;
        Ok((container, connection))
    }
}

impl Container {
    /// Runs the command and gives its STDIN and STDOUT. STDERR is followed from here on.
    pub(super) async fn run(&self, env: Vec<(String, String)>) -> Result<(OwnedFd, OwnedFd), LaunchError> {
        let stdio = self.sandbox.start(env).await.map_err(launch_error)?;
        self.follow(Source::Stderr, stdio.stderr)?;
        Ok((stdio.stdin, stdio.stdout))
    }

    /// Has what comes out of a pipe go to the log.
    pub(super) fn follow(&self, source: Source, pipe: OwnedFd) -> Result<(), LaunchError> {
        // Of one that serves once nobody takes up more than is parked.
        if self.spec.is_hot() {
            let copy = pipe.try_clone();
            let copy = copy.map_err(|e| LaunchError::Platform(format!("copy a pipe: {e}")))?;
            self.outputs().push((source, copy));
        }
        self.log.follow(source, reader(pipe)?);
        Ok(())
    }

    /// Starts the process of one call.
    ///
    /// # Errors
    /// As a launch.
    pub async fn start(
        &self,
        env: Vec<(String, String)>,
    ) -> Result<(pipe::Sender, pipe::Receiver), LaunchError> {
        let (stdin, stdout) = self.run(env).await?;
        Ok((writer(stdin)?, reader(stdout)?))
    }

    /// Starts an `http-stream` function, and waits until it listens.
    async fn listen(&mut self, stop: &CancellationToken) -> Result<UnixStream, LaunchError> {
        let shared = self.sandbox.shared().ok_or_else(|| lost(&self.id))?;
        let watch = endpoint::Watch::new(&shared.directory)
            .map_err(|e| LaunchError::Platform(format!("watch the socket's directory: {e}")))?;
        let listener = format!("unix:{}", shared.inside.join(endpoint::NAME).display());
        let started = Instant::now();
        let (stdin, stdout) = self.run(vec![("FN_LISTENER".to_owned(), listener)]).await?;
        self.follow(Source::Stdout, stdout)?;
        (self.stdin, self.launched.start) = (Some(stdin), started.elapsed());
        let began = Instant::now();
        let shared = self.sandbox.shared().ok_or_else(|| lost(&self.id))?;
        let listens = async {
            watch.first(&shared.directory).await.map_err(|problem| match problem {
                endpoint::Problem::Broken(why) => {
                    let text = format!("the function's socket is not usable: {why}");
                    LaunchError::Function(Error::new(Code::FunctionInitFailed, text))
                }
                endpoint::Problem::System(error) => {
                    LaunchError::Platform(format!("connect to the function: {error}"))
                }
                endpoint::Problem::NotYet => {
                    LaunchError::Platform("connect to the function: nobody listens".to_owned())
                }
            })
        };
        let connection = self
            .ready(stop, listens, || match endpoint::exists(&shared.directory) {
                true => "did not listen on FN_LISTENER: the socket is there, but nobody listens on it",
                false => "did not listen on FN_LISTENER: the socket never appeared",
            })
            .await?;
        self.launched.init = began.elapsed();
        Ok(connection)
    }

    /// Starts a function that has its calls on STDIN, and waits for the answer to its greeting, where its format has one.
    async fn greet(&mut self, stop: &CancellationToken) -> Result<(), LaunchError> {
        let started = Instant::now();
        let (stdin, stdout) = self.run(Vec::new()).await?;
        let (stdin, stdout) = (writer(stdin)?, reader(stdout)?);
        let mut pipes = Pipes { stdin, stdout, input: BytesMut::new(), awake: false };
        self.launched.start = started.elapsed();
        if let Some(startup) = self.codec.as_ref().and_then(|codec| codec.startup(&self.spec.env)) {
            let began = Instant::now();
            let greets = self.greeting(startup, &mut pipes);
            self.ready(stop, greets, || "did not answer its startup message").await?;
            self.launched.init = began.elapsed();
            pipes.awake = true;
        }
        self.give_back(pipes);
        Ok(())
    }

    /// Both ways at once: some runtimes say that they are ready without having been asked.
    async fn greeting(&self, mut startup: Startup, pipes: &mut Pipes) -> Result<(), LaunchError> {
        let message = startup.encode();
        let Pipes { stdin, stdout, input, .. } = pipes;
        // One that closed its STDIN says by its answer, or its end, what that means.
        let write = async { _ = stdin.write_all(&message).await };
        let read = async {
            loop {
                let eof = !matches!(stdout.read_buf(input).await, Ok(count) if count > 0);
                match startup.decode(input, eof) {
                    Some(Ok(())) => return Ok(()),
                    Some(Err(fault)) => {
                        let ended = if eof { self.exit_soon().await } else { None };
                        return Err(match ended {
                            Some(exit) => self.ended_early(exit).await,
                            None => LaunchError::Function(Error::new(fault.code, fault.message)),
                        });
                    }
                    None => {}
                }
            }
        };
        tokio::pin!(write, read);
        tokio::select! {
            () = &mut write => read.await,
            said = &mut read => {
                said?;
                write.await;
                Ok(())
            }
        }
    }

    /// What makes the function ready, unless it ends, takes longer than its `init_timeout`, or is given up.
    pub(super) async fn ready<T>(
        &self,
        stop: &CancellationToken,
        making: impl Future<Output = Result<T, LaunchError>>,
        late: impl FnOnce() -> &'static str,
    ) -> Result<T, LaunchError> {
        tokio::select! {
            () = stop.cancelled() => {
                self.stop(Duration::ZERO).await;
                Err(LaunchError::Stopping)
            }
            exit = self.sandbox.wait() => Err(self.ended_early(exit).await),
            made = making => match made {
                Err(LaunchError::Function(error)) => Err(self.not_ready(error).await),
                made => made,
            },
            () = tokio::time::sleep(self.spec.init_timeout()) => {
                let text = format!("within its init_timeout of {:?} the function {}", self.spec.init_timeout(), late());
                Err(self.not_ready(Error::new(Code::FunctionInitTimeout, text)).await)
            }
        }
    }

    /// Its process ended before it was ready.
    pub async fn ended_early(&self, exit: Exit) -> LaunchError {
        let error = self.exited(exit, Phase::Init).await;
        let error = match self.spec.format {
            Format::Lambda => error.report(super::lambda::exited(exit)),
            _ => error,
        };
        match error.code {
            Code::RunnerLost => LaunchError::Platform(error.message),
            _ => LaunchError::Function(error),
        }
    }

    /// It is of no use; its last words are.
    async fn not_ready(&self, error: Error) -> LaunchError {
        if !error.log_tail.is_empty() {
            return LaunchError::Function(error);
        }
        self.stop(Duration::ZERO).await;
        self.said_all().await;
        LaunchError::Function(error.log_tail(self.log.tail(None)))
    }
}

pub(super) fn reader(pipe: OwnedFd) -> Result<pipe::Receiver, LaunchError> {
    pipe::Receiver::from_owned_fd(pipe).map_err(|e| LaunchError::Platform(format!("read a pipe: {e}")))
}

pub(super) fn writer(pipe: OwnedFd) -> Result<pipe::Sender, LaunchError> {
    pipe::Sender::from_owned_fd(pipe).map_err(|e| LaunchError::Platform(format!("write a pipe: {e}")))
}

fn lost(id: &ContainerId) -> LaunchError {
    LaunchError::Platform(format!("no shared directory of {id}"))
}

pub(super) fn launch_error(error: stoker_sandbox::Error) -> LaunchError {
    match error {
        stoker_sandbox::Error::Function(text) => LaunchError::Function(Error::new(
            Code::FunctionInitFailed,
            format!("the function cannot be started: {text}"),
        )),
        stoker_sandbox::Error::Unsupported(text) => LaunchError::Impossible(text),
        other => LaunchError::Platform(other.to_string()),
    }
}

/// What the function says, and where it says nothing, what its image says.
fn sandbox_spec(
    id: &ContainerId,
    spec: &FunctionSpec,
    image: Option<&Image>,
    secrets: Vec<(String, String)>,
    driver: &Description,
) -> Result<stoker_sandbox::Spec, LaunchError> {
    let config = image.map(|image| &image.config);
    // Where nobody can be chosen, everybody is the same.
    let user = config.and_then(|config| config.user.as_ref()).filter(|_| driver.chooses_user);
    Ok(stoker_sandbox::Spec {
        id: id.as_str().to_owned(),
        root: match (image, &spec.root) {
            (Some(image), _) => stoker_sandbox::Root::Directory(image.root.clone()),
            (None, Root::Rootfs(path)) => stoker_sandbox::Root::Directory(path.clone()),
            (None, _) => stoker_sandbox::Root::Host,
        },
        writable_root: spec.writable_root,
        command: images::command(spec, image)?,
        env: environment(id, spec, image, secrets),
        user: user.map(|user| stoker_sandbox::User { uid: user.uid, gid: user.gid }),
        groups: user.map(|user| user.groups.clone()).unwrap_or_default(),
        workdir: workdir(spec, image).to_owned(),
        memory: spec.memory,
        cpu_millis: spec.cpu_millis,
        pids: PIDS,
        tmp_size: if spec.format == Format::Lambda { LAMBDA_TMP_SIZE } else { TMP_SIZE },
        open_files: OPEN_FILES,
        network: match spec.network {
            Network::None => stoker_sandbox::Network::None,
            Network::Egress => stoker_sandbox::Network::Egress,
            Network::Host => stoker_sandbox::Network::Host,
        },
        opt: Some(spec.format_options.opt.clone()).filter(|opt| !opt.as_os_str().is_empty()),
        shared: (spec.format == Format::HttpStream).then(|| SHARED.into()),
        stop_signal: config.and_then(|config| config.stop_signal).unwrap_or(stoker_sandbox::SIGTERM),
        // So that the function can be started again in it, beside its extensions.
        stays: spec.format == Format::Lambda,
    })
}

fn workdir<'a>(spec: &'a FunctionSpec, image: Option<&'a Image>) -> &'a Path {
    match image {
        Some(image) if spec.workdir.as_os_str().is_empty() => &image.config.workdir,
        _ => &spec.workdir,
    }
}

/// The image's variables, then the function's own, then those of the platform: later ones win. Their names are Fn's: what its server sets, what its
/// contract lists (`FN_NAME`) and what its kits read (`FN_FN_NAME`).
fn environment(
    id: &ContainerId,
    spec: &FunctionSpec,
    image: Option<&Image>,
    secrets: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let (gives_way, stays) = match spec.format {
        Format::Lambda => super::lambda::environment(spec, workdir(spec, image), id.as_str()),
        _ => Default::default(),
    };
    let mut env = vec![
        ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        // The home of whoever has the function's user id on the host is none of its business; this it can write to.
        ("HOME".to_owned(), "/tmp".to_owned()),
    ];
    env.extend(gives_way);
    env.extend(image.into_iter().flat_map(|image| image.config.env.iter().cloned()));
    env.extend(spec.env.iter().map(|(k, v)| (k.clone(), v.clone())));
    env.extend(secrets);
    let mut ours: Vec<_> = stays.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    ours.extend([
        ("FN_FORMAT", spec.format.as_str().to_owned()),
        ("FN_APP_NAME", spec.name.app().to_owned()),
        ("FN_NAME", spec.name.function().to_owned()),
        ("FN_FN_NAME", spec.name.function().to_owned()),
        ("FN_PATH", "/invoke".to_owned()),
        ("FN_MEMORY", (spec.memory >> 20).to_string()),
        ("FN_TYPE", "sync".to_owned()),
        ("FN_FN_ID", spec.name.id()),
        ("FN_APP_ID", spec.name.app_id()),
    ]);
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
