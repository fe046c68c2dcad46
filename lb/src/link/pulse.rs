//! Whether a runner lives, by the frames of its link.
//!
//! A frozen machine and a cut cable send no reset, so a link on which nothing comes is asked for a sign of life. HTTP/2 has pings for that, and they
//! cannot tell who slept: after a pause of our own (a frozen balancer, a machine without CPU to spare) their timer is looked at before the answer that lies in
//! the socket, and a connection in perfect order is given up with all its calls. Here silence is counted in steps, and only in steps that ended on time:
//! one that ended late says that we slept, and nothing of the runner.

use std::time::Duration;

use stoker_proto::runner::v1 as wire;
use tokio::time::Instant;

use crate::fleet::Lane;

/// A link on which nothing came for this long is asked.
const IDLE: Duration = Duration::from_millis(500);

/// Silence after the question is counted in steps of this length, so many of them.
const STEP: Duration = Duration::from_millis(250);
const STEPS: u32 = 10;

/// A step that ended this much too late does not count.
const LATE: Duration = Duration::from_millis(100);

/// How long a runner that is gone goes unnoticed, and one that hangs: far below a lease, far above any pause of a runner that lives.
pub const SILENCE: Duration = Duration::from_millis(500 + 250 * STEPS as u64);

/// Returns when nothing has come for [`SILENCE`], although it was asked for. Never where the runner's release knows no such question.
pub async fn silence(lane: &Lane) {
    let mut heard = lane.heard();
    let mut asked = 0;
    loop {
        while in_time(IDLE).await && lane.heard() != heard {
            heard = lane.heard();
        }
        asked += 1;
        let ping = wire::engage_request::Frame::Ping(wire::Ping { number: asked });
        if !lane.session.load().as_ref().is_some_and(|session| session.ask(ping)) {
            continue;
        }
        let mut silent = 0;
        while silent < STEPS && lane.heard() == heard {
            silent += u32::from(in_time(STEP).await);
        }
        if lane.heard() == heard {
            return;
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
    use stoker_proto::SESSION_VERSION;

    /// A link to a runner that answers its first questions, and after how long it was given up.
    async fn given_up_after(version: u32, answers: u64) -> Option<Duration> {
        let (out, mut outgoing) = outbox();
        let lane = Lane::default();
        lane.session.store(Some(Session::new(out, version, 100)));
        let began = Instant::now();
        let runner = async {
            while let Some(frame) = outgoing.next().await {
                match frame.frame {
                    Some(wire::engage_request::Frame::Ping(ping)) if ping.number <= answers => lane.hear(),
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = silence(&lane) => Some(began.elapsed()),
            () = runner => None,
            () = tokio::time::sleep(Duration::from_secs(3600)) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_is_kept_and_who_does_not_is_given_up() {
        assert_eq!(given_up_after(SESSION_VERSION, u64::MAX).await, None);
        let silent = given_up_after(SESSION_VERSION, 0).await.expect("it never said anything");
        assert!(SILENCE <= silent && silent < SILENCE + STEP, "{silent:?}");
        let later = given_up_after(SESSION_VERSION, 100).await.expect("it fell silent");
        assert!(later > 100 * IDLE + SILENCE, "{later:?}");
        assert_eq!(given_up_after(1, 0).await, None, "it was never asked");
    }

    #[tokio::test(start_paused = true)]
    async fn who_slept_says_nothing_of_others() {
        let (out, _outgoing) = outbox();
        let lane = Arc::new(Lane::default());
        lane.session.store(Some(Session::new(out, SESSION_VERSION, 100)));
        let watch = tokio::spawn({
            let lane = lane.clone();
            async move { silence(&lane).await }
        });
        // The clock runs, and nobody here does: what came meanwhile has not been read.
        for _ in 0..20 {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert!(!watch.is_finished());
        tokio::time::timeout(2 * SILENCE, watch).await.expect("now it is").expect("it does not panic");
    }
}
