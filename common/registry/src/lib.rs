//! How runners and functions are found.
//!
//! A [`Registry`] holds two tables: the fleet (each runner's own record, gone when its [`Registration`] is) and the functions.
//! Readers watch an immutable snapshot of each: whoever is slow sees fewer, newer snapshots and holds up nobody. Every
//! implementation passes [`conformance`].

pub mod conformance;
pub mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use stoker_core::capacity::Capacity;
use stoker_core::function::{FunctionName, FunctionSpec};
use stoker_core::ids::RunnerName;
use tokio::sync::watch;

pub use memory::MemoryRegistry;

/// Every runner that is registered.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// The registry has been read at least once: an empty fleet is empty, and not merely unknown.
    pub known: bool,
    /// By name.
    pub runners: BTreeMap<RunnerName, Arc<Capacity>>,
}

/// Every function, with the ways to find one.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    /// The registry has been read at least once.
    pub known: bool,
    /// By name.
    pub by_name: BTreeMap<FunctionName, Arc<FunctionSpec>>,
}

impl Functions {
    /// The function that `text` names: `app/function`, or its id.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<&Arc<FunctionSpec>> {
        match FunctionName::parse(text) {
            Some(name) => self.by_name.get(&name),
            None => self.by_name.values().find(|spec| spec.name.id() == text),
        }
    }
}

/// What applying did to one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    Created,
    Updated,
    Unchanged,
}

/// Why the registry could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two functions of one app claim one path.
    #[error("trigger {path} of app {app} belongs to {owner} already")]
    TriggerTaken { app: String, path: String, owner: FunctionName },
    /// A runner of this name is registered, and it is alive.
    #[error("a runner named {0} is registered already: give this one another name")]
    RunnerNameTaken(RunnerName),
    /// The store behind it.
    #[error("{attempt}: {source}")]
    Store { attempt: String, source: std::io::Error },
}

/// Where runners and functions are known.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Makes a runner known until the registration is dropped.
    ///
    /// # Errors
    /// [`Error::RunnerNameTaken`], or the store's.
    async fn register(&self, record: Capacity) -> Result<Box<dyn Registration>, Error>;

    /// The fleet, now and as it changes.
    fn fleet(&self) -> watch::Receiver<Arc<Fleet>>;

    /// The functions, now and as they change.
    fn functions(&self) -> watch::Receiver<Arc<Functions>>;

    /// Creates or replaces functions: all or, on an error, none. The specs are valid (`FunctionSpec::check`). Once this
    /// returns, every snapshot taken from this registry has them.
    ///
    /// # Errors
    /// [`Error::TriggerTaken`], or the store's.
    async fn apply_functions(&self, specs: Vec<FunctionSpec>) -> Result<Vec<Applied>, Error>;

    /// Removes a function; says whether there was one.
    ///
    /// # Errors
    /// The store's.
    async fn delete_function(&self, name: &FunctionName) -> Result<bool, Error>;
}

/// A runner's place in the fleet. Dropping it takes the runner out.
#[async_trait]
pub trait Registration: Send + Sync {
    /// Replaces the record.
    ///
    /// # Errors
    /// The store's. The record that was published last stays.
    async fn publish(&self, record: Capacity) -> Result<(), Error>;

    /// Takes the runner out and returns when that is done.
    async fn withdraw(self: Box<Self>);
}
