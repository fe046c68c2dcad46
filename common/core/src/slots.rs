//! Times in slots: how long many calls took, in a few numbers that can be added, subtracted and sent.
//!
//! Thirteen slots for each tenfold, so that a time read back is at most an eighth too long or too short, from ten microseconds to almost three
//! hours. They end at round numbers, so that the coarser buckets of metrics are sums of whole slots, and one count serves both. Who reads them (the
//! terminal, the page) takes the difference of two moments and asks it for percentiles.

use std::time::Duration;

/// How many there are.
pub const SLOTS: usize = 1 + DECADES * STEPS.len() + 1;

/// Tenfolds, from ten microseconds on.
const DECADES: usize = 9;

/// Where the slots of a tenfold end, in tenths of its beginning.
const STEPS: [u64; 13] = [12, 15, 17, 20, 25, 30, 35, 40, 50, 60, 70, 80, 100];

/// The longest time of each slot, in microseconds. The last one has all that is longer.
static ENDS: [u64; SLOTS] = ends();

/// For each power of two, the first slot that does not end before it.
static FIRST: [u8; 64] = first();

const fn ends() -> [u64; SLOTS] {
    let mut ends = [u64::MAX; SLOTS];
    ends[0] = 10;
    let (mut slot, mut tenth) = (1, 1);
    while slot < SLOTS - 1 {
        let step = (slot - 1) % STEPS.len();
        ends[slot] = STEPS[step] * tenth;
        if step == STEPS.len() - 1 {
            tenth *= 10;
        }
        slot += 1;
    }
    ends
}

const fn first() -> [u8; 64] {
    let ends = ends();
    let mut first = [0; 64];
    let (mut power, mut slot) = (0, 0);
    while power < first.len() {
        while ends[slot] < 1 << power {
            slot += 1;
        }
        first[power] = slot as u8;
        power += 1;
    }
    first
}

/// The slot of a time.
#[must_use]
pub fn slot_of(time: Duration) -> usize {
    let us = u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
    let mut slot = usize::from(FIRST[us.checked_ilog2().unwrap_or(0) as usize]);
    while ENDS[slot] < us {
        slot += 1;
    }
    slot
}

/// The longest time of a slot, in microseconds; of the last one there is none.
#[must_use]
pub fn end(slot: usize) -> Option<u64> {
    ENDS[..SLOTS - 1].get(slot).copied()
}

/// The time that the times of a slot are longer than, in microseconds.
#[must_use]
pub fn begin(slot: usize) -> u64 {
    slot.checked_sub(1).map_or(0, |before| ENDS[before.min(SLOTS - 2)])
}

/// Whether a slot begins at 1, 2, 3, 5 or 7 times a power of ten, or at nothing.
#[must_use]
pub fn is_round(slot: usize) -> bool {
    let begin = begin(slot);
    let tenth = 10_u64.pow(begin.checked_ilog10().unwrap_or(0));
    begin.is_multiple_of(tenth) && matches!(begin / tenth, 0 | 1 | 2 | 3 | 5 | 7)
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
    Some(middle(slot))
}

/// A time of a slot, in microseconds, for all of them.
#[must_use]
pub fn middle(slot: usize) -> u64 {
    let begin = begin(slot);
    (begin + end(slot).unwrap_or(begin)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_slot_begins_where_the_one_before_ends() {
        for slot in 0..SLOTS - 1 {
            let last = end(slot).unwrap();
            assert_eq!(slot_of(Duration::from_micros(last)), slot, "{last}");
            assert_eq!(slot_of(Duration::from_micros(last) + Duration::from_nanos(1)), slot + 1, "{last}");
            assert_eq!(begin(slot + 1), last);
        }
        assert_eq!((slot_of(Duration::ZERO), slot_of(Duration::MAX)), (0, SLOTS - 1));
        assert_eq!((begin(0), end(SLOTS - 1), end(SLOTS)), (0, None, None));
        assert!(begin(SLOTS - 1) > 3_600_000_000, "an hour has a slot of its own");
        assert_eq!(slot_of(Duration::from_micros(4_294_967_295)), slot_of(Duration::from_secs(4_500)));
    }

    #[test]
    fn round_times_begin_slots() {
        let round: Vec<_> = (0..SLOTS).filter(|slot| is_round(*slot)).map(begin).collect();
        assert_eq!(round[..9], [0, 10, 20, 30, 50, 70, 100, 200, 300]);
        assert_eq!(round.len(), 1 + 5 * DECADES + 1);
    }

    #[test]
    fn percentiles_of_nothing_and_of_something() {
        assert_eq!(percentile(&[0; SLOTS], 0.5), None);
        let mut counts = [0; SLOTS];
        counts[slot_of(Duration::from_micros(100))] = 98;
        counts[slot_of(Duration::from_millis(50))] = 2;
        let [median, slow] = [0.5, 0.99].map(|part| percentile(&counts, part).unwrap());
        assert_eq!((median, slow), (90, 45_000));
    }

    proptest! {
        /// Whatever is counted, a percentile is at most an eighth beside the time that has this rank.
        #[test]
        fn a_percentile_is_near_the_truth(mut times in prop::collection::vec(0u64..9_000_000_000, 1..200), part in 0.01f64..1.0) {
            let mut counts = [0; SLOTS];
            for us in &times {
                counts[slot_of(Duration::from_micros(*us))] += 1;
            }
            times.sort_unstable();
            let rank = ((part * times.len() as f64).ceil().max(1.0) as usize).min(times.len());
            let (truth, told) = (times[rank - 1] as f64, percentile(&counts, part).unwrap() as f64);
            prop_assert!((told - truth).abs() <= truth / 8.0 + 10.0, "{truth} {told}");
        }
    }
}
