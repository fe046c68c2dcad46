//! What a runner says about itself: in the registry, and afresh on the frames of the session.

use std::collections::BTreeMap;

use crate::function::Digest;
use crate::ids::{Incarnation, RunnerName};
use crate::resources::Resources;

/// Whether a runner takes calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RunnerState {
    /// It does.
    #[default]
    Ready,
    /// It finishes what it has and refuses the rest.
    Draining,
}

/// Containers of one function on one runner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warmth {
    /// Calls that could start at once.
    pub idle: u32,
    /// Calls that run.
    pub busy: u32,
    /// Calls that wait for a slot or a launch.
    pub waiting: u32,
}

/// A runner's record. Larger `sequence` of the same incarnation is newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// Stable name.
    pub runner: RunnerName,
    /// This life of it.
    pub incarnation: Incarnation,
    /// Where its gRPC server is, `http://host:port`.
    pub address: String,
    /// Failure domain, empty if unknown.
    pub zone: String,
    /// Free-form labels for placement.
    pub labels: BTreeMap<String, String>,
    /// Counts publications of this incarnation.
    pub sequence: u64,
    /// Takes calls or drains.
    pub state: RunnerState,
    /// What it has.
    pub total: Resources,
    /// What is not held by containers. Idle containers count as held: what they hold is given up on demand.
    pub free: Resources,
    /// What idle containers hold and would give up for another function.
    pub reclaimable: Resources,
    /// Calls that run.
    pub in_flight: u32,
    /// Calls that wait on it.
    pub waiting: u32,
    /// Per function version.
    pub functions: BTreeMap<Digest, Warmth>,
}
