//! The `oci` driver: any OCI runtime of the machine (crun, runc, youki), by its command line.
//!
//! For sites that want a standard runtime, or one of their own, between functions and the host. Every sandbox is a bundle in the
//! driver's state directory; a small process, the monitor, runs the runtime's commands and ends everything when the runner goes.
//! The container's first process is ours (see `contained`), so a function is parked, started, told its late environment
//! and watched as in a native sandbox; freezing and counting go to the cgroup directly, without the runtime.
//!
//! A function is the user of the host's that its image names, else one that nobody else is, without a user namespace. Needs root, and a runtime that shares the host's
//! kernel: sockets and pipes are handed into the container. Runtimes that put a container into a machine of its own (gVisor's runsc,
//! Kata) take neither.

mod config;
pub(crate) mod runtime;

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use rustix::process::Pid;

use self::config::Parts;
use self::runtime::{Command, Layers, Record};
use crate::cell::Cell;
use crate::cgroup::{self, Base};
use crate::contained::client::Client;
use crate::contained::monitor::{self, Setup};
use crate::contained::view::{Mount, View, has_mount_point};
use crate::contained::{self, Door, ENTRY_LIMIT, Guest, Holder, Program, Users};
use crate::egress::{self, Gate};
use crate::engine::{check, within};
use crate::init::mounts::normal;
use crate::state::State;
use crate::wire::Plan;
use crate::{Description, Driver, Error, Network, Root, Sandbox, Spec, native, spawner};

/// Runtimes that are looked for, the fastest first.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];
/// Where programs are looked for besides our own `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As much of what a failed runtime said as an error tells.
const LAST_WORDS: usize = 500;

/// How the driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The runner's name: one live runner per name and state directory.
    pub name: String,
    /// A directory for locks, bundles and what must be removed after a crash.
    pub state_dir: PathBuf,
    /// How our own program is started, as monitor and in containers.
    pub spawner: spawner::Command,
    /// The runtime's program, by path or name; the first of crun, runc and youki that is found if absent.
    pub runtime: Option<PathBuf>,
    /// Where cgroups are made; chosen by the driver if absent. Cgroup version 2.
    pub cgroup_parent: Option<PathBuf>,
    /// Host directories and links that a function without an image sees, read-only.
    pub host_paths: Vec<PathBuf>,
    /// What `network: egress` may reach.
    pub egress: egress::Config,
}

impl Config {
    /// The defaults for a runner of this name.
    pub fn new(name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let native = native::Config::new(name, state_dir);
        Self {
            name: native.name,
            state_dir: native.state_dir,
            spawner: native.spawner,
            runtime: None,
            cgroup_parent: None,
            host_paths: native.host_paths,
            egress: native.egress,
        }
    }
}

/// The driver.
pub struct Oci {
    engine: Arc<Engine>,
    description: Description,
}

struct Engine {
    state: State,
    client: Client,
    program: Program,
    users: Arc<Users>,
    gate: Gate,
    host_paths: Vec<PathBuf>,
    /// The path of our cgroup, as the runtime is told it.
    cgroup: PathBuf,
    swap: bool,
    next: AtomicU64,
}

fn platform(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let step = step.into();
    move |source| Error::Platform { step, source }
}

impl Oci {
    /// Finds the runtime, makes the cgroups and starts the monitor. In a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without root or a runtime, [`Error::Platform`] when a step fails. That it comes up does not prove that
    /// containers work: [`crate::select`] tries one.
    pub async fn new(config: Config) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unsupported(
                "containers of an OCI runtime need root here; the native driver does without".to_owned(),
            ));
        }
        let runtime = find(config.runtime.as_deref())?;
        let state = State::open(&config.state_dir, "oci", &config.name)?;
        let name = state.cgroup_name(&config.name);
        let base = Base::create(&name, config.cgroup_parent.as_deref());
        let (cgroup, cgroups) = cgroup::place(&base, &name);
        // A death between these two lines leaves empty directories; nothing lives in them yet.
        state.write_down(cgroups.clone())?;
        match Self::begin(&config, &state, &runtime, &cgroups).await {
            Ok((client, program)) => {
                let engine = Arc::new(Engine {
                    client,
                    program,
                    users: Arc::default(),
                    gate: Gate::new(&config.egress),
                    host_paths: config.host_paths,
                    swap: accounts_for_swap(&cgroups),
                    cgroup,
                    next: AtomicU64::new(0),
                    state,
                });
                let description = describe(&runtime, &base, &engine.gate);
                Ok(Self { engine, description })
            }
            Err(error) => {
                // Nobody else is there to do it.
                for directory in cgroups {
                    cgroup::remove_tree(&directory).ok();
                }
                std::fs::remove_dir_all(state.life()).ok();
                std::fs::remove_dir_all(state.sockets()).ok();
                std::fs::remove_file(state.record()).ok();
                state.remove();
                Err(error)
            }
        }
    }

    async fn begin(
        config: &Config,
        state: &State,
        runtime: &Path,
        cgroups: &[PathBuf],
    ) -> Result<(Client, Program), Error> {
        let life = state.life();
        let record = Record { runtime: runtime.to_path_buf(), cgroups: cgroups.to_vec() };
        let make = |path: &Path| std::fs::DirBuilder::new().mode(0o700).create(path);
        make(&life)
            .and_then(|()| record.write(&life))
            .map_err(platform(format!("make {}, for the bundles of containers", life.display())))?;
        state.make_sockets()?;
        let (spawner, directory) = (config.spawner.clone(), life.join("program"));
        let placed = tokio::task::spawn_blocking(move || Program::place(&spawner, directory)).await;
        let program = placed
            .map_err(io::Error::other)
            .flatten()
            .map_err(platform("put our own program where containers find it"))?;
        let setup = Setup {
            lock: state.spawner_lock(),
            remove: vec![life.clone(), state.sockets().to_path_buf(), state.record()],
            engine: monitor::Engine::Runtime { life },
        };
        Ok((Client::start(config.spawner.clone(), setup).await?, program))
    }

    /// The monitor's process id, for whoever watches or tests it.
    pub fn monitor(&self) -> Option<u32> {
        self.engine.client.pid()
    }
}

/// The runtime that was asked for, or the first that is there.
fn find(asked: Option<&Path>) -> Result<PathBuf, Error> {
    let own = std::env::var("PATH").unwrap_or_default();
    let directories: Vec<_> =
        own.split(':').chain(PATH.split(':')).filter(|path| path.starts_with('/')).collect();
    let look = |name: &Path| {
        let candidates = directories.iter().map(|directory| Path::new(directory).join(name));
        candidates.into_iter().find(|path| path.is_file())
    };
    match asked {
        Some(path) if path.is_absolute() && path.is_file() => Ok(path.to_path_buf()),
        Some(asked) => look(asked)
            .ok_or_else(|| Error::Unsupported(format!("the OCI runtime {} is not there", asked.display()))),
        None => RUNTIMES.iter().find_map(|name| look(Path::new(name))).ok_or_else(|| {
            Error::Unsupported(format!("no OCI runtime is installed: looked for {}", RUNTIMES.join(", ")))
        }),
    }
}

fn accounts_for_swap(cgroups: &[PathBuf]) -> bool {
    let files = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
    cgroups.iter().any(|directory| files.iter().any(|file| directory.join(file).exists()))
}

fn describe(runtime: &Path, base: &Base, gate: &Gate) -> Description {
    let has = |controller| base.has(controller);
    use crate::cgroup::Controller;
    Description {
        name: "oci",
        why: format!(
            "containers of {}, hardened as native sandboxes are, without user namespaces",
            runtime.display()
        ),
        isolates: true,
        freezes: true,
        limits_memory: has(Controller::Memory),
        limits_cpu: has(Controller::Cpu),
        limits_pids: has(Controller::Pids),
        isolates_network: true,
        reaches_out: gate.policy().is_some(),
        chooses_user: rustix::process::geteuid().is_root(),
        hides_root: false,
        sizes_roots: true,
    }
}

#[async_trait]
impl Driver for Oci {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        check(&spec)?;
        self.engine.gate.check(spec.network)?;
        // On a task of its own: a caller that gives up halfway must not leave half a container.
        let engine = Arc::clone(&self.engine);
        let made = tokio::spawn(async move { engine.build(spec).await });
        let gone = |error| platform("create the sandbox")(io::Error::other(error));
        let made = async { made.await.map_err(gone)? };
        within(ENTRY_LIMIT * 2, made).await.map(|cell| Box::new(cell) as Box<dyn Sandbox>)
    }

    async fn collect_leftovers(&self) -> Result<Vec<String>, Error> {
        self.engine.collect().await
    }

    async fn close(&self) {
        self.engine.client.close().await;
        self.engine.state.remove();
    }
}

impl Engine {
    async fn build(self: &Arc<Self>, spec: Spec) -> Result<Cell, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let out = spec.network == Network::Egress;
        let name = format!("stoker-{number}");
        let bundle = Arc::new(Bundle {
            engine: Arc::clone(self),
            directory: runtime::bundle(&self.state.life(), &name),
            door: self.state.sockets().join(format!("{number:x}")),
            guest: self.users.take(spec.user),
            name,
        });
        let made = self.launch(&bundle, spec).await;
        match made {
            Ok((door, plan)) => {
                let (user, way) = (bundle.guest.user(), self.gate.policy().filter(|_| out).cloned());
                contained::receive(door, plan, user, way, bundle).await
            }
            Err(error) => {
                bundle.remove().await;
                Err(error)
            }
        }
    }

    /// Has the runtime start a container whose init comes to the door.
    async fn launch(self: &Arc<Self>, bundle: &Arc<Bundle>, spec: Spec) -> Result<(Door, Plan), Error> {
        let plan = contained::plan(&spec, &bundle.guest, &self.gate);
        let door = Door::open(&bundle.door).map_err(platform("open a door for the container"))?;
        let (maker, whole) = (Arc::clone(bundle), plan.clone());
        // Files and directories: not on the thread that serves calls.
        let layers = tokio::task::spawn_blocking(move || maker.write(&spec, &whole))
            .await
            .map_err(|error| platform("make the container's bundle")(io::Error::other(error)))??;
        let words = ["run", "--detach", "--bundle"].map(str::to_owned);
        let path = bundle.directory.to_string_lossy().into_owned();
        let command = Command {
            arguments: words.into_iter().chain([path, bundle.name.clone()]).collect(),
            output: bundle.output(),
            layers,
        };
        match self.client.run(command).await? {
            0 => Ok((door, plan)),
            status => {
                let words = bundle.last_words();
                let source = io::Error::other(match words.is_empty() {
                    true => format!("it ended with {status}"),
                    false => words,
                });
                Err(platform("have the runtime start the container")(source))
            }
        }
    }

    async fn collect(self: &Arc<Self>) -> Result<Vec<String>, Error> {
        let own = self.state.life();
        let parent = own.parent().unwrap_or(&own);
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        let lives: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                *path != own && path.is_dir() && name.is_some_and(|name| name.starts_with("life-"))
            })
            .collect();
        for life in lives {
            let left = self.client.clear(life.clone()).await?;
            if left > 0 {
                return Err(platform("remove what an earlier runner left behind")(io::Error::other(
                    format!("{left} container(s) in {}, which the runtime does not remove", life.display()),
                )));
            }
        }
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || engine.state.collect())
            .await
            .map_err(|error| platform("collect leftovers")(io::Error::other(error)))?
    }
}

/// The directory of one container, and all that is removed with it.
struct Bundle {
    engine: Arc<Engine>,
    name: String,
    directory: PathBuf,
    door: PathBuf,
    guest: Guest,
}

impl Bundle {
    fn output(&self) -> PathBuf {
        self.directory.join("output")
    }

    /// Makes the bundle. Blocks.
    fn write(&self, spec: &Spec, plan: &Plan) -> Result<Option<Layers>, Error> {
        let engine = &self.engine;
        let mut overlays = Vec::new();
        let mut system = true;
        let own = self.directory.join("root");
        let mut shown = None;
        match &spec.root {
            Root::Directory(image) => {
                let mut complete = !spec.writable_root;
                let shared = spec.shared.as_deref().filter(|shared| !shared.starts_with("/tmp"));
                for at in ["/proc", "/dev", "/tmp"].into_iter().map(Path::new).chain(shared) {
                    complete &= has_mount_point(image, at)?;
                }
                system = has_mount_point(image, Path::new("/sys"))?;
                if complete {
                    shown = Some((image.clone(), own.clone()));
                } else {
                    overlays.push((image.clone(), own.clone()));
                }
            }
            Root::Host => {}
        }
        let view = View::new(spec, plan, &engine.host_paths, !overlays.is_empty())?;
        let layers: Vec<_> = view
            .mounts
            .iter()
            .filter_map(|mount| match mount {
                Mount::Layer { host, at } => Some((host, at)),
                Mount::Show { .. } | Mount::Text { .. } | Mount::Cover { .. } => None,
            })
            .enumerate()
            .map(|(number, (host, at))| {
                let merged = self.directory.join(format!("merged-{number}"));
                overlays.push((host.clone(), merged.clone()));
                (at.clone(), merged)
            })
            .collect();
        let config = config::config(&Parts {
            spec,
            view: &view,
            user: self.guest.user(),
            groups: &self.guest.groups(&spec.groups),
            bundle: &self.directory,
            root: &own,
            writable: spec.writable_root && matches!(spec.root, Root::Directory(_)),
            system,
            layers: &layers,
            program: &engine.program,
            door: &self.door,
            cgroup: &engine.cgroup.join(&self.name),
            swap: engine.swap,
        });
        let directory = self.directory.join("layers");
        self.lay_out(&view, &directory, &overlays, &config)
            .map_err(platform(format!("make the container's bundle {}", self.directory.display())))?;
        Ok((shown.is_some() || !overlays.is_empty()).then_some(Layers {
            directory,
            size: spec.tmp_size,
            owner: spec.writable_root.then_some(self.guest.user().uid),
            // Images name work directories that they do not have: engines make them.
            workdir: (spec.writable_root && matches!(spec.root, Root::Directory(_)))
                .then(|| normal(&spec.workdir))
                .transpose()?,
            overlays,
            shown,
        }))
    }

    fn lay_out(
        &self,
        view: &View,
        layers: &Path,
        overlays: &[(PathBuf, PathBuf)],
        config: &serde_json::Value,
    ) -> io::Result<()> {
        let make = |path: &Path| std::fs::DirBuilder::new().mode(0o755).recursive(true).create(path);
        let root = self.directory.join("root");
        make(&root)?;
        for directory in &view.directories {
            make(&root.join(directory))?;
        }
        for (link, target) in &view.links {
            symlink(target, root.join(link))?;
        }
        if !overlays.is_empty() {
            make(layers)?;
        }
        for (_, at) in overlays {
            make(at)?;
        }
        for (number, mount) in view.mounts.iter().enumerate() {
            if let Mount::Text { content, .. } = mount {
                std::fs::write(config::text(&self.directory, number), content)?;
            }
        }
        let bytes = serde_json::to_vec(config).map_err(io::Error::other)?;
        // Its environment may hold secrets, and the directory is not closed to everybody.
        let mut file = std::fs::OpenOptions::new();
        let file = file.write(true).create(true).truncate(true).mode(0o600);
        file.open(self.directory.join("config.json"))?.write_all(&bytes)
    }
}

#[async_trait]
impl Holder for Bundle {
    fn entered(&self, _init: Pid) -> io::Result<()> {
        Ok(())
    }

    async fn remove(&self) {
        if self.directory.exists() {
            let command = Command {
                arguments: vec!["delete".to_owned(), "--force".to_owned(), self.name.clone()],
                output: self.directory.join("removal"),
                layers: None,
            };
            // What the runtime does not remove, or not know of, goes with the monitor.
            match self.engine.client.run(command).await {
                Ok(0) => {}
                Ok(status) => {
                    tracing::debug!(container = self.name, status, "nothing for the runtime to remove")
                }
                Err(error) => {
                    tracing::debug!(container = self.name, %error, "left for the monitor to remove");
                    return;
                }
            }
        }
        let (directory, door) = (self.directory.clone(), self.door.clone());
        let removed = tokio::task::spawn_blocking(move || {
            std::fs::remove_file(door).ok();
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        });
        if let Err(error) = removed.await.map_err(io::Error::other).flatten() {
            tracing::warn!(directory = %self.directory.display(), %error, "a bundle could not be removed");
        }
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let what = if frozen { "frozen" } else { "thawed" };
        Err(Error::Unsupported(format!(
            "this container has no cgroup of its own by which it could be {what}"
        )))
    }

    fn last_words(&self) -> String {
        let said = std::fs::read(self.output()).unwrap_or_default();
        let start = said.len().saturating_sub(LAST_WORDS);
        String::from_utf8_lossy(&said[start..]).trim().to_owned()
    }
}
