//! What balancers want to be kept ready here, as in the runner's pools.

use stoker_core::resources::Ask;
use stoker_policy::launch::cap;

use super::room::Cost;
use super::{Act, Begun, Node, Rules, Start};
use crate::trace::Micros;

impl Node {
    /// A balancer wants so many containers of a function here; the most that one of them wants is kept.
    pub fn keep(
        &mut self,
        balancer: usize,
        (function, app): (u32, u64),
        ask: Ask,
        containers: u32,
        now: Micros,
        rules: &Rules,
    ) {
        let pool = self.pool(function, app, ask, rules.instant(now));
        let before = pool.minimum();
        pool.wanted.resize(pool.wanted.len().max(balancer + 1), 0);
        pool.wanted[balancer] = containers;
        let after = pool.minimum();
        if after < before {
            // Those that stayed beyond their time have it again from now on.
            let containers: Vec<u32> = pool.idle.iter().map(|resting| resting.container).collect();
            let rests = containers.into_iter().map(|container| Act::Rests { function, container });
            self.acts.extend(rests);
        }
        if after != before {
            self.refill(function, now, rules);
        }
    }

    /// Some function has fewer containers here than it shall have.
    pub fn is_short(&self) -> bool {
        !self.short.is_empty()
    }

    /// Containers of a function that are here or will be.
    pub fn standing(&self, function: u32) -> u32 {
        self.pools.get(&function).map_or(0, super::Pool::standing)
    }

    /// Fills up what is short, where that costs nobody anything.
    pub(super) fn refill_all(&mut self, now: Micros, rules: &Rules) {
        if self.waiting == 0 && !self.short.is_empty() {
            for function in self.short.clone() {
                self.refill(function, now, rules);
            }
        }
    }

    /// Launches what a function shall have without being called.
    pub(super) fn refill(&mut self, function: u32, now: Micros, rules: &Rules) {
        loop {
            let Some(pool) = self.pools.get(&function) else { return };
            if pool.standing() >= pool.minimum() {
                self.short.remove(&function);
                return;
            }
            self.short.insert(function);
            let allowed = self.waiting == 0 && self.launching < cap(&self.size, &pool.ask);
            if !allowed || self.begin(function, Start::Kept, Cost::Nobodys, now, rules) != Begun::Launch {
                return;
            }
        }
    }
}
