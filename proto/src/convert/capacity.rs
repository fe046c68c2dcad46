//! What runners say of themselves.

use stoker_core::capacity::{Capacity, RunnerState, Warmth};
use stoker_core::function::Digest;
use stoker_core::ids::{Incarnation, RunnerName};
use stoker_core::resources::Resources;

use crate::v1;

/// What is wrong with a message, for its sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong(pub String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn wrong(text: impl Into<String>) -> Wrong {
    Wrong(text.into())
}

fn resources(r: Option<v1::Resources>) -> Resources {
    r.map(|r| Resources { memory: r.memory, cpu_millis: r.cpu_millis, slots: r.slots }).unwrap_or_default()
}

fn to_resources(r: Resources) -> Option<v1::Resources> {
    Some(v1::Resources { memory: r.memory, cpu_millis: r.cpu_millis, slots: r.slots })
}

/// How warm a function is.
///
/// # Errors
/// A digest that is none.
pub fn warmth(w: &v1::Warmth) -> Result<(Digest, Warmth), Wrong> {
    let digest = Digest::from_slice(&w.digest).ok_or_else(|| wrong("a digest is not 32 bytes"))?;
    Ok((digest, Warmth { idle: w.idle, busy: w.busy, waiting: w.waiting }))
}

/// How warm a function is, for the wire.
#[must_use]
pub fn to_warmth(digest: &Digest, w: Warmth) -> v1::Warmth {
    v1::Warmth { digest: digest.0.to_vec().into(), idle: w.idle, busy: w.busy, waiting: w.waiting }
}

/// A runner's record.
///
/// # Errors
/// A name or a digest that is none.
pub fn capacity(c: v1::Capacity) -> Result<Capacity, Wrong> {
    Ok(Capacity {
        runner: RunnerName::new(&c.runner)
            .ok_or_else(|| wrong(format!("{:?} is not a runner's name", c.runner)))?,
        incarnation: Incarnation(c.incarnation),
        address: c.address,
        zone: c.zone,
        labels: c.labels.into_iter().collect(),
        sequence: c.sequence,
        state: match v1::RunnerState::try_from(c.state) {
            Ok(v1::RunnerState::Draining) => RunnerState::Draining,
            _ => RunnerState::Ready,
        },
        total: resources(c.total),
        free: resources(c.free),
        reclaimable: resources(c.reclaimable),
        in_flight: c.in_flight,
        waiting: c.waiting,
        functions: c.functions.iter().map(warmth).collect::<Result<_, _>>()?,
    })
}

/// A runner's record for the wire.
#[must_use]
pub fn to_capacity(c: &Capacity) -> v1::Capacity {
    v1::Capacity {
        runner: c.runner.as_str().to_owned(),
        incarnation: c.incarnation.0,
        address: c.address.clone(),
        zone: c.zone.clone(),
        labels: c.labels.clone().into_iter().collect(),
        sequence: c.sequence,
        state: match c.state {
            RunnerState::Ready => v1::RunnerState::Ready,
            RunnerState::Draining => v1::RunnerState::Draining,
        }
        .into(),
        total: to_resources(c.total),
        free: to_resources(c.free),
        reclaimable: to_resources(c.reclaimable),
        in_flight: c.in_flight,
        waiting: c.waiting,
        functions: c.functions.iter().map(|(digest, w)| to_warmth(digest, *w)).collect(),
    }
}
