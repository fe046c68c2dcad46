//! The stateless load balancer.
//!
//! A call comes in through a door ([`front`]), is let in ([`admission`]), placed on a runner ([`dispatch`], with the decisions
//! of `stoker_policy`) over a multiplexed stream ([`link`]), and its answer goes back as it comes, watched ([`observe`]) on its way. What is known of the runners
//! is in [`fleet`]; calls without a runner wait in [`queue`]. Nothing here outlives the process: another balancer of the same
//! fleet would decide the same.

mod admission;
mod app;
mod call;
mod config;
mod directory;
mod dispatch;
mod fleet;
mod front;
mod hash;
mod link;
mod observe;
mod panics;
pub mod process;
mod queue;
mod serve;
pub mod settings;

pub use app::Balancer;
pub use config::{Config, Limits};
