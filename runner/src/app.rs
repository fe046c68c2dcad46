//! Wiring: a runner from its configuration, and its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_core::{Incarnation, Resources, RunnerName};
use stoker_proto::runner::v1::runner_service_server::RunnerServiceServer;
use stoker_registry::{Registration, Registry};
use stoker_sandbox::{select, spawner};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ledger::Ledger;
use crate::logs::Logs;
use crate::pool::Pools;
use crate::report::Report;
use crate::service::{Service, Shared};

/// Bytes in flight on one stream and one connection to a balancer; each call has its own window within.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What a runner is told.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: RunnerName,
    pub listen: SocketAddr,
    /// How balancers reach it, `http://host:port`; the address it listens on if absent.
    pub advertise: Option<String>,
    /// What it gives out.
    pub resources: Resources,
    pub sandbox: select::Choice,
    pub state_dir: PathBuf,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
    pub spawner: spawner::Command,
    /// Idle containers stand still after this long.
    pub freeze_after: Duration,
    /// [`Runner::drain`] waits this long for running calls.
    pub drain_grace: Duration,
}

impl Config {
    /// The defaults for a runner of this name that offers `resources`.
    pub fn new(name: RunnerName, resources: Resources, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            name,
            listen: SocketAddr::from(([127, 0, 0, 1], 7170)),
            advertise: None,
            resources,
            sandbox: select::Choice::Auto,
            state_dir: state_dir.into(),
            zone: String::new(),
            labels: BTreeMap::new(),
            spawner: spawner::Command::default(),
            freeze_after: Duration::from_millis(100),
            drain_grace: Duration::from_secs(30),
        }
    }
}

/// A runner that runs, in tasks on the runtime that started it.
pub struct Runner {
    name: RunnerName,
    address: SocketAddr,
    shared: Arc<Shared>,
    drain_grace: Duration,
    stop_report: CancellationToken,
    stop_server: CancellationToken,
    parts: Mutex<Option<Parts>>,
}

struct Parts {
    report: JoinHandle<Box<dyn Registration>>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Runner {
    /// Binds, cleans up after an earlier life, registers and serves.
    ///
    /// # Errors
    /// What could not be done, with the reason.
    pub async fn start(config: Config, registry: Arc<dyn Registry>) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
        let address = listener.local_addr().context("ask for the address that was bound")?;
        let choice = select::Config::new(config.sandbox, config.name.as_str(), &config.state_dir)
            .with_spawner(config.spawner.clone());
        let selection = select::select(choice).await.context("choose a sandbox")?;
        match selection.driver.collect_leftovers().await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => tracing::info!(?left, "removed what an earlier life left behind"),
            Err(error) => tracing::warn!(%error, "an earlier life left something that could not be removed"),
        }
        let incarnation = Incarnation::new();
        let logs = Arc::new(Logs::default());
        let ledger = Ledger::new(config.resources);
        let pools =
            Pools::new(ledger, logs.clone(), selection.driver.clone(), incarnation, config.freeze_after);
        let advertised = config.advertise.unwrap_or_else(|| format!("http://{address}"));
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
            tasks: TaskTracker::new(),
            over: CancellationToken::new(),
        });
        let registration = registry.register(report.now()).await.context("register")?;
        let (stop_report, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let report = tokio::spawn(report.run(registration, stop_report.clone()));
        let service = RunnerServiceServer::new(Service(shared.clone()))
            .max_decoding_message_size(stoker_proto::MAX_FRAME)
            .max_encoding_message_size(stoker_proto::MAX_FRAME);
        let (health_reporter, health) = tonic_health::server::health_reporter();
        health_reporter.set_serving::<RunnerServiceServer<Service>>().await;
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let over = stop_server.clone();
        let server = tokio::spawn(
            tonic::transport::Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .http2_keepalive_interval(Some(Duration::from_secs(10)))
                .http2_keepalive_timeout(Some(Duration::from_secs(10)))
                .add_service(service)
                .add_service(health)
                .serve_with_incoming_shutdown(incoming, async move { over.cancelled().await }),
        );
        Ok(Self {
            name: config.name,
            address,
            shared,
            drain_grace: config.drain_grace,
            stop_report,
            stop_server,
            parts: Mutex::new(Some(Parts { report, server })),
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

    /// Which sandbox it uses, and why.
    pub fn describe(&self) -> &str {
        &self.shared.sandbox
    }

    /// Refuses new calls, says so to everyone, and waits for those that run and wait, up to the grace of its configuration.
    pub async fn drain(&self) {
        self.drain_within(self.drain_grace).await;
    }

    async fn drain_within(&self, grace: Duration) {
        let mut capacity = self.shared.report.watch();
        self.shared.pools.drain();
        let quiet = capacity.wait_for(|c| {
            c.state == stoker_core::RunnerState::Draining && c.in_flight == 0 && c.waiting == 0
        });
        _ = tokio::time::timeout(grace, quiet).await;
    }

    /// Drains up to `grace`, ends every container, leaves the registry and stops serving. A second call does nothing.
    pub async fn stop(&self, grace: Duration) {
        let Some(parts) = self.parts.lock().await.take() else { return };
        self.drain_within(grace).await;
        self.shared.pools.stop_all().await;
        self.stop_report.cancel();
        if let Ok(registration) = parts.report.await {
            registration.withdraw().await;
        }
        self.shared.over.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.stop_server.cancel();
        match parts.server.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the server ended with an error"),
            Err(error) => tracing::warn!(%error, "the server's task ended with an error"),
        }
    }
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
