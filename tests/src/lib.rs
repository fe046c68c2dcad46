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
pub mod registry;
pub mod schema;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A hang is a failure: nothing here waits longer than this for anything, but where a program [is patient](be_patient).
pub const LIMIT: Duration = Duration::from_secs(30);

static PATIENCE: AtomicU32 = AtomicU32::new(1);

/// From now on this program waits so many times longer before it takes anything for a hang: one that runs for long beside other work may be
/// without CPU for longer than a test ever is.
pub fn be_patient(times: u32) {
    PATIENCE.store(times, Ordering::Relaxed);
}

/// A time after which something counts as a hang, with the patience of this program.
#[must_use]
pub fn patiently(limit: Duration) -> Duration {
    limit * PATIENCE.load(Ordering::Relaxed)
}

/// What it waits for, or the failure of the test that says what did not come.
pub async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    let limit = patiently(LIMIT);
    match tokio::time::timeout(limit, wait).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {limit:?}"),
    }
}

/// A static busybox: a shell, and all that a script needs, in a root where there is nothing else. `None`, and it is said, where `scripts/test` could not
/// fetch one.
#[must_use]
pub fn busybox() -> Option<PathBuf> {
    let kits = std::env::var_os("STOKER_TEST_KITS").map(PathBuf::from);
    let busybox = kits.map(|kits| kits.join("busybox/busybox")).filter(|path| path.is_file());
    if busybox.is_none() {
        println!("left out: STOKER_TEST_KITS has no busybox");
    }
    busybox
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
