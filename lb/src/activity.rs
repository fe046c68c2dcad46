//! What the fleet and this balancer do, for those who watch: counters of calls, and one picture of everything, made when somebody
//! looks and shared by all who look at about that time.
//!
//! Counters are the same that metrics show ([`Tally`]): a call pays for them once. Rates and percentiles are made by whoever watches, from two
//! pictures: here nothing runs while nobody does.

mod tally;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stoker_proto::{convert, v1};

pub use self::tally::{Numbers, OUTCOMES, Tally};
use crate::front::Front;
use crate::scaling;

/// Most functions in a picture.
pub const FUNCTIONS: usize = 200;

/// A picture is shown to all who look before it is so old.
const FRESH: Duration = Duration::from_millis(200);

/// Of one balancer.
pub struct Activity {
    began: Instant,
    last: Mutex<Option<(Instant, Arc<v1::WatchActivityResponse>)>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), last: Mutex::default() }
    }
}

impl Activity {
    /// Everything, as it is now or was a moment ago.
    pub fn now(&self, front: &Front) -> Arc<v1::WatchActivityResponse> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, picture)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return picture.clone();
        }
        let picture = Arc::new(self.look(front));
        *last = Some((now, picture.clone()));
        picture
    }

    fn look(&self, front: &Front) -> v1::WatchActivityResponse {
        let fleet = &front.dispatch.fleet;
        let (functions, left_out) = functions(front);
        v1::WatchActivityResponse {
            balancer: Some(v1::BalancerActivity {
                name: fleet.name.clone(),
                instance: fleet.instance,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                up: Some(convert::to_duration(self.began.elapsed())),
                calls: Some(front.observer.total()),
                in_flight: small(front.admission.inside()),
                queued: small(fleet.queue.len()),
                queued_bytes: fleet.queue.bytes() as u64,
                unserved: fleet.unserved(),
                later: front.later.activity(),
            }),
            runners: fleet
                .runners()
                .iter()
                .map(|runner| v1::RunnerActivity {
                    runner: Some(runner.describe()),
                    calls: runner.calls(),
                    in_flight: runner.in_flight(),
                })
                .collect(),
            functions,
            functions_left_out: small(left_out),
            zones: scaling::describe(&fleet.wanted.load()),
        }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The busiest functions, and how many others there are.
fn functions(front: &Front) -> (Vec<v1::FunctionActivity>, usize) {
    #[derive(Default, Clone, Copy)]
    struct Warm {
        idle: u32,
        busy: u32,
        waiting: u32,
        runners: u32,
    }
    let all = front.directory.all();
    // Whose a version is: asked once for each that a runner has, in place of once for each that there is.
    let whose: HashMap<_, _> = all
        .iter()
        .enumerate()
        .flat_map(|(at, known)| known.versions().into_iter().map(move |version| (version.digest, at)))
        .collect();
    let mut warm = vec![Warm::default(); all.len()];
    for runner in front.dispatch.fleet.runners().iter() {
        for (digest, warmth) in &runner.capacity().0.functions {
            let Some(warm) = whose.get(digest).and_then(|at| warm.get_mut(*at)) else { continue };
            warm.idle = warm.idle.saturating_add(warmth.idle);
            warm.busy = warm.busy.saturating_add(warmth.busy);
            warm.waiting = warm.waiting.saturating_add(warmth.waiting);
            warm.runners += u32::from(warmth.idle + warmth.busy > 0);
        }
    }
    let mut order: Vec<_> = all.into_iter().zip(warm).collect();
    order.sort_by_cached_key(|(known, warm)| {
        (Reverse((known.gate.tally.rank(), warm.busy + warm.waiting, warm.idle)), known.spec.name.clone())
    });
    let left_out = order.len().saturating_sub(FUNCTIONS);
    order.truncate(FUNCTIONS);
    let told = order.into_iter().map(|(known, warm)| v1::FunctionActivity {
        function: known.spec.name.as_str().to_owned(),
        calls: Some(known.gate.tally.tell()),
        idle: warm.idle,
        busy: warm.busy,
        waiting: warm.waiting,
        runners: warm.runners,
        format: known.spec.format.as_str().to_owned(),
        memory: known.spec.memory,
    });
    (told.collect(), left_out)
}
