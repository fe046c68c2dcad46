//! Sandboxes: how a function's process is isolated, limited, frozen and removed.
//!
//! A [`Driver`] prepares and creates; a [`Sandbox`] starts, freezes, thaws, stops, waits and tells what it used. The
//! traits carry no word of any engine: what a driver needs beyond [`Spec`] is its own configuration. Every driver
//! passes the suite in [`conformance`].
//!
//! The life of a sandbox is `create` (everything is in place, the process is parked just before its `exec`) →
//! `start` (the last environment variables arrive, the command runs) → `wait`. One that [stays](Spec::stays) when its command
//! ends can be started again. Dropping a sandbox kills what is left of it and frees what it held; nothing outlives the runner.

pub mod conformance;
pub mod docker;
pub mod egress;
pub mod handover;
pub mod native;
pub mod oci;
pub mod process;
pub mod select;
pub mod spawner;

mod cgroup;
mod channel;
mod contained;
mod engine;
mod init;
mod init_sandbox;
mod private;
mod state;
mod supervisor;
mod sys;
mod users;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::handover::{HandedDriver, HandedSandbox, InheritedFds, PassedFds};

/// What a driver is, and what it can do on this machine. Printed at start-up, so that nobody has to guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `native`, `process`, …
    pub name: &'static str,
    /// Why it was chosen and what is missing, in one sentence a user understands.
    pub why: String,
    /// The function is kept apart from the host and from other functions.
    pub isolates: bool,
    /// [`Sandbox::freeze`] works.
    pub freezes: bool,
    /// Memory beyond the limit is refused or ends the function.
    pub limits_memory: bool,
    /// The CPU share is enforced.
    pub limits_cpu: bool,
    /// The number of processes is enforced per sandbox.
    pub limits_pids: bool,
    /// `network: none` is enforced.
    pub isolates_network: bool,
    /// `network: egress` works.
    pub reaches_out: bool,
    /// [`Spec::user`] is honoured, root but where it is [hidden](Self::hides_root) left out: that is an ordinary user.
    pub chooses_user: bool,
    /// Whoever a function is inside, root among them, is somebody else to the host.
    pub hides_root: bool,
    /// What is written to a root is bounded by [`Spec::tmp_size`], where [`Spec::writable_root`] allows it.
    pub sizes_roots: bool,
    /// A function's kernel is its own, and not the host's: it goes with its sandbox when that has too much memory, and says some things in its own way.
    pub own_kernel: bool,
}

/// What a sandbox sees as `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The host's files, read-only, with a private `/tmp`; the work directory stands at its own path.
    Host,
    /// This directory, read-only unless [`Spec::writable_root`].
    Directory(PathBuf),
}

/// What the sandbox may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own loopback device and nothing else.
    None,
    /// Outgoing connections.
    Egress,
    /// The host's network.
    Host,
}

/// User and group inside a sandbox, by number: names are the image's to resolve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// A sandbox to be. Driver-neutral: paths, limits and strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Unique on this runner while the sandbox lives; `[a-z0-9-]{1,63}`.
    pub id: String,
    /// What it sees as `/`.
    pub root: Root,
    /// Writes to the root are kept in a private layer that goes with the sandbox.
    pub writable_root: bool,
    /// Program and arguments; the program is looked up in the `PATH` of `env` when it has no slash.
    pub command: Vec<String>,
    /// The environment, complete but for what [`Sandbox::start`] adds.
    pub env: Vec<(String, String)>,
    /// Who the command is inside, as an image says; absent, an ordinary user. Root inside (0) is a user without any privilege
    /// to the host, as every other. See [`Description::chooses_user`].
    pub user: Option<User>,
    /// Further groups of it, where [`Description::chooses_user`] and the runner may give groups away.
    pub groups: Vec<u32>,
    /// Where the command starts. With [`Root::Host`] the host's directory of that path is visible (read-only) even when a
    /// parent of it is closed to the function's user.
    pub workdir: PathBuf,
    /// Hard memory limit in bytes, swap excluded.
    pub memory: u64,
    /// CPU in thousandths of a core; 0 is unlimited.
    pub cpu_millis: u32,
    /// Processes and threads at once.
    pub pids: u32,
    /// Size of the private `/tmp` in bytes.
    pub tmp_size: u64,
    /// Open files per process.
    pub open_files: u32,
    /// What it may reach.
    pub network: Network,
    /// With [`Root::Host`]: a directory of the host that is seen at `/opt`, read-only, in the place of the host's.
    pub opt: Option<PathBuf>,
    /// A directory inside (say `/tmp/iofs`) that the function may write to and the runner can look into.
    pub shared: Option<PathBuf>,
    /// The number of the signal that asks the command to end.
    pub stop_signal: i32,
    /// It does not end with its command: that can be [started again](Sandbox::clear), and have [companions](Sandbox::spawn).
    pub stays: bool,
}

/// What [`Spec::stop_signal`] is where nobody says otherwise.
pub const SIGTERM: i32 = libc::SIGTERM;

/// A program to run beside the command of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion {
    /// Program and arguments; the program is looked up in the `PATH` of `env` when it has no slash.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
}

/// A [`Companion`] that was started.
#[derive(Debug)]
pub struct Process {
    pub stdio: Stdio,
    /// How it ended; closed without a word when its sandbox was cleared or is gone.
    pub ended: oneshot::Receiver<ExitCause>,
}

/// What is said to the command's process alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// [`Spec::stop_signal`].
    Stop,
    Kill,
}

/// The directory of [`Spec::shared`], seen from both sides.
#[derive(Debug)]
pub struct Shared {
    /// An `O_PATH` handle on it; reach files through `/proc/self/fd/N/…`. Its content is the function's: trust nothing
    /// in it, follow no link.
    pub directory: OwnedFd,
    /// Its path as the function sees it. Drivers without a mount namespace give another one than was asked for.
    pub inside: PathBuf,
}

/// The ends of the three pipes of a started process; blocking mode is off.
#[derive(Debug)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub cause: ExitCause,
    /// The kernel killed something in it for memory.
    pub out_of_memory: bool,
}

/// What ended the first process of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitCause {
    /// It exited with this status.
    Code(i32),
    /// A signal that it received.
    Signal(i32),
    /// Nothing of its own doing: the spawner that held it went away, and it with it.
    Lost,
}

/// What a sandbox used so far. Zero where the driver cannot tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory now, in bytes.
    pub memory: u64,
    /// The highest memory so far, in bytes.
    pub memory_peak: u64,
    /// CPU time so far.
    pub cpu: Duration,
}

/// Why a sandbox could not be made or driven. The text names the step and what the system said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The function's own doing: a command that does not exist, a work directory that is not there, a command that may not
    /// be executed.
    #[error("{0}")]
    Function(String),
    /// The machine's or the driver's.
    // Spelt so, it is none to those that walk through sources: the text has it, and would say it twice.
    #[error("{step}: {source}")]
    Platform { step: String, r#source: std::io::Error },
    /// Another live runner has this one's name and state directory: nothing that another driver would mend.
    #[error("another live runner has the name {name:?} in {}", state.display())]
    Taken { name: String, state: PathBuf },
    /// The driver cannot do this here (freezing without a freezer, say).
    #[error("{0}")]
    Unsupported(String),
}

/// Prepares and creates sandboxes.
#[async_trait]
pub trait Driver: Send + Sync {
    /// What this driver is and can do here.
    fn describe(&self) -> &Description;

    /// Everything but the command: namespaces, mounts, limits, pipes. The process waits just before its `exec`.
    ///
    /// # Errors
    /// [`Error::Function`] for what the function's author must mend, [`Error::Platform`] else. Nothing is left behind.
    async fn create(&self, spec: Spec) -> Result<Box<dyn Sandbox>, Error>;

    /// Removes what an earlier runner of the same name left behind, and says what it was.
    ///
    /// # Errors
    /// What could not be removed.
    async fn collect_leftovers(&self) -> Result<Vec<String>, Error>;

    /// Ends every sandbox that is left and returns when this driver has nothing on the host any more. Nothing can be created
    /// after that.
    async fn close(&self);

    /// What the program that takes this process's place needs to go on with this driver ([`select::take_up`]). Nothing may be created from
    /// then on.
    ///
    /// # Errors
    /// [`Error::Unsupported`]; [`Error::Platform`] when it has just lost what holds its sandboxes.
    fn hand_over(&self, _passed: &mut PassedFds) -> Result<HandedDriver, Error> {
        let name = self.describe().name;
        Err(Error::Unsupported(format!(
            "the sandboxes of the driver {name} cannot be handed over to another program"
        )))
    }

    /// Takes up a sandbox that the former program had of this driver. To be asked before anything is created; those that nobody takes up are
    /// [left over](Self::collect_leftovers).
    ///
    /// # Errors
    /// [`Error::Platform`] when it is not what it was; then it ends.
    fn take_up(
        &self,
        sandbox: HandedSandbox,
        _inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        Err(Error::Unsupported(format!(
            "sandbox {} is none of the driver {}",
            sandbox.id,
            self.describe().name
        )))
    }
}

/// One sandbox. All methods may be called from several tasks; dropping it kills and removes it.
#[async_trait]
pub trait Sandbox: Send + Sync {
    /// [`Spec::id`].
    fn id(&self) -> &str;

    /// The shared directory, where one was asked for.
    fn shared(&self) -> Option<&Shared>;

    /// Runs the command, with `env` added to the environment of the spec (later entries win). Once, and once more after each
    /// [`Sandbox::clear`].
    ///
    /// # Errors
    /// [`Error::Function`] when the command cannot be executed.
    async fn start(&self, env: Vec<(String, String)>) -> Result<Stdio, Error>;

    /// Kills every process in it, thawing what is frozen, and returns when none is left: then it can be [started](Sandbox::start)
    /// again. Namespaces, limits, listeners and whatever was written stay. One that fails should be dropped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for one that does not [stay](Spec::stays); [`Error::Function`] when the function has killed what it
    /// would be started by.
    async fn clear(&self) -> Result<(), Error> {
        Err(Error::Unsupported("this sandbox cannot be started again".to_owned()))
    }

    /// Runs another program beside the command, before or after the start. It ends with the sandbox, or when that is cleared.
    ///
    /// # Errors
    /// As [`Sandbox::clear`]; [`Error::Function`] when the program cannot be executed.
    async fn spawn(&self, _companion: Companion) -> Result<Process, Error> {
        Err(Error::Unsupported("nothing can run beside the command of this sandbox".to_owned()))
    }

    /// Sends a signal to the command's process, and to nothing that it started or that runs beside it. One that has ended hears
    /// nothing, and that is no error.
    ///
    /// # Errors
    /// [`Error::Platform`] when the sandbox has ended; [`Error::Unsupported`].
    async fn signal(&self, signal: Signal) -> Result<(), Error> {
        Err(Error::Unsupported(format!("this driver cannot say {signal:?} to the command alone")))
    }

    /// Binds a TCP listener where the function can reach it: in its network namespace, where it has one, so that every
    /// sandbox has all ports to itself (else on the host: ask for port 0). Non-blocking. Before [`Sandbox::start`], or while it runs.
    ///
    /// # Errors
    /// [`Error::Platform`] when the address is taken or the sandbox has ended; [`Error::Unsupported`].
    async fn listen(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        Err(Error::Unsupported(format!("this driver cannot listen on {address} for a function")))
    }

    /// Stops every process in it without telling them. Returns once they stand still.
    ///
    /// # Errors
    /// [`Error::Platform`] of the kind `NotFound` when the sandbox has ended, or is about to; [`Error::Unsupported`].
    async fn freeze(&self) -> Result<(), Error>;

    /// Undoes [`Sandbox::freeze`].
    ///
    /// # Errors
    /// As [`Sandbox::freeze`].
    async fn thaw(&self) -> Result<(), Error>;

    /// Asks with [`Spec::stop_signal`], kills all of it after `grace` (at once when zero), and returns when it is gone. A frozen one
    /// is thawed first where there is a grace.
    async fn stop(&self, grace: Duration) -> Exit;

    /// Waits until it is gone. Any number of callers, at any time.
    async fn wait(&self) -> Exit;

    /// Waits until the command that was started last has ended: for one that does not [stay](Spec::stays), until it is gone.
    async fn ended(&self) -> Exit {
        self.wait().await
    }

    /// Gives memory that it has not used of late back to the machine, as far as the kernel can: for a frozen one, when others need
    /// it. What it needs again is read or made again. Returns how much less it holds, in bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where memory cannot be taken back.
    async fn reclaim(&self) -> Result<u64, Error> {
        Err(Error::Unsupported("this driver cannot take memory back from a sandbox".to_owned()))
    }

    /// What it used so far.
    async fn usage(&self) -> Usage;

    /// What the program that takes this process's place needs to [take it up](Driver::take_up). From then on it is only to be kept; dropping it
    /// still ends it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for one that hangs on more than descriptors; [`Error::Platform`] when it has ended.
    fn hand_over(&self, _passed: &mut PassedFds) -> Result<HandedSandbox, Error> {
        Err(Error::Unsupported("this sandbox cannot be handed over to another program".to_owned()))
    }
}
