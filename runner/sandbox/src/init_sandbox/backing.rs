//! How a driver holds a sandbox, and what of that goes over to the next program of its process.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Leaf;
use crate::handover::{FdNumber, PassedFds};
use crate::{Error, contained};

/// How a driver holds a sandbox: its cgroup, and what there is to be removed.
#[async_trait]
pub trait Backing: Send + Sync {
    /// Its cgroup, as long as that may be looked at.
    fn leaf(&self) -> Option<Arc<Leaf>>;

    /// Kills all of it without waiting. `false` where only its init can.
    fn kill(&self, init: BorrowedFd<'_>) -> bool;

    /// Freezes and thaws what has no cgroup that we may write to; `None` where its init does it by signals.
    async fn set_frozen(&self, _frozen: bool) -> Option<Result<(), Error>> {
        None
    }

    /// Takes the other end of its tunnel.
    ///
    /// # Errors
    /// When it cannot be served.
    fn tunnel(&self, _tunnel: OwnedFd) -> Result<(), Error> {
        Err(Error::Unsupported("nobody asked for a way out".to_owned()))
    }

    /// Binds a listener in the network of this process from outside of it; `None` where the sandbox's init does, and hands it out.
    async fn listen(&self, _init: Pid, _address: SocketAddr) -> Option<io::Result<TcpListener>> {
        None
    }

    /// Returns when nobody looks after it any more but us, if that can be.
    async fn orphaned(&self) {
        std::future::pending().await
    }

    /// What held it went away, and it with it.
    fn lost(&self) -> bool {
        false
    }

    /// Its init waits to be killed when the function has ended, so that its cgroup can still be read.
    fn lingers(&self) -> bool {
        false
    }

    /// Removes what it held, before its end is told.
    async fn clear(&self) {}

    /// Has written off what is left, after its end was told: where somebody else takes his time for it.
    async fn write_off(&self) {}

    /// What the next program of this process needs to hold it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while it hangs on more than descriptors and names.
    fn hand_over(&self, passed: &mut PassedFds) -> Result<Held, Error>;
}

/// What a sandbox holds outside its processes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Held {
    pub leaf: Option<Leaf>,
    /// The number of its user id.
    pub slot: Option<u32>,
    /// A directory of the host that it shares, and what that lies in.
    pub directory: Option<[PathBuf; 2]>,
    /// What an engine has of it.
    pub container: Option<contained::Handed>,
    /// The other end of its tunnel, where it has a way out.
    pub tunnel: Option<FdNumber>,
}
