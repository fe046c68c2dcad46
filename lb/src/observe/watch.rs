//! One call, from its door to its end: its span, its one outcome, and the numbers that it adds to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stoker_core::call::TraceContext;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_proto::{status, v1};
use stoker_runtime::telemetry::{Span, SpanKind, names};

use super::{Door, Observer, OfferWatch, Waiting, facts};
use crate::auth::Caller;
use crate::directory::Known;
use crate::explain::{Record, Story, What, Why};
use crate::fleet::Runner;

/// One call, from its door to its end. Dropped before that, its caller went away.
pub struct Watch {
    pub(super) observer: Arc<Observer>,
    pub(super) door: Door,
    pub(super) id: CallId,
    pub(super) span: Span,
    pub(super) began: Instant,
    /// Of the answer, at the HTTP door.
    pub(super) http_status: u16,
    pub(super) offers: u32,
    pub(super) ended: bool,
    /// Which of its function's revisions runs it; 0 until that is known.
    pub(super) revision: u64,
    pub(super) caller: Caller,
    pub(super) story: Story,
}

impl Watch {
    /// Who asks. A call of nobody is let in only where nobody is asked.
    pub fn by(&mut self, caller: Caller) {
        if !caller.name().is_empty() {
            self.span.set(names::ENDUSER, caller.name());
        }
        self.caller = caller;
    }

    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Which function it is for.
    pub fn function(&mut self, function: &Arc<Known>) {
        self.revision = function.revision;
        self.span.add(&function.facts);
        self.story.function(function.clone());
    }

    /// Which of its revisions.
    pub fn revision(&self) -> Option<u64> {
        (self.revision > 0).then_some(self.revision)
    }

    /// The runner that was asked last; empty where none was.
    pub fn runner(&self) -> String {
        self.story.runner().unwrap_or_default().to_owned()
    }

    /// The HTTP status of the answer.
    pub fn http_status(&mut self, status: u16) {
        self.http_status = status;
    }

    /// The call is offered to `runner`.
    pub fn offer(&mut self, runner: &Arc<Runner>, function: &Known, why: Why) -> OfferWatch {
        let (mut span, now) = (None, Instant::now());
        self.story.note(now, What::Offered { runner: runner.clone(), why });
        if self.span.is_recorded() {
            let mut offer = self.span.child(names::ENGAGE, SpanKind::Client, now);
            offer.add(facts::of_choice(why));
            offer.add(&facts::OFFERS);
            offer.add(&function.facts);
            offer.add(&runner.facts);
            // Which of the call's offers this is: a placement after the first.
            if self.offers > 0 {
                offer.set(names::OFFER, i64::from(self.offers) + 1);
            }
            span = Some(offer);
        }
        self.offers += 1;
        self.observer.placements[why.at()].add_one();
        OfferWatch { observer: self.observer.clone(), why, span, ended: false, times: None }
    }

    /// What the runner is told: the trace goes on below the offer, or, where none is recorded, as it came.
    pub fn context(&self, offer: &OfferWatch) -> TraceContext {
        offer.span.as_ref().unwrap_or(&self.span).context()
    }

    /// The call of this id is put into the queue for later: until the span is dropped, and its attempts stand below it.
    pub fn sends(&self, function: &str, id: &str) -> Span {
        let mut span = self.span.child(names::SEND, SpanKind::Producer, Instant::now());
        span.add(&facts::SENT);
        span.set(names::MESSAGING_DESTINATION, function);
        span.set(names::MESSAGING_ID, id);
        span.set(names::FAAS_INVOCATION, id);
        span
    }

    /// What it is about came to be in another trace.
    pub fn caused_by(&mut self, event: &TraceContext) {
        self.span.link(event);
    }

    /// The call waits for a runner with room.
    pub fn waits(&self) -> Waiting {
        let began = Instant::now();
        let span = self.span.is_recorded().then(|| self.span.child(names::QUEUE, SpanKind::Internal, began));
        let number = {
            let mut line = self.observer.line();
            let number = line.last_key_value().map_or(0, |(last, _)| last + 1);
            line.insert(number, began);
            number
        };
        Waiting { observer: self.observer.clone(), span, began, called: None, number }
    }

    /// Something happened to it that tells why it goes where it goes.
    pub fn note(&mut self, what: What) {
        self.story.note(Instant::now(), what);
    }

    /// What the runner measured.
    pub fn timed(&mut self, timings: Option<v1::Timings>) {
        self.story.timed(timings);
    }

    /// Its answer comes: what the runner measured is known at the end of that, to the watch of the offer.
    pub fn answers(&mut self, offer: &mut OfferWatch) {
        offer.times = Some(self.story.times_come());
    }

    /// By which a line of the log belongs to this call.
    pub fn id(&self) -> CallId {
        self.id
    }

    /// The same for its trace; empty if there is none.
    pub fn trace(&self) -> String {
        self.span.trace().map(|trace| trace.to_string()).unwrap_or_default()
    }

    /// This is its outcome.
    pub fn end(mut self, outcome: Result<(), &Error>) {
        self.ended = true;
        self.count(outcome);
    }

    fn count(&mut self, outcome: Result<(), &Error>) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        if let Err(error) = outcome
            && matches!(error.code, Code::RunnerLost | Code::Internal)
        {
            let trace_id = self.trace();
            tracing::warn!(call_id = %self.id, trace_id, %error, "a call failed, and that is the platform's fault");
        }
        if self.span.is_recorded() {
            self.tell(outcome);
            self.span.end_at(now);
        }
        // Only now it is known of every call whether its trace is there.
        self.add(outcome, took);
        self.observer.stories.keep(Record {
            id: self.id,
            door: self.door.label(),
            began: self.began,
            took,
            failed: Record::failed(outcome),
            trace: self.span.trace(),
            story: std::mem::take(&mut self.story),
        });
    }

    /// Adds it to all numbers.
    fn add(&self, outcome: Result<(), &Error>, took: Duration) {
        let (observer, exemplar) = (&self.observer, self.span.exemplar());
        let counts = &observer.doors[self.door as usize];
        let ended = match outcome {
            Ok(()) => &counts.ok,
            Err(error) => &counts.failed[error.code as usize],
        };
        ended.fetch_add(1, Ordering::Relaxed);
        counts.took.note(took, exemplar);
        if self.offers > 0 {
            observer.tries.observe(self.offers);
        }
        if self.door == Door::Submit {
            return;
        }
        let cold = self.story.is_cold();
        if cold {
            observer.cold.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(function) = self.story.about() {
            let failed = outcome.err().map(Error::blame);
            function.gate.tally.count(took, failed, cold, exemplar);
        }
    }

    /// Says the outcome in the span. A server's span failed only where the server is to blame: what the caller did wrong is no failure of it.
    fn tell(&mut self, outcome: Result<(), &Error>) {
        let row = outcome.err().map(|error| (status::row(error.code), error));
        if let Some((row, error)) = &row {
            self.span.set(names::ERROR_TYPE, row.reason);
            self.span.set(names::BLAME, error.blame().as_str());
        }
        if self.offers > 1 {
            self.span.set(names::OFFERS, i64::from(self.offers));
        }
        let failed = if self.door != Door::Http {
            let code = row.as_ref().map_or(tonic::Code::Ok, |(row, _)| row.grpc);
            match code {
                _ if self.door == Door::Later => {}
                tonic::Code::Ok => self.span.add(&facts::OK),
                code => self.span.set(names::RPC_STATUS, facts::grpc_name(code)),
            }
            use tonic::Code as G;
            matches!(
                code,
                G::Unknown
                    | G::DeadlineExceeded
                    | G::Unimplemented
                    | G::Internal
                    | G::Unavailable
                    | G::DataLoss
            )
        } else {
            let status = row.as_ref().map_or(self.http_status, |(row, _)| row.http);
            self.span.set(names::HTTP_STATUS, i64::from(status));
            status >= 500
        };
        if let Some((_, error)) = row
            && failed
        {
            self.span.fail(error.message.clone());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.ended {
            self.count(Err(&Error::new(Code::Cancelled, String::new())));
        }
    }
}
