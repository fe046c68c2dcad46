//! What others may see of a balancer: a span for each call with one for each offer below it, and numbers.
//!
//! A call is watched from its door to its end by a [`Watch`], which knows its one outcome: the one it was [ended](Watch::end) with, or
//! that its caller went away. Where no trace is recorded, a call pays for its numbers (some atomic additions) and hands
//! its trace context on as it came.

mod facts;
mod named;
mod offer;
mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use stoker_core::call::TraceContext;
use stoker_core::error::Code;
use stoker_core::ids::CallId;
use stoker_core::machine::Listed as _;
use stoker_proto::{status, v1};
use stoker_runtime::metrics::{Counter, Counts, Entered, Gauge, Histogram, Metrics, Scrape, Times};
use stoker_runtime::telemetry::names::{self, Name};
use stoker_runtime::telemetry::{Facts, Span, SpanKind, Tracer};

pub use self::facts::{of_function, of_origin, of_runner};
use self::named::Named;
use self::offer::OFFERED;
pub use self::offer::{OfferWatch, Waiting};
pub use self::watch::Watch;
use crate::activity::{Activity, Numbers, OUTCOMES};
use crate::admission::Admission;
use crate::auth::Caller;
use crate::directory::Directory;
use crate::explain::{Stories, Story, Why};
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
struct Calls {
    ok: AtomicU64,
    /// In the order of `Code::ALL`, which is the order of its values.
    failed: Box<[AtomicU64]>,
    took: Times,
}

impl Default for Calls {
    fn default() -> Self {
        let failed = Code::ALL.iter().map(|_| AtomicU64::new(0)).collect();
        Self { ok: AtomicU64::new(0), failed, took: Times::default() }
    }
}

/// Makes spans and counts.
pub struct Observer {
    tracer: Tracer,
    doors: [Calls; DOORS.len()],
    /// Of all calls by any of them.
    cold: AtomicU64,
    offers: [Counter; OFFERED.len()],
    /// In the order of [`Why::LABELS`].
    placements: [Counter; Why::LABELS.len()],
    tries: Counts,
    named: Named,
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
        let (offers, placements) = (metrics.labelled(&OFFERS), metrics.labelled(&PLACEMENTS));
        let runners = metrics.labelled(&RUNNERS);
        let this = Arc::new(Self {
            tracer,
            doors: DOORS.map(|_| Calls::default()),
            cold: AtomicU64::new(0),
            offers: OFFERED.map(|result| offers.with(&[result.label()])),
            placements: Why::LABELS.map(|why| placements.with(&[why])),
            tries: metrics.one(&TRIES),
            named: Named::new(metrics.most_functions()),
            waited: metrics.one(&QUEUE_WAIT),
            line: Mutex::default(),
            runners: STATES.map(|(_, state)| runners.with(&[state])),
            sessions: metrics.one(&SESSIONS),
            stories,
            activity: Activity::default(),
        });
        let told = this.clone();
        metrics.observe([&CALLS, &CALL_DURATION], move |scrape| told.tell_doors(scrape));
        this
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

    fn tell_doors(&self, scrape: &mut Scrape<'_>) {
        let mut calls = scrape.of(&CALLS);
        for (door, counts) in DOORS.iter().zip(&self.doors) {
            calls.counter(&[door.label(), "OK"], counts.ok.load(Ordering::Relaxed));
            for (code, count) in Code::ALL.iter().zip(&counts.failed) {
                calls.counter(&[door.label(), status::row(*code).reason], count.load(Ordering::Relaxed));
            }
        }
        let mut took = scrape.of(&CALL_DURATION);
        for (door, counts) in DOORS.iter().zip(&self.doors) {
            took.times(&[door.label()], &counts.took.so_far(), Some(&counts.took));
        }
    }

    /// Tells of functions, the busy ones by name.
    pub fn tell_functions(&self, directory: &Directory, scrape: &mut Scrape<'_>) {
        let all = directory.all();
        let all = all.iter().map(|known| (known.spec.name.as_str().to_owned(), known.gate.clone()));
        let rows = self.named.look(all, Instant::now());
        let mut calls = scrape.of(&FUNCTION_CALLS);
        for row in &rows {
            for (outcome, count) in OUTCOMES.iter().zip(row.numbers.outcomes) {
                calls.counter(&[row.name(), outcome], count);
            }
        }
        let mut took = scrape.of(&FUNCTION_DURATION);
        for row in &rows {
            let times = row.tally().and_then(|tally| tally.times());
            took.times(&[row.name()], &row.numbers.times, times);
        }
    }

    /// What all calls have come to, for those who watch.
    pub fn total(&self) -> v1::CallTally {
        let mut all = Numbers::default();
        // What only keeps a call for later is none yet.
        for (_, counts) in DOORS.iter().zip(&self.doors).filter(|(door, _)| **door != Door::Submit) {
            all.times.add(&counts.took.so_far());
            all.ended(None, counts.ok.load(Ordering::Relaxed));
            for (code, count) in Code::ALL.iter().zip(&counts.failed) {
                all.ended(Some(code.blame()), count.load(Ordering::Relaxed));
            }
        }
        all.tell(self.cold.load(Ordering::Relaxed))
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
