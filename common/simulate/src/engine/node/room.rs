//! Room for a container that a call waits for: which idle ones of others go.

use std::time::Duration;

use stoker_core::resources::Resources;
use stoker_policy::eviction::{Idle, Need, spoken_for, victims};
use stoker_policy::shares::{Apps, Taking};

use super::{Act, Node, Pool, Resting, Rules};
use crate::scenario::RunnerPolicy;
use crate::trace::{Micros, duration};

/// At whose cost a container is launched, as in the runner's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cost {
    Nobodys,
    Larger,
    Anybodys,
}

impl Node {
    /// What apps have of it.
    pub(super) fn apps(&self) -> Apps {
        let here = |pool: &&Pool| !pool.bare() || !pool.waiters.is_empty();
        self.pools.values().filter(here).map(Pool::as_shared).collect()
    }

    /// Ends idle containers of others until one of `own` fits, or none where it would not. Those that work and on which it has a claim end with
    /// their calls, where one that comes free would not be enough. `true` if there is room, or will be.
    pub(super) fn make_room(&mut self, own: u32, cost: Cost, now: Micros, rules: &Rules) -> bool {
        let instant = rules.instant(now);
        let Some(taker) = self.pools.get(&own) else { return false };
        let ask = taker.ask.standing();
        let goes = |pool: &Pool| Resources {
            memory: pool.ask.memory * u64::from(pool.going),
            cpu_millis: 0,
            slots: pool.going,
        };
        let free = self
            .pools
            .values()
            .map(goes)
            .fold(self.free, |sum, goes| sum.checked_add(goes).unwrap_or(self.size));
        let missing =
            Need { size: ask.memory.saturating_sub(free.memory), count: usize::from(free.slots == 0) };
        if missing == (Need { size: 0, count: 0 }) {
            return true;
        }
        let (apps, lasts, has) =
            (self.apps(), taker.facts(taker.waiters.len(), now).lasts(), taker.standing() > 0);
        let mut taking = Taking::new(apps.holder(&taker.as_shared()), lasts, &self.size);
        let (mut keys, mut idle, mut busy) = (Vec::new(), Vec::new(), Vec::new());
        for (function, pool) in self.pools.iter().filter(|(function, pool)| **function != own && !pool.bare())
        {
            let frequency = pool.frequency.at(instant);
            // The last of those that are too many went unused for longest.
            let kept = (pool.idle.len() as u32).saturating_sub(pool.surplus());
            let candidate = |(rank, resting): (u32, &Resting)| {
                let (start, size, idle) = (pool.cold.get(), pool.ask.memory, duration(now - resting.since));
                Idle { frequency, start, size, rank, idle, kept: rank < kept }
            };
            let ones: Vec<Idle> = (0u32..).zip(pool.idle.iter().rev()).map(candidate).collect();
            let holder = apps.holder(&pool.as_shared());
            let asked = match cost {
                _ if rules.runner_policy == RunnerPolicy::Plain => 0,
                Cost::Anybodys => spoken_for(&ones, pool.waiters.len() as u32, 1, has),
                Cost::Larger | Cost::Nobodys => ones.len(),
            };
            let stay = asked - taking.of(&holder, asked);
            for (resting, one) in pool.idle.iter().rev().zip(ones).skip(stay) {
                keys.push((*function, Some(resting.container)));
                idle.push(one);
            }
            if pool.ask.memory < missing.size {
                busy.push((*function, holder));
            }
        }
        let chosen = match rules.runner_policy {
            RunnerPolicy::Plain => oldest(&idle, missing),
            RunnerPolicy::Stoker => victims(&idle, missing).or_else(|| {
                for (function, holder) in busy {
                    let pool = &self.pools[&function];
                    let (start, size, kept) = (pool.cold.get(), pool.ask.memory, pool.surplus() == 0);
                    let works = pool.busy - pool.going;
                    let one =
                        |rank| Idle { frequency: f64::MAX, start, size, rank, idle: Duration::ZERO, kept };
                    let may = taking.of(&holder, works as usize);
                    keys.extend(std::iter::repeat_n((function, None), may));
                    idle.extend((0..works).map(one).take(may));
                }
                victims(&idle, missing)
            }),
        };
        let Some(chosen) = chosen else { return false };
        self.acts.push(Act::Evicted { count: chosen.len() as u32 });
        for at in chosen {
            match keys[at] {
                (function, Some(container)) => self.ends(function, container),
                (function, None) => _ = self.pools.get_mut(&function).map(|pool| pool.going += 1),
            }
        }
        true
    }
}

/// The least recently used that make up for `need`.
fn oldest(idle: &[Idle], need: Need) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..idle.len()).collect();
    order.sort_by(|a, b| idle[*b].idle.cmp(&idle[*a].idle).then(a.cmp(b)));
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
