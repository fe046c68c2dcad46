//! Times and names of spans, without a system call or a lock for each.

use std::cell::Cell;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{SpanId, TraceId};

/// After this time the two clocks are compared again: somebody may have set the one on the wall.
const TRUSTED: Duration = Duration::from_secs(1);

/// Moments as the time on the wall. The two clocks are compared now and then, not for each span.
#[derive(Debug)]
pub(super) struct Clock {
    base: Instant,
    /// What the wall's said at `base`, in nanoseconds since 1970, as it was found last.
    wall: AtomicU64,
    /// When to look again, in nanoseconds since `base`.
    due: AtomicU64,
}

/// What the wall's clock said at the base of ours. All times of a call's spans in this process hang on one, whatever happens
/// to that clock meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Anchor(u64);

impl Clock {
    pub fn new() -> Self {
        Self { base: Instant::now(), wall: AtomicU64::new(0), due: AtomicU64::new(0) }
    }

    /// For spans that begin at about this moment, which is about now.
    pub fn anchor(&self, now: Instant) -> Anchor {
        let since = nanos(now.saturating_duration_since(self.base));
        if since >= self.due.load(Ordering::Relaxed) {
            // Both clocks are asked once more: the caller's moment may be some time ago. Who else does that at the same time finds the same.
            let wall = nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
            self.wall.store(wall.saturating_sub(nanos(self.base.elapsed())), Ordering::Relaxed);
            self.due.store(since + nanos(TRUSTED), Ordering::Relaxed);
        }
        Anchor(self.wall.load(Ordering::Relaxed))
    }

    /// In nanoseconds since 1970.
    pub fn wall(&self, anchor: Anchor, at: Instant) -> u64 {
        match at.checked_duration_since(self.base) {
            Some(after) => anchor.0 + nanos(after),
            None => anchor.0.saturating_sub(nanos(self.base - at)),
        }
    }
}

fn nanos(time: Duration) -> u64 {
    // Enough for five centuries.
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// Where the names of a thread begin: two numbers that no other thread has, of this process or another.
#[derive(Debug)]
struct Names {
    bases: [u64; 2],
    used: Cell<u64>,
}

thread_local! {
    static NAMES: Names = {
        let keys = RandomState::new();
        Names { bases: [keys.hash_one(0_u8), keys.hash_one(1_u8)], used: Cell::new(0) }
    };
}

impl Names {
    /// The next place, for [`spread`].
    fn next(&self) -> u64 {
        // An odd step comes to every number before it comes to one again.
        let place = self.used.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.used.set(place);
        place
    }
}

/// Makes of neighbours numbers that have nothing to do with each other, and never the same of two.
fn spread(place: u64) -> u64 {
    let mixed = (place ^ place >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// A name for a trace that no other has. Its lower half decides which share of traces is taken.
pub(super) fn trace() -> TraceId {
    let [high, low] = NAMES.with(|names| {
        let place = names.next();
        names.bases.map(|base| u128::from(spread(base.wrapping_add(place))))
    });
    // Never 0, which names nothing.
    TraceId::from((high << 64 | low).max(1))
}

/// A name for a span that no other of its trace has.
pub(super) fn span() -> SpanId {
    SpanId::from(NAMES.with(|names| spread(names.bases[0].wrapping_add(names.next()))).max(1))
}
