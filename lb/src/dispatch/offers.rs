//! The offers of one call to runners, as a table: which of them may start it, and what to say to which.
//!
//! A call that waits at a runner does not start there without our word. So it may be offered to a second runner that has an idle
//! container, and keep its place at the first until the second has said yes. What must never be is two runners that may both
//! start it: an offer that is not answered, and a place that was told to start. That is what this table is for.

use stoker_core::listed;
use stoker_core::machine::Machine;

/// How the offer of a call to one runner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OfferState {
    /// There is none.
    Gone,
    /// Offered and not answered: it may start at any moment.
    Asked,
    /// It waits there, and will not start without us.
    Waiting,
    /// A slot is held for it.
    Held,
    /// It starts, or has started.
    Going,
}

/// What becomes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferEvent {
    /// Ours: the call is offered.
    Offer,
    Accepted,
    Ready,
    /// Ours: it may start.
    Start,
    /// The runner said something that it says only of a call that has started.
    Started,
    /// Refused, lost, failed before it had begun, or given up by us.
    Over,
}

listed!(OfferState: Gone, Asked, Waiting, Held, Going);
listed!(OfferEvent: Offer, Accepted, Ready, Start, Started, Over);

impl Machine for OfferState {
    type Event = OfferEvent;
    const MOVES: &'static [(Self, OfferEvent, Self)] = {
        use OfferState::*;
        &[
            (Gone, OfferEvent::Offer, Asked),
            (Asked, OfferEvent::Accepted, Waiting),
            (Asked, OfferEvent::Started, Going),
            (Asked, OfferEvent::Over, Gone),
            (Waiting, OfferEvent::Ready, Held),
            (Waiting, OfferEvent::Over, Gone),
            (Held, OfferEvent::Start, Going),
            (Held, OfferEvent::Over, Gone),
            (Going, OfferEvent::Started, Going),
            (Going, OfferEvent::Over, Gone),
        ]
    };
}

/// One of the two offers of a call: where it was offered first, and where it may be offered while it waits there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    First,
    Second,
}

impl Which {
    pub const BOTH: [Which; 2] = [Which::First, Which::Second];

    fn other(self) -> Self {
        match self {
            Which::First => Which::Second,
            Which::Second => Which::First,
        }
    }
}

/// What to say to a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    Start(Which),
    /// The call is not wanted there any more.
    Leave(Which),
}

/// The offers of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Offers([OfferState; 2]);

impl Default for Offers {
    fn default() -> Self {
        Self([OfferState::Gone; 2])
    }
}

impl Offers {
    pub fn at(&self, which: Which) -> OfferState {
        self.0[which as usize]
    }

    /// Takes what was heard or done. What the table does not have changes nothing: the link's own table has judged it.
    pub fn on(&mut self, which: Which, event: OfferEvent) {
        if let Ok(next) = self.at(which).on(event) {
            self.0[which as usize] = next;
        }
    }

    /// What to say now, if anything; ask again until there is nothing.
    pub fn act(&mut self) -> Option<Act> {
        for which in Which::BOTH {
            let other = self.at(which.other());
            match self.at(which) {
                // It goes here: nobody else need hold a place for it.
                OfferState::Going if other != OfferState::Gone => {
                    self.on(which.other(), OfferEvent::Over);
                    return Some(Act::Leave(which.other()));
                }
                // While the other has not answered it may start there. It will answer: a link that does not is lost.
                OfferState::Held if !matches!(other, OfferState::Asked | OfferState::Going) => {
                    self.on(which, OfferEvent::Start);
                    return Some(Act::Start(which));
                }
                _ => {}
            }
        }
        // The second was asked because it had somebody idle. In its line the call would only make it launch for nothing.
        if self.at(Which::Second) == OfferState::Waiting && self.at(Which::First) != OfferState::Gone {
            self.on(Which::Second, OfferEvent::Over);
            return Some(Act::Leave(Which::Second));
        }
        None
    }

    /// Whether it may be offered to a second runner.
    pub fn may_ask_second(&self) -> bool {
        *self == Self([OfferState::Waiting, OfferState::Gone])
    }

    /// Whether the function may have seen a byte of it.
    pub fn may_have_started(&self) -> bool {
        self.0.iter().any(|offer| matches!(offer, OfferState::Asked | OfferState::Going))
    }

    /// It starts, or has started.
    pub fn started(&self) -> bool {
        self.0.contains(&OfferState::Going)
    }

    /// Nobody has it any more.
    pub fn over(&self) -> bool {
        self.0 == [OfferState::Gone; 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};
    use stoker_core::machine::Listed as _;

    /// The machine against rules said in another way, for every pair.
    #[test]
    fn every_pair() {
        for offer in OfferState::ALL.iter().copied() {
            for event in OfferEvent::ALL.iter().copied() {
                let allowed = match event {
                    OfferEvent::Offer => offer == OfferState::Gone,
                    OfferEvent::Accepted => offer == OfferState::Asked,
                    OfferEvent::Ready => offer == OfferState::Waiting,
                    OfferEvent::Start => offer == OfferState::Held,
                    OfferEvent::Started => matches!(offer, OfferState::Asked | OfferState::Going),
                    OfferEvent::Over => offer != OfferState::Gone,
                };
                assert_eq!(offer.on(event).is_ok(), allowed, "{offer:?} + {event:?}");
            }
        }
    }

    /// A runner, as far as one call goes. It may do everything that the protocol allows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Runner {
        Idle,
        Offered,
        Waits,
        Holds,
        Permitted,
        Done,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Said {
        Offer,
        Start,
        Leave,
        Accepted,
        Ready,
        Started,
        Refused,
    }

    /// Balancer, two runners, and what is on its way between them.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct World {
        offers: Offers,
        runners: [Runner; 2],
        to: [VecDeque<Said>; 2],
        from: [VecDeque<Said>; 2],
        starts: usize,
        asked_second: bool,
    }

    impl World {
        fn say(&mut self) {
            while let Some(act) = self.offers.act() {
                let (which, said) = match act {
                    Act::Start(which) => (which, Said::Start),
                    Act::Leave(which) => (which, Said::Leave),
                };
                self.to[which as usize].push_back(said);
            }
        }

        /// Everything that may happen next.
        fn next(&self) -> Vec<World> {
            let mut worlds = Vec::new();
            if self.offers.may_ask_second() && !self.asked_second {
                let mut world = self.clone();
                world.asked_second = true;
                world.offers.on(Which::Second, OfferEvent::Offer);
                world.to[1].push_back(Said::Offer);
                worlds.push(world);
            }
            for which in Which::BOTH {
                let n = which as usize;
                if !self.from[n].is_empty() {
                    let mut world = self.clone();
                    let said = world.from[n].pop_front();
                    let event = match said {
                        Some(Said::Accepted) => OfferEvent::Accepted,
                        Some(Said::Ready) => OfferEvent::Ready,
                        Some(Said::Started) => OfferEvent::Started,
                        _ => OfferEvent::Over,
                    };
                    // Of a place that was given up nothing is heard.
                    world.offers.on(which, event);
                    world.say();
                    worlds.push(world);
                }
                if !self.to[n].is_empty() {
                    let mut world = self.clone();
                    match world.to[n].pop_front() {
                        Some(Said::Offer) => world.runners[n] = Runner::Offered,
                        Some(Said::Start) if world.runners[n] == Runner::Holds => {
                            world.runners[n] = Runner::Permitted;
                        }
                        Some(Said::Leave) if matches!(world.runners[n], Runner::Waits | Runner::Holds) => {
                            world.runners[n] = Runner::Done;
                        }
                        _ => {}
                    }
                    worlds.push(world);
                }
                let moves: &[(Said, Runner)] = match self.runners[n] {
                    Runner::Idle | Runner::Done => &[],
                    Runner::Offered => &[
                        (Said::Started, Runner::Done),
                        (Said::Accepted, Runner::Waits),
                        (Said::Refused, Runner::Done),
                    ],
                    Runner::Waits => &[(Said::Ready, Runner::Holds), (Said::Refused, Runner::Done)],
                    Runner::Holds => &[(Said::Refused, Runner::Done)],
                    Runner::Permitted => &[(Said::Started, Runner::Done), (Said::Refused, Runner::Done)],
                };
                for (said, then) in moves {
                    let mut world = self.clone();
                    world.starts += usize::from(*said == Said::Started);
                    world.runners[n] = *then;
                    world.from[n].push_back(*said);
                    worlds.push(world);
                }
            }
            worlds
        }
    }

    /// Every order of everything that can happen: never two starts, and an end that is one.
    #[test]
    fn a_call_with_two_places_starts_at_most_once() {
        let mut first = World {
            offers: Offers::default(),
            runners: [Runner::Idle; 2],
            to: Default::default(),
            from: Default::default(),
            starts: 0,
            asked_second: false,
        };
        first.offers.on(Which::First, OfferEvent::Offer);
        first.to[0].push_back(Said::Offer);
        let (mut seen, mut open) = (HashSet::from([first.clone()]), vec![first]);
        let (mut started_first, mut started_second, mut refused) = (0, 0, 0);
        while let Some(world) = open.pop() {
            assert!(world.starts <= 1, "{world:?}");
            let may_start = Which::BOTH
                .iter()
                .filter(|w| matches!(world.offers.at(**w), OfferState::Asked | OfferState::Going));
            assert!(may_start.count() <= 1, "{world:?}");
            assert!(world.starts == 0 || world.offers.may_have_started(), "{world:?}");
            let next = world.next();
            if next.is_empty() {
                // Nothing is on its way, and nobody waits for anybody.
                match [world.offers.at(Which::First), world.offers.at(Which::Second)] {
                    [OfferState::Going, OfferState::Gone] => started_first += 1,
                    [OfferState::Gone, OfferState::Going] => started_second += 1,
                    [OfferState::Gone, OfferState::Gone] => refused += 1,
                    other => panic!("{other:?} is no end: {world:?}"),
                }
                assert_eq!(world.starts, usize::from(!world.offers.over()), "{world:?}");
            }
            open.extend(next.into_iter().filter(|world| seen.insert(world.clone())));
        }
        assert!(seen.len() > 100 && started_first > 0 && started_second > 0 && refused > 0, "{}", seen.len());
    }
}
