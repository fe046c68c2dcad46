//! When a function that is called in a rhythm will be called next, so that a container can be there in time.
//!
//! Timers and pollers call every minute or every hour: seldom enough that nothing is kept warm for them, and so regularly that
//! it need not be. A runner remembers the last few pauses between calls of each function. Where most of them are
//! alike, the next call is expected that long after the last, and a container is launched just before. Where they are
//! not, as with calls that people make, nothing is foretold and nothing is launched: a wrong guess costs a launch and the memory.

use std::time::{Duration, Instant};

/// Pauses that are remembered. Enough to see a rhythm through one missed beat and one extra call, few enough that a new rhythm is
/// the rhythm after as many beats.
const REMEMBERED: usize = 8;

/// Pauses without which there is no rhythm: two may be alike by chance.
const ENOUGH: usize = 3;

/// So many of so many pauses are alike in a rhythm: of eight, one missed beat and one extra call are forgiven, and calls that people make do not get
/// so far by chance.
const MOST: (usize, usize) = (3, 4);

/// Calls closer together than this are one event: a timer that calls ten times at once.
const TOGETHER: Duration = Duration::from_secs(1);

/// How far pauses of one rhythm lie apart from their median: a tenth, and not less than what a busy timer strays.
const ALIKE: (f64, Duration) = (0.1, Duration::from_secs(1));

/// A container is launched so many times a launch's mean before it has to be there: launches take longer than their mean at times, hardly ever twice as long.
const AHEAD: f64 = 2.0;

/// When calls of a function came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrivals {
    /// Of the last event: its first call and its last.
    event: Option<(Instant, Instant)>,
    pauses: [Duration; REMEMBERED],
    count: usize,
}

/// When the next call is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// A container should be launched then.
    pub launch: Instant,
    /// From then on it is not worth waiting for any more.
    pub until: Instant,
}

impl Arrivals {
    /// A call came.
    pub fn add(&mut self, now: Instant) {
        let Some((first, last)) = &mut self.event else {
            self.event = Some((now, now));
            return;
        };
        if now.saturating_duration_since(*last) >= TOGETHER {
            self.pauses[self.count % REMEMBERED] = now.saturating_duration_since(*first);
            self.count += 1;
            *first = now;
        }
        *last = now.max(*last);
    }

    /// When the next call is expected, if there is a rhythm. `cold` is what a launch takes, `kept` how long a container stays when
    /// nobody calls: what cannot be hit with that is not tried.
    #[must_use]
    pub fn expects(&self, cold: Duration, kept: Duration) -> Option<Expected> {
        let (event, _) = self.event?;
        let count = self.count.min(REMEMBERED);
        if count < ENOUGH {
            return None;
        }
        let mut pauses = self.pauses;
        let pauses = &mut pauses[..count];
        pauses.sort_unstable();
        let median = pauses[count / 2];
        let stray = median.mul_f64(ALIKE.0).max(ALIKE.1);
        let alike = |pause: &&Duration| pause.abs_diff(median) <= stray;
        let like = pauses.iter().filter(alike);
        if like.clone().count() * MOST.1 < count * MOST.0 {
            return None;
        }
        let (soonest, latest) = (like.clone().min()?, like.max()?);
        let lead = cold.mul_f64(AHEAD) + *latest - *soonest;
        let (launch, until) = (event + soonest.saturating_sub(lead), event + *latest + (*latest - *soonest));
        // One that is kept until the next call anyway needs no launch, and one that goes before it is wasted.
        let useful = *soonest > kept && until.saturating_duration_since(launch) <= kept;
        useful.then_some(Expected { launch, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MS: Duration = Duration::from_millis(1);

    fn after(pauses: &[Duration]) -> (Arrivals, Instant) {
        let mut now = Instant::now();
        let mut arrivals = Arrivals::default();
        arrivals.add(now);
        for pause in pauses {
            now += *pause;
            arrivals.add(now);
        }
        (arrivals, now)
    }

    #[test]
    fn a_timer_is_expected_and_met_in_time() {
        let (arrivals, last) = after(&[5 * MINUTE; 4]);
        let expected = arrivals.expects(500 * MS, MINUTE).expect("it is a rhythm");
        assert!(expected.launch + 500 * MS < last + 5 * MINUTE && last + 5 * MINUTE <= expected.until);
        assert!(last + 5 * MINUTE - expected.launch <= 2 * Duration::from_secs(1));
    }

    #[test]
    fn a_missed_beat_and_calls_together_do_not_disturb() {
        let (mut arrivals, mut last) = after(&[5 * MINUTE, 5 * MINUTE, 10 * MINUTE, 5 * MINUTE, 5 * MINUTE]);
        for _ in 0..20 {
            last += 100 * MS;
            arrivals.add(last);
        }
        let expected = arrivals.expects(500 * MS, MINUTE).expect("most are alike");
        let event = last - 2000 * MS;
        assert!(expected.launch < event + 5 * MINUTE && event + 5 * MINUTE <= expected.until);
    }

    #[test]
    fn nothing_is_foretold_without_a_rhythm_or_a_use() {
        for pauses in [
            &[5 * MINUTE; 2][..],
            &[MINUTE, 7 * MINUTE, 3 * MINUTE, 20 * MINUTE, 2 * MINUTE, 9 * MINUTE],
            // It is still warm from the last one.
            &[20 * 1000 * MS; 8],
        ] {
            assert_eq!(after(pauses).0.expects(500 * MS, MINUTE), None, "{pauses:?}");
        }
        // A launch that takes longer than a container stays.
        assert_eq!(after(&[5 * MINUTE; 8]).0.expects(100 * 1000 * MS, MINUTE), None);
    }

    proptest! {
        #[test]
        fn what_is_expected_comes_within_what_is_kept(
            pauses in prop::collection::vec(0u64..4_000_000, 0..40), cold in 0u64..100_000, kept in 0u64..1_000_000,
        ) {
            let pauses: Vec<_> = pauses.into_iter().map(Duration::from_millis).collect();
            let (arrivals, last) = after(&pauses);
            let (cold, kept) = (MS * cold as u32, MS * kept as u32);
            if let Some(Expected { launch, until }) = arrivals.expects(cold, kept) {
                prop_assert!(launch <= until && until - launch <= kept);
                prop_assert!(until + TOGETHER * REMEMBERED as u32 * 40 > last);
            }
        }

        #[test]
        fn any_rhythm_with_a_little_jitter_is_met(
            period in 90u64..7_200, jitter in prop::collection::vec(0u64..400, 10..20), cold in 1u64..3_000,
        ) {
            let mut due = Instant::now();
            let mut arrivals = Arrivals::default();
            for (beat, jitter) in jitter.iter().enumerate() {
                let comes = due + Duration::from_millis(*jitter);
                if beat > 4 {
                    let expected = arrivals.expects(MS * cold as u32, MINUTE).expect("it is a rhythm");
                    prop_assert!(expected.launch + MS * cold as u32 <= comes + Duration::from_millis(800), "{beat}");
                    prop_assert!(comes <= expected.until + Duration::from_millis(400), "{beat}");
                }
                arrivals.add(comes);
                due += Duration::from_secs(period);
            }
        }
    }
}
