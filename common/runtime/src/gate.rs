//! A gate that counts who is inside. Closing it lets nobody in any more, and waits until the last one has left. It can be opened again, if what it was
//! closed for does not happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Shared by those who enter and the one who closes.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<State>);

#[derive(Debug, Default)]
struct State {
    inside: AtomicUsize,
    closed: AtomicBool,
    left: Notify,
}

/// Somebody inside; dropping it leaves.
#[derive(Debug)]
pub struct Pass(Arc<State>);

impl Gate {
    /// Goes in, unless the gate is closed.
    #[must_use]
    pub fn enter(&self) -> Option<Pass> {
        // Counted before looking: whoever closes meanwhile sees us.
        self.0.inside.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self.0.clone());
        (!self.0.closed.load(Ordering::SeqCst)).then_some(pass)
    }

    /// How many are inside.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.0.inside.load(Ordering::SeqCst)
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Waits until nobody has come to the closed gate for as long as `quiet`, or `limit` has passed.
    pub async fn calm(&self, quiet: Duration, limit: Duration) {
        let calm = async {
            // Who is turned away leaves, too.
            while tokio::time::timeout(quiet, self.0.left.notified()).await.is_ok() {}
        };
        tokio::time::timeout(limit, calm).await.ok();
    }

    /// Lets people in again.
    pub fn open(&self) {
        self.0.closed.store(false, Ordering::SeqCst);
    }

    /// Closes, and waits until all have left or `limit` has passed. Says how many are still inside.
    pub async fn close_and_wait(&self, limit: Duration) -> usize {
        self.close();
        let empty = async {
            loop {
                let left = self.0.left.notified();
                if self.inside() == 0 {
                    return;
                }
                left.await;
            }
        };
        match tokio::time::timeout(limit, empty).await {
            Ok(()) => 0,
            Err(_) => self.inside(),
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.0.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_one_and_no_longer_than_the_limit() {
        let gate = Gate::default();
        let (first, second) = (gate.enter().unwrap(), gate.enter().unwrap());
        assert_eq!(gate.inside(), 2);
        assert_eq!(gate.close_and_wait(Duration::from_secs(1)).await, 2);
        assert!(gate.enter().is_none());
        assert_eq!(gate.inside(), 2, "who was turned away does not count");
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close_and_wait(Duration::from_secs(1000)).await }
        });
        tokio::task::yield_now().await;
        drop((first, second));
        assert_eq!(waiting.await.unwrap(), 0);
        let (quiet, begun) = (Duration::from_millis(100), tokio::time::Instant::now());
        let calm = tokio::spawn({
            let gate = gate.clone();
            async move { gate.calm(quiet, Duration::from_secs(1)).await }
        });
        for _ in 0..3 {
            tokio::time::sleep(quiet * 3 / 4).await;
            assert!(gate.enter().is_none());
        }
        calm.await.unwrap();
        let took = begun.elapsed();
        assert!(
            took >= quiet * 13 / 4 && took < quiet * 4,
            "a quiet time after the last one that came: {took:?}"
        );
        gate.open();
        assert!(gate.enter().is_some());
    }
}
