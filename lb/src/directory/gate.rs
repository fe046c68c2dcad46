//! What a function has here whatever its revision: how many of its calls are let in at once, where somebody has said so, and what became of
//! those that ended.
//!
//! A limit is of the whole fleet. Of its places this balancer holds some ([`crate::places`] sees to that); a call for which it holds none waits
//! until it is known whether there is one to be had, which is no longer than the registry takes to say so, and a little longer where another balancer
//! is to give one up.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::activity::Tally;

/// No limit; of seats: as many as the limit.
const OPEN: u32 = u32::MAX;

/// So many answers of the registry after it came a call is surely counted in one.
const ANSWERS: u64 = 2;

/// Longest that a call waits for them.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest that it waits for a place that another balancer is to give up: two turns.
const TURNS: Duration = Duration::from_millis(2 * stoker_policy::sharing::TURN.as_millis() as u64);

/// One function's, for as long as the function is there.
pub struct Gate {
    limit: AtomicU32,
    /// Places that calls of this balancer may take, above, and calls that are inside, below: one word, so that a place that is taken away is taken by no call
    /// meanwhile. Calls are counted also while there is no limit: one that is set later holds at once.
    seats: AtomicU64,
    /// What others believe that we hold: more than there are seats, as long as calls are inside that were let in before.
    booked: AtomicU32,
    /// Calls that wait for a place to be held for them.
    waiting: AtomicU32,
    /// Calls that found no place since somebody looked.
    refused: AtomicU32,
    /// Most that were inside since somebody looked, while there was a limit.
    peak: AtomicU32,
    /// How often it was told what is held.
    answers: AtomicU64,
    outlook: AtomicU8,
    /// A place may be there.
    changed: Notify,
    /// Where to say that places are wanted or come free, if others share them.
    wanted: OnceLock<Arc<Notify>>,
    pub tally: Tally,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            limit: AtomicU32::new(OPEN),
            seats: AtomicU64::new(seats(OPEN, 0)),
            booked: AtomicU32::new(OPEN),
            waiting: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            answers: AtomicU64::new(0),
            outlook: AtomicU8::new(Outlook::Ask as u8),
            changed: Notify::new(),
            wanted: OnceLock::new(),
            tally: Tally::default(),
        }
    }
}

/// What a call that finds no seat may hope for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outlook {
    /// Nobody knows: it has to be asked.
    Ask,
    /// Another is to give one up, or its turn ends.
    Soon,
    /// All that there is for this balancer is taken.
    None,
}

fn seats(there: u32, inside: u32) -> u64 {
    u64::from(there) << 32 | u64::from(inside)
}

fn inside(seats: u64) -> u32 {
    seats as u32
}

fn there(seats: u64) -> u32 {
    (seats >> 32) as u32
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
                self.tell(Some(0), 0, Outlook::Ask);
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

    /// Calls that are inside.
    pub fn inside(&self) -> u32 {
        inside(self.seats.load(Ordering::Relaxed))
    }

    /// The places that calls would have taken since [`Gate::look`], had there been enough: no more than the limit.
    pub fn demand(&self) -> u32 {
        let counts = [&self.waiting, &self.refused].map(|count| count.load(Ordering::Relaxed));
        let peak = self.peak.load(Ordering::Relaxed).max(self.inside());
        let all = counts.into_iter().fold(peak, u32::saturating_add);
        all.min(self.limit.load(Ordering::Relaxed))
    }

    /// The same, and counts from now on anew.
    pub fn look(&self) -> u32 {
        let demand = self.demand();
        self.refused.store(0, Ordering::Relaxed);
        self.peak.store(self.inside(), Ordering::Relaxed);
        demand
    }

    /// Lets in no more calls than that from now on; how many places it needs nevertheless, for those that are inside.
    pub fn shrink(&self, to: u32) -> u32 {
        let mut left = 0;
        let shrunk = |now| {
            left = to.max(inside(now));
            Some(seats(to.min(there(now)), inside(now)))
        };
        // Never refused.
        self.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shrunk).ok();
        left
    }

    /// So many calls may be inside, `None`: as many as the limit, for now; others believe that we hold `booked`.
    pub fn tell(&self, may: Option<u32>, booked: u32, outlook: Outlook) {
        let told = |now| Some(seats(may.unwrap_or(OPEN), inside(now)));
        self.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, told).ok();
        self.booked.store(booked, Ordering::Relaxed);
        self.outlook.store(outlook as u8, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn has_outlook(&self, outlook: Outlook) -> bool {
        self.outlook.load(Ordering::Relaxed) == outlook as u8
    }

    /// Lets a call in, or lets it wait for its place: see [`Entered::settle`].
    ///
    /// # Errors
    /// As many are inside as may be.
    pub fn enter(self: &Arc<Self>) -> Result<Entered, Error> {
        let limit = self.limit.load(Ordering::Acquire);
        if limit == OPEN {
            self.seats.fetch_add(1, Ordering::Relaxed);
            return Ok(Entered { gate: self.clone(), waits: None });
        }
        if self.seat() {
            return Ok(Entered { gate: self.clone(), waits: None });
        }
        let free = self.inside() < limit && self.waiting.load(Ordering::Relaxed) < limit;
        let Some(wanted) = self.wanted.get().filter(|_| free && !self.has_outlook(Outlook::None)) else {
            self.refuse();
            return Err(full(limit));
        };
        let waits = Some(self.answers.load(Ordering::Acquire));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        wanted.notify_one();
        Ok(Entered { gate: self.clone(), waits })
    }

    /// Takes a place, if one is held.
    fn seat(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let one_more = |now: u64| (inside(now) < limit.min(there(now))).then(|| now + 1);
        let before = self.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        if let Ok(before) = before {
            self.peak.fetch_max(inside(before) + 1, Ordering::Relaxed);
        }
        before.is_ok()
    }

    /// A call found none. Others learn how many there are, and not of each.
    fn refuse(&self) {
        let many = self.refused.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if let Some(wanted) = self.wanted.get().filter(|_| many.is_power_of_two()) {
            wanted.notify_one();
        }
    }

    /// A call has left.
    fn left(&self, before: u64) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.changed.notify_waiters();
        }
        let needed = there(before).max(inside(before) - 1);
        if let Some(wanted) = self.wanted.get().filter(|_| self.booked.load(Ordering::Relaxed) > needed) {
            wanted.notify_one();
        }
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
        let began = Instant::now();
        loop {
            let changed = gate.changed.notified();
            tokio::pin!(changed);
            // From here on nothing is missed.
            changed.as_mut().enable();
            if gate.seat() {
                self.waits = None;
                gate.waiting.fetch_sub(1, Ordering::Relaxed);
                return Ok(());
            }
            let limit = gate.limit.load(Ordering::Relaxed);
            let told = gate.answers.load(Ordering::Acquire) - came;
            let patience = match told < ANSWERS {
                true => PATIENCE,
                false if gate.has_outlook(Outlook::Soon) => TURNS,
                false => Duration::ZERO,
            };
            if gate.inside() >= limit || tokio::time::timeout_at(began + patience, changed).await.is_err() {
                gate.refuse();
                return Err(full(limit));
            }
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.waits.is_some() {
            self.gate.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let before = self.gate.seats.fetch_sub(1, Ordering::Relaxed);
        if self.gate.is_limited() {
            self.gate.left(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

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

    fn shared(limit: u32) -> (Arc<Gate>, Arc<Notify>) {
        let (gate, wanted) = (Arc::new(Gate::default()), Arc::new(Notify::new()));
        gate.limit(Some(limit), Some(&wanted));
        (gate, wanted)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_until_it_is_known_whether_there_is_a_place() {
        let (gate, wanted) = shared(3);
        let mut first = gate.enter().unwrap();
        let mut second = gate.enter().unwrap();
        wanted.notified().await;
        assert_eq!(gate.demand(), 2);
        gate.tell(Some(1), 1, Outlook::Ask);
        first.settle().await.unwrap();
        // That answer may have been to an earlier question: the next is to this one.
        let settled = tokio::join!(second.settle(), async { gate.tell(Some(1), 1, Outlook::None) }).0;
        assert_eq!(settled.unwrap_err().code, Code::Overloaded);
        drop(second);
        assert!(gate.enter().is_err(), "nobody asks for what was denied just now");
        assert_eq!((gate.look(), gate.look()), (3, 1), "who was refused wanted one too");
        gate.tell(Some(1), 1, Outlook::Ask);
        let mut third = gate.enter().unwrap();
        // A place that comes free here is as good as one from elsewhere.
        let settled = tokio::join!(third.settle(), async { drop(first) }).0;
        settled.unwrap();
        assert_eq!(gate.look(), 1);
        // Nobody answers.
        let mut fourth = gate.enter().unwrap();
        assert!(fourth.settle().await.is_err());
        // It is alone: the limit is its own.
        gate.tell(None, 0, Outlook::Ask);
        assert!(gate.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_a_little_for_a_place_that_another_is_to_give_up() {
        let (gate, _wanted) = shared(2);
        let began = Instant::now();
        let mut call = gate.enter().unwrap();
        gate.tell(Some(0), 0, Outlook::Soon);
        gate.tell(Some(0), 0, Outlook::Soon);
        assert!(call.settle().await.is_err());
        assert_eq!(began.elapsed(), TURNS);
        drop(call);
        let mut call = gate.enter().unwrap();
        gate.tell(Some(0), 0, Outlook::Soon);
        gate.tell(Some(0), 0, Outlook::Soon);
        let settled = tokio::join!(call.settle(), async { gate.tell(Some(1), 1, Outlook::None) }).0;
        settled.unwrap();
    }

    #[tokio::test]
    async fn what_is_taken_away_is_given_back_as_calls_leave() {
        let (gate, wanted) = shared(3);
        gate.tell(Some(3), 3, Outlook::None);
        wanted.notified().now_or_never();
        let mut inside: Vec<_> = (0..3).map(|_| gate.enter().unwrap()).collect();
        assert_eq!(gate.shrink(1), 3, "all are in use");
        gate.tell(Some(1), 3, Outlook::None);
        for left in [2, 1] {
            inside.pop();
            wanted.notified().now_or_never().expect("there is one to give back");
            assert_eq!(gate.shrink(1), left);
            gate.tell(Some(1), left, Outlook::None);
        }
        inside.pop();
        assert!(wanted.notified().now_or_never().is_none(), "the last is ours");
        let _last = gate.enter().unwrap();
        assert!(gate.enter().is_err());
    }
}
