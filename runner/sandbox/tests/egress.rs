//! The way out of a sandbox, in networks made here: no packet leaves this machine.
//!
//! A network namespace is the runner's host, another the world: the host's default route leads there, also for addresses that must
//! never be reached, so that whatever is refused is refused by us and not by an absence.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "kit/kit.rs"]
#[expect(dead_code, unused_imports, reason = "not every test uses all of it")]
mod kit;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use stoker_sandbox::native::{self, Native};
use stoker_sandbox::oci::{self, Oci};
use stoker_sandbox::{Driver, Error, ExitCause, Network, Spec, egress};

use kit::{ORDINARY, State, command, for_everybody, guest, pass_as_ordinary, we_are_root};

/// The world's addresses: beside the host, and further on, some of which the operator denies and some nobody may reach.
const WORLD: [&str; 7] = [
    "203.0.113.2:7000",
    "[2001:db8:1::2]:7000",
    "198.51.100.7:7000",
    "198.51.100.8:7000",
    "169.254.169.254:80",
    "100.100.100.200:80",
    "[fd00:ec2::254]:80",
];
const HOST: &str = "203.0.113.1";
const HOST_6: &str = "2001:db8:1::1";

fn run(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
}

fn has(program: &str) -> bool {
    Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A process that is the world, in a namespace of its own, until it is dropped.
struct World(Child);

impl World {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "--"])
            .arg(guest())
            .args(["guest", "world"])
            .args(WORLD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        // Its namespace is there when it is another than ours.
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        kit::until("the world has a network of its own", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != ours)
        });
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "host0", "netns", &pid]);
        run(&["ip", "address", "add", &format!("{HOST}/24"), "dev", "up0"]);
        run(&["ip", "link", "set", "up0", "up"]);
        let within = |words: &[&str]| run(&[&["nsenter", "--target", &pid, "--net", "ip"], words].concat());
        within(&["link", "set", "lo", "up"]);
        within(&["address", "add", "203.0.113.2/24", "dev", "host0"]);
        within(&["link", "set", "host0", "up"]);
        // Nobody else is there to have the same address.
        run(&["ip", "address", "add", &format!("{HOST_6}/64"), "dev", "up0", "nodad"]);
        within(&["address", "add", "2001:db8:1::2/64", "dev", "host0", "nodad"]);
        for address in &WORLD[2..] {
            let address: SocketAddr = address.parse().unwrap();
            let address = address.ip().to_string();
            let mut words = vec!["address", "add", &address, "dev", "lo"];
            // Its check for duplicates, empty as it is there, is work for later: until it was done nobody may bind to the address.
            words.extend(address.contains(':').then_some("nodad"));
            within(&words);
        }
        run(&["ip", "route", "add", "default", "via", "203.0.113.2"]);
        run(&["ip", "-6", "route", "add", "default", "via", "2001:db8:1::2"]);
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self(child)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts the inner half of this file in a network namespace, and in a mount namespace in which anybody may use tunnels if `open`.
fn inside(name: &str, open: bool, arrange: impl FnOnce(&mut Command) -> Option<PathBuf>) {
    if !we_are_root() {
        println!("left out: only root can make networks");
        return;
    }
    assert!(has("ip"), "ip is not there, to make networks with: install it (Debian: iproute2)");
    if !Path::new(egress::DEVICE).exists() {
        println!("left out: there is no {}", egress::DEVICE);
        return;
    }
    let script = if open {
        // A device of the same number that everybody may open, in the place of the host's.
        "mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && exec \"$@\""
    } else {
        "exec \"$@\""
    };
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--", "/bin/sh", "-c", script, "sh"]);
    let tests = arrange(&mut command).unwrap_or_else(|| std::env::current_exe().unwrap());
    let status = command
        .arg(tests)
        .args(["--exact", name, "--ignored", "--nocapture"])
        .current_dir("/")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn the_world_is_reached_and_nothing_else() {
    inside("inner", false, |_| None);
}

/// The driver of an ordinary user, in a network that root made.
#[test]
fn an_ordinary_user_reaches_the_world() {
    let state = State::new("egress-rootless");
    inside("inner_rootless", true, |command| {
        let (tests, guest) = for_everybody(&state);
        command.env("STOKER_TEST_GUEST", guest).env("HOME", "/nonexistent");
        Some(tests)
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started in a network of its own"]
async fn inner() {
    let _world = World::new();
    check("egress").await;
}

#[test]
#[ignore = "started in a network of its own"]
fn inner_rootless() {
    let _world = World::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner_ordinary", "--ignored", "--nocapture"])
        .uid(ORDINARY)
        .gid(ORDINARY)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "started in a network of its own"]
async fn inner_ordinary() {
    check("egress-ordinary").await;
}

fn spec(id: &str, words: &[&str]) -> Spec {
    Spec {
        memory: 256 << 20,
        pids: 256,
        open_files: 512,
        network: Network::Egress,
        shared: None,
        ..kit::spec(id, words)
    }
}

/// What a function with a way out says.
async fn says(driver: &dyn Driver, words: &[&str]) -> String {
    let sandbox = driver.create(spec("out", words)).await.unwrap();
    let stdio = sandbox.start(Vec::new()).await.unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut all = [String::new(), String::new()];
        for (pipe, text) in [stdio.stdout, stdio.stderr].into_iter().zip(&mut all) {
            rustix::io::ioctl_fionbio(&pipe, false).unwrap();
            std::fs::File::from(pipe).read_to_string(text).unwrap();
        }
        all
    });
    let [out, err] = reading.await.unwrap();
    let exit = sandbox.wait().await;
    assert_eq!(exit.cause, ExitCause::Code(0), "{words:?}: {out} {err}");
    out.trim().to_owned()
}

fn links() -> String {
    let listed = Command::new("ip").args(["-o", "link"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

async fn check(name: &str) {
    let state = State::new(name);
    let config = |suffix: &str, egress: egress::Config| native::Config {
        spawner: command(),
        egress,
        ..native::Config::new(format!("{name}-{suffix}"), &state.0)
    };
    let egress = egress::Config {
        deny: vec!["198.51.100.0/24".parse().unwrap()],
        allow: vec!["198.51.100.8".parse().unwrap()],
        resolvers: vec!["203.0.113.2".parse().unwrap()],
    };
    contained(&format!("{name}-oci"), &state, egress.clone()).await;
    let driver = Native::new(config("out", egress)).await.unwrap();
    println!("{}", driver.describe().why);
    assert!(driver.describe().reaches_out);
    let before = links();

    // There and back: small, large, many at once, half closed, as datagrams, by name.
    assert_eq!(says(&driver, &["talk", "203.0.113.2:7000", "1", "1"]).await, "ok");
    assert_eq!(says(&driver, &["talk", "203.0.113.2:7000", "4096", "1"]).await, "ok");
    assert_eq!(says(&driver, &["talk", "203.0.113.2:7000", "256", "64"]).await, "ok");
    assert_eq!(says(&driver, &["talk", "198.51.100.8:7000", "1", "1"]).await, "ok");
    assert_eq!(says(&driver, &["talk", "[2001:db8:1::2]:7000", "256", "8"]).await, "ok");
    assert_eq!(says(&driver, &["half", "203.0.113.2:7000"]).await, "half 0");
    assert_eq!(says(&driver, &["ask", "203.0.113.2:7000"]).await, "ok");
    assert_eq!(says(&driver, &["resolve", "anything.example"]).await, "203.0.113.2");
    println!("{}", says(&driver, &["download", "203.0.113.2:7000", "65536"]).await);

    // Nobody listens there.
    let refused = libc::ECONNREFUSED.to_string();
    assert_eq!(says(&driver, &["connect", "203.0.113.2:9"]).await, refused);
    // Somebody does, and is not reached: metadata, what the operator denies, the host by each of its addresses.
    let never = ["169.254.169.254:80", "100.100.100.200:80", "[fd00:ec2::254]:80"];
    for address in [never.as_slice(), &["198.51.100.7:7000", "192.0.0.8:7000"]].concat() {
        assert_eq!(says(&driver, &["connect", address]).await, refused, "{address}");
    }
    let reached = Arc::new(AtomicUsize::new(0));
    // For both versions of the protocol.
    let listener = TcpListener::bind("[::]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = Arc::clone(&reached);
    std::thread::spawn(move || {
        for _ in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let six = format!("[{HOST_6}]");
    for address in [HOST, &six, "127.0.0.1", "127.1.2.3", "0.0.0.0", "192.0.0.1", "192.0.0.2", "[::1]"] {
        assert_eq!(says(&driver, &["connect", &format!("{address}:{port}")]).await, refused, "{address}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0, "the host was reached");
    // It is reached by who may: the listener is no fiction.
    drop(std::net::TcpStream::connect((HOST, port)).unwrap());
    kit::until("the host reaches itself", || reached.load(Ordering::SeqCst) == 1);

    // What is not denied by the operator is reached without him: the denial above was his.
    let open = Native::new(config("open", egress::Config::default())).await.unwrap();
    assert_eq!(says(&open, &["talk", "198.51.100.7:7000", "1", "1"]).await, "ok");
    assert_eq!(says(&open, &["connect", "169.254.169.254:80"]).await, refused);

    // Others with a network of their own are still alone.
    let closed = Spec { network: Network::None, ..spec("closed", &["connect", "203.0.113.2:7000"]) };
    let sandbox = driver.create(closed).await.unwrap();
    let stdio = sandbox.start(Vec::new()).await.unwrap();
    let text = tokio::task::spawn_blocking(move || {
        rustix::io::ioctl_fionbio(&stdio.stdout, false).unwrap();
        let mut text = String::new();
        std::fs::File::from(stdio.stdout).read_to_string(&mut text).map(|_| text)
    });
    assert_eq!(text.await.unwrap().unwrap().trim(), libc::ENETUNREACH.to_string());
    // Nothing of all that was ever the host's.
    assert_eq!(links(), before);
}

/// The same way out of containers that a runtime made, as far as it depends on them.
async fn contained(name: &str, state: &State, egress: egress::Config) {
    let config = oci::Config { spawner: command(), egress, ..oci::Config::new(name, &state.0) };
    let driver = match Oci::new(config).await {
        Ok(driver) => driver,
        Err(Error::Unsupported(why)) => return println!("left out: {why}"),
        Err(error) => panic!("{error}"),
    };
    assert!(driver.describe().reaches_out);
    assert_eq!(says(&driver, &["talk", "203.0.113.2:7000", "256", "8"]).await, "ok");
    assert_eq!(says(&driver, &["talk", "[2001:db8:1::2]:7000", "1", "1"]).await, "ok");
    assert_eq!(says(&driver, &["ask", "203.0.113.2:7000"]).await, "ok");
    assert_eq!(says(&driver, &["resolve", "anything.example"]).await, "203.0.113.2");
    let refused = libc::ECONNREFUSED.to_string();
    for address in ["169.254.169.254:80", "198.51.100.7:7000"] {
        assert_eq!(says(&driver, &["connect", address]).await, refused, "{address}");
    }
    driver.close().await;
}

/// Where tunnels cannot be made, that is said, and by whom it can be mended.
#[tokio::test(flavor = "multi_thread")]
async fn no_device_is_a_precise_answer() {
    if std::fs::File::options().read(true).write(true).open(egress::DEVICE).is_ok() {
        println!("left out: tunnels can be made here; the ordinary user of the other tests cannot");
        return;
    }
    let state = State::new("no-device");
    let driver =
        Native::new(native::Config { spawner: command(), ..native::Config::new("no-device", &state.0) })
            .await
            .unwrap();
    assert!(!driver.describe().reaches_out);
    let error = driver.create(spec("out", &["say", "x"])).await.err().unwrap();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains(egress::DEVICE)), "{error}");
}

#[test]
fn no_device_is_a_precise_answer_to_an_ordinary_user() {
    if !we_are_root() {
        println!("left out: already an ordinary user");
        return;
    }
    let state = State::new("no-device-rootless");
    pass_as_ordinary(&state, &["--exact", "no_device_is_a_precise_answer"], &[]);
}
