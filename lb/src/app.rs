//! Wiring: builds the parts, starts the tasks, defines the order of the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stoker_core::ids::Incarnation;
use stoker_registry::Registry;
use stoker_runtime::admin::{Live, Viewers};
use stoker_runtime::server;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::admission::Admission;
use crate::auth::Guard;
use crate::config::Config;
use crate::directory::Directory;
use crate::dispatch::Dispatch;
use crate::explain::Stories;
use crate::fleet::Fleet;
use crate::front::{self, Front};
use crate::later::{self, Later};
use crate::link::dial::Dial;
use crate::metrics::{FUNCTION_CALLS, FUNCTION_DURATION};
use crate::min_containers;
use crate::observe::Observer;
use crate::panics::Panics;
use crate::places;
use crate::queue::Queue;
use crate::scaling;
use crate::serve::{self, Connections, Speaks, Stops};

/// How long connections without a call may take to close at the end, such as those that still send an answer.
const LINGER: Duration = Duration::from_secs(3);

/// How long the end may take beyond the grace for calls.
pub const CLOSING: Duration = Duration::from_secs(2);

/// Of that, how long clients may take to be told what became of their calls when the grace is over.
const FAREWELL: Duration = Duration::from_millis(500);

/// A balancer that runs.
pub struct Balancer {
    grpc: SocketAddr,
    http: SocketAddr,
    health: Arc<front::Health>,
    /// Fleet and functions have been read.
    ready: watch::Receiver<bool>,
    front: Arc<Front>,
    /// Servers and their connections.
    fronts: TaskTracker,
    /// Bodies under way to runners, and sessions of clients.
    tasks: TaskTracker,
    /// The follower of the registry and the links.
    links: TaskTracker,
    stops: Stops,
    /// No attempt at a call for later goes on.
    cut: CancellationToken,
    unlink: CancellationToken,
}

impl Balancer {
    /// Listens and starts all tasks on the current runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(config: Config, registry: Arc<dyn Registry>) -> anyhow::Result<Self> {
        let guard = match &config.access {
            None => Guard::open(config.audit),
            Some(path) => Guard::new(path, config.audit).map_err(anyhow::Error::msg)?,
        };
        server::raise_open_files();
        let (grpc_listener, grpc) = serve::listen(config.grpc, "gRPC").await?;
        let (http_listener, http) = serve::listen(config.http, "HTTP").await?;
        let observer = Observer::new(
            config.tracer,
            &config.metrics,
            Stories::new(config.name.clone(), config.explained),
        );
        let admission = Admission::new(config.max_calls);
        let later = Later::new(config.later.open().await?, &config.metrics);
        let fleet = Fleet::new(
            config.name.clone(),
            Dial { tls: config.tls.clone(), insecure: config.insecure },
            Queue::new(config.queue),
            config.renew_after,
            Panics::new(&config.metrics),
            observer.clone(),
        );
        observer.measure(&config.metrics, admission.clone(), fleet.queue.clone());
        let (fronts, tasks, links) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stops, cut, unlink) = (Stops::default(), CancellationToken::new(), CancellationToken::new());
        links.spawn(fleet.clone().follow(
            registry.fleet(),
            config.streams_per_runner,
            links.clone(),
            unlink.clone(),
        ));
        links.spawn(scaling::run(fleet.clone(), config.metrics.clone(), unlink.clone()));
        let places = registry.places(&format!("{}-{}", config.name, Incarnation::new()));
        let front = Arc::new(Front {
            dispatch: Dispatch {
                fleet,
                max_wait: config.max_wait,
                max_body: config.max_body,
                tasks: tasks.clone(),
            },
            directory: Directory::sharing(registry.functions()),
            admission,
            observer,
            registry,
            guard,
            lambda: front::http::Lambda::new(config.lambda),
            later,
            send_timeout: config.send_timeout,
            complete: config.complete.unwrap_or_else(|| watch::channel(true).1),
            stopping: stops.calm.clone(),
        });
        // Metrics may outlive us.
        let shown = Arc::downgrade(&front);
        config.metrics.observe([&FUNCTION_CALLS, &FUNCTION_DURATION], move |scrape| {
            if let Some(front) = shown.upgrade() {
                front.observer.tell_functions(&front.directory, scrape);
            }
        });
        let health = Arc::new(front::Health::new().await);
        let served = front::grpc::Served::new(front.clone(), &health)?;
        let tls = config.tls;
        let grpc_service = move |origin| served.to(origin);
        let connections = Connections::new(
            config.max_connections,
            Addresses::new(config.address_share),
            config.send_timeout,
            &config.metrics,
        );
        let (port, tracker, told) = (connections.at("grpc"), fronts.clone(), stops.clone());
        let serving =
            serve::serve(grpc_listener, tls.clone(), grpc_service, Speaks::Http2, port, tracker, told);
        fronts.spawn(serving);
        let this = front.clone();
        let http_service = move |origin| front::http::Served::new(this.clone(), origin);
        let (port, tracker, told) = (connections.at("http"), fronts.clone(), stops.clone());
        fronts.spawn(serve::serve(http_listener, tls, http_service, Speaks::Both, port, tracker, told));
        later::start(&front, &tasks, &Stops { calm: stops.calm.clone(), now: cut.clone() });
        links.spawn(min_containers::run(front.clone(), unlink.clone()));
        links.spawn(places::run(front.clone(), places, unlink.clone()));
        let (announced, ready) = watch::channel(false);
        links.spawn(announce(front.clone(), health.clone(), announced, stops.calm.clone()));
        Ok(Self { grpc, http, health, ready, front, fronts, tasks, links, stops, cut, unlink })
    }

    /// Takes up what changed: the access file, the audit's file if it was moved away, and how many calls there may be inside.
    ///
    /// # Errors
    /// What is wrong with the access file, which then stays as it was.
    pub fn reload(&self, max_calls: usize) -> Result<(), String> {
        self.front.admission.limit(max_calls);
        self.front.guard.audit.reopen();
        self.front.guard.reload()
    }

    /// The access file and what it names, for those who watch them.
    #[must_use]
    pub fn access_files(&self) -> Vec<PathBuf> {
        self.front.guard.access_file().map(|file| file.files()).unwrap_or_default()
    }

    /// Who may look at pages about it; `others_by_tls`: whoever is on another machine reaches them, and by TLS.
    #[must_use]
    pub fn viewers(&self, others_by_tls: bool, insecure: bool) -> Viewers {
        let guard = &self.front.guard;
        Viewers::of(guard.access_file().map(|file| (file, guard.audit.clone())), others_by_tls, insecure)
    }

    /// What it shows people on the admin port.
    #[must_use]
    pub fn page(&self) -> Live {
        crate::page::page(self.front.clone())
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where HTTP is served.
    #[must_use]
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Waits for the first view of the fleet and of the functions, and for those that the fleet starts with. Once it is ready it stays
    /// so, whatever becomes of the registry: calls go on with what was seen last.
    pub async fn ready(&self) {
        if self.ready.clone().wait_for(|ready| *ready).await.is_err() {
            // It was told to stop before: it will never be.
            std::future::pending::<()>().await;
        }
    }

    /// Not ready, no new connections; calls may finish within `grace`; then everything that is left is cut off, and told so: a call that waits
    /// here may go elsewhere, one on a runner may have started. Connections
    /// without a call, whatever streams they hold open, get [`LINGER`]. All of it is over within `grace` and [`CLOSING`].
    pub async fn stop(self, grace: Duration) {
        self.health.not_serving().await;
        self.stops.calm.cancel();
        self.fronts.close();
        self.tasks.close();
        self.links.close();
        if tokio::time::timeout(grace, self.drained()).await.is_err() {
            let calls = self.front.admission.inside();
            tracing::warn!(calls, "the grace period is over: calls are cut off");
            self.cut.cancel();
            self.front.dispatch.fleet.queue.close();
            self.unlink.cancel();
            // Who does not take it in time sees its connection end.
            tokio::time::timeout(FAREWELL, self.fronts.wait()).await.ok();
        }
        self.cut.cancel();
        self.stops.now.cancel();
        let closed = async {
            self.fronts.wait().await;
            // Calls of cut connections are cancelled by now; links close behind their last frames.
            self.unlink.cancel();
            self.links.wait().await;
            self.tasks.wait().await;
            // Nobody uses it any more.
            self.front.later.stop().await;
        };
        if tokio::time::timeout(CLOSING - FAREWELL, closed).await.is_err() {
            tracing::error!("tasks of the balancer did not end and are left behind");
        }
    }

    /// Returns when all connections have ended, or no call is left and what is left of the connections had its time.
    async fn drained(&self) {
        loop {
            self.front.admission.idle().await;
            let ended = tokio::time::timeout(LINGER, self.fronts.wait()).await;
            if ended.is_ok() || self.front.admission.inside() == 0 {
                return;
            }
        }
    }
}

/// Says that calls may come once fleet and functions have been read, and the functions are there that the fleet starts with. Ends
/// then, or when the balancer stops.
async fn announce(
    front: Arc<Front>,
    health: Arc<front::Health>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let (mut fleet, mut complete) = (front.dispatch.fleet.known(), front.complete.clone());
    let read = async {
        // The senders live as long as the process, or have said that it is so.
        fleet.wait_for(|known| *known).await.ok();
        front.directory.read().await;
        complete.wait_for(|complete| *complete).await.ok();
        health.serving().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = read => { ready.send_replace(true); }
    }
}
