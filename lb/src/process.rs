//! The balancer as a process: settings, log, ports, and the order of its end.
//!
//! One thread serves everything. Connections on single-threaded runtimes cost less CPU per call than on one runtime with several
//! threads, and a balancer keeps no state: a machine with more cores is used by more balancers.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, Registry};
use stoker_runtime::admin::{Admin, Pages};
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Ending, Readiness, Signals};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::server::{self, Etcd, FLUSH};
use stoker_runtime::telemetry::Telemetry;

use crate::app::{Balancer, CLOSING};
use crate::config::Config;
use crate::settings::{PROGRAM, Plan};

/// How long a scrape that runs may take at the end.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// Runs `stoker-lb`.
#[must_use]
pub fn main() -> ExitCode {
    server::main(&PROGRAM, Plan::new, |_| 1, run)
}

async fn run(settings: &Settings, plan: Plan, logs: &Logs) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    let registry: Arc<dyn Registry> = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => Arc::new(registry),
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let telemetry = Telemetry::start(&plan.telemetry).context("cannot start to send traces")?;
    let (metrics, readiness) =
        (Metrics::default(), Readiness::new("waiting for the first view of the fleet in etcd"));
    metrics.describe_process(PROGRAM.name, PROGRAM.version);
    logs.measure(&metrics);
    telemetry.measure(&metrics);
    let config = Config { tracer: telemetry.tracer(), metrics: metrics.clone(), ..plan.balancer };
    let balancer = Balancer::start(config, registry).await?;
    let admin = Admin::start(plan.admin, Pages::new(readiness.clone(), metrics, settings))
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(
        grpc = %balancer.grpc_address(), http = %balancer.http_address(), admin = %admin.address(), "serving"
    );
    let mut stop = std::pin::pin!(signals.stop_requested());
    let why = tokio::select! {
        why = &mut stop => why,
        () = balancer.ready() => {
            readiness.ready();
            tracing::info!("ready");
            stop.await
        }
    };
    readiness.stopping(format!("{why}: finishing the calls that are here"));
    tracing::info!(why, "stopping");
    // The balancer keeps its own limits; this is for an end that hangs in spite of them.
    let limit = plan.drain_grace.saturating_add(CLOSING + FLUSH + LAST_SCRAPE);
    let ending = Ending::begin(limit).context("cannot watch over the end")?;
    ending.phase("calls", limit, balancer.stop(plan.drain_grace)).await;
    ending.phase("traces", limit, telemetry.stop(FLUSH)).await;
    ending.phase("admin port", limit, admin.stop(LAST_SCRAPE)).await;
    Ok(ExitCode::SUCCESS)
}
