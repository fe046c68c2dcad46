//! W3C trace context: from the strings that travel and back.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use stoker_core::TraceContext;

/// What a `traceparent` and its `tracestate` say; nothing if the first is not valid. An invalid second one counts as absent.
pub(super) fn read(context: &TraceContext) -> Option<SpanContext> {
    let (trace, span, flags) = parent(&context.parent)?;
    let state = match context.state.as_str() {
        "" => TraceState::NONE,
        state => state.parse().unwrap_or(TraceState::NONE),
    };
    let read = SpanContext::new(trace, span, flags, true, state);
    read.is_valid().then_some(read)
}

/// The trace of a `traceparent`.
pub(super) fn trace(context: &TraceContext) -> Option<TraceId> {
    parent(&context.parent).map(|(trace, _, _)| trace).filter(|trace| *trace != TraceId::INVALID)
}

pub(super) fn write(context: &SpanContext) -> TraceContext {
    let (trace, span) = (context.trace_id(), context.span_id());
    TraceContext {
        parent: format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8()),
        state: context.trace_state().header(),
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; of newer versions whatever begins like that.
fn parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let bytes = text.as_bytes();
    let (head, rest) = bytes.split_at_checked(55)?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let [version] = hex(&head[..2])?;
    let fits =
        if version == 0 { rest.is_empty() } else { version != 0xff && matches!(rest, [] | [b'-', ..]) };
    if !dashes || !fits {
        return None;
    }
    let [flags] = hex(&head[53..])?;
    // Flags that this version does not know must not be handed on.
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some((TraceId::from_bytes(hex(&head[3..35])?), SpanId::from_bytes(hex(&head[36..52])?), flags))
}

/// Lower-case hexadecimal, as the standard has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}
