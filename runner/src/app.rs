//! Wiring: a runner from its configuration, and its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_core::{FunctionSpec, Incarnation, Resources, RunnerName};
use stoker_registry::{Registration, Registry};
use stoker_runtime::server;
use stoker_runtime::tls::{Incoming, Speaks, Tls};
use stoker_sandbox::handover::PassedFds;
use stoker_sandbox::{Driver, egress, select, spawner};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::container::{Container, Launcher};
use crate::handover::{self, Departure, Inherited, Terms, is_allowed};
use crate::images::Images;
use crate::ledger::Ledger;
use crate::logs::Logs;
use crate::machine::pressure::Pressure;
use crate::observe::Observer;
use crate::pool::Pools;
use crate::pool::handover::{HandedMember, HandedSince};
use crate::report::Report;
use crate::secrets::Secrets;
use crate::service::Shared;
use crate::service::engage::Served;
use crate::service::open::{Count, Open};

/// Bytes in flight on one stream and one connection to a balancer; each call has its own window within.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A balancer's connection on which nothing came for this long is pinged, and ended with its calls when that is not answered: late enough that a runner which had
/// no CPU itself for a moment does not end what is in order.
const PING_AFTER: Duration = Duration::from_secs(2);
const UNANSWERED: Duration = Duration::from_secs(6);

/// For calls whose containers were ended under them to say their outcome.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// For containers to end, most of them with a moment to end by themselves.
const CONTAINERS: Duration = Duration::from_secs(5);
/// For a store to hear that we go; the record ends with its lease all the same.
const REGISTRY: Duration = Duration::from_secs(3);
const SESSIONS: Duration = Duration::from_secs(1);
const SERVER: Duration = Duration::from_secs(1);
/// For balancers to say that they have heard that the runner drains. One that stands still says nothing.
const HEARD: Duration = Duration::from_secs(2);
/// Those of version 1 of the protocol do not say it, but offer nothing any more from then on: they all have heard when nothing has come for this long.
/// One that goes on is waited for only as long as others may take to say it.
const QUIET: Duration = Duration::from_millis(250);
/// For connections to close when the next program is about to take their place: callers wait meanwhile.
const MOMENT: Duration = Duration::from_millis(100);
/// For the spawner to remove what sandboxes have left; it goes on without us.
const SANDBOXES: Duration = Duration::from_secs(3);

/// What [`Runner::stop`] takes at most beyond the grace for calls.
pub const CLOSING: Duration = Duration::from_secs(
    LAST_WORDS.as_secs()
        + HEARD.as_secs()
        + CONTAINERS.as_secs()
        + REGISTRY.as_secs()
        + SESSIONS.as_secs()
        + SERVER.as_secs()
        + SANDBOXES.as_secs(),
);

/// What a runner is told.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: RunnerName,
    pub listen: SocketAddr,
    /// How balancers reach it, `http://host:port`, or `https://` with TLS; the address it listens on if absent.
    pub advertise: Option<String>,
    /// Serves balancers of the fleet alone, with TLS.
    pub tls: Option<Arc<Tls>>,
    /// What it gives out.
    pub resources: Resources,
    pub sandbox: select::Choice,
    /// Program of the OCI runtime; the first that is found if absent.
    pub oci_runtime: Option<PathBuf>,
    /// Where the Docker daemon listens; where it usually does if absent.
    pub docker_socket: Option<PathBuf>,
    /// Functions may have the host's network.
    pub allow_host_network: bool,
    /// What functions with `network: egress` may reach.
    pub egress: egress::Config,
    pub state_dir: PathBuf,
    /// The store of images; `images` in `state_dir` by itself.
    pub images: stoker_image::Config,
    /// The secrets of functions: a directory for each app.
    pub secrets: Option<PathBuf>,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    pub spawner: spawner::Command,
    /// An eventfd that tells, beside the kernel, when memory is short.
    pub memory_news: Option<Arc<OwnedFd>>,
    /// Idle containers stand still after this long.
    pub freeze_after: Duration,
    pub observer: Observer,
}

impl Config {
    /// The defaults for a runner of this name that offers `resources`.
    pub fn new(name: RunnerName, resources: Resources, state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            name,
            listen: SocketAddr::from(([127, 0, 0, 1], 7170)),
            advertise: None,
            tls: None,
            resources,
            sandbox: select::Choice::Auto,
            oci_runtime: None,
            docker_socket: None,
            allow_host_network: false,
            egress: egress::Config::default(),
            images: stoker_image::Config::new(state_dir.join("images")),
            state_dir,
            secrets: None,
            zone: String::new(),
            labels: BTreeMap::new(),
            spawner: spawner::Command::default(),
            memory_news: None,
            freeze_after: Duration::from_millis(100),
            observer: Observer::default(),
        }
    }
}

/// A runner that runs, in tasks on the runtime that started it.
pub struct Runner {
    name: RunnerName,
    address: SocketAddr,
    /// What it was told to listen on.
    listen: SocketAddr,
    state_dir: PathBuf,
    /// The listening socket, for whoever goes on with it.
    socket: OwnedFd,
    shared: Arc<Shared>,
    known: watch::Receiver<bool>,
    stop_report: CancellationToken,
    stop_server: CancellationToken,
    parts: Mutex<Option<Parts>>,
}

struct Parts {
    report: JoinHandle<Box<dyn Registration>>,
    server: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
    driver: Arc<dyn Driver>,
}

impl Runner {
    /// Binds, cleans up after an earlier life, registers and serves.
    ///
    /// # Errors
    /// What could not be done, with the reason.
    pub async fn start(config: Config, registry: Arc<dyn Registry>) -> anyhow::Result<Self> {
        Self::begin(config, registry, None).await
    }

    /// The same, in the place of the process's former program: with its socket and its idle containers.
    ///
    /// # Errors
    /// As [`Runner::start`]. What cannot be taken up is no error: it ends, and is made anew when it is needed.
    pub async fn take_up(
        config: Config,
        registry: Arc<dyn Registry>,
        inherited: Inherited,
    ) -> anyhow::Result<Self> {
        Self::begin(config, registry, Some(inherited)).await
    }

    async fn begin(
        config: Config,
        registry: Arc<dyn Registry>,
        mut inherited: Option<Inherited>,
    ) -> anyhow::Result<Self> {
        // A container holds about a dozen descriptors here.
        server::raise_open_files();
        let listener = listen(config.listen, inherited.as_mut()).await;
        let listener = listener.with_context(|| format!("listen on {}", config.listen))?;
        let socket = listener.as_fd().try_clone_to_owned().context("keep the socket")?;
        let address = listener.local_addr().context("ask for the address that was bound")?;
        let choice = choice(&config);
        let images = Arc::new(Images::new(config.images));
        images.clean_up().await;
        let logs = Arc::new(Logs::collected(config.observer.recorder.clone()));
        let cordoned = inherited.as_ref().is_some_and(Inherited::is_cordoned);
        let (selection, taken) = match inherited {
            None => (select::select(choice).await.context("choose a sandbox")?, Vec::new()),
            Some(inherited) => {
                take_up(choice, inherited, &images, &logs).await.context("choose a sandbox")?
            }
        };
        match selection.driver.collect_leftovers().await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => tracing::info!(?left, "removed what an earlier life left behind"),
            Err(error) => tracing::warn!(%error, "an earlier life left something that could not be removed"),
        }
        let incarnation = Incarnation::new();
        let ledger = Ledger::new(config.resources);
        let driver = selection.driver.clone();
        let pools = Pools::new(
            ledger,
            Launcher { driver, images, secrets: Secrets::new(config.secrets), logs: logs.clone() },
            incarnation,
            config.freeze_after,
            config.observer.clone(),
        );
        pools.watch_memory(Pressure::listen(config.memory_news));
        pools.watch_secrets();
        if cordoned {
            pools.cordon();
        }
        if !taken.is_empty() {
            let containers = pools.take_up(taken);
            tracing::info!(containers, "took over from the former program");
        }
        let advertised = config.advertise.unwrap_or_else(|| {
            let scheme = if config.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{address}")
        });
        let report = Report::new(
            config.name.clone(),
            incarnation,
            advertised,
            config.zone,
            config.labels,
            pools.clone(),
        );
        let shared = Arc::new(Shared {
            pools,
            report: report.clone(),
            logs,
            sandbox: selection.why,
            observer: config.observer,
            open: Open::default(),
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
        });
        let (stop_report, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let incoming = Incoming::new(listener, config.tls, Speaks::Http2);
        let server = serve(incoming, shared.clone(), stop_server.clone()).await;
        // Whoever is connected already does not wait for the registry.
        let registration = match registry.register(report.now()).await {
            Ok(registration) => registration,
            Err(error) => {
                stop_server.cancel();
                return Err(error).context("register");
            }
        };
        let known = registration.known();
        let report = tokio::spawn(report.run(registration, stop_report.clone()));
        Ok(Self {
            name: config.name,
            address,
            listen: config.listen,
            state_dir: config.state_dir,
            socket,
            shared,
            known,
            stop_report,
            stop_server,
            parts: Mutex::new(Some(Parts { report, server: Some(server), driver: selection.driver })),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name.
    pub fn name(&self) -> &RunnerName {
        &self.name
    }

    /// The files of these functions were changed: calls that come from now on find containers that were started since.
    pub fn renew(&self, which: impl Fn(&FunctionSpec) -> bool) {
        self.shared.pools.renew(which);
    }

    /// Which sandbox it uses, and why.
    pub fn describe(&self) -> &str {
        &self.shared.sandbox
    }

    /// Returns when the registry knows it: at once, or when a store that is away has come.
    pub async fn registered(&self) {
        // The task that knows goes only with the runner.
        self.known.clone().wait_for(|known| *known).await.ok();
    }

    /// Makes ready to become another program, as [`crate::handover`] says; `admin` is where that is to have the admin port. Calls that are inside
    /// may take `grace` to end.
    ///
    /// # Errors
    /// Why that cannot be: then nothing has changed, and calls are taken as before.
    pub async fn depart(&self, admin: SocketAddr, grace: Duration) -> anyhow::Result<Departure> {
        let parts = self.parts.lock().await;
        let driver = parts.as_ref().map(|parts| parts.driver.clone()).context("it is stopping")?;
        drop(parts);
        // Whether it can be at all.
        let handed = driver.hand_over(&mut PassedFds::default())?;
        let terms = Terms::new(self.name.as_str(), self.state_dir.clone(), self.listen, &handed);
        handover::ask(&terms).await.map_err(anyhow::Error::msg)?;
        let pools = &self.shared.pools;
        pools.drain();
        self.shared.report.tell();
        let left = pools.gate.close_and_wait(grace).await;
        let ready = async {
            anyhow::ensure!(left == 0, "{left} calls have not ended in {grace:?}");
            if self.heard().await > 0 {
                pools.gate.calm(QUIET, HEARD).await;
            }
            let mut passed = PassedFds::default();
            let listener = passed.keep(&self.socket).context("keep the socket")?;
            let driver = driver.hand_over(&mut passed)?;
            let leaving = pools.hand_over(&mut passed).await;
            anyhow::Ok((listener, driver, leaving, passed))
        };
        match ready.await {
            Ok((listener, driver, leaving, passed)) => {
                self.end_sessions().await;
                let cordoned = pools.is_cordoned();
                Ok(Departure::new(terms, listener, admin, driver, cordoned, leaving, passed))
            }
            Err(error) => {
                pools.gate.open();
                self.shared.report.tell();
                Err(error)
            }
        }
    }

    /// Waits until no balancer has an offer on its way: what is offered on a session that ends may be lost. How many sessions there are whose
    /// balancers do not say so.
    async fn heard(&self) -> usize {
        let Count { open, mute } = self.shared.open.settled(HEARD).await;
        if open > 0 {
            tracing::warn!(sessions = open, limit = ?HEARD, "balancers do not say that they have heard of the drain");
        }
        mute
    }

    /// Takes no connection any more, and ends those that there are: whoever comes now waits for the next program.
    async fn end_sessions(&self) {
        self.stop_server.cancel();
        self.shared.over.cancel();
        self.shared.tasks.close();
        within("the sessions", SESSIONS, self.shared.tasks.wait()).await;
        let server = self.parts.lock().await.as_mut().and_then(|parts| parts.server.take());
        if let Some(server) = server {
            within("the server", MOMENT, server).await;
        }
    }

    /// Refuses new calls and says so to everyone, waits for those inside up to `grace`, ends every container, leaves the registry,
    /// stops serving and clears away. A second call does nothing. Every step has a limit: all of it takes no longer than `grace` and
    /// [`CLOSING`].
    pub async fn stop(&self, grace: Duration) {
        let Some(parts) = self.parts.lock().await.take() else { return };
        let Parts { report, server, driver } = parts;
        let pools = &self.shared.pools;
        pools.drain();
        self.shared.report.tell();
        let left = pools.gate.close_and_wait(grace).await;
        if left > 0 {
            tracing::warn!(calls = left, ?grace, "the drain ends before these calls");
        }
        within("the containers", CONTAINERS, pools.stop_all()).await;
        // Calls that were ended with their containers say so before their sessions end; one whose reader stands still need not.
        pools.gate.close_and_wait(LAST_WORDS).await;
        self.stop_report.cancel();
        let leave = async {
            if let Ok(registration) = report.await {
                registration.withdraw().await;
            }
        };
        within("the registry", REGISTRY, leave).await;
        self.heard().await;
        self.shared.over.cancel();
        self.shared.tasks.close();
        within("the sessions", SESSIONS, self.shared.tasks.wait()).await;
        self.stop_server.cancel();
        if let Some(mut server) = server {
            match within("the server", SERVER, &mut server).await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => tracing::warn!(%error, "the server ended with an error"),
                Some(Err(error)) => tracing::warn!(%error, "the server's task ended with an error"),
                // Somebody has a stream open that ends with nothing, like one of health.
                None => server.abort(),
            }
        }
        within("the sandboxes", SANDBOXES, driver.close()).await;
    }
}

/// The driver and the containers of the process's former program; where the driver cannot be taken up, one as at any start.
async fn take_up(
    choice: select::Config,
    inherited: Inherited,
    images: &Images,
    logs: &Logs,
) -> Result<(select::Selection, Vec<(HandedSince, Container)>), stoker_sandbox::Error> {
    let host_network = choice.host_network;
    let (driver, members, mut fds) = inherited.apart();
    let selection = match select::take_up(choice.clone(), driver, &mut fds).await {
        Ok(selection) => selection,
        Err(error) => {
            tracing::error!(%error, "what was handed over cannot be taken up, and ends");
            drop(fds);
            return Ok((select::select(choice).await?, Vec::new()));
        }
    };
    let mut taken = Vec::new();
    for (container, since) in members.into_iter().map(HandedMember::apart) {
        if !is_allowed(&container, host_network) {
            continue;
        }
        match Container::take_up(container, &*selection.driver, images, logs, &mut fds).await {
            Ok(container) => taken.push((since, container)),
            Err(why) => tracing::warn!(why, "a container that was handed over cannot be taken up, and ends"),
        }
    }
    Ok((selection, taken))
}

/// Listens, unless the process's former program did already.
async fn listen(address: SocketAddr, inherited: Option<&mut Inherited>) -> std::io::Result<TcpListener> {
    match inherited {
        Some(inherited) => inherited.listener().and_then(TcpListener::from_std),
        None => TcpListener::bind(address).await,
    }
}

/// Of what the sandbox is chosen.
fn choice(config: &Config) -> select::Config {
    let mut choice = select::Config::new(config.sandbox, config.name.as_str(), &config.state_dir)
        .with_spawner(config.spawner.clone());
    choice.oci.runtime = config.oci_runtime.clone();
    choice.host_network = config.allow_host_network;
    choice.oci.egress = config.egress.clone();
    choice.docker.egress = config.egress.clone();
    choice.native.egress = config.egress.clone();
    if let Some(socket) = &config.docker_socket {
        choice.docker.socket.clone_from(socket);
    }
    choice
}

/// Serves balancers until it is `over`.
async fn serve(
    incoming: Incoming,
    shared: Arc<Shared>,
    over: CancellationToken,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<Served>().await;
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .max_frame_size(stoker_proto::HTTP2_FRAME)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_AFTER))
        .http2_keepalive_timeout(Some(UNANSWERED))
        .add_service(Served::new(shared))
        .add_service(health);
    tokio::spawn(server.serve_with_incoming_shutdown(incoming, async move { over.cancelled().await }))
}

/// One step of the end.
async fn within<T>(what: &str, limit: Duration, step: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(limit, step).await.ok();
    if done.is_none() {
        tracing::warn!(?limit, "stopping: not waited any longer for {what}");
    }
    done
}

impl Drop for Runner {
    /// Without [`Runner::stop`] everything ends at once, containers included.
    fn drop(&mut self) {
        self.shared.over.cancel();
        // Without a runtime there is no task to end them, and none is needed: they end with this process.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.shared.pools.abandon();
        }
        self.stop_report.cancel();
        self.stop_server.cancel();
    }
}
