//! A fleet on paper: balancers and runners that decide with the code that the real ones decide with, driven by traces of
//! calls, in no time.
//!
//! What is simulated is everything that is not a decision: the way of a frame, how long a launch and a call take, when a report
//! comes. The decisions are [`stoker_policy`]'s, so that a change of it can be judged before it runs, and so that an operator can ask
//! what another node or half the memory would do. Runs are seeded: the same input gives the same output, byte for byte.
//!
//! Not simulated: contention for a core's caches, pulls of images, bandwidth, containers that take more than one call, and faults of
//! functions.

mod engine;
mod measure;
pub mod plot;
mod random;
mod scenario;
pub mod trace;
mod what_if;

pub use engine::run;
pub use measure::{Moment, QUANTILES, Report};
pub use scenario::{Change, Kind, MOST_BALANCERS, MOST_RUNNERS, Placer, RunnerPolicy, Scenario};
pub use trace::Trace;
pub use what_if::WhatIf;
