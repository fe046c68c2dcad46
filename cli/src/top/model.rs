//! What is known of all balancers, and what a screen shows of it: rows, with rates made of the counters of the last seconds.
//!
//! A fleet is the same to all of its balancers, and each knows its own calls: runners and containers are taken from whoever heard of them
//! last, calls are added up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use stoker_core::histogram::{self, BINS};
use stoker_proto::convert;
use stoker_proto::v1::{self, LinkState, RunnerState};
use tokio::time::Instant;

use super::feed::What;

/// Rates are of the calls of so long.
const WINDOW: Duration = Duration::from_secs(5);

/// One balancer.
struct Server {
    url: String,
    state: State,
    /// The last pictures, as long as they are needed for rates; all of one life.
    seen: VecDeque<Arc<v1::WatchActivityResponse>>,
    heard: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Asked,
    Live,
    /// Why, since when, and when it is asked again.
    Lost {
        why: String,
        since: Instant,
        again: Option<Instant>,
    },
}

/// What became of calls within a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Gain {
    /// Calls a second; nothing where it cannot be known yet.
    pub rate: Option<f64>,
    pub calls: u64,
    /// By the caller's, the function's and the platform's fault.
    pub failed: [u64; 3],
    pub cold: u64,
    pub times: Box<[u64; BINS]>,
}

impl Default for Gain {
    fn default() -> Self {
        Self { rate: None, calls: 0, failed: [0; 3], cold: 0, times: Box::new([0; BINS]) }
    }
}

impl Gain {
    /// Adds what one balancer counted between two pictures.
    fn add(&mut self, now: &v1::CallTally, old: Option<&v1::CallTally>, span: Duration) {
        let Some(old) = old else { return };
        if span.is_zero() || now.calls < old.calls {
            return;
        }
        let calls = now.calls - old.calls;
        self.calls += calls;
        *self.rate.get_or_insert_default() += calls as f64 / span.as_secs_f64();
        let failed =
            |tally: &v1::CallTally| [tally.caller_errors, tally.function_errors, tally.platform_errors];
        for (sum, (now, old)) in self.failed.iter_mut().zip(failed(now).into_iter().zip(failed(old))) {
            *sum += now.saturating_sub(old);
        }
        self.cold += now.cold.saturating_sub(old.cold);
        for (bin, count) in now.slots.iter().zip(&now.counts) {
            if let Some(sum) = self.times.get_mut(*bin as usize) {
                *sum += count;
            }
        }
        for (bin, count) in old.slots.iter().zip(&old.counts) {
            if let Some(sum) = self.times.get_mut(*bin as usize) {
                *sum = sum.saturating_sub(*count);
            }
        }
    }

    /// In microseconds.
    pub fn percentile(&self, part: f64) -> Option<u64> {
        histogram::percentile(&*self.times, part)
    }

    /// Of the calls.
    pub fn share(&self, of: u64) -> Option<f64> {
        (self.calls > 0).then(|| of as f64 / self.calls as f64)
    }

    pub fn errors(&self) -> u64 {
        self.failed.iter().sum()
    }
}

/// What a runner holds of something: at work, by idle containers, and in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub busy: u64,
    pub idle: u64,
    pub total: u64,
}

#[derive(Debug, Clone)]
pub struct BalancerRow {
    /// Its name, or where it was looked for if it was never reached.
    pub name: String,
    pub url: String,
    pub state: State,
    pub gain: Gain,
    pub activity: v1::BalancerActivity,
    /// Calls for later that end a second.
    pub later: Option<f64>,
    /// Calls that leave without a runner, a second.
    pub unserved: Option<f64>,
}

#[derive(Debug, Clone)]
pub struct RunnerRow {
    pub name: String,
    pub state: &'static str,
    pub reason: String,
    pub memory: Held,
    pub cpu: Held,
    pub slots: Held,
    pub idle: u32,
    pub busy: u32,
    pub rate: Option<f64>,
    /// How long ago it spoke.
    pub age: Duration,
    pub capacity: v1::Capacity,
}

#[derive(Debug, Clone)]
pub struct FunctionRow {
    pub name: String,
    pub gain: Gain,
    pub idle: u32,
    pub busy: u32,
    pub waiting: u32,
    pub runners: u32,
    pub format: String,
    pub memory: u64,
    /// Since the balancers started.
    pub calls: u64,
}

/// Everything that a screen shows.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    pub balancers: Vec<BalancerRow>,
    pub runners: Vec<RunnerRow>,
    pub functions: Vec<FunctionRow>,
    pub total: Gain,
    /// Of what the rates are.
    pub window: Duration,
    pub left_out: u32,
    pub zones: Vec<v1::ZoneCapacity>,
}

/// See the module.
pub struct Model {
    servers: Vec<Server>,
}

impl Model {
    pub fn new(servers: &[String]) -> Self {
        let now = Instant::now();
        let server = |url: &String| Server {
            url: url.clone(),
            state: State::Asked,
            seen: VecDeque::new(),
            heard: now,
        };
        Self { servers: servers.iter().map(server).collect() }
    }

    /// Takes news of one of them.
    pub fn hear(&mut self, at: usize, what: What, now: Instant) {
        let Some(server) = self.servers.get_mut(at) else { return };
        match what {
            What::Heard(picture) => {
                let instance =
                    |picture: &v1::WatchActivityResponse| picture.balancer.as_ref().map(|b| b.instance);
                if server.seen.back().is_some_and(|last| instance(last) != instance(&picture)) {
                    server.seen.clear();
                }
                server.seen.push_back(picture);
                let up = |at: usize| server.seen.get(at).map(|picture| up(picture)).unwrap_or_default();
                let last = up(server.seen.len() - 1);
                let spare =
                    (1..server.seen.len() - 1).rev().find(|at| last.saturating_sub(up(*at)) >= WINDOW);
                server.seen.drain(..spare.unwrap_or(0));
                (server.state, server.heard) = (State::Live, now);
            }
            What::Lost(failure, again) => {
                let since = match &server.state {
                    State::Lost { since, .. } => *since,
                    State::Asked | State::Live => now,
                };
                server.state = State::Lost { why: failure.what().to_owned(), since, again };
            }
        }
    }

    /// Whether each has been heard of, for good or bad.
    pub fn asked_all(&self) -> bool {
        self.servers.iter().all(|server| server.state != State::Asked)
    }

    /// Whether none of them is there.
    pub fn lost_all(&self) -> bool {
        self.servers.iter().all(|server| matches!(server.state, State::Lost { .. }))
    }

    /// Whether there are rates of all that are there.
    pub fn has_rates(&self) -> bool {
        let live = self.servers.iter().filter(|server| server.state == State::Live);
        live.map(|server| server.seen.len()).min().is_some_and(|seen| seen > 1)
    }

    /// What there is to see. `now` tells how old it is.
    pub fn picture(&self, now: Instant) -> Picture {
        let mut picture = Picture::default();
        // Two of one name, at two addresses, are two.
        let mut runners = BTreeMap::<(String, String), RunnerRow>::new();
        let mut functions = BTreeMap::<String, FunctionRow>::new();
        for server in &self.servers {
            let span = server.span();
            picture.balancers.push(server.row(span));
            // What a balancer that is gone said last is neither how things are nor how fast they go.
            let (State::Live, Some(last)) = (&server.state, server.seen.back()) else { continue };
            let old = server.seen.front().filter(|_| server.seen.len() > 1);
            picture.window = picture.window.max(span);
            picture.left_out = picture.left_out.max(last.functions_left_out);
            picture.zones = last.zones.clone();
            let balancer = |picture: &v1::WatchActivityResponse| {
                picture.balancer.as_ref().and_then(|balancer| balancer.calls.clone())
            };
            picture.total.add(
                &balancer(last).unwrap_or_default(),
                old.and_then(|old| balancer(old)).as_ref(),
                span,
            );
            for activity in &last.runners {
                let row = runner(activity, now.saturating_duration_since(server.heard));
                let was = old.and_then(|old| old.runners.iter().find(|other| is(other, &row)));
                let rate = was.and_then(|was| per_second(activity.calls, was.calls, span));
                let key = (row.name.clone(), row.capacity.address.clone());
                match runners.get_mut(&key) {
                    None => _ = runners.insert(key, RunnerRow { rate, ..row }),
                    Some(known) => {
                        let sum = known.rate.zip(rate).map(|(a, b)| a + b).or(known.rate).or(rate);
                        // Who is connected knows best, and of those who heard last.
                        if (row.state != "ready", row.age) < (known.state != "ready", known.age) {
                            *known = row;
                        }
                        known.rate = sum;
                    }
                }
            }
            for activity in &last.functions {
                let row = functions.entry(activity.function.clone()).or_insert_with(|| FunctionRow {
                    name: activity.function.clone(),
                    gain: Gain::default(),
                    idle: 0,
                    busy: 0,
                    waiting: 0,
                    runners: 0,
                    format: activity.format.clone(),
                    memory: activity.memory,
                    calls: 0,
                });
                let tally = activity.calls.clone().unwrap_or_default();
                let nothing = v1::CallTally::default();
                let was = old.and_then(|old| match old.functions.iter().find(|f| f.function == row.name) {
                    Some(was) => was.calls.as_ref(),
                    // It is new, unless it was only left out.
                    None => (old.functions_left_out == 0).then_some(&nothing),
                });
                row.gain.add(&tally, was, span);
                row.calls += tally.calls;
                // The same containers, each time.
                row.idle = row.idle.max(activity.idle);
                row.busy = row.busy.max(activity.busy);
                row.waiting = row.waiting.max(activity.waiting);
                row.runners = row.runners.max(activity.runners);
            }
        }
        picture.runners = runners.into_values().collect();
        tell_apart(&mut picture.runners);
        picture.functions = functions.into_values().collect();
        picture
    }
}

impl Server {
    /// Between the oldest and the newest of what is known.
    fn span(&self) -> Duration {
        let [old, new] = [self.seen.front(), self.seen.back()].map(|p| p.map(|p| up(p)).unwrap_or_default());
        new.saturating_sub(old)
    }

    fn row(&self, span: Duration) -> BalancerRow {
        let of = |picture: Option<&Arc<v1::WatchActivityResponse>>| {
            picture.and_then(|picture| picture.balancer.clone()).unwrap_or_default()
        };
        let (old, activity) = (of(self.seen.front()), of(self.seen.back()));
        let mut gain = Gain::default();
        let (mut later, mut unserved) = (None, None);
        if self.seen.len() > 1 && self.state == State::Live {
            gain.add(&activity.calls.clone().unwrap_or_default(), Some(&old.calls.unwrap_or_default()), span);
            let ended = activity.later.as_ref().zip(old.later.as_ref());
            later = ended.and_then(|(now, old)| per_second(now.ended, old.ended, span));
            unserved = per_second(activity.unserved, old.unserved, span);
        }
        BalancerRow {
            name: if activity.name.is_empty() { self.url.clone() } else { activity.name.clone() },
            url: self.url.clone(),
            state: self.state.clone(),
            gain,
            activity,
            later,
            unserved,
        }
    }
}

fn up(picture: &v1::WatchActivityResponse) -> Duration {
    picture.balancer.as_ref().and_then(|balancer| balancer.up).map(convert::duration).unwrap_or_default()
}

fn per_second(now: u64, old: u64, span: Duration) -> Option<f64> {
    (!span.is_zero() && now >= old).then(|| (now - old) as f64 / span.as_secs_f64())
}

fn is(activity: &v1::RunnerActivity, row: &RunnerRow) -> bool {
    let capacity = activity.runner.as_ref().and_then(|runner| runner.capacity.as_ref());
    capacity.is_some_and(|known| known.runner == row.capacity.runner && known.address == row.capacity.address)
}

/// Where two have one name, that alone would not say which is which. They stand in the order of their names.
fn tell_apart(runners: &mut [RunnerRow]) {
    for named in runners.chunk_by_mut(|one, other| one.capacity.runner == other.capacity.runner) {
        if named.len() > 1 {
            for row in named {
                let address = &row.capacity.address;
                let place = address.split_once("://").map_or(address.as_str(), |(_, place)| place);
                row.name = format!("{} {place}", row.name);
            }
        }
    }
}

fn runner(activity: &v1::RunnerActivity, since: Duration) -> RunnerRow {
    let runner = activity.runner.clone().unwrap_or_default();
    let link = runner.link();
    let capacity = runner.capacity.unwrap_or_default();
    let state = match link {
        LinkState::Ready if capacity.state() == RunnerState::Draining => "draining",
        LinkState::Ready => "ready",
        LinkState::Draining => "draining",
        LinkState::Lost => "lost",
        LinkState::Connecting | LinkState::Unspecified => "connecting",
    };
    let (total, free, idle) = (
        capacity.total.unwrap_or_default(),
        capacity.free.unwrap_or_default(),
        capacity.reclaimable.unwrap_or_default(),
    );
    let held = |of: fn(&v1::Resources) -> u64| Held {
        busy: of(&total).saturating_sub(of(&free)).saturating_sub(of(&idle)),
        idle: of(&idle),
        total: of(&total),
    };
    let sum = |of: fn(&v1::Warmth) -> u32| capacity.functions.iter().map(of).fold(0, u32::saturating_add);
    RunnerRow {
        name: capacity.runner.clone(),
        state,
        reason: runner.reason,
        memory: held(|r| r.memory),
        cpu: held(|r| u64::from(r.cpu_millis)),
        slots: held(|r| u64::from(r.slots)),
        idle: sum(|w| w.idle),
        busy: sum(|w| w.busy),
        rate: None,
        age: runner.age.map(convert::duration).unwrap_or_default() + since,
        capacity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    fn tally(calls: u64, slow: u64) -> v1::CallTally {
        let slots = vec![10, 60];
        v1::CallTally {
            calls: calls + slow,
            slots,
            counts: vec![calls, slow],
            cold: slow,
            ..Default::default()
        }
    }

    fn told(instance: u64, up: u64, calls: u64, age: u64) -> What {
        let capacity = v1::Capacity {
            runner: "r1".into(),
            total: Some(v1::Resources { memory: 100, cpu_millis: 4000, slots: 8 }),
            free: Some(v1::Resources { memory: 50, cpu_millis: 3000, slots: 4 }),
            reclaimable: Some(v1::Resources { memory: 20, cpu_millis: 0, slots: 2 }),
            sequence: up,
            ..Default::default()
        };
        let runner = v1::RunnerDescription {
            capacity: Some(capacity),
            link: LinkState::Ready.into(),
            age: Some(convert::to_duration(Duration::from_secs(age))),
            ..Default::default()
        };
        What::Heard(Arc::new(v1::WatchActivityResponse {
            balancer: Some(v1::BalancerActivity {
                name: "b".into(),
                instance,
                up: Some(convert::to_duration(Duration::from_secs(up))),
                calls: Some(tally(calls, calls / 10)),
                ..Default::default()
            }),
            runners: vec![v1::RunnerActivity { runner: Some(runner), calls, in_flight: 0 }],
            functions: vec![v1::FunctionActivity {
                function: "a/f".into(),
                calls: Some(tally(calls, calls / 10)),
                idle: 2,
                ..Default::default()
            }],
            ..Default::default()
        }))
    }

    fn model(servers: usize) -> Model {
        Model::new(&(0..servers).map(|n| format!("http://b{n}")).collect::<Vec<_>>())
    }

    #[tokio::test]
    async fn rates_are_of_the_last_seconds() {
        let (mut model, now) = (model(1), Instant::now());
        model.hear(0, told(1, 100, 1_000, 0), now);
        assert_eq!(model.picture(now).total.rate, None, "one moment has no rate");
        assert!(!model.has_rates());
        for up in 1..=10 {
            model.hear(0, told(1, 100 + up, 1_000 + 100 * up, 0), now);
        }
        let picture = model.picture(now);
        assert_eq!((picture.window, picture.total.rate), (Duration::from_secs(5), Some(110.0)));
        let row = &picture.functions[0];
        assert_eq!((row.gain.calls, row.gain.cold, row.calls, row.idle), (550, 50, 2_200, 2));
        assert_eq!(row.gain.percentile(0.5), Some(histogram::middle(10)));
        assert_eq!(row.gain.percentile(0.99), Some(histogram::middle(60)));
        let runner = &picture.runners[0];
        assert_eq!((runner.rate, runner.memory), (Some(100.0), Held { busy: 30, idle: 20, total: 100 }));
    }

    #[tokio::test]
    async fn a_balancer_that_began_anew_is_not_counted_backwards() {
        let (mut model, now) = (model(1), Instant::now());
        model.hear(0, told(1, 100, 1_000, 0), now);
        model.hear(0, told(2, 1, 10, 0), now);
        assert_eq!(model.picture(now).total.rate, None);
        model.hear(0, told(2, 2, 30, 0), now);
        assert_eq!(model.picture(now).total.rate, Some(22.0));
    }

    /// Each with its own rate, and a name that says which it is.
    #[tokio::test]
    async fn two_runners_of_one_name_are_two() {
        let (mut model, now) = (model(1), Instant::now());
        for up in [100, 101] {
            let What::Heard(heard) = told(1, up, 0, 0) else { unreachable!("it is what was heard") };
            let mut heard = Arc::unwrap_or_clone(heard);
            heard.runners = [(1, 100), (2, 300)]
                .map(|(host, rate)| {
                    let mut activity = heard.runners[0].clone();
                    activity.calls = up * rate;
                    let capacity = activity.runner.as_mut().and_then(|runner| runner.capacity.as_mut());
                    capacity.expect("it was told").address = format!("http://10.0.0.{host}:7080");
                    activity
                })
                .into();
            model.hear(0, What::Heard(Arc::new(heard)), now);
        }
        let runners = model.picture(now).runners;
        let rows: Vec<_> = runners.iter().map(|row| (row.name.as_str(), row.rate)).collect();
        assert_eq!(rows, [("r1 10.0.0.1:7080", Some(100.0)), ("r1 10.0.0.2:7080", Some(300.0))]);
    }

    #[tokio::test]
    async fn calls_of_several_are_added_and_their_fleet_is_one() {
        let (mut model, now) = (model(2), Instant::now());
        for (at, age) in [(0, 3), (1, 1)] {
            assert!(!model.asked_all());
            model.hear(at, told(1, 100, 100, age), now);
            model.hear(at, told(1, 101, 200, age), now);
        }
        let picture = model.picture(now + Duration::from_secs(1));
        assert_eq!((picture.total.rate, picture.runners.len(), picture.functions.len()), (Some(220.0), 1, 1));
        assert_eq!((picture.runners[0].rate, picture.runners[0].age), (Some(200.0), Duration::from_secs(2)));
        assert_eq!((picture.functions[0].idle, picture.functions[0].calls), (2, 440));
        // One goes: its calls are none of this moment, and it says so.
        model.hear(0, What::Lost(Failure::away("it stopped", ""), None), now);
        let picture = model.picture(now);
        assert_eq!((picture.total.rate, picture.balancers[0].gain.rate), (Some(110.0), None));
        assert!(matches!(&picture.balancers[0].state, State::Lost { why, .. } if why == "it stopped"));
        assert!(!model.lost_all() && model.has_rates());
        model.hear(1, What::Lost(Failure::away("so did it", ""), None), now);
        assert!(model.lost_all() && model.picture(now).runners.is_empty());
    }
}
