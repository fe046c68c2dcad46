//! How apps, and the functions of each, divide a runner on which more is wanted than there is.
//!
//! Every app has as much of it as any other, or what it wants where that is less; within an app so have its functions. What somebody holds is
//! the largest part that it has of anything the runner gives out: who holds half of the memory in two containers holds as much as who holds half of
//! the slots.
//!
//! A container goes from one function to another only if whoever gives it up has, after that, no less than whoever takes it has then ([`claim`]). So of
//! the two the smaller part has grown, and the larger is no smaller than it: what is held comes nearer to equal parts with every container that
//! moves, and there is an end to it. An odd container stays where it is. Only where there are more functions than containers do they go round, and
//! each stays for some launches.

use std::collections::BTreeMap;

use stoker_core::Resources;
use stoker_core::resources::Ask;

use crate::launch::WaitingApp;

/// All of a runner, as parts are counted: fine enough for a container of 16 MiB on a runner of 16 TiB.
pub const WHOLE: u64 = 1_000_000;

/// The largest part that `held` is of anything in `total`. Nothing is a part of what there is none of.
#[must_use]
pub fn part(held: &Resources, total: &Resources) -> u64 {
    let of = |held: u64, total: u64| match total {
        0 => 0,
        _ => (u128::from(held) * u128::from(WHOLE) / u128::from(total)) as u64,
    };
    of(held.memory, total.memory)
        .max(of(u64::from(held.cpu_millis), u64::from(total.cpu_millis)))
        .max(of(u64::from(held.slots), u64::from(total.slots)))
}

/// A function, and what it and the whole of its app hold: containers that are there or come, whether or not they work, and not those that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its app, by a hash of the name.
    pub app: u64,
    /// What the app holds.
    pub apps: Resources,
    /// What of it the function holds.
    pub own: Resources,
    /// What one container of it takes.
    pub each: Resources,
    /// Another function of its app has several containers.
    pub spares: bool,
}

/// When one function may have a container of another that calls of its own wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It may not.
    Never,
    /// If its own line has [lasted](crate::launch::Facts::lasts): what is wanted changes from one moment to the next, and to move a container costs
    /// a launch.
    Lasting,
    /// As soon as a launch is worth it: it has no container, and without one it does nothing at all.
    AtOnce,
}

/// What right `taker` has to a container of `giver`, on a runner of this size.
#[must_use]
pub fn claim(taker: &Holder, giver: &Holder, total: &Resources) -> Claim {
    let none = taker.own == Resources::default();
    let (gives, takes, empty) = match taker.app == giver.app {
        true => (giver.own, taker.own, none),
        false => (giver.apps, taker.apps, taker.apps == Resources::default()),
    };
    // Its last one is left to it where another has more: it would be launched again at the cost of that.
    if !none && giver.own == giver.each && giver.spares {
        return Claim::Never;
    }
    let after = gives.checked_sub(giver.each).unwrap_or_default();
    let then = takes.checked_add(taker.each).unwrap_or(*total);
    if part(&after, total) >= part(&then, total) {
        return if none { Claim::AtOnce } else { Claim::Lasting };
    }
    // More functions than containers, or more apps: they take turns.
    if empty { Claim::Lasting } else { Claim::Never }
}

/// What a function has on a runner.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Its app, by a hash of the name.
    pub app: u64,
    /// What a container of it takes.
    pub ask: Ask,
    /// Containers that are there or come, and not those that go.
    pub holds: u32,
    /// Of them those that have calls or are being launched.
    pub works: u32,
    /// Calls of it stand in the line.
    pub waits: bool,
    /// When one of those was served last, as a number that grows over the whole runner.
    pub served: u64,
}

impl Function {
    fn standing(&self) -> Resources {
        let Resources { memory, slots, .. } = self.ask.standing();
        let count = u64::from(self.holds);
        Resources {
            memory: memory.saturating_mul(count),
            cpu_millis: 0,
            slots: slots.saturating_mul(self.holds),
        }
    }

    /// With one container more or not.
    fn working(&self, more: u32) -> Resources {
        let (count, each) = (self.works + more, self.ask);
        Resources {
            memory: each.memory.saturating_mul(u64::from(count)),
            cpu_millis: each.cpu_millis.saturating_mul(count),
            slots: count,
        }
    }
}

#[derive(Debug, Default)]
struct App {
    holds: Resources,
    works: Resources,
    active: bool,
    served: u64,
    /// Functions that have more than one container.
    several: u32,
}

/// What all apps have on a runner, added up from their functions.
#[derive(Debug, Default)]
pub struct Apps(BTreeMap<u64, App>);

impl FromIterator<Function> for Apps {
    fn from_iter<I: IntoIterator<Item = Function>>(functions: I) -> Self {
        let mut apps = Self::default();
        for function in functions {
            let app = apps.0.entry(function.app).or_default();
            app.holds = saturating_add(app.holds, function.standing());
            app.works = saturating_add(app.works, function.working(0));
            app.active |= function.waits || function.works > 0;
            app.served = app.served.max(function.served);
            app.several += u32::from(function.holds > 1);
        }
        apps
    }
}

fn saturating_add(one: Resources, other: Resources) -> Resources {
    Resources {
        memory: one.memory.saturating_add(other.memory),
        cpu_millis: one.cpu_millis.saturating_add(other.cpu_millis),
        slots: one.slots.saturating_add(other.slots),
    }
}

impl Apps {
    /// How the app of a function stands beside others whose calls wait, on a runner of this size. An equal part is that among the apps that work or wait.
    #[must_use]
    pub fn waiting(&self, function: &Function, total: &Resources) -> WaitingApp {
        let active = self.0.values().filter(|app| app.active).count().max(1) as u64;
        let Some(app) = self.0.get(&function.app) else {
            return WaitingApp { held: 0, over: false, served: 0 };
        };
        let one = Function { works: 0, ..*function }.working(1);
        let over = part(&saturating_add(app.works, one), total) > WHOLE / active;
        WaitingApp { held: part(&app.works, total), over, served: app.served }
    }

    /// What a function and its app hold.
    #[must_use]
    pub fn holder(&self, function: &Function) -> Holder {
        let app = self.0.get(&function.app);
        Holder {
            app: function.app,
            apps: app.map_or(Resources::default(), |app| app.holds),
            own: function.standing(),
            each: function.ask.standing(),
            spares: app.is_some_and(|app| app.several > u32::from(function.holds > 1)),
        }
    }
}

/// Containers that one function takes of others, for one launch.
#[derive(Debug)]
pub struct Taking<'a> {
    taker: Holder,
    lasts: bool,
    total: &'a Resources,
    /// What apps would give.
    given: BTreeMap<u64, Resources>,
}

impl<'a> Taking<'a> {
    /// For `taker`, whose line lasts or does not, on a runner of this size.
    #[must_use]
    pub fn new(taker: Holder, lasts: bool, total: &'a Resources) -> Self {
        Self { taker, lasts, total, given: BTreeMap::new() }
    }

    /// How many of `count` containers of a function it may have, whether or not calls wait for them, if it takes all that it was told before that it may
    /// have. Each function is asked about once for each kind of containers.
    pub fn of(&mut self, giver: &Holder, count: usize) -> usize {
        let given = self.given.entry(giver.app).or_default();
        let mut left = Holder { apps: giver.apps.checked_sub(*given).unwrap_or_default(), ..*giver };
        for nth in 0..count {
            match claim(&self.taker, &left, self.total) {
                Claim::Never => return nth,
                Claim::Lasting if !self.lasts => return nth,
                Claim::Lasting | Claim::AtOnce => {}
            }
            left.own = left.own.checked_sub(giver.each).unwrap_or_default();
            left.apps = left.apps.checked_sub(giver.each).unwrap_or_default();
            *given = saturating_add(*given, giver.each);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn standing(memory: u64) -> Resources {
        Resources { memory: memory * MIB, cpu_millis: 0, slots: 1 }
    }

    fn times(each: Resources, count: u32) -> Resources {
        Resources { memory: each.memory * u64::from(count), cpu_millis: 0, slots: count }
    }

    /// A runner on paper: of each function its app, what a container takes, and how many it has.
    #[derive(Debug, Clone)]
    struct Runner {
        total: Resources,
        functions: Vec<(u64, Resources, u32)>,
    }

    impl Runner {
        fn holder(&self, at: usize) -> Holder {
            let function = |(app, each, holds): &(u64, Resources, u32)| {
                let ask = Ask { memory: each.memory, cpu_millis: 0 };
                Function { app: *app, ask, holds: *holds, works: 0, waits: true, served: 0 }
            };
            let apps: Apps = self.functions.iter().map(function).collect();
            apps.holder(&function(&self.functions[at]))
        }

        fn claim(&self, taker: usize, giver: usize) -> Claim {
            claim(&self.holder(taker), &self.holder(giver), &self.total)
        }

        fn held(&self) -> Resources {
            self.functions.iter().fold(Resources::default(), |sum, (_, each, count)| {
                sum.checked_add(times(*each, *count)).unwrap()
            })
        }

        /// Parts of apps, the smallest first.
        fn parts(&self) -> Vec<u64> {
            let apps: BTreeMap<u64, Resources> =
                (0..self.functions.len()).map(|at| (self.functions[at].0, self.holder(at).apps)).collect();
            let mut parts: Vec<u64> = apps.values().map(|held| part(held, &self.total)).collect();
            parts.sort_unstable();
            parts
        }

        /// A container moves, if it may and what goes makes room for what comes.
        fn moves(&mut self, taker: usize, giver: usize) -> bool {
            if taker == giver || self.functions[giver].2 == 0 || self.claim(taker, giver) == Claim::Never {
                return false;
            }
            self.functions[giver].2 -= 1;
            self.functions[taker].2 += 1;
            if self.total.checked_sub(self.held()).is_none() {
                self.functions[taker].2 -= 1;
                self.functions[giver].2 += 1;
                return false;
            }
            true
        }
    }

    #[test]
    fn the_largest_part_of_anything_counts() {
        let total = Resources { memory: 1024 * MIB, cpu_millis: 4000, slots: 8 };
        assert_eq!(part(&standing(64), &total), WHOLE / 8);
        assert_eq!(part(&standing(512), &total), WHOLE / 2);
        assert_eq!(part(&Resources { cpu_millis: 3000, ..standing(0) }, &total), WHOLE / 4 * 3);
        assert_eq!(part(&standing(1), &Resources::default()), 0);
        assert_eq!(
            part(&Resources { memory: u64::MAX, cpu_millis: 0, slots: 0 }, &total),
            u64::MAX / 1024 / MIB * WHOLE + 999_999
        );
    }

    #[test]
    fn apps_come_first_then_functions_and_who_has_nothing_at_all() {
        let total = Resources { memory: 1024 * MIB, cpu_millis: 0, slots: 8 };
        let runner = |counts: [u32; 4]| Runner {
            total,
            functions: [1, 1, 1, 2].into_iter().zip(counts).map(|(app, n)| (app, standing(64), n)).collect(),
        };
        // The other app has more, and will have no less.
        assert_eq!(runner([2, 2, 2, 2]).claim(3, 0), Claim::Lasting);
        assert_eq!(runner([3, 1, 1, 3]).claim(3, 0), Claim::Lasting);
        assert_eq!(runner([2, 1, 1, 4]).claim(3, 0), Claim::Never, "they are equal");
        assert_eq!(runner([2, 2, 1, 4]).claim(3, 0), Claim::Never, "an odd one stays where it is");
        assert_eq!(runner([1, 1, 1, 5]).claim(0, 3), Claim::Lasting);
        // Within an app.
        assert_eq!(runner([6, 1, 0, 1]).claim(1, 0), Claim::Lasting);
        assert_eq!(runner([6, 1, 0, 1]).claim(2, 0), Claim::AtOnce);
        assert_eq!(runner([2, 1, 1, 4]).claim(1, 0), Claim::Never);
        // With none at all.
        assert_eq!(runner([4, 4, 0, 0]).claim(3, 0), Claim::AtOnce);
        assert_eq!(runner([2, 2, 0, 4]).claim(2, 3), Claim::Never, "its app has its part");
        assert_eq!(runner([2, 2, 0, 4]).claim(2, 0), Claim::AtOnce);
        assert_eq!(runner([1, 1, 0, 6]).claim(2, 0), Claim::Lasting, "turns");
        assert_eq!(runner([1, 0, 0, 0]).claim(3, 0), Claim::Lasting, "turns");
        // One container of the larger function is not given for nothing.
        let mut wide = runner([7, 0, 0, 1]);
        wide.functions[3].1 = standing(256);
        assert_eq!(wide.claim(3, 0), Claim::Lasting);
        wide.functions[0].2 = 4;
        assert_eq!(wide.claim(3, 0), Claim::Never);
    }

    proptest! {
        /// Whoever asks whom in whatever order: nothing is made or lost, it comes to an end within as many moves as there are containers for each app and
        /// function, and then no app has two containers more than another that wants more, nor has a function within its app.
        #[test]
        fn equal_parts_are_reached_and_nothing_moves_any_more(
            counts in prop::collection::vec(prop::collection::vec(1u32..12, 1..4), 1..5),
            asks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..400),
        ) {
            let functions: Vec<_> = (0u64..).zip(&counts)
                .flat_map(|(app, counts)| counts.iter().map(move |count| (app, standing(64), *count)))
                .collect();
            let slots: u32 = functions.iter().map(|(.., count)| count).sum();
            let total = Resources { memory: 64 * MIB * u64::from(slots), cpu_millis: 0, slots };
            let mut runner = Runner { total, functions };
            let many = runner.functions.len();
            let mut moved = 0u32;
            for (taker, giver) in asks {
                let (taker, giver) = (taker.index(many), giver.index(many));
                // Turns have no end; they are another matter.
                if runner.functions[taker].2 > 0 {
                    moved += u32::from(runner.moves(taker, giver));
                }
            }
            let pairs = || (0..many).flat_map(|taker| (0..many).map(move |giver| (taker, giver)));
            while pairs().any(|(taker, giver)| runner.functions[taker].2 > 0 && runner.moves(taker, giver)) {
                moved += 1;
                prop_assert!(moved <= slots * slots, "{moved} moves of {slots} containers");
            }
            prop_assert_eq!(runner.held(), total);
            // Of those that want more and are not kept from it by having nothing, which is for turns.
            let wants = |app: u64| runner.functions.iter().any(|(of, _, count)| *of == app && *count > 0);
            let parts: Vec<u64> = runner.functions.iter().enumerate()
                .filter(|(_, (app, ..))| wants(*app))
                .map(|(at, _)| runner.holder(at).apps.slots.into())
                .collect();
            let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{runner:?}");
            for (at, (app, _, count)) in runner.functions.iter().enumerate() {
                let greedy = runner.functions.iter().any(|(of, _, other)| of == app && *other > count + 1);
                prop_assert!(!greedy || *count == 0, "{at}: {runner:?}");
            }
        }

        /// Of whatever size they are, with every container that moves the parts of apps come nearer to each other, or stay while those of one app's
        /// functions do: the smaller of the two that differ has grown.
        #[test]
        fn with_every_move_who_had_least_has_more(
            functions in prop::collection::vec((0u64..4, 16u64..512, 1u32..9), 2..9),
            asks in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..100),
        ) {
            let functions: Vec<_> =
                functions.into_iter().map(|(app, memory, count)| (app, standing(memory), count)).collect();
            let mut runner = Runner { total: Resources::default(), functions };
            runner.total = runner.held();
            let many = runner.functions.len();
            for (taker, giver) in asks {
                let (taker, giver) = (taker.index(many), giver.index(many));
                let before = runner.clone();
                if runner.functions[taker].2 == 0 || !runner.moves(taker, giver) {
                    continue;
                }
                prop_assert!(runner.total.checked_sub(runner.held()).is_some());
                let (own, other) = (runner.holder(taker), runner.holder(giver));
                if own.app == other.app {
                    let part_of = |held: &Resources| part(held, &runner.total);
                    prop_assert!(part_of(&own.own) > part_of(&before.holder(taker).own));
                    prop_assert!(part_of(&other.own) >= part_of(&own.own));
                } else {
                    prop_assert!(runner.parts() > before.parts(), "{before:?} to {runner:?}");
                }
            }
        }
    }

    /// Where there are more functions than containers each has one again and again.
    #[test]
    fn none_is_left_out_of_turns() {
        let total = Resources { memory: 256 * MIB, cpu_millis: 0, slots: 4 };
        let functions = (0..9).map(|n| (u64::from(n > 6), standing(64), u32::from(n < 4))).collect();
        let mut runner = Runner { total, functions };
        let mut waits = [0; 9];
        for _ in 0..200 {
            // Who waits longest asks all others, in the order in which those came to theirs.
            let mut order: Vec<usize> = (0..9).filter(|at| runner.functions[*at].2 == 0).collect();
            order.sort_by_key(|at| std::cmp::Reverse(waits[*at]));
            let mut givers: Vec<usize> = (0..9).collect();
            givers.sort_by_key(|at| waits[*at]);
            let moved = order.iter().find_map(|taker| {
                let giver = givers.iter().find(|giver| runner.moves(*taker, **giver))?;
                Some((*taker, *giver))
            });
            let (taker, giver) = moved.expect("somebody may");
            for wait in &mut waits {
                *wait += 1;
            }
            (waits[taker], waits[giver]) = (0, 0);
            assert!(
                waits.iter().enumerate().all(|(at, wait)| runner.functions[at].2 > 0 || *wait <= 24),
                "{waits:?}"
            );
        }
        assert_eq!(runner.parts(), [WHOLE / 2, WHOLE / 2]);
    }
}
