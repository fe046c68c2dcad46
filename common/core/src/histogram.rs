//! A histogram of times: how long many calls took, in a few numbers that can be added, subtracted and sent.
//!
//! Thirteen bins for each tenfold, so that a time read back is at most an eighth too long or too short, from ten microseconds to almost three
//! hours. They end at round numbers, so that the coarser buckets of metrics are sums of whole bins, and one count serves both. Who reads them (the
//! terminal, the page) takes the difference of two moments and asks it for percentiles.

use std::time::Duration;

/// How many there are.
pub const BINS: usize = 1 + DECADES * STEPS.len() + 1;

/// Tenfolds, from ten microseconds on.
const DECADES: usize = 9;

/// Where the bins of a tenfold end, in tenths of its beginning.
const STEPS: [u64; 13] = [12, 15, 17, 20, 25, 30, 35, 40, 50, 60, 70, 80, 100];

/// The longest time of each bin, in microseconds. The last one has all that is longer.
static ENDS: [u64; BINS] = ends();

/// For each power of two, the first bin that does not end before it.
static FIRST: [u8; 64] = first();

const fn ends() -> [u64; BINS] {
    let mut ends = [u64::MAX; BINS];
    ends[0] = 10;
    let (mut bin, mut tenth) = (1, 1);
    while bin < BINS - 1 {
        let step = (bin - 1) % STEPS.len();
        ends[bin] = STEPS[step] * tenth;
        if step == STEPS.len() - 1 {
            tenth *= 10;
        }
        bin += 1;
    }
    ends
}

const fn first() -> [u8; 64] {
    let ends = ends();
    let mut first = [0; 64];
    let (mut power, mut bin) = (0, 0);
    while power < first.len() {
        while ends[bin] < 1 << power {
            bin += 1;
        }
        first[power] = bin as u8;
        power += 1;
    }
    first
}

/// The bin of a time.
#[must_use]
pub fn bin_of(time: Duration) -> usize {
    let us = u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
    let mut bin = usize::from(FIRST[us.checked_ilog2().unwrap_or(0) as usize]);
    while ENDS[bin] < us {
        bin += 1;
    }
    bin
}

/// The longest time of a bin, in microseconds; of the last one there is none.
#[must_use]
pub fn end(bin: usize) -> Option<u64> {
    ENDS[..BINS - 1].get(bin).copied()
}

/// The time that the times of a bin are longer than, in microseconds.
#[must_use]
pub fn begin(bin: usize) -> u64 {
    bin.checked_sub(1).map_or(0, |before| ENDS[before.min(BINS - 2)])
}

/// Whether a bin begins at 1, 2, 3, 5 or 7 times a power of ten, or at nothing.
#[must_use]
pub fn is_round(bin: usize) -> bool {
    let begin = begin(bin);
    let tenth = 10_u64.pow(begin.checked_ilog10().unwrap_or(0));
    begin.is_multiple_of(tenth) && matches!(begin / tenth, 0 | 1 | 2 | 3 | 5 | 7)
}

/// The time below which this part (0 to 1) of all counted ones lies, in microseconds: the middle of its bin. Nothing where nothing was counted.
#[must_use]
pub fn percentile(counts: &[u64], part: f64) -> Option<u64> {
    let all: u64 = counts.iter().sum();
    let rank = (part * all as f64).ceil().max(1.0) as u64;
    let mut seen = 0;
    let bin = counts.iter().position(|count| {
        seen += count;
        all > 0 && seen >= rank
    })?;
    Some(middle(bin))
}

/// A time of a bin, in microseconds, for all of them.
#[must_use]
pub fn middle(bin: usize) -> u64 {
    let begin = begin(bin);
    (begin + end(bin).unwrap_or(begin)) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_bin_begins_where_the_one_before_ends() {
        for bin in 0..BINS - 1 {
            let last = end(bin).unwrap();
            assert_eq!(bin_of(Duration::from_micros(last)), bin, "{last}");
            assert_eq!(bin_of(Duration::from_micros(last) + Duration::from_nanos(1)), bin + 1, "{last}");
            assert_eq!(begin(bin + 1), last);
        }
        assert_eq!((bin_of(Duration::ZERO), bin_of(Duration::MAX)), (0, BINS - 1));
        assert_eq!((begin(0), end(BINS - 1), end(BINS)), (0, None, None));
        assert!(begin(BINS - 1) > 3_600_000_000, "an hour has a bin of its own");
        assert_eq!(bin_of(Duration::from_micros(4_294_967_295)), bin_of(Duration::from_secs(4_500)));
    }

    #[test]
    fn round_times_begin_bins() {
        let round: Vec<_> = (0..BINS).filter(|bin| is_round(*bin)).map(begin).collect();
        assert_eq!(round[..9], [0, 10, 20, 30, 50, 70, 100, 200, 300]);
        assert_eq!(round.len(), 1 + 5 * DECADES + 1);
    }

    #[test]
    fn percentiles_of_nothing_and_of_something() {
        assert_eq!(percentile(&[0; BINS], 0.5), None);
        let mut counts = [0; BINS];
        counts[bin_of(Duration::from_micros(100))] = 98;
        counts[bin_of(Duration::from_millis(50))] = 2;
        let [median, slow] = [0.5, 0.99].map(|part| percentile(&counts, part).unwrap());
        assert_eq!((median, slow), (90, 45_000));
    }

    proptest! {
        /// Whatever is counted, a percentile is at most an eighth beside the time that has this rank.
        #[test]
        fn a_percentile_is_near_the_truth(mut times in prop::collection::vec(0u64..9_000_000_000, 1..200), part in 0.01f64..1.0) {
            let mut counts = [0; BINS];
            for us in &times {
                counts[bin_of(Duration::from_micros(*us))] += 1;
            }
            times.sort_unstable();
            let rank = ((part * times.len() as f64).ceil().max(1.0) as usize).min(times.len());
            let (truth, told) = (times[rank - 1] as f64, percentile(&counts, part).unwrap() as f64);
            prop_assert!((told - truth).abs() <= truth / 8.0 + 10.0, "{truth} {told}");
        }
    }
}
