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
pub struct Wishes {
    by: HashMap<u64, Wish>,
    said: u64,
}

/// What one balancer said last.
struct Wish {
    number: u64,
    containers: HashMap<Digest, u32>,
}

impl Wishes {
    /// Takes what a balancer says in the place of what it said before. Gives the number of that, and the versions that it is about, now or before.
    fn say(&mut self, balancer: u64, containers: HashMap<Digest, u32>) -> (u64, HashSet<Digest>) {
        self.said += 1;
        let mut about: HashSet<Digest> = containers.keys().copied().collect();
        let before = self.by.insert(balancer, Wish { number: self.said, containers });
        about.extend(before.into_iter().flat_map(|before| before.containers.into_keys()));
        (self.said, about)
    }

    /// What a balancer said is over, unless it has said something since.
    fn forget(&mut self, balancer: u64, number: u64) -> HashSet<Digest> {
        if self.by.get(&balancer).is_none_or(|wish| wish.number != number) {
            return HashSet::new();
        }
        let wish = self.by.remove(&balancer);
        wish.into_iter().flat_map(|wish| wish.containers.into_keys()).collect()
    }

    fn most(&self, digest: &Digest) -> u32 {
        self.by.values().filter_map(|wish| wish.containers.get(digest)).copied().max().unwrap_or(0)
    }
}

impl Pools {
    /// A balancer says all that it wants to be kept, for so long.
    pub fn keep(
        self: &Arc<Self>,
        balancer: u64,
        wishes: Vec<(Digest, Arc<FunctionSpec>, u32)>,
        holds: Duration,
    ) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        if inner.stopping {
            return;
        }
        for (digest, spec, _) in &wishes {
            inner.know(*digest, spec);
        }
        let wanted = wishes.into_iter().map(|(digest, _, containers)| (digest, containers)).collect();
        let (number, about) = inner.wishes.say(balancer, wanted);
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
        let about = inner.wishes.forget(balancer, number);
        self.wanted(&mut inner, about, &mut actions);
        drop(inner);
        self.act(actions);
    }

    /// Something else may be wanted of these versions: what is missing is launched, and what is too much may end.
    fn wanted(self: &Arc<Self>, inner: &mut Inner, about: HashSet<Digest>, actions: &mut Vec<Action>) {
        let now = Instant::now();
        for digest in about {
            let most = inner.wishes.most(&digest);
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
        let mut wishes = Wishes::default();
        let (f, g) = (Digest([1; 32]), Digest([2; 32]));
        let say = |wishes: &mut Wishes, balancer, all: &[(Digest, u32)]| {
            wishes.say(balancer, all.iter().copied().collect())
        };
        let (first, about) = say(&mut wishes, 1, &[(f, 2), (g, 1)]);
        assert_eq!(about.len(), 2);
        say(&mut wishes, 2, &[(f, 3)]);
        assert_eq!((wishes.most(&f), wishes.most(&g)), (3, 1));
        // Said again it is another, which the end of the first does not end.
        let (second, about) = say(&mut wishes, 1, &[(f, 4)]);
        assert_eq!((about.len(), wishes.most(&g)), (2, 0));
        assert!(wishes.forget(1, first).is_empty());
        assert_eq!(wishes.most(&f), 4);
        assert_eq!(wishes.forget(1, second), HashSet::from([f]));
        assert_eq!(wishes.most(&f), 3);
        let (_, about) = say(&mut wishes, 2, &[]);
        assert_eq!((about, wishes.most(&f)), (HashSet::from([f]), 0));
    }
}
