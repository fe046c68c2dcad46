//! The runner: owns hot containers, admits calls, speaks the function formats.
//!
//! A call goes one way: [`service`] → [`pool`] → [`container`] → format, and its answer comes back the same way. Capacity
//! goes from the [`ledger`] and the pools through [`report`] to the registry and to every session.

mod app;
pub mod container;
pub mod ledger;
pub mod logs;
pub mod pool;
pub mod report;
pub mod service;

pub use app::{Config, Runner};
