//! The runner: owns hot containers, admits calls, speaks the function formats.
//!
//! A call goes one way: [`service`] → [`pool`] → [`container`] → format, and its answer comes back the same way. Capacity
//! goes from the [`ledger`] and the pools through [`report`] to the registry and to every session. What others see of all that
//! goes through [`observe`]. [`process`] is the program around it, and [`handover`] how it becomes the next one.

mod app;
pub mod container;
pub mod handover;
pub mod images;
pub mod ledger;
pub mod logs;
pub mod machine;
mod metrics;
pub mod observe;
pub mod pool;
pub mod process;
pub mod report;
pub mod secrets;
pub mod service;
pub mod settings;

pub use app::{CLOSING, Config, Runner};
pub use metrics::LISTED as METRICS;
