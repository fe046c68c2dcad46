//! The `docker` driver on a real daemon, against the suite and against the deaths that no suite can stage from inside.
//!
//! Every test has a daemon of its own, so it needs root and the program `dockerd`. Where that is missing a test fails and says what to
//! install; with `STOKER_WITHOUT_DOCKER` set, whoever runs the tests has said that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[expect(dead_code, reason = "no test here runs as an ordinary user")]
#[path = "kit/kit.rs"]
mod kit;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stoker_sandbox::conformance::{self, Subject, escapes};
use stoker_sandbox::docker::{Config, Docker};
use stoker_sandbox::select::{self, Choice};
use stoker_sandbox::{Driver, Error, Network, Root, Sandbox, Spec};

use kit::{State, command, guest, we_are_root};

/// Longer than anything here takes on a slow and busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A daemon without a network, and everything that it has.
struct Daemon {
    child: Child,
    directory: PathBuf,
}

impl Daemon {
    /// Starts one and returns when it answers; `None` where tests with Docker are left out.
    fn start(name: &str) -> Option<Self> {
        if std::env::var_os("STOKER_WITHOUT_DOCKER").is_some() {
            println!("left out, as STOKER_WITHOUT_DOCKER says");
            return None;
        }
        if !we_are_root() {
            println!("left out: only root can start a Docker daemon");
            return None;
        }
        // Short: the daemon binds sockets in it.
        let directory = std::env::temp_dir().join(format!("stoker-d-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.json"), "{}").unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let option = |name: &str, file: &str| format!("--{name}={}", directory.join(file).display());
        let child = Command::new("dockerd")
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args([option("config-file", "config.json")])
            .args([option("data-root", "data"), option("exec-root", "exec"), option("pidfile", "pid")])
            .arg(format!("--host=unix://{}", directory.join("socket").display()))
            .arg(format!("--cgroup-parent=/{}", cgroup(&directory)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("dockerd cannot be started ({error}): install it (Debian: docker.io) or set STOKER_WITHOUT_DOCKER=1")
        });
        let mut daemon = Self { child, directory };
        until("the daemon answers", || {
            let log = || std::fs::read_to_string(daemon.directory.join("log")).unwrap_or_default();
            assert!(daemon.child.try_wait().unwrap().is_none(), "dockerd ended: {}", log());
            daemon.ask("/_ping").is_ok_and(|answer| answer.ends_with("OK"))
        });
        Some(daemon)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    fn ask(&self, path: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// How many containers it has, in whatever state.
    fn containers(&self) -> usize {
        self.ask("/containers/json?all=true").unwrap().matches("\"Id\":").count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // In order, so that it ends what it has started itself.
        Command::new("kill").arg(self.child.id().to_string()).status().ok();
        self.child.wait().ok();
        // The daemon leaves a handle on the host's network mounted.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(&self.directory) {
                Command::new("umount").arg("-l").arg(point).status().ok();
            }
        }
        // And the cgroups that its containers were in.
        let tops = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for top in tops.map(|top| top.path()).chain([PathBuf::from("/sys/fs/cgroup")]) {
            std::fs::remove_dir(top.join(cgroup(&self.directory))).ok();
        }
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// The name of a daemon's own cgroup.
fn cgroup(directory: &Path) -> String {
    directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

async fn docker(socket: PathBuf, name: &str, state: &Path) -> Result<Docker, Error> {
    Docker::new(Config { spawner: command(), socket, ..Config::new(name, state) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_conforms() {
    let Some(daemon) = Daemon::start("conform") else { return };
    let state = State::new("docker");
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

/// Every line of the threat model, tried.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out() {
    let Some(daemon) = Daemon::start("attack") else { return };
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

#[tokio::test]
async fn it_is_selected_where_it_is_asked_for() {
    let Some(daemon) = Daemon::start("select") else { return };
    let state = State::new("select");
    let mut config = select::Config::new(Choice::Docker, "select", &state.0).with_spawner(command());
    config.docker.socket = daemon.socket();
    let selection = select::select(config).await.unwrap();
    assert!(selection.why.starts_with("docker (asked for): "), "{}", selection.why);
    selection.driver.close().await;
}

fn spec(id: &str, words: &[&str]) -> Spec {
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
        stop_signal: stoker_sandbox::SIGTERM,
        stays: false,
    }
}

/// Processes of the host that have this word among their arguments.
fn alive(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap();
    let lines = entries.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())).count()
}

/// Waits for a state, with a limit.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < LIMIT, "never: {what}");
        std::thread::yield_now();
    }
}

async fn started(driver: &dyn Driver, id: &str, words: &[&str]) -> Box<dyn Sandbox> {
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

fn signal(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[test]
fn a_killed_runner_leaves_nothing() {
    let Some(daemon) = Daemon::start("killed") else { return };
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
    let Some(daemon) = Daemon::start("left") else { return };
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
