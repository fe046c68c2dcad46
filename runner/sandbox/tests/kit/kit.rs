//! What the tests of this crate share: where the guest is, directories that go with a test, and ordinary users.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use stoker_sandbox::spawner;

/// An id that no account has; ordinary in every respect.
pub const ORDINARY: u32 = 64_242;

pub fn guest() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_stoker-spawner");
    std::env::var_os("STOKER_TEST_GUEST").map_or_else(|| PathBuf::from(built), PathBuf::from)
}

pub fn command() -> spawner::Command {
    spawner::Command { program: guest(), args: Vec::new() }
}

/// Longer than anything here takes on a slow and busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a state, with a limit.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        std::thread::yield_now();
    }
}

/// A state directory that goes with the test.
pub struct State(pub PathBuf);

impl State {
    pub fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("stoker-sandbox-{}-{name}", std::process::id())))
    }
}

impl Drop for State {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// This test program and the guest, where an ordinary user can run them.
pub fn for_everybody(state: &State) -> (PathBuf, PathBuf) {
    std::fs::create_dir_all(&state.0).unwrap();
    std::fs::set_permissions(&state.0, PermissionsExt::from_mode(0o755)).unwrap();
    let copy = |from: PathBuf, name: &str| {
        let to = state.0.join(name);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
        to
    };
    (copy(std::env::current_exe().unwrap(), "tests"), copy(guest(), "stoker-spawner"))
}

pub fn we_are_root() -> bool {
    rustix::process::geteuid().is_root()
}
