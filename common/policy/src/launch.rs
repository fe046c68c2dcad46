//! Whether a call waits for a container that is busy or has one launched.

use std::time::Duration;

/// What a runner knows when no idle container is there for a call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Facts {
    /// Calls of the function that wait already.
    pub waiting: u32,
    /// Calls that its running containers can hold together: containers times concurrency.
    pub serving: u32,
    /// Launches of it that run and no waiting call has claimed.
    pub launching: u32,
    /// Mean time of a call in the function; zero if unknown.
    pub mean_call: Duration,
    /// Expected time from launch to ready; zero if unknown.
    pub cold: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A slot frees up sooner than a launch would be done, or a launch that already runs will serve it.
    Wait,
    /// Launch. The call still takes whichever comes first.
    Launch,
}

/// Expected time until one of the busy containers is free for one more call.
#[must_use]
pub fn expected_wait(facts: &Facts) -> Option<Duration> {
    (facts.serving > 0 && !facts.mean_call.is_zero())
        .then(|| facts.mean_call.mul_f64(f64::from(facts.waiting + 1) / f64::from(facts.serving)))
}

/// Decides. Factor 1.0 between the two times came out best in the model; where nothing was measured yet, a launch is the
/// answer that cannot be much too slow.
#[must_use]
pub fn decide(facts: &Facts) -> Decision {
    if facts.launching > facts.waiting {
        return Decision::Wait;
    }
    match expected_wait(facts) {
        Some(wait) if wait < facts.cold => Decision::Wait,
        _ => Decision::Launch,
    }
}

/// How many launches may run at once on a runner of so many slots: a quarter. More of them starve the calls that run, and
/// the fleet collapses into retries.
#[must_use]
pub fn cap(slots: u32) -> u32 {
    slots.div_ceil(4).max(1)
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
        assert_eq!(decide(&Facts { cold: 4 * MS, ..facts }), Decision::Launch);
    }

    #[test]
    fn nothing_known_means_launch_unless_one_runs_for_it() {
        assert_eq!(decide(&Facts::default()), Decision::Launch);
        assert_eq!(decide(&Facts { launching: 1, ..Facts::default() }), Decision::Wait);
        assert_eq!(decide(&Facts { launching: 1, waiting: 1, ..Facts::default() }), Decision::Launch);
    }

    #[test]
    fn a_quarter_but_never_none() {
        assert_eq!([1, 4, 5, 16, 100].map(cap), [1, 1, 2, 4, 25]);
        assert_eq!(cap(0), 1);
    }
}
