//! What is watched of one offer of a call, and of its wait.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use stoker_core::error::{Error, Refusal};
use stoker_proto::{status, v1};
use stoker_runtime::telemetry::{Span, Value, names};

use super::Observer;
use super::facts::OK;
use crate::explain::Why;

/// What can become of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// The call ended there: a result or an error.
    Finished,
    Refused(Refusal),
    /// The runner went away.
    Lost,
    /// The call was over before the runner had answered: its caller left, or its deadline passed.
    Abandoned,
    /// It waited there and starts elsewhere.
    Moved,
}

pub const OFFERED: [Offered; 10] = [
    Offered::Finished,
    Offered::Lost,
    Offered::Abandoned,
    Offered::Moved,
    Offered::Refused(Refusal::Full),
    Offered::Refused(Refusal::Draining),
    Offered::Refused(Refusal::TooLarge),
    Offered::Refused(Refusal::Expired),
    Offered::Refused(Refusal::LaunchFailed),
    Offered::Refused(Refusal::NoneIdle),
];

impl Offered {
    pub fn label(self) -> &'static str {
        match self {
            Offered::Finished => "finished",
            Offered::Lost => "lost",
            Offered::Abandoned => "abandoned",
            Offered::Moved => "moved",
            Offered::Refused(Refusal::Full) => "refused_full",
            Offered::Refused(Refusal::Draining) => "refused_draining",
            Offered::Refused(Refusal::TooLarge) => "refused_too_large",
            Offered::Refused(Refusal::Expired) => "refused_expired",
            Offered::Refused(Refusal::LaunchFailed) => "refused_launch_failed",
            Offered::Refused(Refusal::NoneIdle) => "refused_none_idle",
        }
    }
}

/// One offer of a call to a runner. Dropped before its end, the call was over first.
pub struct OfferWatch {
    pub(super) observer: Arc<Observer>,
    pub(super) why: Why,
    pub(super) span: Option<Span>,
    pub(super) ended: bool,
    /// Where what the runner measured is noted at the end of an answer.
    pub(super) times: Option<Arc<OnceLock<v1::Timings>>>,
}

impl OfferWatch {
    /// The runner took it into its line, and guesses how long it will stand there.
    pub fn accepted(&mut self, expected: Option<Duration>) {
        if let Some(span) = &mut self.span {
            let millis = expected.map_or(0, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
            span.event(Instant::now(), names::ACCEPTED, &[(names::EXPECTED_WAIT, Value::Number(millis))]);
        }
    }

    /// It waited there, and starts elsewhere.
    pub fn moved(mut self) {
        self.ended = true;
        self.count(Offered::Moved);
        if let Some(span) = &mut self.span {
            span.set(names::MOVED, true);
        }
    }

    /// What the runner measured of an answer that has come to its end.
    pub fn timed(&mut self, timings: Option<v1::Timings>) {
        if let (Some(times), Some(timings)) = (&self.times, timings) {
            // Nobody else sets it.
            times.set(timings).ok();
        }
    }

    /// No byte of it reached the function.
    pub fn refused(mut self, reason: Refusal, detail: &str) {
        if let Some(span) = &mut self.span {
            self.why.note(span);
        }
        self.end(Offered::Refused(reason), || (Offered::Refused(reason).label(), detail.to_owned()));
    }

    /// The runner went away.
    pub fn lost(self, reason: &str) {
        self.end(Offered::Lost, || ("RUNNER_LOST", reason.to_owned()));
    }

    /// The call ended there.
    pub fn finished(mut self, outcome: Result<(), &Error>) {
        match outcome {
            Ok(()) => {
                self.ended = true;
                self.count(Offered::Finished);
                if let Some(span) = &mut self.span {
                    span.add(&OK);
                }
            }
            Err(error) => {
                if let Some(span) = &mut self.span {
                    span.set(names::BLAME, error.blame().as_str());
                }
                self.end(Offered::Finished, || (status::row(error.code).reason, error.message.clone()));
            }
        }
    }

    fn end(mut self, result: Offered, why: impl FnOnce() -> (&'static str, String)) {
        self.ended = true;
        self.count(result);
        if let Some(span) = &mut self.span {
            let (kind, text) = why();
            span.set(names::ERROR_TYPE, kind);
            span.fail(text);
        }
    }

    fn count(&self, result: Offered) {
        if let Some(at) = OFFERED.iter().position(|offered| *offered == result) {
            self.observer.offers[at].add_one();
        }
    }
}

impl Drop for OfferWatch {
    fn drop(&mut self) {
        if !self.ended {
            self.count(Offered::Abandoned);
            if let Some(span) = &mut self.span {
                span.set(names::ERROR_TYPE, Offered::Abandoned.label());
                span.fail("the call was over before the runner had answered");
            }
        }
    }
}

/// A call that waits for a runner with room, from its first wait to its last turn.
pub struct Waiting {
    pub(super) observer: Arc<Observer>,
    pub(super) span: Option<Span>,
    pub(super) began: Instant,
    /// When it was called last, unless it waits again.
    pub(super) called: Option<Instant>,
    /// By which those who watch know it.
    pub(super) number: u64,
}

impl Waiting {
    /// Its turn has come.
    pub fn called(&mut self) {
        self.called = Some(Instant::now());
    }

    /// Its turn was no use.
    pub fn again(&mut self) {
        self.called = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let ended = self.called.unwrap_or_else(Instant::now);
        self.observer.line().remove(&self.number);
        let exemplar = self.span.as_ref().and_then(Span::exemplar);
        self.observer.waited.observe_time(ended.saturating_duration_since(self.began), exemplar);
        if let Some(span) = &mut self.span {
            span.end_at(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::machine::Listed as _;

    #[test]
    fn every_refusal_has_its_place() {
        for reason in Refusal::ALL.iter().copied() {
            assert!(OFFERED.contains(&Offered::Refused(reason)), "{reason:?}");
        }
    }
}
