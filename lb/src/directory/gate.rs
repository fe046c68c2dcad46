//! What a function has here whatever its revision: how many of its calls are let in at once, where somebody has said so, and what became of
//! those that ended.
//!
//! A limit is of the whole fleet. Of its places this balancer holds some ([`crate::places`] sees to that); a call for which it holds none waits
//! until it is known whether there is one to be had, which is no longer than the registry takes to say so.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};
use tokio::sync::Notify;

use crate::activity::Tally;

/// No limit; of what is held: as many as the limit.
const OPEN: u32 = u32::MAX;

/// So many answers of the registry after it came a call is surely counted in one.
const ANSWERS: u64 = 2;

/// Longest that a call waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// One function's, for as long as the function is there.
pub struct Gate {
    limit: AtomicU32,
    /// Of the limit, what is for calls of this balancer.
    held: AtomicU32,
    /// Counted also while there is no limit: one that is set later holds at once.
    inside: AtomicU32,
    /// Calls that wait for a place to be held for them.
    waiting: AtomicU32,
    /// Most that were inside since somebody looked, while there was a limit.
    peak: AtomicU32,
    /// How often it was told what is held.
    answers: AtomicU64,
    /// There is nothing more to be had for now: nobody need ask.
    denied: AtomicBool,
    /// A place may be there.
    changed: Notify,
    /// Where to say that places are wanted, if others share them.
    wanted: OnceLock<Arc<Notify>>,
    pub tally: Tally,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            limit: AtomicU32::new(OPEN),
            held: AtomicU32::new(OPEN),
            inside: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            denied: AtomicBool::new(false),
            changed: Notify::new(),
            wanted: OnceLock::new(),
            tally: Tally::default(),
        }
    }
}

/// A call inside, or one that waits for its place; it leaves when this is dropped.
pub struct Entered {
    gate: Arc<Gate>,
    /// Of one that waits: how often the gate had been told when it came.
    waits: Option<u64>,
}

impl Gate {
    /// From now on so many, shared with others if they are told of it there.
    pub fn limit(&self, limit: Option<u32>, shared: Option<&Arc<Notify>>) {
        if limit.is_some()
            && let Some(shared) = shared
        {
            self.wanted.get_or_init(|| {
                self.held.store(0, Ordering::Relaxed);
                shared.clone()
            });
        }
        self.limit.store(limit.unwrap_or(OPEN), Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != OPEN
    }

    /// The places that calls need now, those that wait included; what is more than the limit is not needed.
    pub fn needs(&self) -> u32 {
        let all = self.inside.load(Ordering::Relaxed).saturating_add(self.waiting.load(Ordering::Relaxed));
        all.min(self.limit.load(Ordering::Relaxed))
    }

    /// The most that were inside since this was asked last.
    pub fn peak(&self) -> u32 {
        let inside = self.inside.load(Ordering::Relaxed);
        self.peak.swap(inside, Ordering::Relaxed).max(inside)
    }

    /// So many places are held for it; `None`: it need not share, for now.
    pub fn holds(&self, held: Option<u32>, denied: bool) {
        self.held.store(held.unwrap_or(OPEN), Ordering::Relaxed);
        self.denied.store(denied, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Whether there was nothing more to be had.
    pub fn is_denied(&self) -> bool {
        self.denied.load(Ordering::Relaxed)
    }

    /// There may be more again.
    pub fn may_ask(&self) {
        self.denied.store(false, Ordering::Relaxed);
    }

    /// Lets a call in, or lets it wait for its place: see [`Entered::settle`].
    ///
    /// # Errors
    /// As many are inside as may be.
    pub fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let limit = self.limit.load(Ordering::Acquire);
        if limit == OPEN {
            self.inside.fetch_add(1, Ordering::Relaxed);
            return Ok(Entered { gate: self.clone(), waits: None });
        }
        if self.seat() {
            return Ok(Entered { gate: self.clone(), waits: None });
        }
        let wanted = self.wanted.get().filter(|_| !self.denied.load(Ordering::Relaxed));
        let Some(wanted) = wanted.filter(|_| self.inside.load(Ordering::Relaxed) < limit) else {
            return Err(full(limit));
        };
        let waits = Some(self.answers.load(Ordering::Acquire));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        wanted.notify_one();
        Ok(Entered { gate: self.clone(), waits })
    }

    /// Takes a place, if one is held.
    fn seat(&self) -> bool {
        let most = self.limit.load(Ordering::Relaxed).min(self.held.load(Ordering::Relaxed));
        let one_more = |inside: u32| (inside < most).then(|| inside + 1);
        let before = self.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if let Ok(before) = before {
            self.peak.fetch_max(before + 1, Ordering::Relaxed);
        }
        before.is_ok()
    }
}

fn full(limit: u32) -> Error {
    let text = format!("{limit} calls of this function run already, which is what is reserved for it");
    Error::new(Code::Overloaded, text).retry(Retry::After(Duration::from_secs(1)))
}

impl Entered {
    /// Returns when the call has its place.
    ///
    /// # Errors
    /// There is none to be had.
    pub async fn settle(&mut self) -> Result<(), Error> {
        let Some(came) = self.waits else { return Ok(()) };
        let gate = self.gate.clone();
        let taken = async {
            loop {
                let changed = gate.changed.notified();
                tokio::pin!(changed);
                // From here on nothing is missed.
                changed.as_mut().enable();
                if gate.seat() {
                    return true;
                }
                let limit = gate.limit.load(Ordering::Relaxed);
                let told = gate.answers.load(Ordering::Acquire) - came;
                if told >= ANSWERS || gate.inside.load(Ordering::Relaxed) >= limit {
                    return false;
                }
                changed.await;
            }
        };
        if !tokio::time::timeout(PATIENCE, taken).await.unwrap_or(false) {
            return Err(full(gate.limit.load(Ordering::Relaxed)));
        }
        self.waits = None;
        gate.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.waits.is_some() {
            self.gate.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.gate.inside.fetch_sub(1, Ordering::Relaxed);
        if self.gate.waiting.load(Ordering::Relaxed) > 0 {
            self.gate.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_many_as_reserved_and_come_back() {
        let gate = Arc::new(Gate::default());
        let before = gate.enter().ok();
        gate.limit(Some(2), None);
        let held = gate.enter().ok();
        assert!(held.is_some() && gate.is_limited());
        assert_eq!(gate.enter().err().map(|error| error.code), Some(Code::Overloaded));
        drop(before);
        assert!(gate.enter().is_ok());
        gate.limit(Some(0), None);
        drop(held);
        assert!(gate.enter().is_err(), "nobody");
        gate.limit(None, None);
        assert!(gate.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_until_it_is_known_whether_there_is_a_place() {
        let (gate, wanted) = (Arc::new(Gate::default()), Arc::new(Notify::new()));
        gate.limit(Some(3), Some(&wanted));
        let mut first = gate.enter().unwrap();
        let mut second = gate.enter().unwrap();
        wanted.notified().await;
        assert_eq!(gate.needs(), 2);
        gate.holds(Some(1), false);
        first.settle().await.unwrap();
        // That answer may have been to an earlier question: the next is to this one.
        let settled = tokio::join!(second.settle(), async { gate.holds(Some(1), true) }).0;
        assert_eq!(settled.unwrap_err().code, Code::Overloaded);
        drop(second);
        assert_eq!((gate.needs(), gate.peak()), (1, 1));
        assert!(gate.enter().is_err(), "nobody asks for what was denied just now");
        gate.may_ask();
        let mut third = gate.enter().unwrap();
        // A place that comes free here is as good as one from elsewhere.
        let settled = tokio::join!(third.settle(), async { drop(first) }).0;
        settled.unwrap();
        assert_eq!((gate.needs(), gate.peak()), (1, 1));
        // Nobody answers.
        let mut fourth = gate.enter().unwrap();
        assert!(fourth.settle().await.is_err());
        // It is alone: the limit is its own.
        gate.holds(None, false);
        assert!(gate.enter().is_ok());
    }
}
