//! What a runner does with a call for which no container is free: whether it waits here at all, whether a container is
//! launched for it, and whose turn it is.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use stoker_core::resources::{Ask, Resources};

/// What a function takes before anything was measured: only for what is told to others, never a reason not to launch. An interpreter with its
/// libraries starts in about the first, and most functions that wait for a store of some kind answer within the second.
const GUESS_COLD: Duration = Duration::from_millis(200);
const GUESS_CALL: Duration = Duration::from_millis(50);

/// A wait as short as this is worth no refusal: a round trip to the next runner (0.6 ms, and as much on its way back), and there another line to look at.
const SHORT: Duration = Duration::from_millis(5);

/// Calls of a function that may wait for twice as long as others: enough to get its turn, whatever others have waiting. In the
/// model a fleet at load 0.8 whose launches take CPU needs them: without them its calls are offered three times each, and the 99th
/// percentile of what is added to them is 10 s instead of 0.6.
const CLAIMS: u32 = 2;

/// A line that stands for so many launches without a break is worth a container where there is room for one: who calls again at once pays
/// the wait at every call, however short it is, and a launch is paid once. Each launch gives the line as long again to show what it needs.
const LASTING: u32 = 3;

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
    /// How long there was always somebody in the line, or since the last launch that was made in that time.
    pub standing: Duration,
    /// The first in line has waited longer than a launch takes: the estimates were too hopeful.
    pub overdue: bool,
}

/// Whether a line that was empty for a while goes on with one who joins it, and who `waited` in its balancer's queue before. Where a runner lets in
/// one of those at a time, what stands there is the line. Of another time is what comes later than a launch takes.
#[must_use]
pub fn goes_on(waited: bool, gap: Duration, cold: Duration) -> bool {
    waited && gap < cold
}

impl Facts {
    /// Somebody has stood in the line for so long without a break that it will not end by itself.
    #[must_use]
    pub fn lasts(&self) -> bool {
        self.standing > self.cold * LASTING
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// A slot frees up sooner than a launch would be done, or a launch that already runs will serve it.
    Wait,
    /// Launch. The call still takes whichever comes first.
    Launch,
    /// Launch where there is room, at nobody's cost but of those who hold [more](crate::shares): this call is served soon, and so were those
    /// before it, yet the line never ends.
    LaunchBeside,
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
        Some(wait) if wait < facts.cold && !facts.overdue => {
            if facts.launching == 0 && facts.lasts() {
                Decision::LaunchBeside
            } else {
                Decision::Wait
            }
        }
        _ => Decision::Launch,
    }
}

/// Launches may have one in so many of a runner's slots, and of its cores: three quarters are left to the calls that run, which hold what all others wait for.
const PART: u32 = 4;

/// Launches that may run at once however small the runner is: a function that takes long to come up must not hold up all others (in the model one
/// alone ends in the same storm).
const LEAST_LAUNCHES: u32 = 2;

/// Launches that a core can have under way. A start that computes needs one for itself; most wait for a disk or a network for
/// some of their time.
const PER_CORE: u32 = 4;

/// How many launches may run at once on a runner of this size, seen by a function that would like one more: a quarter of the
/// containers, and no more than would take a quarter of the CPU if all were like its own. More of them starve the calls that run,
/// which then hold what others wait for, and the fleet collapses into retries. Never fewer than [`LEAST_LAUNCHES`].
#[must_use]
pub fn cap(total: &Resources, ask: &Ask) -> u32 {
    let cores = total.cpu_millis.div_ceil(1000).saturating_mul(PER_CORE);
    let cpu = (total.cpu_millis / PART).checked_div(ask.cpu_millis).unwrap_or(u32::MAX);
    total.slots.div_ceil(PART).min(cores).min(cpu).max(LEAST_LAUNCHES)
}

/// How many calls of a function that asks for `ask` could run at once on a runner of this size.
#[must_use]
pub fn width(total: &Resources, ask: &Ask) -> u32 {
    total.slots.min(total.cpu_millis.checked_div(ask.cpu_millis).unwrap_or(u32::MAX)).max(1)
}

/// Calls that may wait on a runner for each that can run there, and however few can. The last of four times as many waits for four calls, which is
/// half a launch of 500 ms where they take 60: longer lines would hold none but calls that wait longer than is worth it. A small runner must not
/// refuse what a handful of clients send at once.
const LINE: (u32, u32) = (4, 16);

/// How many calls may wait on a runner on which so many can run at once. Those beyond are better off in the balancer's queue,
/// which can place them anywhere.
#[must_use]
pub fn line(width: u32) -> u32 {
    width.saturating_mul(LINE.0).max(LINE.1)
}

/// How long one that joins waits for CPU, where others have it all: `waiting` calls ahead of it, and `running` ones that take
/// `mean_call` each.
#[must_use]
pub fn turn(waiting: u32, running: u32, mean_call: Duration) -> Duration {
    mean_call.mul_f64(f64::from(waiting + 1) / f64::from(running.max(1)))
}

/// What a runner knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerLoad {
    /// Calls of this function that could run at once, as [`width`] says.
    pub width: u32,
    /// Launches that may run at once, as [`cap`] says for this function.
    pub cap: u32,
    /// Calls of all functions that wait.
    pub waiting: u32,
    /// Launches of all functions that run.
    pub launching: u32,
    /// Until there is CPU for one more call, as [`turn`] says; nothing if there is now.
    pub turn: Duration,
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
pub fn admit(facts: &Facts, load: &RunnerLoad, remaining: Duration) -> Admission {
    let or = |known: Duration, guess| if known.is_zero() { guess } else { known };
    let (cold, call) = (or(facts.cold, GUESS_COLD), or(facts.mean_call, GUESS_CALL));
    // Launches beyond the cap wait for those before them.
    let rounds = (load.launching + load.waiting) / load.cap.max(1);
    let launch = cold + cold * rounds;
    let holding = facts.serving + facts.launching;
    let queue = match (facts.waiting + 1).saturating_sub(facts.launching) {
        0 => cold,
        ahead => call.mul_f64(f64::from(ahead) / f64::from(holding.max(1))),
    };
    // A busy container is worth waiting for half a launch: it is one of several places where a call may start, and a call that waits
    // in a long line is the one that its caller notices. It is CPU as well that has to be free.
    let soon = (cold / 2).max(SHORT);
    let queue = queue.max(load.turn);
    let (expected, worth) = match (holding, load.room) {
        (0, true) => (launch, true),
        (0, false) => (queue.max(cold), false),
        // One that would be launched at once is as good here as elsewhere.
        (_, true) => (queue.min(launch), queue <= soon || launch <= cold),
        (_, false) => (queue, queue <= soon),
    };
    let worth = worth || (facts.waiting < CLAIMS && expected <= cold.max(2 * SHORT));
    let line = line(load.width);
    // A function with hardly anyone in the line gets in behind one that fills it.
    let open = load.waiting < line || (facts.waiting < CLAIMS && load.waiting < line.saturating_mul(2));
    match (open, worth) {
        (false, _) => Admission::Refuse(Full::Line, expected),
        (_, false) => Admission::Refuse(Full::Slow, expected),
        _ if expected > remaining => Admission::Refuse(Full::Late, expected),
        _ => Admission::Wait(expected),
    }
}

/// A function whose calls wait, as it is compared with others when something has become free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingFunction {
    /// Its app.
    pub app: WaitingApp,
    /// Since when its first call waits.
    pub since: Instant,
    /// What it has already: calls that run, and launches.
    pub held: u32,
    /// Its first call has waited longer than a launch takes.
    pub overdue: bool,
}

/// An app, as it is compared with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitingApp {
    /// What its calls that run and its launches are [of the runner](crate::shares::part).
    pub held: u64,
    /// With one more it would have more than an equal part.
    pub over: bool,
    /// When one of its calls was served last out of the line: grows from one to the next over the whole runner.
    pub served: u64,
}

impl WaitingFunction {
    /// Who goes first: whoever has waited too long, the longest first, unless its app has its part of the runner; then the app that has least, so
    /// that one with many functions has no more than one with a single one, and of equals the one that was served longest ago; within the app whoever
    /// has waited too long, then who has least, so that a function that fills the runner does not keep out one that wants a
    /// single container; then who waits longest.
    #[must_use]
    pub fn order(&self, other: &Self) -> Ordering {
        let first = |one: &Self| one.overdue && !one.app.over;
        let app = |one: &Self| if first(one) { (0, 0) } else { (one.app.held, one.app.served) };
        let held = |one: &Self| if one.overdue { 0 } else { one.held };
        first(other)
            .cmp(&first(self))
            .then(app(self).cmp(&app(other)))
            .then(other.overdue.cmp(&self.overdue))
            .then(held(self).cmp(&held(other)))
            .then(self.since.cmp(&other.since))
    }
}

/// What a value that is new counts in a [`Mean`].
const NEW: f64 = 0.2;

/// A mean that forgets: each value counts for a fifth of what is known by then, so that a handful of calls after a change of load
/// are enough to see it and one odd call is not.
#[derive(Debug, Default, Clone, Copy)]
pub struct Mean(Option<f64>);

impl Mean {
    /// Observed once more.
    pub fn add(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        self.0 = Some(self.0.map_or(value, |old| old * (1.0 - NEW) + value * NEW));
    }

    /// Zero if nothing was observed.
    #[must_use]
    pub fn get(self) -> Duration {
        self.0.map_or(Duration::ZERO, Duration::from_secs_f64)
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
    fn a_line_that_does_not_end_is_worth_one_launch_at_a_time() {
        let facts = Facts { serving: 1, waiting: 15, mean_call: MS, cold: 50 * MS, ..Facts::default() };
        assert_eq!(decide(&Facts { standing: 150 * MS, ..facts }), Decision::Wait);
        assert_eq!(decide(&Facts { standing: 151 * MS, ..facts }), Decision::LaunchBeside);
        assert_eq!(decide(&Facts { standing: 151 * MS, launching: 1, ..facts }), Decision::Wait);
        // Where the wait alone is worth it, room is made for it.
        assert_eq!(decide(&Facts { standing: 151 * MS, waiting: 50, ..facts }), Decision::Launch);
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
        let capped = |slots, cpu_millis, ask| {
            cap(&Resources { memory: 0, cpu_millis, slots }, &Ask { memory: 0, cpu_millis: ask })
        };
        assert_eq!([1, 4, 5, 16, 100].map(|slots| capped(slots, 64_000, 0)), [2, 2, 2, 4, 25]);
        // Of many small slots the cores are the bound, and of functions that ask for them their share.
        assert_eq!([0, 100, 1000, 16_000].map(|ask| capped(1000, 16_000, ask)), [64, 40, 4, 2]);
        assert_eq!((capped(0, 0, 0), line(0), line(100)), (2, 16, 400));
        let size = Resources { memory: 0, cpu_millis: 16_000, slots: 1000 };
        let wide = |cpu_millis| width(&size, &Ask { memory: 0, cpu_millis });
        assert_eq!([0, 250, 1000, 99_000].map(wide), [1000, 64, 16, 1]);
    }

    #[test]
    fn who_has_least_goes_first_unless_one_waits_too_long() {
        let now = Instant::now();
        let app = WaitingApp { held: 5, over: false, served: 1 };
        let small = WaitingFunction { app, since: now + 5 * MS, held: 0, overdue: false };
        let old = WaitingFunction { since: now, ..small };
        let greedy = WaitingFunction { since: now, held: 9, ..small };
        let late = WaitingFunction { since: now + MS, held: 9, overdue: true, ..small };
        let mut all = [greedy, small, late, old];
        all.sort_by(WaitingFunction::order);
        assert_eq!(all, [late, old, small, greedy]);
    }

    #[test]
    fn an_app_with_its_part_has_no_turn_before_one_with_less() {
        let now = Instant::now();
        let app = WaitingApp { held: 2, over: false, served: 7 };
        let few = WaitingFunction { app, since: now + 9 * MS, held: 2, overdue: false };
        let many =
            WaitingFunction { app: WaitingApp { held: 3, ..app }, since: now, held: 1, overdue: false };
        let over = WaitingFunction { app: WaitingApp { held: 6, over: true, ..app }, overdue: true, ..many };
        // One that has less than it may have, and waits too long.
        let late = WaitingFunction { app: WaitingApp { held: 4, ..app }, overdue: true, ..many };
        let mut all = [over, many, few, late];
        all.sort_by(WaitingFunction::order);
        assert_eq!(all, [late, few, many, over]);
        // Of equals: turns of apps, and within one who waits too long.
        let app = WaitingApp { held: 6, over: true, served: 8 };
        let next = WaitingFunction {
            app: WaitingApp { served: 6, ..app },
            since: now + MS,
            held: 6,
            overdue: false,
        };
        let (late, other) = (WaitingFunction { app, overdue: true, ..many }, WaitingFunction { app, ..few });
        let mut all = [other, late, next];
        all.sort_by(WaitingFunction::order);
        assert_eq!(all, [next, late, other]);
    }

    #[test]
    fn a_mean_follows_what_it_sees() {
        let mut mean = Mean::default();
        assert_eq!(mean.get(), Duration::ZERO);
        mean.add(100 * MS);
        assert_eq!(mean.get(), 100 * MS);
        (0..30).for_each(|_| mean.add(10 * MS));
        assert!(mean.get() < 11 * MS);
    }

    #[test]
    fn a_call_waits_where_it_is_served_in_time() {
        let known = Facts { serving: 2, mean_call: 10 * MS, cold: 50 * MS, ..Facts::default() };
        let load =
            RunnerLoad { width: 8, cap: 2, waiting: 0, launching: 0, turn: Duration::ZERO, room: false };
        let roomy = RunnerLoad { room: true, ..load };
        let ample = Duration::from_secs(10);
        for (facts, load, remaining, expected) in [
            (known, load, ample, Admission::Wait(5 * MS)),
            (Facts { waiting: 4, ..known }, load, ample, Admission::Wait(25 * MS)),
            (Facts { waiting: 5, ..known }, load, ample, Admission::Refuse(Full::Slow, 30 * MS)),
            // A claim waits for twice as long.
            (Facts { serving: 1, mean_call: 50 * MS, ..known }, load, ample, Admission::Wait(50 * MS)),
            // One that would be launched at once may as well be launched here.
            (Facts { waiting: 19, ..known }, roomy, ample, Admission::Wait(50 * MS)),
            (
                Facts { waiting: 19, ..known },
                RunnerLoad { launching: 2, ..roomy },
                ample,
                Admission::Refuse(Full::Slow, 100 * MS),
            ),
            // A wait of a few milliseconds is worth no refusal.
            (Facts { waiting: 3, mean_call: MS, cold: MS, ..known }, load, ample, Admission::Wait(2 * MS)),
            (known, load, 4 * MS, Admission::Refuse(Full::Late, 5 * MS)),
            // Nothing of it here: a launch, behind those that run already.
            (Facts { serving: 0, ..known }, roomy, ample, Admission::Wait(50 * MS)),
            (
                Facts { serving: 0, ..known },
                RunnerLoad { launching: 4, ..roomy },
                ample,
                Admission::Wait(150 * MS),
            ),
            // Nor any room: it may claim its turn, twice.
            (Facts::default(), load, ample, Admission::Wait(GUESS_COLD)),
            (
                Facts { waiting: 2, ..Facts::default() },
                load,
                ample,
                Admission::Refuse(Full::Slow, GUESS_COLD),
            ),
            // A launch under way has a place for it.
            (Facts { launching: 1, ..Facts::default() }, load, ample, Admission::Wait(GUESS_COLD)),
            // A full line, and one that another function fills.
            (
                Facts { waiting: 5, ..known },
                RunnerLoad { waiting: 32, ..roomy },
                ample,
                Admission::Refuse(Full::Line, 30 * MS),
            ),
            (known, RunnerLoad { waiting: 32, ..roomy }, ample, Admission::Wait(5 * MS)),
            (known, RunnerLoad { waiting: 64, ..roomy }, ample, Admission::Refuse(Full::Line, 5 * MS)),
        ] {
            assert_eq!(admit(&facts, &load, remaining), expected, "{facts:?} {load:?}");
        }
    }
}
