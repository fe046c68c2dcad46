//! Wiring: builds the parts, starts the tasks, defines the order of the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use stoker_registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::config::Config;
use crate::directory::Directory;
use crate::dispatch::Dispatch;
use crate::fleet::Fleet;
use crate::front::{self, Door};
use crate::queue::Queue;
use crate::serve::{self, Speaks, Stops};

/// A balancer that runs.
pub struct Balancer {
    grpc: SocketAddr,
    http: SocketAddr,
    fleet: Arc<Fleet>,
    health: front::Health,
    /// Servers and their connections.
    fronts: TaskTracker,
    /// Bodies under way to runners.
    uploads: TaskTracker,
    /// The follower of the registry and the links.
    links: TaskTracker,
    stops: Stops,
    unlink: CancellationToken,
}

impl Balancer {
    /// Listens and starts all tasks on the current runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on.
    pub async fn start(config: Config, registry: Arc<dyn Registry>) -> anyhow::Result<Self> {
        let (grpc_listener, grpc) = serve::listen(config.grpc, "gRPC").await?;
        let (http_listener, http) = serve::listen(config.http, "HTTP").await?;
        let fleet = Fleet::new(config.name.clone(), Queue::new(config.queue));
        let (fronts, uploads, links) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stops, unlink) = (Stops::default(), CancellationToken::new());
        links.spawn(fleet.clone().follow(
            registry.fleet(),
            config.streams_per_runner,
            links.clone(),
            unlink.clone(),
        ));
        let door = Arc::new(Door {
            dispatch: Dispatch { fleet: fleet.clone(), max_wait: config.max_wait, uploads: uploads.clone() },
            directory: Directory::new(registry.functions()),
            admission: Admission::new(config.max_calls),
            registry,
            stopping: stops.calm.clone(),
        });
        let health = front::Health::new().await;
        let routes = front::grpc::routes(door.clone(), &health)?;
        let routes = front::grpc::Served::new(routes);
        fronts.spawn(serve::serve(grpc_listener, routes, Speaks::Http2, fronts.clone(), stops.clone()));
        let pages = front::http::Served::new(door);
        fronts.spawn(serve::serve(http_listener, pages, Speaks::Both, fronts.clone(), stops.clone()));
        Ok(Self { grpc, http, fleet, health, fronts, uploads, links, stops, unlink })
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

    /// Waits for the first view of the fleet.
    pub async fn ready(&self) {
        // The sender lives in the fleet, which we hold.
        self.fleet.known().wait_for(|known| *known).await.ok();
    }

    /// Not ready, no new calls; what runs may finish within `grace`; then everything that is left is cut off.
    pub async fn stop(self, grace: Duration) {
        self.health.not_serving().await;
        self.stops.calm.cancel();
        self.fronts.close();
        self.uploads.close();
        self.links.close();
        if tokio::time::timeout(grace, self.fronts.wait()).await.is_err() {
            tracing::warn!("calls were cut off: the grace period is over");
        }
        self.stops.now.cancel();
        self.fronts.wait().await;
        // Calls of cut connections are cancelled by now; links close behind their last frames.
        self.unlink.cancel();
        self.links.wait().await;
        self.uploads.wait().await;
    }
}
