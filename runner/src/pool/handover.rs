//! The containers of a runner that becomes another program, and those that it finds as that program.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stoker_sandbox::handover::PassedFds;

use super::Pools;
use super::member::Member;
use crate::container::Container;
use crate::container::handover::HandedContainer;

/// A member of a pool as it is handed over.
#[derive(Debug, Serialize, Deserialize)]
pub struct HandedMember {
    pub container: HandedContainer,
    /// Since when it has no call.
    idle: Duration,
    fresh: bool,
    /// What was measured of its function: a call, and a launch.
    run: Duration,
    cold: Duration,
}

/// What goes over, and what has to be kept until it has: a container that is dropped ends.
#[derive(Default)]
pub struct Leaving {
    pub members: Vec<HandedMember>,
    /// Containers that do not go over.
    pub stay: usize,
    _kept: Vec<Arc<Container>>,
}

/// A member that stands idle, taken out of its pool.
struct Idle {
    container: Arc<Container>,
    since: Instant,
    fresh: bool,
    run: Duration,
    cold: Duration,
}

impl Pools {
    /// Gives away what is idle. To be called when no call is inside any more; nothing can be launched from then on, and what is not idle is
    /// left to end with this program.
    pub async fn hand_over(&self, passed: &mut PassedFds) -> Leaving {
        let mut leaving = Leaving::default();
        for Idle { container, since, fresh, run, cold } in self.take_idle() {
            match container.hand_over(passed).await {
                Ok(handed) => {
                    let idle = since.elapsed();
                    leaving.members.push(HandedMember { container: handed, idle, fresh, run, cold });
                    leaving._kept.push(container);
                }
                Err(why) => {
                    leaving.stay += 1;
                    tracing::info!(container = %container.id, why, "a container is not handed over");
                }
            }
        }
        leaving
    }

    /// Takes them out, so that nobody freezes, evicts or ends them meanwhile.
    fn take_idle(&self) -> Vec<Idle> {
        let mut inner = self.inner();
        inner.stopping = true;
        let mut all = Vec::new();
        for version in inner.versions.values_mut() {
            let (run, cold) = (version.run.get(), version.cold.get());
            for seq in std::mem::take(&mut version.ready) {
                let Some(member) = version.members.remove(&seq) else { continue };
                let (since, fresh) = (member.since, member.fresh);
                member.over.cancel();
                all.extend(member.container.map(|container| Idle { container, since, fresh, run, cold }));
            }
        }
        all
    }

    /// Goes on with these containers of the process's former program; one for which there is no room any more ends.
    pub fn take_up(self: &Arc<Self>, mut all: Vec<(HandedSince, Container)>) -> usize {
        // Those that were used last are to be used first.
        all.sort_by_key(|(since, _)| std::cmp::Reverse(since.idle));
        let mut inner = self.inner();
        let mut taken = 0;
        for (HandedSince { idle, fresh, frozen, run, cold }, container) in all {
            let spec = container.spec.clone();
            let Some(standing) = self.ledger.take(spec.ask().standing()) else {
                tracing::info!(container = %container.id, "there is no room for a container that was handed over");
                continue;
            };
            let digest = spec.digest();
            let version = inner.know(digest, &spec);
            for (mean, measured) in [(&mut version.cold, cold), (&mut version.run, run)] {
                if mean.get().is_zero() && !measured.is_zero() {
                    mean.add(measured);
                }
            }
            let seq = self.next.fetch_add(1, Ordering::Relaxed);
            let container = Arc::new(container);
            let since = Instant::now().checked_sub(idle).unwrap_or_else(Instant::now);
            let member = Member::taken_up(standing, container.clone(), since, fresh, frozen);
            let (keeper, over) = (member.keeper.clone(), member.over.clone());
            version.members.insert(seq, member);
            version.ready.push(seq);
            let pools = self.clone();
            self.tasks.spawn(async move { pools.stay_with(digest, seq, container, keeper, over).await });
            taken += 1;
        }
        drop(inner);
        self.changed.notify_one();
        self.uncompared.notify_one();
        taken
    }
}

/// What a pool wants to know of a container that it takes up.
pub struct HandedSince {
    idle: Duration,
    fresh: bool,
    frozen: bool,
    run: Duration,
    cold: Duration,
}

impl HandedMember {
    /// The container, and what its pool is told with it.
    pub fn apart(self) -> (HandedContainer, HandedSince) {
        let Self { container, idle, fresh, run, cold } = self;
        let frozen = container.frozen;
        (container, HandedSince { idle, fresh, frozen, run, cold })
    }
}
