//! What all servers of a fleet share: how they are told where etcd is, the name of their host, and the frame around their work.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

use crate::admin::{Admin, Shown};
use crate::config::kind::{PATH, SERVERS, TEXT};
use crate::config::{Key, Maybe, Mistake, Mistakes, Program, Settings, Table};
use crate::lifecycle::{self, Ending, Readiness};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::telemetry::{self, Telemetry};

/// How long traces and log lines that wait may take to leave at the end, each.
pub const FLUSH: Duration = Duration::from_secs(3);

static ETCD: Key<Vec<String>> =
    Key::required("etcd", SERVERS, "The members of the etcd cluster, like http://127.0.0.1:2379");
static ETCD_USER: Maybe<String> =
    Key::required("etcd_user", TEXT, "Who we are, where etcd asks for a password").optional();
static ETCD_PASSWORD: Maybe<String> =
    Key::required("etcd_password", TEXT, "The password of etcd_user").secret().optional();
static ETCD_CA: Maybe<PathBuf> =
    Key::required("etcd_ca", PATH, "The certificate of the authority that signed etcd's, for https://")
        .optional();
static ETCD_CERTIFICATE: Maybe<PathBuf> =
    Key::required("etcd_certificate", PATH, "Our certificate, where etcd asks for one").optional();
static ETCD_KEY: Maybe<PathBuf> = Key::required("etcd_key", PATH, "The key of etcd_certificate").optional();

/// What a server can be told of its etcd.
pub static ETCD_KEYS: Table = &[&ETCD, &ETCD_USER, &ETCD_PASSWORD, &ETCD_CA, &ETCD_CERTIFICATE, &ETCD_KEY];

/// How etcd is reached.
pub struct Etcd {
    pub endpoints: Vec<String>,
    /// Name and password.
    pub user: Option<(String, String)>,
    pub tls: Option<EtcdTls>,
}

/// PEM files.
pub struct EtcdTls {
    /// Who signed etcd's certificate.
    pub ca: PathBuf,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Etcd {
    /// What [`ETCD_KEYS`] say; adds to `mistakes` what does not fit together.
    pub fn new(settings: &Settings, mistakes: &mut Vec<Mistake>) -> Self {
        let mut wrong = |key, text: &str| mistakes.push(settings.mistake(key, text));
        let user = match (settings.maybe(&ETCD_USER), settings.maybe(&ETCD_PASSWORD)) {
            (Some(name), Some(password)) => Some((name, password)),
            (None, None) => None,
            (Some(_), None) => {
                wrong(&ETCD_USER, "has no password: give `etcd_password` too");
                None
            }
            (None, Some(_)) => {
                wrong(&ETCD_PASSWORD, "is nobody's: give `etcd_user` too");
                None
            }
        };
        let identity = match (settings.maybe(&ETCD_CERTIFICATE), settings.maybe(&ETCD_KEY)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                wrong(&ETCD_CERTIFICATE, "has no key: give `etcd_key` too");
                None
            }
            (None, Some(_)) => {
                wrong(&ETCD_KEY, "is of no certificate: give `etcd_certificate` too");
                None
            }
        };
        let ca = settings.maybe(&ETCD_CA);
        if ca.is_none() && identity.is_some() {
            wrong(&ETCD_CERTIFICATE, "is for https://: give `etcd_ca` too, the authority that signed etcd's");
        }
        let tls = ca.map(|ca| EtcdTls { ca, identity });
        Self { endpoints: settings.get(&ETCD), user, tls }
    }

    /// A mistake that whoever connects to etcd found in what it was told.
    #[must_use]
    pub fn wrong(settings: &Settings, why: impl fmt::Display) -> Mistakes {
        Mistakes(vec![settings.mistake(&ETCD, why)])
    }
}

/// How long a scrape that runs may take at the end.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// How a server is seen from outside while it works.
pub struct Seen {
    pub telemetry: Telemetry,
    pub metrics: Metrics,
    pub readiness: Readiness,
}

impl Seen {
    /// From here on what it logs and counts has somewhere to go. It takes no work yet, and says `why_not`.
    ///
    /// # Errors
    /// Those of [`Telemetry::start`].
    pub fn start(
        program: &Program,
        settings: &Settings,
        telemetry: &telemetry::Config,
        logs: &Logs,
        why_not: &str,
    ) -> io::Result<Self> {
        let telemetry = Telemetry::start(telemetry)?;
        let metrics = Metrics::new(settings);
        metrics.describe_process(program.name, program.version);
        logs.measure(&metrics);
        telemetry.measure(&metrics);
        logs.collect(telemetry.recorder());
        Ok(Self { telemetry, metrics, readiness: Readiness::new(why_not) })
    }

    /// The end of a server that was told to stop, and `why`: `calls` ends them and what they need, in no more than `limit`; then the last traces leave, and then
    /// whoever looks from outside.
    ///
    /// # Errors
    /// Those of [`Ending::begin`].
    pub async fn end(
        self,
        why: &str,
        limit: Duration,
        calls: impl Future<Output = ()>,
        admin: Admin,
    ) -> io::Result<()> {
        self.readiness.stopping(format!("{why}: finishing the calls that are here"));
        tracing::info!(why, "stopping");
        // Each keeps a limit of its own; this is for an end that hangs in spite of them.
        let limit = limit.saturating_add(FLUSH + LAST_SCRAPE);
        let ending = Ending::begin(limit)?;
        ending.phase("calls", limit, calls).await;
        ending.phase("traces", limit, self.telemetry.stop(FLUSH)).await;
        ending.phase("admin port", limit, admin.stop(LAST_SCRAPE)).await;
        Ok(())
    }
}

/// Reads the settings of a running process again, at SIGHUP: takes up the log's, shows what is in effect now and returns it; says which changes wait
/// for a restart. Mistakes leave everything as it is.
pub fn reread(settings: &Settings, logs: &Logs, shown: &Shown) -> Option<Settings> {
    let new = match settings.again() {
        Ok(new) => new,
        Err(mistakes) => {
            tracing::error!(%mistakes, "the settings have mistakes, and stay as they are");
            return None;
        }
    };
    let differences = settings.differences(&new);
    if !differences.fixed.is_empty() {
        tracing::warn!(keys = differences.fixed.join(", "), "these settings changed, which takes a restart");
    }
    let now = settings.with_live(&new);
    logs.reload(&now);
    shown.show(&now);
    tracing::info!(other_than_at_start = differences.live.join(", "), "the settings were read again");
    Some(now)
}

/// Connections and containers take open files, and the usual soft limit of 1024 was made for programs that use `select`: takes all that the hard limit allows.
/// Whoever starts other programs gives them a limit of their own.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, all)
    {
        tracing::warn!(%error, ?limit, "the number of open files could not be raised");
    }
}

/// The host's name, with `-` for what no name of ours can have.
///
/// # Errors
/// A sentence that says why there is none and what would help.
pub fn host_name() -> Result<String, String> {
    let text = fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|error| format!("the host has no name that can be read ({error}): write one"))?;
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    Ok(text.trim().chars().map(plain).collect())
}

/// A server from its first to its last line: settings, log, threads, then `run`, which serves until the end is asked for.
/// Whatever keeps it from serving is said once, where people look for it.
pub fn main<P, E: fmt::Display>(
    program: &Program,
    plan: impl FnOnce(&Settings) -> Result<P, Mistakes>,
    threads: impl FnOnce(&P) -> usize,
    run: impl AsyncFnOnce(&Settings, P, &Logs) -> Result<ExitCode, E>,
) -> ExitCode {
    if let Err(error) = lifecycle::heed_early() {
        eprintln!("cannot listen for signals: {error}");
        return ExitCode::FAILURE;
    }
    let settings = match program.settings() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let plan = match plan(&settings) {
        Ok(plan) => plan,
        Err(mistakes) => return program.refuse(&mistakes),
    };
    let logs = match Logs::start(&settings) {
        Ok(logs) => logs,
        Err(error) => {
            eprintln!("the log cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime(threads(&plan)) {
        Ok(runtime) => {
            let ended = runtime.block_on(run(&settings, plan, &logs));
            // A task that nobody waits for must not hold the end.
            runtime.shutdown_background();
            ended.unwrap_or_else(|error| {
                tracing::error!(error = format!("{error:#}"), "{} cannot serve", program.name);
                ExitCode::FAILURE
            })
        }
        Err(error) => {
            tracing::error!(%error, "{} cannot start its threads", program.name);
            ExitCode::FAILURE
        }
    };
    logs.stop(FLUSH);
    code
}

/// One thread is the cheapest: connections on single-threaded runtimes cost less CPU per call than on one with several threads.
fn runtime(threads: usize) -> io::Result<Runtime> {
    match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        more => Builder::new_multi_thread().worker_threads(more).enable_all().build(),
    }
}
