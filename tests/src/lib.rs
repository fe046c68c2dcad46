//! What tests across components share: fleets with real parts, functions that misbehave on demand, clients that do so as well,
//! and the check that nothing is left behind.

#![expect(clippy::unwrap_used, reason = "a test kit: whatever goes wrong here is the failure of the test")]

pub mod calls;
pub mod cluster;
pub mod collector;
pub mod dashboards;
pub mod deploy;
pub mod disk;
pub mod fleet;
pub mod functions;
pub mod left;
pub mod member;
pub mod middlebox;
pub mod net;
pub mod prometheus;
pub mod proxy;
pub mod raw;
pub mod schema;

use std::path::PathBuf;
use std::time::Duration;

/// A hang is a failure: nothing here waits longer than this for anything.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What it waits for, or the failure of the test that says what did not come.
pub async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, wait).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {LIMIT:?}"),
    }
}

/// A program of this workspace, built beside the running test.
///
/// # Panics
/// When it was not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let directory = test.ancestors().skip(1).find(|directory| directory.join(name).is_file());
    match directory {
        Some(directory) => directory.join(name),
        None => panic!("{name} was not built beside {}: run scripts/test", test.display()),
    }
}
