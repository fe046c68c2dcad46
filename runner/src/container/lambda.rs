//! Containers of the format `lambda`: what their processes find in their environment, how they come up, come up again, and are wound up.
//!
//! The function's process and its extensions are processes of one sandbox that stays when they end. Each start has an API of its own, which is bound
//! when everything of the start before it has ended, so that nothing that is left of that can be taken for it.

mod environment;
pub mod handover;
mod keys;
mod opt;
mod words;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::function::FunctionSpec;
use stoker_core::{Code, Error};
use stoker_lambda::telemetry::Kind as Lines;
use stoker_lambda::{About, Credentials, Kind, MOST_EXTENSIONS, RuntimeApi};
use stoker_sandbox::{Companion, Exit, Sandbox, Stdio};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::launch::{launch_error, reader};
use super::{Container, LaunchError, Phase};
use crate::logs::Source;
pub use environment::{arn, environment, version};
pub use words::{complete, exited, last, report};
use words::{extension_exit, extension_launch, init_error};

/// Where the Runtime API is in a network namespace of the container's own.
const PORT: u16 = 9001;
/// Whom every function belongs to.
pub const ACCOUNT: &str = "012345678912";
/// Given to extensions when what they belong to is started again: AWS's.
const RESET: Duration = Duration::from_secs(2);
/// How a container asks for its calls.
pub struct Asking {
    plan: Plan,
    /// Of the newest start.
    api: Mutex<Arc<RuntimeApi>>,
    /// The first start failed, and the next, which took this long, was a part of the first call's time.
    again: Option<Duration>,
}

impl Asking {
    pub fn api(&self) -> Arc<RuntimeApi> {
        self.api.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is known of a container before it is there.
pub struct Plan {
    kind: Kind,
    extensions: Vec<String>,
    no_extensions: bool,
    /// The environment of extensions, but for what depends on the start.
    env: Vec<(String, String)>,
    credentials: Option<Credentials>,
    /// How long hooks after a restore may take.
    hooks: Duration,
}

impl Plan {
    /// Looks what there is in the root of a sandbox to be.
    ///
    /// # Errors
    /// There are more extensions than a function may have.
    pub async fn new(
        sandbox: &mut stoker_sandbox::Spec,
        spec: &FunctionSpec,
        ahead: bool,
    ) -> Result<Self, LaunchError> {
        let (root, opt) = match (&sandbox.root, &sandbox.opt) {
            (_, Some(opt)) => (opt.clone(), "."),
            (stoker_sandbox::Root::Host, None) => (PathBuf::from("/"), "opt"),
            (stoker_sandbox::Root::Directory(path), None) => (path.clone(), "opt"),
        };
        let found = tokio::task::spawn_blocking(move || opt::extensions(&root, opt));
        let found = found.await.map_err(|e| LaunchError::Platform(format!("look for extensions: {e}")))?;
        let (no_extensions, extensions) = (found.is_none(), found.unwrap_or_default());
        if extensions.len() > MOST_EXTENSIONS {
            let many = extensions.len();
            let text =
                format!("/opt/extensions has {many} extensions, at most {MOST_EXTENSIONS} are allowed");
            return Err(LaunchError::Function(extension_launch(text)));
        }
        let kind = match spec.format_options.snap_start {
            true => Kind::SnapStart,
            false if ahead && spec.min_containers > 0 => Kind::Provisioned,
            false => Kind::OnDemand,
        };
        // What a function asks for it does not find.
        let mut taken = |name: &str| {
            let at = sandbox.env.iter().position(|(key, _)| key == name);
            at.map(|at| sandbox.env.swap_remove(at).1).unwrap_or_default()
        };
        let (credentials, hooks) = match spec.format_options.snap_start {
            true => {
                let hooks = keys::hooks(&mut taken).map_err(LaunchError::Function)?;
                (Some(keys::credentials(taken).map_err(LaunchError::Function)?), hooks)
            }
            false => (None, keys::HOOKS_TAKE),
        };
        // What concerns the runtime only is none of their business.
        let own = [
            "AWS_XRAY_CONTEXT_MISSING",
            "LAMBDA_TASK_ROOT",
            "LAMBDA_RUNTIME_DIR",
            "AWS_LAMBDA_LOG_GROUP_NAME",
            "AWS_LAMBDA_LOG_STREAM_NAME",
        ];
        let theirs = |key: &str| !key.starts_with('_') && !own.contains(&key);
        let env = sandbox.env.iter().filter(|(key, _)| theirs(key)).cloned().collect();
        Ok(Self { kind, extensions, no_extensions, env, credentials, hooks })
    }

    /// What every process of a start finds.
    fn told(&self, address: SocketAddr) -> Vec<(String, String)> {
        let mut told = vec![
            ("AWS_LAMBDA_RUNTIME_API".to_owned(), address.to_string()),
            ("AWS_LAMBDA_INITIALIZATION_TYPE".to_owned(), self.kind.as_str().to_owned()),
        ];
        if let Some(credentials) = &self.credentials {
            let uri = format!("http://{address}/2021-04-23/credentials");
            told.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), uri));
            told.push(("AWS_CONTAINER_AUTHORIZATION_TOKEN".to_owned(), credentials.token().to_owned()));
        }
        told
    }
}

/// Why a start did not make a function ready.
enum Unready {
    /// It may do better next time, in the same sandbox.
    Init(Error),
    Launch(LaunchError),
}

impl From<stoker_sandbox::Error> for Unready {
    fn from(error: stoker_sandbox::Error) -> Self {
        Self::Launch(launch_error(error))
    }
}

/// Which start of a container it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    /// After a first that failed: within the call that it is for.
    Inline,
    /// After a call that failed.
    Reset,
}

impl Container {
    /// Starts the function, and waits until it asks for its first invocation. One that fails at it is started once more, with the
    /// time of a call.
    pub(super) async fn ask(&mut self, plan: Plan, stop: &CancellationToken) -> Result<(), LaunchError> {
        let (api, address) = self.serve_api(&plan, Start::First).await?;
        self.lambda = Some(Asking { plan, api: Mutex::new(api), again: None });
        let began = Instant::now();
        let first = self.come_up(Start::First, address, self.spec.init_timeout(), stop).await;
        let took = began.elapsed();
        let error = match first {
            Ok(start) => {
                (self.launched.start, self.launched.init) = (start, took.saturating_sub(start));
                return Ok(());
            }
            Err(Unready::Launch(error)) => return Err(error),
            Err(Unready::Init(error)) => error,
        };
        tracing::info!(container = %self.id, %error, "a function did not initialise, and is started again");
        let began = Instant::now();
        let again = match self.next_api(Start::Inline).await {
            Ok(address) => self.come_up(Start::Inline, address, self.spec.timeout(), stop).await,
            Err(error) => Err(Unready::Launch(error)),
        };
        match again {
            Ok(start) => {
                self.launched.start = start;
                self.launched.init = took + began.elapsed().saturating_sub(start);
                if let Some(asking) = &mut self.lambda {
                    asking.again = Some(began.elapsed());
                }
                Ok(())
            }
            Err(Unready::Launch(LaunchError::Impossible(_))) => Err(self.last_words(error).await),
            Err(Unready::Launch(error)) => Err(error),
            Err(Unready::Init(error)) => Err(self.last_words(error).await),
        }
    }

    /// A call broke it: every process in it ends, and the function is started again in the same sandbox. Returns whether it is ready for
    /// another call.
    pub async fn start_again(&self, reason: &str) -> bool {
        let Some(api) = self.lambda() else { return false };
        self.wind_up(&api, reason, RESET).await;
        drop(api);
        let never = CancellationToken::new();
        let done = match self.next_api(Start::Reset).await {
            Ok(address) => self.come_up(Start::Reset, address, self.spec.init_timeout(), &never).await,
            Err(error) => Err(Unready::Launch(error)),
        };
        match done {
            Ok(_) => true,
            Err(Unready::Init(error)) => {
                tracing::info!(container = %self.id, %error, "a function did not initialise again");
                false
            }
            Err(Unready::Launch(error)) => {
                tracing::info!(container = %self.id, %error, "a function could not be started again");
                false
            }
        }
    }

    /// How much of a call's time its start took, where it had failed before.
    pub fn spent(&self) -> Duration {
        self.lambda.as_ref().and_then(|asking| asking.again).unwrap_or_default()
    }

    /// Ends what is in it in AWS's order, where somebody wants to know of the end: the runtime first, with a part of the time, then
    /// the extensions. What does not end by itself is left to whoever ends the sandbox.
    pub(super) async fn wind_up(&self, api: &RuntimeApi, reason: &str, grace: Duration) {
        if !api.waits_for_the_end() {
            return;
        }
        let all = async {
            let begun = Instant::now();
            api.flush(grace / 4).await;
            let asked = async {
                // One that has ended needs not be asked.
                _ = self.sandbox.signal(stoker_sandbox::Signal::Stop).await;
                self.sandbox.ended().await
            };
            if tokio::time::timeout(grace * 3 / 10, asked).await.is_err() {
                _ = self.sandbox.signal(stoker_sandbox::Signal::Kill).await;
            }
            api.shut_down(reason, grace.saturating_sub(begun.elapsed())).await;
        };
        tokio::select! {
            () = all => {}
            _ = self.sandbox.wait() => {}
        }
    }

    /// The API of a start, and where it is.
    async fn serve_api(
        &self,
        plan: &Plan,
        start: Start,
    ) -> Result<(Arc<RuntimeApi>, SocketAddr), LaunchError> {
        let listen = |port| self.sandbox.listen(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let listener = match listen(PORT).await {
            // Where several share a network, each takes what is free. In one of its own nothing can be there but the end of the API before it.
            Err(stoker_sandbox::Error::Platform { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
                listen(0).await
            }
            other => other,
        };
        let listener = listener.map_err(launch_error)?;
        let broken = |e: std::io::Error| LaunchError::Platform(format!("serve the Runtime API: {e}"));
        let address = listener.local_addr().map_err(broken)?;
        let api = RuntimeApi::serve(listener, self.about(plan, start == Start::Inline)).map_err(broken)?;
        let telemetry = api.telemetry();
        self.log.tap(move |source, line| {
            let lines = if source == Source::Extension { Lines::Extension } else { Lines::Function };
            telemetry.line(lines, line);
        });
        Ok((Arc::new(api), address))
    }

    /// Ends every process in it, and puts the API of another start in the place of the last one's, which none of them can reach.
    async fn next_api(&self, start: Start) -> Result<SocketAddr, LaunchError> {
        let Some(asking) = &self.lambda else { return Err(LaunchError::Stopping) };
        self.sandbox.clear().await.map_err(launch_error)?;
        let (api, address) = self.serve_api(&asking.plan, start).await?;
        *asking.api.lock().unwrap_or_else(PoisonError::into_inner) = api;
        Ok(address)
    }

    /// Starts the function and its extensions, and waits until all are ready. Gives how long the start itself took.
    async fn come_up(
        &self,
        start: Start,
        address: SocketAddr,
        limit: Duration,
        stop: &CancellationToken,
    ) -> Result<Duration, Unready> {
        let Some(asking) = &self.lambda else { return Err(Unready::Launch(LaunchError::Stopping)) };
        let (plan, api) = (&asking.plan, asking.api());
        let told = plan.told(address);
        let late = tokio::time::sleep(limit);
        tokio::pin!(late);
        self.spawn_extensions(plan, &told, &api).await?;
        // They are there before the runtime is.
        tokio::select! {
            biased;
            there = api.registered() => there.map_err(init_error).map_err(Unready::Init)?,
            () = stop.cancelled() => return Err(Unready::Launch(LaunchError::Stopping)),
            () = &mut late => return Err(self.too_late(start, limit, "has an extension that did not register")),
        }
        let begun = Instant::now();
        let stdio = self.sandbox.start(told).await?;
        self.listen_to(stdio)?;
        let took = begun.elapsed();
        tokio::select! {
            biased;
            ready = api.ready() => ready.map_err(init_error).map_err(Unready::Init)?,
            () = stop.cancelled() => return Err(Unready::Launch(LaunchError::Stopping)),
            exit = self.sandbox.ended() => return Err(self.ended_in_init(exit).await),
            () = &mut late => return Err(self.too_late(start, limit, "did not ask for its first invocation")),
        }
        tokio::select! {
            biased;
            restored = api.restore(plan.hooks) => restored.map_err(init_error).map_err(Unready::Init)?,
            () = stop.cancelled() => return Err(Unready::Launch(LaunchError::Stopping)),
            exit = self.sandbox.ended() => return Err(self.ended_in_init(exit).await),
        }
        Ok(took)
    }

    /// Follows what the runtime writes. Its STDIN has an end at once.
    fn listen_to(&self, stdio: Stdio) -> Result<(), Unready> {
        let Stdio { stdin, stdout, stderr } = stdio;
        drop(stdin);
        // Those of a start before it have ended.
        self.outputs().clear();
        self.follow(Source::Stdout, stdout).map_err(Unready::Launch)?;
        self.follow(Source::Stderr, stderr).map_err(Unready::Launch)
    }

    /// Starts each extension that is a process of its own, and watches it.
    async fn spawn_extensions(
        &self,
        plan: &Plan,
        told: &[(String, String)],
        api: &Arc<RuntimeApi>,
    ) -> Result<(), Unready> {
        for name in &plan.extensions {
            let env = plan.env.iter().chain(told).cloned().collect();
            let companion = Companion { command: vec![format!("/opt/extensions/{name}")], env };
            let process = match self.sandbox.spawn(companion).await {
                Ok(process) => process,
                Err(stoker_sandbox::Error::Function(text)) => {
                    return Err(Unready::Launch(LaunchError::Function(extension_launch(text))));
                }
                Err(error) => return Err(error.into()),
            };
            let Stdio { stdin, stdout, stderr } = process.stdio;
            drop(stdin);
            self.log.follow(Source::Extension, reader(stdout).map_err(Unready::Launch)?);
            self.log.follow(Source::Extension, reader(stderr).map_err(Unready::Launch)?);
            let (name, api, ended) = (name.clone(), api.clone(), process.ended);
            // Ends with the process, or when the sandbox goes or is started again.
            tokio::spawn(async move {
                if let Ok(cause) = ended.await {
                    api.extension_ended(&name, &extension_exit(cause)).await;
                }
            });
        }
        Ok(())
    }

    fn too_late(&self, start: Start, limit: Duration, what: &str) -> Unready {
        let init = self.spec.init_timeout();
        let text = match start {
            Start::Inline => {
                let before = format!("a start that failed (its init_timeout is {init:?})");
                format!("within its timeout of {limit:?}, started again after {before}, the function {what}")
            }
            Start::First | Start::Reset => {
                format!("within its init_timeout of {limit:?} the function {what}")
            }
        };
        Unready::Init(Error::new(Code::FunctionInitTimeout, text))
    }

    async fn ended_in_init(&self, exit: Exit) -> Unready {
        let error = self.exited(exit, Phase::Init).await;
        match error.code {
            Code::RunnerLost => Unready::Launch(LaunchError::Platform(error.message)),
            // It would need as much again.
            Code::FunctionOutOfMemory => Unready::Launch(LaunchError::Function(error)),
            _ => Unready::Init(error.report(exited(exit))),
        }
    }

    /// An error of a start with what the function wrote. It has ended then.
    async fn last_words(&self, error: Error) -> LaunchError {
        if !error.log_tail.is_empty() {
            return LaunchError::Function(error);
        }
        self.sandbox.stop(Duration::ZERO).await;
        self.said_all().await;
        LaunchError::Function(error.log_tail(self.log.tail(None)))
    }

    fn about(&self, plan: &Plan, again: bool) -> About {
        // The sandbox goes with its container, whoever wants to connect.
        let sandbox = Arc::downgrade(&self.sandbox);
        About {
            function: self.spec.name.function().to_owned(),
            version: version(&self.spec),
            handler: self.spec.format_options.handler.clone(),
            account: ACCOUNT.to_owned(),
            log_stream: self.id.as_str().to_owned(),
            memory: self.spec.memory,
            kind: plan.kind,
            again,
            concurrency: self.spec.concurrency,
            external: plan.extensions.clone(),
            no_extensions: plan.no_extensions,
            credentials: plan.credentials.clone(),
            connect: Arc::new(move |port| {
                let sandbox = sandbox.clone();
                Box::pin(async move {
                    let sandbox = sandbox.upgrade().ok_or(ErrorKind::NotConnected)?;
                    connect(&*sandbox, port).await
                })
            }),
        }
    }
}

/// Connects to a port on the loopback device inside. A socket belongs to the network in which it was made, and what a sandbox makes is
/// listeners: one that is told to listen no more is a socket like any other.
async fn connect(sandbox: &dyn Sandbox, port: u16) -> std::io::Result<TcpStream> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = sandbox.listen(any).await.map_err(std::io::Error::other)?;
    rustix::net::connect_unspec(&listener)?;
    let socket = TcpSocket::from_std_stream(OwnedFd::from(listener).into());
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}
