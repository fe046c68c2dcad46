//! A span: an owned value that is filled while something goes on and leaves when it is dropped.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use opentelemetry::trace::{SpanId, SpanKind, TraceId};
use stoker_core::TraceContext;

use super::clock::{self, Anchor, Clock};
use super::context::{self, Place};
use super::queue::Queue;
use super::sampling::Sampling;
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
    pub queue: Queue,
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
    pub fn start(&self, name: &'static str, kind: SpanKind, parent: &TraceContext, at: Instant) -> Span {
        let Some(shared) = &self.0 else { return Span(State::Passed(parent.clone())) };
        let above = context::read(parent);
        let trace = above.as_ref().map_or_else(clock::trace, |above| above.trace);
        let sampled = shared.sampling.takes(above.as_ref(), trace);
        if !sampled && shared.sampling.parent_based && above.is_some() {
            return Span(State::Passed(parent.clone()));
        }
        let (above, state) = above.map_or((None, None), |above| (Some((above.span, true)), above.state));
        let own = Place { trace, span: clock::span(), sampled, state };
        if !sampled {
            return Span(State::Untraced(own));
        }
        let anchor = shared.clock.anchor(at);
        Span(State::Traced(Traced::new(shared.clone(), own, above, name, kind, anchor, at)))
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
        name: &'static str,
        kind: SpanKind,
        anchor: Anchor,
        at: Instant,
    ) -> Self {
        let mut bytes = room();
        let head = Head {
            trace: own.trace.to_bytes(),
            span: own.span.to_bytes(),
            state: own.state.as_deref().unwrap_or_default(),
            parent: above.map(|(span, remote)| (span.to_bytes(), remote)),
            name,
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
        }
    }

    fn end(&mut self, at: Instant) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        let tail = Tail {
            start: self.start,
            // Never before its start, however it was asked for.
            end: self.shared.clock.wall(self.anchor, at).max(self.start),
            dropped_attributes: self.attributes.dropped,
            dropped_events: self.events.dropped,
            dropped_links: self.links.dropped,
            failed: self.failed.as_deref(),
        };
        tail.write(&mut bytes);
        self.shared.queue.push(&bytes);
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
    pub fn child(&self, name: &'static str, kind: SpanKind, at: Instant) -> Span {
        match &self.0 {
            State::Passed(context) => Span(State::Passed(context.clone())),
            State::Untraced(place) => Span(State::Untraced(place.clone())),
            State::Traced(traced) => {
                let own = Place { span: clock::span(), ..traced.own.clone() };
                let above = Some((traced.own.span, false));
                Span(State::Traced(Traced::new(
                    traced.shared.clone(),
                    own,
                    above,
                    name,
                    kind,
                    traced.anchor,
                    at,
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

    /// The trace, if it is recorded: for exemplars, which must lead somewhere.
    #[must_use]
    pub fn exemplar(&self) -> Option<TraceId> {
        if self.is_recorded() { self.trace() } else { None }
    }

    /// It began at this moment, not when it was made.
    pub fn since(&mut self, at: Instant) {
        self.note(|traced| traced.start = traced.shared.clock.wall(traced.anchor, at));
    }

    /// Notes a fact. A name is noted once.
    pub fn set(&mut self, name: &'static str, value: impl Fact) {
        self.note(|traced| {
            if traced.attributes.take(1, traced.bytes.len()) {
                wire::fact(&mut traced.bytes, wire::ATTRIBUTE, name, value.value());
            }
        });
    }

    /// Notes facts that were written once for many spans.
    pub fn add(&mut self, facts: &Facts) {
        self.note(|traced| {
            if traced.attributes.take(facts.count(), traced.bytes.len()) {
                traced.bytes.extend_from_slice(facts.bytes());
            }
        });
    }

    /// Notes something that happened at a moment.
    pub fn event(&mut self, at: Instant, name: &'static str, facts: &[(&'static str, Value<'_>)]) {
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
