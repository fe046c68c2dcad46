//! The runner as a process: settings, log, ports, and the order of its end.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, Registry};
use stoker_runtime::admin::{Admin, Pages, Shown};
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Ending, Readiness, Signals};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::reload::{Reloads, Why};
use stoker_runtime::server::{self, Etcd, FLUSH};
use stoker_runtime::telemetry::Telemetry;
use stoker_runtime::tls::Tls;

use crate::app::{CLOSING, Config, Runner};
use crate::observe::{Meters, Observer};
use crate::settings::{self, PROGRAM, Plan};

/// How long a scrape that runs may take at the end.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// Runs `stoker-runner`.
#[must_use]
pub fn main() -> ExitCode {
    server::main(&PROGRAM, Plan::new, |plan| plan.threads, run)
}

async fn run(settings: &Settings, plan: Plan, logs: &Logs) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let registry: Arc<dyn Registry> = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => Arc::new(registry),
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let telemetry = Telemetry::start(&plan.telemetry).context("cannot start to send traces")?;
    let (metrics, readiness) = (Metrics::default(), Readiness::new("starting"));
    metrics.describe_process(PROGRAM.name, PROGRAM.version);
    logs.measure(&metrics);
    telemetry.measure(&metrics);
    let observer = Observer {
        tracer: plan.telemetry.endpoint.is_some().then(|| telemetry.tracer()),
        meters: Some(Meters::new(&metrics)),
    };
    // First of all: whoever starts us wants to know how far we are.
    let tls = plan.runner.tls.clone();
    let reloads =
        Reloads::listen(tls.iter().flat_map(|tls| tls.files())).context("cannot listen for signals")?;
    let pages = Pages::new(readiness.clone(), metrics, settings);
    let shown = pages.shown();
    let admin = Admin::start(plan.admin, pages, tls.clone())
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(admin = %admin.address(), "starting");
    let mut stop = std::pin::pin!(signals.stop_requested());
    let serving = async {
        let runner = Runner::start(Config { observer, ..plan.runner }, registry).await?;
        let (name, address) = (runner.name(), runner.address());
        tracing::info!(%name, %address, sandbox = runner.describe(), "serving");
        readiness.not_ready("waiting for etcd, where this runner is to be registered");
        anyhow::Ok(runner)
    };
    let mut grace = plan.drain_grace;
    let started = {
        let until_stop = async {
            let ended = tokio::select! {
                // A runner that is not up yet has no calls: what there is of it ends with the process.
                why = &mut stop => (None, why),
                runner = serving => {
                    let runner = runner?;
                    let why = tokio::select! {
                        why = &mut stop => why,
                        () = runner.registered() => {
                            readiness.ready();
                            tracing::info!("ready");
                            stop.await
                        }
                    };
                    (Some(runner), why)
                }
            };
            anyhow::Ok(ended)
        };
        tokio::select! {
            ended = until_stop => ended,
            never = keep_fresh(reloads, settings, logs, tls, shown, &mut grace) => match never {},
        }
    };
    let (runner, why) = started?;
    readiness.stopping(format!("{why}: finishing the calls that are here"));
    tracing::info!(why, "stopping");
    // The runner keeps its own limits; this is for an end that hangs in spite of them.
    let limit = grace + CLOSING + FLUSH + LAST_SCRAPE;
    let ending = Ending::begin(limit).context("cannot watch over the end")?;
    if let Some(runner) = runner {
        ending.phase("calls", limit, runner.stop(grace)).await;
    }
    ending.phase("traces", limit, telemetry.stop(FLUSH)).await;
    ending.phase("admin port", limit, admin.stop(LAST_SCRAPE)).await;
    Ok(ExitCode::SUCCESS)
}

/// Takes up what changed while the runner serves: certificates when their files change, settings at SIGHUP.
async fn keep_fresh(
    mut reloads: Reloads,
    settings: &Settings,
    logs: &Logs,
    tls: Option<Arc<Tls>>,
    shown: Shown,
    grace: &mut Duration,
) -> Infallible {
    loop {
        if reloads.next().await == Why::Asked
            && let Some(settings) = server::reread(settings, logs, &shown)
        {
            *grace = settings::live(&settings);
        }
        // Small files, and seldom.
        match tls.as_ref().map(|tls| tls.reload()) {
            None => {}
            Some(Ok(())) => tracing::info!("certificates are as they are on disk"),
            Some(Err(why)) => {
                tracing::error!(why, "what is on disk cannot be used, and what was read before stays")
            }
        }
    }
}
