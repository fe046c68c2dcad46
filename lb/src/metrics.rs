//! The metrics of a balancer: every one of them, with its labels and its meaning. `docs/metrics.md` is made from this, and so are dashboards.

use stoker_runtime::metrics::{Counter, Counts, Def, Gauge, Histogram, Level, Listed, Observable, Read};

const DOOR: (&str, &str) = (
    "door",
    "how calls come in: `invoke`, `stream`, `session` by gRPC, `http`, `submit` (kept for later), `later` (kept calls that are made)",
);
const FUNCTION: (&str, &str) =
    ("function", "`app/function`; `(other)` for all beyond `metrics.functions`, the busy ones come first");
const ZONE: (&str, &str) = ("zone", "the runners' zone");

pub static CALLS: Observable = Observable::counter("stoker_lb_calls", "Calls that had their outcome")
    .labels(&[DOOR, ("code", "`OK`, or the error's reason, such as `OVERLOADED`")]);
pub static CALL_DURATION: Observable =
    Observable::times("stoker_lb_call_duration_seconds", "From a call's arrival to the end of its answer")
        .labels(&[DOOR]);
pub static FUNCTION_CALLS: Observable =
    Observable::counter("stoker_lb_function_calls", "Calls of a function that had their outcome")
        .labels(&[FUNCTION, ("outcome", "`ok`, or whose fault it was: `caller`, `function`, `platform`")]);
pub static FUNCTION_DURATION: Observable = Observable::times(
    "stoker_lb_function_duration_seconds",
    "From the arrival of a function's call to the end of its answer",
)
.labels(&[FUNCTION]);
pub static IN_FLIGHT: Read =
    Read::gauge("stoker_lb_calls_in_flight", "Calls inside, those that wait included");
pub static SESSIONS: Def<Gauge> = Def::gauge("stoker_lb_sessions", "Sessions of clients that are open");
pub static CONNECTIONS: Def<Gauge> =
    Def::gauge("stoker_lb_connections", "Connections of clients that are open")
        .labels(&[("port", "`grpc`, `http`")]);
pub static CONNECTIONS_FAILED: Def<Counter> = Def::counter(
    "stoker_lb_connections_failed",
    "Connections of clients that came to nothing, or were given up",
)
.labels(&[(
    "why",
    "`full` (there were `max_connections`), `crowd` (its address had its `address_share` of them), \
     `silent` (its client did not say in time what it wants), `deaf` (its client took nothing of an answer for \
     `send_timeout`; by HTTP/2 that answer alone is given up), `tls` (its handshake failed, or took too long), `system` (the system could not give it to the balancer, such as for want of open files)",
)]);

pub static RUNNERS: Def<Gauge> =
    Def::gauge("stoker_lb_runners", "Runners by how this balancer is linked with them")
        .labels(&[("state", "`connecting`, `ready`, `draining`, `lost`")]);
pub static OFFERS: Def<Counter> = Def::counter("stoker_lb_offers", "Offers of calls to runners").labels(&[(
    "result",
    "`finished` (the call ended there), `refused_…` with the reason, `lost` with its runner, `moved` to another while it \
     waited, `abandoned` (its caller left, or its deadline passed)",
)]);
pub static PLACEMENTS: Def<Counter> = Def::counter("stoker_lb_placements", "Offers by why that runner was asked")
    .labels(&[(
        "why",
        "`warm` (it said that a container is idle), `line` (nobody is idle, and its line is the shortest), `rank` (it comes next for that \
         function), `young` (new, taking its part), `spill` (the less busy of two), `turn` (news of room for one that waits), `idle` (the \
         call waits elsewhere meanwhile)",
    )]);
pub static TRIES: Def<Counts> = Def::counts(
    "stoker_lb_placement_tries",
    "Runners that were asked for a call, of calls that were offered at all",
);

pub static QUEUE_LENGTH: Read =
    Read::gauge("stoker_lb_queue_length", "Calls that wait for a runner with room");
pub static QUEUE_BYTES: Read =
    Read::gauge("stoker_lb_queue_bytes", "Bodies and heads that calls hold while they wait");
pub static QUEUE_OLDEST: Read =
    Read::gauge("stoker_lb_queue_oldest_seconds", "How long the call has waited that waits longest");
pub static QUEUE_WAIT: Def<Histogram> = Def::times(
    "stoker_lb_queue_wait_seconds",
    "How long calls waited that had to wait for a runner with room, however that ended",
);
pub static QUEUE_LEFT: Read = Read::counter(
    "stoker_lb_queue_left",
    "Calls that waited, or were about to, and left without a runner",
)
.label(&[(
    "why",
    "`full` (no place), `pushed_out` (its place went to a function that has less), `hopeless` (told at once), `too_long`",
)]);

pub static ZONE_RUNNERS: Def<Level> =
    Def::level("stoker_lb_zone_runners", "Runners of a zone that take calls").labels(&[ZONE]);
pub static ZONE_USED: Def<Level> = Def::level(
    "stoker_lb_zone_used_runners",
    "Runners' worth that work holds in a zone, smoothed; the same on every balancer",
)
.labels(&[ZONE]);
pub static ZONE_UNSERVED: Def<Level> = Def::level(
    "stoker_lb_zone_unserved_runners",
    "Runners' worth that calls want which wait in this balancer or were refused by it, smoothed",
)
.labels(&[ZONE]);
pub static ZONE_DESIRED: Def<Level> = Def::level(
    "stoker_lb_zone_desired_runners",
    "Runners that a zone should have, as this balancer alone sees it",
)
.labels(&[ZONE]);

pub static LATER_SUBMITS: Def<Counter> = Def::counter(
    "stoker_lb_later_submits",
    "Calls for later that were accepted here",
)
.labels(&[("kind", "`new`, `repeated` (known by its key), `redriven` (a dead letter that is sent again)")]);
pub static LATER_ATTEMPTS: Def<Counter> = Def::counter(
    "stoker_lb_later_attempts",
    "Starts of calls for later; an interrupted one may have run, and ran again",
)
.labels(&[("outcome", "`succeeded`, `failed`, `interrupted`, `not_started`")]);
pub static LATER_ENDED: Def<Counter> =
    Def::counter("stoker_lb_later_ended", "Calls for later that ended here")
        .labels(&[("state", "`done`, `dead` (all attempts failed), `cancelled`")]);
pub static LATER_QUEUED: Read =
    Read::gauge("stoker_lb_later_queued", "Calls for later that wait, in the whole queue");
pub static LATER_RUNNING: Read =
    Read::gauge("stoker_lb_later_running", "Calls for later that run, in the whole queue");
pub static LATER_OLDEST: Read = Read::gauge(
    "stoker_lb_later_oldest_seconds",
    "How long the call for later has been due that is due longest",
);

pub static PANICS: Def<Counter> =
    Def::counter("stoker_lb_panics", "Panics that were caught: each is a mistake in the balancer");

/// All of them.
pub static LISTED: Listed = &[
    &CALLS.about,
    &CALL_DURATION.about,
    &FUNCTION_CALLS.about,
    &FUNCTION_DURATION.about,
    &IN_FLIGHT.about,
    &SESSIONS.about,
    &CONNECTIONS.about,
    &CONNECTIONS_FAILED.about,
    &RUNNERS.about,
    &OFFERS.about,
    &PLACEMENTS.about,
    &TRIES.about,
    &QUEUE_LENGTH.about,
    &QUEUE_BYTES.about,
    &QUEUE_OLDEST.about,
    &QUEUE_WAIT.about,
    &QUEUE_LEFT.about,
    &ZONE_RUNNERS.about,
    &ZONE_USED.about,
    &ZONE_UNSERVED.about,
    &ZONE_DESIRED.about,
    &LATER_SUBMITS.about,
    &LATER_ATTEMPTS.about,
    &LATER_ENDED.about,
    &LATER_QUEUED.about,
    &LATER_RUNNING.about,
    &LATER_OLDEST.about,
    &PANICS.about,
];
