//! Calls that wait for a container, and those that have one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::Digest;
use stoker_core::{CallId, Warmth};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::Pools;
use super::why::Cold;
use crate::container::{Container, LaunchError};

/// Nothing has to move for at least this long before a call goes elsewhere: to be moved costs little, but more than a short call.
const STANDSTILL: Duration = Duration::from_millis(500);

/// What a waiting call gets.
pub type Given = Result<Lease, LaunchError>;

/// Who offers a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker {
    /// A number of its balancer.
    pub balancer: u64,
    /// The call has waited there.
    pub waited: bool,
}

/// A call in the line.
pub struct Waiter {
    pub id: u64,
    /// Whose it is.
    pub balancer: u64,
    pub since: Instant,
    /// A launch was started for it.
    pub caused: bool,
    /// It waited longer than a launch takes: no estimate holds it back any more.
    pub overdue: bool,
    /// How far things had come when it looked last.
    pub seen: Option<u64>,
    pub call: CallId,
    pub give: oneshot::Sender<Given>,
}

/// A place in the line. Dropping it leaves the line.
pub struct Ticket {
    pub(super) pools: Arc<Pools>,
    pub(super) digest: Digest,
    pub(super) id: u64,
    pub(super) receive: oneshot::Receiver<Given>,
    pub(super) patience: Duration,
    pub(super) expected: Duration,
}

impl Ticket {
    /// Until there is a container, the launch that this call caused failed, or nothing has moved for so long that another runner
    /// is the better place.
    pub async fn wait(mut self) -> Given {
        let mut pause = self.patience;
        loop {
            tokio::select! {
                received = &mut self.receive => return received.unwrap_or(Err(LaunchError::Stopping)),
                () = tokio::time::sleep(pause) => {}
            }
            // What it may have been given meanwhile is received above.
            self.pools.overdue(self.digest, self.id);
            pause = (pause * 2).max(self.expected).max(STANDSTILL);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pools.leave(self.digest, self.id);
    }
}

/// A slot in a container, held for one call. Dropping it without [`Lease::finish`] ends the container
/// if the call had [touched](Lease::touch) it: nobody knows what it left behind.
pub struct Lease {
    pub(super) pools: Arc<Pools>,
    pub container: Arc<Container>,
    pub(super) digest: Digest,
    pub(super) seq: u64,
    pub(super) call: CallId,
    /// A connection from an earlier call, if one is fresh.
    pub connection: Option<UnixStream>,
    /// The call waited for a launch, and is the first in its container.
    pub cold: bool,
    /// Why its container was launched, where a call waited for that.
    pub why: Cold,
    /// No call ran in its container before.
    pub fresh: bool,
    pub(super) touched: Option<Instant>,
    pub(super) done: bool,
}

impl Lease {
    /// From here on the function may see something of the call.
    pub fn touch(&mut self) {
        self.touched = Some(Instant::now());
    }

    /// The call is over; `keep` says whether the container takes another.
    pub fn finish(mut self, keep: bool, connection: Option<UnixStream>) -> Warmth {
        self.done = true;
        let pools = self.pools.clone();
        pools.release(&self, keep, connection)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.done {
            let (pools, keep) = (self.pools.clone(), self.touched.is_none());
            let connection = self.connection.take().filter(|_| keep);
            pools.release(self, keep, connection);
        }
    }
}
