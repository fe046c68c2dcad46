//! Room for a container that a call waits for: which idle ones of others go.

use std::time::Duration;

use stoker_core::resources::Resources;
use stoker_policy::eviction::{Idle, Need, spoken_for, victims};

use super::{Act, Node, Rules};
use crate::scenario::RunnerPolicy;
use crate::trace::{Micros, duration};

impl Node {
    /// Ends idle containers of others until `need` fits, or none where it would not.
    pub(super) fn make_room(&mut self, own: u32, need: Resources, now: Micros, rules: &Rules) {
        let instant = rules.instant(now);
        let mut keys = Vec::new();
        let mut idle = Vec::new();
        let has = self.pools.get(&own).is_some_and(|pool| !pool.bare());
        for (function, pool) in self.pools.iter().filter(|(function, _)| **function != own) {
            let frequency = pool.frequency.at(instant);
            // The last of those that are too many went unused for longest.
            let kept = (pool.idle.len() as u32).saturating_sub(pool.surplus());
            let stay = match rules.runner_policy {
                RunnerPolicy::Stoker => spoken_for(pool.waiters.len() as u32, 1, has),
                RunnerPolicy::Plain => 0,
            };
            for (rank, resting) in (0u32..).zip(pool.idle.iter().rev()).skip(stay) {
                let age = duration(now - resting.since);
                keys.push((*function, resting.container, age));
                let (start, size) = (pool.cold.get(), pool.ask.memory);
                idle.push(Idle { frequency, start, size, rank, idle: age, kept: rank < kept });
            }
        }
        let need = Need {
            size: need.memory.saturating_sub(self.free.memory),
            count: usize::from(self.free.slots == 0),
        };
        let chosen = match rules.runner_policy {
            RunnerPolicy::Stoker => victims(&idle, need),
            RunnerPolicy::Plain => oldest(&keys, &idle, need),
        };
        let chosen = chosen.unwrap_or_default();
        if !chosen.is_empty() {
            self.acts.push(Act::Evicted { count: chosen.len() as u32 });
        }
        for at in chosen {
            let (function, container, _) = keys[at];
            self.ends(function, container);
        }
    }
}

/// The least recently used that make up for `need`.
fn oldest(keys: &[(u32, u32, Duration)], idle: &[Idle], need: Need) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*b].2.cmp(&keys[*a].2).then(a.cmp(b)));
    let (mut freed, mut chosen) = (0, Vec::new());
    for at in order {
        if freed >= need.size && chosen.len() >= need.count {
            break;
        }
        freed += idle[at].size;
        chosen.push(at);
    }
    (freed >= need.size && chosen.len() >= need.count).then_some(chosen)
}
