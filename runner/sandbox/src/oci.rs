//! The `oci` driver: any OCI runtime of the machine (crun, runc, youki, gVisor's runsc), by its command line.
//!
//! For sites that want a standard runtime, or one of their own, between functions and the host. Every sandbox is a bundle in the
//! driver's state directory; a small process, the monitor, runs the runtime's commands and ends everything when the runner goes.
//! The container's first process is ours (see `contained`), so a function is parked, started, told its late environment
//! and watched as in a native sandbox; freezing and counting go to the cgroup directly, without the runtime.
//!
//! A function is the user of the host's that its image names, else one that nobody else is, without a user namespace. Needs root, and a runtime
//! into whose containers sockets and pipes can be handed. Where none come out, since the container has a kernel of its own, what is handed out
//! elsewhere is made outside: see `gvisor`. Virtual machines (Kata) take none in.

mod bundle;
mod config;
mod gvisor;
pub(crate) mod runtime;

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use self::bundle::Bundle;
use self::runtime::{Command, Record};
use crate::cgroup::{self, Base};
use crate::contained::client::{Client, InitEnd};
use crate::contained::driver::{self, Left, platform};
use crate::contained::{
    self, Door, End, Ended, FIRST_USER, Former, Guest, Handed, Holder, Program, Started, Users, monitor,
};
use crate::egress::{self, Gate};
use crate::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};
use crate::init_sandbox::{InitSandbox, too_little_memory};
use crate::state::State;
use crate::{Description, Driver, Error, ExitCause, Network, Sandbox, Spec, native, spawner, users};

const NAME: &str = "oci";
/// Containers have this and a number for a name.
const CONTAINER: &str = "stoker-";
/// Runtimes that are looked for, the fastest first.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];
/// Where programs are looked for besides our own `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    base: Base,
    /// The path of our cgroup, as the runtime is told it, and its directories.
    cgroup: PathBuf,
    cgroups: Vec<PathBuf>,
    swap: bool,
    /// Containers have kernels of their own.
    own_kernel: bool,
    next: AtomicU64,
    former: Mutex<Former>,
}

impl Oci {
    /// Finds the runtime, makes the cgroups and starts the monitor. In a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without root or a runtime, [`Error::Platform`] when a step fails. That it comes up does not prove that
    /// containers work: [`crate::select`] tries one.
    pub async fn new(config: Config) -> Result<Self, Error> {
        // Root of a user namespace that lacks the users of containers is none.
        if !rustix::process::geteuid().is_root() || !users::known(FIRST_USER..FIRST_USER + 1) {
            return Err(Error::Unsupported(
                "containers of an OCI runtime need root of the machine here; the native driver does without"
                    .to_owned(),
            ));
        }
        let runtime = find(config.runtime.as_deref())?;
        let own_kernel = gvisor::is(&runtime).await?;
        let state = State::open(&config.state_dir, NAME, &config.name)?;
        let name = state.cgroup_name(&config.name);
        let parent = config.cgroup_parent.as_deref();
        state.write_down(Base::places(&name, parent))?;
        let base = Base::create(&name, parent);
        let (cgroup, cgroups) = cgroup::place(&base, &name);
        // The runtime makes more of them.
        state.write_down(cgroups.clone())?;
        let record = Record { runtime, cgroups, own_kernel };
        let engine = monitor::Engine::Runtime { life: state.life() };
        let begun = driver::begin(&state, &config.spawner, |life| record.write(life), engine).await;
        let (client, program) = begun.inspect_err(|_| {
            for directory in &record.cgroups {
                cgroup::remove_tree(directory).ok();
            }
        })?;
        let left = Left { state, client, program, base, containers: 0 };
        Ok(Self::of(left, &config, cgroup, record))
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
        let engine = |state: &State| monitor::Engine::Runtime { life: state.life() };
        let whose = (NAME, config.name.as_str(), config.state_dir.as_path());
        let left = Left::take_up(whose, &config.spawner, engine, handed, inherited)?;
        let record = Record::read(&left.state.life());
        let lost = || platform("take the sandbox monitor up")(io::ErrorKind::NotFound.into());
        let record = record.ok_or_else(lost)?;
        let (cgroup, _) = cgroup::place(&left.base, &left.state.cgroup_name(&config.name));
        Ok(Self::of(left, &config, cgroup, record))
    }

    fn of(left: Left, config: &Config, cgroup: PathBuf, record: Record) -> Self {
        let Left { state, client, program, base, containers } = left;
        let gate = Gate::new(&config.egress);
        let Record { runtime, cgroups, own_kernel } = record;
        let description = describe(&runtime, own_kernel, &base, &gate);
        let engine = Arc::new(Engine {
            client,
            program,
            users: Arc::default(),
            gate,
            host_paths: config.host_paths.clone(),
            swap: accounts_for_swap(&cgroups),
            base,
            cgroup,
            cgroups,
            own_kernel,
            next: AtomicU64::new(containers),
            former: Mutex::new(Former::new(containers)),
            state,
        });
        Self { engine, description }
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
    let missing =
        |asked: &Path| Error::Unsupported(format!("the OCI runtime {} is not there", asked.display()));
    match asked {
        // A path, as a shell has it.
        Some(asked) if asked.components().nth(1).is_some() => match std::path::absolute(asked) {
            Ok(path) if path.is_file() => Ok(path),
            _ => Err(missing(asked)),
        },
        Some(asked) => look(asked).ok_or_else(|| missing(asked)),
        None => RUNTIMES.iter().find_map(|name| look(Path::new(name))).ok_or_else(|| {
            Error::Unsupported(format!("no OCI runtime is installed: looked for {}", RUNTIMES.join(", ")))
        }),
    }
}

fn accounts_for_swap(cgroups: &[PathBuf]) -> bool {
    let files = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
    cgroups.iter().any(|directory| files.iter().any(|file| directory.join(file).exists()))
}

fn describe(runtime: &Path, own_kernel: bool, base: &Base, gate: &Gate) -> Description {
    let has = |controller| base.has(controller);
    use crate::cgroup::Controller;
    Description {
        name: NAME,
        why: format!(
            "containers of {}, {}hardened as native sandboxes are, without user namespaces",
            runtime.display(),
            if own_kernel { "each with a kernel of its own, " } else { "" }
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
        own_kernel,
    }
}

#[async_trait]
impl Driver for Oci {
    fn describe(&self) -> &Description {
        &self.description
    }

    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        let engine = Arc::clone(&self.engine);
        driver::create(&self.engine.gate, spec, |spec| async move { engine.build(spec).await }).await
    }

    async fn collect_leftovers(&self) -> Result<Vec<String>, Error> {
        self.engine.collect().await
    }

    async fn close(&self) {
        self.engine.client.close().await;
        self.engine.state.remove();
    }

    fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedDriver, Error> {
        let Engine { state, client, program, base, next, .. } = &*self.engine;
        let holder = (client, program, next.load(Ordering::Relaxed));
        driver::hand_over(NAME, state, holder, base.clone(), passed)
    }

    fn take_up(
        &self,
        sandbox: HandedSandbox,
        inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        let engine = &self.engine;
        let hold = |container: &Handed| -> Arc<dyn Holder> {
            engine.former.lock().unwrap_or_else(PoisonError::into_inner).keep(container.number);
            Arc::new(engine.bundle(container.number, engine.users.again(container)))
        };
        Ok(Box::new(contained::take_up(sandbox, &engine.gate, hold, inherited)?))
    }
}

impl Engine {
    /// What the container of this number has.
    fn bundle(self: &Arc<Self>, number: u64, guest: Guest) -> Bundle {
        let name = format!("{CONTAINER}{number}");
        Bundle {
            engine: Arc::clone(self),
            number,
            directory: runtime::bundle(&self.state.life(), &name),
            door: self.state.sockets().join(format!("{number:x}")),
            guest,
            name,
        }
    }

    async fn build(self: &Arc<Self>, spec: Spec) -> Result<InitSandbox, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let out = spec.network == Network::Egress;
        let bundle = Arc::new(self.bundle(number, self.users.take(spec.user)));
        let made = self.launch(&bundle, spec).await;
        match made {
            Ok(started) => {
                let (user, way) = (bundle.guest.user(), self.gate.policy().filter(|_| out).cloned());
                contained::receive(started, user, way, bundle).await
            }
            Err(error) => {
                bundle.remove().await;
                Err(error)
            }
        }
    }

    /// Has the runtime start a container whose init comes to the door.
    async fn launch(self: &Arc<Self>, bundle: &Arc<Bundle>, spec: Spec) -> Result<Started, Error> {
        let mut plan = contained::plan(&spec, &bundle.guest, &self.gate);
        let mut globals = Vec::new();
        let mut shared = None;
        if self.own_kernel {
            globals = gvisor::flags(&spec);
            // Its cgroup counts the threads of its kernel.
            plan.processes = Some(spec.pids);
            shared =
                plan.shared.take().map(|inside| gvisor::share(inside, bundle.guest.user())).transpose()?;
        }
        let lacks_loopback = spec.network != Network::Host;
        let door = Door::open(&bundle.door).map_err(platform("open a door for the container"))?;
        let (maker, whole) = (Arc::clone(bundle), plan.clone());
        // Files and directories: not on the thread that serves calls.
        let layers = tokio::task::spawn_blocking(move || maker.write(&spec, &whole))
            .await
            .map_err(|error| platform("make the container's bundle")(io::Error::other(error)))??;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let pid_file = bundle.directory.join("pid");
        let words = ["run", "--detach", "--pid-file", &text(&pid_file), "--bundle", &text(&bundle.directory)];
        let words = words.into_iter().chain([bundle.name.as_str()]).map(str::to_owned);
        let arguments = globals.into_iter().chain(words).collect();
        let command = Command { arguments, output: bundle.output(), layers };
        let handed = shared.as_ref().map(|shared| shared.directory.as_fd());
        match self.client.start_container(command, pid_file.clone(), handed).await? {
            (0, end) => {
                let unsaid =
                    || platform("read which process the container is")(io::ErrorKind::InvalidData.into());
                let leader = match self.own_kernel {
                    true => Some(runtime::number(&pid_file).ok_or_else(unsaid)?),
                    // Its init itself.
                    false => None,
                };
                let end = self.end(bundle, end);
                Ok(Started { door, leader, plan, end, shared, lacks_loopback })
            }
            // Runtimes are in the container's cgroup before its init is.
            (status, _) if status < 0 && self.base.lent(&bundle.name).memory_kills() > 0 => {
                Err(too_little_memory())
            }
            (status, _) => {
                let words = bundle.last_words().await;
                let source = io::Error::other(match words.is_empty() {
                    true => format!("it ended with {status}"),
                    false => words,
                });
                Err(platform("have the runtime start the container")(source))
            }
        }
    }

    /// What the monitor and the cgroup say of the end of a container's init.
    fn end(&self, bundle: &Bundle, end: InitEnd) -> End {
        let leaf = self.base.lent(&bundle.name);
        Box::pin(async move {
            let Ok((status, _)) = end.await else {
                // The monitor died; whether the init comes is for its door to say.
                return std::future::pending().await;
            };
            let cause = if status < 0 { ExitCause::Signal(-status) } else { ExitCause::Code(status) };
            Ended { cause, out_of_memory: leaf.memory_kills() > 0 }
        })
    }

    /// Removes containers of the process's former program that nobody took up. Once.
    async fn remove_left_over(self: &Arc<Self>) {
        let former = std::mem::take(&mut *self.former.lock().unwrap_or_else(PoisonError::into_inner));
        let entries =
            std::fs::read_dir(runtime::bundle(&self.state.life(), "")).into_iter().flatten().flatten();
        let number = |name: &str| name.strip_prefix(CONTAINER)?.parse::<u64>().ok();
        let numbers = entries.filter_map(|entry| number(entry.file_name().to_str()?));
        for left in numbers.filter(|number| former.is_left(*number)).collect::<Vec<_>>() {
            let bundle = self.bundle(left, self.users.take(None));
            // It is about to end by itself, unless it stands still.
            for directory in &self.cgroups {
                cgroup::kill_all(&directory.join(&bundle.name));
            }
            bundle.remove().await;
        }
    }

    async fn collect(self: &Arc<Self>) -> Result<Vec<String>, Error> {
        self.remove_left_over().await;
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
