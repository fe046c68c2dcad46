//! The `native` driver: Linux namespaces, built here, without a daemon or a system package.
//!
//! Works as root and as an ordinary user (through user namespaces, where the kernel lets ordinary users have them).
//!
//! **Who a function is.** Inside it is user and group 1000. To the host, under root it is a user of its own from an unassigned
//! range (see [`Config::first_user`]), different for every live sandbox, so it owns nothing, shares no per-user limit, and
//! reads what everybody may read: a function's files must be readable by others. Without root it is the runner's own
//! user, as only that can be mapped; it reads what that user reads, among what is shown. So it is where the runner is root of a user
//! namespace that lacks that range, as in a rootless container.
//!
//! **What it sees.** With [`crate::Root::Host`]: the host's program directories ([`Config::host_paths`]) read-only, its work
//! directory at its own path, an own `/tmp`, `/dev`, `/proc` with the usual parts masked; no homes, no `/run`, no `/var`, no `/sys`.
//! A command found outside of that brings its installation along, as little as possible of it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::cgroup::{Base, Controller};
use crate::egress::{self, Gate};
use crate::engine::{Engine, Flavour};
use crate::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};
use crate::{Description, Driver, Error, Sandbox, Spec, private, spawner, users, wire};

/// Host ids that no distribution or container tool assigns begin here: above systemd's container ranges, below 2^31.
const UNASSIGNED: u32 = 1_900_000_000;
/// Ids that no process ever has, one for each that a file of an image may belong to; the same for all runners.
const OTHERS: u32 = 1_980_000_000;
/// Sandboxes of one runner at once, at most; and the distance of runners of different names in the range.
const USERS: u32 = 1 << 14;

/// How the driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The runner's name: one live runner per name and state directory.
    pub name: String,
    /// A directory for locks and for notes on what must be removed after a crash.
    pub state_dir: PathBuf,
    /// How the spawner is started.
    pub spawner: spawner::Command,
    /// Where cgroups are made; chosen by the driver if absent. Cgroup version 2.
    pub cgroup_parent: Option<PathBuf>,
    /// Under root, the first of the host's user and group ids that functions run as; derived from the name if absent.
    pub first_user: Option<u32>,
    /// Under root: every function in a user namespace of its own, where the kernel has them.
    pub user_namespaces: bool,
    /// Host directories and links that a function without an image sees, read-only.
    pub host_paths: Vec<PathBuf>,
    /// Sandboxes without a function that are kept ready, so that a creation does not wait for cgroups and network.
    pub spares: usize,
    /// What `network: egress` may reach.
    pub egress: egress::Config,
}

impl Config {
    /// The defaults for a runner of this name.
    pub fn new(name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let host_paths =
            ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc", "/opt", "/nix", "/gnu"];
        Self {
            name: name.into(),
            state_dir: state_dir.into(),
            spawner: spawner::Command::default(),
            cgroup_parent: None,
            first_user: None,
            user_namespaces: true,
            host_paths: host_paths.map(PathBuf::from).to_vec(),
            spares: 2,
            egress: egress::Config::default(),
        }
    }
}

/// The driver.
pub struct Native {
    engine: Arc<Engine>,
    description: Description,
    gate: Gate,
}

impl Native {
    /// Starts the spawner and makes the cgroups. In a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel or our standing rules it out, [`Error::Platform`] when a step fails. That
    /// it comes up does not prove that sandboxes work: [`crate::select`] tries one.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let means = Means::find(&config)?;
        let engine = Engine::start(
            means.flavour(&config),
            &config.name,
            &config.state_dir,
            config.cgroup_parent.as_deref(),
            config.spawner,
        )
        .await?;
        Ok(Self::of(engine, means))
    }

    /// The same, of the process's former program.
    ///
    /// # Errors
    /// As [`Native::new`], and when that was another's; then it ends.
    pub fn take_up(
        config: Config,
        handed: HandedDriver,
        inherited: &mut InheritedFds,
    ) -> Result<Self, Error> {
        let means = Means::find(&config)?;
        let flavour = means.flavour(&config);
        let Config { name, state_dir, spawner, .. } = config;
        let engine = Engine::take_up(flavour, &name, &state_dir, spawner, handed, inherited)?;
        Ok(Self::of(engine, means))
    }

    fn of(engine: Arc<Engine>, means: Means) -> Self {
        let description = describe(&means, &engine.base);
        engine.refill();
        Self { engine, description, gate: means.gate }
    }

    /// The spawner's process id, for whoever watches or tests it.
    pub fn spawner(&self) -> Option<u32> {
        self.engine.spawner()
    }
}

/// What this machine allows us.
struct Means {
    root: bool,
    /// We are root of a user namespace that knows too few users to be more than an ordinary one.
    confined: bool,
    /// Functions get user namespaces of their own.
    user_namespace: bool,
    first_user: u32,
    gate: Gate,
}

impl Means {
    fn find(config: &Config) -> Result<Self, Error> {
        let first_user = config.first_user.unwrap_or_else(|| first_user(&config.name));
        let root = rustix::process::geteuid().is_root();
        // Of a user namespace that has no such users: nobody can become one of them there, and root is an ordinary user to the host.
        let knows_all =
            || users::known(first_user..first_user + USERS) && users::known(OTHERS..OTHERS + wire::IMAGE_IDS);
        let confined = root && !knows_all();
        let root = root && !confined;
        let privileged = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
        if root && !privileged {
            return Err(Error::Unsupported(
                "native sandboxes need CAP_SYS_ADMIN as root, or an ordinary user: without it functions would be root themselves"
                    .to_owned(),
            ));
        }
        let user_namespace = std::fs::read_to_string("/proc/sys/user/max_user_namespaces")
            .is_ok_and(|most| most.trim() != "0");
        if !root && !user_namespace {
            return Err(Error::Unsupported(
                "native sandboxes need root or user namespaces, which this kernel or its settings do not allow".to_owned(),
            ));
        }
        let user_namespace = user_namespace && (config.user_namespaces || !root);
        let gate = Gate::new(&config.egress);
        Ok(Self { root, confined, user_namespace, first_user, gate })
    }

    fn flavour(&self, config: &Config) -> Flavour {
        Flavour {
            driver: "native",
            isolate: true,
            rootless: !self.root,
            user_namespace: self.user_namespace,
            first_user: self.first_user,
            others: OTHERS,
            host_paths: config.host_paths.clone(),
            hidden: if self.root { Vec::new() } else { private::below(&config.host_paths) },
            spares: config.spares,
            egress: self.gate.policy().cloned(),
        }
    }
}

/// Different names get different ranges, mostly; that two meet costs nothing but the separation of their per-user limits.
fn first_user(name: &str) -> u32 {
    let hash =
        name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    UNASSIGNED + hash % 4096 * USERS
}

fn describe(means: &Means, base: &Base) -> Description {
    let (user_namespace, closed) = (means.user_namespace, means.gate.closed());
    let memory = base.has(Controller::Memory);
    let cpu = base.has(Controller::Cpu);
    let pids = base.has(Controller::Pids);
    let mut why = String::from("own Linux namespaces");
    why.push_str(match (means.root, means.confined) {
        (true, _) if user_namespace => {
            " as root; every function is another unprivileged user in a user namespace"
        }
        (true, _) => " as root, but without user namespaces; every function is another unprivileged user",
        (false, true) => {
            " as root of a user namespace with few users; functions are the runner's own user to the host"
        }
        (false, false) => " without root; functions are the runner's own user to the host",
    });
    let mut missing = Vec::new();
    if !memory {
        missing.push("memory is counted by a watcher, which a fast allocation may pass by some megabytes");
    }
    if !cpu {
        missing.push("CPU shares are not enforced");
    }
    if !pids {
        missing.push("processes are limited by RLIMIT_NPROC");
    }
    if !base.freezes() {
        missing.push("freezing is by SIGSTOP");
    }
    if !missing.is_empty() {
        why.push_str("; no cgroups may be written here for all limits: ");
        why.push_str(&missing.join(", "));
    }
    if let Some(error) = closed {
        why.push_str(&format!("; network egress is not possible without {} ({error})", egress::DEVICE));
    }
    Description {
        name: "native",
        why,
        isolates: true,
        freezes: true,
        limits_memory: true,
        limits_cpu: cpu,
        // Without a cgroup RLIMIT_NPROC counts within the sandbox's own user namespace.
        limits_pids: pids || user_namespace,
        isolates_network: true,
        reaches_out: closed.is_none(),
        chooses_user: user_namespace,
        hides_root: user_namespace,
        sizes_roots: true,
        own_kernel: false,
    }
}

#[async_trait]
impl Driver for Native {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        self.gate.check(spec.network)?;
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
