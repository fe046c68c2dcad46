//! What others may see of a runner: one trace per call, and numbers. Without a tracer and without meters nothing is made and
//! nothing is counted.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use stoker_core::call::TraceContext;
use stoker_core::function::FunctionName;
use stoker_core::machine::Listed as _;
use stoker_core::{Code, Refusal};
use stoker_proto::status;
use stoker_runtime::metrics::{Bounded, Counter, Gauge, Histogram, Labelled, Metrics};
use stoker_runtime::telemetry::{Facts, Span, SpanKind, TraceId, Tracer};

use crate::container::Launched;
use crate::container::state::State;
use crate::pool::Survey;

/// Functions with numbers of their own; those beyond share one.
const FUNCTIONS: usize = 500;

/// Who watches a runner.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    /// Makes spans, where traces go somewhere.
    pub tracer: Option<Tracer>,
    pub meters: Option<Arc<Meters>>,
}

/// What the balancer's session is called in traces.
const ENGAGE: &str = "stoker.runner.v1.RunnerService/Engage";

/// What is the same of all calls' spans.
static CALLS: LazyLock<Facts> =
    LazyLock::new(|| Facts::default().with("rpc.system.name", "grpc").with("rpc.method", ENGAGE));

impl Observer {
    /// The span of a call on this runner, below the balancer's.
    pub fn call(&self, parent: &TraceContext, since: Instant) -> Trace {
        Trace(self.tracer.as_ref().map(|tracer| {
            let mut span = tracer.start(ENGAGE, SpanKind::Server, parent, since);
            span.add(&CALLS);
            span
        }))
    }
}

/// A span, if somebody wants to see it.
#[derive(Debug, Default)]
pub struct Trace(Option<Span>);

impl Trace {
    /// A span below this one. Starts now, and ends when it is dropped.
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Trace {
        self.child_since(name, kind, Instant::now())
    }

    fn child_since(&self, name: &'static str, kind: SpanKind, began: Instant) -> Trace {
        Trace(self.0.as_ref().filter(|span| span.is_recorded()).map(|span| span.child(name, kind, began)))
    }

    /// Something below this one that is over: when it began, and how long it took. Says when it ended.
    pub fn past(&self, name: &'static str, began: Instant, took: Duration) -> Instant {
        let ended = began + took;
        self.child_since(name, SpanKind::Internal, began).note(|span| span.end_at(ended));
        ended
    }

    /// Says more, if it goes anywhere.
    pub fn note(&mut self, note: impl FnOnce(&mut Span)) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recorded()) {
            note(span);
        }
    }

    /// What is handed on from here, where it is not what came.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| span.context())
    }

    /// For numbers that lead to their trace.
    pub fn exemplar(&self) -> Option<TraceId> {
        self.0.as_ref().and_then(|span| span.exemplar())
    }

    /// It ended with this error. In a span of what we serve (`own`) a caller's mistake is no failure; in one of what was asked of
    /// another everything is that did not succeed.
    pub fn failed(&mut self, code: Code, message: &str, own: bool) {
        self.note(|span| {
            use tonic::Code as G;
            let row = status::row(code);
            span.set("error.type", row.reason);
            // What the conventions take for a failure of a server, and what is lost with its runner.
            let serious = matches!(
                row.grpc,
                G::Unknown
                    | G::DeadlineExceeded
                    | G::Unimplemented
                    | G::Internal
                    | G::Unavailable
                    | G::Aborted
            );
            if serious || !own {
                span.fail(message.to_owned());
            }
        });
    }

    /// A launch that was done for this call, with its phases.
    pub fn launch(&self, launched: &Launched) {
        let mut launch = self.child_since("launch", SpanKind::Internal, launched.began);
        let mut at = launched.began;
        for (name, took) in [
            ("image", launched.image),
            ("create", launched.create),
            ("start", launched.start),
            ("init", launched.init),
        ] {
            if !took.is_zero() {
                at = launch.past(name, at, took);
            }
        }
        launch.note(|span| span.end_at(at));
    }
}

/// How a reason is called in numbers.
fn refusal(reason: Refusal) -> &'static str {
    match reason {
        Refusal::Full => "full",
        Refusal::Draining => "draining",
        Refusal::TooLarge => "too_large",
        Refusal::Expired => "expired",
        Refusal::LaunchFailed => "launch_failed",
    }
}

/// The numbers of a runner.
#[derive(Debug)]
pub struct Meters {
    calls: Labelled<Counter>,
    functions: Bounded<Function>,
    execution: Histogram,
    launch: [(&'static str, Histogram); 4],
    containers: Vec<(State, Gauge)>,
    amounts: Amounts,
    refused: Vec<(Refusal, Counter)>,
    launch_failures: [(&'static str, Counter); 2],
    pub evictions: Counter,
    pub reclaimed: Counter,
    pub freezes: Counter,
    pub thaws: Counter,
}

/// Of one function.
#[derive(Debug)]
struct Function {
    name: String,
    ok: Counter,
    cold: Counter,
}

#[derive(Debug)]
struct Amounts {
    memory_total: Gauge,
    memory_free: Gauge,
    cpu_total: Gauge,
    cpu_free: Gauge,
    waiting: Gauge,
}

impl Meters {
    /// Declares them all.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        let calls = metrics.labelled(
            "stoker_runner_calls",
            "Calls that had their outcome here",
            &["function", "code"],
            Counter::default,
        );
        let cold = metrics.labelled(
            "stoker_runner_cold_starts",
            "Calls that waited for a container of their own to start",
            &["function"],
            Counter::default,
        );
        let by_function = {
            let calls = calls.clone();
            move |name: &str| Function {
                name: name.to_owned(),
                ok: calls.with(&[name, "OK"]),
                cold: cold.with(&[name]),
            }
        };
        let launch = metrics.labelled(
            "stoker_runner_launch_seconds",
            "The phases of a container's launch",
            &["phase"],
            Histogram::times,
        );
        let containers = metrics.labelled(
            "stoker_runner_containers",
            "Containers by their state",
            &["state"],
            Gauge::default,
        );
        let memory = metrics.labelled(
            "stoker_runner_memory_bytes",
            "Memory for functions: all of it, and what no container holds",
            &["kind"],
            Gauge::default,
        );
        let cpu = metrics.labelled(
            "stoker_runner_cpu_millis",
            "CPU for functions in thousandths of a core: all of it, and what no call or launch holds",
            &["kind"],
            Gauge::default,
        );
        let failures = metrics.labelled(
            "stoker_runner_launch_failures",
            "Launches that came to nothing, by whose fault that was",
            &["blame"],
            Counter::default,
        );
        let refused = metrics.labelled(
            "stoker_runner_refused",
            "Calls that were given back untouched",
            &["reason"],
            Counter::default,
        );
        Arc::new(Self {
            calls,
            functions: Bounded::new(FUNCTIONS, by_function),
            execution: metrics.histogram(
                "stoker_runner_execution_seconds",
                "From the first byte of input to the end of the answer",
                Histogram::times,
            ),
            launch: ["image", "create", "start", "init"].map(|phase| (phase, launch.with(&[phase]))),
            containers: SHOWN.iter().map(|(state, name)| (*state, containers.with(&[name]))).collect(),
            amounts: Amounts {
                memory_total: memory.with(&["total"]),
                memory_free: memory.with(&["free"]),
                cpu_total: cpu.with(&["total"]),
                cpu_free: cpu.with(&["free"]),
                waiting: metrics.gauge("stoker_runner_waiting", "Calls that wait for a container"),
            },
            refused: Refusal::ALL.iter().map(|why| (*why, refused.with(&[refusal(*why)]))).collect(),
            launch_failures: ["function", "platform"].map(|blame| (blame, failures.with(&[blame]))),
            evictions: metrics.counter(
                "stoker_runner_evictions",
                "Idle containers that were ended to make room for others",
            ),
            reclaimed: metrics.counter(
                "stoker_runner_reclaimed_bytes",
                "Memory that frozen containers gave back while it was short",
            ),
            freezes: metrics.counter("stoker_runner_freezes", "Containers that were frozen"),
            thaws: metrics.counter("stoker_runner_thaws", "Containers that were thawed for a call"),
        })
    }

    /// A call had its outcome; `code` is none where it succeeded.
    pub fn finished(&self, function: &FunctionName, code: Option<Code>) {
        let function = self.functions.get(function.as_str());
        match code {
            None => function.ok.add_one(),
            Some(code) => self.calls.with(&[&function.name, status::row(code).reason]).add_one(),
        }
    }

    /// A call reached a function and was answered, or not.
    pub fn executed(&self, took: Duration, exemplar: Option<TraceId>) {
        self.execution.observe_time(took, exemplar);
    }

    pub fn cold_start(&self, function: &FunctionName) {
        self.functions.get(function.as_str()).cold.add_one();
    }

    /// A container came up.
    pub fn launched(&self, launched: &Launched) {
        for ((_, histogram), took) in
            self.launch.iter().zip([launched.image, launched.create, launched.start, launched.init])
        {
            // A container that is only prepared has not been started.
            if !took.is_zero() {
                histogram.observe_time(took, None);
            }
        }
    }

    /// A container did not come up.
    pub fn launch_failed(&self, blame: &str) {
        if let Some((_, counter)) = self.launch_failures.iter().find(|(name, _)| *name == blame) {
            counter.add_one();
        }
    }

    pub fn refused(&self, reason: Refusal) {
        if let Some((_, counter)) = self.refused.iter().find(|(why, _)| *why == reason) {
            counter.add_one();
        }
    }

    /// How things are now.
    pub fn look(&self, survey: &Survey, total: stoker_core::Resources) {
        for (state, gauge) in &self.containers {
            gauge.set(survey.containers.iter().filter(|other| *other == state).count() as i64);
        }
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.amounts.memory_total.set(whole(total.memory));
        self.amounts.memory_free.set(whole(survey.free.memory));
        self.amounts.cpu_total.set(total.cpu_millis.into());
        self.amounts.cpu_free.set(survey.free.cpu_millis.into());
        self.amounts.waiting.set(survey.waiting.into());
    }
}

/// States of containers that somebody may see.
const SHOWN: [(State, &str); 6] = [
    (State::Creating, "creating"),
    (State::Starting, "starting"),
    (State::Idle, "idle"),
    (State::Busy, "busy"),
    (State::Frozen, "frozen"),
    (State::Stopping, "stopping"),
];
