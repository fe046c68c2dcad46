//! A container with our init in it, as a sandbox: the init has come through its door, and an engine holds the rest.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use super::{Handed, Holder, Started};
use crate::cgroup::Leaf;
use crate::channel::died;
use crate::egress::{Gate, Policy, Way};
use crate::handover::{HandedSandbox, InheritedFds, PassedFds};
use crate::init::tunnel;
use crate::init_sandbox::{Backing, Held, InitSandbox, Making, TAKE_UP, too_little_memory};
use crate::{Error, Network, User, sys};

/// Why nobody came in, or could stay.
enum Absent {
    Failed(io::Error),
    TooLittleMemory,
}

impl From<io::Error> for Absent {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Waits for the init of a container that the engine has started, and has it park the function's process. Whatever fails, and
/// whenever it ends: then the holder removes it.
///
/// # Errors
/// As [`crate::Driver::create`] says.
pub async fn receive(
    Started { door, leader, plan, end, shared, lacks_loopback }: Started,
    user: User,
    way: Option<Arc<Policy>>,
    holder: Arc<dyn Holder>,
) -> Result<InitSandbox, Error> {
    let entered = async {
        let (control, pid, pidfd) = tokio::select! {
            // One that has come in tells its end itself.
            biased;
            entered = door.enter(leader) => entered?,
            ended = end => return Err(match ended.out_of_memory {
                true => Absent::TooLittleMemory,
                false => io::Error::other(ended.to_string()).into(),
            }),
        };
        holder.entered(pid)?;
        let six = way.as_ref().map(|policy| policy.six);
        let tunnel = match lacks_loopback || six.is_some() {
            true => furnish(pid, lacks_loopback, six).await?,
            false => None,
        };
        let way = tunnel.zip(way).map(|(tunnel, policy)| Way::serve(tunnel, policy)).transpose()?;
        let leaf = Leaf::of_process(pid)?;
        // While it lives its number is its own: what was found by it is its, and no other process's that may be killed with it.
        if !control.is_open() {
            return Err(died().into());
        }
        Ok((control, leaf, pidfd, way))
    };
    let (control, leaf, pidfd, way) = match entered.await {
        Ok(entered) => entered,
        Err(absent) => {
            let error = match absent {
                Absent::TooLittleMemory => too_little_memory(),
                Absent::Failed(error) => {
                    let words = holder.last_words().await;
                    let source = match words.is_empty() {
                        true => error,
                        false => io::Error::new(error.kind(), format!("{error}: {words}")),
                    };
                    Error::Platform { step: "wait for the container's init".to_owned(), source }
                }
            };
            holder.remove().await;
            return Err(error);
        }
    };
    let backing = Arc::new(Lent { leaf: Arc::new(leaf), way: Mutex::new(way), holder });
    let inside = plan.shared.clone();
    InitSandbox::build(Making { plan, inside, shared, control, pidfd, backing, owner: Some(user) }).await
}

/// Takes up a container of the process's former program; `hold` finds the holder of what it has by its number.
///
/// # Errors
/// [`Error::Platform`] when a part of it was not left; [`Error::Unsupported`] when it has a way out, and that cannot be any more. Then it ends.
pub fn take_up(
    mut sandbox: HandedSandbox,
    gate: &Gate,
    hold: impl FnOnce(&Handed) -> Arc<dyn Holder>,
    inherited: &mut InheritedFds,
) -> Result<InitSandbox, Error> {
    let fail = |source| Error::Platform { step: TAKE_UP.to_owned(), source };
    let Held { leaf, container, tunnel, .. } = std::mem::take(&mut sandbox.held);
    let (Some(leaf), Some(container)) = (leaf, container) else {
        return Err(fail(io::ErrorKind::InvalidData.into()));
    };
    let way = match tunnel {
        Some(tunnel) => {
            gate.check(Network::Egress)?;
            let tunnel = inherited.take(tunnel).map_err(fail)?;
            gate.policy().cloned().map(|policy| Way::serve(tunnel, policy)).transpose().map_err(fail)?
        }
        None => None,
    };
    let pidfd = inherited.take(sandbox.init).map_err(fail)?;
    let backing = Arc::new(Lent { leaf: Arc::new(leaf), way: Mutex::new(way), holder: hold(&container) });
    InitSandbox::take_up(sandbox, backing, pidfd, inherited)
}

/// Sets up what the network of a process lacks, from outside of it: its loopback interface, and a tunnel where it has a way out (`six`: with the
/// sixth version of the protocol), whose other end this gives.
async fn furnish(of: Pid, loopback: bool, six: Option<bool>) -> io::Result<Option<OwnedFd>> {
    in_network(of, move || {
        if loopback {
            sys::interface_up(c"lo")?;
            // Any port is free to a function that has the whole interface to itself. Not having it harms few.
            std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").ok();
        }
        let Some(six) = six else { return Ok(None) };
        // Engines close it where there is nothing but the loopback interface.
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0").ok();
        tunnel::make(six).map(Some).map_err(|failure| {
            let error = io::Error::from_raw_os_error(failure.errno);
            io::Error::new(error.kind(), format!("{}: {error}", failure.step))
        })
    })
    .await
}

/// Makes something in the network of a process.
async fn in_network<T: Send + 'static>(
    of: Pid,
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (give, made) = oneshot::channel();
    // On a thread of its own, which ends in that network.
    std::thread::Builder::new().name("stoker-network".to_owned()).spawn(move || {
        // Where nobody is there, who waited has given up: what was made goes.
        give.send(enter_network(of).and_then(|()| make())).ok();
    })?;
    made.await.map_err(io::Error::other).flatten()
}

/// Moves this thread into the network of a process.
fn enter_network(of: Pid) -> io::Result<()> {
    let network = File::open(format!("/proc/{}/ns/net", of.as_raw_nonzero()))?;
    Ok(move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// How a sandbox is held that an engine made.
struct Lent {
    leaf: Arc<Leaf>,
    /// Its way out, where it has one, until it is gone.
    way: Mutex<Option<Way>>,
    holder: Arc<dyn Holder>,
}

#[async_trait]
impl Backing for Lent {
    fn leaf(&self) -> Option<Arc<Leaf>> {
        Some(Arc::clone(&self.leaf))
    }

    fn kill(&self, init: BorrowedFd<'_>) -> bool {
        // Of what is frozen on version 1, nothing dies before it is thawed: the leaf sees to it.
        self.leaf.kill();
        // Gone already is as good.
        pidfd_send_signal(init, Signal::KILL).ok();
        true
    }

    async fn set_frozen(&self, frozen: bool) -> Option<Result<(), Error>> {
        Some(self.holder.set_frozen(frozen).await)
    }

    async fn listen(&self, init: Pid, address: SocketAddr) -> Option<io::Result<TcpListener>> {
        if self.holder.hands_out() {
            return None;
        }
        Some(in_network(init, move || TcpListener::bind(address)).await)
    }

    fn lingers(&self) -> bool {
        true
    }

    fn hand_over(&self, passed: &mut PassedFds) -> Result<Held, Error> {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let tunnel = way.as_ref().map(|way| way.hand_over(passed)).transpose()?;
        let (leaf, container) = (Some(self.leaf.handed_over()), Some(self.holder.hand_over()));
        Ok(Held { leaf, container, tunnel, ..Held::default() })
    }

    async fn clear(&self) {
        // It would keep the network namespace.
        self.way.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn write_off(&self) {
        // The function's processes are gone: what the engine still has to write off is no reason to wait. What it has beside them may stand
        // still, frozen a moment after the end.
        self.leaf.kill();
        self.holder.remove().await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::process::{Command, Stdio};

    use super::*;

    /// What somebody in the network of this process hears who connects to himself.
    fn connects_to_itself(of: Pid) -> io::Result<()> {
        let connect = move || {
            enter_network(of)?;
            let listener = TcpListener::bind("127.0.0.1:0")?;
            TcpStream::connect(listener.local_addr()?).map(drop)
        };
        std::thread::spawn(connect).join().unwrap()
    }

    /// youki leaves it so.
    #[tokio::test]
    async fn a_loopback_interface_that_was_left_down_is_set_up() {
        if !rustix::process::geteuid().is_root() {
            println!("left out: only root makes networks here");
            return;
        }
        let mut inside = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Who answers has its network.
        let mut stdin = inside.stdin.take().unwrap();
        stdin.write_all(b"?").unwrap();
        inside.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = Pid::from_child(&inside);
        connects_to_itself(pid).unwrap_err();
        furnish(pid, true, None).await.unwrap();
        connects_to_itself(pid).unwrap();
        drop(stdin);
        assert!(inside.wait().unwrap().success());
    }
}
