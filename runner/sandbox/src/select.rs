//! Which driver a runner uses: the one asked for, or the strongest that works here.
//!
//! "Works" is tried, not guessed: a trivial sandbox is created, started and waited for, with the options that functions
//! have by default. What says nothing of the driver (another runner has the name, there are no file descriptors left) ends the choice:
//! functions are not kept apart less since a start had bad luck.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::docker::{self, Docker};
use crate::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};
use crate::native::{self, Native};
use crate::oci::{self, Oci};
use crate::process::{self, Process};
use crate::{Description, Driver, Error, ExitCause, Network, Root, Sandbox, Spec, spawner};

/// A trivial sandbox that takes longer than this does not work.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The strongest that works.
    #[default]
    Auto,
    Native,
    /// Containers of an OCI runtime.
    Oci,
    /// Containers of a Docker daemon.
    Docker,
    Process,
}

impl Choice {
    /// Every value, as written.
    pub const NAMES: [&'static str; 5] = ["auto", "native", "oci", "docker", "process"];
}

impl Choice {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Oci => "oci",
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "oci" => Ok(Self::Oci),
            "docker" => Ok(Self::Docker),
            "process" => Ok(Self::Process),
            other => Err(format!("{other:?} is no sandbox driver: use one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// What the choice is made from.
#[derive(Debug, Clone)]
pub struct Config {
    pub choice: Choice,
    pub native: native::Config,
    pub oci: oci::Config,
    pub docker: docker::Config,
    pub process: process::Config,
    /// Functions may have the host's network.
    pub host_network: bool,
}

impl Config {
    /// The defaults for a runner of this name.
    pub fn new(choice: Choice, name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let (name, state_dir) = (name.into(), state_dir.into());
        Self {
            choice,
            native: native::Config::new(name.clone(), state_dir.clone()),
            oci: oci::Config::new(name.clone(), state_dir.clone()),
            docker: docker::Config::new(name.clone(), state_dir.clone()),
            process: process::Config::new(name, state_dir),
            host_network: false,
        }
    }

    fn seclude(&self, driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
        if self.host_network { driver } else { Arc::new(Secluding(driver)) }
    }

    /// The same with another way to start the spawner.
    #[must_use]
    pub fn with_spawner(mut self, command: spawner::Command) -> Self {
        self.native.spawner = command.clone();
        self.oci.spawner = command.clone();
        self.docker.spawner = command.clone();
        self.process.spawner = command;
        self
    }
}

/// The driver in use.
pub struct Selection {
    pub driver: Arc<dyn Driver>,
    /// Which it is and why, in one sentence a user understands.
    pub why: String,
    /// Stronger ones that do not work here, and why not.
    pub rejected: Vec<(&'static str, String)>,
}

impl fmt::Debug for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Selection").field("why", &self.why).field("rejected", &self.rejected).finish()
    }
}

/// Chooses, and proves that what was chosen works.
///
/// # Errors
/// Why the driver asked for does not work; for `auto`, why none does, or what kept one from being tried.
pub async fn select(config: Config) -> Result<Selection, Error> {
    let probe = Probe::new(&config);
    let choices = match config.choice {
        Choice::Auto => vec![Choice::Native, Choice::Oci, Choice::Docker, Choice::Process],
        asked => vec![asked],
    };
    let mut rejected = Vec::new();
    for choice in choices {
        match try_one(choice, &config, &probe).await {
            Ok(driver) => {
                let driver = config.seclude(driver);
                let reason = match (config.choice, rejected.is_empty()) {
                    (Choice::Auto, true) => "the strongest that works here",
                    (Choice::Auto, false) => "nothing stronger works here",
                    _ => "asked for",
                };
                let selection = Selection::new(driver, reason, rejected);
                if config.choice == Choice::Auto && !selection.driver.describe().isolates {
                    // Nobody asked for it: to be seen by who reads nothing but warnings.
                    tracing::warn!(
                        sandbox = selection.why,
                        "functions are NOT isolated: no driver that isolates works here. Mend what it says of `native`, or ask for `process` by name"
                    );
                }
                return Ok(selection);
            }
            Err(error) if config.choice != Choice::Auto || is_bad_luck(&error) => return Err(error),
            Err(error) => rejected.push((choice.name(), error.to_string())),
        }
    }
    let all: Vec<_> = rejected.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    Err(Error::Unsupported(format!("no sandbox driver works here: {}", all.join("; "))))
}

/// Goes on with the driver of the process's former program.
///
/// # Errors
/// [`Error::Unsupported`] when another is asked for now; [`Error::Platform`] when it is not whole. Then it ends, with its sandboxes.
pub async fn take_up(
    config: Config,
    handed: HandedDriver,
    inherited: &mut InheritedFds,
) -> Result<Selection, Error> {
    let choice = config.choice.name();
    if ![handed.name(), Choice::Auto.name()].contains(&choice) {
        return Err(Error::Unsupported(format!(
            "{choice} is asked for, and what was left is {}",
            handed.name()
        )));
    }
    let driver: Arc<dyn Driver> = match handed.name() {
        "native" => Arc::new(Native::take_up(config.native.clone(), handed, inherited)?),
        "process" => Arc::new(Process::take_up(config.process.clone(), handed, inherited)?),
        "oci" => Arc::new(Oci::take_up(config.oci.clone(), handed, inherited)?),
        "docker" => Arc::new(Docker::take_up(config.docker.clone(), handed, inherited).await?),
        other => return Err(Error::Unsupported(format!("the driver {other} cannot be taken up"))),
    };
    Ok(Selection::new(config.seclude(driver), "handed over", Vec::new()))
}

impl Selection {
    fn new(driver: Arc<dyn Driver>, reason: &str, rejected: Vec<(&'static str, String)>) -> Self {
        let description = driver.describe();
        let mut why = format!("{} ({reason}): {}", description.name, description.why);
        for (name, error) in &rejected {
            why.push_str(&format!("; {name} does not work: {error}"));
        }
        Self { driver, why, rejected }
    }
}

/// A driver that gives nobody the host's network.
struct Secluding(Arc<dyn Driver>);

#[async_trait]
impl Driver for Secluding {
    fn describe(&self) -> &Description {
        self.0.describe()
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        if spec.network == Network::Host {
            return Err(Error::Unsupported(
                "network host is not allowed on this runner: its operator can allow it with `allow_host_network`, and network egress reaches the world without it"
                    .to_owned(),
            ));
        }
        self.0.create(spec).await
    }

    async fn collect_leftovers(&self) -> Result<Vec<String>, Error> {
        self.0.collect_leftovers().await
    }

    async fn close(&self) {
        self.0.close().await;
    }

    fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedDriver, Error> {
        self.0.hand_over(passed)
    }

    fn take_up(
        &self,
        sandbox: HandedSandbox,
        inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        self.0.take_up(sandbox, inherited)
    }
}

/// Whether a driver that fails so may work the next time: a weaker one is no answer to that.
fn is_bad_luck(error: &Error) -> bool {
    match error {
        Error::Taken { .. } => true,
        Error::Platform { source, .. } => matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)),
        Error::Function(_) | Error::Unsupported(_) => false,
    }
}

async fn try_one(choice: Choice, config: &Config, probe: &Probe) -> Result<Arc<dyn Driver>, Error> {
    match choice {
        Choice::Auto | Choice::Native => proven(Native::new(config.native.clone()).await?, probe).await,
        Choice::Oci => proven(Oci::new(config.oci.clone()).await?, probe).await,
        Choice::Docker => proven(Docker::new(config.docker.clone()).await?, probe).await,
        Choice::Process => proven(Process::new(config.process.clone()).await?, probe).await,
    }
}

/// One that does not work leaves nothing behind.
async fn proven(driver: impl Driver + 'static, probe: &Probe) -> Result<Arc<dyn Driver>, Error> {
    if let Err(error) = probe.run(&driver).await {
        driver.close().await;
        return Err(error);
    }
    Ok(Arc::new(driver))
}

/// A function that does nothing: the spawner's program, told to end at once.
struct Probe {
    command: Vec<String>,
}

impl Probe {
    fn new(config: &Config) -> Self {
        let command = &config.native.spawner;
        // Its own name means something else inside.
        let program = std::fs::canonicalize(&command.program).unwrap_or_else(|_| command.program.clone());
        let mut words = vec![program.to_string_lossy().into_owned()];
        words.extend(command.args.iter().cloned());
        words.push(spawner::PROBE.to_owned());
        Self { command: words }
    }

    async fn run(&self, driver: &dyn Driver) -> Result<(), Error> {
        let broken = |step: &str, text: String| Error::Platform {
            step: step.to_owned(),
            source: std::io::Error::other(text),
        };
        let attempt = async {
            let sandbox = driver.create(self.spec()).await?;
            let _stdio = sandbox.start(Vec::new()).await?;
            let exit = sandbox.wait().await;
            if exit.cause == ExitCause::Code(0) {
                return Ok(());
            }
            Err(broken("try a sandbox", format!("a program that does nothing ended with {:?}", exit.cause)))
        };
        match tokio::time::timeout(PROBE_LIMIT, attempt).await {
            Ok(result) => result,
            Err(_) => Err(broken("try a sandbox", format!("nothing came of it in {PROBE_LIMIT:?}"))),
        }
    }

    fn spec(&self) -> Spec {
        Spec {
            id: "probe".to_owned(),
            root: Root::Host,
            writable_root: false,
            command: self.command.clone(),
            env: Vec::new(),
            user: None,
            groups: Vec::new(),
            workdir: PathBuf::from("/"),
            memory: 64 << 20,
            cpu_millis: 0,
            pids: 16,
            tmp_size: 1 << 20,
            open_files: 256,
            network: Network::None,
            shared: Some(PathBuf::from("/tmp/probe")),
            opt: None,
            stop_signal: crate::SIGTERM,
            stays: false,
        }
    }
}
