//! A runner that is killed: what its next life finds, and leaves behind.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use stoker_core::RunnerName;
use stoker_core::function::FunctionSpec;
use stoker_runner::Config;
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, LIMIT, python, shell};
use crate::left::{alive, cgroups};

/// An id that no account has; ordinary in every respect.
const ORDINARY: u32 = 64_243;

/// Functions of a test that can be told from those of others.
pub fn marked(mut spec: FunctionSpec, mark: &str) -> FunctionSpec {
    spec.command.push(mark.to_owned());
    spec
}

fn config(choice: Choice, name: &str, state: &Path) -> Config {
    let name = RunnerName::new(name).unwrap();
    Config { name, ..kit::config(choice, 512, 8, state) }
}

/// Not a test: the runner that others start, to kill it. It has a container that runs a call, one that is frozen, one that is
/// prepared and one that is just starting.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests that kill it"]
async fn helper() {
    let Ok(name) = std::env::var("STOKER_TEST_NAME") else { return };
    let state = PathBuf::from(std::env::var_os("STOKER_TEST_STATE").unwrap());
    let choice = std::env::var("STOKER_TEST_DRIVER").unwrap().parse().unwrap();
    let fleet = kit::start(config(choice, &name, &state)).await;
    let mut session = fleet.session().await;
    let (hot, once) = (marked(python(""), &name), marked(shell("cat"), &name));
    for (spec, todo) in [(&hot, "echo"), (&once, "")] {
        let call = session.offer(spec, todo, b"", false, AMPLE).await;
        session.started(call).await;
        // The credit that comes with the start.
        session.frame().await;
    }
    session.until("the next is prepared", |c| kit::warmth(c, &once).idle > 0).await;
    let mut other = hot.clone();
    other.env.insert("OTHER".into(), "1".into());
    session.call(&other, "echo", b"x").await;
    session.offer(&marked(python("never"), &name), "", b"", true, AMPLE).await;
    session.frame().await;
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files: Vec<_> =
        limits.lines().find(|l| l.starts_with("Max open files")).unwrap().split_whitespace().collect();
    println!("\nready {} {}", files[3], files[4]);
    std::future::pending::<()>().await;
    drop((session, fleet));
}

/// A runner in a process of its own, with a low limit of open files; and what it said.
fn helper_process(driver: &str, name: &str, state: &Path) -> (Child, String) {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "ulimit -Sn 256 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "killed::helper", "--ignored", "--nocapture"])
        .env("STOKER_TEST_STATE", state)
        .env("STOKER_TEST_NAME", name)
        .env("STOKER_TEST_DRIVER", driver)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
    (child, said.expect("the helper came up"))
}

/// Directories that a runner's plain processes share with it, and sockets in them, by the record of its lives.
fn shared(state: &Path, name: &str) -> Vec<PathBuf> {
    let lives = state.join("process").join(name).join("lives");
    let records = std::fs::read_dir(lives).into_iter().flatten().flatten();
    let texts = records.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let words: Vec<_> = texts.flat_map(|t| t.split('"').map(str::to_owned).collect::<Vec<_>>()).collect();
    words.into_iter().filter(|w| w.starts_with('/') && !w.contains("/cgroup")).map(PathBuf::from).collect()
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        files(&entry.path(), found);
        found.push(entry.path());
    }
}

/// Lines of a file of the kernel's that have one of these words.
fn lines_with(file: &str, words: &[&Path]) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let has = |line: &&str| words.iter().any(|word| line.contains(word.to_str().unwrap()));
    text.lines().filter(has).map(str::to_owned).collect()
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        std::thread::yield_now();
    }
}

/// Kills a runner that is busy, and starts its next life at once.
async fn a_killed_runner_leaves_nothing(driver: &str, state: &Path) {
    let name = format!("k{}-{driver}", std::process::id());
    let (mut child, said) = helper_process(driver, &name, state);
    let (soft, hard) = said.split_once(' ').unwrap();
    assert_eq!(soft, hard, "the limit of open files is raised");
    let shared = shared(state, &name);
    assert!(driver == "native" || shared.iter().any(|directory| directory.exists()), "{shared:?}");
    assert!(alive(&name) >= 3, "{} alive", alive(&name));
    child.kill().unwrap();
    child.wait().unwrap();

    let fleet = kit::start(config(driver.parse().unwrap(), &name, state)).await;
    // Whatever the old life had is gone before the new one serves.
    assert_eq!(alive(&name), 0, "processes");
    for directory in &shared {
        assert!(!directory.exists(), "{} stays", directory.display());
    }
    assert!(cgroups(&name).len() <= cgroups_of_one_life(), "{:?}", cgroups(&name));
    let answer = fleet.session().await.call(&marked(python(""), &name), "echo", b"again").await;
    assert_eq!(answer.body, b"again", "{answer:?}");
    fleet.end().await;

    let words: Vec<&Path> = shared.iter().map(PathBuf::as_path).chain([state]).collect();
    until("processes are gone", || alive(&name) == 0);
    until("cgroups are gone", || cgroups(&name).is_empty());
    until("mounts are gone", || lines_with("/proc/self/mountinfo", &words).is_empty());
    until("sockets are gone", || lines_with("/proc/net/unix", &words).is_empty());
    let left = || {
        let mut left = Vec::new();
        files(state, &mut left);
        left.retain(|path| path.is_file() && path.extension().is_none_or(|e| e != "lock"));
        left
    };
    until("notes are gone", || left().is_empty());
}

/// Directories that one life makes: one in each hierarchy.
fn cgroups_of_one_life() -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(" - cgroup")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn native() {
    let state = tempfile::tempdir().unwrap();
    a_killed_runner_leaves_nothing("native", state.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process() {
    let state = tempfile::tempdir().unwrap();
    a_killed_runner_leaves_nothing("process", state.path()).await;
}

/// No socket could be bound below such a state directory: its functions work all the same, and as little stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn process_with_a_long_state_directory() {
    let state = tempfile::tempdir().unwrap();
    let long = state.path().join("d".repeat(150));
    std::fs::create_dir(&long).unwrap();
    a_killed_runner_leaves_nothing("process", &long).await;
}

/// The same, and a few calls, as an ordinary user.
#[test]
fn rootless() {
    if !rustix::process::geteuid().is_root() {
        println!("left out: already an ordinary user");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = |from: PathBuf, name: &str| {
        let to = place.path().join(name);
        std::fs::copy(from, &to).unwrap();
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755)).unwrap();
        to
    };
    let spawner = copy(kit::spawner().program, "stoker-spawner");
    let tests = copy(std::env::current_exe().unwrap(), "tests");
    let status = Command::new(tests)
        .args(["--nocapture", "--test-threads", "1", "--exact"])
        .args(["killed::native", "killed::process", "killed::process_with_a_long_state_directory"])
        .args(["calls::a_warm_call_is_one_frame_each_way", "pools::a_frozen_container_answers::auto"])
        .env("STOKER_TEST_SPAWNER", spawner)
        .env("HOME", "/nonexistent")
        .env_remove("XDG_RUNTIME_DIR")
        .current_dir("/")
        .uid(ORDINARY)
        .gid(ORDINARY)
        .status()
        .unwrap();
    assert!(status.success(), "as user {ORDINARY}: {status}");
}
