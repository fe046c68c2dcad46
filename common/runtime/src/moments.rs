//! Moments as text, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A day like 2027-01-31, at whose beginning in UTC it is over, or a moment like 2027-01-31T12:00:00Z.
///
/// # Errors
/// It is none.
pub fn read(text: &str) -> Result<SystemTime, String> {
    let wrong = || format!("`{text}` is no time: write it like 2027-01-31 or 2027-01-31T12:00:00Z");
    let (day, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let numbers = |text: &str, by: char, widths: [usize; 3]| -> Option<[i64; 3]> {
        let parts: Vec<_> = text.split(by).collect();
        let [a, b, c] = parts[..] else { return None };
        let read = |part: &str, width| {
            (part.len() == width).then(|| part.parse::<u32>().ok()).flatten().map(i64::from)
        };
        Some([read(a, widths[0])?, read(b, widths[1])?, read(c, widths[2])?])
    };
    let [year, month, day] = numbers(day, '-', [4, 2, 2]).ok_or_else(wrong)?;
    let time = time.strip_suffix('Z').ok_or_else(wrong)?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2]).ok_or_else(wrong)?;
    let long = [1, 3, 5, 7, 8, 10, 12].contains(&month);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in = if long {
        31
    } else if month == 2 {
        28 + i64::from(leap)
    } else {
        30
    };
    let good = year >= 1970
        && (1..=12).contains(&month)
        && (1..=days_in).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    if !good {
        return Err(wrong());
    }
    // Days since 1970, with years that begin in March: the leap day is then the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 306 + 5) / 10 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Ok(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).map_err(|_| wrong())?))
}

/// A moment as RFC 3339 has it, in UTC.
pub fn write(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years that begin in March: the leap day is then the last of its year.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second, milli) = (second / 3600, second / 60 % 60, second % 60, since.subsec_millis());
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let seconds = |text: &str| read(text).map(|at| at.duration_since(UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(seconds("1970-01-01"), Ok(0));
        assert_eq!(seconds("2024-02-29T23:59:59Z"), Ok(1_709_251_199));
        assert_eq!(seconds("2027-01-31"), Ok(1_801_353_600));
        for wrong in
            ["2027-1-31", "2027-02-29", "2027-01-31T12:00:00", "2027-01-31T24:00:00Z", "soon", "-001-01-01"]
        {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_read_is_written() {
        let at = |seconds| write(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000Z");
        assert_eq!(at(1_801_353_600), "2027-01-31T00:00:00.000Z");
    }
}
