//! The runner as a process: settings, log, ports, the order of its end, and how it becomes the next release of itself (SIGUSR2).

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stoker_registry::{EtcdRegistry, etcd};
use stoker_runtime::admin::{Admin, Pages, Shown, Viewers};
use stoker_runtime::audit::Audit;
use stoker_runtime::auth::AccessFile;
use stoker_runtime::config::Settings;
use stoker_runtime::lifecycle::{Readiness, Signals, requested_by_now};
use stoker_runtime::logs::Logs;
use stoker_runtime::metrics::{self, Metrics};
use stoker_runtime::reload::{self, Reloads, Why};
use stoker_runtime::server::{self, Etcd, Seen};
use stoker_runtime::telemetry::Telemetry;
use stoker_runtime::tls::{Tls, open_to_others};
use stoker_sandbox::handover::give_back_signals;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{CLOSING, Config, Runner};
use crate::handover::{self, Departure, Inherited};
use crate::metrics::Meters;
use crate::observe::Observer;
use crate::settings::{self, PROGRAM, Plan};

/// How long traces and log lines may take to leave before another program takes this one's place, each: callers wait meanwhile.
const BRIEF_FLUSH: Duration = Duration::from_millis(200);

/// Runs `stoker-runner`.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(code) = handover::asked() {
        return code;
    }
    // Before anything is opened.
    let inherited = Inherited::find();
    server::main(
        &PROGRAM,
        Plan::new,
        |plan| plan.threads,
        async |settings, plan, logs| run(settings, plan, logs, inherited).await,
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
    inherited: Result<Option<Inherited>, String>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen().context("cannot listen for signals")?;
    let upgrades = signal(SignalKind::user_defined2()).context("cannot listen for signals")?;
    let inherited = inherited.unwrap_or_else(|why| {
        tracing::error!(why, "starting anew");
        None
    });
    if let Some(inherited) = inherited.as_ref().filter(|_| plan.admin.port() == 0) {
        plan.admin = inherited.admin();
    }
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let registry = match EtcdRegistry::connect(plan.etcd) {
        Ok(registry) => registry,
        Err(wrong) => return Ok(PROGRAM.refuse(&Etcd::wrong(settings, wrong))),
    };
    let seen = Seen::start(&PROGRAM, settings, &plan.telemetry, logs, "starting");
    let seen = seen.context("cannot start to send traces")?;
    measure_etcd(&seen.metrics, &registry);
    let observer = Observer {
        tracer: plan.telemetry.sends_traces().then(|| seen.telemetry.tracer()),
        recorder: seen.telemetry.recorder(),
        meters: Some(Meters::new(&seen.metrics)),
    };
    let tls = plan.runner.tls.clone();
    reload::show(tls.as_ref(), &seen.metrics);
    let access =
        plan.access.as_deref().map(|path| AccessFile::read(path).map_err(anyhow::Error::msg)).transpose()?;
    let access = access.map(Arc::new);
    let files = tls.iter().flat_map(|tls| tls.files()).chain(plan.access.clone());
    let reloads = Reloads::listen(files).context("cannot listen for signals")?;
    let by_tls = tls.is_some() && open_to_others(plan.admin);
    let asked = access.clone().map(|access| (access, Audit::into_log()));
    let viewers = Viewers::of(asked, by_tls, plan.insecure);
    let pages = Pages::new(seen.readiness.clone(), seen.metrics.clone(), settings).viewers(viewers);
    let shown = pages.shown();
    // First of all: whoever starts us wants to know how far we are.
    let admin = Admin::start(plan.admin, pages, tls.clone())
        .await
        .with_context(|| format!("cannot listen on {} for the admin pages", plan.admin))?;
    tracing::info!(admin = %admin.address(), "starting");
    let mut stop = std::pin::pin!(signals.stop_requested());
    let grace = Cell::new(plan.drain_grace);
    let starting = start(Config { observer, ..plan.runner }, registry, inherited, &seen.readiness);
    let told = Told { stop: stop.as_mut(), upgrades, admin: admin.address(), grace: &grace };
    let (runner, end) = tokio::select! {
        served = serve(starting, told, &seen.readiness) => served?,
        never = keep_fresh(reloads, settings, logs, (tls, access), shown, &grace) => match never {},
    };
    match end {
        End::Leave(departure) => leave(departure, seen.telemetry, logs, stop).await,
        End::Stop(why) => {
            let grace = grace.get();
            let calls = async {
                if let Some(runner) = runner {
                    runner.stop(grace).await;
                }
            };
            let ended = seen.end(why, grace.saturating_add(CLOSING), calls, admin).await;
            ended.context("cannot watch over the end")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Starts the runner, or takes it up from the process's former program.
async fn start(
    config: Config,
    registry: EtcdRegistry,
    inherited: Option<Inherited>,
    readiness: &Readiness,
) -> anyhow::Result<Runner> {
    let runner = match inherited {
        Some(inherited) => Runner::take_up(config, Arc::new(registry), inherited).await?,
        None => Runner::start(config, Arc::new(registry)).await?,
    };
    let (name, address) = (runner.name(), runner.address());
    tracing::info!(%name, %address, sandbox = runner.describe(), "serving");
    readiness.not_ready("waiting for etcd, where this runner is to be registered");
    Ok(runner)
}

/// What can be told to a runner that serves.
struct Told<'a, S> {
    stop: Pin<&'a mut S>,
    upgrades: Signal,
    /// Where its admin port is.
    admin: SocketAddr,
    /// How long its calls may take to end.
    grace: &'a Cell<Duration>,
}

/// Serves until it is told something else; gives what, and the runner, if it was up by then.
async fn serve<S: Future<Output = &'static str>>(
    starting: impl Future<Output = anyhow::Result<Runner>>,
    told: Told<'_, S>,
    readiness: &Readiness,
) -> anyhow::Result<(Option<Runner>, End)> {
    let Told { mut stop, upgrades, admin, grace } = told;
    let runner = tokio::select! {
        // A runner that is not up yet has no calls: what there is of it ends with the process.
        why = stop.as_mut() => return Ok((None, End::Stop(why))),
        runner = starting => runner?,
    };
    let registered = async {
        runner.registered().await;
        readiness.ready();
        tracing::info!("ready");
        std::future::pending::<Infallible>().await
    };
    let end = tokio::select! {
        why = stop => End::Stop(why),
        departure = depart(upgrades, &runner, admin, grace) => End::Leave(departure),
        never = registered => match never {},
    };
    Ok((Some(runner), end))
}

/// Becomes the next program, unless it is told to stop by then: then it becomes nothing. Whoever calls this still has the runner, and with it the containers.
async fn leave(
    departure: Departure,
    telemetry: Telemetry,
    logs: &Logs,
    stop: Pin<&mut impl Future<Output = &'static str>>,
) -> anyhow::Result<ExitCode> {
    let (over, end) = departure.containers();
    tracing::info!(over, end, "becoming the next program");
    telemetry.stop(BRIEF_FLUSH).await;
    logs.flush(BRIEF_FLUSH);
    give_back_signals();
    if let Some(why) = requested_by_now(stop).await {
        tracing::info!(why, "stopping, and becoming nothing: the containers end");
        return Ok(ExitCode::SUCCESS);
    }
    let error = departure.leave();
    // With us go the containers: whoever looks after us starts another.
    Err(anyhow::Error::new(error).context("cannot become the next program"))
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
    let answered = figures.clone();
    let own = etcd::Part::Registration;
    let read = move || metrics::etcd::Part {
        interruptions: figures.interruptions(own),
        interrupted: figures.is_interrupted(own),
        revision: None,
    };
    metrics::etcd::measure(metrics, move || answered.answered_ms(), [(own.as_str(), read)]);
}

/// Takes up what changed while the runner serves: certificates, the access file and what it names when their files change, settings at SIGHUP.
async fn keep_fresh(
    mut reloads: Reloads,
    settings: &Settings,
    logs: &Logs,
    (tls, access): (Option<Arc<Tls>>, Option<Arc<AccessFile>>),
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
