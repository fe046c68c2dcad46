//! The stateless load balancer.
//!
//! A call comes in through a door ([`front`]), is somebody's ([`auth`]), is let in ([`admission`]), placed on a runner ([`dispatch`], with the decisions
//! of `stoker_policy`) over a multiplexed stream ([`link`]), and its answer goes back as it comes, watched ([`observe`]) on its way. What is known of the runners
//! is in [`fleet`]; calls without a runner wait in [`queue`]. Nothing here outlives the process: another balancer of the same
//! fleet would decide the same.

mod activity;
mod addresses;
mod admission;
mod app;
mod auth;
mod call;
mod config;
mod directory;
mod dispatch;
mod explain;
mod fleet;
mod front;
mod hash;
mod later;
mod link;
mod metrics;
mod min_containers;
mod observe;
mod page;
mod panics;
mod places;
pub mod process;
mod queue;
mod reoffer;
mod scaling;
mod serve;
pub mod settings;

pub use app::Balancer;
pub use config::{CallQueue, Config, LambdaCode, LambdaConfig, LambdaRuntimes, Limits};
pub use metrics::LISTED as METRICS;
