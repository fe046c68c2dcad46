//! Placers to compare with, each as simple as it is published, and given what it needs: an immediate word when a link breaks, and
//! pauses between rounds that double up to a third of a second (Fn's own are a constant 10 ms, which makes storms of a full fleet).

use std::cell::OnceCell;
use std::collections::BTreeMap;

use stoker_core::backoff::split_mix;
use stoker_policy::placement::{key, score};

use crate::random::Random;
use crate::scenario::Placer;

/// Runners asked in one round by those that do not walk a whole list.
const TRIES: usize = 8;

/// Points of each runner on the ring.
const POINTS: u64 = 40;

/// A runner may have this much more than the mean before a bounded hash walks on.
const BOUND: f64 = 1.25;

/// A runner, as rivals know it.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub node: u32,
    pub key: u64,
    pub cores: f64,
    /// Calls by the last report.
    pub reported: u32,
}

/// What all balancers of rivals share: the list, by the numbers of the runners, and the ring.
#[derive(Default)]
pub struct Listing {
    known: Vec<Known>,
    /// Made when somebody wants it: a fleet comes runner by runner, and only one of the placers walks it.
    ring: OnceCell<Vec<(u64, u32)>>,
}

impl Listing {
    /// One more runner; the last word is what is known of it.
    pub fn put(&mut self, runner: Known) {
        match self.known.binary_search_by_key(&runner.node, |known| known.node) {
            Ok(at) => self.known[at] = runner,
            Err(at) => self.known.insert(at, runner),
        }
        self.ring.take();
    }

    /// One less.
    pub fn remove(&mut self, node: u32) {
        self.known.retain(|known| known.node != node);
        self.ring.take();
    }

    /// What runners report now.
    pub fn reports(&mut self, load: impl Fn(u32) -> u32) {
        self.known.iter_mut().for_each(|known| known.reported = load(known.node));
    }

    fn ring(&self) -> &[(u64, u32)] {
        self.ring.get_or_init(|| {
            let points = |known: &Known| {
                let (runner, node) = (known.key, known.node);
                (0..POINTS).map(move |n| (key(&(runner ^ n.wrapping_mul(0x9e37_79b9)).to_le_bytes()), node))
            };
            let mut ring: Vec<_> = self.known.iter().flat_map(points).collect();
            ring.sort_unstable();
            ring
        })
    }
}

/// One balancer of a rival.
#[derive(Default)]
pub struct Rival {
    /// Calls of ours by runner, and how many of them were there at the last report.
    pub own: Vec<(u32, u32)>,
    /// Functions, and runners that said that a container of them is idle; the last word last.
    idle: BTreeMap<u32, Vec<u32>>,
}

impl Rival {
    fn load(&self, known: &Known) -> f64 {
        let (now, then) = self.own.get(known.node as usize).copied().unwrap_or_default();
        (f64::from(known.reported) + f64::from(now) - f64::from(then)).max(f64::from(now)) / known.cores
    }

    /// A runner told that it has an idle container.
    pub fn told(&mut self, function: u32, node: u32) {
        let list = self.idle.entry(function).or_default();
        if list.len() < 64 {
            list.push(node);
        }
    }

    /// The round of one call: whom it asks, in this order.
    pub fn round(
        &mut self,
        placer: Placer,
        listing: &Listing,
        function: u32,
        function_key: u64,
        random: &mut Random,
        round: &mut Vec<u32>,
    ) {
        round.clear();
        let all = &listing.known;
        if all.is_empty() {
            return;
        }
        match placer {
            Placer::Stoker | Placer::Random => draw(all, random, round),
            Placer::LeastConnections => {
                let mut by_load: Vec<_> = all.iter().map(|k| (self.load(k), random.bits(), k.node)).collect();
                by_load.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                round.extend(by_load.iter().take(TRIES).map(|(.., node)| *node));
            }
            Placer::PowerOfTwo => {
                for _ in 0..TRIES {
                    let (a, b) = (&all[random.below(all.len())], &all[random.below(all.len())]);
                    round.push(if self.load(a) <= self.load(b) { a.node } else { b.node });
                }
            }
            Placer::BoundedHash => {
                let mean = all.iter().map(|known| self.load(known)).sum::<f64>() / all.len() as f64;
                let ring = listing.ring();
                let from = ring.partition_point(|(at, _)| *at < function_key);
                for step in 0..ring.len() {
                    let node = ring[(from + step) % ring.len()].1;
                    let known = all.binary_search_by_key(&node, |known| known.node).ok().map(|at| &all[at]);
                    let fits = known.is_some_and(|k| self.load(k) <= (mean * BOUND).max(1.0 / k.cores));
                    if fits && !round.contains(&node) {
                        round.push(node);
                        if round.len() == TRIES {
                            break;
                        }
                    }
                }
                if round.is_empty() {
                    draw(all, random, round);
                }
            }
            Placer::FnHash => {
                let from = jump(function_key, all.len());
                round.extend((0..all.len()).map(|step| all[(from + step) % all.len()].node));
            }
            Placer::FnNaive => {
                let from = random.below(all.len());
                round.extend((0..all.len()).map(|step| all[(from + step) % all.len()].node));
            }
            Placer::Rendezvous => {
                let ranked = all.iter().map(|k| (score(function_key, k.key, 1.0), k.node));
                let mut ranked: Vec<_> = ranked.collect();
                ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
                round.extend(ranked.iter().take(TRIES).map(|(_, node)| *node));
            }
            Placer::Pull => {
                let known = |node: &u32| all.binary_search_by_key(node, |known| known.node).is_ok();
                round.extend(self.idle.get_mut(&function).and_then(Vec::pop).filter(known));
                draw(all, random, round);
            }
        }
    }
}

fn draw(all: &[Known], random: &mut Random, round: &mut Vec<u32>) {
    for _ in 0..TRIES {
        round.push(all[random.below(all.len())].node);
    }
}

/// Jump consistent hashing: a bucket of `count` for a key, by the published recurrence.
fn jump(key: u64, count: usize) -> usize {
    let mut state = key;
    let (mut bucket, mut next) = (0usize, 0usize);
    while next < count {
        bucket = next;
        let unit = ((split_mix(&mut state) >> 33) + 1) as f64 / (1u64 << 31) as f64;
        next = ((bucket + 1) as f64 / unit) as usize;
    }
    bucket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_that_of_who_is_there_now() {
        let known = |node: u32| Known { node, key: key(&node.to_le_bytes()), cores: 1.0, reported: 0 };
        let mut listing = Listing::default();
        for node in [2, 0, 1] {
            listing.put(known(node));
        }
        assert_eq!(listing.known.iter().map(|known| known.node).collect::<Vec<_>>(), [0, 1, 2]);
        let on_it = |listing: &Listing| {
            assert!(listing.ring().is_sorted());
            let on_it: std::collections::BTreeSet<u32> =
                listing.ring().iter().map(|(_, node)| *node).collect();
            (listing.ring().len() as u64, on_it.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(on_it(&listing), (3 * POINTS, vec![0, 1, 2]));
        listing.remove(1);
        assert_eq!(on_it(&listing), (2 * POINTS, vec![0, 2]));
        // One that came back.
        listing.put(known(1));
        listing.put(known(1));
        assert_eq!(on_it(&listing), (3 * POINTS, vec![0, 1, 2]));
    }

    #[test]
    fn a_jump_moves_few_when_the_list_grows_at_its_end_and_spreads_evenly() {
        let keys: Vec<u64> = (0..10_000u64).map(|n| key(&n.to_le_bytes())).collect();
        let moved = keys.iter().filter(|k| jump(**k, 20) != jump(**k, 21)).count();
        assert!((300..700).contains(&moved), "{moved}");
        let mut counts = [0; 20];
        keys.iter().for_each(|k| counts[jump(*k, 20)] += 1);
        assert!(counts.iter().all(|count| (350..650).contains(count)), "{counts:?}");
    }
}
