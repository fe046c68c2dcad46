//! Sizes, shares of a CPU and durations as people write them.

use std::time::Duration;

/// Reads a size: a whole number of bytes with an optional unit `B`, `KB`, `MB`, `GB` (powers of 1000), `KiB`, `MiB`, `GiB`,
/// `TiB` (powers of 1024; `Ki`, `Mi`, `Gi`, `Ti` mean the same).
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        _ => {
            return Err(format!(
                "`{text}` is not a size: write a whole number and B, KiB, MiB, GiB or TiB, like 128MiB"
            ));
        }
    };
    let number: u64 = number.parse().map_err(|_| format!("`{text}` is not a size: write it like 128MiB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is larger than any memory"))
}

/// Writes a size in the largest binary unit that divides it.
pub fn format_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// Reads a share of CPU: cores (`2`, `0.5`) or thousandths of a core (`250m`). In thousandths.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse_cpu(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!("`{text}` is not a share of CPU: write thousandths of a core like 250m, or cores like 0.5")
    };
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().map_err(|_| wrong());
    }
    let cores: f64 = text.parse().map_err(|_| wrong())?;
    let millis = (cores * 1000.0).round();
    if (0.0..=f64::from(u32::MAX)).contains(&millis) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        Ok(millis as u32)
    } else {
        Err(wrong())
    }
}

/// Writes a share of CPU.
pub fn format_cpu(millis: u32) -> String {
    if millis.is_multiple_of(1000) { format!("{}", millis / 1000) } else { format!("{millis}m") }
}

/// Reads a duration: a whole number with `ms`, `s`, `m` or `h`.
///
/// # Errors
/// A sentence that says what is wrong and what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write a whole number and ms, s, m or h, like 30s");
    let (number, unit) = split(text);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(wrong()),
    };
    millis.map(Duration::from_millis).ok_or_else(|| format!("`{text}` is longer than any call"))
}

/// Writes a duration of whole milliseconds in the largest unit that divides it.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if millis != 0 && millis.is_multiple_of(factor) {
            return format!("{}{unit}", millis / factor);
        }
    }
    format!("{millis}ms")
}

fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("12B", 12),
            ("1KiB", 1024),
            ("128MiB", 128 << 20),
            ("2Gi", 2 << 30),
            ("3TiB", 3 << 40),
            ("5MB", 5_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "1.5GiB", "-1", "12 MiB", "12mib", "99999999999GiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(format_size(128 << 20), "128MiB");
        assert_eq!(format_size(1500), "1500B");
    }

    #[test]
    fn cpus() {
        for (text, millis) in [("250m", 250), ("2", 2000), ("0.5", 500), ("1.25", 1250)] {
            assert_eq!(parse_cpu(text), Ok(millis), "{text}");
        }
        for bad in ["", "m", "-1", "1e3", "NaN", "inf", "1.5m", "99999999999"] {
            assert!(parse_cpu(bad).is_err(), "{bad}");
        }
        assert_eq!((format_cpu(250), format_cpu(2000)), ("250m".into(), "2".into()));
    }

    #[test]
    fn durations() {
        for (text, millis) in [("5ms", 5), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        for bad in ["", "30", "s", "1.5s", "30 s", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
