//! A whole fleet inside this process: one balancer and some runners over a registry.
//!
//! Each member has a thread with a runtime of its own, as it would have a process of its own elsewhere: a busy runner does
//! not hold up the balancer, and the connections between them are real ones on loopback. A member ends when it is told to
//! stop, or by itself on an error; [`Fleet::lost`] tells of the latter.
//!
//! One thread and one stream each, because that is the cheapest: 64 callers at once cost 0.032 ms of CPU a call, 17 % more
//! with two worker threads a member and 4 to 16 % more with two or four streams between them. A machine with more
//! cores is used by more runners.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use stoker_core::cidr::Cidr;
use stoker_core::{FunctionName, Resources, RunnerName};
use stoker_registry::Registry;
use stoker_runtime::admin::{Admin, Pages};
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::Readiness;
use stoker_runtime::metrics::Metrics;
use stoker_sandbox::select::Choice;
use tokio::sync::{mpsc, oneshot, watch};

use crate::failure::Failure;

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    /// What the admin port shows as the settings in effect.
    pub settings: Arc<Settings>,
    /// One for each runner, unique on this machine.
    pub runners: Vec<RunnerName>,
    /// What each of them offers.
    pub resources: Resources,
    pub sandbox: Choice,
    /// The program of the sandbox `oci`, and where the daemon of the sandbox `docker` listens, where that is said.
    pub oci_runtime: Option<PathBuf>,
    pub docker_socket: Option<PathBuf>,
    /// For what runners keep on disk.
    pub state: PathBuf,
    /// Where calls for later are kept.
    pub queue: PathBuf,
    /// Where code is kept that comes as a zip.
    pub code: PathBuf,
    pub lambda: Lambda,
    pub images: Images,
    /// The secrets of functions: a directory for each app.
    pub secrets: Option<PathBuf>,
    /// How long calls may take to finish at the end.
    pub grace: Duration,
}

/// What the balancer is told of AWS's API beside that, as its settings `lambda.emulate` and `lambda.trusted_proxies`.
#[derive(Debug, Clone, Default)]
pub struct Lambda {
    pub emulate: Option<String>,
    pub trusted_proxies: Vec<Cidr>,
}

/// Where images come from, and where they are kept.
#[derive(Debug, Clone, Default)]
pub struct Images {
    /// A directory for those of all runners; with what else they keep if absent.
    pub directory: Option<PathBuf>,
    pub budget: u64,
    pub credentials: Option<PathBuf>,
    pub without_tls: Vec<String>,
    pub ca: Option<PathBuf>,
}

/// Tells runners that files of functions were changed.
#[derive(Debug, Clone, Default)]
pub struct Renewer(Vec<mpsc::Sender<Renewed>>);

/// The functions, and who waits until it is so.
type Renewed = (Arc<[FunctionName]>, oneshot::Sender<()>);

impl Renewer {
    /// Returns when calls of these functions find only containers that are started from now on.
    pub async fn renew(&self, names: impl Into<Arc<[FunctionName]>>) {
        let names = names.into();
        for runner in &self.0 {
            let (done, is_done) = oneshot::channel();
            // A runner that has ended has no containers.
            if runner.send((Arc::clone(&names), done)).await.is_ok() {
                _ = is_done.await;
            }
        }
    }
}

/// A fleet that serves.
pub struct Fleet {
    balancer: Member,
    runners: Vec<Member>,
    renewer: Renewer,
    /// Whether the functions are there that it starts with.
    complete: watch::Sender<bool>,
    /// Whether calls can be placed.
    ready: watch::Receiver<bool>,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    /// The driver in use and why, as the runners tell it.
    pub sandbox: String,
}

impl Fleet {
    /// Starts all members and returns once functions can be applied. Nobody is told that calls may come before [`Fleet::open`].
    pub async fn start(plan: Plan, registry: Arc<dyn Registry>) -> Result<Self, Failure> {
        // The runners first: then the balancer's first view of the fleet is the whole of it.
        let starting = plan.runners.iter().map(|name| runner(&plan, name.clone(), Arc::clone(&registry)));
        let (mut runners, mut renewer) = (Vec::new(), Renewer::default());
        let mut sandbox = String::new();
        let mut failed = None;
        for started in join_all(starting).await {
            match started {
                Ok((member, renew, description)) => {
                    runners.push(member);
                    renewer.0.push(renew);
                    sandbox = description;
                }
                Err(failure) => failed = Some(failure),
            }
        }
        let (complete, is_complete) = watch::channel(false);
        let started = match failed {
            Some(failure) => Err(failure),
            None => balancer(&plan, registry, is_complete).await,
        };
        match started {
            Ok((balancer, Doors { grpc, http, admin, ready })) => {
                Ok(Self { balancer, runners, renewer, complete, ready, grpc, http, admin, sandbox })
            }
            Err(failure) => {
                join_all(runners.into_iter().map(Member::stop)).await;
                Err(failure)
            }
        }
    }

    /// All functions are there that it starts with: says that calls may come, and returns when they can be placed.
    pub async fn open(&mut self) {
        self.complete.send_replace(true);
        // Fails only where the balancer has ended, which `lost` tells.
        self.ready.wait_for(|ready| *ready).await.ok();
    }

    /// For whoever sees files of functions change.
    pub fn renewer(&self) -> Renewer {
        self.renewer.clone()
    }

    /// Returns when a member ended that was not told to.
    pub async fn lost(&mut self) -> Failure {
        let mut members: FuturesUnordered<_> =
            self.runners.iter_mut().chain([&mut self.balancer]).map(Member::ended).collect();
        let name = members.next().await.unwrap_or_default();
        Failure::platform(format!("{name} stopped by itself"), "its last words are above; please report them")
    }

    /// The balancer finishes its calls, then the runners have none and go.
    pub async fn stop(self) {
        self.balancer.stop().await;
        join_all(self.runners.into_iter().map(Member::stop)).await;
    }
}

/// A thread with a server in it.
struct Member {
    name: String,
    stop: oneshot::Sender<()>,
    /// Closes when the thread is done.
    done: oneshot::Receiver<()>,
}

impl Member {
    /// Runs `serve` on a thread of its own. It says through the first channel that it is ready, or why it cannot be, and
    /// returns once the second says stop and it has stopped.
    async fn start<R, S>(
        name: String,
        serve: impl FnOnce(oneshot::Sender<anyhow::Result<R>>, oneshot::Receiver<()>) -> S + Send + 'static,
    ) -> Result<(Self, R), Failure>
    where
        R: Send + 'static,
        S: Future<Output = ()>,
    {
        let (stop, stopping) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let (finished, done) = oneshot::channel();
        let body = move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(serve(ready, stopping)),
                Err(error) => _ = ready.send(Err(error.into())),
            }
            drop::<oneshot::Sender<()>>(finished);
        };
        std::thread::Builder::new()
            .name(name.clone())
            .spawn(body)
            .map_err(|error| Failure::platform(format!("cannot start a thread for {name}: {error}"), ""))?;
        match is_ready.await {
            Ok(Ok(ready)) => Ok((Self { name, stop, done }, ready)),
            Ok(Err(error)) => Err(Failure::platform(format!("{name} cannot start: {error:#}"), "")),
            Err(_) => {
                Err(Failure::platform(format!("{name} ended before it was ready"), "please report this"))
            }
        }
    }

    async fn ended(&mut self) -> String {
        // Nothing is ever sent: the error is the news.
        _ = (&mut self.done).await;
        self.name.clone()
    }

    async fn stop(self) {
        // One that has ended already takes no message.
        _ = self.stop.send(());
        _ = self.done.await;
    }
}

async fn runner(
    plan: &Plan,
    name: RunnerName,
    registry: Arc<dyn Registry>,
) -> Result<(Member, mpsc::Sender<Renewed>, String), Failure> {
    let state = plan.state.join(name.as_str());
    let mut config = stoker_runner::Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        sandbox: plan.sandbox,
        oci_runtime: plan.oci_runtime.clone(),
        docker_socket: plan.docker_socket.clone(),
        // Who starts a fleet for himself has the host's network, and so may his functions.
        allow_host_network: true,
        ..stoker_runner::Config::new(name.clone(), plan.resources, state)
    };
    let Images { directory, budget, credentials, without_tls, ca } = plan.images.clone();
    if let Some(directory) = directory {
        // Its number: the rest of its name may be another at the next start.
        config.images.directory = directory.join(name.as_str().rsplit('-').next().unwrap_or_default());
    }
    config.images.budget = budget;
    config.images.registries.credentials = credentials;
    config.images.registries.without_tls = without_tls;
    config.images.registries.ca = ca;
    config.secrets.clone_from(&plan.secrets);
    let grace = plan.grace;
    let (renew, mut renewed) = mpsc::channel::<Renewed>(1);
    let serve = async move |ready: oneshot::Sender<_>, mut stop: oneshot::Receiver<()>| {
        match stoker_runner::Runner::start(config, registry).await {
            Ok(runner) => {
                _ = ready.send(Ok(runner.describe().to_owned()));
                loop {
                    tokio::select! {
                        _ = &mut stop => break,
                        Some((names, done)) = renewed.recv() => {
                            runner.renew(|spec| names.contains(&spec.name));
                            _ = done.send(());
                        }
                    }
                }
                runner.stop(grace).await;
            }
            Err(error) => _ = ready.send(Err(error)),
        }
    };
    let (member, description) = Member::start(name.to_string(), serve).await?;
    Ok((member, renew, description))
}

/// Where a balancer serves, and whether it is ready.
struct Doors {
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
    ready: watch::Receiver<bool>,
}

async fn balancer(
    plan: &Plan,
    registry: Arc<dyn Registry>,
    complete: watch::Receiver<bool>,
) -> Result<(Member, Doors), Failure> {
    let metrics = Metrics::default();
    let config = stoker_lb::Config {
        name: "balancer".to_owned(),
        grpc: plan.grpc,
        http: plan.http,
        later: stoker_lb::CallQueue::Disk(stoker_queue::disk::Config::new(&plan.queue)),
        lambda: stoker_lb::LambdaConfig {
            code: Some(stoker_lb::LambdaCode::Directory(plan.code.clone())),
            emulate: plan.lambda.emulate.clone(),
            trusted_proxies: plan.lambda.trusted_proxies.clone(),
            ..Default::default()
        },
        metrics: metrics.clone(),
        complete: Some(complete),
        ..stoker_lb::Config::default()
    };
    let (grace, admin, settings) = (plan.grace, plan.admin, plan.settings.clone());
    let serve = async move |started: oneshot::Sender<_>, mut stop: oneshot::Receiver<()>| {
        let balancer = match stoker_lb::Balancer::start(config, registry).await {
            Ok(balancer) => balancer,
            Err(error) => {
                _ = started.send(Err(error));
                return;
            }
        };
        let readiness = Readiness::new("the functions that it starts with are being applied");
        let pages = Pages::new(readiness.clone(), metrics, &settings).live(balancer.page());
        match Admin::start(admin, pages, None).await {
            Ok(admin) => {
                let (grpc, http) = (balancer.grpc_address(), balancer.http_address());
                let (announced, ready) = watch::channel(false);
                _ = started.send(Ok(Doors { grpc, http, admin: admin.address(), ready }));
                let announce = async {
                    balancer.ready().await;
                    readiness.ready();
                    announced.send_replace(true);
                    std::future::pending::<Infallible>().await
                };
                tokio::select! {
                    _ = &mut stop => {}
                    never = announce => match never {},
                }
                balancer.stop(grace).await;
                admin.stop(Duration::ZERO).await;
            }
            Err(error) => {
                _ = started.send(Err(anyhow::anyhow!("cannot listen on {admin} for the page: {error}")));
                balancer.stop(Duration::ZERO).await;
            }
        }
    };
    Member::start("balancer".to_owned(), serve).await
}
