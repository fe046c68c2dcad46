//! The process around a component: settings, logs, telemetry, metrics, the admin port, and its orderly end.

pub mod admin;
pub mod config;
pub mod gate;
pub mod lifecycle;
pub mod logs;
pub mod metrics;
pub mod server;
pub mod telemetry;
