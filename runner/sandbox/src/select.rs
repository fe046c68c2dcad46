//! Which driver a runner uses: the one asked for, or the strongest that works here.
//!
//! "Works" is tried, not guessed: a trivial sandbox is created, started and waited for, with the options that functions
//! have by default.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::native::{self, Native};
use crate::process::{self, Process};
use crate::{Driver, Error, ExitCause, Network, Root, Spec, spawner};

/// A trivial sandbox that takes longer than this does not work.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// What was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Choice {
    /// The strongest that works.
    #[default]
    Auto,
    Native,
    Process,
}

impl Choice {
    /// Every value, as written.
    pub const NAMES: [&'static str; 3] = ["auto", "native", "process"];
}

impl fmt::Display for Choice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Process => "process",
        })
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
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
    pub process: process::Config,
}

impl Config {
    /// The defaults for a runner of this name.
    pub fn new(choice: Choice, name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let (name, state_dir) = (name.into(), state_dir.into());
        Self {
            choice,
            native: native::Config::new(name.clone(), state_dir.clone()),
            process: process::Config::new(name, state_dir),
        }
    }

    /// The same with another way to start the spawner.
    #[must_use]
    pub fn with_spawner(mut self, command: spawner::Command) -> Self {
        self.native.spawner = command.clone();
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
/// Why the driver asked for does not work; for `auto`, why none does.
pub async fn select(config: Config) -> Result<Selection, Error> {
    let probe = Probe::new(&config);
    match config.choice {
        Choice::Native => {
            let driver = native(config.native, &probe).await?;
            Ok(Selection::new(driver, "asked for", Vec::new()))
        }
        Choice::Process => {
            let driver = process(config.process, &probe).await?;
            Ok(Selection::new(driver, "asked for", Vec::new()))
        }
        Choice::Auto => match native(config.native, &probe).await {
            Ok(driver) => Ok(Selection::new(driver, "the strongest that works here", Vec::new())),
            Err(error) => {
                let driver = process(config.process, &probe).await.map_err(|second| {
                    Error::Unsupported(format!(
                        "no sandbox driver works here: native: {error}; process: {second}"
                    ))
                })?;
                Ok(Selection::new(driver, "nothing stronger works here", vec![("native", error.to_string())]))
            }
        },
    }
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

async fn native(config: native::Config, probe: &Probe) -> Result<Arc<dyn Driver>, Error> {
    proven(Native::new(config).await?, probe).await
}

async fn process(config: process::Config, probe: &Probe) -> Result<Arc<dyn Driver>, Error> {
    proven(Process::new(config).await?, probe).await
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
            workdir: PathBuf::from("/"),
            memory: 64 << 20,
            cpu_millis: 0,
            pids: 16,
            tmp_size: 1 << 20,
            open_files: 256,
            network: Network::None,
            shared: Some(PathBuf::from("/tmp/probe")),
        }
    }
}
