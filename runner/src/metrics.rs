//! The metrics of a runner: every one of them, with its labels and its meaning, and who counts. `docs/metrics.md` is made from this, and
//! so are dashboards.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::call::Cold;
use stoker_core::function::FunctionName;
use stoker_core::machine::Listed as _;
use stoker_core::{Code, Refusal, Resources};
use stoker_proto::status;
use stoker_runtime::metrics::{Bounded, Counter, Def, Gauge, Histogram, Labelled, Level, Listed, Metrics};
use stoker_runtime::telemetry::TraceId;

use crate::container::Launched;
use crate::container::state::State;
use crate::observe::refusal;
use crate::pool::Survey;
use crate::pool::why::Ended;

const FUNCTION: (&str, &str) =
    ("function", "`app/function`; `(other)` for all beyond `metrics.functions`, the busy ones come first");

pub static CALLS: Def<Counter> = Def::counter("stoker_runner_calls", "Calls that had their outcome here")
    .labels(&[FUNCTION, ("code", "`OK`, or the error's reason, such as `FUNCTION_TIMEOUT`")]);
pub static EXECUTION: Def<Histogram> = Def::times(
    "stoker_runner_execution_seconds",
    "The function's own time: from the first byte of input to the end of the answer",
)
.labels(&[FUNCTION]);
pub static IN_FLIGHT: Def<Gauge> = Def::gauge("stoker_runner_calls_in_flight", "Calls that run");
pub static WAITING: Def<Gauge> = Def::gauge("stoker_runner_calls_waiting", "Calls that wait for a container");
pub static WAIT: Def<Histogram> = Def::times(
    "stoker_runner_wait_seconds",
    "How long calls waited here for a slot or a container, of those that waited and were served",
);
pub static REFUSED: Def<Counter> =
    Def::counter("stoker_runner_refused", "Calls that were given back untouched")
        .labels(&[("reason", "`full`, `draining`, `too_large`, `expired`, `launch_failed`, `none_idle` (it was to start at once or not at all)")]);

pub static COLD_STARTS: Def<Counter> =
    Def::counter("stoker_runner_cold_starts", "Calls that waited for a container of their own to start").labels(&[
        FUNCTION,
        (
            "cause",
            "why none was warm: `first` (nothing of it was here before), `busy` (those that are here had calls), `expired` (idle too \
             long), `evicted` (made room for others), `broken` (ended by itself, or not trusted after a call), `once` (its format \
             has a process a call), `drained`",
        ),
    ]);
pub static LAUNCHES: Def<Counter> =
    Def::counter("stoker_runner_launches", "Launches of containers that were begun")
        .labels(&[("purpose", "`call` (one waits for it), `ahead` (of calls that are expected)")]);
pub static LAUNCH: Def<Histogram> =
    Def::times("stoker_runner_launch_seconds", "The phases of a container's launch").labels(&[(
        "phase",
        "`image` (fetched, or found), `create` (the sandbox), `start` (the process), `init` (the function makes itself ready)",
    )]);
pub static LAUNCH_FAILURES: Def<Counter> =
    Def::counter("stoker_runner_launch_failures", "Launches that came to nothing")
        .labels(&[("blame", "whose fault: `function`, `platform`")]);

pub static CONTAINERS: Def<Gauge> = Def::gauge("stoker_runner_containers", "Containers by their state")
    .labels(&[("state", "`creating`, `starting`, `idle`, `busy`, `frozen`, `stopping`")]);
pub static ENDED: Def<Counter> = Def::counter("stoker_runner_containers_ended", "Containers that were ended, or ended")
    .labels(&[(
        "why",
        "`expired` (idle too long), `evicted` (made room for others), `broken` (ended by itself, or not trusted after a call), `once` (its \
         format has a process a call), `drained` (the runner stops, or was drained)",
    )]);
pub static FREEZES: Def<Counter> = Def::counter("stoker_runner_freezes", "Containers that were frozen");
pub static THAWS: Def<Counter> =
    Def::counter("stoker_runner_thaws", "Containers that were thawed for a call");

pub static MEMORY: Def<Gauge> = Def::gauge("stoker_runner_memory_bytes", "Memory for functions").labels(&[(
    "kind",
    "`total`, `free` (no container holds it), `reclaimable` (idle containers hold it, and give it up on demand), `used` (what containers \
     really had when last looked at)",
)]);
pub static CPU: Def<Level> = Def::level("stoker_runner_cpu_cores", "CPU for functions")
    .labels(&[("kind", "`total`, `free` (no call or launch holds it)")]);
pub static SLOTS: Def<Gauge> = Def::gauge("stoker_runner_slots", "Containers that there may be")
    .labels(&[("kind", "`total`, `free`, `reclaimable` (idle)")]);
pub static RECLAIMED: Def<Counter> = Def::counter(
    "stoker_runner_reclaimed_bytes",
    "Memory that frozen containers gave back while it was short",
);

/// All of them.
pub static LISTED: Listed = &[
    &CALLS.about,
    &EXECUTION.about,
    &IN_FLIGHT.about,
    &WAITING.about,
    &WAIT.about,
    &REFUSED.about,
    &COLD_STARTS.about,
    &LAUNCHES.about,
    &LAUNCH.about,
    &LAUNCH_FAILURES.about,
    &CONTAINERS.about,
    &ENDED.about,
    &FREEZES.about,
    &THAWS.about,
    &MEMORY.about,
    &CPU.about,
    &SLOTS.about,
    &RECLAIMED.about,
];

/// States of containers that somebody may see.
const SHOWN: [(State, &str); 6] = [
    (State::Creating, "creating"),
    (State::Starting, "starting"),
    (State::Idle, "idle"),
    (State::Busy, "busy"),
    (State::Frozen, "frozen"),
    (State::Stopping, "stopping"),
];

/// Who counts.
#[derive(Debug)]
pub struct Meters {
    calls: Labelled<Counter>,
    functions: Bounded<Function>,
    wait: Histogram,
    launch: [Histogram; 4],
    launches: [Counter; 2],
    containers: Vec<(State, Gauge)>,
    ended: [Counter; Ended::ALL.len()],
    amounts: Amounts,
    refused: Vec<(Refusal, Counter)>,
    launch_failures: [(&'static str, Counter); 2],
    pub reclaimed: Counter,
    pub freezes: Counter,
    pub thaws: Counter,
}

/// Of one function.
#[derive(Debug)]
struct Function {
    name: String,
    ok: Counter,
    cold: [Counter; Cold::ALL.len()],
    execution: Histogram,
}

#[derive(Debug)]
struct Amounts {
    memory: [Gauge; 4],
    cpu: [Level; 2],
    slots: [Gauge; 3],
    in_flight: Gauge,
    waiting: Gauge,
}

impl Meters {
    /// Declares them all.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Arc<Self> {
        let calls = metrics.labelled(&CALLS);
        let (cold, execution) = (metrics.labelled(&COLD_STARTS), metrics.labelled(&EXECUTION));
        let make = {
            let (calls, cold, execution) = (calls.clone(), cold.clone(), execution.clone());
            move |name: &str| Function {
                name: name.to_owned(),
                ok: calls.with(&[name, "OK"]),
                cold: Cold::ALL.map(|cause| cold.with(&[name, cause.label()])),
                execution: execution.with(&[name]),
            }
        };
        let forget = {
            let calls = calls.clone();
            move |name: &str| {
                calls.forget(name);
                cold.forget(name);
                execution.forget(name);
            }
        };
        let (launch, launches) = (metrics.labelled(&LAUNCH), metrics.labelled(&LAUNCHES));
        let (containers, ended) = (metrics.labelled(&CONTAINERS), metrics.labelled(&ENDED));
        let (memory, cpu) = (metrics.labelled(&MEMORY), metrics.labelled(&CPU));
        let slots = metrics.labelled(&SLOTS);
        let (failures, refused) = (metrics.labelled(&LAUNCH_FAILURES), metrics.labelled(&REFUSED));
        Arc::new(Self {
            calls,
            functions: metrics.functions(make, forget),
            wait: metrics.one(&WAIT),
            launch: ["image", "create", "start", "init"].map(|phase| launch.with(&[phase])),
            launches: ["call", "ahead"].map(|purpose| launches.with(&[purpose])),
            containers: SHOWN.iter().map(|(state, name)| (*state, containers.with(&[name]))).collect(),
            ended: Ended::ALL.map(|why| ended.with(&[why.label()])),
            amounts: Amounts {
                memory: ["total", "free", "reclaimable", "used"].map(|kind| memory.with(&[kind])),
                cpu: ["total", "free"].map(|kind| cpu.with(&[kind])),
                slots: ["total", "free", "reclaimable"].map(|kind| slots.with(&[kind])),
                in_flight: metrics.one(&IN_FLIGHT),
                waiting: metrics.one(&WAITING),
            },
            refused: Refusal::ALL.iter().map(|why| (*why, refused.with(&[refusal(*why)]))).collect(),
            launch_failures: ["function", "platform"].map(|blame| (blame, failures.with(&[blame]))),
            reclaimed: metrics.one(&RECLAIMED),
            freezes: metrics.one(&FREEZES),
            thaws: metrics.one(&THAWS),
        })
    }

    /// A call had its outcome; `code` is none where it succeeded.
    pub fn finished(&self, function: &FunctionName, code: Option<Code>) {
        self.functions.with(function.as_str(), |function| match code {
            None => function.ok.add_one(),
            Some(code) => self.calls.with(&[&function.name, status::row(code).reason]).add_one(),
        });
    }

    /// A call reached a function and was answered, or not.
    pub fn executed(&self, function: &FunctionName, took: Duration, exemplar: Option<TraceId>) {
        self.functions.with(function.as_str(), |function| function.execution.observe_time(took, exemplar));
    }

    /// A call waited, and was served.
    pub fn waited(&self, took: Duration, exemplar: Option<TraceId>) {
        self.wait.observe_time(took, exemplar);
    }

    /// A call was served by a launch of its own.
    pub fn cold_start(&self, function: &FunctionName, cause: Cold) {
        self.functions.with(function.as_str(), |function| function.cold[cause as usize].add_one());
    }

    /// A launch begins, for a call that waits or ahead of need.
    pub fn launches(&self, ahead: bool) {
        self.launches[usize::from(ahead)].add_one();
    }

    /// A container came up.
    pub fn launched(&self, launched: &Launched) {
        let phases = [launched.image, launched.create, launched.start, launched.init];
        // A container that is only prepared has not been started.
        for (histogram, took) in self.launch.iter().zip(phases).filter(|(_, took)| !took.is_zero()) {
            histogram.observe_time(took, None);
        }
    }

    /// A container did not come up.
    pub fn launch_failed(&self, blame: &str) {
        if let Some((_, counter)) = self.launch_failures.iter().find(|(name, _)| *name == blame) {
            counter.add_one();
        }
    }

    /// A container goes.
    pub fn ended(&self, why: Ended) {
        self.ended[why as usize].add_one();
    }

    pub fn refused(&self, reason: Refusal) {
        if let Some((_, counter)) = self.refused.iter().find(|(why, _)| *why == reason) {
            counter.add_one();
        }
    }

    /// How things are now.
    pub fn look(&self, survey: &Survey, total: Resources) {
        for (state, gauge) in &self.containers {
            gauge.set(survey.containers.iter().filter(|other| *other == state).count() as i64);
        }
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let Amounts { memory, cpu, slots, in_flight, waiting } = &self.amounts;
        let amounts = [total.memory, survey.free.memory, survey.reclaimable.memory, survey.used];
        memory.iter().zip(amounts).for_each(|(gauge, bytes)| gauge.set(whole(bytes)));
        let cores = [total.cpu_millis, survey.free.cpu_millis].map(|millis| f64::from(millis) / 1000.0);
        cpu.iter().zip(cores).for_each(|(level, cores)| level.set(cores));
        let counts = [total.slots, survey.free.slots, survey.reclaimable.slots];
        slots.iter().zip(counts).for_each(|(gauge, slots)| gauge.set(slots.into()));
        in_flight.set(survey.in_flight.into());
        waiting.set(survey.waiting.into());
    }
}
