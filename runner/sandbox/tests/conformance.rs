//! Both drivers against the suite, as root and without, and against the deaths that no suite can stage from inside.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/kit.rs"]
#[expect(dead_code, reason = "not every test uses all of it")]
mod kit;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_sandbox::conformance::{self, Subject};
use stoker_sandbox::native::{self, Native};
use stoker_sandbox::process::{self, Process};
use stoker_sandbox::select::{self, Choice};
use stoker_sandbox::{Driver, Error, ExitCause, Network, Spec, spawner};

use kit::{
    LIMIT, ORDINARY, State, alive, cgroups, command, for_everybody, guest, pass_as_ordinary, signal, spec,
    started, until, we_are_root,
};

async fn native(name: &str, state: &Path) -> Result<Native, Error> {
    Native::new(native::Config { spawner: command(), ..native::Config::new(name, state) }).await
}

async fn process(name: &str, state: &Path) -> Result<Process, Error> {
    Process::new(process::Config { spawner: command(), ..process::Config::new(name, state) }).await
}

async fn check(driver: &dyn Driver) {
    if let Ok(controllers) = std::env::var("STOKER_TEST_CONTROLLERS") {
        // In a cgroup that was delegated to us we have all of it, and stay in it.
        let claims = driver.describe();
        assert_eq!(claims.limits_cpu, controllers.contains("cpu"), "{claims:?}");
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        let own = own.trim_end_matches("/stoker-runner").trim_start_matches('/');
        assert!(cgroups("conform").iter().any(|path| path.parent().unwrap().ends_with(own)), "not in {own}");
    }
    let report = conformance::run(Subject { driver, guest: &guest() }).await;
    println!("{}: {}\n{report}", driver.describe().name, driver.describe().why);
    assert!(report.failed.is_empty(), "{} case(s) failed:\n{report}", report.failed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn native_conforms() {
    let state = State::new("native");
    check(&native("conform", &state.0).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn native_conforms_without_user_namespaces() {
    if !we_are_root() {
        println!("left out: only root can do without");
        return;
    }
    let state = State::new("plain-native");
    let config = native::Config {
        spawner: command(),
        user_namespaces: false,
        ..native::Config::new("plain", &state.0)
    };
    check(&Native::new(config).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process_conforms() {
    let state = State::new("process");
    check(&process("conform", &state.0).await.unwrap()).await;
}

#[tokio::test]
async fn the_strongest_that_works_is_selected() {
    let state = State::new("select");
    let config = select::Config::new(Choice::Auto, "select", &state.0).with_spawner(command());
    let selection = select::select(config).await.unwrap();
    println!("{selection:?}");
    assert_eq!(selection.driver.describe().name, "native");
    assert!(selection.rejected.is_empty());
}

#[tokio::test]
async fn a_broken_spawner_is_told_and_nothing_is_selected() {
    let state = State::new("broken");
    let broken = spawner::Command { program: PathBuf::from("/bin/true"), args: Vec::new() };
    let config = select::Config::new(Choice::Auto, "broken", &state.0).with_spawner(broken);
    let error = select::select(config).await.unwrap_err();
    // Whoever prints a chain of causes has this one in the text already.
    assert!(std::error::Error::source(&error).is_none(), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("run_if_asked"), "{error}");
    assert!(cgroups("broken").is_empty());
    assert_eq!(lives(&state.0, "native", "broken") + lives(&state.0, "process", "broken"), 0);
}

#[tokio::test]
async fn a_name_belongs_to_one_live_runner() {
    let state = State::new("name");
    let first = native("name", &state.0).await.unwrap();
    assert!(matches!(native("name", &state.0).await, Err(Error::Taken { .. })));
    // Nor is it given a sandbox that keeps less apart.
    let config = select::Config::new(Choice::Auto, "name", &state.0).with_spawner(command());
    assert!(matches!(select::select(config).await, Err(Error::Taken { .. })));
    native("other-name", &state.0).await.unwrap();
    drop(first);
    // What it was doing in the background ends first.
    let begun = Instant::now();
    while native("name", &state.0).await.is_err() {
        assert!(begun.elapsed() < LIMIT, "the name is not given back");
        tokio::task::yield_now().await;
    }
}

/// Machines and containers whose users have little themselves: functions get that little, and no weaker driver.
#[tokio::test]
async fn functions_have_no_more_than_their_runner_may_give() {
    let state = State::new("little");
    let limits = ["--nofile=48:48", "--memlock=65536:65536"].map(str::to_owned);
    let spawner = spawner::Command {
        program: PathBuf::from("prlimit"),
        args: limits.into_iter().chain([guest().to_string_lossy().into_owned()]).collect(),
    };
    let driver =
        Native::new(native::Config { spawner, ..native::Config::new("little", &state.0) }).await.unwrap();
    let shell = ["sh", "-c", "ulimit -Hn; ulimit -Hl"].map(str::to_owned).to_vec();
    let sandbox = driver.create(Spec { command: shell, ..spec("little", &[]) }).await.unwrap();
    let stdio = sandbox.start(Vec::new()).await.unwrap();
    assert_eq!(sandbox.wait().await.cause, ExitCause::Code(0));
    let mut said = String::new();
    std::fs::File::from(stdio.stdout).read_to_string(&mut said).unwrap();
    assert_eq!(said, "48\n64\n");
    driver.close().await;
}

async fn survives_its_spawner(driver: &dyn Driver, spawner: u32, word: &str) {
    let running = started(driver, "running", &["wait", word]).await;
    let frozen = started(driver, "frozen", &["wait", word]).await;
    frozen.freeze().await.unwrap();
    let parked = driver.create(spec("parked", &["wait", word])).await.unwrap();
    assert_eq!(alive(word), 2);
    signal("-9", &spawner.to_string());
    for sandbox in [running, frozen, parked] {
        let exit = tokio::time::timeout(LIMIT, sandbox.wait()).await.unwrap();
        assert_eq!(exit.cause, ExitCause::Lost, "{exit:?}");
    }
    until("the functions are gone", || alive(word) == 0);
    // One create may still meet the dead one; then another is there.
    let first = driver.create(spec("again", &["wait", word])).await;
    assert!(matches!(first, Ok(_) | Err(Error::Platform { .. })));
    drop(first);
    started(driver, "and-again", &["wait", word]).await.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_spawner_is_noticed_and_replaced() {
    let state = State::new("spawner");
    let driver = native("spawner", &state.0).await.unwrap();
    let pid = driver.spawner().unwrap();
    survives_its_spawner(&driver, pid, "spawner-native").await;
    let driver = process("spawner", &state.0).await.unwrap();
    let pid = driver.spawner().unwrap();
    survives_its_spawner(&driver, pid, "spawner-process").await;
}

/// Not a test: the runner that others start, to kill it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests that kill it"]
async fn helper() {
    let Some(state) = std::env::var_os("STOKER_TEST_STATE") else { return };
    let (name, state) = (std::env::var("STOKER_TEST_NAME").unwrap(), PathBuf::from(state));
    let (driver, spawner): (Box<dyn Driver>, _) = if std::env::var("STOKER_TEST_DRIVER").unwrap() == "native"
    {
        let driver = native(&name, &state).await.unwrap();
        let spawner = driver.spawner().unwrap();
        (Box::new(driver), spawner)
    } else {
        let driver = process(&name, &state).await.unwrap();
        let spawner = driver.spawner().unwrap();
        (Box::new(driver), spawner)
    };
    let running = started(&*driver, "running", &["wait", &name]).await;
    let frozen = started(&*driver, "frozen", &["wait", &name]).await;
    frozen.freeze().await.unwrap();
    let parked = driver.create(spec("parked", &["wait", &name])).await.unwrap();
    println!("\nspawner {spawner}");
    std::future::pending::<()>().await;
    drop((running, frozen, parked));
}

/// Not a test: a runner that makes, starts, freezes, thaws and ends sandboxes without a pause, and says so line by line.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by the tests that kill it"]
async fn busy_helper() {
    let Some(state) = std::env::var_os("STOKER_TEST_STATE") else { return };
    let (name, state) = (std::env::var("STOKER_TEST_NAME").unwrap(), PathBuf::from(state));
    let (driver, spawner): (Arc<dyn Driver>, _) = if std::env::var("STOKER_TEST_DRIVER").unwrap() == "native"
    {
        let driver = native(&name, &state).await.unwrap();
        let spawner = driver.spawner().unwrap();
        (Arc::new(driver), spawner)
    } else {
        let driver = process(&name, &state).await.unwrap();
        let spawner = driver.spawner().unwrap();
        (Arc::new(driver), spawner)
    };
    // As a runner does at its start.
    driver.collect_leftovers().await.unwrap();
    println!("\nspawner {spawner}");
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (driver, name) = (Arc::clone(&driver), name.clone());
        workers.spawn(async move {
            let reaches_out = driver.describe().reaches_out;
            for round in 0.. {
                let mut spec = spec(&format!("busy-{worker}-{round}"), &["wait", &name]);
                if reaches_out && round % 3 == 1 {
                    spec.network = Network::Egress;
                }
                let sandbox = driver.create(spec).await.unwrap();
                println!("created");
                let _stdio = sandbox.start(Vec::new()).await.unwrap();
                println!("started");
                sandbox.freeze().await.unwrap();
                println!("frozen");
                if round % 2 == 0 {
                    sandbox.thaw().await.unwrap();
                    println!("thawed");
                }
                sandbox.stop(Duration::ZERO).await;
                println!("stopped");
            }
        });
    }
    while workers.join_next().await.is_some() {}
}

/// A runner that is killed at any moment of its work, alone or with its spawner, leaves nothing that the next does not clear away.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_killed_at_any_moment_leaves_nothing() {
    let mounts = |state: &Path| {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines().filter(|line| line.contains(&*state.to_string_lossy())).count()
    };
    for driver in ["native", "process"] {
        let state = State::new(&format!("moments-{driver}"));
        let name = format!("moments-{driver}-{}", std::process::id());
        // Each round ends a few steps further on, in the middle of something.
        for round in 0..14_usize {
            let (mut child, spawner, mut lines) = helper_lines("busy_helper", driver, &name, &state.0);
            for _ in 0..round * round / 2 {
                lines.next();
            }
            let with_spawner = round % 2 == 1;
            if with_spawner {
                // So that it cannot clear away when its runner goes.
                signal("-STOP", &spawner);
            }
            child.kill().unwrap();
            child.wait().unwrap();
            if with_spawner {
                signal("-KILL", &spawner);
            } else {
                until("its functions are gone", || alive(&name) == 0);
                until("its cgroups are gone", || cgroups(&name).is_empty());
                until("its notes are gone", || lives(&state.0, driver, &name) == 0);
            }
        }
        let next: Box<dyn Driver> = if driver == "native" {
            Box::new(native(&name, &state.0).await.unwrap())
        } else {
            Box::new(process(&name, &state.0).await.unwrap())
        };
        next.collect_leftovers().await.unwrap();
        until("its functions are gone", || alive(&name) == 0);
        started(&*next, "next", &["wait", &name]).await.stop(Duration::ZERO).await;
        assert!(next.collect_leftovers().await.unwrap().is_empty());
        next.close().await;
        assert_eq!(cgroups(&name), Vec::<PathBuf>::new());
        // The directories around it were made by a life that could not remove them.
        let own = state.0.join(driver).join(&name);
        assert!(!own.exists(), "{} stays", own.display());
        assert_eq!(mounts(&state.0), 0);
    }
}

/// A runner in a process of its own, with sandboxes running, frozen and parked; and its spawner's process id.
fn helper_process(driver: &str, name: &str, state: &Path) -> (Child, String) {
    let (child, spawner, _) = helper_lines("helper", driver, name, state);
    (child, spawner)
}

/// A runner in a process of its own, its spawner's process id, and what it says after that.
fn helper_lines(
    which: &str,
    driver: &str,
    name: &str,
    state: &Path,
) -> (Child, String, impl Iterator<Item = String> + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", which, "--ignored", "--nocapture"])
        .env("STOKER_TEST_STATE", state)
        .env("STOKER_TEST_NAME", name)
        .env("STOKER_TEST_DRIVER", driver)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let spawner = lines.find_map(|line| line.strip_prefix("spawner ").map(str::to_owned));
    (child, spawner.expect("the helper came up"), lines)
}

fn lives(state: &Path, driver: &str, name: &str) -> usize {
    std::fs::read_dir(state.join(driver).join(name).join("lives")).map_or(0, Iterator::count)
}

#[test]
fn a_killed_runner_leaves_nothing() {
    for driver in ["native", "process"] {
        let state = State::new(&format!("killed-{driver}"));
        let name = format!("killed-{driver}-{}", std::process::id());
        let (mut child, _) = helper_process(driver, &name, &state.0);
        assert!(alive(&name) >= 2);
        child.kill().unwrap();
        child.wait().unwrap();
        until("its functions are gone", || alive(&name) == 0);
        until("its cgroups are gone", || cgroups(&name).is_empty());
        until("its notes are gone", || lives(&state.0, driver, &name) == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_runner_killed_with_its_spawner_are_collected() {
    for driver in ["native", "process"] {
        let state = State::new(&format!("leftover-{driver}"));
        let name = format!("leftover-{driver}-{}", std::process::id());
        let (mut child, spawner) = helper_process(driver, &name, &state.0);
        let bystander = helper_process(driver, &format!("{name}-bystander"), &state.0);
        // So that it cannot clear away when its runner goes.
        signal("-STOP", &spawner);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = cgroups(&name);
        signal("-KILL", &spawner);
        let next: Box<dyn Driver> = if driver == "native" {
            Box::new(native(&name, &state.0).await.unwrap())
        } else {
            Box::new(process(&name, &state.0).await.unwrap())
        };
        let removed = next.collect_leftovers().await.unwrap();
        println!("{driver}: {removed:?}");
        assert!(removed.len() >= left.len(), "{left:?} were there, {removed:?} removed");
        until("its functions are gone", || alive(&name) == 0);
        for directory in left {
            assert!(!directory.exists(), "{} stays", directory.display());
        }
        // It works as if nothing had been, and nobody else was touched.
        started(&*next, "next", &["wait", &name]).await.stop(Duration::ZERO).await;
        assert!(next.collect_leftovers().await.unwrap().is_empty());
        let (mut bystander, _) = bystander;
        assert!(alive(&format!("{name}-bystander")) >= 2);
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        until("the bystander's functions are gone", || alive(&format!("{name}-bystander")) == 0);
    }
}

/// A spawner that was stopped does not see its runner end, and keeps the name's lock: the next runner makes it go on, and it clears away.
#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_was_stopped_does_not_hold_up_the_next_runner() {
    for driver in ["native", "process"] {
        let state = State::new(&format!("stopped-{driver}"));
        let name = format!("stopped-{driver}-{}", std::process::id());
        let (mut child, spawner) = helper_process(driver, &name, &state.0);
        signal("-STOP", &spawner);
        child.kill().unwrap();
        child.wait().unwrap();
        let next: Box<dyn Driver> = if driver == "native" {
            Box::new(native(&name, &state.0).await.unwrap())
        } else {
            Box::new(process(&name, &state.0).await.unwrap())
        };
        // What is left is the next one's own.
        assert_eq!((alive(&name), lives(&state.0, driver, &name)), (0, 1));
        assert!(next.collect_leftovers().await.unwrap().is_empty());
        started(&*next, "next", &["wait", &name]).await.stop(Duration::ZERO).await;
        next.close().await;
        assert_eq!(cgroups(&name), Vec::<PathBuf>::new());
    }
}

/// Somebody who clears cgroups away takes the sandboxes that are there, and none of those to come.
#[tokio::test(flavor = "multi_thread")]
async fn cgroups_that_were_removed_are_made_again() {
    let state = State::new("removed");
    let name = format!("removed-{}", std::process::id());
    let driver = native(&name, &state.0).await.unwrap();
    let ours = || {
        let mut ours = cgroups(&name);
        ours.sort();
        ours
    };
    let bases = ours();
    if bases.is_empty() {
        println!("left out: no cgroups can be made here");
        return;
    }
    let running = started(&driver, "running", &["wait", &name]).await;
    until("everything in them is dead, and they are gone", || {
        bases.iter().filter(|base| !remove_cgroup(base)).count() == 0
    });
    running.wait().await;
    // More than there were prepared.
    for round in 0..4 {
        let next = started(&driver, &format!("next-{round}"), &["wait", &name]).await;
        assert_ne!(next.usage().await, stoker_sandbox::Usage::default(), "it is counted");
        next.freeze().await.unwrap();
        next.stop(Duration::ZERO).await;
    }
    assert_eq!(ours(), bases);
    driver.close().await;
    assert_eq!(cgroups(&name), Vec::<PathBuf>::new());
}

/// A file system of the host's that goes with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_ahead_sees_what_the_host_mounts_later() {
    if !we_are_root() {
        println!("left out: only root mounts something on the host");
        return;
    }
    let state = State::new("later");
    let driver = native("later", &state.0).await.unwrap();
    let spawner = driver.spawner().unwrap();
    let waits = |init: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
        stat.contains("(stoker-init) S")
    };
    let children = format!("/proc/{spawner}/task/{spawner}/children");
    until("some wait for their functions", || {
        let inits = std::fs::read_to_string(&children).unwrap();
        inits.split_whitespace().count() == 2 && inits.split_whitespace().all(waits)
    });
    let place = state.0.join("place");
    std::fs::create_dir(&place).unwrap();
    rustix::mount::mount("later", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let mounted = Mounted(place);
    let file = mounted.0.join("file");
    std::fs::write(&file, "there").unwrap();
    for number in 0..2 {
        let mut spec = spec(&format!("later-{number}"), &["read", file.to_str().unwrap()]);
        spec.workdir.clone_from(&mounted.0);
        let sandbox = driver.create(spec).await.unwrap();
        let stdout = sandbox.start(Vec::new()).await.unwrap().stdout;
        rustix::io::ioctl_fionbio(&stdout, false).unwrap();
        let read = tokio::task::spawn_blocking(|| {
            let mut read = String::new();
            std::fs::File::from(stdout).read_to_string(&mut read).map(|_| read)
        });
        assert_eq!(read.await.unwrap().unwrap().trim(), "there");
        sandbox.wait().await;
    }
    driver.close().await;
}

/// Kills what is in a cgroup and removes it with those below it. `true` if it is gone.
fn remove_cgroup(directory: &Path) -> bool {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    for pid in std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default().lines() {
        // It may have gone by now.
        Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status().unwrap();
    }
    std::fs::remove_dir(directory).is_ok() || !directory.exists()
}

/// The rest of this file again, as an ordinary user.
#[test]
fn rootless() {
    if !we_are_root() {
        println!("left out: already an ordinary user");
        return;
    }
    let state = State::new("rootless");
    pass_as_ordinary(&state, &["--test-threads", "1", "--skip", "rootless"], &[]);
}

/// The native suite again as root of a user namespace that knows nobody else, as in a container that an ordinary user has started.
#[test]
fn rootless_as_root_of_a_user_namespace() {
    if !we_are_root() {
        println!("left out: only root can become an ordinary user");
        return;
    }
    let state = State::new("confined");
    let (tests, guest) = for_everybody(&state);
    // The host's has an owner whom nobody knows in there.
    let temporary = state.0.join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    std::os::unix::fs::chown(&temporary, Some(ORDINARY), Some(ORDINARY)).unwrap();
    let become_root = ["--reuid", &ORDINARY.to_string(), "--regid", &ORDINARY.to_string(), "--clear-groups"];
    let status = Command::new("setpriv")
        .args(become_root)
        .args(["unshare", "--user", "--map-root-user"])
        .arg(tests)
        .args([
            "--nocapture",
            "--test-threads",
            "1",
            "--exact",
            "native_conforms",
            "the_strongest_that_works_is_selected",
        ])
        .env("STOKER_TEST_GUEST", guest)
        .env("TMPDIR", temporary)
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// Both suites where less of the cgroup tree can be had, in a mount namespace that hides it.
#[test]
fn with_fewer_cgroups() {
    if !we_are_root() || !Path::new("/sys/fs/cgroup").exists() {
        println!("left out: only root can hide a part of the cgroup tree");
        return;
    }
    let v1 = std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(" - cgroup ");
    let mut hidden = vec!["umount -l $(grep ' - cgroup2\\? ' /proc/self/mountinfo | cut -d' ' -f5)"];
    if v1 {
        hidden.push("umount -l $(grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5)");
    } else {
        println!("left out: version 1 alone, as this machine has none");
    }
    for hide in hidden {
        let script = format!("{hide} && exec \"$0\" --nocapture --exact native_conforms process_conforms");
        let status = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script])
            .arg(std::env::current_exe().unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "{hide}: {status}");
    }
}

/// The suites of an ordinary user whose `/proc` hides the processes that hide their memory, as hardened machines have it.
#[test]
fn rootless_where_processes_are_hidden() {
    if !we_are_root() {
        println!("left out: only root can mount /proc anew");
        return;
    }
    let state = State::new("hidden");
    let (tests, guest) = for_everybody(&state);
    let script = "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid $1 --regid $1 --clear-groups \"$0\" --nocapture --test-threads 1 \
        --exact native_conforms process_conforms";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", script])
        .arg(tests)
        .arg(ORDINARY.to_string())
        .env("STOKER_TEST_GUEST", guest)
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    until("nothing of it is left", || alive(&state.0.join("stoker-spawner").to_string_lossy()) == 0);
}

/// A part of the cgroup tree of version 2, as a service manager gives it to a service: with all controllers, where this version has them.
struct Delegated(PathBuf);

impl Delegated {
    /// Nothing, with a message, where it cannot be had.
    fn new(name: &str) -> Option<Self> {
        let tops = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let Some(top) = tops.into_iter().find(|top| top.join("cgroup.procs").exists()) else {
            println!("left out: there is no cgroup v2 tree");
            return None;
        };
        for controller in ["+memory", "+cpu", "+pids"] {
            // Not there on machines that have them in version 1.
            std::fs::write(top.join("cgroup.subtree_control"), controller).ok();
        }
        let directory = top.join(format!("stoker-{name}-{}", std::process::id()));
        if !we_are_root() || std::fs::create_dir(&directory).is_err() {
            println!("left out: only root can delegate a cgroup");
            return None;
        }
        Some(Self(directory))
    }

    fn controllers(&self) -> String {
        std::fs::read_to_string(self.0.join("cgroup.controllers")).unwrap()
    }

    /// A shell in it, which becomes the program that its arguments name.
    fn enter(&self) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "echo $$ >\"$0\"/cgroup.procs && exec \"$@\""]).arg(&self.0);
        shell
    }

    /// The cgroups in it, the innermost first.
    fn children(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(&entry.path(), found);
                    found.push(entry.path());
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.0, &mut found);
        found
    }

    /// Waits until nothing of a runner is left in it, and removes it.
    fn remove(self) {
        until("the runner's cgroups are gone", || {
            let left = self.children();
            left.iter().all(|path| path.file_name().is_some_and(|name| name == "stoker-runner"))
        });
        // What lived in it has been waited for, but for what the kernel still does with it.
        for directory in self.children().into_iter().chain([self.0]) {
            until("a cgroup is empty", || std::fs::remove_dir(&directory).is_ok());
        }
    }
}

/// The suite as an ordinary user that owns a part of the cgroup tree, as a service manager would delegate it.
#[test]
fn rootless_with_a_delegated_cgroup() {
    let Some(delegated) = Delegated::new("delegated") else { return };
    for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        std::os::unix::fs::chown(delegated.0.join(file), Some(ORDINARY), Some(ORDINARY)).unwrap();
    }
    let state = State::new("delegated");
    let (tests, guest) = for_everybody(&state);
    let user = ORDINARY.to_string();
    let status = delegated
        .enter()
        .args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(tests)
        .args(["--nocapture", "--exact", "native_conforms"])
        .env("STOKER_TEST_GUEST", guest)
        .env("STOKER_TEST_CONTROLLERS", delegated.controllers())
        .current_dir("/")
        .status()
        .unwrap();
    delegated.remove();
    assert!(status.success(), "as user {ORDINARY}: {status}");
}

/// The suite as root where the whole cgroup is the runner's: what limits it limits its functions, since it makes room for them there.
fn in_a_cgroup(name: &str, before: &[&str]) {
    let Some(delegated) = Delegated::new(name) else { return };
    if !delegated.controllers().contains("memory") {
        delegated.remove();
        println!("left out: version 2 has no controllers here");
        return;
    }
    // One driver after the other in one process: the second finds where the first has moved it.
    let tests = ["native_conforms", "process_conforms", "the_strongest_that_works_is_selected"];
    let status = delegated
        .enter()
        .args(before)
        .arg(std::env::current_exe().unwrap())
        .args(["--nocapture", "--test-threads", "1", "--exact"])
        .args(tests)
        .env("STOKER_TEST_CONTROLLERS", delegated.controllers())
        .status()
        .unwrap();
    let aside = delegated.children().iter().filter(|path| path.ends_with("stoker-runner")).count();
    delegated.remove();
    assert!(status.success(), "{status}");
    assert_eq!(aside, 1, "places to move aside to");
}

#[test]
fn in_the_cgroup_of_a_service() {
    in_a_cgroup("service", &[]);
}

/// The top of what it sees is its own, and its first process, which is not the runner, lives there as well.
#[test]
fn in_the_cgroup_of_a_container() {
    let start =
        "umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \"$0\" \"$@\"; exit $?";
    let before = ["unshare", "--cgroup", "--mount", "--propagation", "private", "/bin/sh", "-c", start];
    in_a_cgroup("container", &before);
}
