//! The `docker` driver: Docker Engine, or what speaks its API (Podman), over its Unix socket.
//!
//! For nodes that already run one. It is by far the slowest way to start a function, two hundred milliseconds against one or two, but
//! not to call it: the container's first process is ours (see `contained`), pipes and sockets lead to the function without the
//! daemon in between, and freezing and counting go to the cgroup directly. The daemon is asked to create, to start and to remove.
//!
//! Roots are plain directories of the host, so runner and daemon must see the same files under the same paths. A container carries
//! labels that say whose it is; by them the next runner finds what is left of this one.

mod api;
mod config;
mod held;
mod skeleton;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use hyper::{Method, StatusCode};
use rustix::process::Pid;
use serde_json::{Value, json};
use stoker_core::text::escape;

use self::api::{Api, Content, refusal};
use self::config::Parts;
use self::held::Held;
use crate::cgroup::{Base, Leaf};
use crate::contained::client::Client;
use crate::contained::driver::{self, Left, platform};
use crate::contained::monitor::{self, Daemon};
use crate::contained::view::View;
use crate::contained::{self, Door, End, Ended, Former, Guest, Handed, Holder, Program, Started, Users};
use crate::egress::{self, Gate};
use crate::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};
use crate::init_sandbox::InitSandbox;
use crate::state::State;
use crate::wire::Plan;
use crate::{Description, Driver, Error, ExitCause, Network, Root, Sandbox, Spec, native, private, spawner};

const NAME: &str = "docker";
/// Labels of every container: whose it is.
const RUNNER: &str = "stoker.runner";
const STATE: &str = "stoker.state";
const LIFE: &str = "stoker.life";

/// How the driver works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The runner's name: one live runner per name and state directory.
    pub name: String,
    /// A directory for locks and what is shown in containers; the daemon sees it under the same path.
    pub state_dir: PathBuf,
    /// How our own program is started, as monitor and in containers.
    pub spawner: spawner::Command,
    /// Where the daemon listens.
    pub socket: PathBuf,
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
            socket: PathBuf::from("/var/run/docker.sock"),
            host_paths: native.host_paths,
            egress: native.egress,
        }
    }
}

/// The driver.
pub struct Docker {
    engine: Arc<Engine>,
    description: Description,
}

struct Engine {
    state: State,
    client: Client,
    api: Api,
    program: Program,
    users: Arc<Users>,
    gate: Gate,
    host_paths: Vec<PathBuf>,
    /// What is hidden of them: see [`private`].
    hidden: Vec<PathBuf>,
    /// What every container carries.
    labels: BTreeMap<String, String>,
    next: AtomicU64,
    former: Mutex<Former>,
    /// Names of images that the daemon has; held while one is made.
    images: tokio::sync::Mutex<HashSet<String>>,
}

impl Docker {
    /// Asks the daemon what it is, and starts the monitor. In a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without a daemon that works in our way, [`Error::Platform`] when a step fails. That it comes up does not
    /// prove that containers work: [`crate::select`] tries one.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let (api, about) = Self::ask(&config).await?;
        let state = State::open(&config.state_dir, NAME, &config.name)?;
        state.write_down(Vec::new())?;
        let holder = holder(&config, &state);
        let (client, program) = driver::begin(&state, &config.spawner, |_| Ok(()), holder).await?;
        let left = Left { state, client, program, base: Base::default(), containers: 0 };
        Self::of(left, &config, api, &about)
    }

    /// The same, of the process's former program.
    ///
    /// # Errors
    /// As [`Docker::new`], and when that was another's; then it ends.
    pub async fn take_up(
        config: Config,
        handed: HandedDriver,
        inherited: &mut InheritedFds,
    ) -> Result<Self, Error> {
        let (api, about) = Self::ask(&config).await?;
        let whose = (NAME, config.name.as_str(), config.state_dir.as_path());
        let left = Left::take_up(whose, &config.spawner, |state| holder(&config, state), handed, inherited)?;
        Self::of(left, &config, api, &about)
    }

    /// What the daemon is.
    async fn ask(config: &Config) -> Result<(Api, Value), Error> {
        let api = Api::connect(&config.socket).await?;
        let about = api.call(Method::GET, "/info", Content::Nothing).await?;
        let options = about["SecurityOptions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(option) = options
            .into_iter()
            .find(|option| ["name=userns", "name=rootless"].iter().any(|name| option.starts_with(name)))
        {
            return Err(Error::Unsupported(format!(
                "the Docker daemon maps users by itself ({option}): functions could not be users of their own"
            )));
        }
        Ok((api, about))
    }

    fn of(left: Left, config: &Config, api: Api, about: &Value) -> Result<Self, Error> {
        let Left { state, client, program, containers, .. } = left;
        let place = std::fs::canonicalize(&config.state_dir)
            .map_err(platform(format!("look at {}", config.state_dir.display())))?;
        let labels = BTreeMap::from([
            (RUNNER.to_owned(), config.name.clone()),
            (STATE.to_owned(), place.to_string_lossy().into_owned()),
            (LIFE.to_owned(), life(&state)),
        ]);
        let engine = Arc::new(Engine {
            state,
            client,
            api,
            program,
            users: Arc::default(),
            gate: Gate::new(&config.egress),
            hidden: match rustix::process::geteuid().is_root() {
                true => Vec::new(),
                false => private::below(&config.host_paths),
            },
            host_paths: config.host_paths.clone(),
            labels,
            next: AtomicU64::new(containers),
            former: Mutex::new(Former::new(containers)),
            images: tokio::sync::Mutex::default(),
        });
        let description = describe(about, &engine.gate);
        Ok(Self { engine, description })
    }

    /// The monitor's process id, for whoever watches or tests it.
    pub fn monitor(&self) -> Option<u32> {
        self.engine.client.pid()
    }
}

/// The name of a life among the labels of its containers.
fn life(state: &State) -> String {
    state.life().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Who holds the containers of a life.
fn holder(config: &Config, state: &State) -> monitor::Engine {
    let label = format!("{LIFE}={}", life(state));
    monitor::Engine::Daemon(Daemon { socket: config.socket.clone(), label })
}

fn describe(about: &Value, gate: &Gate) -> Description {
    let says = |key: &str| about[key].as_bool().unwrap_or(true);
    let version = about["ServerVersion"].as_str().unwrap_or("of an unknown version");
    Description {
        name: NAME,
        why: format!(
            "containers of the Docker daemon {version}, hardened as native sandboxes are, without user namespaces; slow to start"
        ),
        isolates: true,
        freezes: true,
        limits_memory: says("MemoryLimit"),
        limits_cpu: says("CpuCfsQuota"),
        limits_pids: says("PidsLimit"),
        isolates_network: true,
        reaches_out: gate.policy().is_some(),
        chooses_user: rustix::process::geteuid().is_root(),
        hides_root: false,
        sizes_roots: false,
        own_kernel: false,
    }
}

#[async_trait]
impl Driver for Docker {
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
        let Engine { state, client, program, next, .. } = &*self.engine;
        let holder = (client, program, next.load(Ordering::Relaxed));
        driver::hand_over(NAME, state, holder, Base::default(), passed)
    }

    fn take_up(
        &self,
        sandbox: HandedSandbox,
        inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        let engine = &self.engine;
        let hold = |container: &Handed| -> Arc<dyn Holder> {
            engine.former.lock().unwrap_or_else(PoisonError::into_inner).keep(container.number);
            // What it has at the top of its root it has.
            Arc::new(engine.held(container.number, engine.users.again(container), false))
        };
        Ok(Box::new(contained::take_up(sandbox, &engine.gate, hold, inherited)?))
    }
}

impl Engine {
    /// What the container of this number has.
    fn held(self: &Arc<Self>, number: u64, guest: Guest, grows: bool) -> Held {
        Held {
            number,
            name: format!("{}{number}", self.names()),
            directory: self.state.life().join(format!("container-{number}")),
            door: self.state.sockets().join(format!("{number:x}")),
            guest,
            grows,
            engine: Arc::clone(self),
        }
    }

    /// What the names of this life's containers begin with.
    fn names(&self) -> String {
        format!("stoker-{}-", life(&self.state))
    }

    async fn build(self: &Arc<Self>, spec: Spec) -> Result<InitSandbox, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let out = spec.network == Network::Egress;
        let grows = spec.writable_root && matches!(spec.root, Root::Directory(_));
        let held = Arc::new(self.held(number, self.users.take(spec.user), grows));
        match self.launch(&held, spec).await {
            Ok(started) => {
                let (user, way) = (held.guest.user(), self.gate.policy().filter(|_| out).cloned());
                contained::receive(started, user, way, held).await
            }
            Err(error) => {
                held.remove().await;
                Err(error)
            }
        }
    }

    /// Has the daemon start a container whose init comes to the door.
    async fn launch(self: &Arc<Self>, held: &Arc<Held>, spec: Spec) -> Result<Started, Error> {
        let plan = Plan { hidden: self.hidden.clone(), ..contained::plan(&spec, &held.guest, &self.gate) };
        let door = Door::open(&held.door).map_err(platform("open a door for the container"))?;
        let (maker, whole, wanted) = (Arc::clone(held), plan.clone(), spec.clone());
        // Files and directories: not on the thread that serves calls.
        let view = tokio::task::spawn_blocking(move || maker.write(&wanted, &whole))
            .await
            .map_err(|error| platform("make the container's files")(io::Error::other(error)))??;
        let image = self.image(&view).await?;
        let config = config::config(&Parts {
            spec: &spec,
            view: &view,
            user: held.guest.user(),
            groups: held.guest.groups(&spec.groups),
            image: &image,
            labels: self.labels.clone(),
            directory: &held.directory,
            program: &self.program,
            door: &held.door,
            podman: self.api.is_podman(),
        });
        let path = format!("/containers/create?name={}", held.name);
        let (status, body) = self.api.try_call(Method::POST, &path, Content::Json(config.clone())).await?;
        if status == StatusCode::NOT_FOUND {
            // Somebody has cleared the daemon's images away.
            self.images.lock().await.clear();
            self.image(&view).await?;
            self.api.call(Method::POST, &path, Content::Json(config)).await?;
        } else if !status.is_success() {
            return Err(refusal(&path, status, &body));
        }
        let path = format!("/containers/{}/start", held.name);
        self.api.call(Method::POST, &path, Content::Nothing).await?;
        let end = self.end(&held.name);
        Ok(Started { door, leader: None, plan, end, shared: None, lacks_loopback: false })
    }

    /// What the daemon says of the end of a container's init.
    fn end(&self, name: &str) -> End {
        let (api, name) = (self.api.clone(), name.to_owned());
        Box::pin(async move {
            let wait = format!("/containers/{name}/wait?condition=not-running");
            let ended = async {
                api.call(Method::POST, &wait, Content::Nothing).await?;
                api.call(Method::GET, &format!("/containers/{name}/json"), Content::Nothing).await
            };
            let Ok(found) = ended.await else {
                // Whether the init comes is for its door to say.
                return std::future::pending().await;
            };
            let state = &found["State"];
            let code = state["ExitCode"].as_i64().and_then(|code| i32::try_from(code).ok());
            Ended {
                // It tells of a signal as shells do.
                cause: match code {
                    Some(code @ 129..192) => ExitCause::Signal(code - 128),
                    code => code.map_or(ExitCause::Lost, ExitCause::Code),
                },
                out_of_memory: state["OOMKilled"].as_bool().unwrap_or_default(),
            }
        })
    }

    /// The daemon's image for a view, made if it is not there.
    async fn image(&self, view: &View) -> Result<String, Error> {
        let (name, archive) = skeleton::archive(view)?;
        let mut known = self.images.lock().await;
        if known.contains(&name) {
            return Ok(name);
        }
        let path = format!("/images/{name}/json");
        let (status, _) = self.api.try_call(Method::GET, &path, Content::Nothing).await?;
        if !status.is_success() {
            let path = format!("/images/create?fromSrc=-&repo={name}&tag=latest");
            let made = self.api.call(Method::POST, &path, Content::Tar(archive)).await?;
            if let Some(said) = made["error"].as_str() {
                return Err(platform("give the Docker daemon an image")(io::Error::other(said.to_owned())));
            }
        }
        known.insert(name.clone());
        Ok(name)
    }

    async fn collect(self: &Arc<Self>) -> Result<Vec<String>, Error> {
        let ours = [RUNNER, STATE].into_iter().filter_map(|key| Some((key, self.labels.get(key)?)));
        let filter: Vec<_> = ours.map(|(key, value)| format!("{key}={value}")).collect();
        let former = std::mem::take(&mut *self.former.lock().unwrap_or_else(PoisonError::into_inner));
        let mut removed = Vec::new();
        for container in containers(&self.api, &filter).await? {
            let name = container["Names"][0].as_str().unwrap_or_default().trim_start_matches('/');
            if container["Labels"][LIFE].as_str() != self.labels.get(LIFE).map(String::as_str) {
                end(&self.api, &container).await?;
                removed.push(format!("container {name}"));
                continue;
            }
            // Of the process's former program, and taken up by nobody.
            let number = name.strip_prefix(&self.names()).and_then(|number| number.parse().ok());
            if let Some(number) = number.filter(|number| former.is_left(*number)) {
                end(&self.api, &container).await?;
                self.held(number, self.users.take(None), false).remove().await;
            }
        }
        let engine = Arc::clone(self);
        let rest = tokio::task::spawn_blocking(move || engine.state.collect())
            .await
            .map_err(|error| platform("collect leftovers")(io::Error::other(error)))??;
        removed.extend(rest);
        Ok(removed)
    }
}

/// Containers, in whatever state, that carry all these labels.
async fn containers(api: &Api, labels: &[String]) -> Result<Vec<Value>, Error> {
    let filters = escape(&json!({"label": labels}).to_string());
    let path = format!("/containers/json?all=true&filters={filters}");
    let list = api.call(Method::GET, &path, Content::Nothing).await?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

/// Kills and removes a container, frozen by us or not.
async fn end(api: &Api, container: &Value) -> Result<(), Error> {
    let id = container["Id"].as_str().unwrap_or_default();
    let path = format!("/containers/{id}/json");
    let (_, state) = api.try_call(Method::GET, &path, Content::Nothing).await?;
    // The daemon does not know that it stands still, and would wait for it to die.
    let pid = state["State"]["Pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(Ok(leaf)) = pid.map(Leaf::of_process) {
        leaf.kill();
    }
    remove(api, id).await
}

async fn remove(api: &Api, id: &str) -> Result<(), Error> {
    let path = format!("/containers/{id}?force=true&v=true");
    let (status, body) = api.try_call(Method::DELETE, &path, Content::Nothing).await?;
    match status {
        // Another is at it: it is gone when that is done.
        StatusCode::CONFLICT => {
            let path = format!("/containers/{id}/wait?condition=removed");
            api.try_call(Method::POST, &path, Content::Nothing).await.map(drop)
        }
        StatusCode::NOT_FOUND => Ok(()),
        status if status.is_success() => Ok(()),
        status => Err(refusal(&path, status, &body)),
    }
}

/// Removes every container of a life. In the monitor.
///
/// # Errors
/// What the daemon said last.
pub(crate) fn clear(daemon: &Daemon) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(platform("start a runtime to clear away in"))?;
    runtime.block_on(async {
        let api = Api::connect(&daemon.socket).await?;
        let mut last = Ok(());
        // One that the daemon is still creating is found by the next runner; its init finds its door gone, and ends.
        for container in containers(&api, std::slice::from_ref(&daemon.label)).await? {
            last = end(&api, &container).await.and(last);
        }
        last
    })
}
