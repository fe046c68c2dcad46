//! Calls that no runner could take: they wait here, fairly between functions, and are woken by room, never by a clock.
//!
//! What wakes is news of one runner: a call ended there, or its capacity changed. News becomes as many [`Turn`]s as there seems to
//! be room, and whoever gets a turn asks that runner and no other, so that a full fleet is not asked by everybody all the time.
//! A turn that was no use to its call goes on to the next line, until every line has seen it. A call that goes away
//! with a turn in its hand passes it on as well. News that finds nobody is remembered for those who were just
//! being refused: they compare the count of news with what it was before their try.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::resources::{Ask, Resources};
use stoker_policy::waiting::{FairQueue, Limits, Rate};
use tokio::sync::{oneshot, watch};

/// The queue. `R` is a runner.
pub struct Queue<R: Clone>(Arc<Shared<R>>);

struct Shared<R: Clone> {
    inner: Mutex<Inner<R>>,
    /// How many wait, for those who watch.
    length: watch::Sender<usize>,
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
    waiting: FairQueue<u64, Waiter<R>>,
    /// Counts the places that were given out.
    places: u64,
    /// Counts the news that found nobody, and whom the last of it was about.
    unheard: u64,
    last: Option<R>,
    rate: Rate,
    /// The length that was given notice of.
    told: usize,
}

struct Waiter<R: Clone> {
    ask: Ask,
    call: oneshot::Sender<Turn<R>>,
}

/// The right to ask a runner. Dropped, it goes on to the next who waits.
pub struct Turn<R: Clone> {
    pub runner: R,
    queue: Queue<R>,
    /// Lines that have not seen it yet.
    left: usize,
    over: bool,
}

/// A call's place, kept from one wait to the next.
pub struct Place {
    function: u64,
    ask: Ask,
    /// Its number, once it has one.
    number: Option<u64>,
}

/// Why a wait ended without a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// No place in the line.
    Full(Duration),
    /// It took too long.
    TooLong(Duration),
}

impl Place {
    pub fn new(function: u64, ask: Ask) -> Self {
        Self { function, ask, number: None }
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
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), length: watch::Sender::new(0) }))
    }

    fn lock(&self) -> Locked<'_, R> {
        let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { inner, length: &self.0.length }
    }

    /// How many wait, now and as it changes.
    pub fn length(&self) -> watch::Receiver<usize> {
        self.0.length.subscribe()
    }

    /// Before a first try: the count of news, or `None` if others of this function wait, behind whom who comes now stands.
    pub fn look(&self, function: u64) -> Option<u64> {
        let inner = self.lock();
        (inner.waiting.line(&function) == 0).then_some(inner.unheard)
    }

    /// The count of news, before another try.
    pub fn unheard(&self) -> u64 {
        self.lock().unheard
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// A call ended on `runner`: there is room for one.
    pub fn ended(&self, runner: &R) {
        let mut inner = self.lock();
        inner.rate.ended(Instant::now());
        let turn = self.turn(runner, &inner);
        if !inner.give(turn) {
            inner.nobody(runner);
        }
    }

    /// `runner` said what it has: there is room for all that fit into it. One may ask in any case, since a full runner, too,
    /// may take a call to wait there.
    pub fn room(&self, runner: &R, mut room: Resources) {
        let mut inner = self.lock();
        let (mut given, mut passed) = (false, 0);
        while passed < inner.waiting.lines() || !given {
            let Some((function, number, waiter)) = inner.waiting.pop() else { return inner.nobody(runner) };
            match room.checked_sub(waiter.ask.standing()) {
                None if given => {
                    inner.waiting.put_back(&function, number, waiter);
                    passed += 1;
                    continue;
                }
                left => room = left.unwrap_or_default(),
            }
            let turn = self.turn(runner, &inner);
            match waiter.call.send(turn) {
                Ok(()) => (given, passed) = (true, 0),
                Err(turn) => turn.spent(),
            }
        }
        if inner.waiting.is_empty() {
            inner.nobody(runner);
        }
    }

    fn turn(&self, runner: &R, inner: &Inner<R>) -> Turn<R> {
        let left = inner.waiting.lines().saturating_sub(1);
        Turn { runner: runner.clone(), queue: self.clone(), left, over: false }
    }

    /// Waits for a turn, at most until `until`. `unheard` is what it was before the try that came to nothing, and `refused` the
    /// turn of that try, which goes on from here.
    pub async fn wait(
        &self,
        place: &mut Place,
        unheard: u64,
        refused: Option<Turn<R>>,
        until: Instant,
    ) -> Result<Turn<R>, Left> {
        let (call, called) = oneshot::channel();
        let waiter = Waiter { ask: place.ask, call };
        let number = {
            let mut inner = self.lock();
            let number = match place.number {
                Some(number) => {
                    inner.waiting.put_back(&place.function, number, waiter);
                    number
                }
                None => {
                    let number = inner.places + 1;
                    if inner.waiting.push(&place.function, number, waiter).is_err() {
                        return Err(Left::Full(inner.retry_after(place.function)));
                    }
                    inner.places = number;
                    *place.number.insert(number)
                }
            };
            // It stands in its line again before the turn goes on, so that it keeps its place and the others are asked first.
            if let Some(mut turn) = refused {
                turn.over = true;
                if let Some(left) = turn.left.checked_sub(1) {
                    let runner = turn.runner.clone();
                    inner.give(Turn { runner, queue: self.clone(), left, over: false });
                }
            }
            if inner.unheard != unheard
                && let Some(runner) = inner.last.clone()
            {
                let turn = self.turn(&runner, &inner);
                inner.give(turn);
            }
            number
        };
        // Leaves the line however this ends: called, too late, or dropped because the caller went away.
        let standing = Standing { queue: self, function: place.function, number };
        match tokio::time::timeout_at(until.into(), called).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) | Err(_) => {
                let wait = self.lock().retry_after(place.function);
                drop(standing);
                Err(Left::TooLong(wait))
            }
        }
    }
}

struct Standing<'a, R: Clone> {
    queue: &'a Queue<R>,
    function: u64,
    number: u64,
}

impl<R: Clone> Drop for Standing<'_, R> {
    fn drop(&mut self) {
        self.queue.lock().waiting.remove(&self.function, self.number);
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
            let turn = Turn { runner, queue, left: self.left, over: false };
            self.queue.lock().give(turn);
        }
    }
}

impl<R: Clone> Inner<R> {
    /// Calls the next; `false` if nobody waits.
    fn give(&mut self, mut turn: Turn<R>) -> bool {
        while let Some((_, _, waiter)) = self.waiting.pop() {
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
    use futures_util::FutureExt as _;
    use std::pin::Pin;

    type Wait<'a> = Pin<Box<dyn Future<Output = Result<Turn<u8>, Left>> + 'a>>;

    const ASK: Ask = Ask { memory: 10, cpu_millis: 0 };

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn queue() -> Queue<u8> {
        Queue::new(Limits::default())
    }

    /// Joins the line of `function`.
    fn join(queue: &Queue<u8>, function: u64) -> Wait<'_> {
        let mut wait: Wait<'_> = Box::pin(async move {
            queue.wait(&mut Place::new(function, ASK), queue.unheard(), None, far()).await
        });
        assert!(wait.as_mut().now_or_never().is_none());
        wait
    }

    fn turn(wait: &mut Wait<'_>) -> Option<Turn<u8>> {
        wait.as_mut().now_or_never().map(|turn| turn.unwrap_or_else(|left| panic!("{left:?}")))
    }

    #[tokio::test]
    async fn news_during_a_try_is_not_lost() {
        let queue = queue();
        let before = queue.look(1).expect("nobody waits");
        queue.ended(&7);
        let turn = queue.wait(&mut Place::new(1, ASK), before, None, far()).await;
        assert_eq!(turn.map(|turn| turn.runner).ok(), Some(7));
        assert_eq!(queue.len(), 0);
        // Old news is none for who comes later.
        assert!(turn_of(join(&queue, 1)).is_none());
    }

    fn turn_of(mut wait: Wait<'_>) -> Option<Turn<u8>> {
        turn(&mut wait)
    }

    #[tokio::test]
    async fn one_that_ended_wakes_one_and_lines_take_turns() {
        let queue = queue();
        let mut waits = [join(&queue, 1), join(&queue, 1), join(&queue, 2)];
        queue.ended(&7);
        queue.ended(&7);
        let called: Vec<_> = waits.iter_mut().map(|wait| turn(wait).map(Turn::spent).is_some()).collect();
        assert_eq!(called, [true, false, true]);
    }

    #[tokio::test]
    async fn room_wakes_as_many_as_fit_and_always_one() {
        let queue = queue();
        let mut waits: Vec<_> = (0..6).map(|n| join(&queue, n % 3)).collect();
        queue.room(&7, Resources { memory: 45, cpu_millis: 0, slots: 9 });
        let turns: Vec<_> = waits.iter_mut().filter_map(turn).collect();
        assert_eq!((turns.len(), queue.len()), (4, 2));
        turns.into_iter().for_each(Turn::spent);
        queue.room(&7, Resources::default());
        assert_eq!(queue.len(), 1);
    }

    #[tokio::test]
    async fn a_turn_of_no_use_is_seen_by_every_line_once() {
        let queue = queue();
        let mut places: Vec<_> = (0..3).map(|function| Place::new(function, ASK)).collect();
        let mut waits: Vec<Wait<'_>> = Vec::new();
        for place in &mut places {
            let wait: Wait<'_> = Box::pin(async {
                let turn = queue.wait(place, 0, None, far()).await?;
                // Refused.
                queue.wait(place, 0, Some(turn), far()).await
            });
            waits.push(wait);
        }
        for wait in &mut waits {
            assert!(turn(wait).is_none());
        }
        queue.ended(&7);
        // Each in its order is called, refused, and stands where it stood; then the turn is over.
        for wait in &mut waits {
            assert!(turn(wait).is_none());
        }
        assert_eq!(queue.len(), 3);
        queue.ended(&8);
        assert_eq!(turn(&mut waits[0]).map(|turn| turn.runner), Some(8));
    }

    #[tokio::test]
    async fn who_leaves_with_a_turn_passes_it_on() {
        let queue = queue();
        let (first, mut second) = (join(&queue, 1), join(&queue, 2));
        queue.ended(&7);
        // It was called, and its caller goes away before it has noticed.
        drop(first);
        let held = turn(&mut second).expect("it is the next");
        let mut third = join(&queue, 3);
        // And in the middle of its try.
        drop(held);
        assert!(turn(&mut third).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_leaves_in_time_and_when_dropped() {
        let queue = Queue::<u8>::new(Limits { total: 1, per_function: 1 });
        let soon = Instant::now() + Duration::from_millis(20);
        let waited = queue.wait(&mut Place::new(1, ASK), 0, None, soon).await;
        assert!(matches!(waited, Err(Left::TooLong(_))));
        assert_eq!(queue.len(), 0);
        {
            let _first = join(&queue, 1);
            assert_eq!(queue.len(), 1);
            let refused = queue.wait(&mut Place::new(1, ASK), 0, None, far()).await;
            assert!(matches!(refused, Err(Left::Full(_))));
        }
        assert_eq!(queue.len(), 0);
    }
}
