//! What spans and lines of logs say of a container: written when it is made, and copied for each of its calls.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use stoker_core::function::{FunctionSpec, Root};
use stoker_core::{ContainerId, TraceContext};
use stoker_runtime::telemetry::{Facts, Labels, names};

/// See the module.
#[derive(Debug)]
pub struct Seen {
    /// The function, so that service graphs draw it as a node.
    peer: String,
    /// What is said of its launch.
    facts: Facts,
    /// The part of that which is said of each of its calls, too.
    own: Facts,
    /// What is said of an execution in it, with a pointer to its launch: there once that has been told.
    execution: OnceLock<Facts>,
    /// When it was frozen, until it is thawed.
    frozen: Mutex<Option<Instant>>,
}

impl Seen {
    /// Of a container of this function, by this driver of sandboxes.
    pub fn new(id: &ContainerId, spec: &FunctionSpec, driver: &str) -> Self {
        let name = spec.name.as_str();
        let own = Facts::default()
            .with(names::FAAS_NAME, name)
            .with(names::FAAS_INSTANCE, id.as_str())
            .with(names::CONTAINER_ID, id.as_str());
        let facts = own
            .clone()
            .with(names::FAAS_MAX_MEMORY, i64::try_from(spec.memory).unwrap_or(i64::MAX))
            .with(names::CONTAINER_RUNTIME, driver);
        let facts = match &spec.root {
            Root::Image(image) => {
                let name = format!("{}/{}", image.registry(), image.repository());
                facts.with(names::CONTAINER_IMAGE, name)
            }
            _ => facts,
        };
        Self { peer: name.to_owned(), facts, own, execution: OnceLock::new(), frozen: Mutex::default() }
    }

    /// What a launch says.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What an execution says.
    pub fn of_execution(&self) -> &Facts {
        self.execution.get().unwrap_or(&self.own)
    }

    /// Whether its launch has been told.
    pub(super) fn is_told(&self) -> bool {
        self.execution.get().is_some()
    }

    /// Its launch has been told, by this span, if that is sent.
    pub(super) fn told(&self, launch: Option<TraceContext>) {
        // By its old name too, for those that do not know the new one.
        let facts = self.own.clone().with(names::SERVICE_PEER, self.peer.as_str());
        let facts = facts.with(names::PEER_SERVICE, self.peer.as_str()).linked(&launch.unwrap_or_default());
        // Told twice, the first counts.
        self.execution.set(facts).ok();
    }

    /// The same for one that was launched in a former life: nothing is to be told of that.
    #[must_use]
    pub fn taken_up(self) -> Self {
        self.told(None);
        self
    }

    /// It stands still from now on.
    pub fn froze(&self) {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Since when it stood still, told once.
    pub(super) fn thawed(&self) -> Option<Instant> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What lines of a container's log say.
pub fn labels(id: &ContainerId, function: &str) -> Labels {
    Labels::default()
        .with(names::FAAS_NAME, function)
        .with(names::FAAS_INSTANCE, id.as_str())
        .with(names::CONTAINER_ID, id.as_str())
}
