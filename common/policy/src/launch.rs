//! What a runner does with a call for which no container is free: whether it waits here at all, and whether a container is
//! launched for it.

use std::time::Duration;

/// What a function takes before anything was measured: only for what is told to others, never a reason not to launch.
const GUESS_COLD: Duration = Duration::from_millis(200);
const GUESS_CALL: Duration = Duration::from_millis(50);

/// Calls of a function that may wait though it has nothing here and there is no room: enough to get its turn, whatever others
/// have waiting.
const CLAIMS: u32 = 2;

/// What a runner knows of a function when none of its containers is free.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Facts {
    /// Calls of the function that wait ahead.
    pub waiting: u32,
    /// Calls that its ready containers hold together: containers times concurrency.
    pub serving: u32,
    /// Calls that the containers being launched for it will hold together.
    pub launching: u32,
    /// Mean time of a call in the function; zero if unknown.
    pub mean_call: Duration,
    /// Expected time from launch to ready; zero if unknown.
    pub cold: Duration,
    /// The first in line has waited longer than a launch takes: the estimates were too hopeful.
    pub overdue: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A slot frees up sooner than a launch would be done, or a launch that already runs will serve it.
    Wait,
    /// Launch. The call still takes whichever comes first.
    Launch,
}

/// Expected time until one of the ready containers is free for one more call, those not counted that launches will serve.
#[must_use]
pub fn expected_wait(facts: &Facts) -> Option<Duration> {
    let ahead = (facts.waiting + 1).saturating_sub(facts.launching);
    (facts.serving > 0 && !facts.mean_call.is_zero())
        .then(|| facts.mean_call.mul_f64(f64::from(ahead) / f64::from(facts.serving)))
}

/// Decides. Factor 1.0 between the two times came out best in the model; where nothing was measured yet, a launch is the
/// answer that cannot be much too slow.
#[must_use]
pub fn decide(facts: &Facts) -> Decision {
    if facts.launching > facts.waiting {
        return Decision::Wait;
    }
    match expected_wait(facts) {
        Some(wait) if wait < facts.cold && !facts.overdue => Decision::Wait,
        _ => Decision::Launch,
    }
}

/// How many launches may run at once on a runner of so many slots: a quarter. More of them starve the calls that run, and
/// the fleet collapses into retries. Never fewer than two: a function that takes long to come up must not hold up all others
/// (in the model one alone ends in the same storm).
#[must_use]
pub fn cap(slots: u32) -> u32 {
    slots.div_ceil(4).max(2)
}

/// How many calls may wait on a runner of so many slots. Those beyond are better off in the balancer's queue, which can
/// place them anywhere.
#[must_use]
pub fn line(slots: u32) -> u32 {
    slots.saturating_mul(4).max(16)
}

/// What a runner knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct House {
    /// Containers that it may have.
    pub slots: u32,
    /// Calls of all functions that wait.
    pub waiting: u32,
    /// Launches of all functions that run.
    pub launching: u32,
    /// There is room for one more container of this function, or could be made.
    pub room: bool,
}

/// Whether a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may; this is how long it will take.
    Wait(Duration),
    /// Another runner, or later, is better.
    Refuse(Full, Duration),
}

/// Why a call may not wait, beside the time that it would have taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Too many wait already.
    Line,
    /// No room, and containers free up too slowly.
    Slow,
    /// It would be served after its caller has given up.
    Late,
}

/// Decides whether a call that has so much time left may wait here.
#[must_use]
pub fn admit(facts: &Facts, house: &House, remaining: Duration) -> Admission {
    let or = |known: Duration, guess| if known.is_zero() { guess } else { known };
    let (cold, call) = (or(facts.cold, GUESS_COLD), or(facts.mean_call, GUESS_CALL));
    // Launches beyond the cap wait for those before them.
    let launch = cold + cold.mul_f64(f64::from(house.launching / cap(house.slots)));
    let holding = facts.serving + facts.launching;
    let queue = match (facts.waiting + 1).saturating_sub(facts.launching) {
        0 => cold,
        ahead => call.mul_f64(f64::from(ahead) / f64::from(holding.max(1))),
    };
    let (expected, worth) = match (holding, house.room) {
        (0, true) => (launch, true),
        (0, false) => (queue.max(cold), facts.waiting < CLAIMS),
        (_, true) => (queue.min(launch), true),
        (_, false) => (queue, queue <= cold.max(2 * call)),
    };
    let line = line(house.slots);
    // A function with hardly anyone in the line gets in behind one that fills it.
    let open = house.waiting < line || (facts.waiting < CLAIMS && house.waiting < line.saturating_mul(2));
    match (open, worth) {
        (false, _) => Admission::Refuse(Full::Line, expected),
        (_, false) => Admission::Refuse(Full::Slow, expected),
        _ if expected > remaining => Admission::Refuse(Full::Late, expected),
        _ => Admission::Wait(expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn short_waits_beat_launches_and_long_ones_do_not() {
        let facts = Facts { serving: 2, mean_call: 10 * MS, cold: 50 * MS, ..Facts::default() };
        assert_eq!(decide(&facts), Decision::Wait);
        assert_eq!(decide(&Facts { waiting: 10, ..facts }), Decision::Launch);
        assert_eq!(decide(&Facts { waiting: 10, launching: 5, ..facts }), Decision::Wait);
        assert_eq!(decide(&Facts { cold: 4 * MS, ..facts }), Decision::Launch);
        assert_eq!(decide(&Facts { overdue: true, ..facts }), Decision::Launch);
        assert_eq!(decide(&Facts { overdue: true, launching: 1, ..facts }), Decision::Wait);
    }

    #[test]
    fn nothing_known_means_launch_unless_one_runs_for_it() {
        assert_eq!(decide(&Facts::default()), Decision::Launch);
        assert_eq!(decide(&Facts { launching: 1, ..Facts::default() }), Decision::Wait);
        assert_eq!(decide(&Facts { launching: 1, waiting: 1, ..Facts::default() }), Decision::Launch);
        assert_eq!(decide(&Facts { launching: 4, waiting: 3, ..Facts::default() }), Decision::Wait);
    }

    #[test]
    fn a_quarter_but_never_one() {
        assert_eq!([1, 4, 5, 16, 100].map(cap), [2, 2, 2, 4, 25]);
        assert_eq!((cap(0), line(0), line(100)), (2, 16, 400));
    }

    #[test]
    fn a_call_waits_where_it_is_served_in_time() {
        let known = Facts { serving: 2, mean_call: 10 * MS, cold: 50 * MS, ..Facts::default() };
        let house = House { slots: 8, waiting: 0, launching: 0, room: false };
        let roomy = House { room: true, ..house };
        let ample = Duration::from_secs(10);
        for (facts, house, remaining, expected) in [
            (known, house, ample, Admission::Wait(5 * MS)),
            (Facts { waiting: 9, ..known }, house, ample, Admission::Wait(50 * MS)),
            (Facts { waiting: 19, ..known }, house, ample, Admission::Refuse(Full::Slow, 100 * MS)),
            (Facts { waiting: 19, ..known }, roomy, ample, Admission::Wait(50 * MS)),
            (known, house, 4 * MS, Admission::Refuse(Full::Late, 5 * MS)),
            // Nothing of it here: a launch, behind those that run already.
            (Facts { serving: 0, ..known }, roomy, ample, Admission::Wait(50 * MS)),
            (
                Facts { serving: 0, ..known },
                House { launching: 4, ..roomy },
                ample,
                Admission::Wait(150 * MS),
            ),
            // Nor any room: it may claim its turn, twice.
            (Facts::default(), house, ample, Admission::Wait(GUESS_COLD)),
            (
                Facts { waiting: 2, ..Facts::default() },
                house,
                ample,
                Admission::Refuse(Full::Slow, GUESS_COLD),
            ),
            // A launch under way has a place for it.
            (Facts { launching: 1, ..Facts::default() }, house, ample, Admission::Wait(GUESS_COLD)),
            // A full line, and one that another function fills.
            (
                Facts { waiting: 5, ..known },
                House { waiting: 32, ..roomy },
                ample,
                Admission::Refuse(Full::Line, 30 * MS),
            ),
            (known, House { waiting: 32, ..roomy }, ample, Admission::Wait(5 * MS)),
            (known, House { waiting: 64, ..roomy }, ample, Admission::Refuse(Full::Line, 5 * MS)),
        ] {
            assert_eq!(admit(&facts, &house, remaining), expected, "{facts:?} {house:?}");
        }
    }
}
