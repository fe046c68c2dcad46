//! A network of a test's own: every server on a host of its own (a network namespace), and between all hosts a [`switch`] of ours that
//! passes, delays, loses or swallows packets, by who sends them to whom.
//!
//! The kernel's own `netem` is not in every kernel (a test that needs it runs under the one of `tests/vm`), and cannot tell two pairs of hosts on one bridge apart. Here TCP is the kernel's, packets are
//! real, and what becomes of each is decided in one place. Mounts that a test makes are its own too. Nothing of it has a name on the machine,
//! so nothing of it can be left behind: it goes with the processes in it.

pub mod switch;
mod tun;

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use self::switch::Switch;
pub use self::switch::Way;

/// The test itself, with its clients.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The members of etcd: on the test's own host, at addresses of their own, so that each can be cut off by itself.
pub const ETCD: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3), Ipv4Addr::new(10, 77, 0, 4)];

/// The first host that is made has this number at the end of its address.
const FIRST: u8 = 10;

/// The interface of every host.
const DEVICE: &str = "net0";

/// See the module.
pub struct Net {
    switch: Switch,
    next: AtomicU8,
}

/// A host: its address, and the namespace that it is.
#[derive(Debug, Clone)]
pub struct Host {
    pub address: Ipv4Addr,
    namespace: Arc<OwnedFd>,
}

/// Runs a test in a network of its own. Left out, with a message, where that needs a right that we do not have.
///
/// # Panics
/// When the test does.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce(Arc<Net>) -> F + Send) {
    if !rustix::process::geteuid().is_root() || !tun::is_there() {
        println!("left out: networks of their own need root and /dev/net/tun");
        return;
    }
    // A thread of its own: what it leaves behind (the machine's network, its mounts) it leaves for good, and all that it starts with it.
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apart(UnshareFlags::NEWNET | UnshareFlags::NEWNS);
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            let switch = Switch::start();
            switch.connect(&[&[HERE], &ETCD[..]].concat(), join(&[&[HERE], &ETCD[..]].concat()));
            let net = Arc::new(Net { switch, next: AtomicU8::new(FIRST) });
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(test(net));
        });
        thread.join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

impl Net {
    /// A new host.
    #[must_use]
    pub fn host(&self) -> Host {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(number >= FIRST, "no test has so many hosts");
        let address = Ipv4Addr::new(10, 77, 0, number);
        // A thread that enters the new namespace, and ends in it.
        let (namespace, device) = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                apart(UnshareFlags::NEWNET);
                let device = join(&[address]);
                (OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap()), device)
            });
            made.join().unwrap()
        });
        self.switch.connect(&[address], device);
        Host { address, namespace: Arc::new(namespace) }
    }

    /// What becomes of packets from one address to another, from now on.
    pub fn way(&self, from: Ipv4Addr, to: Ipv4Addr, way: Way) {
        self.switch.set(from, to, way);
    }

    /// The same, both ways.
    pub fn between(&self, one: Ipv4Addr, other: Ipv4Addr, way: Way) {
        self.way(one, other, way);
        self.way(other, one, way);
    }

    /// How many packets were lost or swallowed so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.switch.lost()
    }
}

impl Host {
    /// A command that runs there.
    #[must_use]
    pub fn command(&self, program: &std::path::Path) -> tokio::process::Command {
        // It enters the namespace and becomes the program, under the same process id.
        let mut command = tokio::process::Command::new("nsenter");
        let namespace = format!("--net=/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd());
        command.arg(namespace).arg(program);
        command
    }

    /// What the kernel's own `netem` does to each packet that leaves it, in the words of `tc`; gives what it says of those before.
    ///
    /// # Panics
    /// Where the kernel has none.
    pub async fn netem(&self, words: &str) -> String {
        let tc = async |line: String| {
            let mut command = self.command("tc".as_ref());
            let ran = command.args(line.split_whitespace()).output().await.unwrap();
            assert!(ran.status.success(), "tc {line}: {}", String::from_utf8_lossy(&ran.stderr));
            String::from_utf8(ran.stdout).unwrap()
        };
        let before = tc(format!("-statistics qdisc show dev {DEVICE}")).await;
        tc(format!("qdisc replace dev {DEVICE} root netem {words}")).await;
        before
    }
}

#[allow(unsafe_code, reason = "leaving the machine's network and mounts behind")]
fn apart(what: UnshareFlags) {
    // SAFETY: of these flags none concerns file descriptors, which is what makes the call unsafe.
    unsafe { rustix::thread::unshare_unsafe(what) }.unwrap();
}

/// Gives the namespace of this thread an interface with these addresses.
fn join(addresses: &[Ipv4Addr]) -> OwnedFd {
    let device = tun::make(DEVICE).unwrap();
    let mut batch = String::from("link set lo up\n");
    for address in addresses {
        batch += &format!("address add {address}/24 dev {DEVICE}\n");
    }
    batch += &format!("link set {DEVICE} up\n");
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success(), "{batch}");
    device
}
