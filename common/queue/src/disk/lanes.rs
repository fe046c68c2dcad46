//! How much there is of each function, and when the next is due: what those who serve know without a look at the file.

use std::collections::BTreeMap;

use super::tables::Firsts;
use crate::Backlog;

/// All functions of which there is something.
#[derive(Default)]
pub struct Lanes(BTreeMap<String, Lane>);

#[derive(Default)]
struct Lane {
    queued: u64,
    running: u64,
    /// When the first is due.
    first: Option<u64>,
    /// When the next is due of those that were not when this was looked up.
    next: Option<u64>,
}

/// What a transaction has changed.
#[derive(Default)]
pub struct Changes {
    /// Function, and how many more are queued and running.
    pub counts: Vec<(String, i64, i64)>,
    pub firsts: Vec<Firsts>,
    pub ended: Vec<String>,
    pub cancelled: Vec<String>,
}

impl Lanes {
    /// One more waits. Those of a function are told in the order in which they are due.
    pub fn waits(&mut self, function: &str, due: u64, now: u64) {
        if !self.0.contains_key(function) {
            self.0.insert(function.to_owned(), Lane { first: Some(due), ..Lane::default() });
        }
        let Some(lane) = self.0.get_mut(function) else { return };
        lane.queued += 1;
        if lane.next.is_none() && due > now {
            lane.next = Some(due);
        }
    }

    /// One more runs.
    pub fn runs(&mut self, function: String) {
        self.0.entry(function).or_default().running += 1;
    }

    /// Functions of which something is due.
    pub fn due(&self, now: u64) -> Vec<String> {
        let due = self.0.iter().filter(|(_, lane)| lane.first.is_some_and(|first| first <= now));
        due.map(|(function, _)| function.clone()).collect()
    }

    /// Functions of which something has become due since it was looked up.
    pub fn passed(&self, now: u64) -> Vec<String> {
        let passed = self.0.iter().filter(|(_, lane)| lane.next.is_some_and(|next| next <= now));
        passed.map(|(function, _)| function.clone()).collect()
    }

    /// When that will be so of the next.
    pub fn next(&self) -> Option<u64> {
        self.0.values().filter_map(|lane| lane.next).min()
    }

    pub fn backlog(&self, now: u64) -> Vec<Backlog> {
        let of = |(function, lane): (&String, &Lane)| Backlog {
            function: function.clone(),
            queued: lane.queued,
            running: lane.running,
            oldest_due_ms: lane.first.filter(|first| *first <= now),
        };
        self.0.iter().map(of).collect()
    }

    pub fn change(&mut self, counts: Vec<(String, i64, i64)>, firsts: Vec<Firsts>) {
        for (function, queued, running) in counts {
            let lane = self.0.entry(function).or_default();
            lane.queued = lane.queued.saturating_add_signed(queued);
            lane.running = lane.running.saturating_add_signed(running);
        }
        for (function, first, next) in firsts {
            let Some(lane) = self.0.get_mut(&function) else { continue };
            (lane.first, lane.next) = (first, next);
            if lane.queued == 0 && lane.running == 0 {
                self.0.remove(&function);
            }
        }
    }
}
