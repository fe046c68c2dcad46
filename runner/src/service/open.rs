//! Which sessions may still bring a call.
//!
//! A runner that goes, or becomes another program, must know that no balancer has an offer on its way: a call on a session that ends counts as one that may
//! have started. Every session is open from its greeting on. It is settled when its balancer has answered `Draining`, which it does when every
//! call of the session has had its outcome and none follows; taking calls again opens it again. Balancers of version 1 of the protocol do not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Counts the sessions of a runner.
#[derive(Debug, Clone, Default)]
pub struct Open(Arc<watch::Sender<Count>>);

/// Of sessions that stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that may still bring a call.
    pub open: usize,
    /// Those of balancers that do not answer `Draining`.
    pub mute: usize,
}

impl Open {
    /// A session begins; its balancer answers `Draining`, or does not.
    pub fn enter(&self, answers: bool) -> Place {
        self.0.send_modify(|count| *(if answers { &mut count.open } else { &mut count.mute }) += 1);
        Place { of: self.clone(), answers, settled: false }
    }

    /// Waits until no session may bring a call but those of balancers that do not say so, at most for `limit`. Gives what is left.
    pub async fn settled(&self, limit: Duration) -> Count {
        let mut count = self.0.subscribe();
        // The sender is ours.
        tokio::time::timeout(limit, count.wait_for(|count| count.open == 0)).await.ok();
        *self.0.borrow()
    }
}

/// A session that stands, as long as it does.
#[derive(Debug)]
pub struct Place {
    of: Open,
    answers: bool,
    settled: bool,
}

impl Place {
    /// Nothing follows, or something may again.
    pub fn settle(&mut self, settled: bool) {
        if self.answers && std::mem::replace(&mut self.settled, settled) != settled {
            self.of.0.send_modify(|count| if settled { count.open -= 1 } else { count.open += 1 });
        }
    }

    pub fn is_settled(&self) -> bool {
        self.settled
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.settle(true);
        if !self.answers {
            self.of.0.send_modify(|count| count.mute -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_is_open_until_it_is_settled_or_over() {
        let (all, long) = (Open::default(), Duration::from_secs(10));
        let (mut first, second, mute) = (all.enter(true), all.enter(true), all.enter(false));
        first.settle(true);
        first.settle(true);
        assert_eq!(all.settled(long).await, Count { open: 1, mute: 1 });
        first.settle(false);
        drop(second);
        let begun = tokio::time::Instant::now();
        let waiting = tokio::spawn({
            let all = all.clone();
            async move { all.settled(long).await }
        });
        tokio::time::sleep(long / 2).await;
        first.settle(true);
        assert_eq!(waiting.await.unwrap(), Count { open: 0, mute: 1 });
        assert_eq!(begun.elapsed(), long / 2);
        drop((first, mute));
        assert_eq!(all.settled(long).await, Count::default());
    }
}
