//! How long a link may be silent before it is given up.
//!
//! What is lost on the way TCP sends again, each time after twice as long as before, and nothing that came after it is read meanwhile. So a link that loses
//! packets is silent for its retransmission timeout, for three of them if the second one is lost too, for seven, and so on: how long that is follows from the
//! round trip, and a bound that is right for one machine room gives up links between continents that are in order. The bound here is the time of four losses
//! in a row, by the round trip that was seen, between two limits.
//!
//! The estimate is TCP's own (RFC 6298, with the least timeout that Linux has).

use std::time::Duration;

/// Four losses in a row: one timeout, two, four, eight.
const TIMEOUTS: u32 = 15;

/// What Linux adds to the round trip at least. On a link with a round trip of next to nothing the bound is fifteen of these.
const LEAST_SLACK: Duration = Duration::from_millis(200);

/// Silence is counted in steps of this length, so a bound is so many of them, and an even number, so that there is a middle. Four timers a second
/// cost a link nothing, and the shortest bound is noticed within a twelfth of itself.
pub const STEP: Duration = Duration::from_millis(250);

/// A runner that stands still is noticed after this on a good link, which is far below a lease and far above any pause of one that lives.
pub const LEAST: Duration = Duration::from_secs(3);

/// No link is waited for longer: by then the lease of a runner that is gone has ended.
pub const MOST: Duration = Duration::from_secs(10);

/// What is known of the round trip of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrip {
    mean: Duration,
    deviation: Duration,
}

impl RoundTrip {
    /// The first that was seen.
    #[must_use]
    pub fn first(seen: Duration) -> Self {
        let seen = seen.min(MOST);
        Self { mean: seen, deviation: seen / 2 }
    }

    /// Another one.
    pub fn saw(&mut self, seen: Duration) {
        // More than the longest bound says nothing more.
        let seen = seen.min(MOST);
        self.deviation = (self.deviation * 3 + self.mean.abs_diff(seen)) / 4;
        self.mean = (self.mean * 7 + seen) / 8;
    }

    /// How long silence is no sign of anything.
    #[must_use]
    pub fn bound(&self) -> Duration {
        let timeout = self.mean.saturating_add(LEAST_SLACK.max(self.deviation.saturating_mul(4)));
        let bound = timeout.saturating_mul(TIMEOUTS).clamp(LEAST, MOST);
        STEP * 2 * (bound.as_millis() / (2 * STEP.as_millis())) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(seen: impl IntoIterator<Item = u64>) -> Duration {
        let mut seen = seen.into_iter().map(Duration::from_millis);
        let mut link = RoundTrip::first(seen.next().unwrap_or_default());
        seen.for_each(|seen| link.saw(seen));
        link.bound()
    }

    #[test]
    fn a_good_link_has_three_seconds_and_a_long_one_the_time_of_four_losses() {
        assert_eq!(after([0]), LEAST);
        assert_eq!(after([15; 30]), LEAST, "and what is not far away");
        assert_eq!(after([100; 30]), Duration::from_millis(4_500));
        assert_eq!(after([400; 30]), Duration::from_millis(9_000), "one that does not vary");
        let lossy = after((0..60).map(|n| if n % 10 == 0 { 1_200 } else { 400 }));
        assert_eq!(lossy, MOST);
        assert_eq!(after([5_000]), MOST);
    }

    #[test]
    fn what_was_once_slow_is_not_for_ever() {
        let many = [3_000].into_iter().chain([1; 60]);
        assert_eq!(after(many), LEAST);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_limits(seen in prop::collection::vec(0u64..10_000_000, 1..50)) {
            let bound = after(seen);
            prop_assert!((LEAST..=MOST).contains(&bound));
        }
    }
}
