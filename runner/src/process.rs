//! The runner as a process: settings, log, ports, the order of its end, and how it becomes the next release of itself (SIGUSR2).

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, etcd};
use stoker_runtime::admin::{Admin, Pages, Shown, Viewers};
use stoker_runtime::audit::Audit;
use stoker_runtime::auth::Kept;
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Ending, Readiness, Signals};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::{self, Metrics};
use stoker_runtime::reload::{self, Reloads, Why};
use stoker_runtime::server::{self, Etcd, FLUSH};
use stoker_runtime::telemetry::Telemetry;
use stoker_runtime::tls::{Tls, open_to_others};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{CLOSING, Config, Runner};
use crate::handover::{self, Departure, Heir};
use crate::metrics::Meters;
use crate::observe::Observer;
use crate::settings::{self, PROGRAM, Plan};

/// How long a scrape that runs may take at the end.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// How long traces and log lines may take to leave before another program takes this one's place, each: callers wait meanwhile.
const BRIEF_FLUSH: Duration = Duration::from_millis(200);

/// Runs `stoker-runner`.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = handover::asked() {
        return code;
    }
    // Before anything is opened.
    let heir = Heir::find();
    server::main(
        &PROGRAM,
        Plan::new,
        |plan| plan.threads,
        async |settings, plan, logs| run(settings, plan, logs, heir).await,
    )
}

/// Why a runner does not serve any more.
enum End {
    /// It was told to stop.
    Stop(&'static str),
    /// Another program takes its place.
    Leave(Departure),
}

async fn run(
    settings: &Settings,
    mut plan: Plan,
    logs: &Logs,
    heir: Result<Option<Heir>, String>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    let upgrades = signal(SignalKind::user_defined2()).context("cannot listen for signals")?;
    let heir = heir.unwrap_or_else(|why| {
        tracing::error!(why, "starting anew");
        None
    });
    if let Some(heir) = heir.as_ref().filter(|_| plan.admin.port() == 0) {
        plan.admin = heir.admin();
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let registry = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => registry,
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let telemetry = Telemetry::start(&plan.telemetry).context("cannot start to send traces")?;
    let (metrics, readiness) = (Metrics::new(settings), Readiness::new("starting"));
    metrics.describe_process(PROGRAM.name, PROGRAM.version);
    logs.measure(&metrics);
    telemetry.measure(&metrics);
    measure_etcd(&metrics, &registry);
    logs.collect(telemetry.recorder());
    let observer = Observer {
        tracer: plan.telemetry.sends_traces().then(|| telemetry.tracer()),
        recorder: telemetry.recorder(),
        meters: Some(Meters::new(&metrics)),
    };
    // First of all: whoever starts us wants to know how far we are.
    let tls = plan.runner.tls.clone();
    reload::show(tls.as_ref(), &metrics);
    let access =
        plan.access.as_deref().map(|path| Kept::read(path).map_err(anyhow::Error::msg)).transpose()?;
    let access = access.map(Arc::new);
    let files = tls.iter().flat_map(|tls| tls.files()).chain(plan.access.clone());
    let reloads = Reloads::listen(files).context("cannot listen for signals")?;
    let by_tls = tls.is_some() && open_to_others(plan.admin);
    let asked = access.clone().map(|access| (access, Audit::into_log()));
    let viewers = Viewers::of(asked, by_tls, plan.insecure);
    let pages = Pages::new(readiness.clone(), metrics, settings).viewers(viewers);
    let shown = pages.shown();
    let admin = Admin::start(plan.admin, pages, tls.clone())
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(admin = %admin.address(), "starting");
    let mut stop = std::pin::pin!(signals.stop_requested());
    let serving = async {
        let config = Config { observer, ..plan.runner };
        let runner = match heir {
            Some(heir) => Runner::take_up(config, Arc::new(registry), heir).await?,
            None => Runner::start(config, Arc::new(registry)).await?,
        };
        let (name, address) = (runner.name(), runner.address());
        tracing::info!(%name, %address, sandbox = runner.describe(), "serving");
        readiness.not_ready("waiting for etcd, where this runner is to be registered");
        anyhow::Ok(runner)
    };
    let grace = Cell::new(plan.drain_grace);
    let started = {
        let until_stop = async {
            let ended = tokio::select! {
                // A runner that is not up yet has no calls: what there is of it ends with the process.
                why = &mut stop => (None, End::Stop(why)),
                runner = serving => {
                    let runner = runner?;
                    let registered = async {
                        runner.registered().await;
                        readiness.ready();
                        tracing::info!("ready");
                        std::future::pending::<Infallible>().await
                    };
                    let end = tokio::select! {
                        why = &mut stop => End::Stop(why),
                        departure = depart(upgrades, &runner, admin.address(), &grace) => End::Leave(departure),
                        never = registered => match never {},
                    };
                    (Some(runner), end)
                }
            };
            anyhow::Ok(ended)
        };
        tokio::select! {
            ended = until_stop => ended,
            never = keep_fresh(reloads, settings, logs, (tls, access), shown, &grace) => match never {},
        }
    };
    let (runner, end) = started?;
    let why = match end {
        End::Stop(why) => why,
        End::Leave(departure) => {
            let (over, end) = departure.containers();
            tracing::info!(over, end, "becoming the next program");
            telemetry.stop(BRIEF_FLUSH).await;
            logs.flush(BRIEF_FLUSH);
            let error = departure.leave();
            // With us go the containers: whoever looks after us starts another.
            return Err(anyhow::Error::new(error).context("cannot become the next program"));
        }
    };
    let grace = grace.get();
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

/// Waits until the runner is asked to become another program, and can. What is in the way is logged, and changes nothing.
async fn depart(
    mut upgrades: Signal,
    runner: &Runner,
    admin: SocketAddr,
    grace: &Cell<Duration>,
) -> Departure {
    loop {
        if upgrades.recv().await.is_none() {
            // The runtime ends.
            std::future::pending::<()>().await;
        }
        tracing::info!("asked to become the next program");
        match runner.depart(admin, grace.get()).await {
            Ok(departure) => return departure,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "no other program takes over: this one goes on"
                );
            }
        }
    }
}

/// Shows how things stand with etcd.
fn measure_etcd(metrics: &Metrics, registry: &EtcdRegistry) {
    let figures = registry.figures();
    let parts = [etcd::Part::Registration].map(|part| {
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

/// Takes up what changed while the runner serves: certificates, the access file and what it names when their files change, settings at SIGHUP.
async fn keep_fresh(
    mut reloads: Reloads,
    settings: &Settings,
    logs: &Logs,
    (tls, access): (Option<Arc<Tls>>, Option<Arc<Kept>>),
    shown: Shown,
    grace: &Cell<Duration>,
) -> Infallible {
    loop {
        // What the access file names is watched from now on, and may have changed since it was read.
        let files = access.iter().flat_map(|access| access.files());
        if !reloads.watch(tls.iter().flat_map(|tls| tls.files()).chain(files))
            && reloads.next().await == Why::Asked
            && let Some(settings) = server::reread(settings, logs, &shown)
        {
            grace.set(settings::live(&settings));
        }
        // Small files, and seldom.
        reload::reread(tls.as_deref(), || access.as_ref().map_or(Ok(()), |access| access.reload()));
    }
}
