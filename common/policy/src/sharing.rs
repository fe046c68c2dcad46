//! How balancers divide the places of a function of which only so many calls may run at once.
//!
//! Each says how many its calls want. If that is no more than there are, each has what it wants. Else each may have as many as any other, and who
//! wants fewer has those. What does not divide evenly are odd places, of which each balancer has one at a time at most: they go to the lowest
//! tickets, and who had one for a [turn](TURN) takes a new ticket, behind all others. So whoever wants a place has one within a turn for each
//! balancer, and the longest call that is inside.
//!
//! All reckon from the same claims and come to the same. Where they have not heard of each other yet they come to different ones for
//! a moment, and the registry sees to it that all together never hold more than there is.

use std::time::Duration;

/// How long an odd place stays with a balancer while others wait for it: some transactions of the registry, so that turns cost little, and below the second
/// after which refused callers come again.
pub const TURN: Duration = Duration::from_millis(500);

/// One that no call is in goes on after this: two balancers that have a call each now and then need not wait for a turn, and do
/// not spend all their time passing it on.
pub const REST: Duration = Duration::from_millis(50);

/// What one balancer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand<'a> {
    pub wants: u32,
    /// Lower ones have the odd places first.
    pub ticket: u64,
    /// Tells those with equal tickets apart.
    pub holder: &'a str,
}

/// What one balancer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub places: u32,
    /// Of them what is its own for as long as nobody wants anything else; one more is an odd one.
    pub level: u32,
    /// Somebody wants an odd place and has none.
    pub turns: bool,
}

/// What `own` may hold of `limit` places, beside `others`.
#[must_use]
pub fn share(limit: u32, own: &Demand<'_>, others: &[Demand<'_>]) -> Share {
    let mut wants: Vec<u32> = others.iter().chain([own]).map(|demand| demand.wants).collect();
    wants.sort_unstable();
    let (mut left, mut many) = (limit, wants.len() as u32);
    let mut level = None;
    for want in wants {
        let each = left / many;
        if want > each {
            level = Some(each);
            break;
        }
        (left, many) = (left - want, many - 1);
    }
    let Some(level) = level else {
        return Share { places: own.wants, level: own.wants, turns: false };
    };
    // Of those that are left every one wants more than the level.
    let odd = left - level * many;
    let turns = odd > 0 && own.wants > level;
    let before =
        |other: &&Demand<'_>| other.wants > level && (other.ticket, other.holder) < (own.ticket, own.holder);
    let first = turns && (others.iter().filter(before).count() as u32) < odd;
    Share { places: own.wants.min(level) + u32::from(first), level: own.wants.min(level), turns }
}

/// A ticket behind all others.
#[must_use]
pub fn last_ticket(others: &[Demand<'_>]) -> u64 {
    others.iter().map(|other| other.ticket).max().unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demands<'a>(names: &'a [String], wants: &[(u32, u64)]) -> Vec<Demand<'a>> {
        names.iter().zip(wants).map(|(holder, &(wants, ticket))| Demand { wants, ticket, holder }).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("balancer-{n}")).collect()
    }

    fn shares(limit: u32, all: &[Demand<'_>]) -> Vec<Share> {
        let others = |at: usize| [&all[..at], &all[at + 1..]].concat();
        (0..all.len()).map(|at| share(limit, &all[at], &others(at))).collect()
    }

    #[test]
    fn who_wants_little_has_it_and_the_others_as_much_as_each_other() {
        let names = names(3);
        let places = |limit, wants: [u32; 3]| {
            let wants = wants.map(|wants| (wants, 1));
            shares(limit, &demands(&names, &wants)).iter().map(|share| share.places).collect::<Vec<_>>()
        };
        assert_eq!(places(10, [3, 3, 3]), [3, 3, 3], "there is enough");
        assert_eq!(places(9, [9, 9, 9]), [3, 3, 3]);
        assert_eq!(places(10, [1, 9, 9]), [1, 5, 4], "the odd one by name");
        assert_eq!(places(10, [1, 2, 9]), [1, 2, 7]);
        assert_eq!(places(2, [9, 9, 9]), [1, 1, 0]);
        assert_eq!(places(0, [9, 9, 9]), [0, 0, 0]);
        assert_eq!(places(5, [0, 0, 9]), [0, 0, 5]);
    }

    #[test]
    fn an_odd_place_goes_round() {
        let names = names(5);
        let mut tickets = [1, 2, 3, 4, 5];
        let mut last = [0; 5];
        for round in 1..=20 {
            let all = tickets.map(|ticket| (9, ticket));
            for (at, share) in shares(2, &demands(&names, &all)).iter().enumerate() {
                assert!(share.turns && share.level == 0);
                if share.places == 1 {
                    // Two of five: nobody is left out for longer than it takes all others.
                    assert!(round - last[at] <= 3, "{at} in round {round}, last {last:?}");
                    last[at] = round;
                    tickets[at] = *tickets.iter().max().unwrap() + 1;
                }
            }
        }
        assert!(last.iter().all(|last| *last >= 18), "{last:?}");
    }

    proptest! {
        /// Nothing is given twice and nothing is left that somebody wants; nobody has two more than another that wants more than it has.
        #[test]
        fn all_is_shared_out(limit in 0u32..40, wants in prop::collection::vec((0u32..30, 0u64..4), 1..8)) {
            let names = names(wants.len());
            let all = demands(&names, &wants);
            let shares = shares(limit, &all);
            let wanted: u32 = wants.iter().map(|(wants, _)| wants).sum();
            prop_assert_eq!(shares.iter().map(|share| share.places).sum::<u32>(), wanted.min(limit));
            for (share, demand) in shares.iter().zip(&all) {
                prop_assert!(share.places <= demand.wants && share.places - share.level <= 1);
                if share.places < demand.wants {
                    prop_assert!(shares.iter().all(|other| other.places <= share.places + 1));
                }
            }
        }
    }
}
