//! What both drivers of this crate share: a spawner, cgroups, blanks made ahead, and the way from [`Spec`] to a [`InitSandbox`].
//!
//! A **blank** is an init that waits for its plan: cloned, in its cgroups, with its network namespace. None of that
//! depends on the function, and it is the slow half of a creation, so a few are kept ready.

mod holdings;
mod upgrade;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::Notify;

use self::holdings::{Holdings, HostDirectory, Own, OwnedLeaf, Slot};
use self::upgrade::Former;
use crate::cgroup::{Base, Controller, Leaf, Limits};
use crate::channel::Channel;
use crate::egress::Policy;
use crate::init::mounts::OPT;
use crate::init_sandbox::{InitSandbox, Making, too_little_memory};
use crate::spawner::Command;
use crate::spawner::client::{Client, Init};
use crate::state::State;
use crate::wire::{
    Begin, IMAGE_IDS, INSIDE, Identity, Names, NetworkPlan, Order, Plan, Program, RootPlan, Setup,
};
use crate::{Error, Network, Root, Sandbox, Spec, User};

/// How an engine makes sandboxes.
pub struct Flavour {
    /// Name of the driver, and of its state.
    pub driver: &'static str,
    /// Namespaces and their own roots; plain processes else.
    pub isolate: bool,
    /// The engine runs without root.
    pub rootless: bool,
    /// Functions get a user namespace of their own (always so without root).
    pub user_namespace: bool,
    /// First of the host's user ids that functions run as, one per sandbox.
    pub first_user: u32,
    /// First of the ids by which the owners of an image's files are shown that the function is not.
    pub others: u32,
    /// Host directories that [`Root::Host`] shows.
    pub host_paths: Vec<PathBuf>,
    /// What is hidden of them: see [`crate::private`].
    pub hidden: Vec<PathBuf>,
    /// Blanks kept ready, of each kind that was asked for.
    pub spares: usize,
    /// What a way out leads to, where there can be one.
    pub egress: Option<Arc<Policy>>,
}

impl Flavour {
    fn setup(&self, base: &Base, state: &State) -> Setup {
        Setup {
            isolate: self.isolate,
            rootless: self.isolate && self.rootless,
            lock: state.spawner_lock(),
            cgroups: base.directories(),
            remove: vec![state.life(), state.sockets().to_path_buf(), state.record()],
        }
    }
}

pub struct Engine {
    pub flavour: Flavour,
    pub base: Base,
    state: State,
    client: Client,
    slots: Mutex<BTreeSet<u32>>,
    next_leaf: AtomicU64,
    next_directory: AtomicU64,
    /// What the process's former program had, until what is left over of it is removed.
    former: Mutex<Former>,
    blanks: Mutex<Blanks>,
    filling: AtomicBool,
    /// A blank may have been used, for whoever waits to make another.
    used: Notify,
    /// What is removed now is not made again.
    closed: AtomicBool,
    home: Option<PathBuf>,
}

/// An init that waits for its plan.
struct Blank {
    control: Channel,
    init: Init,
    leaf: OwnedLeaf,
}

impl Blank {
    /// Whether it still waits: one made by a spawner that has died since is dead, too, and so may be one by itself.
    fn stands(&self) -> bool {
        !*self.init.orphaned.borrow() && self.control.is_open()
    }
}

/// Those with a network of their own; those with a way out only once one was asked for.
#[derive(Default)]
struct Blanks {
    closed: Vec<Blank>,
    reaching: Vec<Blank>,
    reaching_wanted: bool,
}

impl Blanks {
    fn of(&mut self, network: NetworkPlan) -> &mut Vec<Blank> {
        match network {
            NetworkPlan::Tunnel { .. } => &mut self.reaching,
            NetworkPlan::Own | NetworkPlan::Host => &mut self.closed,
        }
    }
}

impl Engine {
    /// Takes the name, makes the cgroups and starts the spawner.
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub async fn start(
        flavour: Flavour,
        name: &str,
        state_dir: &Path,
        cgroup_parent: Option<&Path>,
        spawner: Command,
    ) -> Result<Arc<Self>, Error> {
        let state = State::open(state_dir, flavour.driver, name)?;
        let cgroup = state.cgroup_name(name);
        state.write_down(Base::places(&cgroup, cgroup_parent))?;
        let base = Base::create(&cgroup, cgroup_parent);
        if !flavour.isolate {
            state.make_sockets()?;
        }
        let setup = flavour.setup(&base, &state);
        let client = match Client::start(spawner, setup).await {
            Ok(client) => client,
            Err(error) => {
                // Nobody else is there to do it.
                for directory in base.directories() {
                    crate::cgroup::remove_tree(&directory).ok();
                }
                std::fs::remove_dir_all(state.sockets()).ok();
                std::fs::remove_file(state.record()).ok();
                state.remove();
                return Err(error);
            }
        };
        Ok(Self::new(flavour, base, state, client, Former::default()))
    }

    fn new(flavour: Flavour, base: Base, state: State, client: Client, former: Former) -> Arc<Self> {
        Arc::new(Self {
            flavour,
            base,
            state,
            client,
            slots: Mutex::default(),
            next_leaf: AtomicU64::new(former.leaves),
            next_directory: AtomicU64::new(former.directories),
            former: Mutex::new(former),
            blanks: Mutex::default(),
            filling: AtomicBool::new(false),
            used: Notify::new(),
            closed: AtomicBool::new(false),
            home: std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute()),
        })
    }

    /// The spawner's process id.
    pub fn spawner(&self) -> Option<u32> {
        self.client.pid()
    }

    /// See [`State::collect`].
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn collect_leftovers(self: &Arc<Self>) -> Result<Vec<String>, Error> {
        let engine = Arc::clone(self);
        let collect = move || {
            engine.remove_left_over();
            engine.state.collect()
        };
        tokio::task::spawn_blocking(collect).await.map_err(|error| Error::Platform {
            step: "collect leftovers".to_owned(),
            source: std::io::Error::other(error),
        })?
    }

    /// See [`crate::Driver::close`].
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // None is made any more: a refill that runs finds no spawner.
        let blanks = std::mem::take(&mut *self.blanks.lock().unwrap_or_else(PoisonError::into_inner));
        drop(blanks);
        self.client.close().await;
        self.state.remove();
    }

    /// Makes a sandbox up to its `exec`.
    ///
    /// # Errors
    /// As [`crate::Driver::create`] says.
    pub async fn create(self: &Arc<Self>, spec: Spec) -> Result<Box<dyn Sandbox>, Error> {
        check(&spec)?;
        // On a task of its own: a caller that gives up halfway must not leave half a sandbox.
        let engine = Arc::clone(self);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let made = engine.build(spec).await;
            // Nobody waiting drops the sandbox, which ends it.
            drop(sender.send(made));
            engine.refill();
        });
        let made = async {
            let gone = |error| Error::Platform {
                step: "create the sandbox".to_owned(),
                source: std::io::Error::other(error),
            };
            receiver.await.map_err(gone)?
        };
        within(LIMIT, made).await.map(|sandbox| Box::new(sandbox) as Box<dyn Sandbox>)
    }

    async fn build(self: &Arc<Self>, spec: Spec) -> Result<InitSandbox, Error> {
        let network = match (spec.network, &self.flavour.egress) {
            (Network::None, _) if self.flavour.isolate => NetworkPlan::Own,
            (Network::Egress, Some(policy)) => NetworkPlan::Tunnel { six: policy.six },
            _ => NetworkPlan::Host,
        };
        let mut ready = None;
        if network != NetworkPlan::Host {
            let mut blanks = self.blanks.lock().unwrap_or_else(PoisonError::into_inner);
            blanks.reaching_wanted |= network != NetworkPlan::Own;
            ready = std::iter::from_fn(|| blanks.of(network).pop()).find(Blank::stands);
        }
        let blank = match ready {
            Some(blank) => blank,
            None => self.blank(network).await?,
        };
        if let Some(leaf) = blank.leaf.get() {
            let limits = Limits { memory: spec.memory, cpu_millis: spec.cpu_millis, pids: spec.pids };
            leaf.limit(&limits).map_err(|source| match source.kind() {
                // Version 1 says so where version 2 kills: what waits in it has more already.
                std::io::ErrorKind::ResourceBusy => too_little_memory(),
                _ => Error::Platform { step: "set the cgroup's limits".to_owned(), source },
            })?;
        }
        let slot = (self.flavour.isolate && !self.flavour.rootless).then(|| self.slot());
        let identity = match &slot {
            None if self.flavour.isolate => Identity::Inside,
            None => Identity::Same,
            Some(slot) => {
                let user = self.flavour.first_user + slot.number;
                if self.flavour.user_namespace {
                    Identity::Mapped { user, others: self.flavour.others }
                } else {
                    Identity::Plain(user)
                }
            }
        };
        let user = spec.user.unwrap_or(ORDINARY);
        let identity =
            if identity == Identity::Inside && user != ORDINARY { Identity::Renamed } else { identity };
        let counted = self.base.has(Controller::Pids);
        let weighed = self.base.has(Controller::Memory);
        let host_shared = match &spec.shared {
            Some(asked) if !self.flavour.isolate => Some(self.host_directory(asked)?),
            _ => None,
        };
        let plan = Plan {
            id: spec.id.clone(),
            root: match spec.root {
                Root::Host if !self.flavour.isolate => RootPlan::Unchanged,
                Root::Host => RootPlan::Host(shown(&self.flavour.host_paths, spec.opt.as_deref())),
                Root::Directory(directory) => RootPlan::Directory(directory),
            },
            writable_root: spec.writable_root,
            program: Program { command: spec.command, env: spec.env },
            workdir: spec.workdir,
            tmp_size: spec.tmp_size,
            open_files: spec.open_files,
            // Counted per user: exact only in a user namespace of one's own.
            processes: (self.flavour.isolate && !counted).then_some(spec.pids),
            watch_memory: (!weighed).then_some(spec.memory),
            opt: spec.opt,
            shared: spec.shared.clone().filter(|_| self.flavour.isolate),
            identity,
            user,
            // Those that the user namespace knows; without one of its own, nobody can give groups away.
            groups: match identity {
                Identity::Mapped { .. } => {
                    spec.groups.into_iter().filter(|group| *group < IMAGE_IDS).collect()
                }
                _ => Vec::new(),
            },
            stop_signal: spec.stop_signal,
            stays: spec.stays,
            names: (spec.network != Network::Host).then(|| self.names(&spec.id, network)),
            home: self.home.clone(),
            hidden: self.flavour.hidden.clone(),
        };
        let mut directory = host_shared;
        let inside = plan.shared.clone();
        let shared = directory.as_mut().and_then(HostDirectory::shared);
        let Blank { control, init, leaf } = blank;
        let Init { pidfd, orphaned, parent } = init;
        let holdings = Holdings { slot, directory };
        let backing = Arc::new(Own::new(self, leaf, holdings, orphaned, parent));
        let owner = match identity {
            Identity::Mapped { user, .. } | Identity::Plain(user) => Some(User { uid: user, gid: user }),
            Identity::Inside | Identity::Renamed | Identity::Same => None,
        };
        InitSandbox::build(Making { plan, inside, shared, control, pidfd, backing, owner }).await
    }

    /// Clones an init and lets it do what does not depend on the function.
    async fn blank(self: &Arc<Self>, network: NetworkPlan) -> Result<Blank, Error> {
        let fail = |step: &str| {
            let step = step.to_owned();
            move |source: std::io::Error| Error::Platform { step, source }
        };
        let leaf = if self.base == Base::default() {
            OwnedLeaf::new(None)
        } else {
            let name = self.next_leaf.fetch_add(1, Ordering::Relaxed).to_string();
            let engine = Arc::clone(self);
            // `mkdir` in a busy cgroup hierarchy takes up to 20 ms: not on the thread that serves calls. What is made
            // though nobody waits for it any more is removed by being dropped.
            let made = tokio::task::spawn_blocking(move || engine.leaf(&name).map(Some).map(OwnedLeaf::new));
            made.await.map_err(std::io::Error::other).flatten().map_err(fail("make the sandbox's cgroups"))?
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| fail("make a socket pair")(error.into()))?;
        let control = Channel::new(ours).map_err(fail("make a socket pair"))?;
        let init = self
            .client
            .clone_init(theirs, leaf.get().and_then(|leaf| leaf.handle()).map(AsFd::as_fd))
            .await?;
        let own_ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let begin = Begin {
            isolate: self.flavour.isolate,
            rootless: (self.flavour.isolate && self.flavour.rootless).then_some(own_ids),
            attach: leaf.get().map(|leaf| leaf.attach()).unwrap_or_default(),
            network,
        };
        control.send(&Order::Begin(begin), &[]).await.map_err(fail("instruct the sandbox's init"))?;
        Ok(Blank { control, init, leaf })
    }

    /// One sandbox's cgroups. Should somebody have removed ours, they are made again before it.
    fn leaf(&self, name: &str) -> std::io::Result<Leaf> {
        match self.base.leaf(name) {
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && !self.closed.load(Ordering::Acquire) =>
            {
                self.base.restore()?;
                self.base.leaf(name)
            }
            made => made,
        }
    }

    /// Makes blanks until there are enough, in the background; while there is one left, only when no sandbox was made for a moment: what has
    /// just been made is about to be started, and would wait for the same processors.
    pub fn refill(self: &Arc<Self>) {
        if self.flavour.spares == 0 {
            return;
        }
        self.used.notify_one();
        if self.filling.swap(true, Ordering::AcqRel) {
            return;
        }
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            while let Some((network, left)) = engine.lacking() {
                if left > 0 && tokio::time::timeout(QUIET, engine.used.notified()).await.is_ok() {
                    continue;
                }
                match engine.blank(network).await {
                    Ok(blank) => {
                        engine.blanks.lock().unwrap_or_else(PoisonError::into_inner).of(network).push(blank);
                    }
                    Err(error) => {
                        // The next create meets the same and says so to somebody.
                        tracing::debug!(%error, "no spare sandbox could be made");
                        break;
                    }
                }
            }
            engine.filling.store(false, Ordering::Release);
        });
    }

    /// The kind of blanks that lacks most, if any does, and how many are left of it.
    fn lacking(&self) -> Option<(NetworkPlan, usize)> {
        let mut blanks = self.blanks.lock().unwrap_or_else(PoisonError::into_inner);
        let tunnel = self.flavour.egress.as_ref().filter(|_| blanks.reaching_wanted);
        let tunnel = tunnel.map(|policy| NetworkPlan::Tunnel { six: policy.six });
        let left = [Some(NetworkPlan::Own), tunnel].into_iter().flatten().map(|network| {
            let blanks = blanks.of(network);
            blanks.retain(Blank::stands);
            (network, blanks.len())
        });
        left.min_by_key(|(_, left)| *left).filter(|(_, left)| *left < self.flavour.spares)
    }

    /// What names mean to a function with a network of its own.
    fn names(&self, id: &str, network: NetworkPlan) -> Names {
        match (network, &self.flavour.egress) {
            (NetworkPlan::Tunnel { .. }, Some(policy)) => Names { resolver: policy.resolver(), ..names(id) },
            _ => names(id),
        }
    }

    fn slot(self: &Arc<Self>) -> Slot {
        let mut taken = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
        taken.insert(number);
        Slot { engine: Arc::downgrade(self), number }
    }

    /// A directory on the host for plain processes, in one that only our user may enter.
    fn host_directory(&self, asked: &Path) -> Result<HostDirectory, Error> {
        let name = asked.file_name().unwrap_or(std::ffi::OsStr::new("shared"));
        // A number, since ids are long and the paths of sockets must not be.
        let number = self.next_directory.fetch_add(1, Ordering::Relaxed);
        let parent = self.state.sockets().join(format!("{number:x}"));
        let path = parent.join(name);
        let made = std::fs::create_dir_all(&path).and_then(|()| {
            let flags =
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            Ok(rustix::fs::open(&path, flags, rustix::fs::Mode::empty())?)
        });
        match made {
            Ok(handle) => Ok(HostDirectory { parent, path, handle: Some(handle) }),
            Err(source) => {
                std::fs::remove_dir_all(&parent).ok();
                Err(Error::Platform { step: format!("make the shared directory {}", path.display()), source })
            }
        }
    }
}

/// How long no sandbox was made before blanks are made again: as long as a function may take to come up that has little to load.
const QUIET: Duration = Duration::from_millis(10);

/// A sandbox is made in milliseconds; on a machine that is very busy, in a second or two. After this somebody stands still.
const LIMIT: Duration = Duration::from_secs(20);

/// What is not made in time is not waited for. What is made after all is dropped, which ends it.
pub async fn within<T>(limit: Duration, made: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, made).await.unwrap_or_else(|_| {
        let text = format!("not done after {limit:?}: who makes it may stand still");
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, text);
        Err(Error::Platform { step: "create the sandbox".to_owned(), source })
    })
}

/// Who a function is inside, if nobody says so.
const ORDINARY: User = User { uid: INSIDE, gid: INSIDE };

/// What names mean to a function that has no network but its own.
pub fn names(id: &str) -> Names {
    Names {
        hosts: format!("127.0.0.1 localhost {id}\n::1 localhost ip6-localhost ip6-loopback\n"),
        resolver: String::new(),
    }
}

/// What no driver can make sense of.
pub fn check(spec: &Spec) -> Result<(), Error> {
    let valid = (1..=63).contains(&spec.id.len())
        && spec.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !valid {
        return Err(Error::Platform {
            step: format!("use {:?} as a sandbox id", spec.id),
            source: std::io::Error::new(std::io::ErrorKind::InvalidInput, "[a-z0-9-]{1,63} only"),
        });
    }
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(Error::Function("the command is empty".to_owned()));
    }
    if let Some(user) = spec.user.filter(|user| user.uid == u32::MAX || user.gid == u32::MAX) {
        // The number that means "nobody in particular" to the kernel.
        return Err(Error::Function(format!(
            "{}:{} cannot be a user and a group: {} is the number of nobody",
            user.uid,
            user.gid,
            u32::MAX
        )));
    }
    if !(1..=64).contains(&spec.stop_signal) {
        return Err(Error::Function(format!("{} is not the number of a signal", spec.stop_signal)));
    }
    if !spec.workdir.is_absolute() {
        return Err(Error::Function(format!(
            "the work directory {} is not an absolute path",
            spec.workdir.display()
        )));
    }
    if spec.opt.is_some() && spec.root != Root::Host {
        let text = "a directory is shown as /opt where the root is the host's, and this one is not";
        return Err(Error::Function(text.to_owned()));
    }
    let paths = [Some(&spec.workdir), spec.opt.as_ref(), spec.shared.as_ref()];
    if let Some(path) = paths.into_iter().flatten().find(|path| path.to_str().is_none()) {
        return Err(Error::Function(format!("{} is not UTF-8", path.display())));
    }
    Ok(())
}

/// Those of the host's directories that are shown where another may stand in the place of its `/opt`.
pub fn shown(paths: &[PathBuf], opt: Option<&Path>) -> Vec<PathBuf> {
    paths.iter().filter(|path| opt.is_none() || *path != Path::new(OPT)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let made = within::<()>(Duration::ZERO, std::future::pending()).await;
        assert!(matches!(made, Err(Error::Platform { .. })), "{made:?}");
        within(LIMIT, async { Ok(()) }).await.unwrap();
    }
}
