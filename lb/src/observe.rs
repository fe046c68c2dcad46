//! What others may see of a balancer: a span for each call with one for each offer below it, and numbers.
//!
//! A call is watched from its door to its end by a [`Watch`], which knows its one outcome: the one it was [ended](Watch::end) with, or
//! that its caller went away. Where no trace is recorded, a call pays for its numbers (atomics, and a short lock for its time) and hands
//! its trace context on as it came.

mod offer;

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use stoker_core::FunctionSpec;
use stoker_core::call::TraceContext;
use stoker_core::capacity::Capacity;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_core::machine::Listed as _;
use stoker_proto::{status, v1};
use stoker_runtime::metrics::{Counter, Entered, Gauge, Histogram, Metrics};
use stoker_runtime::telemetry::{Facts, Span, SpanKind, Tracer};

use self::offer::OFFERED;
pub use self::offer::{OfferWatch, Waiting};
use crate::admission::Admission;
use crate::auth::Caller;
use crate::directory::Known;
use crate::explain::{Record, Stories, Story, What, Why};
use crate::fleet::Runner;
use crate::link::state::LinkState;
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

    /// The method of a gRPC door: also the name of its spans.
    fn method(self) -> Option<&'static str> {
        match self {
            Door::Invoke => Some("stoker.v1.CallService/Invoke"),
            Door::Stream => Some("stoker.v1.CallService/InvokeStream"),
            Door::Session => Some("stoker.v1.CallService/Session"),
            Door::Submit => Some("stoker.v1.CallService/Submit"),
            Door::Later => Some("later"),
            Door::Http => None,
        }
    }
}

/// What a runner's session is called in traces.
const ENGAGE: &str = "stoker.runner.v1.RunnerService/Engage";

/// What is the same of all spans of a method, in the order of [`DOORS`], and of all offers.
static CALLS: LazyLock<[Facts; DOORS.len()]> =
    LazyLock::new(|| DOORS.map(|door| door.method().map(rpc).unwrap_or_default()));
static OFFERS: LazyLock<Facts> = LazyLock::new(|| rpc(ENGAGE));
static OK: LazyLock<Facts> = LazyLock::new(|| Facts::default().with("rpc.response.status_code", "OK"));

fn rpc(method: &'static str) -> Facts {
    Facts::default().with("rpc.system.name", "grpc").with("rpc.method", method)
}

/// What spans say of a function.
pub fn of_function(spec: &FunctionSpec, revision: u64) -> Facts {
    Facts::default()
        .with("faas.invoked_name", spec.name.as_str())
        .with("faas.invoked_provider", "stoker")
        .with("faas.version", revision.to_string().as_str())
}

/// What spans say of a runner that is asked.
pub fn of_runner(capacity: &Capacity) -> Facts {
    let uri = capacity.address.parse::<http::Uri>().unwrap_or_default();
    Facts::default()
        .with("stoker.runner", capacity.runner.as_str())
        .with("server.address", uri.host().unwrap_or_default())
        .with("server.port", i64::from(uri.port_u16().unwrap_or(80)))
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

/// Makes spans and counts.
pub struct Observer {
    tracer: Tracer,
    doors: [Counts; DOORS.len()],
    offers: [Counter; OFFERED.len()],
    waited: Histogram,
    runners: [Gauge; STATES.len()],
    sessions: Gauge,
    /// What became of the last calls, and why.
    pub stories: Stories,
}

impl Observer {
    pub fn new(tracer: Tracer, metrics: &Metrics, stories: Stories) -> Arc<Self> {
        let calls = metrics.labelled(
            "stoker_lb_calls",
            "Calls by door and outcome",
            &["door", "code"],
            Counter::default,
        );
        let took = metrics.labelled(
            "stoker_lb_call_duration_seconds",
            "From a call's arrival to the end of its answer",
            &["door"],
            Histogram::times,
        );
        let offers = metrics.labelled(
            "stoker_lb_offers",
            "Offers to runners by result",
            &["result"],
            Counter::default,
        );
        let runners = metrics.labelled(
            "stoker_lb_runners",
            "Runners by how they are linked",
            &["state"],
            Gauge::default,
        );
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
            waited: metrics.histogram(
                "stoker_lb_queue_wait_seconds",
                "How long calls waited that had to wait for a runner with room",
                Histogram::times,
            ),
            runners: STATES.map(|(_, state)| runners.with(&[state])),
            sessions: metrics.gauge("stoker_lb_sessions", "Sessions of clients that are open"),
            stories,
        })
    }

    /// Shows what is counted elsewhere.
    pub fn measure<R: Clone + Send + 'static>(metrics: &Metrics, admission: Admission, queue: Queue<R>) {
        metrics.gauged("stoker_lb_calls_in_flight", "Calls inside", move || admission.inside() as f64);
        let counted = queue.clone();
        metrics.gauged("stoker_lb_queue_length", "Calls that wait for a runner with room", move || {
            queue.len() as f64
        });
        let held = counted.clone();
        metrics.gauged(
            "stoker_lb_queue_bytes",
            "Bytes of bodies and heads that calls hold while they wait",
            move || held.bytes() as f64,
        );
        metrics.counted(
            "stoker_lb_queue_left",
            "Calls that waited, or were about to, and left without a runner",
            &["why"],
            counted.left(),
        );
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
        let span = self.tracer.start(door.method().unwrap_or_default(), SpanKind::Server, parent, began);
        self.watch(door, id, span, began)
    }

    /// A call through the HTTP door begins.
    pub fn http(
        self: &Arc<Self>,
        id: CallId,
        method: &http::Method,
        path: &str,
        parent: &TraceContext,
    ) -> Watch {
        let (name, route) = match path {
            _ if path.starts_with("/invoke/") => ("POST /invoke/{function}", "/invoke/{function}"),
            _ if path.starts_with("/t/") => match *method {
                http::Method::GET => ("GET /t/{app}/{source}", "/t/{app}/{source}"),
                http::Method::POST => ("POST /t/{app}/{source}", "/t/{app}/{source}"),
                _ => ("HTTP /t/{app}/{source}", "/t/{app}/{source}"),
            },
            _ => ("HTTP", ""),
        };
        let began = Instant::now();
        let mut span = self.tracer.start(name, SpanKind::Server, parent, began);
        span.set("http.request.method", method.as_str());
        span.set("url.path", path);
        if !route.is_empty() {
            span.set("http.route", route);
        }
        self.watch(Door::Http, id, span, began)
    }

    fn watch(self: &Arc<Self>, door: Door, id: CallId, mut span: Span, began: Instant) -> Watch {
        span.add(&CALLS[door as usize]);
        span.set("faas.invocation_id", id);
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
            self.span.set("enduser.id", caller.name());
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
            let mut offer = self.span.child(ENGAGE, SpanKind::Client, now);
            why.note(&mut offer);
            offer.add(&OFFERS);
            offer.add(&function.facts);
            offer.add(&runner.facts);
            // Which of the call's offers this is: a placement after the first.
            if self.offers > 0 {
                offer.set("stoker.offer", i64::from(self.offers) + 1);
            }
            span = Some(offer);
        }
        self.offers += 1;
        OfferWatch { observer: self.observer.clone(), span, ended: false, times: None }
    }

    /// What the runner is told: the trace goes on below the offer, or, where none is recorded, as it came.
    pub fn context(&self, offer: &OfferWatch) -> TraceContext {
        offer.span.as_ref().unwrap_or(&self.span).context()
    }

    /// The call waits for a runner with room.
    pub fn waits(&self) -> Waiting {
        let began = Instant::now();
        let span = self.span.is_recorded().then(|| self.span.child("queue", SpanKind::Internal, began));
        Waiting { observer: self.observer.clone(), span, began, called: None }
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
        let counts = &self.observer.doors[self.door as usize];
        match outcome {
            Ok(()) => counts.ok.add_one(),
            Err(error) => counts.failed[error.code as usize].add_one(),
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        counts.took.observe_time(took, self.span.exemplar());
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

    /// Says the outcome in the span. A server's span failed only where the server is to blame: what the caller did wrong is no failure of it.
    fn tell(&mut self, outcome: Result<(), &Error>) {
        let row = outcome.err().map(|error| (status::row(error.code), error));
        if let Some((row, _)) = &row {
            self.span.set("error.type", row.reason);
        }
        if self.offers > 1 {
            self.span.set("stoker.offers", i64::from(self.offers));
        }
        let failed = if self.door.method().is_some() {
            let code = row.as_ref().map_or(tonic::Code::Ok, |(row, _)| row.grpc);
            match code {
                tonic::Code::Ok => self.span.add(&OK),
                code => self.span.set("rpc.response.status_code", grpc_name(code)),
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
            self.span.set("http.response.status_code", i64::from(status));
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

/// A status code's name on the wire.
fn grpc_name(code: tonic::Code) -> &'static str {
    use tonic::Code as G;
    match code {
        G::Ok => "OK",
        G::Cancelled => "CANCELLED",
        G::Unknown => "UNKNOWN",
        G::InvalidArgument => "INVALID_ARGUMENT",
        G::DeadlineExceeded => "DEADLINE_EXCEEDED",
        G::NotFound => "NOT_FOUND",
        G::AlreadyExists => "ALREADY_EXISTS",
        G::PermissionDenied => "PERMISSION_DENIED",
        G::ResourceExhausted => "RESOURCE_EXHAUSTED",
        G::FailedPrecondition => "FAILED_PRECONDITION",
        G::Aborted => "ABORTED",
        G::OutOfRange => "OUT_OF_RANGE",
        G::Unimplemented => "UNIMPLEMENTED",
        G::Internal => "INTERNAL",
        G::Unavailable => "UNAVAILABLE",
        G::DataLoss => "DATA_LOSS",
        G::Unauthenticated => "UNAUTHENTICATED",
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
        observer.http(CallId::new(), &http::Method::GET, "/", &context).end(Ok(()));
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
