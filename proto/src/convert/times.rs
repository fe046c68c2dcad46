//! Durations, and where the time of a call went.

use std::time::Duration;

use stoker_core::call::{Cold, Timings};

use crate::v1;

/// A duration; negative ones are zero.
#[must_use]
pub fn duration(d: prost_types::Duration) -> Duration {
    Duration::try_from(d).unwrap_or_default()
}

/// A duration for the wire.
#[must_use]
pub fn to_duration(d: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: d.subsec_nanos() as i32,
    }
}

/// Phase times for the wire.
#[must_use]
pub fn to_timings(t: &Timings) -> v1::Timings {
    let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    v1::Timings {
        wait_us: us(t.wait),
        image_us: us(t.image),
        create_us: us(t.create),
        start_us: us(t.start),
        init_us: us(t.init),
        thaw_us: us(t.thaw),
        first_byte_us: us(t.first_byte),
        execution_us: us(t.execution),
        cold: t.cold.is_some(),
        cold_cause: t.cold.map_or(v1::ColdCause::Unspecified, to_cold_cause).into(),
    }
}

fn to_cold_cause(cold: Cold) -> v1::ColdCause {
    match cold {
        Cold::First => v1::ColdCause::First,
        Cold::Busy => v1::ColdCause::Busy,
        Cold::Expired => v1::ColdCause::Expired,
        Cold::Evicted => v1::ColdCause::Evicted,
        Cold::Broken => v1::ColdCause::Broken,
        Cold::Once => v1::ColdCause::Once,
        Cold::Drained => v1::ColdCause::Drained,
    }
}

/// Why a call was cold, where its runner says.
#[must_use]
pub fn cold(timings: &v1::Timings) -> Option<Cold> {
    match timings.cold_cause() {
        v1::ColdCause::Unspecified => None,
        v1::ColdCause::First => Some(Cold::First),
        v1::ColdCause::Busy => Some(Cold::Busy),
        v1::ColdCause::Expired => Some(Cold::Expired),
        v1::ColdCause::Evicted => Some(Cold::Evicted),
        v1::ColdCause::Broken => Some(Cold::Broken),
        v1::ColdCause::Once => Some(Cold::Once),
        v1::ColdCause::Drained => Some(Cold::Drained),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_call_says_why() {
        for cold in Cold::ALL {
            let told = to_timings(&Timings { cold: Some(cold), ..Timings::default() });
            assert_eq!((told.cold, super::cold(&told)), (true, Some(cold)));
        }
        let warm = to_timings(&Timings::default());
        assert_eq!((warm.cold, cold(&warm)), (false, None));
    }
}
