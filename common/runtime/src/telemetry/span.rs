//! A span: an owned value that is filled while something goes on and leaves when it is dropped.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanId, SpanKind, TraceId};
use stoker_core::TraceContext;

use super::clock::{self, Anchor, Clock};
use super::context::{self, Place};
use super::names::{self, Attribute, Event, Name};
use super::queue::Queue;
use super::sampling::{Keep, Sampling};
use super::tail_sampling::TailBuffer;
use super::wire::{self, Fact, Facts, Head, Tail, Value};

/// Most attributes, events and links of one span, each: with [`wire::MAX_TEXT`] and [`MAX_BYTES`] the bound of its memory.
const MAX_PARTS: u32 = 64;

/// A span of so many bytes takes no more attributes, events and links.
const MAX_BYTES: usize = 64 << 10;

/// Room that most spans of a call need.
const USUAL_BYTES: usize = 448;

/// Rooms of spans that have ended, which a thread keeps for its next ones: so many, of at most so many bytes.
const KEPT: usize = 256;
const KEPT_BYTES: usize = 1024;

thread_local! {
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn room() -> Vec<u8> {
    // A thread that ends may have lost its rooms already.
    let kept = ROOMS.try_with(|rooms| rooms.borrow_mut().pop());
    kept.ok().flatten().unwrap_or_else(|| Vec::with_capacity(USUAL_BYTES))
}

fn give_back(mut room: Vec<u8>) {
    if room.capacity() <= KEPT_BYTES {
        room.clear();
        let keep = |rooms: &RefCell<Vec<Vec<u8>>>| {
            let mut rooms = rooms.borrow_mut();
            if rooms.len() < KEPT {
                rooms.push(room);
            }
        };
        ROOMS.try_with(keep).ok();
    }
}

/// What all spans of a process share.
#[derive(Debug)]
pub(super) struct Shared {
    pub sampling: Sampling,
    pub keep: Keep,
    pub queue: Arc<Queue>,
    pub clock: Clock,
}

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tracer(Option<Arc<Shared>>);

impl Tracer {
    /// Makes none: contexts pass through.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(Some(shared))
    }

    pub(super) fn shared(&self) -> Option<&Arc<Shared>> {
        self.0.as_ref()
    }

    /// A span under the one that `parent` names, in another process; the first of a new trace if it names none. Starts at `at`.
    #[must_use]
    pub fn start(&self, name: Name, kind: SpanKind, parent: &TraceContext, at: Instant) -> Span {
        self.begin(name, kind, parent, true, at)
    }

    /// The same where the span that `parent` names is one of this process, which may have ended.
    #[must_use]
    pub fn follow(&self, name: Name, kind: SpanKind, parent: &TraceContext, at: Instant) -> Span {
        self.begin(name, kind, parent, false, at)
    }

    fn begin(&self, name: Name, kind: SpanKind, parent: &TraceContext, remote: bool, at: Instant) -> Span {
        let Some(shared) = &self.0 else { return Span(State::Passed(parent.clone())) };
        let above = context::read(parent);
        let trace = above.as_ref().map_or_else(clock::trace, |above| above.trace);
        let sampled = shared.sampling.takes(above.as_ref(), trace);
        let recorded = sampled || shared.keep.any();
        if !recorded && shared.sampling.parent_based && above.is_some() {
            return Span(State::Passed(parent.clone()));
        }
        let (above, state) = above.map_or((None, None), |above| (Some((above.span, remote)), above.state));
        let own = Place { trace, span: clock::span(), sampled, state };
        if !recorded {
            return Span(State::Untraced(own));
        }
        let anchor = shared.clock.anchor(at);
        let fate = if sampled { Fate::Sent } else { Fate::Decides(Arc::default()) };
        Span(State::Traced(Traced::new(shared.clone(), own, above, name, kind, anchor, at, fate)))
    }
}

/// Where a span stands, for those who point to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    pub(super) trace: [u8; 16],
    /// Unknown where only the trace is.
    pub(super) span: Option<[u8; 8]>,
    pub(super) sampled: bool,
}

impl Spot {
    /// Of the span that a context names, if it does.
    #[must_use]
    pub fn of(context: &TraceContext) -> Option<Self> {
        context::read(context).as_ref().map(Self::at)
    }

    fn at(place: &Place) -> Self {
        let (trace, span) = (place.trace.to_bytes(), Some(place.span.to_bytes()));
        Self { trace, span, sampled: place.sampled }
    }

    /// In a trace, wherever in it; the id as log lines have it.
    pub(crate) fn in_trace(id: &str) -> Option<Self> {
        context::digits(id.as_bytes()).map(|trace| Self { trace, span: None, sampled: false })
    }
}

/// A span. Dropping it ends it.
#[derive(Debug)]
pub struct Span(State);

#[derive(Debug)]
enum State {
    /// Not recorded: the caller's context is handed on.
    Passed(TraceContext),
    /// Not recorded, by our decision: the context says so to those behind us.
    Untraced(Place),
    Traced(Traced),
}

struct Traced {
    shared: Arc<Shared>,
    own: Place,
    anchor: Anchor,
    /// On the wall.
    start: u64,
    /// What is known of it, as it travels; nothing when it has ended.
    bytes: Vec<u8>,
    attributes: Parts,
    events: Parts,
    links: Parts,
    failed: Option<String>,
    fate: Fate,
}

/// Where a span goes when it ends.
#[derive(Debug, Clone)]
enum Fate {
    Sent,
    /// Not sampled: with its call, which the first span of it in this process decides.
    Waits(Arc<TailBuffer>),
    Decides(Arc<TailBuffer>),
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traced").field("own", &self.own).finish_non_exhaustive()
    }
}

/// How many parts of one kind a span has, and how many had no room.
#[derive(Debug, Default)]
struct Parts {
    kept: u32,
    dropped: u32,
}

impl Parts {
    /// Whether there is room for so many more in a span of so many bytes; counts them.
    fn take(&mut self, more: u32, bytes: usize) -> bool {
        let room = self.kept + more <= MAX_PARTS && bytes < MAX_BYTES;
        *(if room { &mut self.kept } else { &mut self.dropped }) += more;
        room
    }
}

impl Traced {
    fn new(
        shared: Arc<Shared>,
        own: Place,
        above: Option<(SpanId, bool)>,
        name: Name,
        kind: SpanKind,
        anchor: Anchor,
        at: Instant,
        fate: Fate,
    ) -> Self {
        let mut bytes = room();
        let head = Head {
            trace: own.trace.to_bytes(),
            span: own.span.to_bytes(),
            state: own.state.as_deref().unwrap_or_default(),
            parent: above.map(|(span, remote)| (span.to_bytes(), remote)),
            name: name.as_str(),
            sampled: own.sampled,
            kind: match kind {
                SpanKind::Internal => 1,
                SpanKind::Server => 2,
                SpanKind::Client => 3,
                SpanKind::Producer => 4,
                SpanKind::Consumer => 5,
            },
        };
        head.write(&mut bytes);
        let start = shared.clock.wall(anchor, at);
        Self {
            shared,
            own,
            anchor,
            start,
            bytes,
            attributes: Parts::default(),
            events: Parts::default(),
            links: Parts::default(),
            failed: None,
            fate,
        }
    }

    fn end(&mut self, at: Instant) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        // Never before its start, however it was asked for.
        let end = self.shared.clock.wall(self.anchor, at).max(self.start);
        let shared = &self.shared;
        let kept = match &self.fate {
            Fate::Decides(_) => {
                shared.keep.why(self.failed.is_some(), Duration::from_nanos(end - self.start))
            }
            Fate::Sent | Fate::Waits(_) => None,
        };
        if let Some(why) = kept {
            wire::fact(&mut bytes, wire::ATTRIBUTE, names::KEPT.as_str(), Value::Text(why));
        }
        let tail = Tail {
            start: self.start,
            end,
            dropped_attributes: self.attributes.dropped,
            dropped_events: self.events.dropped,
            dropped_links: self.links.dropped,
            failed: self.failed.as_deref(),
        };
        tail.write(&mut bytes);
        match &self.fate {
            Fate::Sent => shared.queue.push(&bytes),
            Fate::Waits(held) => held.push(&shared.queue, &bytes),
            Fate::Decides(held) if kept.is_some() => held.send(&shared.queue, &bytes),
            Fate::Decides(held) => held.forget(),
        }
        if kept.is_some() {
            self.fate = Fate::Sent;
        }
        give_back(bytes);
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.end(Instant::now());
        }
    }
}

impl Span {
    /// A span below this one, in this process. Starts at `at`.
    #[must_use]
    pub fn child(&self, name: Name, kind: SpanKind, at: Instant) -> Span {
        match &self.0 {
            State::Passed(context) => Span(State::Passed(context.clone())),
            State::Untraced(place) => Span(State::Untraced(place.clone())),
            State::Traced(traced) => {
                let own = Place { span: clock::span(), ..traced.own.clone() };
                let above = Some((traced.own.span, false));
                let fate = match &traced.fate {
                    Fate::Sent => Fate::Sent,
                    Fate::Waits(held) | Fate::Decides(held) => Fate::Waits(held.clone()),
                };
                Span(State::Traced(Traced::new(
                    traced.shared.clone(),
                    own,
                    above,
                    name,
                    kind,
                    traced.anchor,
                    at,
                    fate,
                )))
            }
        }
    }

    /// Whether what is noted here goes anywhere: costly values need not be made otherwise.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        matches!(self.0, State::Traced(_))
    }

    /// What the next hop is told: its spans hang below this one.
    #[must_use]
    pub fn context(&self) -> TraceContext {
        match &self.0 {
            State::Passed(context) => context.clone(),
            State::Untraced(own) => context::write(own),
            State::Traced(traced) => context::write(&traced.own),
        }
    }

    /// The trace that this belongs to, for log lines; recorded or not.
    #[must_use]
    pub fn trace(&self) -> Option<TraceId> {
        match &self.0 {
            State::Passed(context) => context::trace(context),
            State::Untraced(own) => Some(own.trace),
            State::Traced(traced) => Some(traced.own.trace),
        }
    }

    /// The trace, if it is sent: for exemplars, which must lead somewhere. Of a call that nobody samples that is known at its end.
    #[must_use]
    pub fn exemplar(&self) -> Option<TraceId> {
        match &self.0 {
            State::Traced(Traced { own, fate: Fate::Sent, .. }) => Some(own.trace),
            _ => None,
        }
    }

    /// Where log lines belong that are written meanwhile; recorded or not.
    #[must_use]
    pub fn spot(&self) -> Option<Spot> {
        match &self.0 {
            State::Passed(context) => Spot::of(context),
            State::Untraced(own) => Some(Spot::at(own)),
            State::Traced(traced) => Some(Spot::at(&traced.own)),
        }
    }

    /// It began at this moment, not when it was made.
    pub fn since(&mut self, at: Instant) {
        self.note(|traced| traced.start = traced.shared.clock.wall(traced.anchor, at));
    }

    /// Notes a fact. A name is noted once.
    pub fn set(&mut self, name: Attribute, value: impl Fact) {
        self.note(|traced| {
            if traced.attributes.take(1, traced.bytes.len()) {
                wire::fact(&mut traced.bytes, wire::ATTRIBUTE, name.as_str(), value.value());
            }
        });
    }

    /// Notes facts that were written once for many spans.
    pub fn add(&mut self, facts: &Facts) {
        self.note(|traced| {
            let size = traced.bytes.len();
            if traced.attributes.take(facts.count(), size) && traced.links.take(facts.links(), size) {
                traced.bytes.extend_from_slice(facts.bytes());
            }
        });
    }

    /// Notes something that happened at a moment.
    pub fn event(&mut self, at: Instant, name: Event, facts: &[(Attribute, Value<'_>)]) {
        self.note(|traced| {
            if traced.events.take(1, traced.bytes.len()) {
                let facts = &facts[..facts.len().min(MAX_PARTS as usize)];
                wire::event(&mut traced.bytes, traced.shared.clock.wall(traced.anchor, at), name, facts);
            }
        });
    }

    /// Points to a span that caused this one without being above it.
    pub fn link(&mut self, to: &TraceContext) {
        self.note(|traced| {
            if let Some(to) = context::read(to)
                && traced.links.take(1, traced.bytes.len())
            {
                let state = to.state.as_deref().unwrap_or_default();
                wire::link(&mut traced.bytes, to.trace.to_bytes(), to.span.to_bytes(), state, to.sampled);
            }
        });
    }

    /// It failed; a sentence says how.
    pub fn fail(&mut self, how: impl Into<String>) {
        self.note(|traced| traced.failed = Some(how.into()));
    }

    /// Ends it at this moment. What is noted later is lost.
    pub fn end_at(&mut self, at: Instant) {
        self.note(|traced| traced.end(at));
    }

    fn note(&mut self, note: impl FnOnce(&mut Traced)) {
        if let State::Traced(traced) = &mut self.0
            && !traced.bytes.is_empty()
        {
            note(traced);
        }
    }
}
