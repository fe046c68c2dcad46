//! Times in slots: how long many calls took, in a few numbers that can be added, subtracted and sent.
//!
//! Four slots for each doubling of microseconds, so that a time read back is at most a quarter too long or too short, from one
//! microsecond to more than an hour. What reads them (the terminal, the page) takes the difference of two moments and asks it for
//! percentiles.

use std::time::Duration;

/// How many there are.
pub const SLOTS: usize = 124;

/// The slot of a time. The last one has all that is longer.
#[must_use]
pub fn slot_of(time: Duration) -> usize {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let octave = us.checked_ilog2().unwrap_or(0);
    if octave < 2 {
        return us as usize;
    }
    let part = (us >> (octave - 2)) & 3;
    ((octave as usize - 1) * 4 + part as usize).min(SLOTS - 1)
}

/// The shortest time of a slot, in microseconds. That of the one after it is the first that is too long.
#[must_use]
pub fn begin(slot: usize) -> u64 {
    match slot {
        0..4 => slot as u64,
        _ => (4 + slot as u64 % 4) << (slot / 4 - 1).min(60),
    }
}

/// The time below which this part (0 to 1) of all counted ones lies, in microseconds: the middle of its slot. Nothing where nothing was counted.
#[must_use]
pub fn percentile(counts: &[u64], part: f64) -> Option<u64> {
    let all: u64 = counts.iter().sum();
    let rank = (part * all as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    let slot = counts.iter().position(|count| {
        seen += count;
        all > 0 && seen >= rank
    })?;
    Some((begin(slot) + begin(slot + 1)) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_slot_begins_where_the_one_before_ends() {
        for slot in 0..SLOTS {
            let first = begin(slot);
            assert_eq!(slot_of(Duration::from_micros(first)), slot, "{first}");
            assert_eq!(slot_of(Duration::from_micros(begin(slot + 1) - 1)), slot);
        }
        assert_eq!(slot_of(Duration::MAX), SLOTS - 1);
        assert!(begin(SLOTS) > 3_600_000_000, "an hour has a slot of its own");
    }

    #[test]
    fn percentiles_of_nothing_and_of_something() {
        assert_eq!(percentile(&[0; SLOTS], 0.5), None);
        let mut counts = [0; SLOTS];
        counts[slot_of(Duration::from_micros(100))] = 98;
        counts[slot_of(Duration::from_millis(50))] = 2;
        let [median, slow] = [0.5, 0.99].map(|part| percentile(&counts, part).unwrap());
        assert!((90..=115).contains(&median), "{median}");
        assert!((44_000..=58_000).contains(&slow), "{slow}");
    }

    proptest! {
        /// Whatever is counted, a percentile is at most a quarter beside the time that has this rank.
        #[test]
        fn a_percentile_is_near_the_truth(mut times in prop::collection::vec(0u64..4_000_000_000, 1..200), part in 0.01f64..1.0) {
            let mut counts = [0; SLOTS];
            for us in &times {
                counts[slot_of(Duration::from_micros(*us))] += 1;
            }
            times.sort_unstable();
            let rank = ((part * times.len() as f64).ceil().max(1.0) as usize).min(times.len());
            let (truth, told) = (times[rank - 1] as f64, percentile(&counts, part).unwrap() as f64);
            prop_assert!((told - truth).abs() <= truth / 4.0 + 1.0, "{truth} {told}");
        }
    }
}
