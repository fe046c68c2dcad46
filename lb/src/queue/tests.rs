//! The queue with runners that are numbers.

use super::*;
use futures_util::FutureExt as _;
use std::pin::Pin;

type Wait<'a> = Pin<Box<dyn Future<Output = Result<Turn<u8>, Left>> + 'a>>;

const ASK: Ask = Ask { memory: 10, cpu_millis: 0 };

/// How long calls are on their runner.
const THERE: Duration = Duration::from_millis(10);

/// A function of the one tenant that there is.
fn at(line: u64) -> waiting::Place {
    waiting::Place { tenant: 1, line }
}

fn place(function: u64) -> Place<u8> {
    Place::new(at(function), ASK, 0, far())
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Nothing is busy.
fn none(_: &Digest) -> u32 {
    0
}

fn queue() -> Queue<u8> {
    Queue::new(Limits::default())
}

/// Joins the line of `function`.
fn join(queue: &Queue<u8>, function: u64) -> Wait<'_> {
    join_as(queue, at(function))
}

fn join_as(queue: &Queue<u8>, line: waiting::Place) -> Wait<'_> {
    let mut wait: Wait<'_> =
        Box::pin(
            async move { queue.wait(&mut Place::new(line, ASK, 0, far()), queue.unheard(), None).await },
        );
    assert!(wait.as_mut().now_or_never().is_none());
    wait
}

fn turn(wait: &mut Wait<'_>) -> Option<Turn<u8>> {
    wait.as_mut().now_or_never().map(|turn| turn.unwrap_or_else(|left| panic!("{left:?}")))
}

#[tokio::test]
async fn news_during_a_try_is_not_lost() {
    let queue = queue();
    let before = queue.look(|| at(1)).expect("nobody waits");
    queue.ended(&7, true, THERE);
    let turn = queue.wait(&mut place(1), before, None).await;
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
    queue.ended(&7, true, THERE);
    queue.ended(&7, true, THERE);
    let called: Vec<_> = waits.iter_mut().map(|wait| turn(wait).map(Turn::spent).is_some()).collect();
    assert_eq!(called, [true, false, true]);
}

#[tokio::test]
async fn room_wakes_as_many_as_fit_and_always_one() {
    let queue = queue();
    let mut waits: Vec<_> = (0..6).map(|n| join(&queue, n % 3)).collect();
    queue.room(&7, Resources { memory: 45, cpu_millis: 0, slots: 9 }, none, true);
    let turns: Vec<_> = waits.iter_mut().filter_map(turn).collect();
    assert_eq!((turns.len(), queue.len()), (4, 2));
    turns.into_iter().for_each(Turn::spent);
    // One of ours is in the line there: its room is what it says.
    assert!(!queue.room(&7, Resources::default(), none, false));
    assert!(queue.room(&7, Resources::default(), none, true));
    assert_eq!(queue.len(), 1);
}

#[tokio::test]
async fn room_wakes_no_more_of_a_function_than_may_run_there() {
    let queue = &queue();
    let digest = Digest([7; 32]);
    let bounded = |_| {
        let mut place = place(1).bounded(Bound { function: digest, calls: 3 });
        let mut wait: Wait<'_> = Box::pin(async move { queue.wait(&mut place, queue.unheard(), None).await });
        assert!(wait.as_mut().now_or_never().is_none());
        wait
    };
    let mut limited: Vec<_> = (0..9).map(bounded).collect();
    let mut others: Vec<_> = (0..2).map(|_| join(queue, 2)).collect();
    let turns = |waits: &mut Vec<Wait<'_>>| {
        let turns: Vec<_> = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
        let count = turns.len();
        turns.into_iter().for_each(|turn| turn.unwrap_or_else(|left| panic!("{left:?}")).spent());
        waits.truncate(waits.len() - count);
        count
    };
    let room = Resources { memory: 1000, cpu_millis: 0, slots: 99 };
    let busy = |busy| move |function: &Digest| if *function == digest { busy } else { 0 };
    // One of three runs: two more may, and all of the others.
    limited.reverse();
    queue.room(&7, room, busy(1), false);
    assert_eq!((turns(&mut limited), turns(&mut others)), (2, 2));
    // All three run: nobody is asked in vain, but for the one that may stand in the line there.
    assert!(!queue.room(&7, room, busy(3), false));
    assert!(queue.room(&7, room, busy(3), true));
    assert_eq!((turns(&mut limited), queue.len()), (1, 6));
}

#[tokio::test]
async fn a_turn_of_no_use_is_seen_by_every_line_once() {
    let queue = queue();
    let mut places: Vec<_> = (0..3).map(place).collect();
    let mut waits: Vec<Wait<'_>> = Vec::new();
    for place in &mut places {
        let wait: Wait<'_> = Box::pin(async {
            let turn = queue.wait(place, 0, None).await?;
            // Refused.
            queue.wait(place, 0, Some(turn)).await
        });
        waits.push(wait);
    }
    for wait in &mut waits {
        assert!(turn(wait).is_none());
    }
    queue.ended(&7, true, THERE);
    // Each in its order is called, refused, and stands where it stood; then the turn is over.
    for wait in &mut waits {
        assert!(turn(wait).is_none());
    }
    assert_eq!(queue.len(), 3);
    queue.ended(&8, true, THERE);
    assert_eq!(turn(&mut waits[0]).map(|turn| turn.runner), Some(8));
}

#[tokio::test]
async fn who_leaves_with_a_turn_passes_it_on() {
    let queue = queue();
    let (first, mut second) = (join(&queue, 1), join(&queue, 2));
    queue.ended(&7, true, THERE);
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
    let queue = Queue::<u8>::new(Limits { total: 1, per_function: 1, ..Limits::default() });
    let soon = Instant::now() + Duration::from_millis(20);
    let waited = queue.wait(&mut Place::new(at(1), ASK, 0, soon), 0, None).await;
    assert!(matches!(waited, Err(Left::TooLong(_))));
    assert_eq!(queue.len(), 0);
    {
        let _first = join(&queue, 1);
        assert_eq!(queue.len(), 1);
        let refused = queue.wait(&mut place(1), 0, None).await;
        assert!(matches!(refused, Err(Left::Full { .. })));
    }
    assert_eq!(queue.len(), 0);
}

#[tokio::test]
async fn who_waits_when_it_is_closed_is_told_so_and_who_comes_later_too() {
    let queue = queue();
    let mut waits: Vec<_> = (0..3).map(|n| join(&queue, n)).collect();
    let called = {
        queue.ended(&7, true, THERE);
        turn(&mut waits[0]).expect("it has the turn")
    };
    queue.close();
    for wait in &mut waits[1..] {
        assert!(matches!(wait.as_mut().now_or_never(), Some(Err(Left::Closed))));
    }
    // One that was just asking comes back.
    let back = queue.wait(&mut place(0), queue.unheard(), Some(called)).await;
    assert!(matches!(back, Err(Left::Closed)));
    assert_eq!((queue.len(), queue.left_all()), (0, 0));
}

#[tokio::test]
async fn one_that_left_a_line_is_followed_by_one() {
    let queue = queue();
    let mut waits: Vec<_> = (0..3).map(|n| join(&queue, n)).collect();
    queue.left_line(&7);
    assert_eq!(waits.iter_mut().filter_map(turn).map(Turn::spent).count(), 1);
    assert_eq!(queue.len(), 2);
}

#[tokio::test]
async fn who_fills_the_queue_makes_room_for_another() {
    let queue = Queue::<u8>::new(Limits { total: 3, ..Limits::default() });
    let mut busy: Vec<_> = (0..3).map(|_| join(&queue, 1)).collect();
    let mut other = join_as(&queue, waiting::Place { tenant: 2, line: 1 });
    let out = busy.pop().expect("there are three").now_or_never().expect("it was pushed out");
    assert!(matches!(out, Err(Left::PushedOut(wait)) if !wait.is_zero()));
    assert_eq!(queue.len(), 3);
    queue.ended(&7, true, THERE);
    queue.ended(&7, true, THERE);
    assert!(turn(&mut busy[0]).is_some() && turn(&mut other).is_some());
    let counts: Vec<_> = queue.left().map(|(why, count)| (why, count())).collect();
    assert_eq!(counts, [("full", 0), ("pushed_out", 1), ("hopeless", 0), ("too_long", 0)]);
}

#[tokio::test]
async fn what_cannot_be_in_time_does_not_wait() {
    let queue = queue();
    // Some hundred calls end in a second or so, as the queue sees it.
    {
        let mut inner = queue.lock();
        let start = Instant::now();
        inner.rate = Rate::new(start - Duration::from_secs(1));
        let ms = Duration::from_millis;
        (0..100).for_each(|n| inner.rate.ended(start - ms(1000 - 10 * n), ms(10)));
    }
    let _waits: Vec<_> = (0..50).map(|_| join(&queue, 1)).collect();
    let in_time = |millis: u64| {
        let until = Instant::now() + Duration::from_millis(millis);
        let queue = queue.clone();
        async move { queue.wait(&mut Place::new(at(1), ASK, 0, until), 0, None).now_or_never() }
    };
    // Half a second's work is ahead.
    let Some(Err(Left::Hopeless { wait, after })) = in_time(100).await else { panic!("it waits") };
    assert!(wait > Duration::from_millis(200) && after >= Duration::from_millis(50) && after < wait);
    assert!(in_time(2000).await.is_none());
    // The function that nobody waits for is not held back by the one that is busy.
    let until = Instant::now() + Duration::from_millis(100);
    assert!(queue.wait(&mut Place::new(at(2), ASK, 0, until), 0, None).now_or_never().is_none());
}

#[tokio::test]
async fn a_full_runner_is_not_asked_by_everybody() {
    let queue = queue();
    let mut places: Vec<_> = (0..100).map(place).collect();
    let asked = std::cell::Cell::new(0);
    let mut waits: Vec<Wait<'_>> = Vec::new();
    for place in &mut places {
        waits.push(Box::pin(async {
            let mut refused = None;
            loop {
                refused = Some(queue.wait(place, 0, refused).await?);
                asked.set(asked.get() + 1);
            }
        }));
    }
    let mut all = || waits.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
    all();
    queue.ended(&7, true, THERE);
    all();
    assert_eq!(asked.get(), MOST_LINES);
    // The next news goes to others.
    queue.ended(&7, true, THERE);
    all();
    assert_eq!((asked.get(), queue.len()), (2 * MOST_LINES, 100));
}

#[tokio::test]
async fn room_is_cpu_as_well() {
    let queue = queue();
    let ask = Ask { memory: 1, cpu_millis: 400 };
    let mut waits: Vec<_> = (0..4)
        .map(|function| {
            let queue = queue.clone();
            Box::pin(async move { queue.wait(&mut Place::new(at(function), ask, 0, far()), 0, None).await })
        })
        .collect();
    waits.iter_mut().for_each(|wait| assert!(wait.as_mut().now_or_never().is_none()));
    queue.room(&7, Resources { memory: 100, cpu_millis: 1000, slots: 9 }, none, false);
    let turns: Vec<_> = waits.iter_mut().filter_map(|wait| wait.as_mut().now_or_never()).collect();
    assert_eq!(turns.len(), 2);
}

/// Calls that ask a runner in vain come back to their places: whoever takes these meanwhile would stand beyond the limit with them.
#[tokio::test]
async fn who_has_a_turn_keeps_its_place_until_it_starts() {
    let limits = Limits { total: 3, per_function: 2, ..Limits::default() };
    let queue = &Queue::new(limits);
    let mut places = [place(1), place(1)];
    let mut turns = Vec::new();
    for place in &mut places {
        let mut wait: Wait<'_> = Box::pin(queue.wait(place, queue.unheard(), None));
        assert!(wait.as_mut().now_or_never().is_none());
        queue.ended(&7, true, THERE);
        turns.push(turn(&mut wait).expect("news"));
    }
    assert_eq!(queue.len(), 0);
    let comes = |function| {
        let mut place = place(function);
        let came = queue.wait(&mut place, queue.unheard(), None).now_or_never();
        came.and_then(Result::err).map(|left| match left {
            Left::Full { limit, .. } => limit,
            left => panic!("{left:?}"),
        })
    };
    assert_eq!(comes(1), Some(Full::OfFunction(2)));
    // The whole counts them too, and they cannot be pushed out.
    let _waits = join(queue, 2);
    assert_eq!(comes(3), Some(Full::Total(3)));
    // One starts: that is room for another.
    places[0].started();
    assert_eq!((comes(1), comes(3)), (None, None));
    // The other is refused, and has its place.
    let refused = turns.pop();
    assert!(queue.wait(&mut places[1], queue.unheard(), refused).now_or_never().is_none());
    turns.into_iter().for_each(Turn::spent);
}
