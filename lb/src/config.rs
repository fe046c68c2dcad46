//! What a balancer is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
pub use stoker_policy::waiting::Limits;
use stoker_queue::{DiskQueue, Queue};
use stoker_runtime::audit::Audit;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::telemetry::Tracer;
use stoker_runtime::tls::Tls;
use tokio::sync::watch;

pub use crate::front::http::{LambdaCode, LambdaConfig, Runtimes as LambdaRuntimes};
use crate::serve;

/// Where calls for later are kept.
#[derive(Debug, Clone, Default)]
pub enum CallQueue {
    /// Nowhere: none are taken.
    #[default]
    None,
    /// On this machine's disk; no other balancer sees them.
    Disk(stoker_queue::disk::Config),
    /// In NATS JetStream, for all balancers.
    #[cfg(feature = "nats")]
    Nats(stoker_queue::nats::Config),
}

impl CallQueue {
    /// Opens it, on the runtime that serves.
    ///
    /// # Errors
    /// What is wrong with the place. A NATS server that does not answer is no error: it may come.
    pub async fn open(self) -> anyhow::Result<Option<Arc<dyn Queue>>> {
        let context = "cannot open the queue for asynchronous calls";
        Ok(match self {
            CallQueue::None => None,
            CallQueue::Disk(config) => Some(Arc::new(DiskQueue::open(config).await.context(context)?)),
            #[cfg(feature = "nats")]
            CallQueue::Nats(config) => {
                Some(Arc::new(stoker_queue::NatsQueue::open(config).await.context(context)?))
            }
        })
    }
}

/// Settings of a balancer.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it names itself to runners.
    pub name: String,
    /// Where gRPC is served; port 0 takes a free one.
    pub grpc: SocketAddr,
    /// Where HTTP is served; port 0 takes a free one.
    pub http: SocketAddr,
    /// Long-lived streams to each runner, each on a connection of its own.
    pub streams_per_runner: usize,
    /// Functions that a session with a runner defines before another takes its place; below `stoker_proto::MAX_DEFINED`.
    pub renew_after: usize,
    /// How many calls may wait.
    pub queue: Limits,
    /// Longest wait in the queue.
    pub max_wait: Duration,
    /// Most calls inside at once, waiting ones included.
    pub max_calls: usize,
    /// Most connections of clients at once, at both ports together.
    pub max_connections: usize,
    /// Percent of both that one address may have whose callers nobody knows; 100 is no limit. This machine's own are not counted.
    pub address_share: usize,
    /// How long a client may take nothing of an answer that waits for it.
    pub send_timeout: Duration,
    /// Most bytes of a request's body. Bodies are streamed, so this bounds how long a call can go on, not memory.
    pub max_body: u64,
    /// TLS on both ports, and to runners that ask for it.
    pub tls: Option<Arc<Tls>>,
    /// Runners on other machines may be spoken to without TLS.
    pub insecure: bool,
    /// The access file; without one everybody may everything.
    pub access: Option<PathBuf>,
    /// Where changes are noted.
    pub audit: Audit,
    /// Becomes true once the functions are there that the fleet starts with: the balancer is not ready before, and a function that it does not know may still
    /// come. Without it, the registry's functions are all of them.
    pub complete: Option<watch::Receiver<bool>>,
    /// Calls that are remembered for whoever asks why they went where they went: so many that are worth it, and so many others.
    pub explained: usize,
    /// Where calls for later are kept.
    pub later: CallQueue,
    /// What AWS Lambda's API does besides calls.
    pub lambda: LambdaConfig,
    /// Makes the spans of calls.
    pub tracer: Tracer,
    /// Where the balancer's numbers are shown: those of one balancer.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "balancer".to_owned(),
            grpc: SocketAddr::from(([127, 0, 0, 1], 7070)),
            http: SocketAddr::from(([127, 0, 0, 1], 7080)),
            streams_per_runner: 1,
            renew_after: stoker_proto::MAX_DEFINED / 4 * 3,
            queue: Limits::default(),
            max_wait: Duration::from_secs(30),
            max_calls: 20_000,
            max_connections: serve::usual(),
            address_share: 50,
            send_timeout: Duration::from_secs(60),
            max_body: 1 << 30,
            tls: None,
            insecure: false,
            access: None,
            audit: Audit::into_log(),
            complete: None,
            explained: 4096,
            later: CallQueue::None,
            lambda: LambdaConfig::default(),
            tracer: Tracer::off(),
            metrics: Metrics::default(),
        }
    }
}
