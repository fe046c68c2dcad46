//! Calls that no runner could take: they wait here, fairly between tenants and functions, and are woken by room, never by a clock.
//!
//! What wakes is news of one runner: a call ended there, one of ours left its line, or its capacity changed. News becomes as many
//! [`Turn`]s as there seems to be room, and whoever gets a turn asks that runner and no other, so that a full fleet is not asked by
//! everybody all the time. A turn that was no use to its call goes on to the next line, until every line has seen it, or so many that the
//! runner would surely refuse the others too. A call that
//! goes away with a turn in its hand passes it on as well. News that finds nobody is remembered for those who were just
//! being refused: they compare the count of news with what it was before their try.
//!
//! The queue is bounded in calls and in the bytes that they hold. Who has less than a share of a full queue pushes out who has most, and
//! who could not have its turn in time, by the rate at which calls end, is told so at once.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::Digest;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::waiting::{self, FairQueue, Full, Limits, MOST_LINES, Rate};
use tokio::sync::{oneshot, watch};

#[cfg(test)]
mod tests;

/// The queue. `R` is a runner.
pub struct Queue<R: Clone>(Arc<Shared<R>>);

struct Shared<R: Clone> {
    inner: Mutex<Inner<R>>,
    /// How many wait, for those who watch.
    length: watch::Sender<usize>,
    /// Who left without a runner, in the order of [`Left::WHY`].
    left: [AtomicU64; Left::WHY.len()],
}

/// The lock. Gives notice of another length when it is let go.
struct Locked<'a, R: Clone> {
    inner: MutexGuard<'a, Inner<R>>,
    length: &'a watch::Sender<usize>,
}

impl<R: Clone> Deref for Locked<'_, R> {
    type Target = Inner<R>;

    fn deref(&self) -> &Inner<R> {
        &self.inner
    }
}

impl<R: Clone> DerefMut for Locked<'_, R> {
    fn deref_mut(&mut self) -> &mut Inner<R> {
        &mut self.inner
    }
}

impl<R: Clone> Drop for Locked<'_, R> {
    fn drop(&mut self) {
        let length = self.inner.waiting.len();
        if std::mem::replace(&mut self.inner.told, length) != length {
            self.length.send_replace(length);
        }
    }
}

struct Inner<R: Clone> {
    waiting: FairQueue<Waiter<R>>,
    /// Counts the places that were given out.
    places: u64,
    /// Counts the news that found nobody, and whom the last of it was about.
    unheard: u64,
    last: Option<R>,
    rate: Rate,
    /// The length that was given notice of.
    told: usize,
    /// Nobody waits here any more.
    closed: bool,
}

struct Waiter<R: Clone> {
    ask: Ask,
    bound: Option<Bound>,
    /// Dropped where another pushes it out.
    call: oneshot::Sender<Turn<R>>,
}

/// The right to ask a runner. Dropped, it goes on to the next who waits.
pub struct Turn<R: Clone> {
    pub runner: R,
    queue: Queue<R>,
    /// Lines to which it was no use.
    seen: HashSet<waiting::Place>,
    over: bool,
}

/// How many calls of one version of a function a runner runs at once.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    pub function: Digest,
    pub calls: u32,
}

/// A call's place, kept from one wait to the next, until it has [started](Place::started) or this is dropped.
pub struct Place<R: Clone> {
    line: waiting::Place,
    ask: Ask,
    bound: Option<Bound>,
    /// What it holds while it waits.
    bytes: usize,
    /// The longest that it may wait.
    until: Instant,
    /// Once it was granted.
    granted: Option<Granted<R>>,
}

/// A number in a line.
struct Granted<R: Clone> {
    queue: Queue<R>,
    line: waiting::Place,
    number: u64,
}

impl<R: Clone> Granted<R> {
    /// Nobody stands there any more, and another may.
    fn leave(&self) {
        self.queue.lock().waiting.leave(self.line, self.number);
    }
}

impl<R: Clone> Drop for Granted<R> {
    /// Called or not, too late, or because the caller went away.
    fn drop(&mut self) {
        self.leave();
    }
}

/// Why a wait ended without a turn, and when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// No place in the line, for this limit.
    Full { limit: Full, after: Duration },
    /// Its place went to one that had less than a share of the queue.
    PushedOut(Duration),
    /// It would surely have waited longer than it may: so long.
    Hopeless { wait: Duration, after: Duration },
    /// It took too long.
    TooLong(Duration),
    /// The balancer stops.
    Closed,
}

impl Left {
    /// How each is called in numbers; what a stop leaves behind is no lack of room.
    const WHY: [&str; 4] = ["full", "pushed_out", "hopeless", "too_long"];

    fn at(self) -> Option<usize> {
        match self {
            Left::Full { .. } => Some(0),
            Left::PushedOut(_) => Some(1),
            Left::Hopeless { .. } => Some(2),
            Left::TooLong(_) => Some(3),
            Left::Closed => None,
        }
    }
}

impl<R: Clone> Place<R> {
    /// In this line, for a call that asks for so much, holds so many bytes and waits until then.
    pub fn new(line: waiting::Place, ask: Ask, bytes: usize, until: Instant) -> Self {
        Self { line, ask, bound: None, bytes, until, granted: None }
    }

    /// The same for a call of which a runner takes so many, however much room it has.
    pub fn bounded(self, bound: Bound) -> Self {
        Self { bound: Some(bound), ..self }
    }

    /// The call starts: its place is another's. Where it comes back all the same, because its runner was lost, it is at its old one.
    pub fn started(&self) {
        if let Some(granted) = &self.granted {
            granted.leave();
        }
    }
}

impl<R: Clone> Clone for Queue<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Clone> Queue<R> {
    pub fn new(limits: Limits) -> Self {
        let inner = Inner {
            waiting: FairQueue::new(limits),
            places: 0,
            unheard: 0,
            last: None,
            rate: Rate::new(Instant::now()),
            told: 0,
            closed: false,
        };
        Self(Arc::new(Shared {
            inner: Mutex::new(inner),
            length: watch::Sender::new(0),
            left: Default::default(),
        }))
    }

    fn lock(&self) -> Locked<'_, R> {
        let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { inner, length: &self.0.length }
    }

    /// How many wait, now and as it changes.
    pub fn length(&self) -> watch::Receiver<usize> {
        self.0.length.subscribe()
    }

    /// Before a first try: the count of news, or `None` if others of its line wait, behind whom who comes now stands.
    pub fn look(&self, line: impl FnOnce() -> waiting::Place) -> Option<u64> {
        let inner = self.lock();
        (inner.waiting.is_empty() || inner.waiting.line(line()) == 0).then_some(inner.unheard)
    }

    /// The count of news, before another try.
    pub fn unheard(&self) -> u64 {
        self.lock().unheard
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// What they hold.
    pub fn bytes(&self) -> usize {
        self.lock().waiting.bytes()
    }

    /// Calls that left without a runner so far, and why: a way to read each count.
    pub fn left(&self) -> impl Iterator<Item = (&'static str, impl Fn() -> u64 + Send + Sync + 'static)>
    where
        R: Send + 'static,
    {
        Left::WHY.into_iter().enumerate().map(|(at, why)| {
            let queue = self.clone();
            (why, move || queue.0.left[at].load(Ordering::Relaxed))
        })
    }

    /// How many left without a runner so far.
    pub fn left_all(&self) -> u64 {
        self.0.left.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A call ended on `runner`, `there` after it had come: there is `room` for one, unless one in the line there has taken it. Says
    /// whether anybody waits for that.
    pub fn ended(&self, runner: &R, room: bool, there: Duration) -> bool {
        let mut inner = self.lock();
        inner.rate.ended(Instant::now(), there);
        room && self.news(runner, &mut inner)
    }

    /// One of ours left the line at `runner`: another may stand there.
    pub fn left_line(&self, runner: &R) {
        self.news(runner, &mut self.lock());
    }

    fn news(&self, runner: &R, inner: &mut Inner<R>) -> bool {
        let heard = inner.give(self.turn(runner));
        if !heard {
            inner.nobody(runner);
        }
        heard
    }

    /// `runner` said what it has and how many calls of a function are `busy` there: there is room for all that fit into it, of each
    /// function as many as may run there. One `may_wait` there in any case, since a full runner, too, may take a call into its line.
    /// Says whether anybody waits for that.
    pub fn room(
        &self,
        runner: &R,
        mut room: Resources,
        busy: impl Fn(&Digest) -> u32,
        mut may_wait: bool,
    ) -> bool {
        let mut inner = self.lock();
        let mut given = false;
        let mut called: HashMap<waiting::Place, u32> = HashMap::new();
        loop {
            // A call that starts there holds both what its container does and what it works with.
            let left =
                |room: Resources, ask: &Ask| room.checked_sub(ask.standing())?.checked_sub(ask.working());
            let may_run = |line: waiting::Place, bound: Bound| {
                called.get(&line).map_or(0, |calls| *calls) + busy(&bound.function) < bound.calls
            };
            let next = inner.waiting.pop_if(|line, waiter| {
                let fits = || left(room, &waiter.ask).is_some();
                may_wait || (waiter.bound.is_none_or(|bound| may_run(line, bound)) && fits())
            });
            let Some((line, _, waiter)) = next else { break };
            let left = left(room, &waiter.ask).unwrap_or_default();
            match waiter.call.send(self.turn(runner)) {
                Ok(()) => {
                    *called.entry(line).or_default() += 1;
                    (room, may_wait, given) = (left, false, true);
                }
                // It has gone meanwhile.
                Err(turn) => turn.spent(),
            }
        }
        if inner.waiting.is_empty() {
            inner.nobody(runner);
        }
        given
    }

    fn turn(&self, runner: &R) -> Turn<R> {
        Turn { runner: runner.clone(), queue: self.clone(), seen: HashSet::new(), over: false }
    }

    /// Sends away all that wait, and whoever would from now on.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        while inner.waiting.pop().is_some() {}
    }

    /// Waits for a turn. `unheard` is what it was before the try that came to nothing, and `refused` the turn of that try, which
    /// goes on from here.
    pub async fn wait(
        &self,
        place: &mut Place<R>,
        unheard: u64,
        refused: Option<Turn<R>>,
    ) -> Result<Turn<R>, Left> {
        let waited = self.stand(place, unheard, refused).await;
        if let Err(left) = waited
            && let Some(at) = left.at()
        {
            self.0.left[at].fetch_add(1, Ordering::Relaxed);
        }
        waited
    }

    async fn stand(
        &self,
        place: &mut Place<R>,
        unheard: u64,
        refused: Option<Turn<R>>,
    ) -> Result<Turn<R>, Left> {
        let (call, called) = oneshot::channel();
        let waiter = Waiter { ask: place.ask, bound: place.bound, call };
        {
            let mut inner = self.lock();
            if inner.closed {
                return Err(Left::Closed);
            }
            match &place.granted {
                Some(granted) => inner.waiting.put_back(place.line, granted.number, place.bytes, waiter),
                None => {
                    inner.hope(place)?;
                    let number = inner.places + 1;
                    if let Err(limit) = inner.waiting.push(place.line, number, place.bytes, waiter) {
                        return Err(Left::Full { limit, after: inner.retry_after(place.line) });
                    }
                    inner.places = number;
                    place.granted = Some(Granted { queue: self.clone(), line: place.line, number });
                }
            }
            // It stands in its line again before the turn goes on, so that it keeps its place and the others are asked first.
            if let Some(mut turn) = refused {
                turn.over = true;
                let mut seen = std::mem::take(&mut turn.seen);
                seen.insert(place.line);
                if seen.len() < MOST_LINES {
                    let runner = turn.runner.clone();
                    inner.give(Turn { runner, queue: self.clone(), seen, over: false });
                }
            }
            if inner.unheard != unheard
                && let Some(runner) = inner.last.clone()
            {
                inner.give(self.turn(&runner));
            }
        }
        match tokio::time::timeout_at(place.until.into(), called).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => {
                let inner = self.lock();
                Err(if inner.closed { Left::Closed } else { Left::PushedOut(inner.retry_after(place.line)) })
            }
            Err(_) => Err(Left::TooLong(self.lock().retry_after(place.line))),
        }
    }
}

impl<R: Clone> Turn<R> {
    /// The runner took the call, or is gone: nobody else needs this turn.
    pub fn spent(mut self) {
        self.over = true;
    }
}

impl<R: Clone> Drop for Turn<R> {
    fn drop(&mut self) {
        if !self.over {
            let (runner, queue) = (self.runner.clone(), self.queue.clone());
            let turn = Turn { runner, queue, seen: std::mem::take(&mut self.seen), over: false };
            self.queue.lock().give(turn);
        }
    }
}

impl<R: Clone> Inner<R> {
    /// Calls the next that has not seen this turn; `false` if nobody is left.
    fn give(&mut self, mut turn: Turn<R>) -> bool {
        while let Some((_, _, waiter)) = self.waiting.pop_if(|line, _| !turn.seen.contains(&line)) {
            // One that has gone meanwhile does not use it up.
            match waiter.call.send(turn) {
                Ok(()) => return true,
                Err(back) => turn = back,
            }
        }
        turn.spent();
        false
    }

    fn nobody(&mut self, runner: &R) {
        self.unheard += 1;
        self.last = Some(runner.clone());
    }

    /// Whether one that joins may have its turn in time.
    fn hope(&self, place: &Place<R>) -> Result<(), Left> {
        let now = Instant::now();
        let time = place.until.saturating_duration_since(now);
        match self.rate.too_long(self.waiting.ahead(place.line), time, now) {
            Some(wait) => Err(Left::Hopeless { wait, after: waiting::come_again(wait, time) }),
            None => Ok(()),
        }
    }

    fn retry_after(&self, line: waiting::Place) -> Duration {
        self.rate.retry_after(self.waiting.ahead(line), Instant::now())
    }
}
