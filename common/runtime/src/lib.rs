//! The process around a component: settings, logs, telemetry, metrics, the admin port, and its orderly end.

pub mod admin;
pub mod audit;
pub mod auth;
pub mod config;
pub mod cork;
pub mod gate;
pub mod lifecycle;
pub mod logs;
pub mod metrics;
pub mod net;
pub mod reload;
pub mod server;
pub mod telemetry;
pub mod tls;
pub mod yaml;
