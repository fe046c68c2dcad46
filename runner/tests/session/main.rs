//! A runner, driven over a session as a balancer drives it, with real functions in a real sandbox.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod calls;
#[path = "../../sandbox/tests/kit/daemon.rs"]
mod daemon;
mod draining;
mod killed;
mod kit;
mod lambda;
mod launches;
#[path = "../../sandbox/tests/kit/left.rs"]
mod left;
mod memory;
mod pools;
mod process;
mod secrets;
mod stdio;
mod upgrade;
