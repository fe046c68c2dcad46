//! The balancer as a process: settings, log, ports, and the order of its end.
//!
//! One thread serves everything. Connections on single-threaded runtimes cost less CPU per call than on one runtime with several
//! threads, and a balancer keeps no state: a machine with more cores is used by more balancers.

use std::convert::Infallible;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, etcd};
use stoker_runtime::admin::{Admin, Pages, Shown};
use stoker_runtime::audit::{self, Audit};
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Readiness, Signals, refuse_upgrades};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::{self, Metrics};
use stoker_runtime::reload::{self, Reloads, Why};
use stoker_runtime::server::{self, Etcd, FLUSH, Seen};
use stoker_runtime::tls::{Tls, open_to_others};

use crate::app::{Balancer, CLOSING};
use crate::config::Config;
use crate::settings::{self, PROGRAM, Plan};

/// What SIGUSR2 is told: connections of clients cannot go over to another program, so balancers take turns.
const INSTEAD: &str = "start another balancer, then stop this one (SIGTERM): its calls end in order";

/// Runs `stoker-lb`.
#[must_use]
pub fn main() -> ExitCode {
    server::main(&PROGRAM, Plan::new, |_| 1, run)
}

async fn run(settings: &Settings, plan: Plan, logs: &Logs) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    refuse_upgrades(INSTEAD).context("cannot listen for signals")?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let registry = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => registry,
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let seen = Seen::start(
        &PROGRAM,
        settings,
        &plan.telemetry,
        logs,
        "waiting for the first view of the fleet in etcd",
    );
    let seen = seen.context("cannot start to send traces")?;
    measure_etcd(&seen.metrics, &registry);
    let (audit, keeper) = audit(plan.audit.as_deref(), &seen.metrics)?;
    let (tls, access) = (plan.balancer.tls.clone(), plan.balancer.access.clone());
    reload::show(tls.as_ref(), &seen.metrics);
    let files = tls.iter().flat_map(|tls| tls.files()).chain(access);
    let reloads = Reloads::listen(files).context("cannot listen for signals")?;
    let insecure = plan.balancer.insecure;
    let (tracer, metrics) = (seen.telemetry.tracer(), seen.metrics.clone());
    let config = Config { tracer, metrics: metrics.clone(), audit, ..plan.balancer };
    let balancer = Balancer::start(config, Arc::new(registry)).await?;
    let viewers = balancer.viewers(tls.is_some() && open_to_others(plan.admin), insecure);
    let pages = Pages::new(seen.readiness.clone(), metrics, settings).live(balancer.page()).viewers(viewers);
    let shown = pages.shown();
    let admin = Admin::start(plan.admin, pages, tls.clone())
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(
        grpc = %balancer.grpc_address(), http = %balancer.http_address(), admin = %admin.address(), "serving"
    );
    let mut grace = plan.drain_grace;
    let why = {
        let mut fresh = Fresh { reloads, settings, logs, balancer: &balancer, tls, shown, grace: &mut grace };
        tokio::select! {
            why = serve(signals, &balancer, &seen.readiness) => why,
            never = fresh.keep() => match never {},
        }
    };
    let ended = seen.end(why, grace.saturating_add(CLOSING), balancer.stop(grace), admin).await;
    ended.context("cannot watch over the end")?;
    if let Some(keeper) = keeper {
        // Writes in a thread: nothing of ours is left that could be held up.
        audit::Keeper::stop(keeper, FLUSH);
    }
    Ok(ExitCode::SUCCESS)
}

/// Where changes are noted: in this file, or in the log.
fn audit(path: Option<&Path>, metrics: &Metrics) -> anyhow::Result<(Audit, Option<audit::Keeper>)> {
    let (audit, keeper) = match path {
        None => (Audit::into_log(), None),
        Some(path) => {
            let opened = Audit::into_file(path);
            let opened = opened.with_context(|| format!("cannot note changes in {}", path.display()));
            opened.map(|(audit, keeper)| (audit, Some(keeper)))?
        }
    };
    audit.measure(metrics);
    Ok((audit, keeper))
}

/// Serves until it is told to stop; gives why.
async fn serve(signals: Signals, balancer: &Balancer, readiness: &Readiness) -> &'static str {
    let ready = async {
        balancer.ready().await;
        readiness.ready();
        tracing::info!("ready");
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        why = signals.stop_requested() => why,
        never = ready => match never {},
    }
}

/// Shows how things stand with etcd.
fn measure_etcd(metrics: &Metrics, registry: &EtcdRegistry) {
    let figures = registry.figures();
    let views =
        [etcd::Part::Fleet, etcd::Part::Functions, etcd::Part::Apps, etcd::Part::Places].map(|view| {
            let figures = figures.clone();
            let read = move || metrics::etcd::Part {
                interruptions: figures.interruptions(view),
                interrupted: figures.is_interrupted(view),
                revision: Some(figures.revision(view)),
            };
            (view.as_str(), read)
        });
    metrics::etcd::measure(metrics, move || figures.answered_ms(), views);
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
