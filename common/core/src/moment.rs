//! Moments of the wall clock as text and as numbers, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Milliseconds since 1970 of now, by the clock of this machine.
#[must_use]
pub fn now_ms() -> u64 {
    epoch_ms(SystemTime::now())
}

/// Milliseconds since 1970; 0 for what was before.
#[must_use]
pub fn epoch_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `2026-01-02T03:04:05Z`: whole seconds, cut, never rounded up, so that no function believes it has time that it lacks.
#[must_use]
pub fn rfc3339_seconds(at: SystemTime) -> String {
    rfc3339(at, SecondsFormat::Secs)
}

/// The same with milliseconds: `2026-01-02T03:04:05.678Z`.
#[must_use]
pub fn rfc3339_millis(at: SystemTime) -> String {
    rfc3339(at, SecondsFormat::Millis)
}

fn rfc3339(at: SystemTime, to: SecondsFormat) -> String {
    let ms = i64::try_from(epoch_ms(at)).unwrap_or(i64::MAX);
    DateTime::<Utc>::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MAX_UTC).to_rfc3339_opts(to, true)
}

/// Reads a day like 2027-01-31, which is the moment at which it begins, or a moment like 2027-01-31T12:00:00Z.
///
/// # Errors
/// It is neither.
pub fn read(text: &str) -> Result<SystemTime, String> {
    let whole = if text.contains('T') { text.to_owned() } else { format!("{text}T00:00:00Z") };
    // The standard has more ways to write a moment; one is enough for people.
    let plain = whole.len() == 20 && whole.as_bytes()[10] == b'T' && whole.ends_with('Z');
    let read = DateTime::parse_from_rfc3339(&whole).ok().filter(|_| plain);
    let since = read.and_then(|at| u64::try_from(at.timestamp()).ok());
    since
        .map(|since| UNIX_EPOCH + Duration::from_secs(since))
        .ok_or_else(|| format!("`{text}` is no time: write it like 2027-01-31 or 2027-01-31T12:00:00Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339_seconds(at(seconds * 1000)), text);
            assert_eq!(read(text), Ok(at(seconds * 1000)));
        }
        assert_eq!(rfc3339_seconds(at(999)), "1970-01-01T00:00:00Z");
        assert_eq!((rfc3339_millis(at(999)).as_str(), epoch_ms(at(999))), ("1970-01-01T00:00:00.999Z", 999));
        assert_eq!(rfc3339_millis(at(1_801_353_600_000)), "2027-01-31T00:00:00.000Z");
        assert_eq!(epoch_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }

    #[test]
    fn people_write_a_day_or_a_second() {
        assert_eq!(read("2027-01-31"), Ok(at(1_801_353_600_000)));
        for wrong in [
            "",
            "soon",
            "2027-1-31",
            "2027-02-29",
            "-001-01-01",
            "1969-12-31",
            "2027-01-31T12:00:00",
            "2027-01-31T24:00:00Z",
            "2027-01-31 12:00:00Z",
            "2027-01-31T12:00:00z",
            "2027-01-31T12:00:00.5Z",
            "2027-01-31T12:00:00+01:00",
            "2027-01-3\u{e9}T1:00:00Z",
        ] {
            assert_eq!(
                read(wrong),
                Err(format!("`{wrong}` is no time: write it like 2027-01-31 or 2027-01-31T12:00:00Z"))
            );
        }
    }
}
