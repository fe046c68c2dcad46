//! Where the containers stand that a function shall have whether or not it is called: its `min_containers`, over the whole fleet.
//!
//! Balancers keep no state and do not talk to each other, and each tells the runners how many of a function they shall keep. So the rule is one
//! that all of them come to by themselves: the runners in the function's order of rank, which is the order in which calls go to them, take
//! one container each, then a second each, until all have their place. Spread over runners, the minimum outlives the loss of one; and when one goes, only
//! its share moves.
//!
//! A runner without room is passed over, with patience: its room is what it said last, and what it was told a moment ago it may be
//! launching still. Two balancers with different views may tell two runners to keep the same container. Then there is one more for a while, and
//! never one too few.

use std::time::{Duration, Instant};

use stoker_core::resources::{Ask, Resources};

/// A runner that was told to keep containers has so long to have them before it counts by what it has. A start takes seconds for a few and a
/// fetch of an image more; but those hold memory meanwhile, which speaks for the runner only as long as this.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A runner, as one function sees it.
#[derive(Debug, Clone)]
pub struct Candidate<R> {
    /// Which it is.
    pub runner: R,
    /// Containers of the function that it has.
    pub has: u32,
    /// How many more it has room for.
    pub room: u32,
}

/// What a runner keeps of a function.
#[derive(Debug, Clone)]
pub struct Share<R> {
    /// Which it is.
    pub runner: R,
    /// So many.
    pub containers: u32,
    /// Since when it has had fewer.
    short: Option<Instant>,
}

/// Where the containers of one function stand.
#[derive(Debug, Clone)]
pub struct Shares<R>(Vec<Share<R>>);

impl<R> Default for Shares<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R: Clone + PartialEq> Shares<R> {
    /// Shares out `wanted` containers, at most `most` to a runner, among those that are there, best ranked first. What finds no room is given out in
    /// the same way, to be launched when there is some.
    pub fn place(&mut self, wanted: u32, most: u32, ranked: &[Candidate<R>], now: Instant) {
        let told: Vec<Option<&Share<R>>> =
            ranked.iter().map(|c| self.0.iter().find(|share| share.runner == c.runner)).collect();
        let able: Vec<u32> = ranked
            .iter()
            .zip(&told)
            .map(|(candidate, told)| {
                let here = candidate.has.saturating_add(candidate.room);
                let trusted = |share: &&Share<R>| {
                    let since = share.short.filter(|_| candidate.has < share.containers);
                    since.is_none_or(|since| now.saturating_duration_since(since) < PATIENCE)
                };
                told.filter(trusted).map_or(here, |share| here.max(share.containers)).min(most)
            })
            .collect();
        let mut given = vec![0; ranked.len()];
        let left = fill(&mut given, &able, wanted);
        fill(&mut given, &vec![most; ranked.len()], left);
        self.0 = ranked
            .iter()
            .zip(&told)
            .zip(given)
            .filter(|(_, containers)| *containers > 0)
            .map(|((candidate, told), containers)| Share {
                runner: candidate.runner.clone(),
                containers,
                short: match candidate.has < containers {
                    true => told.and_then(|share| share.short).or(Some(now)),
                    false => None,
                },
            })
            .collect();
    }

    /// Who keeps how many.
    pub fn iter(&self) -> impl Iterator<Item = &Share<R>> {
        self.0.iter()
    }

    /// Some runner has fewer than it shall keep: worth another look when [`PATIENCE`] is over.
    #[must_use]
    pub fn short(&self) -> bool {
        self.0.iter().any(|share| share.short.is_some())
    }
}

/// Gives out `left` one by one and round after round to those that are able to take one; what nobody is able to take is left.
fn fill(given: &mut [u32], able: &[u32], mut left: u32) -> u32 {
    while left > 0 {
        let open: Vec<usize> = (0..given.len()).filter(|at| given[*at] < able[*at]).collect();
        let Some(least) = open.iter().map(|at| able[*at] - given[*at]).min() else { break };
        let width = u32::try_from(open.len()).unwrap_or(u32::MAX);
        // So many whole rounds at once; the last one ends among the best ranked.
        let rounds = least.min(left / width);
        for at in &open {
            let one = if rounds > 0 { rounds } else { u32::from(left > 0) };
            given[*at] += one;
            left -= one;
        }
    }
    left
}

/// How many containers that ask for so much fit into what is free; a container that rests wants no CPU.
#[must_use]
pub fn room(free: &Resources, ask: &Ask) -> u32 {
    let standing = ask.standing();
    let by_memory = free.memory.checked_div(standing.memory).unwrap_or(u64::MAX);
    free.slots.min(u32::try_from(by_memory).unwrap_or(u32::MAX))
}

/// Of `wanted` containers of a function those of a version that takes so many of `whole` calls: no version is without.
#[must_use]
pub fn part(wanted: u32, calls: u32, whole: u32) -> u32 {
    let part = (u64::from(wanted) * u64::from(calls)).div_ceil(u64::from(whole.max(1)));
    u32::try_from(part).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(all: &[(char, u32, u32)]) -> Vec<Candidate<char>> {
        all.iter().map(|(runner, has, room)| Candidate { runner: *runner, has: *has, room: *room }).collect()
    }

    fn told(shares: &Shares<char>) -> Vec<(char, u32)> {
        shares.iter().map(|share| (share.runner, share.containers)).collect()
    }

    #[test]
    fn the_first_ranked_keep_one_each_and_then_a_second() {
        let now = Instant::now();
        let fleet = seen(&[('a', 0, 9), ('b', 0, 9), ('c', 0, 9)]);
        for (wanted, expected) in [
            (0, vec![]),
            (1, vec![('a', 1)]),
            (2, vec![('a', 1), ('b', 1)]),
            (5, vec![('a', 2), ('b', 2), ('c', 1)]),
            // More than fits is wanted all the same.
            (40, vec![('a', 14), ('b', 13), ('c', 13)]),
        ] {
            let mut shares = Shares::default();
            shares.place(wanted, 20, &fleet, now);
            assert_eq!(told(&shares), expected);
        }
        let mut shares = Shares::default();
        shares.place(40, 5, &fleet, now);
        assert_eq!(told(&shares), [('a', 5), ('b', 5), ('c', 5)]);
        shares.place(4, 5, &[], now);
        assert_eq!(told(&shares), []);
    }

    #[test]
    fn a_full_runner_is_passed_over_and_one_that_launches_is_waited_for() {
        let mut now = Instant::now();
        let mut shares = Shares::default();
        shares.place(2, 9, &seen(&[('a', 0, 0), ('b', 0, 1), ('c', 0, 1)]), now);
        assert_eq!(told(&shares), [('b', 1), ('c', 1)]);
        // What it launches holds its room.
        now += PATIENCE / 2;
        let launching = seen(&[('a', 0, 0), ('b', 0, 0), ('c', 1, 0)]);
        shares.place(2, 9, &launching, now);
        assert_eq!((told(&shares), shares.short()), (vec![('b', 1), ('c', 1)], true));
        // It did not come to anything, and somebody else has room.
        now += PATIENCE;
        shares.place(2, 9, &seen(&[('a', 0, 1), ('b', 0, 0), ('c', 1, 0)]), now);
        assert_eq!(told(&shares), [('a', 1), ('c', 1)]);
        shares.place(2, 9, &seen(&[('a', 1, 0), ('b', 0, 0), ('c', 1, 0)]), now + SECOND);
        assert_eq!((told(&shares), shares.short()), (vec![('a', 1), ('c', 1)], false));
        // Nobody has: the best ranked is to launch it as soon as it can.
        now += PATIENCE;
        let full = seen(&[('b', 0, 0), ('c', 1, 0)]);
        for _ in 0..3 {
            shares.place(2, 9, &full, now);
            assert_eq!(told(&shares), [('b', 1), ('c', 1)]);
            now += PATIENCE * 2;
        }
    }

    #[test]
    fn what_fits_and_what_a_version_gets() {
        let free = Resources { memory: 1000, cpu_millis: 0, slots: 7 };
        let fit = |memory| room(&free, &Ask { memory, cpu_millis: 500 });
        assert_eq!([0, 100, 300, 2000].map(fit), [7, 7, 3, 0]);
        assert_eq!([0, 1, 50, 100].map(|calls| part(3, calls, 100)), [0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn all_have_their_place_and_none_moves_without_a_reason(
            fleet in prop::collection::vec((0u32..4, 0u32..6), 1..12), wanted in 0u32..40, most in 1u32..8, gone in 0usize..12,
        ) {
            let now = Instant::now();
            let all: Vec<_> = fleet.iter().zip(0u32..)
                .map(|((has, room), runner)| Candidate { runner, has: *has, room: *room }).collect();
            let mut shares = Shares::default();
            shares.place(wanted, most, &all, now);
            let of = |shares: &Shares<u32>| -> Vec<u32> {
                let of = |c: &Candidate<u32>| shares.iter().find(|s| s.runner == c.runner).map_or(0, |s| s.containers);
                all.iter().map(of).collect()
            };
            let before = of(&shares);
            prop_assert_eq!(before.iter().sum::<u32>(), wanted.min(most * all.len() as u32));
            prop_assert!(before.iter().all(|n| *n <= most));
            // Nobody is told to keep what he has no room for while another has some.
            let spare = |(c, n): (&Candidate<u32>, &u32)| *n < (c.has + c.room).min(most);
            let over = |(c, n): (&Candidate<u32>, &u32)| *n > c.has + c.room;
            prop_assert!(!(all.iter().zip(&before).any(spare) && all.iter().zip(&before).any(over)));
            // Once more, and by another balancer, it is the same.
            shares.place(wanted, most, &all, now + SECOND);
            prop_assert_eq!(&of(&shares), &before);
            let mut other = Shares::default();
            other.place(wanted, most, &all, now);
            prop_assert_eq!(&of(&other), &before);
            // Who goes leaves his share to the others, and none of them keeps less than before.
            let gone = gone % all.len();
            let left: Vec<_> = all.iter().filter(|c| c.runner as usize != gone).cloned().collect();
            shares.place(wanted, most, &left, now + SECOND);
            let after = of(&shares);
            prop_assert!((0..all.len()).all(|at| at == gone || after[at] >= before[at].min(all[at].has + all[at].room)));
        }
    }
}
