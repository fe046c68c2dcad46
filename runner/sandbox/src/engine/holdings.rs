//! What a sandbox of this crate's own making holds outside its processes, given back when it is gone.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::watch;

use super::Engine;
use crate::cgroup::Leaf;
use crate::egress::Way;
use crate::handover::PassedFds;
use crate::init_sandbox::{self, Backing};
use crate::spawner::client::Parent;
use crate::{Error, Shared};

/// A leaf that is removed when it is dropped, if not before.
pub struct OwnedLeaf {
    leaf: Option<Arc<Leaf>>,
    cleared: AtomicBool,
}

impl OwnedLeaf {
    pub fn new(leaf: Option<Leaf>) -> Self {
        Self { leaf: leaf.map(Arc::new), cleared: AtomicBool::new(false) }
    }

    pub fn get(&self) -> Option<&Arc<Leaf>> {
        self.leaf.as_ref()
    }

    /// Kills what is in it and removes it. May take some milliseconds.
    fn clear(&self) {
        let Some(leaf) = &self.leaf else { return };
        if !self.cleared.swap(true, Ordering::AcqRel) {
            clear(leaf);
        }
    }
}

fn clear(leaf: &Leaf) {
    for directory in leaf.directories() {
        if let Err(error) = crate::cgroup::remove_tree(&directory) {
            tracing::warn!(directory = %directory.display(), %error, "a cgroup could not be removed");
        }
    }
}

impl Drop for OwnedLeaf {
    fn drop(&mut self) {
        let Some(leaf) = self.leaf.take().filter(|_| !*self.cleared.get_mut()) else { return };
        let clear = move || {
            leaf.kill();
            clear(&leaf);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn_blocking(clear);
            }
            Err(_) => clear(),
        }
    }
}

/// A user id that is given back when it is dropped.
pub struct Slot {
    pub(super) engine: Weak<Engine>,
    pub(super) number: u32,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        }
    }
}

/// A shared directory on the host, removed with its sandbox.
pub struct HostDirectory {
    pub(super) parent: PathBuf,
    pub(super) path: PathBuf,
    pub(super) handle: Option<OwnedFd>,
}

impl HostDirectory {
    /// The two sides' view of it. Once.
    pub fn shared(&mut self) -> Option<Shared> {
        self.handle.take().map(|directory| Shared { directory, inside: self.path.clone() })
    }
}

impl Drop for HostDirectory {
    fn drop(&mut self) {
        // What a function left in it may be much or gone; the next start collects what remains.
        std::fs::remove_dir_all(&self.parent).ok();
    }
}

/// Held for their drop.
pub struct Holdings {
    pub slot: Option<Slot>,
    pub directory: Option<HostDirectory>,
}

/// How a sandbox that the spawner made is held.
pub struct Own {
    engine: Arc<Engine>,
    held: Mutex<Option<Held>>,
    /// Its way out, where it has one, until it is gone.
    way: Mutex<Option<Way>>,
    orphaned: watch::Receiver<bool>,
    parent: Parent,
}

struct Held {
    leaf: Arc<OwnedLeaf>,
    holdings: Holdings,
}

impl Own {
    pub fn new(
        engine: &Arc<Engine>,
        leaf: OwnedLeaf,
        holdings: Holdings,
        orphaned: watch::Receiver<bool>,
        parent: Parent,
    ) -> Self {
        let held = Mutex::new(Some(Held { leaf: Arc::new(leaf), holdings }));
        Self { engine: Arc::clone(engine), held, way: Mutex::default(), orphaned, parent }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(&self) -> MutexGuard<'_, Option<Way>> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Backing for Own {
    fn leaf(&self) -> Option<Arc<Leaf>> {
        self.held().as_ref()?.leaf.get().cloned()
    }

    fn kill(&self, init: BorrowedFd<'_>) -> bool {
        let at_once = self.leaf().is_some_and(|leaf| leaf.kill());
        if self.engine.flavour.isolate {
            // Gone already is as good.
            pidfd_send_signal(init, Signal::KILL).ok();
            return true;
        }
        at_once
    }

    fn hand_over(&self, passed: &mut PassedFds) -> Result<init_sandbox::Held, Error> {
        let mut handed = init_sandbox::Held::default();
        if let Some(way) = &*self.way() {
            handed.tunnel = Some(way.hand_over(passed)?);
        }
        if let Some(Held { leaf, holdings }) = &*self.held() {
            handed.leaf = leaf.get().map(|leaf| leaf.handed_over());
            handed.slot = holdings.slot.as_ref().map(|slot| slot.number);
            handed.directory =
                holdings.directory.as_ref().map(|held| [held.parent.clone(), held.path.clone()]);
        }
        Ok(handed)
    }

    fn tunnel(&self, tunnel: OwnedFd) -> Result<(), Error> {
        let fail = |source| Error::Platform { step: "open the way out".to_owned(), source };
        let policy = self.engine.flavour.egress.clone();
        let policy = policy.ok_or_else(|| fail(std::io::ErrorKind::Unsupported.into()))?;
        *self.way() = Some(Way::serve(tunnel, policy).map_err(fail)?);
        Ok(())
    }

    async fn orphaned(&self) {
        if self.orphaned.clone().wait_for(|orphaned| *orphaned).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn lost(&self) -> bool {
        self.parent.is_gone()
    }

    async fn clear(&self) {
        // It would keep the network namespace.
        self.way().take();
        let Some(held) = self.held().take() else { return };
        let cleared = tokio::task::spawn_blocking(move || {
            held.leaf.clear();
            drop(held.holdings);
        });
        if cleared.await.is_err() {
            tracing::warn!("what a sandbox held could not be cleared away");
        }
    }
}
