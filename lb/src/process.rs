//! The balancer as a process: settings, log, ports, and the order of its end.
//!
//! One thread serves everything. Connections on single-threaded runtimes cost less CPU per call than on one runtime with several
//! threads, and a balancer keeps no state: a machine with more cores is used by more balancers.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, etcd};
use stoker_runtime::admin::{Admin, Pages, Shown};
use stoker_runtime::audit::{self, Audit};
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Ending, Readiness, Signals};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::{self, Metrics};
use stoker_runtime::reload::{self, Reloads, Why};
use stoker_runtime::server::{self, Etcd, FLUSH};
use stoker_runtime::telemetry::Telemetry;
use stoker_runtime::tls::{Tls, open_to_others};

use crate::app::{Balancer, CLOSING};
use crate::config::Config;
use crate::settings::{self, PROGRAM, Plan};

/// How long a scrape that runs may take at the end.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// Runs `stoker-lb`.
#[must_use]
pub fn main() -> ExitCode {
    server::main(&PROGRAM, Plan::new, |_| 1, run)
}

async fn run(settings: &Settings, plan: Plan, logs: &Logs) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let registry = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => registry,
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let telemetry = Telemetry::start(&plan.telemetry).context("cannot start to send traces")?;
    let (metrics, readiness) =
        (Metrics::new(settings), Readiness::new("waiting for the first view of the fleet in etcd"));
    metrics.describe_process(PROGRAM.name, PROGRAM.version);
    logs.measure(&metrics);
    telemetry.measure(&metrics);
    measure_etcd(&metrics, &registry);
    logs.collect(telemetry.recorder());
    let (audit, keeper) = match &plan.audit {
        None => (Audit::into_log(), None),
        Some(path) => {
            let opened =
                Audit::into_file(path).with_context(|| format!("cannot note changes in {}", path.display()));
            let (audit, keeper) = opened?;
            (audit, Some(keeper))
        }
    };
    audit.measure(&metrics);
    reload::show(plan.balancer.tls.as_ref(), &metrics);
    let (tls, access) = (plan.balancer.tls.clone(), plan.balancer.access.clone());
    let insecure = plan.balancer.insecure;
    let files = tls.iter().flat_map(|tls| tls.files()).chain(access);
    let reloads = Reloads::listen(files).context("cannot listen for signals")?;
    let config = Config { tracer: telemetry.tracer(), metrics: metrics.clone(), audit, ..plan.balancer };
    let balancer = Balancer::start(config, Arc::new(registry)).await?;
    let viewers = balancer.viewers(tls.is_some() && open_to_others(plan.admin), insecure);
    let pages = Pages::new(readiness.clone(), metrics, settings).live(balancer.page()).viewers(viewers);
    let shown = pages.shown();
    let admin = Admin::start(plan.admin, pages, tls.clone())
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(
        grpc = %balancer.grpc_address(), http = %balancer.http_address(), admin = %admin.address(), "serving"
    );
    let mut stop = std::pin::pin!(signals.stop_requested());
    let mut grace = plan.drain_grace;
    let why = {
        let mut fresh = Fresh { reloads, settings, logs, balancer: &balancer, tls, shown, grace: &mut grace };
        let serving = async {
            tokio::select! {
                why = &mut stop => why,
                () = balancer.ready() => {
                    readiness.ready();
                    tracing::info!("ready");
                    stop.await
                }
            }
        };
        tokio::select! {
            why = serving => why,
            never = fresh.keep() => match never {},
        }
    };
    readiness.stopping(format!("{why}: finishing the calls that are here"));
    tracing::info!(why, "stopping");
    // The balancer keeps its own limits; this is for an end that hangs in spite of them.
    let limit = grace.saturating_add(CLOSING + FLUSH + LAST_SCRAPE);
    let ending = Ending::begin(limit).context("cannot watch over the end")?;
    ending.phase("calls", limit, balancer.stop(grace)).await;
    ending.phase("traces", limit, telemetry.stop(FLUSH)).await;
    ending.phase("admin port", limit, admin.stop(LAST_SCRAPE)).await;
    if let Some(keeper) = keeper {
        // Writes in a thread: nothing of ours is left that could be held up.
        audit::Keeper::stop(keeper, FLUSH);
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows how things stand with etcd.
fn measure_etcd(metrics: &Metrics, registry: &EtcdRegistry) {
    let figures = registry.figures();
    let parts =
        [etcd::Part::Fleet, etcd::Part::Functions, etcd::Part::Apps, etcd::Part::Places].map(|part| {
            let figures = figures.clone();
            let read = move || metrics::etcd::Part {
                interruptions: figures.interruptions(part),
                interrupted: figures.is_interrupted(part),
                revision: (part != etcd::Part::Registration).then(|| figures.revision(part)),
            };
            (part.as_str(), read)
        });
    let answered = figures.clone();
    metrics::etcd::measure(metrics, move || answered.answered_ms(), parts);
}

/// Takes up what changed while the balancer serves: certificates, the access file and what it names when their files change, settings at SIGHUP.
struct Fresh<'a> {
    reloads: Reloads,
    settings: &'a Settings,
    logs: &'a Logs,
    balancer: &'a Balancer,
    tls: Option<Arc<Tls>>,
    shown: Shown,
    grace: &'a mut Duration,
}

impl Fresh<'_> {
    async fn keep(&mut self) -> Infallible {
        let mut max_calls = settings::live(self.settings).0;
        loop {
            // What the access file names is watched from now on, and may have changed since it was read.
            let tls = self.tls.iter().flat_map(|tls| tls.files());
            if !self.reloads.watch(tls.chain(self.balancer.access_files()))
                && self.reloads.next().await == Why::Asked
                && let Some(settings) = server::reread(self.settings, self.logs, &self.shown)
            {
                (max_calls, *self.grace) = settings::live(&settings);
            }
            // Small files, and seldom.
            reload::reread(self.tls.as_deref(), || self.balancer.reload(max_calls));
        }
    }
}
