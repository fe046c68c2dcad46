//! Whom a call is offered to, one after the other.

use std::time::{Duration, Instant};

use stoker_core::backoff::split_mix;
use stoker_core::capacity::Warmth;

use super::hints::Hint;
use super::{Board, Peer, Place, Seat, Taken, Wanted, holds};
use crate::placement::{MAX_TRIES, ramp, score, share, weight};

/// With this many warm runners or more the call is spread over them; below, the best ranked is used so that warmth gathers and the other may cool
/// down. Of three the best ranked alone would be asked by all balancers at once.
const SPREAD_FROM: usize = 3;

/// Longer lists of warm runners are sampled instead of read: so many draws, each of which finds one that is still warm with a good
/// chance, cost less than reading hundreds.
const DRAWS: usize = 8;

/// Why a runner is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It said, so long ago, that so many containers of the function were idle.
    Warm {
        /// Containers, those not counted that we used since.
        idle: u32,
        /// How old that word is.
        age: Duration,
    },
    /// Nobody is known to be idle, and of those that run the function its line is the shortest by what it said, so long ago.
    Line {
        /// Calls that run there.
        busy: u32,
        /// Calls that wait there, with ours since.
        waiting: u32,
        /// How old that word is.
        age: Duration,
    },
    /// It is the best ranked of those that are left.
    Rank,
    /// The same, though it is too young for its whole share: nobody older is left.
    Young,
    /// One of two drawn from all, the less loaded.
    Spill,
}

/// The next runner to ask.
#[derive(Debug, Clone)]
pub struct Choice<P> {
    /// Its place.
    pub seat: Seat,
    /// It.
    pub peer: P,
    /// What speaks for it.
    pub why: Why,
}

/// The order in which the runners are asked for one call, each at most once.
#[derive(Debug, Clone)]
pub struct Plan {
    wanted: Wanted,
    asked: [u32; MAX_TRIES + 1],
    tries: usize,
    spilled: bool,
    seed: u64,
}

impl Plan {
    /// Of a call; calls of one balancer differ in their seeds.
    #[must_use]
    pub fn new(wanted: Wanted, seed: u64) -> Self {
        Self { wanted, asked: [0; MAX_TRIES + 1], tries: 0, spilled: false, seed }
    }

    /// Who is asked next, by what is known now. `None`: the call waits.
    pub fn next<P: Peer + Clone>(&mut self, board: &mut Board<P>, now: Instant) -> Option<Choice<P>> {
        let found = if self.tries < MAX_TRIES {
            self.warm(board, now).or_else(|| self.line(board, now)).or_else(|| self.ranked(board, now))
        } else {
            None
        };
        let (at, why) = found.or_else(|| self.spill(board, now))?;
        let place = &board.places[at as usize];
        let peer = place.taken.as_ref()?.peer.clone();
        self.asked[self.tries] = at;
        self.tries += 1;
        Some(Choice { seat: Seat { at, life: place.life }, peer, why })
    }

    /// How many were asked so far.
    #[must_use]
    pub fn tries(&self) -> usize {
        self.tries
    }

    fn asked(&self, at: u32) -> bool {
        self.asked[..self.tries].contains(&at)
    }

    fn warm<P: Peer + Clone>(&mut self, board: &mut Board<P>, now: Instant) -> Option<(u32, Why)> {
        let Board { hints, places, .. } = board;
        let list = &mut hints.get_mut(&self.wanted.version)?.idle;
        let why =
            |hint: &Hint| Why::Warm { idle: hint.warmth.idle, age: now.saturating_duration_since(hint.at) };
        if list.len() > 2 * DRAWS {
            for _ in 0..DRAWS {
                let hint = &list[below(&mut self.seed, list.len())];
                let open = holds(places, hint, now).is_some_and(|taken| taken.peer.is_open());
                if open && !self.asked(hint.seat.at) {
                    return Some((hint.seat.at, why(hint)));
                }
            }
        }
        list.retain(|hint| holds(places, hint, now).is_some());
        let usable = |hint: &&Hint| {
            let taken = places[hint.seat.at as usize].taken.as_ref();
            taken.is_some_and(|taken| taken.peer.is_open()) && !self.asked(hint.seat.at)
        };
        let count = list.iter().filter(usable).count();
        let chosen = if count < SPREAD_FROM {
            let rank = |hint: &&Hint| self.rank(places, hint.seat.at);
            list.iter().filter(usable).max_by(|a, b| rank(a).total_cmp(&rank(b)))
        } else {
            let mut seed = self.seed;
            let nth = below(&mut seed, count);
            let chosen = list.iter().filter(usable).nth(nth);
            self.seed = seed;
            chosen
        };
        chosen.map(|hint| (hint.seat.at, why(hint)))
    }

    fn rank<P>(&self, places: &[Place<P>], at: u32) -> f64 {
        let taken = places[at as usize].taken.as_ref();
        taken.map_or(0.0, |taken| score(self.wanted.function, taken.key, weight(&taken.total)))
    }

    /// Of those where all are busy, the one with the shortest line; of equal ones the best ranked. Of a long list some are drawn.
    fn line<P: Peer + Clone>(&mut self, board: &mut Board<P>, now: Instant) -> Option<(u32, Why)> {
        let Board { hints, places, .. } = board;
        let list = &mut hints.get_mut(&self.wanted.version)?.busy;
        let mut seed = self.seed;
        let usable = |hint: &Hint| {
            let taken = holds(places, hint, now)?;
            let full = taken.full_until.is_some_and(|until| now < until);
            (!full && !self.asked(hint.seat.at) && taken.peer.is_open()).then_some(*hint)
        };
        let order = |a: &Hint, b: &Hint| {
            let rank = |hint: &Hint| self.rank(places, hint.seat.at);
            a.line().total_cmp(&b.line()).then_with(|| rank(b).total_cmp(&rank(a)))
        };
        let chosen = if list.len() > 2 * DRAWS {
            (0..DRAWS).filter_map(|_| usable(&list[below(&mut seed, list.len())])).min_by(order)
        } else {
            list.retain(|hint| holds(places, hint, now).is_some());
            list.iter().filter_map(usable).min_by(order)
        };
        self.seed = seed;
        chosen.map(|hint| {
            let Warmth { busy, waiting, .. } = hint.warmth;
            (hint.seat.at, Why::Line { busy, waiting, age: now.saturating_duration_since(hint.at) })
        })
    }

    fn ranked<P: Peer + Clone>(&self, board: &mut Board<P>, now: Instant) -> Option<(u32, Why)> {
        board.rank(&self.wanted);
        let eldest = board.eldest?;
        let ranked = &board.orders.get(&self.wanted.function)?.ranked;
        let mut young = None;
        for at in ranked {
            let Some(taken) = self.open(board, *at, now) else { continue };
            let age = now.saturating_duration_since(taken.since);
            // Against the eldest: where all are young, nobody steps back.
            let part = ramp(age) / ramp(now.saturating_duration_since(eldest));
            if part >= 1.0 || share(self.wanted.function, taken.key) < part {
                return Some((*at, Why::Rank));
            }
            young = young.or(Some((*at, Why::Young)));
        }
        young
    }

    /// A runner that may be asked by what is known of it, warm or not.
    fn open<'a, P: Peer + Clone>(&self, board: &'a Board<P>, at: u32, now: Instant) -> Option<&'a Taken<P>> {
        let taken = board.places[at as usize].taken.as_ref()?;
        let full = taken.full_until.is_some_and(|until| now < until);
        (!full && !self.asked(at) && taken.total.could_hold(&self.wanted.ask) && taken.peer.is_open())
            .then_some(taken)
    }

    fn spill<P: Peer + Clone>(&mut self, board: &Board<P>, now: Instant) -> Option<(u32, Why)> {
        if std::mem::replace(&mut self.spilled, true) || board.places.is_empty() {
            return None;
        }
        // Two that are open, from where two draws point; in a fleet of which most is, that is at once.
        let count = board.places.len();
        let mut found = [None; 2];
        for found in &mut found {
            let from = below(&mut self.seed, count);
            *found = (0..count).map(|step| ((from + step) % count) as u32).find_map(|at| {
                let taken = self.open(board, at, now)?;
                Some((f64::from(taken.peer.load()) / weight(&taken.total), at))
            });
        }
        let [one, other] = found;
        [one?, other?].into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, at)| (at, Why::Spill))
    }
}

fn below(seed: &mut u64, n: usize) -> usize {
    (split_mix(seed) % n as u64) as usize
}
