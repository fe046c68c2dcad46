//! What others may see of a balancer: a span for each call with one for each offer below it, and numbers.
//!
//! A call is watched from its door to its end by a [`Watch`], which knows its one outcome: the one it was [ended](Watch::end) with, or
//! that its caller went away. Where no trace is recorded, a call pays for its numbers (some atomic additions, and finding those of its function) and hands
//! its trace context on as it came.

mod facts;
mod offer;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::call::TraceContext;
use stoker_core::error::{Blame, Code, Error};
use stoker_core::ids::CallId;
use stoker_core::machine::Listed as _;
use stoker_proto::{status, v1};
use stoker_runtime::metrics::{Bounded, Counter, Entered, Gauge, Histogram, Metrics};
use stoker_runtime::telemetry::names::{self, Name};
use stoker_runtime::telemetry::{Facts, Span, SpanKind, Tracer};

pub use self::facts::{of_function, of_origin, of_runner};
use self::offer::OFFERED;
pub use self::offer::{OfferWatch, Waiting};
use crate::activity::Activity;
use crate::admission::Admission;
use crate::auth::Caller;
use crate::directory::Known;
use crate::explain::{Record, Stories, Story, What, Why};
use crate::fleet::Runner;
use crate::link::state::LinkState;
use crate::metrics::{
    CALL_DURATION, CALLS, FUNCTION_CALLS, FUNCTION_DURATION, IN_FLIGHT, OFFERS, PLACEMENTS, QUEUE_BYTES,
    QUEUE_LEFT, QUEUE_LENGTH, QUEUE_OLDEST, QUEUE_WAIT, RUNNERS, SESSIONS, TRIES,
};
use crate::queue::Queue;

/// Through which door a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Invoke,
    Stream,
    Session,
    Http,
    /// Keeping calls for later, and asking for them.
    Submit,
    /// A call that was kept is made.
    Later,
}

const DOORS: [Door; 6] = [Door::Invoke, Door::Stream, Door::Session, Door::Http, Door::Submit, Door::Later];

impl Door {
    fn label(self) -> &'static str {
        match self {
            Door::Invoke => "invoke",
            Door::Stream => "stream",
            Door::Session => "session",
            Door::Http => "http",
            Door::Submit => "submit",
            Door::Later => "later",
        }
    }
}

/// Links by how they stand, as their gauge has them.
const STATES: [(LinkState, &str); 4] = [
    (LinkState::Connecting, "connecting"),
    (LinkState::Ready, "ready"),
    (LinkState::Draining, "draining"),
    (LinkState::Lost, "lost"),
];

/// The numbers of one door.
struct Counts {
    ok: Counter,
    /// In the order of `Code::ALL`, which is the order of its values.
    failed: Box<[Counter]>,
    took: Histogram,
}

/// Faults, in the order of their values.
const BLAMES: [Blame; 3] = [Blame::Caller, Blame::Function, Blame::Platform];

/// The numbers of one function.
struct OfFunction {
    ok: Counter,
    /// In the order of [`BLAMES`].
    failed: [Counter; BLAMES.len()],
    took: Histogram,
}

/// Makes spans and counts.
pub struct Observer {
    tracer: Tracer,
    doors: [Counts; DOORS.len()],
    offers: [Counter; OFFERED.len()],
    /// In the order of [`Why::LABELS`].
    placements: [Counter; Why::LABELS.len()],
    tries: Histogram,
    functions: Bounded<OfFunction>,
    waited: Histogram,
    /// Since when calls wait, by a number that grows.
    line: Mutex<BTreeMap<u64, Instant>>,
    runners: [Gauge; STATES.len()],
    sessions: Gauge,
    /// What became of the last calls, and why.
    pub stories: Stories,
    /// What the fleet does, for those who watch.
    pub activity: Activity,
}

impl Observer {
    pub fn new(tracer: Tracer, metrics: &Metrics, stories: Stories) -> Arc<Self> {
        let (calls, took) = (metrics.labelled(&CALLS), metrics.labelled(&CALL_DURATION));
        let (offers, placements) = (metrics.labelled(&OFFERS), metrics.labelled(&PLACEMENTS));
        let runners = metrics.labelled(&RUNNERS);
        let (of_function, times) = (metrics.labelled(&FUNCTION_CALLS), metrics.labelled(&FUNCTION_DURATION));
        let make = {
            let (calls, times) = (of_function.clone(), times.clone());
            move |name: &str| OfFunction {
                ok: calls.with(&[name, "ok"]),
                failed: BLAMES.map(|blame| calls.with(&[name, blame.as_str()])),
                took: times.with(&[name]),
            }
        };
        let forget = move |name: &str| {
            of_function.forget(name);
            times.forget(name);
        };
        Arc::new(Self {
            tracer,
            doors: DOORS.map(|door| Counts {
                ok: calls.with(&[door.label(), "OK"]),
                failed: Code::ALL
                    .iter()
                    .map(|code| calls.with(&[door.label(), status::row(*code).reason]))
                    .collect(),
                took: took.with(&[door.label()]),
            }),
            offers: OFFERED.map(|result| offers.with(&[result.label()])),
            placements: Why::LABELS.map(|why| placements.with(&[why])),
            tries: metrics.one(&TRIES),
            functions: metrics.functions(make, forget),
            waited: metrics.one(&QUEUE_WAIT),
            line: Mutex::default(),
            runners: STATES.map(|(_, state)| runners.with(&[state])),
            sessions: metrics.one(&SESSIONS),
            stories,
            activity: Activity::default(),
        })
    }

    /// Shows what is counted elsewhere.
    pub fn measure<R: Clone + Send + 'static>(
        self: &Arc<Self>,
        metrics: &Metrics,
        admission: Admission,
        queue: Queue<R>,
    ) {
        metrics.read(&IN_FLIGHT, move || admission.inside() as f64);
        let counted = queue.clone();
        metrics.read(&QUEUE_LENGTH, move || counted.len() as f64);
        let counted = queue.clone();
        metrics.read(&QUEUE_BYTES, move || counted.bytes() as f64);
        metrics.read_each(&QUEUE_LEFT, queue.left().map(|(why, left)| (why, move || left() as f64)));
        let this = self.clone();
        metrics.read(&QUEUE_OLDEST, move || {
            let since = this.line().first_key_value().map(|(_, since)| *since);
            since.map_or(0.0, |since| since.elapsed().as_secs_f64())
        });
    }

    /// Those who wait.
    fn line(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session of a client, as long as what is returned lives.
    pub fn session(&self) -> Entered {
        self.sessions.enter()
    }

    /// How the links stand now.
    pub fn links(&self, links: impl Iterator<Item = LinkState>) {
        let mut counts = [0; STATES.len()];
        for link in links {
            if let Some(at) = STATES.iter().position(|(state, _)| *state == link) {
                counts[at] += 1;
            }
        }
        self.runners.iter().zip(counts).for_each(|(gauge, count)| gauge.set(count));
    }

    /// A call through a gRPC door begins.
    pub fn grpc(self: &Arc<Self>, door: Door, id: CallId, parent: &TraceContext) -> Watch {
        let began = Instant::now();
        let (name, kind) = facts::span(door);
        let span = self.tracer.start(name, kind, parent, began);
        self.watch(door, id, span, began)
    }

    /// A call of a method about calls for later begins.
    pub fn about_later(self: &Arc<Self>, method: Name, id: CallId, parent: &TraceContext) -> Watch {
        let began = Instant::now();
        let mut span = self.tracer.start(method, SpanKind::Server, parent, began);
        span.set(names::RPC_METHOD, method.as_str());
        self.watch(Door::Submit, id, span, began)
    }

    /// An attempt of a call for later begins, which was put into the queue in `parent`.
    pub fn attempt(self: &Arc<Self>, id: CallId, attempt: &Attempt<'_>, parent: &TraceContext) -> Watch {
        let mut watch = self.grpc(Door::Later, id, parent);
        let Attempt { function, number, clock } = *attempt;
        watch.span.set(names::MESSAGING_DESTINATION, function);
        watch.span.set(names::MESSAGING_ID, id);
        watch.span.set(names::ATTEMPT, i64::from(number));
        watch.span.set(names::FAAS_TRIGGER, if clock { "timer" } else { "pubsub" });
        watch
    }

    /// A call through the HTTP door begins.
    pub fn http(self: &Arc<Self>, id: CallId, asked: &Asked<'_>, parent: &TraceContext) -> Watch {
        let Asked { method, path, version, origin } = *asked;
        let began = Instant::now();
        let named = names::asked(method.as_str(), path);
        let mut span = self.tracer.start(named.name, SpanKind::Server, parent, began);
        if span.is_recorded() {
            span.set(names::HTTP_METHOD, named.method.unwrap_or("_OTHER"));
            if named.method.is_none() {
                span.set(names::HTTP_METHOD_ORIGINAL, method.as_str());
            }
            span.set(names::URL_PATH, path);
            if let Some(route) = named.route {
                span.set(names::HTTP_ROUTE, route);
            }
            if path.starts_with("/t/") {
                span.set(names::FAAS_TRIGGER, "http");
            }
            span.set(names::PROTOCOL_VERSION, if version == http::Version::HTTP_2 { "2" } else { "1.1" });
            span.add(origin);
        }
        self.watch(Door::Http, id, span, began)
    }

    fn watch(self: &Arc<Self>, door: Door, id: CallId, mut span: Span, began: Instant) -> Watch {
        span.add(facts::of_calls(door));
        span.set(names::FAAS_INVOCATION, id);
        Watch {
            observer: self.clone(),
            door,
            id,
            span,
            began,
            http_status: 0,
            offers: 0,
            ended: false,
            revision: 0,
            caller: Caller::default(),
            story: Story::default(),
        }
    }
}

/// A request at the HTTP door, as far as spans tell of it.
pub struct Asked<'a> {
    pub method: &'a http::Method,
    pub path: &'a str,
    pub version: http::Version,
    /// What is known of its connection: see [`of_origin`].
    pub origin: &'a Facts,
}

/// An attempt of a call for later.
pub struct Attempt<'a> {
    pub function: &'a str,
    pub number: u32,
    /// The clock made the call, and nobody else.
    pub clock: bool,
}

/// One call, from its door to its end. Dropped before, its caller went away.
pub struct Watch {
    observer: Arc<Observer>,
    door: Door,
    id: CallId,
    span: Span,
    began: Instant,
    /// Of the answer, at the HTTP door.
    http_status: u16,
    offers: u32,
    ended: bool,
    /// Which of its function's revisions runs it; 0 until that is known.
    revision: u64,
    caller: Caller,
    story: Story,
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
            why.note(&mut offer);
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
        OfferWatch { observer: self.observer.clone(), span, ended: false, times: None }
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
        match outcome {
            Ok(()) => counts.ok.add_one(),
            Err(error) => counts.failed[error.code as usize].add_one(),
        }
        counts.took.observe_time(took, exemplar);
        if self.offers > 0 {
            observer.tries.observe_count(self.offers.into());
        }
        // What only keeps a call for later is none yet.
        if self.door == Door::Submit {
            return;
        }
        let (failed, cold) = (outcome.err().map(Error::blame), self.story.is_cold());
        observer.activity.total.count(took, failed, cold);
        let Some(function) = self.story.about() else { return };
        function.gate.tally.count(took, failed, cold);
        observer.functions.with(function.spec.name.as_str(), |of| {
            match failed {
                None => of.ok.add_one(),
                Some(blame) => of.failed[blame as usize].add_one(),
            }
            of.took.observe_time(took, exemplar);
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_place() {
        for (at, code) in Code::ALL.iter().enumerate() {
            assert_eq!(at, *code as usize, "{code:?}");
        }
        for (at, door) in DOORS.iter().enumerate() {
            assert_eq!(at, *door as usize);
        }
    }

    #[test]
    fn who_goes_away_is_counted_as_cancelled() {
        let metrics = Metrics::default();
        let observer = Observer::new(Tracer::off(), &metrics, Stories::new(String::new(), 8));
        let context = TraceContext { parent: "as it came".into(), state: "too".into() };
        let watch = observer.grpc(Door::Session, CallId::new(), &context);
        assert_eq!(watch.span.context(), context);
        drop(watch);
        let (method, version) = (&http::Method::GET, http::Version::HTTP_11);
        let asked = Asked { method, path: "/", version, origin: &Facts::default() };
        observer.http(CallId::new(), &asked, &context).end(Ok(()));
        let text = metrics.text();
        for line in [
            "stoker_lb_calls_total{door=\"session\",code=\"CANCELLED\"} 1",
            "stoker_lb_calls_total{door=\"http\",code=\"OK\"} 1",
            "stoker_lb_call_duration_seconds_count{door=\"http\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
