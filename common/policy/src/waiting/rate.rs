//! How fast calls end, and what follows from it: who waits in vain, and when to come again.

use std::time::{Duration, Instant};

/// How fast calls end while there are some, observed: the ground of every retry time that we name. A fleet that has nothing to do is not a
/// slow one, so time in which nothing is known to have run does not count.
#[derive(Debug, Clone)]
pub struct Rate {
    per_second: f64,
    /// Calls that ended in the samples behind `per_second`, as far as they count still.
    seen: f64,
    count: u32,
    since: Instant,
    /// When a call ended last.
    last: Instant,
}

/// Length of one observation: so many calls end in it on a busy fleet that it is a mean, and a change of the load is seen within a second.
const SAMPLE: Duration = Duration::from_millis(500);

/// What was seen counts half after this long as evidence: ten observations, so that a pause of a few seconds does not make us forget what the fleet can do.
const MEMORY: Duration = Duration::from_secs(5);

/// A rate is the ground of a refusal only when so many calls made it: fewer may have been an odd lot. A count of twenty is off by a quarter at most
/// times, which is well within [`DOUBT`].
const EVIDENCE: f64 = 20.0;

/// Nor where fewer than these are ahead: they may be gone at a stroke. With so many, and at half of the rate that would do, one in
/// three hundred would have had its turn.
const FEW: usize = 20;

/// A wait has to look so many times too long before it is not even begun: capacity may come that was not there before, and a
/// call that is turned away though it would have been served costs more than one that waits in vain.
const DOUBT: f64 = 2.0;

/// The longest wait that is told, in seconds: beyond it nobody needs to know.
const MOST_WAIT: f64 = 86_400.0;

/// Shortest and longest retry time that we name. Sooner than the first a caller would find the same calls running; and by the second a fleet may have
/// grown, or have been emptied by callers who gave up, which no rate of before foretells.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// The retry time where nothing has been observed: a fleet that has just started launches its first containers in about that.
const UNKNOWN: Duration = Duration::from_secs(1);

impl Rate {
    /// Nothing observed yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, seen: 0.0, count: 0, since: now, last: now }
    }

    /// One call ended, which was on its runner for so long.
    pub fn ended(&mut self, now: Instant, there: Duration) {
        // From the last end to the beginning of this call, if it came after that.
        let idle = now.saturating_duration_since(self.last).saturating_sub(there);
        self.since += idle;
        self.seen *= 0.5_f64.powf(idle.as_secs_f64() / MEMORY.as_secs_f64());
        self.last = now;
        self.count += 1;
        let span = now.saturating_duration_since(self.since);
        if span >= SAMPLE {
            let seen = f64::from(self.count) / span.as_secs_f64();
            // The weight of the past falls with the length of the sample: one of slow calls is as good as many of quick ones.
            let keep = 0.5_f64.powf(span.as_secs_f64() / SAMPLE.as_secs_f64());
            self.per_second =
                if self.per_second == 0.0 { seen } else { self.per_second * keep + seen * (1.0 - keep) };
            let keep = 0.5_f64.powf(span.as_secs_f64() / MEMORY.as_secs_f64());
            self.seen = self.seen * keep + f64::from(self.count);
            self.count = 0;
            self.since = now;
        }
    }

    /// Calls a second, the better of what was and what is.
    #[must_use]
    pub fn per_second(&self, now: Instant) -> f64 {
        let span = now.saturating_duration_since(self.since).max(SAMPLE);
        self.per_second.max(f64::from(self.count) / span.as_secs_f64())
    }

    /// How long one behind `ahead` others will wait, where that is surely longer than `time`.
    #[must_use]
    pub fn too_long(&self, ahead: usize, time: Duration, now: Instant) -> Option<Duration> {
        let rate = self.per_second(now);
        if ahead < FEW || self.seen + f64::from(self.count) < EVIDENCE || rate <= 0.0 {
            return None;
        }
        let wait = (ahead + 1) as f64 / rate;
        (wait > DOUBT * time.as_secs_f64()).then(|| Duration::from_secs_f64(wait.min(MOST_WAIT)))
    }

    /// When one that comes behind `ahead` others may expect its turn.
    #[must_use]
    pub fn retry_after(&self, ahead: usize, now: Instant) -> Duration {
        let rate = self.per_second(now);
        if rate <= 0.0 {
            return UNKNOWN;
        }
        Duration::from_secs_f64(((ahead + 1) as f64 / rate).min(RETRY.1.as_secs_f64())).max(RETRY.0)
    }
}

/// When to come again with so much `time` for a wait that is too long for it now.
#[must_use]
pub fn come_again(wait: Duration, time: Duration) -> Duration {
    wait.saturating_sub(time).clamp(RETRY.0, RETRY.1)
}
