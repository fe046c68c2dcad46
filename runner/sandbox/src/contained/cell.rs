//! The runner's side of one container: as a native sandbox's, but that an engine holds it.
//!
//! A **keeper** task owns the end of it: it hears the init, notices its death through its pidfd, reads what the cgroup counted
//! while that is still there, and has the engine remove what is left. Handles only send orders and read the result, so dropping one at
//! any moment is safe and never waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustix::fs::{Gid, Uid, fchown};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};

use super::{Door, Holder};
use crate::cell::{Channel, settled, usage};
use crate::cgroup::Leaf;
use crate::wire::{Launch, Launched, Order, Plan, Report};
use crate::{Error, Exit, ExitCause, Sandbox, Shared, Stdio, Usage, User, sys};

/// A container with our init in it.
pub struct Container {
    id: String,
    shared: Option<Shared>,
    inner: Arc<Inner>,
    /// The parked process and the runner's ends of its pipes, until it is started.
    parked: Mutex<Option<(Channel, Stdio)>>,
}

struct Inner {
    control: Channel,
    pidfd: AsyncFd<OwnedFd>,
    leaf: Leaf,
    holder: Arc<dyn Holder>,
    exit: watch::Receiver<Option<Exit>>,
    /// One order at a time that is answered; and the answers.
    answers: tokio::sync::Mutex<mpsc::Receiver<(Report, Option<OwnedFd>)>>,
    /// What it had used when it ended.
    last_usage: Mutex<Option<Usage>>,
}

fn platform(step: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let step = step.to_owned();
    move |source| Error::Platform { step, source }
}

impl Container {
    /// Waits for the init of a container that the engine has started, and has it park the function's process. Whatever fails, and
    /// whenever it ends: then the holder removes it.
    ///
    /// # Errors
    /// As [`crate::Driver::create`] says.
    pub async fn receive(door: Door, plan: Plan, user: User, holder: Arc<dyn Holder>) -> Result<Self, Error> {
        let made = Self::inhabit(door, plan, user, Arc::clone(&holder)).await;
        made.map_err(|error| match error {
            Error::Platform { step, source } => {
                let words = holder.last_words();
                let source = match words.is_empty() {
                    true => source,
                    false => io::Error::new(source.kind(), format!("{source}: {words}")),
                };
                Error::Platform { step, source }
            }
            error => error,
        })
    }

    async fn inhabit(door: Door, plan: Plan, user: User, holder: Arc<dyn Holder>) -> Result<Self, Error> {
        let entered = async {
            let (control, pid, pidfd) = door.enter().await?;
            let pidfd = sys::watch(pidfd, Interest::READABLE)?;
            holder.entered(pid)?;
            Ok((control, Leaf::of_process(pid)?, pidfd))
        };
        let (control, leaf, pidfd) = match entered.await {
            Ok(entered) => entered,
            Err(source) => {
                holder.remove().await;
                return Err(platform("wait for the container's init")(source));
            }
        };
        let (exit, exited) = watch::channel(None);
        let (answer, answers) = mpsc::channel(4);
        let inner = Arc::new(Inner {
            control,
            pidfd,
            leaf,
            holder,
            exit: exited,
            answers: tokio::sync::Mutex::new(answers),
            last_usage: Mutex::default(),
        });
        tokio::spawn(keep(Arc::clone(&inner), exit, answer));
        // From here on, dropping the container ends it.
        let mut container = Self { id: plan.id.clone(), shared: None, inner, parked: Mutex::default() };

        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| platform("make a pipe")(error.into()));
        let (stdin, our_stdin) = pipe()?;
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        for (ours, theirs) in [(&our_stdin, &stdin), (&our_stdout, &stdout), (&our_stderr, &stderr)] {
            // Else /dev/stdout would be closed to it.
            let owned = fchown(theirs, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
            owned
                .and_then(|()| rustix::io::ioctl_fionbio(ours, true))
                .map_err(|error| platform("make a pipe")(error.into()))?;
        }
        let (our_launch, launch) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|error| platform("make a socket pair")(error.into()))?;
        let our_launch = Channel::new(our_launch).map_err(platform("make a socket pair"))?;
        let inside = plan.shared.clone();
        let pipes = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), launch.as_fd()];
        let sent = container.inner.control.send(&Order::Build(Box::new(plan)), &pipes).await;
        drop((stdin, stdout, stderr, launch));
        sent.map_err(platform("instruct the container's init"))?;
        let died = || io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it was done");
        let answer = container.inner.answers.lock().await.recv().await;
        let handle = match answer {
            Some((Report::Built, handle)) => handle,
            Some((Report::Failed(failure), _)) => return Err(failure.into()),
            Some(_) => return Err(platform("build the sandbox")(io::ErrorKind::InvalidData.into())),
            None => return Err(platform("build the sandbox")(died())),
        };
        match our_launch.receive::<Launched>().await {
            Ok(Some(Launched::Parked)) => {}
            Ok(Some(Launched::Failed(failure))) => return Err(failure.into()),
            Ok(None) => return Err(platform("park the function's process")(died())),
            Err(error) => return Err(platform("park the function's process")(error)),
        }
        if let Some(inside) = inside {
            let directory = handle.ok_or_else(|| platform("open the shared directory")(died()))?;
            container.shared = Some(Shared { directory, inside });
        }
        let stdio = Stdio { stdin: our_stdin, stdout: our_stdout, stderr: our_stderr };
        container.parked = Mutex::new(Some((our_launch, stdio)));
        Ok(container)
    }
}

impl Inner {
    /// Kills everything in it, without waiting.
    fn kill_now(&self) {
        // Of what is frozen on version 1, nothing dies before it is thawed: the leaf sees to it.
        self.leaf.kill();
        // Gone already is as good.
        pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL).ok();
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        // The keeper goes only with the runtime.
        ended
            .ok()
            .and_then(|exit| *exit)
            .unwrap_or(Exit { cause: ExitCause::Signal(libc::SIGKILL), out_of_memory: false })
    }

    async fn ask(&self, order: Order) -> Result<(Report, Option<OwnedFd>), Error> {
        let mut answers = self.answers.lock().await;
        self.control.send(&order, &[]).await.map_err(platform("give an order to the sandbox"))?;
        let ended = || io::Error::new(io::ErrorKind::BrokenPipe, "it ended");
        answers.recv().await.ok_or_else(|| platform("give an order to the sandbox")(ended()))
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let step = if frozen { "freeze" } else { "thaw" };
        let ended = || platform(step)(io::Error::new(io::ErrorKind::NotFound, "the sandbox has ended"));
        if self.exit.borrow().is_some() {
            return Err(ended());
        }
        let freezer = self.leaf.freezer();
        let Some(freezer) = freezer.filter(|freezer| freezer.set(frozen).is_ok()) else {
            return self.holder.set_frozen(frozen).await;
        };
        let mut exit = self.exit.clone();
        tokio::select! {
            still = settled(&freezer, frozen) => still.map_err(platform(step)),
            _ = exit.wait_for(Option::is_some) => Err(ended()),
        }
    }

    /// Reads what the cgroup has counted, for when it is gone.
    fn count(&self) -> bool {
        let mut last = self.last_usage.lock().unwrap_or_else(PoisonError::into_inner);
        let now = usage(&self.leaf);
        if last.is_none() || now != Usage::default() {
            *last = Some(now);
        }
        self.leaf.memory_kills() > 0
    }
}

/// Stays with a container until it is gone, then has it removed.
async fn keep(
    inner: Arc<Inner>,
    exit: watch::Sender<Option<Exit>>,
    answer: mpsc::Sender<(Report, Option<OwnedFd>)>,
) {
    let mut cause = None;
    let mut out_of_memory = false;
    let mut heard = true;
    loop {
        tokio::select! {
            // First what the init still said, then that it is gone.
            biased;
            message = inner.control.receive::<Report>(), if heard => match message {
                Ok(Some(Report::Ended { code, signal, .. })) => {
                    cause = code.map(ExitCause::Code).or(signal.map(ExitCause::Signal));
                    // The engine removes the cgroup when the init ends, which waits for us to have looked.
                    out_of_memory = inner.count();
                    // Its end takes what the function left with it.
                    pidfd_send_signal(inner.pidfd.get_ref(), Signal::KILL).ok();
                }
                Ok(Some(report)) => {
                    // Only what we asked for is answered, one at a time; more is a lie that nobody hears.
                    answer.try_send((report, inner.control.descriptor())).ok();
                }
                Ok(None) | Err(_) => heard = false,
            },
            ended = inner.pidfd.readable() => {
                if ended.is_ok() {
                    break;
                }
            }
        }
    }
    // What the init said last may have arrived with its end.
    inner.control.drain();
    while let Ok(Some(report)) = inner.control.take() {
        match report {
            Report::Ended { code, signal, .. } => {
                cause = code.map(ExitCause::Code).or(signal.map(ExitCause::Signal));
            }
            report => _ = answer.try_send((report, inner.control.descriptor())),
        }
    }
    drop(answer);
    out_of_memory |= inner.count();
    let cause = cause.unwrap_or(ExitCause::Signal(libc::SIGKILL));
    // Its processes are gone: what the engine still has to write off is no reason to wait.
    exit.send_replace(Some(Exit { cause, out_of_memory }));
    inner.holder.remove().await;
}

#[async_trait]
impl Sandbox for Container {
    fn id(&self) -> &str {
        &self.id
    }

    fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref()
    }

    async fn start(&self, env: Vec<(String, String)>) -> Result<Stdio, Error> {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (launch, stdio) = parked.ok_or_else(|| {
            platform("start the sandbox")(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it was started before",
            ))
        })?;
        launch.send(&Launch { env }, &[]).await.map_err(platform("start the sandbox"))?;
        match launch.receive::<Launched>().await {
            // Closed by exec, or by a death just before it, which wait and the pipes tell.
            Ok(None) => Ok(stdio),
            Ok(Some(Launched::Failed(failure))) => Err(failure.into()),
            Ok(Some(Launched::Parked)) => {
                Err(platform("start the sandbox")(io::ErrorKind::InvalidData.into()))
            }
            Err(error) => Err(platform("start the sandbox")(error)),
        }
    }

    async fn listen(&self, address: SocketAddr) -> Result<std::net::TcpListener, Error> {
        let fail = platform(&format!("listen on {address} in the sandbox"));
        match self.inner.ask(Order::Listen(address)).await? {
            (Report::Listening, Some(listener)) => {
                let listener = std::net::TcpListener::from(listener);
                match listener.set_nonblocking(true) {
                    Ok(()) => Ok(listener),
                    Err(error) => Err(fail(error)),
                }
            }
            (Report::NotListening { errno }, _) => Err(fail(io::Error::from_raw_os_error(errno))),
            _ => Err(fail(io::ErrorKind::InvalidData.into())),
        }
    }

    async fn freeze(&self) -> Result<(), Error> {
        self.inner.set_frozen(true).await
    }

    async fn thaw(&self) -> Result<(), Error> {
        self.inner.set_frozen(false).await
    }

    async fn stop(&self, grace: Duration) -> Exit {
        if !grace.is_zero() && self.inner.exit.borrow().is_none() {
            let asked = async {
                // Not frozen or ended already are as good.
                self.inner.set_frozen(false).await.ok();
                self.inner.control.send(&Order::Terminate, &[]).await.ok();
                self.inner.exited().await
            };
            if let Ok(exit) = tokio::time::timeout(grace, asked).await {
                return exit;
            }
        }
        self.inner.kill_now();
        self.inner.exited().await
    }

    async fn wait(&self) -> Exit {
        self.inner.exited().await
    }

    async fn usage(&self) -> Usage {
        let last = *self.inner.last_usage.lock().unwrap_or_else(PoisonError::into_inner);
        last.unwrap_or_else(|| usage(&self.inner.leaf))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.inner.exit.borrow().is_none() {
            self.inner.kill_now();
        }
    }
}
