//! The `process` driver: plain child processes, for machines that allow nothing else.
//!
//! **No isolation.** A function is a process of the runner's own user: it sees the host's files, network and processes,
//! and can do what the runner can. What it does have: an environment of its own, its own session, open-file and core
//! limits, cgroup limits where cgroups may be written, an init that keeps its processes together, and an end when the
//! runner ends. Inits here are ordinary processes that adopt the orphans of their function (see [`crate::spawner`]).

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::cgroup::{Base, Controller};
use crate::engine::{Engine, Flavour};
use crate::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};
use crate::{Description, Driver, Error, Root, Sandbox, Spec, spawner};

/// How the driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The runner's name: one live runner per name and state directory.
    pub name: String,
    /// A directory for locks, shared directories, and notes on what must be removed after a crash.
    pub state_dir: PathBuf,
    /// How the spawner is started.
    pub spawner: spawner::Command,
    /// Where cgroups are made; chosen by the driver if absent. Cgroup version 2.
    pub cgroup_parent: Option<PathBuf>,
}

impl Config {
    /// The defaults for a runner of this name.
    pub fn new(name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            state_dir: state_dir.into(),
            spawner: spawner::Command::default(),
            cgroup_parent: None,
        }
    }
}

/// The driver.
pub struct Process {
    engine: Arc<Engine>,
    description: Description,
}

impl Process {
    /// Starts the spawner. In a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Platform`] when a step fails.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let engine = Engine::start(
            flavour(),
            &config.name,
            &config.state_dir,
            config.cgroup_parent.as_deref(),
            config.spawner,
        )
        .await?;
        Ok(Self::of(engine))
    }

    /// The same, of the process's former program.
    ///
    /// # Errors
    /// [`Error::Platform`] when that was another's; then it ends.
    pub fn take_up(
        config: Config,
        handed: HandedDriver,
        inherited: &mut InheritedFds,
    ) -> Result<Self, Error> {
        let Config { name, state_dir, spawner, .. } = config;
        let engine = Engine::take_up(flavour(), &name, &state_dir, spawner, handed, inherited)?;
        Ok(Self::of(engine))
    }

    fn of(engine: Arc<Engine>) -> Self {
        let description = describe(&engine.base);
        Self { engine, description }
    }

    /// The spawner's process id, for whoever watches or tests it.
    pub fn spawner(&self) -> Option<u32> {
        self.engine.spawner()
    }
}

fn flavour() -> Flavour {
    Flavour {
        driver: "process",
        isolate: false,
        rootless: !rustix::process::geteuid().is_root(),
        user_namespace: false,
        first_user: 0,
        others: 0,
        host_paths: Vec::new(),
        hidden: Vec::new(),
        spares: 0,
        egress: None,
    }
}

fn describe(base: &Base) -> Description {
    let (memory, cpu, pids) =
        (base.has(Controller::Memory), base.has(Controller::Cpu), base.has(Controller::Pids));
    let mut why = String::from(
        "plain processes with NO isolation: functions are the runner's user, and see the host's files, processes and network",
    );
    if !memory {
        why.push_str("; memory is counted by a watcher");
    }
    if !cpu {
        why.push_str("; CPU shares are not enforced");
    }
    if !pids {
        why.push_str("; the number of processes is not limited");
    }
    Description {
        name: "process",
        why,
        isolates: false,
        freezes: true,
        limits_memory: true,
        limits_cpu: cpu,
        limits_pids: pids,
        isolates_network: false,
        reaches_out: false,
        chooses_user: false,
        hides_root: false,
        sizes_roots: false,
        own_kernel: false,
    }
}

#[async_trait]
impl Driver for Process {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        if let Root::Directory(directory) = &spec.root {
            return Err(Error::Unsupported(format!(
                "plain processes cannot have {} as their root: an image needs a driver that isolates",
                directory.display()
            )));
        }
        if let Some(opt) = &spec.opt {
            return Err(Error::Unsupported(format!(
                "plain processes see the host's /opt and cannot have {} in its place: layers need a driver that isolates",
                opt.display()
            )));
        }
        if let Some(user) = spec.user {
            return Err(Error::Unsupported(format!(
                "plain processes are the runner's user and cannot be user {}: that needs a driver that isolates",
                user.uid
            )));
        }
        self.engine.create(spec).await
    }

    async fn collect_leftovers(&self) -> Result<Vec<String>, Error> {
        self.engine.collect_leftovers().await
    }

    async fn close(&self) {
        self.engine.close().await;
    }

    fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedDriver, Error> {
        self.engine.hand_over(passed)
    }

    fn take_up(
        &self,
        sandbox: HandedSandbox,
        inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        self.engine.adopt(sandbox, inherited)
    }
}
