//! The process around a component: logs, signals, and the gate that a drain waits at.

pub mod gate;
pub mod lifecycle;
pub mod logs;
