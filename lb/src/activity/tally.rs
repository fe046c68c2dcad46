//! What became of the calls of a function: counted once, for the terminal, the page and metrics alike.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::error::Blame;
use stoker_proto::v1;
use stoker_runtime::metrics::{Spread, Times};
use stoker_runtime::telemetry::TraceId;

/// How calls end: well, or by whose fault not, as metrics call it.
pub const OUTCOMES: [&str; 4] =
    ["ok", Blame::Caller.as_str(), Blame::Function.as_str(), Blame::Platform.as_str()];

/// The place of an outcome among [`OUTCOMES`].
fn place(failed: Option<Blame>) -> usize {
    failed.map_or(0, |blame| 1 + blame as usize)
}

/// See the module.
#[derive(Default)]
pub struct Tally {
    outcomes: [AtomicU64; OUTCOMES.len()],
    cold: AtomicU64,
    /// Made at the first call: most functions of a large fleet are seldom called.
    times: OnceLock<Box<Times>>,
    /// It has no series of its own, so that its exemplars would be shown nowhere. Not known before the first look.
    among_others: AtomicBool,
    /// How busy it was of late, and the calls up to the moment when that was found out.
    rank: AtomicU64,
    ranked: AtomicU64,
}

impl Tally {
    /// One that took so long, and failed by this fault if it did.
    pub fn count(&self, took: Duration, failed: Option<Blame>, cold: bool, exemplar: Option<TraceId>) {
        let exemplar = exemplar.filter(|_| !self.among_others.load(Ordering::Relaxed));
        self.times.get_or_init(Box::default).note(took, exemplar);
        if cold {
            self.cold.fetch_add(1, Ordering::Relaxed);
        }
        // Last, so that who sees it finds everything else.
        self.outcomes[place(failed)].fetch_add(1, Ordering::Release);
    }

    /// How many ended.
    pub fn calls(&self) -> u64 {
        self.outcomes.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// How busy it has been: the calls since this was asked last count whole, those before less and less.
    pub fn rank(&self) -> u64 {
        let (calls, rank) = (self.calls(), self.rank.load(Ordering::Relaxed));
        let new = calls.saturating_sub(self.ranked.swap(calls, Ordering::Relaxed));
        let rank = rank - rank.div_ceil(8) + new;
        self.rank.store(rank, Ordering::Relaxed);
        rank
    }

    /// Whether it has series of its own from now on.
    pub fn name(&self, named: bool) {
        self.among_others.store(!named, Ordering::Relaxed);
    }

    /// What it has come to, as metrics show it.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            outcomes: self.outcomes.each_ref().map(|count| count.load(Ordering::Relaxed)),
            times: self.times().map(Times::so_far).unwrap_or_default(),
        }
    }

    /// How long its calls took, if there were any.
    pub fn times(&self) -> Option<&Times> {
        self.times.get().map(|times| &**times)
    }

    /// What it has come to, for those who watch.
    pub fn tell(&self) -> v1::CallTally {
        let cold = self.cold.load(Ordering::Relaxed);
        self.numbers().tell(cold)
    }
}

/// What calls have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// In the order of [`OUTCOMES`].
    pub outcomes: [u64; OUTCOMES.len()],
    pub times: Spread,
}

impl Numbers {
    /// So many more that failed by this fault, or did not.
    pub fn ended(&mut self, failed: Option<Blame>, count: u64) {
        self.outcomes[place(failed)] += count;
    }

    /// These too.
    pub fn add(&mut self, more: &Self) {
        self.outcomes.iter_mut().zip(more.outcomes).for_each(|(mine, more)| *mine += more);
        self.times.add(&more.times);
    }

    /// Those that came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut outcomes = self.outcomes;
        outcomes.iter_mut().zip(before.outcomes).for_each(|(mine, old)| *mine = mine.saturating_sub(old));
        Self { outcomes, times: self.times.since(&before.times) }
    }

    /// The same for those who watch, with how many of them were cold.
    pub fn tell(&self, cold: u64) -> v1::CallTally {
        let [_, caller, function, platform] = self.outcomes;
        let used = (0_u32..).zip(self.times.counts).filter(|(_, count)| *count > 0);
        let (slots, counts): (Vec<_>, Vec<_>) = used.unzip();
        v1::CallTally {
            calls: counts.iter().sum(),
            caller_errors: caller,
            function_errors: function,
            platform_errors: platform,
            cold,
            slots,
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use stoker_core::histogram::{BINS, bin_of};

    use super::*;

    #[test]
    fn every_call_is_told_once() {
        let tally = Tally::default();
        assert_eq!(tally.tell(), v1::CallTally::default());
        let us = Duration::from_micros;
        tally.count(us(3), None, false, None);
        tally.count(us(3), Some(Blame::Function), true, None);
        tally.count(us(1_000_000), Some(Blame::Platform), false, None);
        tally.count(Duration::MAX, Some(Blame::Caller), false, None);
        let told = tally.tell();
        assert_eq!((told.calls, told.cold), (4, 1));
        assert_eq!((told.caller_errors, told.function_errors, told.platform_errors), (1, 1, 1));
        assert_eq!(told.slots, [0, bin_of(us(1_000_000)) as u32, BINS as u32 - 1]);
        assert_eq!(told.counts, [2, 1, 1]);
        assert_eq!(tally.numbers().outcomes, [1, 1, 1, 1]);
    }

    #[test]
    fn who_was_busy_once_is_overtaken_by_who_is_busy_now() {
        let (once, now) = (Tally::default(), Tally::default());
        (0..1000).for_each(|_| once.count(Duration::ZERO, None, false, None));
        assert!(once.rank() > now.rank());
        let mut looks = 0;
        while once.rank() >= now.rank() {
            (0..10).for_each(|_| now.count(Duration::ZERO, None, false, None));
            looks += 1;
        }
        assert!(looks < 50, "{looks}");
        (0..100).for_each(|_| _ = once.rank());
        assert_eq!(once.rank(), 0, "it is forgotten altogether");
    }
}
