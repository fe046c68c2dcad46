//! A span: an owned value that is filled while something goes on and leaves when it is dropped.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use opentelemetry::trace::{
    Event, Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use stoker_core::TraceContext;

use super::context;
use super::queue::Queue;
use super::sampling::Sampling;

/// Most attributes, events and links of one span, each: with [`MAX_TEXT`] the bound of its memory.
const MAX_PARTS: usize = 64;

/// Most bytes of a text in a span; longer ones are cut.
const MAX_TEXT: usize = 1024;

/// What all spans of a process share.
#[derive(Debug)]
pub(super) struct Shared {
    pub sampling: Sampling,
    pub queue: Queue,
    pub scope: InstrumentationScope,
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

    /// A span under the one that `parent` names, in another process; the first of a new trace if it names none. Starts now.
    #[must_use]
    pub fn start(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind, parent: &TraceContext) -> Span {
        let Some(shared) = &self.0 else { return Span(State::Passed(parent.clone())) };
        let above = context::read(parent);
        let ids = RandomIdGenerator::default();
        let trace = above.as_ref().map_or_else(|| ids.new_trace_id(), SpanContext::trace_id);
        let sampled = shared.sampling.takes(above.as_ref(), trace);
        if !sampled && shared.sampling.parent_based && above.is_some() {
            return Span(State::Passed(parent.clone()));
        }
        let state = above.as_ref().map_or(TraceState::NONE, |above| above.trace_state().clone());
        let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let own = SpanContext::new(trace, ids.new_span_id(), flags, false, state);
        if !sampled {
            return Span(State::Untraced(own));
        }
        let anchor = Anchor { wall: SystemTime::now(), clock: Instant::now() };
        Span(State::Traced(Traced::new(shared.clone(), own, above.as_ref(), name.into(), kind, anchor)))
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
    Untraced(SpanContext),
    Traced(Traced),
}

#[derive(Debug)]
struct Traced {
    shared: Arc<Shared>,
    anchor: Anchor,
    /// There until the span ends.
    data: Option<Box<SpanData>>,
}

/// One moment on both clocks: all times of a call's spans in this process hang on it, whatever happens to the wall clock.
#[derive(Debug, Clone, Copy)]
struct Anchor {
    wall: SystemTime,
    clock: Instant,
}

impl Anchor {
    fn wall(self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.clock) {
            Some(after) => self.wall + after,
            None => self.wall - (self.clock - at),
        }
    }
}

impl Traced {
    fn new(
        shared: Arc<Shared>,
        own: SpanContext,
        above: Option<&SpanContext>,
        name: Cow<'static, str>,
        kind: SpanKind,
        anchor: Anchor,
    ) -> Self {
        let now = anchor.wall(Instant::now());
        let data = SpanData {
            span_context: own,
            parent_span_id: above.map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: above.is_some_and(SpanContext::is_remote),
            span_kind: kind,
            name,
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: shared.scope.clone(),
        };
        Self { shared, anchor, data: Some(Box::new(data)) }
    }

    fn end(&mut self, at: Instant) {
        if let Some(mut data) = self.data.take() {
            // Never before its start, however it was asked for.
            data.end_time = self.anchor.wall(at).max(data.start_time);
            self.shared.queue.push(data);
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.end(Instant::now());
    }
}

impl Span {
    /// A span below this one, in this process. Starts now.
    #[must_use]
    pub fn child(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Span {
        match &self.0 {
            State::Passed(context) => Span(State::Passed(context.clone())),
            State::Untraced(context) => Span(State::Untraced(context.clone())),
            State::Traced(traced) => {
                let above = traced.context();
                let own = SpanContext::new(
                    above.trace_id(),
                    RandomIdGenerator::default().new_span_id(),
                    above.trace_flags(),
                    false,
                    above.trace_state().clone(),
                );
                Span(State::Traced(Traced::new(
                    traced.shared.clone(),
                    own,
                    Some(above),
                    name.into(),
                    kind,
                    traced.anchor,
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
            State::Traced(traced) => context::write(traced.context()),
        }
    }

    /// The trace that this belongs to, for log lines; recorded or not.
    #[must_use]
    pub fn trace(&self) -> Option<TraceId> {
        match &self.0 {
            State::Passed(context) => context::trace(context),
            State::Untraced(own) => Some(own.trace_id()),
            State::Traced(traced) => Some(traced.context().trace_id()),
        }
    }

    /// The trace, if it is recorded: for exemplars, which must lead somewhere.
    #[must_use]
    pub fn exemplar(&self) -> Option<TraceId> {
        if self.is_recorded() { self.trace() } else { None }
    }

    /// It began at this moment, not when it was made.
    pub fn since(&mut self, at: Instant) {
        self.note(|data, anchor| data.start_time = anchor.wall(at));
    }

    /// Notes a fact. A name is noted once.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.note(|data, _| {
            if data.attributes.len() < MAX_PARTS {
                data.attributes.push(attribute(name, value.into()));
            } else {
                data.dropped_attributes_count += 1;
            }
        });
    }

    /// Notes something that happened at a moment.
    pub fn event(
        &mut self,
        at: Instant,
        name: impl Into<Cow<'static, str>>,
        facts: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        self.note(|data, anchor| {
            if data.events.len() < MAX_PARTS {
                let facts = facts.into_iter().take(MAX_PARTS).map(|(name, value)| attribute(name, value));
                data.events.events.push(Event::new(name, anchor.wall(at), facts.collect(), 0));
            } else {
                data.events.dropped_count += 1;
            }
        });
    }

    /// Points to a span that caused this one without being above it.
    pub fn link(&mut self, to: &TraceContext) {
        self.note(|data, _| match context::read(to) {
            Some(to) if data.links.len() < MAX_PARTS => data.links.links.push(Link::with_context(to)),
            Some(_) => data.links.dropped_count += 1,
            None => {}
        });
    }

    /// It failed; a sentence says how.
    pub fn fail(&mut self, how: impl Into<Cow<'static, str>>) {
        self.note(|data, _| data.status = Status::error(cut(how.into())));
    }

    /// Ends it at this moment.
    pub fn end_at(mut self, at: Instant) {
        if let State::Traced(traced) = &mut self.0 {
            traced.end(at);
        }
    }

    fn note(&mut self, note: impl FnOnce(&mut SpanData, Anchor)) {
        if let State::Traced(Traced { data: Some(data), anchor, .. }) = &mut self.0 {
            note(data, *anchor);
        }
    }
}

impl Traced {
    fn context(&self) -> &SpanContext {
        static ENDED: SpanContext = SpanContext::NONE;
        self.data.as_ref().map_or(&ENDED, |data| &data.span_context)
    }
}

fn attribute(name: &'static str, value: Value) -> KeyValue {
    let value = match value {
        Value::String(text) if text.as_str().len() > MAX_TEXT => {
            Value::String(StringValue::from(cut(Cow::Owned(text.into())).into_owned()))
        }
        value => value,
    };
    KeyValue::new(name, value)
}

fn cut(text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(text[..end].to_owned())
}
