//! How an engine goes over to the next program of its process, with those of its sandboxes that do; and what is left over of the others.
//!
//! What is not taken up has ended by itself, since what held it closed. Only the names that it had outside its processes stay: its cgroups, and
//! for plain processes the directories that they shared.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::holdings::{Holdings, HostDirectory, Own, OwnedLeaf, Slot};
use super::{Engine, Flavour};
use crate::handover::{HandedDriver, HandedHolder, HandedSandbox, InheritedFds, PassedFds};
use crate::init_sandbox::{Backing as _, Held, InitSandbox, TAKE_UP};
use crate::spawner::Command;
use crate::spawner::client::{Client, Init};
use crate::state::State;
use crate::{Error, Sandbox, cgroup};

/// What the process's former program had of an engine.
#[derive(Debug, Default)]
pub struct Former {
    /// How many names of cgroups and of shared directories it gave.
    pub leaves: u64,
    pub directories: u64,
    /// Those that were taken up.
    kept: HashSet<PathBuf>,
}

fn platform(step: &str) -> impl FnOnce(io::Error) -> Error {
    let step = step.to_owned();
    move |source| Error::Platform { step, source }
}

impl Engine {
    /// See [`crate::Driver::hand_over`].
    ///
    /// # Errors
    /// [`Error::Platform`] when there is no spawner at the moment.
    pub fn hand_over(&self, passed: &mut PassedFds) -> Result<HandedDriver, Error> {
        let mut keep = || {
            Ok(HandedDriver {
                driver: self.flavour.driver.to_owned(),
                state: self.state.hand_over(passed)?,
                base: self.base.clone(),
                holder: HandedHolder::Spawner {
                    spawner: self.client.hand_over(passed)?,
                    leaves: self.next_leaf.load(Ordering::Relaxed),
                    directories: self.next_directory.load(Ordering::Relaxed),
                },
            })
        };
        keep().map_err(platform("hand the sandbox spawner over"))
    }

    /// Goes on with the engine of the process's former program.
    ///
    /// # Errors
    /// [`Error::Platform`] when it is another's, or not whole. Then all of it ends.
    pub fn take_up(
        flavour: Flavour,
        name: &str,
        state_dir: &Path,
        spawner: Command,
        handed: HandedDriver,
        inherited: &mut InheritedFds,
    ) -> Result<Arc<Self>, Error> {
        let HandedDriver { state, base, holder, .. } = handed;
        let HandedHolder::Spawner { spawner: live, leaves, directories } = holder else {
            return Err(platform("take the sandbox spawner up")(io::ErrorKind::InvalidData.into()));
        };
        let take = || {
            let state = State::take_up(state, state_dir, flavour.driver, name, inherited)?;
            let client = Client::take_up(spawner, flavour.setup(&base, &state), live, inherited)?;
            Ok((state, client))
        };
        let (state, client) = take().map_err(platform("take the sandbox spawner up"))?;
        Ok(Self::new(flavour, base, state, client, Former { leaves, directories, kept: HashSet::new() }))
    }

    /// See [`crate::Driver::take_up`].
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub fn adopt(
        self: &Arc<Self>,
        mut sandbox: HandedSandbox,
        inherited: &mut InheritedFds,
    ) -> Result<Box<dyn Sandbox>, Error> {
        let Held { leaf, slot, directory, tunnel, .. } = std::mem::take(&mut sandbox.held);
        let pidfd = inherited.take(sandbox.init).map_err(platform(TAKE_UP))?;
        let Init { pidfd, orphaned, parent } = self.client.adopt(pidfd).map_err(platform(TAKE_UP))?;
        let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        former.kept.extend(leaf.iter().flat_map(|leaf| leaf.directories()));
        former.kept.extend(directory.iter().map(|[parent, _]| parent.clone()));
        drop(former);
        let slot = slot.map(|number| {
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            Slot { engine: Arc::downgrade(self), number }
        });
        let directory = directory.map(|[parent, path]| HostDirectory { parent, path, handle: None });
        let holdings = Holdings { slot, directory };
        let backing = Arc::new(Own::new(self, OwnedLeaf::new(leaf), holdings, orphaned, parent));
        if let Some(tunnel) = tunnel {
            backing.tunnel(inherited.take(tunnel).map_err(platform(TAKE_UP))?)?;
            self.blanks.lock().unwrap_or_else(PoisonError::into_inner).reaching_wanted = true;
        }
        Ok(Box::new(InitSandbox::take_up(sandbox, backing, pidfd, inherited)?))
    }

    /// Removes what the former program's sandboxes have left that were not taken up. Once.
    pub fn remove_left_over(&self) {
        let former = std::mem::take(&mut *self.former.lock().unwrap_or_else(PoisonError::into_inner));
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let mut left = Vec::new();
        for base in self.base.directories().iter().filter(|_| former.leaves > 0) {
            left.extend(cgroup::children(base).into_iter().filter(|leaf| {
                let number = name(leaf).and_then(|name| name.parse::<u64>().ok());
                number.is_some_and(|number| number < former.leaves) && !former.kept.contains(leaf)
            }));
        }
        for leaf in left {
            // Its processes are about to end, but for those that stand still.
            cgroup::kill_all(&leaf);
            if let Err(error) = cgroup::remove_tree(&leaf) {
                tracing::warn!(directory = %leaf.display(), %error, "a cgroup could not be removed");
            }
        }
        if former.directories == 0 {
            return;
        }
        for entry in std::fs::read_dir(self.state.sockets()).into_iter().flatten().flatten() {
            let path = entry.path();
            let number = name(&path).and_then(|name| u64::from_str_radix(&name, 16).ok());
            if number.is_some_and(|number| number < former.directories) && !former.kept.contains(&path) {
                // What remains goes with the life.
                std::fs::remove_dir_all(&path).ok();
            }
        }
    }
}
