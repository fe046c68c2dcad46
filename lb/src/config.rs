//! What a balancer is told.

use std::net::SocketAddr;
use std::time::Duration;

pub use stoker_policy::waiting::Limits;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::telemetry::Tracer;

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
    /// Most bytes of a request's body. Bodies are streamed, so this bounds how long a call can go on, not memory.
    pub max_body: u64,
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
            max_body: 1 << 30,
            tracer: Tracer::off(),
            metrics: Metrics::default(),
        }
    }
}
