//! How a server stands with its etcd.

use super::{Listed, Metrics, Read};

const PART: (&str, &str) = (
    "part",
    "what goes on with etcd all the time: the views `fleet`, `functions`, `apps`, `places` of a balancer, the `registration` of a runner",
);

static ANSWERED: Read = Read::gauge(
    "stoker_etcd_last_answer_timestamp_seconds",
    "When etcd answered or told something last, since 1970; 0: not yet",
);
static INTERRUPTIONS: Read = Read::counter(
    "stoker_etcd_interruptions",
    "How often what goes on with etcd was interrupted, and began again",
)
.label(&[PART]);
static INTERRUPTED: Read = Read::gauge(
    "stoker_etcd_interrupted",
    "1 while it is interrupted: calls go on with what was known before",
)
.label(&[PART]);
static REVISION: Read = Read::gauge(
    "stoker_etcd_revision",
    "Where etcd was when a view heard of it last, which is every ten minutes at least",
)
.label(&[PART]);

/// The metrics of whoever has an etcd.
pub static LISTED: Listed = &[&ANSWERED.about, &INTERRUPTIONS.about, &INTERRUPTED.about, &REVISION.about];

/// Something that goes on with etcd.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub interruptions: u64,
    pub interrupted: bool,
    /// Views have one.
    pub revision: Option<i64>,
}

/// Shows these parts of what goes on; when etcd answered last is in milliseconds since 1970.
pub fn measure(
    metrics: &Metrics,
    answered_ms: impl Fn() -> u64 + Send + Sync + 'static,
    parts: impl IntoIterator<Item = (&'static str, impl Fn() -> Part + Clone + Send + Sync + 'static)>,
) {
    metrics.read(&ANSWERED, move || answered_ms() as f64 / 1000.0);
    let parts: Vec<_> = parts.into_iter().collect();
    let all = parts.iter().cloned();
    metrics.read_each(&INTERRUPTIONS, all.map(|(name, part)| (name, move || part().interruptions as f64)));
    let all = parts.iter().cloned();
    let now = |part: Part| f64::from(u8::from(part.interrupted));
    metrics.read_each(&INTERRUPTED, all.map(|(name, part)| (name, move || now(part()))));
    let views = parts.into_iter().filter(|(_, part)| part().revision.is_some());
    let reached = |part: Part| part.revision.unwrap_or_default() as f64;
    metrics.read_each(&REVISION, views.map(|(name, part)| (name, move || reached(part()))));
}
