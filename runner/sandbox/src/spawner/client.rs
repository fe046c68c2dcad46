//! The runner's side of the spawner: has inits cloned, and notices that their spawner is gone.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::ARGUMENT;
use crate::Error;
use crate::supervisor::client::Live;
use crate::supervisor::{self, Received, Role};
use crate::wire::{FromSpawner, Setup, ToSpawner};

/// A handle on the spawner of one driver.
pub type Client = supervisor::client::Client<Spawner>;

/// What a spawner is told and says.
pub struct Spawner;

impl Role for Spawner {
    const NAME: &'static str = "sandbox spawner";
    const ARGUMENT: &'static str = ARGUMENT;
    const PROCESS: &'static CStr = c"stoker-spawner";
    const LOST: &'static str = "its sandboxes are gone, too";
    type Setup = Setup;
    type Order = ToSpawner;
    type Message = FromSpawner;
    type Answer = io::Result<()>;
    const READY: FromSpawner = FromSpawner::Ready;

    fn setup(order: ToSpawner) -> Option<Setup> {
        match order {
            ToSpawner::Setup(setup) => Some(setup),
            ToSpawner::Clone { .. } => None,
        }
    }

    fn lock(setup: &Setup) -> &Path {
        &setup.lock
    }

    fn remove(setup: &Setup) -> &[PathBuf] {
        &setup.remove
    }
}

impl From<Setup> for ToSpawner {
    fn from(setup: Setup) -> Self {
        Self::Setup(setup)
    }
}

impl From<FromSpawner> for Received<io::Result<()>> {
    fn from(word: FromSpawner) -> Self {
        match word {
            FromSpawner::Ready => Self::Ready,
            FromSpawner::Cloned { sequence, .. } => Self::Answer { sequence, answer: Ok(()) },
            FromSpawner::Failed { sequence, errno } => {
                Self::Answer { sequence, answer: Err(io::Error::from_raw_os_error(errno)) }
            }
        }
    }
}

/// A cloned init.
pub struct Init {
    pub pidfd: OwnedFd,
    /// Turns true when the spawner that made it is gone.
    pub orphaned: watch::Receiver<bool>,
    pub parent: Parent,
}

/// Tells whether the spawner of an init is gone, at once and for certain.
#[derive(Clone)]
pub struct Parent(Weak<Live<Spawner>>);

impl Parent {
    pub fn is_gone(&self) -> bool {
        self.0.upgrade().is_none_or(|spawner| spawner.is_gone())
    }
}

impl Client {
    /// Has an init cloned that listens on `control`.
    ///
    /// # Errors
    /// [`Error::Platform`] when the clone fails or the spawner is gone.
    pub async fn clone_init(&self, control: OwnedFd, cgroup: Option<BorrowedFd<'_>>) -> Result<Init, Error> {
        let live = self.live().await?;
        let descriptors: Vec<_> = [control.as_fd()].into_iter().chain(cgroup).collect();
        let order = |sequence| ToSpawner::Clone { sequence, cgroup: cgroup.is_some() };
        // Given up halfway, its control stream is closed, and the init ends.
        let (cloned, pidfd) = live.ask(order, &descriptors).await?;
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "its answer has no process");
        let pidfd = cloned.and_then(|()| pidfd.ok_or_else(missing));
        let pidfd =
            pidfd.map_err(|source| Error::Platform { step: "clone the sandbox".to_owned(), source })?;
        Ok(init(&live, pidfd))
    }

    /// An init that it cloned for the process's former program.
    ///
    /// # Errors
    /// When the spawner is gone by now.
    pub fn adopt(&self, pidfd: OwnedFd) -> io::Result<Init> {
        Ok(init(&self.current()?, pidfd))
    }
}

fn init(spawner: &Arc<Live<Spawner>>, pidfd: OwnedFd) -> Init {
    Init { pidfd, orphaned: spawner.gone(), parent: Parent(Arc::downgrade(spawner)) }
}
