//! The `docker` driver on real daemons, against the suite and against the deaths that no suite can stage from inside.
//!
//! Every test has a daemon of its own, so it needs root and the program `dockerd`. Where that is missing a test fails and says what to
//! install; with `STOKER_WITHOUT_DOCKER` set, whoever runs the tests has said that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/daemon.rs"]
mod daemon;
#[path = "kit/kit.rs"]
#[expect(dead_code, unused_imports, reason = "not every test uses all of it")]
mod kit;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stoker_sandbox::conformance::{self, Subject, escapes};
use stoker_sandbox::docker::{Config, Docker};
use stoker_sandbox::select::{self, Choice};
use stoker_sandbox::{Driver, Error};

use daemon::{Daemon, Kind};
use kit::{
    State, alive, command, guest, signal, spec, spoil_the_init, started, tells_of_the_spoiled_init, until,
};

async fn docker(socket: PathBuf, name: &str, state: &Path) -> Result<Docker, Error> {
    Docker::new(Config { spawner: command(), socket, ..Config::new(name, state) }).await
}

async fn conforms(kind: Kind) {
    let Some(daemon) = Daemon::start(kind, "conform") else { return };
    let state = State::new(&format!("{kind:?}"));
    let driver = docker(daemon.socket(), "conform", &state.0).await.unwrap();
    let report = conformance::run(Subject { driver: &driver, guest: &guest() }).await;
    println!("{}: {}\n{report}", driver.describe().name, driver.describe().why);
    driver.close().await;
    let left = daemon.containers();
    drop(daemon);
    assert!(report.failed.is_empty(), "{} case(s) failed:\n{report}", report.failed.len());
    assert_eq!(left, 0, "containers are left");
    assert!(!state.0.exists(), "something was left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_conforms() {
    conforms(Kind::Docker).await;
}

/// By hand, where `podman` is there: docs/drivers.md says what it does not do.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "some cases do not pass: see docs/drivers.md"]
async fn podman_conforms() {
    conforms(Kind::Podman).await;
}

/// Every line of the threat model, tried.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out() {
    let Some(daemon) = Daemon::start(Kind::Docker, "attack") else { return };
    let state = State::new("attack-docker");
    let driver = docker(daemon.socket(), "attack", &state.0).await.unwrap();
    let report = escapes::run(Subject { driver: &driver, guest: &guest() }).await;
    println!("{report}");
    driver.close().await;
    assert!(report.failed.is_empty(), "{} way(s) out:\n{report}", report.failed.len());
}

#[tokio::test]
async fn without_a_daemon_it_says_so() {
    let state = State::new("no-daemon");
    let error = docker("/nonexistent/docker.sock".into(), "none", &state.0).await.err().unwrap().to_string();
    assert!(error.contains("/nonexistent/docker.sock"), "{error}");
    assert!(!state.0.exists());
}

/// Its end is not waited for, and told with all that the daemon knows of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_ends_before_its_door_is_told() {
    let Some(daemon) = Daemon::start(Kind::Docker, "early") else { return };
    let state = State::new("early-docker");
    let driver = docker(daemon.socket(), "early", &state.0).await.unwrap();
    spoil_the_init(&state.0.join("docker/early"));
    let error = driver.create(spec("one", &["wait"])).await.err().unwrap();
    tells_of_the_spoiled_init(&error);
    driver.close().await;
    assert_eq!(daemon.containers(), 0, "containers are left");
}

#[tokio::test]
async fn it_is_selected_where_it_is_asked_for() {
    let Some(daemon) = Daemon::start(Kind::Docker, "select") else { return };
    let state = State::new("select");
    let mut config = select::Config::new(Choice::Docker, "select", &state.0).with_spawner(command());
    config.docker.socket = daemon.socket();
    let selection = select::select(config).await.unwrap();
    assert!(selection.why.starts_with("docker (asked for): "), "{}", selection.why);
    selection.driver.close().await;
}

/// Not a test: the runner that others start, to kill it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests that kill it"]
async fn helper() {
    let Some(state) = std::env::var_os("STOKER_TEST_STATE").map(PathBuf::from) else { return };
    let var = |name| std::env::var(name).unwrap();
    let (name, socket) = (var("STOKER_TEST_NAME"), var("STOKER_TEST_SOCKET"));
    let driver = docker(socket.into(), &name, &state).await.unwrap();
    let running = started(&driver, "running", &["wait", &name]).await;
    let frozen = started(&driver, "frozen", &["wait", &name]).await;
    frozen.freeze().await.unwrap();
    let parked = driver.create(spec("parked", &["wait", &name])).await.unwrap();
    println!("\nmonitor {}", driver.monitor().unwrap());
    std::future::pending::<()>().await;
    drop((running, frozen, parked));
}

/// A runner in a process of its own, with containers running, frozen and parked; and its monitor's process id.
fn helper_process(daemon: &Daemon, name: &str, state: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--ignored", "--nocapture"])
        .env("STOKER_TEST_STATE", state)
        .env("STOKER_TEST_NAME", name)
        .env("STOKER_TEST_SOCKET", daemon.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let monitor =
        lines.map_while(Result::ok).find_map(|line| line.strip_prefix("monitor ").map(str::to_owned));
    (child, monitor.expect("the helper came up"))
}

#[test]
fn a_killed_runner_leaves_nothing() {
    let Some(daemon) = Daemon::start(Kind::Docker, "killed") else { return };
    let state = State::new("killed-docker");
    let name = format!("killed-docker-{}", std::process::id());
    let (mut child, _) = helper_process(&daemon, &name, &state.0);
    assert!(alive(&name) >= 2);
    assert_eq!(daemon.containers(), 3);
    child.kill().unwrap();
    child.wait().unwrap();
    until("its functions are gone", || alive(&name) == 0);
    until("its containers are gone", || daemon.containers() == 0);
    let lives = state.0.join("docker").join(&name).join("lives");
    until("its notes are gone", || std::fs::read_dir(&lives).map_or(0, Iterator::count) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_runner_killed_with_its_monitor_are_collected() {
    let Some(daemon) = Daemon::start(Kind::Docker, "left") else { return };
    let state = State::new("leftover-docker");
    let name = format!("leftover-docker-{}", std::process::id());
    let bystander = docker(daemon.socket(), &format!("{name}-bystander"), &state.0).await.unwrap();
    let other = started(&bystander, "other", &["wait", "docker-bystander"]).await;
    let (mut child, monitor) = helper_process(&daemon, &name, &state.0);
    // So that it cannot clear away when its runner goes.
    signal("-STOP", &monitor);
    child.kill().unwrap();
    child.wait().unwrap();
    signal("-KILL", &monitor);
    // An init goes with its runner by itself, but not while it stands still; and what the daemon knows of it stays.
    assert_eq!(daemon.containers(), 4);
    let next = docker(daemon.socket(), &name, &state.0).await.unwrap();
    let removed = next.collect_leftovers().await.unwrap();
    println!("{removed:?}");
    assert_eq!(removed.iter().filter(|what| what.starts_with("container ")).count(), 3);
    until("its functions are gone", || alive(&name) == 0);
    // It works as if nothing had been, and nobody else was touched.
    started(&next, "next", &["wait", &name]).await.stop(Duration::ZERO).await;
    assert!(next.collect_leftovers().await.unwrap().is_empty());
    next.close().await;
    assert!(!state.0.join("docker").join(&name).exists(), "something was left behind");
    assert_eq!(alive("docker-bystander"), 1);
    other.stop(Duration::ZERO).await;
    bystander.close().await;
    assert_eq!(daemon.containers(), 0);
}
