//! What carries a call into a container and its answer out of it: a connection to its socket, or its STDIN and STDOUT.
//!
//! Pipes are a container's for life, and with them the one buffer of what came on STDOUT and no call has taken. Before a call gets
//! them, [`Pipes::check`] proves that nothing came since the last answer: what the last call left must not become this one's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use stoker_format::{excerpt, quiet};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf, pipe};

/// Most space between two answers that is passed over at once.
const MAX_SPACE: usize = 64 * 1024;

/// The way to a function.
pub enum Channel {
    /// The process of this one call is still to be started.
    Process,
    Socket(UnixStream),
    Pipes(Pipes),
    /// The function asks for its calls itself.
    Api,
}

/// Bytes that a pipe holds where much goes through it: so much fewer turns do the runner and the function take.
const WIDE: usize = 512 * 1024;

/// What a long body goes through.
pub trait Widen {
    /// Makes it hold more, where that can be.
    fn widen(&self) {}
}

impl Widen for pipe::Sender {
    fn widen(&self) {
        // All pipes of an ordinary user share a limit: beyond it this one stays as it is.
        _ = rustix::pipe::fcntl_setpipe_size(self, WIDE);
    }
}

impl Widen for pipe::Receiver {
    fn widen(&self) {
        _ = rustix::pipe::fcntl_setpipe_size(self, WIDE);
    }
}

impl<T: Widen> Widen for &mut T {
    fn widen(&self) {
        (**self).widen();
    }
}

impl Widen for ReadHalf<'_> {}
impl Widen for WriteHalf<'_> {}

/// STDIN and STDOUT of a container that takes many calls.
pub struct Pipes {
    pub stdin: pipe::Sender,
    pub stdout: pipe::Receiver,
    /// Read, and taken by no call.
    pub input: BytesMut,
    /// The function has come up: it has answered something.
    pub awake: bool,
}

/// Why a container takes no call. Nothing of the call has reached it.
#[derive(Debug)]
pub enum Unfit {
    /// It wrote what nobody had asked for.
    Noise(String),
    /// It closed its end, as one does that ends.
    Closed(&'static str),
    /// The machine's.
    System(String),
}

impl Pipes {
    /// Looks whether the function is there and has been silent, at the price of one system call. Space is no noise.
    ///
    /// # Errors
    /// Why it takes no call.
    pub fn check(&mut self) -> Result<(), Unfit> {
        let mut some = [0; 1024];
        let mut left = MAX_SPACE;
        while quiet(&mut self.input) {
            let (stdout, stdin) = (PollFlags::IN, PollFlags::empty());
            let mut ends =
                [PollFd::from_borrowed_fd(self.stdout.as_fd(), stdout), PollFd::new(&self.stdin, stdin)];
            match rustix::event::poll(&mut ends, Some(&Timespec::default())) {
                Ok(0) => return Ok(()),
                Ok(_) if ends[0].revents().is_empty() => return Err(Unfit::Closed("STDIN")),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Unfit::System(format!("look at a pipe: {error}"))),
            }
            match rustix::io::read(&self.stdout, &mut some) {
                Ok(0) => return Err(Unfit::Closed("STDOUT")),
                Ok(count) if count > left => return Err(Unfit::Noise("space without end".to_owned())),
                Ok(count) => {
                    left -= count;
                    self.input.extend_from_slice(&some[..count]);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(Unfit::System(format!("read a pipe: {error}"))),
            }
        }
        Err(Unfit::Noise(excerpt(&self.input)))
    }

    /// How many bytes stand in the function's STDIN, unread.
    pub fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.stdin).unwrap_or(0)
    }

    /// Another eye on STDOUT, that takes nothing from it.
    pub fn eye(&self) -> io::Result<Eye> {
        let stdout = self.stdout.as_fd().try_clone_to_owned()?;
        #[expect(deprecated, reason = "its replacement is unsafe; an `OwnedFd` keeps what that asks for")]
        let stdout = AsyncFd::with_interest(stdout, Interest::READABLE)?;
        Ok(Eye(stdout))
    }
}

/// Sees when a container that has no call says something, or closes its STDOUT.
pub struct Eye(AsyncFd<OwnedFd>);

impl Eye {
    /// Until something came since the eye was opened. Who is called takes another look: a call may have come instead.
    pub async fn opens(&self) {
        // An error is something, too.
        drop(self.0.readable().await);
    }
}
