//! Calls that no runner could take: they wait here, fairly between functions, and are woken by capacity.
//!
//! A wake-up that comes while a call is being tried is not lost: the count of wake-ups that the call saw before its try is
//! compared when it returns, and if there was one meanwhile, whoever is first in line is woken in its stead.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_policy::waiting::{FairQueue, Limits, Rate};
use tokio::sync::oneshot;

/// Lines woken by one change of the fleet; success wakes the next.
const WAKE: usize = 8;

struct Inner {
    waiting: FairQueue<u64, oneshot::Sender<()>>,
    epoch: u64,
    last: u64,
    rate: Rate,
}

/// The queue.
pub struct Queue(Mutex<Inner>);

/// Why a wait ended without a wake-up.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// No place in the line.
    Full(Duration),
    /// It took too long.
    TooLong(Duration),
}

impl Queue {
    pub fn new(limits: Limits) -> Self {
        Self(Mutex::new(Inner {
            waiting: FairQueue::new(limits),
            epoch: 0,
            last: 0,
            rate: Rate::new(Instant::now()),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be read before a try.
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Others of this function wait: who comes now stands behind them.
    pub fn is_waited_for(&self, function: u64) -> bool {
        let inner = self.lock();
        !inner.waiting.is_empty() && inner.waiting.line(&function) > 0
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// A call ended somewhere: there is room for one.
    pub fn ended(&self) {
        let mut inner = self.lock();
        inner.rate.ended(Instant::now());
        inner.wake(1);
    }

    /// A woken call found its place: there may be room for the next.
    pub fn placed(&self) {
        self.lock().wake(1);
    }

    /// The fleet changed, or a runner has more room.
    pub fn changed(&self) {
        self.lock().wake(WAKE);
    }

    /// Waits to be woken, at most until `until`; wakes by itself at `retry`, which is when a refusing runner said that asking
    /// again may help. `again` says that the call was woken before and keeps its place.
    pub async fn wait(
        &self,
        function: u64,
        epoch: u64,
        again: bool,
        until: Instant,
        retry: Instant,
    ) -> Result<(), Left> {
        let (waker, woken) = oneshot::channel();
        let id = {
            let mut inner = self.lock();
            inner.last += 1;
            let id = inner.last;
            if again {
                inner.waiting.push_front(&function, id, waker);
            } else if inner.waiting.push(&function, id, waker).is_err() {
                return Err(Left::Full(inner.retry_after(function)));
            }
            if inner.epoch != epoch {
                inner.wake(1);
            }
            id
        };
        // Leaves the line however this ends: woken, timed out, or dropped because the caller went away.
        let place = Place { queue: self, function, id };
        match tokio::time::timeout_at(until.min(retry).into(), woken).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Ok(()),
            Err(_) if retry < until => Ok(()),
            Err(_) => {
                let wait = self.lock().retry_after(function);
                drop(place);
                Err(Left::TooLong(wait))
            }
        }
    }
}

struct Place<'a> {
    queue: &'a Queue,
    function: u64,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.lock().waiting.remove(&self.function, self.id);
    }
}

impl Inner {
    fn wake(&mut self, most: usize) {
        self.epoch += 1;
        let mut left = most.min(self.waiting.lines());
        while left > 0
            && let Some((_, _, waker)) = self.waiting.pop()
        {
            // One that has gone meanwhile does not use the wake-up up.
            if waker.send(()).is_ok() {
                left -= 1;
            }
        }
    }

    fn retry_after(&self, function: u64) -> Duration {
        let line = self.waiting.line(&function);
        // Lines take turns, so ahead of a new-comer are at most as many of each line as of its own.
        let ahead = self.waiting.len().min((line + 1) * self.waiting.lines().max(1));
        self.rate.retry_after(ahead, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_wake_up_during_a_try_is_not_lost() {
        let queue = Queue::new(Limits::default());
        let epoch = queue.epoch();
        queue.ended();
        assert_eq!(queue.wait(1, epoch, false, far(), far()).await, Ok(()));
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_leaves_in_time_and_when_dropped() {
        let queue = Queue::new(Limits { total: 1, per_function: 1 });
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(queue.wait(1, 0, false, soon, far()).await, Err(Left::TooLong(_))));
        assert_eq!(queue.len(), 0);
        {
            let mut wait = Box::pin(queue.wait(1, 0, false, far(), far()));
            assert!(futures_util::poll!(&mut wait).is_pending());
            assert_eq!(queue.len(), 1);
            assert!(matches!(queue.wait(1, 0, false, far(), far()).await, Err(Left::Full(_))));
        }
        assert_eq!(queue.len(), 0);
    }
}
