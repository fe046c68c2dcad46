//! Decisions without I/O: each is a function of facts, observations, the time and a seed.
//!
//! The balancer, the runner and the simulator run the same code, so that what was measured in a model is what runs. Nothing here
//! reads a clock or draws a random number of its own.

pub mod board;
pub mod eviction;
pub mod launch;
pub mod min_containers;
pub mod placement;
pub mod prewarm;
pub mod scaling;
pub mod shares;
pub mod sharing;
pub mod silence;
pub mod waiting;
