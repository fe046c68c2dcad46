//! Which runner to ask next: warm-first rendezvous.
//!
//! Asking a warm runner that turns out to be full costs one round trip; skipping a warm runner costs a cold start. So hints of
//! warmth come first, then the weighted rendezvous order, in which balancers that share nothing agree and a lost runner moves
//! only its own share of the functions. A runner's refusal is the bound, not our view of its load.
//!
//! Here are the numbers and the hashes; who is known and who is asked is the [board](crate::board)'s.

use std::time::Duration;

use stoker_core::backoff::split_mix;
use stoker_core::capacity::{Capacity, RunnerState};
use stoker_core::resources::{Ask, Resources};

/// A hint of warmth is believed for this long. A runner says within 100 ms what has changed and repeats all of it every 5 s, so an
/// older word is of a runner that has been silent.
pub const HINT_TTL: Duration = Duration::from_secs(5);

/// A runner that refused is not asked again for this long, unless it says that something became free. About a call's time; from 5 to
/// 50 ms hardly differ in the model, and at 300 ms runners with room are passed over.
pub const FULL_FOR: Duration = Duration::from_millis(20);

/// Most runners asked in the order of rank before the one spill: 5 ms at most for a call that finds a full fleet, and more than the
/// few that a function's containers are spread over.
pub const MAX_TRIES: usize = 8;

/// A runner that is new or back gets its whole share after this long: some hundred launches at the rate at which a node makes them
/// without being busy with nothing else. All at once cost Fn two seconds without an answer.
pub const RAMP: Duration = Duration::from_secs(30);

/// Memory of a runner of weight 1. Only the ratios of weights count, so any would do: with this one a weight is about the number of usual containers.
const UNIT: u64 = 128 << 20;

/// The weight of a runner that has hardly any memory, or names none: it is there, and stands behind all others.
const LEAST_WEIGHT: f64 = 0.01;

/// The part of its functions that a runner has in its first moment: one in fifty is enough to show that it works, and too few to keep it busy with launches.
const FIRST_PART: f64 = 0.02;

/// Whether a runner may be asked at all for a function that needs `ask`.
#[must_use]
pub fn eligible(capacity: &Capacity, ask: &Ask) -> bool {
    capacity.state == RunnerState::Ready && capacity.total.could_hold(ask)
}

/// A runner's weight by its size: its memory, which is what a fleet's containers run out of first.
#[must_use]
pub fn weight(total: &Resources) -> f64 {
    (total.memory as f64 / UNIT as f64).max(LEAST_WEIGHT)
}

/// The part of its functions that a runner of this age gets: never none, since nothing else would show that it works.
#[must_use]
pub fn ramp(age: Duration) -> f64 {
    (age.as_secs_f64() / RAMP.as_secs_f64()).clamp(FIRST_PART, 1.0)
}

/// Where a function stands among those that a young runner gets one after the other, from 0 to 1. The same on every balancer, and
/// each function moves once.
#[must_use]
pub fn share(function: u64, runner: u64) -> f64 {
    unit(function.rotate_left(17) ^ runner)
}

/// A stable 64-bit hash (FNV-1a, mixed): the same on every machine and in every version.
#[must_use]
pub fn key(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    split_mix(&mut hash)
}

/// The rank of a runner for a function, larger is better: weighted rendezvous hashing.
#[must_use]
pub fn score(function: u64, runner: u64, weight: f64) -> f64 {
    let unit = unit(function ^ runner.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if weight > 0.0 { -weight / unit.ln() } else { 0.0 }
}

/// 53 bits of a hash, never 0 and never 1.
fn unit(mut state: u64) -> f64 {
    ((split_mix(&mut state) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_runner_has_a_little_and_then_all() {
        assert_eq!([0, 15, 30, 300].map(|s| ramp(Duration::from_secs(s))), [0.02, 0.5, 1.0, 1.0]);
    }

    #[test]
    fn ranks_and_shares_are_even() {
        let functions = || (0..4000u64).map(|n| key(&n.to_le_bytes()));
        let wins = functions().filter(|f| score(*f, 1, 1.0) > score(*f, 2, 1.0)).count();
        assert!((1800..2200).contains(&wins), "{wins}");
        let half = functions().filter(|f| share(*f, 3) < 0.5).count();
        assert!((1800..2200).contains(&half), "{half}");
        // Whether a young runner gets a function says nothing of its rank there.
        let both =
            functions().filter(|f| share(*f, 1) < 0.5 && score(*f, 1, 1.0) > score(*f, 2, 1.0)).count();
        assert!((850..1150).contains(&both), "{both}");
    }
}
