//! Every line of the threat model in `docs/security.md`, tried: as root, as root without user namespaces, as an ordinary user,
//! and in containers of standard runtimes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/kit.rs"]
#[expect(dead_code, unused_imports, reason = "not every test uses all of it")]
mod kit;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stoker_sandbox::conformance::{Subject, escapes};
use stoker_sandbox::native::{self, Native};
use stoker_sandbox::oci::{self, Oci};
use stoker_sandbox::{Driver, Spec};

use kit::{ORDINARY, State, command, guest, pass_as_ordinary, spec, we_are_root};

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
    let state = State::new("attack-rootless");
    pass_as_ordinary(&state, &["--exact", "nothing_gets_out_of_native"], &[]);
}

/// A directory that goes with the test.
struct Own(PathBuf);

impl Drop for Own {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A function of an ordinary user's runner is that user to the host: what the user keeps from others in a directory that is shown, it does
/// not see either; what it has in its own directory, it does.
#[tokio::test(flavor = "multi_thread")]
async fn what_our_user_keeps_from_others_is_hidden() {
    let state = State::new("hidden");
    if we_are_root() {
        let shown = Own(PathBuf::from(format!("/opt/stoker-test-{}", std::process::id())));
        std::fs::create_dir_all(&shown.0).unwrap();
        std::os::unix::fs::chown(&shown.0, Some(ORDINARY), Some(ORDINARY)).unwrap();
        let itself = ["--exact", "what_our_user_keeps_from_others_is_hidden"];
        pass_as_ordinary(&state, &itself, &[("STOKER_TEST_SHOWN", shown.0.as_os_str())]);
        return;
    }
    let Some(shown) = std::env::var_os("STOKER_TEST_SHOWN").map(PathBuf::from) else {
        println!("left out: only root can put something where all functions see it");
        return;
    };
    let put = |name: &str, mode| {
        let path = shown.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, name).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    };
    put("everybody", 0o644);
    put("own", 0o600);
    put("group", 0o640);
    put("closed/everybody", 0o644);
    std::fs::set_permissions(shown.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    let config = native::Config { spawner: command(), ..native::Config::new("hidden", &state.0) };
    let driver = Native::new(config).await.unwrap();
    let read = async |name: &str, workdir: &Path| {
        let path = shown.join(name).display().to_string();
        let spec = Spec { workdir: workdir.to_owned(), ..spec("reader", &["read", &path]) };
        let sandbox = driver.create(spec).await.unwrap();
        let stdio = sandbox.start(Vec::new()).await.unwrap();
        rustix::io::ioctl_fionbio(&stdio.stdout, false).unwrap();
        let read = move || std::io::read_to_string(std::fs::File::from(stdio.stdout)).unwrap();
        tokio::task::spawn_blocking(read).await.unwrap().trim().to_owned()
    };
    let (root, closed) = (Path::new("/"), shown.join("closed"));
    assert_eq!(read("everybody", root).await, "everybody");
    assert_eq!(read("own", root).await, libc::EACCES.to_string());
    assert_eq!(read("group", root).await, libc::EACCES.to_string());
    assert_eq!(read("closed/everybody", root).await, libc::ENOENT.to_string());
    assert_eq!(read("own", &shown).await, "own");
    assert_eq!(read("closed/everybody", &closed).await, "closed/everybody");
    assert_eq!(read("own", &closed).await, libc::EACCES.to_string());
    driver.close().await;
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
