//! Whether a runner lives, by the frames of its link.
//!
//! A frozen machine and a cut cable send no reset, so a link is asked for a sign of life. HTTP/2 has pings for that, and they
//! cannot tell who slept: after a pause of our own (a frozen balancer, a machine without CPU to spare) their timer is looked at before the answer that lies in
//! the socket, and a connection in perfect order is given up with all its calls. Here silence is counted in steps, and only in steps that ended on time:
//! one that ended late says that we slept, and nothing of the runner.
//!
//! How much silence is too much follows from how long answers take on this link ([`stoker_policy::silence`]), so busy links are asked too.

use std::time::Duration;

use stoker_policy::silence::{RoundTrip, STEP};
use stoker_proto::runner::v1 as wire;
use tokio::time::Instant;

use crate::fleet::Link;

/// A link is asked every so many steps, if the question before is answered, and when nothing has come for as many.
const PERIOD: u32 = 2;

/// A runner with much to say drops answers: after so many steps none is waited for.
const FORGOTTEN: u32 = 40;

/// A step that ended this much too late does not count.
const LATE: Duration = Duration::from_millis(100);

/// A question that is not answered yet.
struct Question {
    number: u64,
    asked: Instant,
    /// We slept since: when the answer came cannot be told.
    slept: bool,
    /// Something else has come since, so it may have been forgotten.
    passed: bool,
}

/// Returns when nothing has come for longer than this link may be silent, although it was asked for, and says how long that was. Never where the runner's
/// release knows no such question. `greeting` is the time that its first answer took: all that is known of the way until a question is answered, and then
/// forgotten, since a runner that was frozen meanwhile greets as late as if it were far away.
pub async fn silence(link: &Link, greeting: Duration) -> Duration {
    let (mut way, mut asked_before) = (RoundTrip::first(greeting), false);
    let (mut heard, mut number) = (link.heard(), 0);
    let mut question: Option<Question> = None;
    let (mut silent, mut since) = (0, 0);
    loop {
        let on_time = in_time(STEP).await;
        if let Some(open) = &mut question {
            open.slept |= !on_time;
            if let Some((_, came)) = link.ponged().filter(|(number, _)| *number == open.number) {
                if !open.slept {
                    let took = came.saturating_duration_since(open.asked);
                    match std::mem::replace(&mut asked_before, true) {
                        true => way.saw(took),
                        false => way = RoundTrip::first(took),
                    }
                }
                question = None;
            }
        }
        since += 1;
        let (now, bound) = (link.heard(), way.bound());
        let again = match heard == now {
            true => {
                silent += u32::from(on_time);
                let unasked = silent == PERIOD && question.as_ref().is_none_or(|open| open.passed);
                // Half way a second time, should the first have gone with a session that was renewed.
                on_time && (unasked || STEP * silent * 2 == bound)
            }
            false => {
                (heard, silent) = (now, 0);
                if let Some(open) = &mut question {
                    open.passed = true;
                }
                since >= if question.is_none() { PERIOD } else { FORGOTTEN }
            }
        };
        if STEP * silent >= bound {
            return bound;
        }
        if again {
            (number, since) = (number + 1, 0);
            let ping = wire::engage_request::Frame::Ping(wire::Ping { number });
            match link.session.load().as_ref().is_some_and(|session| session.ask(ping)) {
                true => {
                    question = Some(Question { number, asked: Instant::now(), slept: false, passed: false });
                }
                false => silent = 0,
            }
        }
    }
}

/// Waits, and says whether that took no longer than it should.
async fn in_time(time: Duration) -> bool {
    let due = Instant::now() + time;
    tokio::time::sleep_until(due).await;
    due.elapsed() < LATE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::outbox::outbox;
    use crate::link::session::Session;
    use futures_util::StreamExt as _;
    use std::sync::Arc;
    use stoker_policy::silence::{LEAST, MOST};
    use stoker_proto::SESSION_VERSION;

    const GOOD: Duration = Duration::from_millis(1);

    /// A link to a runner that answers its first questions, each after `way`, and after how long it was given up.
    async fn given_up_after(version: u32, way: Duration, answers: u64) -> Option<Duration> {
        let (out, mut outgoing) = outbox();
        let link = Link::default();
        link.session.store(Some(Session::new(out, version, 100)));
        let began = Instant::now();
        let runner = async {
            while let Some(frame) = outgoing.next().await {
                match frame.frame {
                    Some(wire::engage_request::Frame::Ping(ping)) if ping.number <= answers => {
                        tokio::time::sleep(way).await;
                        link.hear();
                        link.pong(ping.number);
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            said = silence(&link, way) => {
                assert!(began.elapsed() >= said);
                Some(began.elapsed())
            }
            () = runner => None,
            () = tokio::time::sleep(Duration::from_secs(600)) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_is_kept_and_who_does_not_is_given_up() {
        assert_eq!(given_up_after(SESSION_VERSION, GOOD, u64::MAX).await, None);
        let silent = given_up_after(SESSION_VERSION, GOOD, 0).await.expect("it never said anything");
        assert!(LEAST <= silent && silent < LEAST + 2 * STEP, "{silent:?}");
        let later = given_up_after(SESSION_VERSION, GOOD, 100).await.expect("it fell silent");
        assert!(later > 100 * PERIOD * STEP + LEAST, "{later:?}");
        assert_eq!(given_up_after(1, GOOD, 0).await, None, "it was never asked");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_way_has_more_time() {
        let way = Duration::from_millis(400);
        assert_eq!(given_up_after(SESSION_VERSION, way, u64::MAX).await, None);
        let first = given_up_after(SESSION_VERSION, way, 0).await.expect("it never said anything");
        assert!(MOST <= first && first < MOST + 2 * STEP, "{first:?}");
        for way in [900, 2_500, 9_000].map(Duration::from_millis) {
            assert_eq!(
                given_up_after(SESSION_VERSION, way, u64::MAX).await,
                None,
                "{way:?}: each answer in time"
            );
        }
        // It was near when it greeted, and is far away since.
        let moved = Duration::from_millis(900);
        assert_eq!(moves(moved).await, MOST);
    }

    /// A runner that is thawed while its link is opened is no far one: should it freeze again, that is noticed as soon as ever.
    #[tokio::test(start_paused = true)]
    async fn one_that_greeted_late_and_answers_at_once_is_near() {
        let (out, mut outgoing) = outbox();
        let link = Link::default();
        link.session.store(Some(Session::new(out, SESSION_VERSION, 100)));
        let runner = async {
            while let Some(frame) = outgoing.next().await {
                if let Some(wire::engage_request::Frame::Ping(ping)) = frame.frame
                    && ping.number <= 2
                {
                    tokio::time::sleep(GOOD).await;
                    link.hear();
                    link.pong(ping.number);
                }
            }
        };
        tokio::select! {
            said = silence(&link, Duration::from_secs(4)) => assert_eq!(said, LEAST),
            () = runner => unreachable!("the link is never closed"),
        }
    }

    /// The bound of a link that was quick when it began and takes `way` since, when it falls silent after a minute.
    async fn moves(way: Duration) -> Duration {
        let (out, mut outgoing) = outbox();
        let link = Link::default();
        link.session.store(Some(Session::new(out, SESSION_VERSION, 100)));
        let began = Instant::now();
        let runner = async {
            while let Some(frame) = outgoing.next().await {
                if let Some(wire::engage_request::Frame::Ping(ping)) = frame.frame
                    && began.elapsed() < Duration::from_secs(60)
                {
                    tokio::time::sleep(way).await;
                    link.hear();
                    link.pong(ping.number);
                }
            }
        };
        tokio::select! {
            said = silence(&link, GOOD) => said,
            () = runner => unreachable!("the link is never closed"),
        }
    }

    /// On a link that is never silent it is known by itself that answers take no time any more.
    #[tokio::test(start_paused = true)]
    async fn a_busy_link_is_asked_too() {
        let (out, mut outgoing) = outbox();
        let link = Link::default();
        link.session.store(Some(Session::new(out, SESSION_VERSION, 100)));
        let busy_for = Duration::from_secs(60);
        let began = Instant::now();
        let runner = async {
            let mut beat = tokio::time::interval(Duration::from_millis(10));
            while began.elapsed() < busy_for {
                tokio::select! {
                    _ = beat.tick() => link.hear(),
                    Some(frame) = outgoing.next() => {
                        if let Some(wire::engage_request::Frame::Ping(ping)) = frame.frame {
                            link.pong(ping.number);
                        }
                    }
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            said = silence(&link, Duration::from_secs(2)) => assert_eq!(said, LEAST, "and not what the greeting took"),
            () = runner => {}
        }
        assert!(began.elapsed() < busy_for + LEAST + 2 * STEP);
    }

    #[tokio::test(start_paused = true)]
    async fn who_slept_says_nothing_of_others() {
        let (out, _outgoing) = outbox();
        let link = Arc::new(Link::default());
        link.session.store(Some(Session::new(out, SESSION_VERSION, 100)));
        let watch = tokio::spawn({
            let link = link.clone();
            async move { silence(&link, GOOD).await }
        });
        // The clock runs, and nobody here does: what came meanwhile has not been read.
        for _ in 0..20 {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!(!watch.is_finished());
        tokio::time::timeout(2 * LEAST, watch).await.expect("now it is").expect("it does not panic");
    }
}
