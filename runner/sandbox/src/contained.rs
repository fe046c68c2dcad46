//! What the drivers of other engines share: our own first process in a container that somebody else builds.
//!
//! An engine (an OCI runtime, a Docker daemon) makes namespaces, root and limits from a [`Spec`], and starts our init in it, which
//! comes to the runner through a [`Door`] and does the rest as in a native sandbox (see [`crate::init::contained`]). So a container is
//! parked just before its `exec` whatever the engine's own way of starting is; pipes are pipes, without the engine in between; faults
//! have the same words; and it ends when its runner does. From the engine we need no more than: make it, and remove it.

mod cell;
pub mod client;
pub mod driver;
pub mod monitor;
mod program;
pub mod view;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

pub use cell::{receive, take_up};
pub use program::Program;

use crate::channel::Channel;
use crate::egress::Gate;
use crate::wire::{Identity, Names, Plan, Program as Words, RootPlan};
use crate::{Error, ExitCause, Network, Root, Shared, Spec, User};

/// The last argument of a program that is to be the init of a container.
pub const ARGUMENT: &str = "__stoker-contained";
/// Where a container has the door to its runner: in `/dev/shm`, which every engine makes anew, so that no image needs a place for it.
pub const DOOR: &str = "/dev/shm/.stoker/door";
/// Where it has our program.
pub const PROGRAM: &str = "/dev/shm/.stoker/program";
/// Below the function's own score, so that the kernel takes the function first and the init can tell of it.
pub const OOM_SCORE: i32 = 400;
/// Host ids for functions begin here, one for each live sandbox: beside those of native sandboxes, and as unassigned.
pub const FIRST_USER: u32 = 2_000_000_000;
/// How long an init that was started may take to come through its door.
pub const ENTRY_LIMIT: Duration = Duration::from_secs(30);

/// What holds one container, in the words of its engine.
#[async_trait]
pub trait Holder: Send + Sync {
    /// The init is there, and waits to be told what to do.
    ///
    /// # Errors
    /// What cannot be done for it.
    fn entered(&self, init: Pid) -> io::Result<()>;

    /// Removes what is left of the container, its processes among it. Says in the log what could not be removed.
    async fn remove(&self);

    /// Freezes and thaws where the container's cgroup may not be written by us.
    ///
    /// # Errors
    /// [`Error::Unsupported`], or what the engine says.
    async fn set_frozen(&self, frozen: bool) -> Result<(), Error>;

    /// What engine and init have said, for the error that tells why the init never came.
    async fn last_words(&self) -> String;

    /// By what the next program of this process knows it.
    fn hand_over(&self) -> Handed;

    /// Descriptors come out of the container: not where its kernel is its own.
    fn hands_out(&self) -> bool {
        true
    }
}

/// A container as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handed {
    /// Its number in the life of its runner, from which everything of it has its name.
    pub number: u64,
    /// Who the function is, and the number of that user where it is one of ours.
    user: User,
    ours: Option<u32>,
}

/// The containers of the process's former program, until what is left over of them is removed.
#[derive(Debug, Default)]
pub struct Former {
    /// How many it had made.
    made: u64,
    /// Those that were taken up.
    kept: HashSet<u64>,
}

impl Former {
    pub fn new(made: u64) -> Self {
        Self { made, kept: HashSet::new() }
    }

    pub fn keep(&mut self, container: u64) {
        self.kept.insert(container);
    }

    /// Whether it is one of those that nobody took up.
    pub fn is_left(&self, container: u64) -> bool {
        container < self.made && !self.kept.contains(&container)
    }
}

/// A container that its engine has started.
pub struct Started {
    pub door: Door,
    /// Who leads it to our kernel, where its engine says so; else whoever comes through the door.
    pub leader: Option<Pid>,
    pub plan: Plan,
    pub end: End,
    /// The shared directory, where it is there already.
    pub shared: Option<Shared>,
    /// It has a network of its own whose loopback interface its engine may have left down: nothing in the specification of runtimes
    /// says that they set it up, and youki does not.
    pub lacks_loopback: bool,
}

/// Resolves when the init has ended. Of use until it comes through its door: from then on it tells its end by itself.
pub type End = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// How an init has ended, in its engine's words.
#[derive(Debug)]
pub struct Ended {
    pub cause: ExitCause,
    /// The kernel killed something in the container for memory.
    pub out_of_memory: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            ExitCause::Code(code) => write!(out, "it ended with status {code}"),
            ExitCause::Signal(signal) => write!(out, "it was ended by signal {signal}"),
            ExitCause::Lost => out.write_str("it ended"),
        }?;
        out.write_str(" before it came to the runner")
    }
}

/// As much of what an engine or an init said as an error tells.
const LAST_WORDS: usize = 500;

/// The end of what was said.
pub fn last_of(said: &[u8]) -> String {
    let start = said.len().saturating_sub(LAST_WORDS);
    String::from_utf8_lossy(&said[start..]).trim().to_owned()
}

/// Where an init comes in: a socket for one connection.
pub struct Door(UnixListener);

impl Door {
    /// # Errors
    /// What `bind` says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // Nobody but root and our user passes the directory; in the container it is the function's user who does.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self(listener))
    }

    /// Waits for the init, and closes the door behind it. Gives who `leads` the container, if not who came.
    async fn enter(self, leads: Option<Pid>) -> io::Result<(Channel, Pid, OwnedFd)> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "its init did not come to the runner");
        let (stream, _) = tokio::time::timeout(ENTRY_LIMIT, self.0.accept()).await.map_err(late)??;
        let stream = OwnedFd::from(stream.into_std()?);
        let leader = match leads {
            Some(leader) => leader,
            None => rustix::net::sockopt::socket_peercred(&stream)?.pid,
        };
        // The number may mean another process by now; that the init answers from here on shows that it does not.
        let pidfd = pidfd_open(leader, PidfdFlags::empty())?;
        Ok((Channel::new(stream)?, leader, pidfd))
    }
}

/// Ids of users on the host that functions run as.
#[derive(Default)]
pub struct Users(Mutex<BTreeSet<u32>>);

/// The user of the host that a function is: one that nobody else is for as long as this lives, or the one that its image names.
pub struct Guest {
    users: Weak<Users>,
    number: u32,
    user: User,
    asked: bool,
}

impl Users {
    /// Under root the user that is asked for, or one of its own; else only our own can be it. Root is not given away: without a user
    /// namespace it would be the host's.
    pub fn take(self: &Arc<Self>, asked: Option<User>) -> Guest {
        if !rustix::process::geteuid().is_root() {
            let user =
                User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
            return Guest { users: Weak::new(), number: 0, user, asked: false };
        }
        if let Some(user) = asked.filter(|user| user.uid != 0) {
            return Guest { users: Weak::new(), number: 0, user, asked: true };
        }
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..).find(|number| !taken.contains(number)).unwrap_or_default();
        taken.insert(number);
        let id = FIRST_USER + number;
        Guest { users: Arc::downgrade(self), number, user: User { uid: id, gid: id }, asked: false }
    }

    /// Who a function is already, in a container of the process's former program.
    pub fn again(self: &Arc<Self>, handed: &Handed) -> Guest {
        let Handed { user, ours, .. } = *handed;
        let Some(number) = ours else {
            return Guest { users: Weak::new(), number: 0, user, asked: true };
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        Guest { users: Arc::downgrade(self), number, user, asked: false }
    }
}

impl Guest {
    /// Who the function is, inside as outside: these engines give it no user namespace.
    pub fn user(&self) -> User {
        self.user
    }

    /// For whoever goes on with its container, which has this number.
    pub fn hand_over(&self, number: u64) -> Handed {
        let ours = (self.users.strong_count() > 0).then_some(self.number);
        Handed { number, user: self.user, ours }
    }

    /// Of the groups that were asked for with a user, those that it gets: none where it is another.
    pub fn groups(&self, asked: &[u32]) -> Vec<u32> {
        asked.iter().copied().filter(|group| self.asked && *group != 0).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(users) = self.users.upgrade() {
            users.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        }
    }
}

/// The part of a [`Spec`] that is left for the init.
pub fn plan(spec: &Spec, guest: &Guest, gate: &Gate) -> Plan {
    let names = || match (spec.network, gate.policy()) {
        (Network::Egress, Some(policy)) => {
            Names { resolver: policy.resolver(), ..crate::engine::names(&spec.id) }
        }
        _ => crate::engine::names(&spec.id),
    };
    Plan {
        id: spec.id.clone(),
        root: match &spec.root {
            Root::Host => RootPlan::Unchanged,
            Root::Directory(directory) => RootPlan::Directory(directory.clone()),
        },
        writable_root: spec.writable_root,
        program: Words { command: spec.command.clone(), env: spec.env.clone() },
        workdir: spec.workdir.clone(),
        tmp_size: spec.tmp_size,
        open_files: spec.open_files,
        processes: None,
        watch_memory: None,
        opt: spec.opt.clone(),
        shared: spec.shared.clone(),
        identity: Identity::Same,
        user: guest.user(),
        groups: Vec::new(),
        stop_signal: spec.stop_signal,
        stays: spec.stays,
        names: (spec.network != Network::Host).then(names),
        home: std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute()),
        hidden: Vec::new(),
    }
}
