//! What the tests of this crate share: the guest, what of it is alive, directories that go with a test, and ordinary users.

mod left;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use stoker_sandbox::{Driver, Error, Network, Root, SIGTERM, Sandbox, Spec, spawner};

pub use self::left::{alive, cgroups};

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
pub const LIMIT: Duration = Duration::from_secs(120);

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

/// Runs tests of this program, which `words` choose, once more as an ordinary user who has no home, with these variables besides; fails where one of them does.
pub fn pass_as_ordinary(state: &State, words: &[&str], variables: &[(&str, &OsStr)]) {
    let (tests, guest) = for_everybody(state);
    let mut again = Command::new(tests);
    again.arg("--nocapture").args(words);
    again.env("STOKER_TEST_GUEST", guest).env("HOME", "/nonexistent").envs(variables.iter().copied());
    let status = again.current_dir("/").uid(ORDINARY).gid(ORDINARY).status().unwrap();
    assert!(status.success(), "as user {ORDINARY}: {status}");
}

pub fn we_are_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The guest with these words, and little of everything.
pub fn spec(id: &str, words: &[&str]) -> Spec {
    let mut command = vec![guest().to_string_lossy().into_owned(), "guest".to_owned()];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    Spec {
        id: id.to_owned(),
        root: Root::Host,
        writable_root: false,
        command,
        env: Vec::new(),
        user: None,
        groups: Vec::new(),
        workdir: PathBuf::from("/"),
        memory: 64 << 20,
        cpu_millis: 0,
        pids: 32,
        tmp_size: 1 << 20,
        open_files: 64,
        network: Network::None,
        shared: Some(PathBuf::from("/tmp/shared")),
        opt: None,
        stop_signal: SIGTERM,
        stays: false,
    }
}

/// A guest that has said that it is ready.
pub async fn started(driver: &dyn Driver, id: &str, words: &[&str]) -> Box<dyn Sandbox> {
    let sandbox = driver.create(spec(id, words)).await.unwrap();
    let stdio = sandbox.start(Vec::new()).await.unwrap();
    // The pipes may close: the guest says one word before it waits.
    let line = tokio::task::spawn_blocking(move || {
        rustix::io::ioctl_fionbio(&stdio.stdout, false).unwrap();
        let mut line = String::new();
        BufReader::new(std::fs::File::from(stdio.stdout)).read_line(&mut line).map(|_| line)
    });
    assert_eq!(line.await.unwrap().unwrap().trim(), "ready");
    sandbox
}

/// Has another program be the init of all containers that a driver's life makes from now on: it says something, and ends.
pub fn spoil_the_init(directory: &Path) {
    let lives = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let mut lives = lives.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("life-"));
    let program = lives.next().unwrap().join("program/stoker");
    // It may be our own program by another name.
    std::fs::remove_file(&program).unwrap();
    std::fs::copy("/bin/ls", program).unwrap();
}

/// What is told of an init that was [spoiled](spoil_the_init): whose fault it is, how it ended, and what it said itself.
pub fn tells_of_the_spoiled_init(error: &Error) {
    let text = error.to_string();
    assert!(matches!(error, Error::Platform { .. }), "{text}");
    assert!(text.contains("it ended with status 2 before it came to the runner"), "{text}");
    assert!(text.contains("cannot access '__stoker-contained'"), "{text}");
}

pub fn signal(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}
