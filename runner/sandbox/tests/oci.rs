//! The `oci` driver on real runtimes, against the suite and against the deaths that no suite can stage from inside.
//!
//! It needs root, and the programs `crun` and `runc`. Where one is missing a test fails and says what to install; with
//! `STOKER_WITHOUT_OCI` set, whoever runs the tests has said that it is left out.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/kit.rs"]
#[expect(dead_code, reason = "not every test uses all of it")]
mod kit;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stoker_sandbox::conformance::{self, Subject};
use stoker_sandbox::oci::{Config, Oci};
use stoker_sandbox::select::{self, Choice};
use stoker_sandbox::{Driver, Error, ExitCause};

use kit::{
    LIMIT, State, alive, cgroups, command, guest, signal, spec, spoil_the_init, started,
    tells_of_the_spoiled_init, until, we_are_root,
};

/// Whether tests with containers of this runtime are to run.
fn wanted(runtime: &str) -> bool {
    if std::env::var_os("STOKER_WITHOUT_OCI").is_some() {
        println!("left out, as STOKER_WITHOUT_OCI says");
        return false;
    }
    if !we_are_root() {
        println!("left out: only root has containers of {runtime} here");
        return false;
    }
    let found = Command::new(runtime).arg("--version").stdout(Stdio::null()).status();
    assert!(found.is_ok(), "{runtime} is not there: install it, or set STOKER_WITHOUT_OCI=1");
    true
}

async fn oci(runtime: &str, name: &str, state: &Path) -> Result<Oci, Error> {
    Oci::new(Config { spawner: command(), runtime: Some(runtime.into()), ..Config::new(name, state) }).await
}

async fn conforms(runtime: &str) {
    if !wanted(runtime) {
        return;
    }
    let name = format!("conform-{}", Path::new(runtime).file_name().unwrap().display());
    let state = State::new(&name);
    let driver = oci(runtime, &name, &state.0).await.unwrap();
    let report = conformance::run(Subject { driver: &driver, guest: &guest() }).await;
    println!("{}: {}\n{report}", driver.describe().name, driver.describe().why);
    assert!(report.failed.is_empty(), "{} case(s) failed:\n{report}", report.failed.len());
    driver.close().await;
    assert!(!state.0.join("oci").join(&name).exists(), "something was left behind");
    assert!(cgroups(&name).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_conforms() {
    conforms("crun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runc_conforms() {
    conforms("runc").await;
}

/// Any other, by hand: `STOKER_TEST_OCI_RUNTIME=/path/to/youki cargo nextest run -p stoker-sandbox --run-ignored all -E 'test(another_runtime)'`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a runtime that STOKER_TEST_OCI_RUNTIME names"]
async fn another_runtime_conforms() {
    let Ok(runtime) = std::env::var("STOKER_TEST_OCI_RUNTIME") else { return };
    conforms(&runtime).await;
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named() {
    if !wanted("crun") {
        return;
    }
    let state = State::new("missing");
    let error = oci("no-such-runtime", "missing", &state.0).await.err().unwrap().to_string();
    assert!(error.contains("no-such-runtime"), "{error}");
    assert!(!state.0.exists());
}

/// As Debian's of 2022, which has only the flag's older sister.
#[tokio::test]
async fn a_runsc_that_is_too_old_is_told() {
    if !wanted("crun") {
        return;
    }
    let state = State::new("old");
    std::fs::create_dir_all(&state.0).unwrap();
    let runtime = state.0.join("runsc");
    let script = "#!/bin/sh\ncase $1 in --version) echo runsc version 0.0~20221219.0;; flags) echo '  -fsgofer-host-uds';; esac\n";
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = oci(runtime.to_str().unwrap(), "old", &state.0).await.err().unwrap();
    assert!(matches!(error, Error::Unsupported(_)), "{error:?}");
    for word in ["runsc version 0.0~20221219.0", "too old", "-host-uds"] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn it_is_selected_where_it_is_asked_for() {
    if !wanted("crun") {
        return;
    }
    let state = State::new("select");
    let config = select::Config::new(Choice::Oci, "select", &state.0).with_spawner(command());
    let selection = select::select(config).await.unwrap();
    assert!(selection.why.starts_with("oci (asked for): containers of "), "{}", selection.why);
    selection.driver.close().await;
}

#[tokio::test]
async fn what_a_runtime_says_is_told() {
    if !wanted("crun") {
        return;
    }
    let state = State::new("broken");
    // Every program takes these arguments for something else.
    let driver = oci("/bin/ls", "broken", &state.0).await.unwrap();
    let error = driver.create(spec("one", &["wait"])).await.err().unwrap().to_string();
    assert!(error.contains("unrecognized option '--root'"), "{error}");
    driver.close().await;
    assert!(!state.0.exists(), "something was left behind");
}

/// Its end is not waited for, and told with all that is known of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_ends_before_its_door_is_told() {
    for runtime in ["crun", "runc"] {
        if !wanted(runtime) {
            return;
        }
        let state = State::new(&format!("early-{runtime}"));
        let driver = oci(runtime, "early", &state.0).await.unwrap();
        spoil_the_init(&state.0.join("oci/early"));
        let error = driver.create(spec("one", &["wait"])).await.err().unwrap();
        tells_of_the_spoiled_init(&error);
        driver.close().await;
        assert!(!state.0.exists(), "something was left behind");
    }
}

/// Containers do not hang on the monitor; but without one, nobody would end them with the runner.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_is_replaced_and_containers_go_on() {
    if !wanted("crun") {
        return;
    }
    let state = State::new("monitor");
    let driver = oci("crun", "monitor", &state.0).await.unwrap();
    let before = started(&driver, "before", &["wait", "monitor-before"]).await;
    let first = driver.monitor().unwrap();
    signal("-9", &first.to_string());
    until("another monitor is there", || driver.monitor().is_some_and(|pid| pid != first));
    let after = started(&driver, "after", &["wait", "monitor-after"]).await;
    let exit = before.stop(LIMIT).await;
    assert_eq!(exit.cause, ExitCause::Signal(15), "{exit:?}");
    drop(after);
    driver.close().await;
    assert_eq!(alive("monitor-after"), 0);
    assert!(!state.0.exists(), "something was left behind");
}

/// Not a test: the runner that others start, to kill it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests that kill it"]
async fn helper() {
    let Some(state) = std::env::var_os("STOKER_TEST_STATE").map(PathBuf::from) else { return };
    let var = |name| std::env::var(name).unwrap();
    let (name, runtime) = (var("STOKER_TEST_NAME"), var("STOKER_TEST_RUNTIME"));
    let driver = oci(&runtime, &name, &state).await.unwrap();
    let running = started(&driver, "running", &["wait", &name]).await;
    let frozen = started(&driver, "frozen", &["wait", &name]).await;
    frozen.freeze().await.unwrap();
    let parked = driver.create(spec("parked", &["wait", &name])).await.unwrap();
    println!("\nmonitor {}", driver.monitor().unwrap());
    // Always one that is being made.
    loop {
        driver.create(spec("making", &["wait", &name])).await.unwrap();
        std::hint::black_box((&running, &frozen, &parked));
    }
}

/// A runner in a process of its own, with containers running, frozen, parked and in the making; and its monitor's process id.
fn helper_process(runtime: &str, name: &str, state: &Path) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper", "--ignored", "--nocapture"])
        .env("STOKER_TEST_STATE", state)
        .env("STOKER_TEST_NAME", name)
        .env("STOKER_TEST_RUNTIME", runtime)
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
    for runtime in ["crun", "runc"] {
        if !wanted(runtime) {
            return;
        }
        let state = State::new(&format!("killed-{runtime}"));
        let name = format!("killed-{runtime}-{}", std::process::id());
        let (mut child, _) = helper_process(runtime, &name, &state.0);
        assert!(alive(&name) >= 2);
        child.kill().unwrap();
        child.wait().unwrap();
        until("its functions are gone", || alive(&name) == 0);
        until("its cgroups are gone", || cgroups(&name).is_empty());
        until("its notes are gone", || lives(&state.0, &name) == 0);
    }
}

fn lives(state: &Path, name: &str) -> usize {
    let directory = state.join("oci").join(name);
    let count = |path: PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
    let bundles = std::fs::read_dir(directory.clone()).into_iter().flatten().flatten();
    let bundles = bundles.filter(|entry| entry.file_name().to_string_lossy().starts_with("life-")).count();
    count(directory.join("lives")) + bundles
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_runner_killed_with_its_monitor_are_collected() {
    for runtime in ["crun", "runc"] {
        if !wanted(runtime) {
            return;
        }
        let state = State::new(&format!("leftover-{runtime}"));
        let name = format!("leftover-{runtime}-{}", std::process::id());
        let (mut child, monitor) = helper_process(runtime, &name, &state.0);
        // So that it cannot clear away when its runner goes.
        signal("-STOP", &monitor);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = cgroups(&name);
        signal("-9", &monitor);
        // An init goes with its runner by itself, but not while it stands still.
        assert!(!left.is_empty());
        let next = oci(runtime, &name, &state.0).await.unwrap();
        let removed = next.collect_leftovers().await.unwrap();
        println!("{runtime}: {removed:?}");
        assert!(!removed.is_empty());
        until("its functions are gone", || alive(&name) == 0);
        for directory in left {
            assert!(!directory.exists(), "{} stays", directory.display());
        }
        // It works as if nothing had been.
        started(&next, "next", &["wait", &name]).await.stop(Duration::ZERO).await;
        assert!(next.collect_leftovers().await.unwrap().is_empty());
        next.close().await;
        assert!(!state.0.join("oci").join(&name).exists(), "something was left behind");
    }
}
