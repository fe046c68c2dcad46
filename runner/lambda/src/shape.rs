//! How fast a streamed answer may go: a bucket of tokens, one a byte, which starts full and is refilled by a clock that ticks eight
//! times a second. So the first bytes of an answer go at once, and the rest at a steady rate: AWS's rule, with AWS's limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use stoker_core::function::FormatOptions;
use tokio::time::{Instant, sleep_until};

/// Between two refills.
const TICK: Duration = Duration::from_millis(125);
/// Bytes that go at once, at most.
const PIECE: usize = 32 * 1024;

/// Bytes a second, and bytes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    pub rate: u64,
    pub burst: u64,
}

impl Bandwidth {
    /// AWS's own.
    pub const DEFAULT: Self = Self { rate: 2 << 20, burst: FormatOptions::STREAM_BURST };
    /// What either may be.
    pub const LIMITS: RangeInclusive<u64> = FormatOptions::STREAM;

    /// The slower one in both.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        Self { rate: self.rate.min(other.rate), burst: self.burst.min(other.burst) }
    }
}

/// Tokens. Whoever has too few waits for the next refill.
#[derive(Debug)]
struct Bucket {
    capacity: u64,
    tokens: u64,
    refill: u64,
}

impl Bucket {
    fn full(bandwidth: Bandwidth) -> Self {
        let refill = (bandwidth.rate * TICK.as_millis() as u64 / 1000).max(1);
        Self { capacity: bandwidth.burst, tokens: bandwidth.burst, refill }
    }

    fn fill(&mut self, ticks: u64) {
        self.tokens = self.refill.saturating_mul(ticks).saturating_add(self.tokens).min(self.capacity);
    }

    /// All of them, or none.
    fn take(&mut self, wanted: u64) -> bool {
        match self.tokens.checked_sub(wanted) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// What holds one answer back. It keeps what it could not let go yet, so that waiting for it may be given up and taken up again.
#[derive(Debug)]
pub(crate) struct Shaper {
    bucket: Bucket,
    ticked: Instant,
    held: Bytes,
    waits: Option<Instant>,
    throttled: Duration,
}

impl Shaper {
    pub fn new(bandwidth: Bandwidth) -> Self {
        let (bucket, ticked) = (Bucket::full(bandwidth), Instant::now());
        Self { bucket, ticked, held: Bytes::new(), waits: None, throttled: Duration::ZERO }
    }

    /// A piece of the answer. Only while nothing is held.
    pub fn hold(&mut self, piece: Bytes) {
        self.held = piece;
    }

    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// How long it held the answer back.
    pub fn throttled(&self) -> Duration {
        self.throttled
    }

    /// The next of what it holds, when it may go.
    pub async fn next(&mut self) -> Bytes {
        let most = PIECE.min(usize::try_from(self.bucket.capacity).unwrap_or(PIECE));
        let size = self.held.len().min(most);
        loop {
            let now = Instant::now();
            let ticks = (now - self.ticked).as_nanos() / TICK.as_nanos();
            let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
            self.bucket.fill(u64::from(ticks));
            self.ticked += TICK * ticks;
            if self.bucket.take(size as u64) {
                if let Some(since) = self.waits.take() {
                    self.throttled += now - since;
                }
                return self.held.split_to(size);
            }
            self.waits.get_or_insert(now);
            sleep_until(self.ticked + TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted() {
        let mut bucket = Bucket { capacity: 16, tokens: 8, refill: 6 };
        assert!(bucket.take(5) && bucket.tokens == 3);
        bucket.fill(1);
        assert_eq!(bucket.tokens, 9);
        bucket.fill(1);
        assert_eq!(bucket.tokens, 15);
        bucket.fill(1);
        assert_eq!(bucket.tokens, 16, "no more than it holds");
        bucket.fill(u64::MAX);
        assert_eq!(bucket.tokens, 16);
        assert!(!bucket.take(18) && bucket.tokens == 16, "all or none");
        assert!(bucket.take(16) && bucket.tokens == 0);
    }

    #[test]
    fn the_defaults_refill_as_aws_does() {
        let bucket = Bucket::full(Bandwidth::DEFAULT);
        assert_eq!((bucket.capacity, bucket.refill), (6 << 20, 262_144));
        let least = Bandwidth { rate: 32 << 10, burst: 64 << 20 }.least(Bandwidth::DEFAULT);
        assert_eq!(least, Bandwidth { rate: 32 << 10, burst: 6 << 20 });
    }

    /// All of it, the pieces in their order, each with the time at which it went.
    async fn shaped(bandwidth: Bandwidth, bytes: usize) -> (Vec<(Duration, usize)>, Duration) {
        let begun = Instant::now();
        let mut shaper = Shaper::new(bandwidth);
        let text: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let (mut went, mut all) = (Vec::new(), Vec::new());
        for piece in text.chunks(100_000) {
            shaper.hold(Bytes::copy_from_slice(piece));
            while shaper.holds() {
                let piece = shaper.next().await;
                assert!(!piece.is_empty() && piece.len() <= PIECE);
                went.push((begun.elapsed(), piece.len()));
                all.extend_from_slice(&piece);
            }
        }
        assert_eq!(all, text);
        (went, shaper.throttled())
    }

    #[tokio::test(start_paused = true)]
    async fn the_burst_goes_at_once_and_the_rest_at_its_rate() {
        let bandwidth = Bandwidth { rate: 256 << 10, burst: 1 << 20 };
        let (went, throttled) = shaped(bandwidth, 2 << 20).await;
        let at_once: usize = went.iter().filter(|(at, _)| at.is_zero()).map(|(_, size)| size).sum();
        assert!((1 << 20) - PIECE < at_once && at_once <= 1 << 20, "{at_once}");
        let took = went.last().unwrap().0;
        assert!((Duration::from_secs(4)..Duration::from_millis(4300)).contains(&took), "{took:?}");
        assert!(throttled >= took - TICK && throttled <= took, "{throttled:?} of {took:?}");
        // In no stretch of time does more go than what the bucket had and what was refilled.
        for (at, from) in went.iter().zip(0..) {
            for (end, to) in went[from..].iter().zip(from..) {
                let bytes: usize = went[from..=to].iter().map(|(_, size)| size).sum();
                let allowed = (1 << 20) + (end.0 - at.0).as_millis() as usize / 125 * (32 << 10) + (32 << 10);
                assert!(bytes <= allowed, "{bytes} of {allowed} from {at:?} to {end:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_can_be_given_up_and_taken_up_again() {
        let mut shaper = Shaper::new(Bandwidth { rate: 32 << 10, burst: 32 << 10 });
        shaper.hold(Bytes::from(vec![1; 64 << 10]));
        assert_eq!(shaper.next().await.len(), 32 << 10);
        for _ in 0..20 {
            _ = tokio::time::timeout(Duration::from_millis(10), shaper.next()).await;
        }
        assert!(shaper.holds() && shaper.throttled().is_zero());
        assert_eq!(shaper.next().await.len(), 32 << 10);
        assert!(
            !shaper.holds() && shaper.throttled() >= Duration::from_millis(900),
            "{:?}",
            shaper.throttled()
        );
    }
}
