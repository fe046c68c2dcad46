//! W3C trace context: from the strings that travel and back.

use std::sync::Arc;

use opentelemetry::trace::{SpanId, TraceFlags, TraceId, TraceState};
use stoker_core::TraceContext;

use super::wire::hex;

/// Where a span stands: what its context says of it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub trace: TraceId,
    pub span: SpanId,
    pub sampled: bool,
    /// The `tracestate` of the trace, as it came.
    pub state: Option<Arc<str>>,
}

/// What a `traceparent` and its `tracestate` say; nothing if the first is not valid. An invalid second one counts as absent.
pub(super) fn read(context: &TraceContext) -> Option<Place> {
    let (trace, span, flags) = parent(&context.parent)?;
    if trace == TraceId::INVALID || span == SpanId::INVALID {
        return None;
    }
    let state = Some(context.state.as_str()).filter(|state| !state.is_empty());
    let state = state.filter(|state| state.parse::<TraceState>().is_ok());
    Some(Place {
        trace,
        span,
        sampled: flags & TraceFlags::SAMPLED == TraceFlags::SAMPLED,
        state: state.map(Arc::from),
    })
}

/// The trace of a `traceparent`.
pub(super) fn trace(context: &TraceContext) -> Option<TraceId> {
    parent(&context.parent).map(|(trace, _, _)| trace).filter(|trace| *trace != TraceId::INVALID)
}

pub(super) fn write(place: &Place) -> TraceContext {
    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    parent[3..35].copy_from_slice(&hex::<16, 32>(&place.trace.to_bytes()));
    parent[36..52].copy_from_slice(&hex::<8, 16>(&place.span.to_bytes()));
    parent[54] += u8::from(place.sampled);
    TraceContext {
        // Digits and dashes are text.
        parent: std::str::from_utf8(&parent).unwrap_or_default().to_owned(),
        state: place.state.as_deref().unwrap_or_default().to_owned(),
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; of newer versions whatever begins like that.
fn parent(text: &str) -> Option<(TraceId, SpanId, TraceFlags)> {
    let bytes = text.as_bytes();
    let (head, rest) = bytes.split_at_checked(55)?;
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let [version] = digits(&head[..2])?;
    let fits =
        if version == 0 { rest.is_empty() } else { version != 0xff && matches!(rest, [] | [b'-', ..]) };
    if !dashes || !fits {
        return None;
    }
    let [flags] = digits(&head[53..])?;
    // Flags that this version does not know must not be handed on.
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    Some((TraceId::from_bytes(digits(&head[3..35])?), SpanId::from_bytes(digits(&head[36..52])?), flags))
}

/// Lower-case hexadecimal, as the standard has it.
pub(super) fn digits<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    /// What a digit stands for; more than a digit can for what is none.
    const VALUES: [u8; 256] = {
        let mut values = [0xff; 256];
        let mut digit = 0;
        while digit < 16 {
            values[b"0123456789abcdef"[digit] as usize] = digit as u8;
            digit += 1;
        }
        values
    };
    if text.len() != 2 * N {
        return None;
    }
    let (mut out, mut seen) = ([0; N], 0);
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (VALUES[usize::from(pair[0])], VALUES[usize::from(pair[1])]);
        seen |= high | low;
        *byte = high << 4 | low & 0xf;
    }
    (seen <= 0xf).then_some(out)
}
