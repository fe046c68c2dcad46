//! What balancers want to be kept ready here, whether or not calls come: this runner's part of the functions' `min_containers`.
//!
//! Each balancer says all that it wants at once, and says it again well before it is forgotten. Of what several want of a version the most is
//! kept: they decide by the same rule, and where their views differ one container too many does less harm than one too few.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::{Digest, FunctionSpec};

use super::{Action, Inner, Pools};

/// All that is wanted.
#[derive(Default)]
pub struct Targets {
    by: HashMap<u64, Target>,
    said: u64,
}

/// What one balancer said last.
struct Target {
    number: u64,
    containers: HashMap<Digest, u32>,
}

impl Targets {
    /// Takes what a balancer says in the place of what it said before. Gives the number of that, and the versions that it is about, now or before.
    fn say(&mut self, balancer: u64, containers: HashMap<Digest, u32>) -> (u64, HashSet<Digest>) {
        self.said += 1;
        let mut about: HashSet<Digest> = containers.keys().copied().collect();
        let before = self.by.insert(balancer, Target { number: self.said, containers });
        about.extend(before.into_iter().flat_map(|before| before.containers.into_keys()));
        (self.said, about)
    }

    /// What a balancer said is over, unless it has said something since.
    fn forget(&mut self, balancer: u64, number: u64) -> HashSet<Digest> {
        if self.by.get(&balancer).is_none_or(|target| target.number != number) {
            return HashSet::new();
        }
        let target = self.by.remove(&balancer);
        target.into_iter().flat_map(|target| target.containers.into_keys()).collect()
    }

    fn most(&self, digest: &Digest) -> u32 {
        self.by.values().filter_map(|target| target.containers.get(digest)).copied().max().unwrap_or(0)
    }
}

impl Pools {
    /// A balancer says all that it wants to be kept, for so long.
    pub fn keep(
        self: &Arc<Self>,
        balancer: u64,
        targets: Vec<(Digest, Arc<FunctionSpec>, u32)>,
        holds: Duration,
    ) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        if inner.stopping {
            return;
        }
        for (digest, spec, _) in &targets {
            inner.know(*digest, spec);
        }
        let wanted = targets.into_iter().map(|(digest, _, containers)| (digest, containers)).collect();
        let (number, about) = inner.targets.say(balancer, wanted);
        self.wanted(&mut inner, about, &mut actions);
        drop(inner);
        self.act(actions);
        let pools = self.clone();
        // Ends with what was said, or with the runner.
        self.tasks.spawn(async move {
            tokio::select! {
                () = pools.stop.cancelled() => {}
                () = tokio::time::sleep(holds) => pools.unkeep(balancer, number),
            }
        });
    }

    fn unkeep(self: &Arc<Self>, balancer: u64, number: u64) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let about = inner.targets.forget(balancer, number);
        self.wanted(&mut inner, about, &mut actions);
        drop(inner);
        self.act(actions);
    }

    /// Something else may be wanted of these versions: what is missing is launched, and what is too much may end.
    fn wanted(self: &Arc<Self>, inner: &mut Inner, about: HashSet<Digest>, actions: &mut Vec<Action>) {
        let now = Instant::now();
        for digest in about {
            let most = inner.targets.most(&digest);
            let Some(version) = inner.versions.get_mut(&digest) else { continue };
            let before = version.minimum();
            version.kept = most;
            version.failing &= !version.rested(now);
            if version.minimum() < before {
                version.wake_keepers();
            }
            self.refill(inner, digest, false, actions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_anybody_wants_is_kept_as_long_as_somebody_does() {
        let mut targets = Targets::default();
        let (f, g) = (Digest([1; 32]), Digest([2; 32]));
        let say = |targets: &mut Targets, balancer, all: &[(Digest, u32)]| {
            targets.say(balancer, all.iter().copied().collect())
        };
        let (first, about) = say(&mut targets, 1, &[(f, 2), (g, 1)]);
        assert_eq!(about.len(), 2);
        say(&mut targets, 2, &[(f, 3)]);
        assert_eq!((targets.most(&f), targets.most(&g)), (3, 1));
        // Said again it is another, which the end of the first does not end.
        let (second, about) = say(&mut targets, 1, &[(f, 4)]);
        assert_eq!((about.len(), targets.most(&g)), (2, 0));
        assert!(targets.forget(1, first).is_empty());
        assert_eq!(targets.most(&f), 4);
        assert_eq!(targets.forget(1, second), HashSet::from([f]));
        assert_eq!(targets.most(&f), 3);
        let (_, about) = say(&mut targets, 2, &[]);
        assert_eq!((about, targets.most(&f)), (HashSet::from([f]), 0));
    }
}
