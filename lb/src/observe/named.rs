//! Which functions have series of their own among metrics: decided when somebody looks, from what is counted for all of them in any case, so
//! that a call pays nothing for it.
//!
//! So many have a place, the busy ones; one that was not called for a while gives it to one that is. All others are told as one, and what they
//! had when they got a place, or went, stays there: that series never falls, and every call is told once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use stoker_runtime::metrics::OTHER;

use crate::activity::{Numbers, Tally};
use crate::directory::Gate;

/// One that was not called for so long gives its place to another that wants one.
const IDLE: Duration = Duration::from_secs(600);

/// See the module.
pub struct Named {
    most: usize,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    /// Those that were called, by name.
    functions: HashMap<String, Function>,
    /// What was told of the others and is no part of those of now.
    passed: Numbers,
    looks: u64,
}

struct Function {
    gate: Arc<Gate>,
    calls: u64,
    numbers: Numbers,
    /// What of them is told elsewhere.
    before: Option<Box<Numbers>>,
    named: bool,
    /// Calls since the look before this one.
    gained: u64,
    used: Instant,
    /// The last look in which it was there.
    seen: u64,
    /// It has been told of.
    told: bool,
}

/// A function's series, or those of all others.
pub struct Row {
    /// None for the others.
    pub function: Option<(String, Arc<Gate>)>,
    pub numbers: Numbers,
}

impl Row {
    pub fn name(&self) -> &str {
        self.function.as_ref().map_or(OTHER, |(name, _)| name)
    }

    /// Where the exemplars are.
    pub fn tally(&self) -> Option<&Tally> {
        self.function.as_ref().map(|(_, gate)| &gate.tally)
    }
}

impl Function {
    /// What is told of it where it is now.
    fn here(&self) -> Numbers {
        match &self.before {
            Some(before) => self.numbers.since(before),
            None => self.numbers.clone(),
        }
    }

    /// From now on it is told of elsewhere.
    fn turn(&mut self, named: bool) {
        self.named = named;
        self.gate.tally.name(named);
        if self.told {
            self.before = Some(Box::new(self.numbers.clone()));
        }
    }
}

impl Named {
    pub fn new(most: usize) -> Self {
        Self { most, shown: Mutex::default() }
    }

    /// What is to be told now of all these functions.
    pub fn look(&self, functions: impl IntoIterator<Item = (String, Arc<Gate>)>, now: Instant) -> Vec<Row> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = &mut *shown;
        shown.looks += 1;
        for (name, gate) in functions {
            shown.see(name, gate, now);
        }
        shown.leave_out_those_gone();
        shown.give_places(self.most, now);
        shown.rows()
    }
}

impl Shown {
    fn see(&mut self, name: String, gate: Arc<Gate>, now: Instant) {
        if let Some(known) = self.functions.get_mut(&name)
            && Arc::ptr_eq(&known.gate, &gate)
        {
            known.seen = self.looks;
            let calls = gate.tally.calls();
            known.gained = calls - known.calls;
            if known.gained > 0 {
                (known.calls, known.used, known.numbers) = (calls, now, gate.tally.numbers());
            }
            return;
        }
        let (calls, numbers) = (gate.tally.calls(), gate.tally.numbers());
        if calls == 0 {
            return;
        }
        let new = Function {
            gate,
            calls,
            numbers,
            before: None,
            named: false,
            gained: calls,
            used: now,
            seen: self.looks,
            told: false,
        };
        // One of the same name that is another.
        if let Some(gone) = self.functions.insert(name, new) {
            self.pass(&gone);
        }
    }

    /// What it had among the others stays there.
    fn pass(&mut self, function: &Function) {
        if !function.named {
            self.passed.add(&function.here());
        }
    }

    fn leave_out_those_gone(&mut self) {
        let gone: Vec<_> = self.functions.extract_if(|_, function| function.seen != self.looks).collect();
        gone.iter().for_each(|(_, function)| self.pass(function));
    }

    fn give_places(&mut self, most: usize, now: Instant) {
        let mut free = most.saturating_sub(self.functions.values().filter(|one| one.named).count());
        let mut wanted: Vec<_> = self
            .functions
            .iter()
            .filter(|(_, one)| !one.named && one.gained > 0)
            .map(|(name, one)| (std::cmp::Reverse(one.gained), name.clone()))
            .collect();
        wanted.sort_unstable();
        for function in self.functions.values_mut().filter(|one| one.named) {
            let rests = function.gained == 0 && now.saturating_duration_since(function.used) >= IDLE;
            if free < wanted.len() && rests {
                function.turn(false);
                free += 1;
            }
        }
        for (place, (_, name)) in wanted.into_iter().enumerate() {
            let Some(function) = self.functions.get_mut(&name) else { continue };
            if place >= free {
                function.gate.tally.name(false);
                continue;
            }
            if function.told {
                self.passed.add(&function.here());
            }
            function.turn(true);
        }
    }

    fn rows(&mut self) -> Vec<Row> {
        let (mut rows, mut others) = (Vec::new(), self.passed.clone());
        for (name, function) in &mut self.functions {
            function.told = true;
            let numbers = function.here();
            if function.named {
                rows.push(Row { function: Some((name.clone(), function.gate.clone())), numbers });
            } else {
                others.add(&numbers);
            }
        }
        rows.sort_by(|a, b| a.name().cmp(b.name()));
        if others != Numbers::default() {
            rows.push(Row { function: None, numbers: others });
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use stoker_core::error::Blame;

    use super::*;

    fn gates(names: &[&str]) -> Vec<(String, Arc<Gate>)> {
        names.iter().map(|name| ((*name).to_owned(), Arc::default())).collect()
    }

    fn call(gates: &[(String, Arc<Gate>)], at: usize) {
        gates[at].1.tally.count(Duration::from_millis(1), None, false, None);
    }

    fn names(rows: &[Row]) -> Vec<(&str, u64)> {
        rows.iter().map(|row| (row.name(), row.numbers.outcomes[0])).collect()
    }

    #[test]
    fn who_is_idle_gives_its_place_to_who_is_called_most() {
        let (named, all, begin) = (Named::new(1), gates(&["a", "b", "c"]), Instant::now());
        assert!(named.look(all.clone(), begin).is_empty(), "nobody was called");
        call(&all, 0);
        assert_eq!(names(&named.look(all.clone(), begin)), [("a", 1)]);
        call(&all, 1);
        (0..2).for_each(|_| call(&all, 2));
        let soon = begin + IDLE / 2;
        assert_eq!(names(&named.look(all.clone(), soon)), [("a", 1), (OTHER, 3)]);
        // It was called meanwhile.
        [0, 1, 2, 2].into_iter().for_each(|at| call(&all, at));
        assert_eq!(names(&named.look(all.clone(), begin + IDLE)), [("a", 2), (OTHER, 6)]);
        call(&all, 1);
        (0..2).for_each(|_| call(&all, 2));
        assert_eq!(names(&named.look(all.clone(), begin + 2 * IDLE)), [("c", 0), (OTHER, 9)]);
        call(&all, 2);
        assert_eq!(names(&named.look(all[1..].to_vec(), begin + 2 * IDLE)), [("c", 1), (OTHER, 9)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whoever is called, comes and goes: what all series grew by, each from nothing where it is new, is every call that was made, and
        /// no series falls.
        #[test]
        fn every_call_is_told_once(
            most in 0_usize..4,
            steps in prop::collection::vec((0_usize..6, 0_u8..10, 0_u64..900), 1..200),
        ) {
            let (named, begin) = (Named::new(most), Instant::now());
            let mut all = gates(&["a", "b", "c", "d", "e", "f"]);
            let (mut now, mut made, mut told) = (begin, 0, 0);
            let mut last = BTreeMap::new();
            for (at, what, seconds) in steps {
                match what {
                    0..5 => {
                        let blame = (what == 4).then_some(Blame::Function);
                        all[at].1.tally.count(Duration::from_millis(seconds), blame, false, None);
                        made += 1;
                        continue;
                    }
                    5 => now += Duration::from_secs(seconds),
                    _ => {}
                }
                let rows = named.look(all.clone(), now);
                let new: BTreeMap<_, _> =
                    rows.iter().map(|row| (row.name().to_owned(), row.numbers.clone())).collect();
                prop_assert!(rows.iter().filter(|row| row.function.is_some()).count() <= most);
                for (name, numbers) in &new {
                    let before = last.get(name).cloned().unwrap_or_default();
                    let gained = numbers.since(&before);
                    let mut again: Numbers = before;
                    again.add(&gained);
                    prop_assert_eq!(&again, numbers, "it fell");
                    told += gained.outcomes.iter().sum::<u64>();
                    prop_assert_eq!(gained.outcomes.iter().sum::<u64>(), gained.times.count());
                }
                prop_assert_eq!(told, made);
                last = new;
                // Somebody deletes one and applies it anew.
                if what == 9 {
                    all[at].1 = Arc::default();
                    last.remove(&all[at].0);
                }
            }
        }
    }
}
