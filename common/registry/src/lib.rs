//! How runners and functions are found.
//!
//! A [`Registry`] holds two tables: the fleet (each runner's own record, gone when its [`Registration`] is) and the functions with their
//! [`revisions`]. Readers watch an immutable snapshot of each: whoever is slow sees fewer, newer snapshots and holds up nobody. Every
//! implementation passes [`conformance`].

pub mod apps;
pub mod conformance;
pub mod etcd;
pub mod memory;
pub mod places;
pub mod revisions;
mod stored;
#[cfg(feature = "testing")]
pub mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use stoker_core::capacity::Capacity;
use stoker_core::error::{Code, Retry};
use stoker_core::function::{FunctionName, FunctionSpec, Trigger};
use stoker_core::ids::RunnerName;
use tokio::sync::watch;

use apps::{App, Apps};
pub use etcd::EtcdRegistry;
pub use memory::MemoryRegistry;
pub use places::{Claim, Claims, Places};
use revisions::{Change, Outcome, Proposal, Refusal, Release, Revision};

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
    /// The newest spec of each, by name.
    pub by_name: BTreeMap<FunctionName, Arc<FunctionSpec>>,
    /// What else is known of each.
    pub releases: BTreeMap<FunctionName, Arc<Release>>,
    /// Revisions before the newest, by number.
    pub older: BTreeMap<FunctionName, Arc<BTreeMap<u64, Arc<Revision>>>>,
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

/// Two functions of one app must not claim the same requests, by any revision that takes calls.
fn check_triggers(functions: &Functions) -> Result<(), Error> {
    // By app, and by what the names of parameters are left out of, so that few are held against each other.
    let mut claims: BTreeMap<(&str, String), Vec<(&Trigger, &FunctionName)>> = BTreeMap::new();
    for spec in functions.by_name.keys().flat_map(|name| functions.live(name)) {
        for trigger in &spec.triggers {
            let claimed = claims.entry((spec.name.app(), trigger.shape())).or_default();
            let conflict =
                claimed.iter().find(|(other, owner)| **owner != spec.name && other.conflicts(trigger));
            if let Some((other, owner)) = conflict {
                return Err(Error::TriggerTaken {
                    app: spec.name.app().to_owned(),
                    trigger: trigger.to_string(),
                    other: other.to_string(),
                    owner: (*owner).clone(),
                });
            }
            claimed.push((trigger, &spec.name));
        }
    }
    Ok(())
}

/// How the trigger is written that was there first, where that is another way.
fn as_other(trigger: &str, other: &str) -> String {
    match trigger == other {
        true => String::new(),
        false => format!(", as {other}: neither is more special"),
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
    /// Two functions of one app claim the same requests.
    #[error("trigger {trigger} of app {app} belongs to {owner} already{}", as_other(trigger, other))]
    TriggerTaken { app: String, trigger: String, other: String, owner: FunctionName },
    /// A change of revisions is not possible as things are.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An app cannot be written so.
    #[error(transparent)]
    App(#[from] apps::Refusal),
    /// A runner of this name is registered at another address, and it is alive: its lease is renewed.
    #[error(
        "a runner named {name} is registered already, at {address}, and is alive: stop that one, or give this one another name"
    )]
    RunnerNameTaken { name: RunnerName, address: String },
    /// More at once than the store takes.
    #[error("{attempt}: {reason}: this is more than fits into one change, make it in several")]
    TooLarge { attempt: String, reason: String },
    /// The store does not answer. What was asked for may have been done.
    #[error("{attempt}: {reason}")]
    Unavailable { attempt: String, reason: String },
    /// The store behind it. Not named `source`: who writes an error with its sources would write what is in the sentence once more.
    #[error("{attempt}: {cause}")]
    Store { attempt: String, cause: std::io::Error },
    /// What the registry was told about its store.
    #[error("{0}")]
    Config(String),
}

/// For those who asked by a call: whose fault it is, and whether to ask again.
impl From<&Error> for stoker_core::Error {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Refused(refusal) if refusal.is_missing() => Code::NotFound,
            Error::TriggerTaken { .. }
            | Error::RunnerNameTaken { .. }
            | Error::Refused(_)
            | Error::App(_) => Code::InvalidRequest,
            Error::TooLarge { .. } => Code::RequestTooLarge,
            Error::Unavailable { .. } => Code::Unavailable,
            Error::Store { .. } | Error::Config(_) => Code::Internal,
        };
        let says = stoker_core::Error::new(code, error.to_string());
        match error {
            // Each of these changes can be made twice.
            Error::Unavailable { .. } => says.retry(Retry::After(Duration::from_secs(1))),
            _ => says,
        }
    }
}

/// Where runners and functions are known.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Makes a runner known until the registration is dropped. A record of the same name and address is that of an earlier life,
    /// since an address serves one process: it is replaced. A store that does not answer is no error: the runner is made known
    /// when it does.
    ///
    /// # Errors
    /// [`Error::RunnerNameTaken`], or the store's.
    async fn register(&self, record: Capacity) -> Result<Box<dyn Registration>, Error>;

    /// The fleet, now and as it changes. Is called on a runtime: the first call may start a task that follows a store.
    fn fleet(&self) -> watch::Receiver<Arc<Fleet>>;

    /// The functions, now and as they change. Is called on a runtime, like [`Registry::fleet`].
    fn functions(&self) -> watch::Receiver<Arc<Functions>>;

    /// Creates functions, or makes new revisions of them: all or, on an error, none. The specs are valid (`FunctionSpec::check`).
    /// Once this returns, every snapshot taken from this registry has them.
    ///
    /// # Errors
    /// [`Error::TriggerTaken`], [`Error::Refused`], or the store's.
    async fn apply(&self, proposals: Vec<Proposal>) -> Result<Vec<Outcome>, Error>;

    /// The same for specs alone.
    ///
    /// # Errors
    /// [`Error::TriggerTaken`], or the store's.
    async fn apply_functions(&self, specs: Vec<FunctionSpec>) -> Result<Vec<Applied>, Error> {
        let outcomes = self.apply(specs.into_iter().map(Proposal::from).collect()).await?;
        Ok(outcomes.into_iter().map(|outcome| outcome.applied).collect())
    }

    /// Changes what is known of a function besides its spec. Once this returns, every snapshot has it.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::TriggerTaken`], or the store's.
    async fn change_function(&self, name: &FunctionName, change: Change) -> Result<(), Error>;

    /// Removes a function with all its revisions; says whether there was one.
    ///
    /// # Errors
    /// The store's.
    async fn delete_function(&self, name: &FunctionName) -> Result<bool, Error>;

    /// Places of functions, shared with everybody else who holds some, under a name that nobody else has. Is called on a runtime: it may start
    /// a task. Dropping it gives all of them back.
    fn places(&self, holder: &str) -> Arc<dyn Places>;

    /// The records of apps, now and as they change. Is called on a runtime, like [`Registry::fleet`].
    fn apps(&self) -> watch::Receiver<Arc<Apps>>;

    /// Writes the record of an app: a new one if [`App::changes`] is 0, else over the one that has as many. Once this returns, every
    /// snapshot taken from this registry has it.
    ///
    /// # Errors
    /// [`Error::App`], or the store's.
    async fn put_app(&self, name: &str, app: App) -> Result<(), Error>;

    /// Removes the record of an app, not its functions; says whether there was one.
    ///
    /// # Errors
    /// The store's.
    async fn delete_app(&self, name: &str) -> Result<bool, Error>;
}

/// A runner's place in the fleet. Dropping it takes the runner out.
#[async_trait]
pub trait Registration: Send + Sync {
    /// Replaces the record. Waits for no store: what is published while one is away or slow is written when it answers, the newest
    /// record only.
    ///
    /// # Errors
    /// The store's. The record that was published last stays.
    async fn publish(&self, record: Capacity) -> Result<(), Error>;

    /// Whether the runner has been made known: false as long as the store has never answered, true from then on.
    fn known(&self) -> watch::Receiver<bool>;

    /// Takes the runner out and returns when that is done.
    async fn withdraw(self: Box<Self>);
}
