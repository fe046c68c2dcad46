//! Every line of the threat model in `docs/security.md`, tried: as root, as root without user namespaces, as an ordinary user,
//! and in containers of standard runtimes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/kit.rs"]
#[expect(dead_code, unused_imports, reason = "not every test uses all of it")]
mod kit;

use std::collections::BTreeSet;
use std::process::Command;

use stoker_sandbox::Driver;
use stoker_sandbox::conformance::{Subject, escapes};
use stoker_sandbox::native::{self, Native};
use stoker_sandbox::oci::{self, Oci};

use kit::{ORDINARY, State, command, for_everybody, guest, we_are_root};

async fn attack(driver: &dyn Driver) {
    let report = escapes::run(Subject { driver, guest: &guest() }).await;
    println!("{}: {}\n{report}", driver.describe().name, driver.describe().why);
    assert!(report.failed.is_empty(), "{} way(s) out:\n{report}", report.failed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_of_native() {
    let state = State::new("attack-native");
    let config = native::Config { spawner: command(), ..native::Config::new("attack", &state.0) };
    attack(&Native::new(config).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_without_user_namespaces() {
    if !we_are_root() {
        println!("left out: only root can do without");
        return;
    }
    let state = State::new("attack-plain");
    let config = native::Config {
        spawner: command(),
        user_namespaces: false,
        ..native::Config::new("attack-plain", &state.0)
    };
    attack(&Native::new(config).await.unwrap()).await;
}

#[test]
fn nothing_gets_out_of_an_ordinary_users_sandboxes() {
    if !we_are_root() {
        println!("left out: already an ordinary user");
        return;
    }
    use std::os::unix::process::CommandExt;
    let state = State::new("attack-rootless");
    let (tests, guest) = for_everybody(&state);
    let status = Command::new(tests)
        .args(["--nocapture", "--exact", "nothing_gets_out_of_native"])
        .env("STOKER_TEST_GUEST", guest)
        .env("HOME", "/nonexistent")
        .current_dir("/")
        .uid(ORDINARY)
        .gid(ORDINARY)
        .status()
        .unwrap();
    assert!(status.success(), "as user {ORDINARY}: {status}");
}

/// Containers of standard runtimes promise the same. Where there are none, `STOKER_WITHOUT_OCI` says so.
async fn attack_containers(runtime: &str) {
    if !we_are_root() || std::env::var_os("STOKER_WITHOUT_OCI").is_some() {
        println!("left out: it takes root, and {runtime} (STOKER_WITHOUT_OCI says that there is none)");
        return;
    }
    let state = State::new(&format!("attack-{runtime}"));
    let config = oci::Config {
        spawner: command(),
        runtime: Some(runtime.into()),
        ..oci::Config::new(format!("attack-{runtime}"), &state.0)
    };
    let driver = Oci::new(config).await.unwrap();
    attack(&driver).await;
    driver.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_of_crun() {
    attack_containers("crun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_of_runc() {
    attack_containers("runc").await;
}

/// A line that nobody tries, and a try that no line promises, are both mistakes.
#[test]
fn the_written_threat_model_and_the_tries_are_the_same() {
    // What a fleet promises besides is tried elsewhere.
    let (page, _) = include_str!("../../../docs/security.md").split_once("\n## The fleet\n").unwrap();
    let written: BTreeSet<&str> = page
        .lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.trim_end_matches([' ', '|']).rsplit('|').next())
        .filter_map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'))
        .collect();
    let tried: BTreeSet<&str> = escapes::names().collect();
    assert_eq!(written, tried);
}
