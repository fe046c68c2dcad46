//! The way out of a sandbox: `network: egress`.
//!
//! A function's only interface is a tunnel whose other end is here. Its TCP connections end at a stack in user space and go on as
//! connections of the runner's, its UDP datagrams as datagrams of the runner's. So whatever a function asks for is an address that we see
//! and may refuse before any packet exists: nothing is forwarded. It takes no packet filter, no bridge, no address of the host's network, no
//! privilege beyond the sandbox's own, and leaves nothing on the host that a crash could leave behind (ADR 0013).
//!
//! [`Policy`] decides what may be reached. [`Way`] is one sandbox's stack: a task that ends when it is dropped.

mod packet;
mod policy;
mod stack;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

pub use policy::{Config, Policy};

use crate::handover::{FdNumber, PassedFds};
use crate::{Error, Network, sys};

/// What tunnels are made of.
pub const DEVICE: &str = "/dev/net/tun";
/// The function's address: of a block that is assigned to nobody and routed nowhere (RFC 7335), so it hides nothing.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 2);
/// The same in a private network of our own.
pub const INSIDE_6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x746f, 0x6b65, 0, 0, 0, 0, 2);
/// Large, since no wire carries it: fewer packets for the same bytes.
pub const MTU: usize = 9000;

/// What ways out of a driver's sandboxes lead to, or why there can be none.
pub struct Gate(Result<Arc<Policy>, String>);

impl Gate {
    /// Tries whether this process may make tunnels.
    pub fn new(config: &Config) -> Self {
        let tried = std::fs::File::options().read(true).write(true).open(DEVICE);
        let policy = tried.and_then(|_| Policy::new(config)).map(Arc::new);
        Self(policy.map_err(|error| error.to_string()))
    }

    /// What may be reached.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.0.as_ref().ok()
    }

    /// Why there is no way out.
    pub fn closed(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }

    /// Whether a sandbox can have what it asks for.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with what would help.
    pub fn check(&self, asked: Network) -> Result<(), Error> {
        match (asked, &self.0) {
            (Network::Egress, Err(why)) => Err(Error::Unsupported(format!(
                "network egress needs {DEVICE}, which the runner cannot use here ({why}): give it to the runner, or use network none, or host where the function may reach all that the host does",
            ))),
            _ => Ok(()),
        }
    }
}

/// The runner's end of one sandbox's tunnel, while it lives.
pub struct Way {
    tunnel: Arc<AsyncFd<OwnedFd>>,
    /// Connections that the stack has.
    open: Arc<AtomicUsize>,
    stack: JoinHandle<()>,
}

impl Way {
    /// Serves a tunnel.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn serve(tunnel: OwnedFd, policy: Arc<Policy>) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&tunnel, true)?;
        let tunnel = Arc::new(sys::watch(tunnel, Interest::READABLE | Interest::WRITABLE)?);
        let open = Arc::<AtomicUsize>::default();
        let stack = stack::Stack::new(Arc::clone(&tunnel), policy, Arc::clone(&open))?;
        Ok(Self { tunnel, open, stack: tokio::spawn(stack) })
    }

    /// Leaves the tunnel to the next program of this process, which [serves](Self::serve) it with another stack: nothing is known of a function
    /// without connections. What it sends meanwhile waits in the tunnel; of datagrams some may be lost, as of any.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while connections are open: they are the runner's.
    pub fn hand_over(&self, passed: &mut PassedFds) -> Result<FdNumber, Error> {
        let open = self.open.load(Ordering::Relaxed);
        if open > 0 {
            return Err(Error::Unsupported(format!("connections by its way out are open: {open}")));
        }
        self.stack.abort();
        let kept = passed.keep(self.tunnel.get_ref());
        kept.map_err(|source| Error::Platform { step: "hand the way out over".to_owned(), source })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        // With it go its connections, and the last hold on the sandbox's network namespace.
        self.stack.abort();
    }
}
