//! When the machine is short of memory: what stands still gives back what it does not need, and where that is not enough, goes.
//!
//! The kernel would take memory by itself, from whoever used his least of late, calls that run among them; and in the end it would kill
//! somebody. A frozen container is nobody's call, so its memory goes first. One that was asked gives no more until it has run again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::Digest;
use stoker_policy::eviction::{Idle, Need, victims};

use super::why::Ended;
use super::{EVICT_GRACE, Inner, Pools};
use crate::container::Container;
use crate::container::state::State;
use crate::machine::pressure::{Memory, Pressure};

/// What less would be gained by is left alone.
const WORTHWHILE: u64 = 1 << 20;

/// A container that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frozen {
    /// What it held when it was last looked at.
    memory: u64,
    idle: Duration,
    /// It gave what it had since its last call.
    gave: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Relief {
    Nothing,
    /// These give back what they do not need, one after the other, until so much has come of it.
    Squeeze {
        order: Vec<usize>,
        until: u64,
    },
    /// Idle containers with so much memory go.
    Evict(u64),
}

/// What helps, where memory is as it was seen and somebody had to wait for some (`stalled`) or not.
fn relief(memory: Memory, stalled: bool, frozen: &[Frozen]) -> Relief {
    let (comfort, danger) = (memory.total / 8, memory.total / 16);
    let stall = if stalled { memory.total / 32 } else { 0 };
    let until = comfort.saturating_sub(memory.available).max(stall);
    if until == 0 || !(stalled || memory.available < danger) {
        return Relief::Nothing;
    }
    let mut order: Vec<usize> = (0..frozen.len()).collect();
    order.retain(|at| !frozen[*at].gave && frozen[*at].memory >= WORTHWHILE);
    // What was used longest ago is needed last.
    order.sort_by_key(|at| std::cmp::Reverse(frozen[*at].idle));
    if !order.is_empty() {
        return Relief::Squeeze { order, until };
    }
    match danger.checked_sub(memory.available) {
        Some(missing) if missing > 0 => Relief::Evict(missing),
        _ => Relief::Nothing,
    }
}

impl Pools {
    /// Helps from now on whenever the kernel says that memory is short, and looks after each launch whether it is. Ends with the runner.
    pub fn watch_memory(self: &Arc<Self>, pressure: Pressure) {
        self.tasks.spawn(self.clone().relieve(pressure));
    }

    async fn relieve(self: Arc<Self>, pressure: Pressure) {
        loop {
            let stalled = tokio::select! {
                () = self.stop.cancelled() => return,
                () = pressure.rises() => true,
                () = self.grown.notified() => false,
            };
            let mut squeezed = 0;
            // What gave is not asked again: this ends.
            while let Some(memory) = pressure.look() {
                let frozen = self.inner().frozen();
                let facts: Vec<_> = frozen.iter().map(|(fact, ..)| *fact).collect();
                match relief(memory, stalled && squeezed == 0, &facts) {
                    Relief::Nothing => break,
                    Relief::Squeeze { order, until } => {
                        let order = order.into_iter().map(|at| &frozen[at]);
                        squeezed += self.squeeze(order, until).await;
                        if self.stop.is_cancelled() {
                            return;
                        }
                    }
                    Relief::Evict(missing) => {
                        self.evict(missing);
                        break;
                    }
                }
            }
            if squeezed > 0 {
                tracing::info!(bytes = squeezed, "memory is short: frozen containers gave some back");
            }
        }
    }

    async fn squeeze<'a>(&self, order: impl Iterator<Item = &'a Stands>, until: u64) -> u64 {
        let mut sum = 0;
        for (_, digest, seq, since, container) in order {
            if sum >= until {
                break;
            }
            // A call that comes meanwhile is not held up, and gets its memory back as it needs it.
            match container.squeeze().await {
                Ok(bytes) => sum += bytes,
                Err(error) => tracing::debug!(container = %container.id, %error, "gave no memory back"),
            }
            let mut inner = self.inner();
            let member = inner.versions.get_mut(digest).and_then(|version| version.members.get_mut(seq));
            if let Some(member) = member {
                member.gave = Some(*since);
            }
        }
        if let Some(meters) = &self.meters {
            meters.reclaimed.add(sum);
        }
        sum
    }

    /// Ends the least worthy idle containers that together hold so much.
    fn evict(self: &Arc<Self>, missing: u64) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let (keys, idle) = inner.idle_as_they_are();
        let need = Need { size: missing, count: 0 };
        // All of them, where they are not enough.
        let chosen = victims(&idle, need).unwrap_or_else(|| (0..idle.len()).collect());
        for at in chosen {
            let (digest, seq) = keys[at];
            actions.extend(inner.stop(digest, seq, EVICT_GRACE, Ended::Evicted));
        }
        drop(inner);
        tracing::warn!(containers = actions.len(), bytes = missing, "memory is short: idle containers go");
        self.act(actions);
    }
}

/// A frozen container, whose it is, and since when it has no call.
type Stands = (Frozen, Digest, u64, Instant, Arc<Container>);

impl Inner {
    fn frozen(&self) -> Vec<Stands> {
        let now = Instant::now();
        let mut all = Vec::new();
        for (digest, version) in &self.versions {
            for (seq, member) in &version.members {
                let Some(container) = member.container.as_ref().filter(|_| member.state == State::Frozen)
                else {
                    continue;
                };
                let fact = Frozen {
                    memory: container.used().map_or(0, |used| used.memory),
                    idle: now.saturating_duration_since(member.since),
                    gave: member.gave == Some(member.since),
                };
                all.push((fact, *digest, *seq, member.since, container.clone()));
            }
        }
        all
    }

    /// Idle containers with the memory that they have, not the one that they may have.
    fn idle_as_they_are(&self) -> (Vec<(Digest, u64)>, Vec<Idle>) {
        let now = Instant::now();
        let mut found = (Vec::new(), Vec::new());
        for (digest, version) in &self.versions {
            for (seq, idle) in version.candidates(now) {
                let container = version.members.get(&seq).and_then(|member| member.container.as_ref());
                let size = container.and_then(|container| container.used()).map_or(0, |used| used.memory);
                found.0.push((*digest, seq));
                found.1.push(Idle { size, ..idle });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TOTAL: u64 = 1600 * MIB;

    fn memory(available: u64) -> Memory {
        Memory { total: TOTAL, available: available * MIB }
    }

    fn frozen(memory: u64, idle: u64, gave: bool) -> Frozen {
        Frozen { memory: memory * MIB, idle: Duration::from_secs(idle), gave }
    }

    #[test]
    fn nothing_happens_while_there_is_room() {
        let all = [frozen(100, 5, false)];
        assert_eq!(relief(memory(1000), false, &all), Relief::Nothing);
        // Less than comfortable, but nobody waited.
        assert_eq!(relief(memory(150), false, &all), Relief::Nothing);
        assert_eq!(relief(memory(1000), true, &[]), Relief::Nothing);
    }

    #[test]
    fn who_has_been_idle_longest_gives_first() {
        let all = [frozen(50, 5, false), frozen(50, 60, false), frozen(50, 90, true), frozen(0, 99, false)];
        let Relief::Squeeze { order, until } = relief(memory(120), true, &all) else { panic!() };
        assert_eq!((order, until), (vec![1, 0], 80 * MIB));
        // Somebody waited though enough seems to be there: a little all the same.
        let Relief::Squeeze { until, .. } = relief(memory(1000), true, &all) else { panic!() };
        assert_eq!(until, TOTAL / 32);
        // Nobody waited yet, but soon will.
        assert!(matches!(relief(memory(90), false, &all), Relief::Squeeze { .. }));
    }

    #[test]
    fn who_has_nothing_to_give_goes_before_somebody_is_killed() {
        let all = [frozen(50, 90, true)];
        assert_eq!(relief(memory(60), true, &all), Relief::Evict(40 * MIB));
        assert_eq!(relief(memory(60), false, &[]), Relief::Evict(40 * MIB));
        // Uncomfortable is no reason to throw anything away.
        assert_eq!(relief(memory(110), true, &all), Relief::Nothing);
    }
}
