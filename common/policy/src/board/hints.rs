//! What runners said of how warm they are.

use std::time::Instant;

use stoker_core::capacity::Warmth;

use super::Seat;

/// What a runner said of a version of a function.
#[derive(Clone, Copy)]
pub struct Hint {
    pub seat: Seat,
    pub warmth: Warmth,
    /// The record that it is of, or that came after.
    pub era: u32,
    pub at: Instant,
}

impl Hint {
    /// What one more call would wait for there, in calls that run at once.
    pub fn line(&self) -> f64 {
        f64::from(self.warmth.waiting + 1) / f64::from(self.warmth.busy.max(1))
    }
}

/// Who runs a version: those that said that somebody is idle, and those where all are busy.
#[derive(Default)]
pub struct Warm {
    pub idle: Vec<Hint>,
    pub busy: Vec<Hint>,
}

impl Warm {
    pub fn put(&mut self, hint: Hint) {
        let is = |known: &Hint| known.seat.at == hint.seat.at;
        // Most of the time it stays where it is.
        let (here, there) = match hint.warmth.idle {
            0 => (&mut self.busy, &mut self.idle),
            _ => (&mut self.idle, &mut self.busy),
        };
        let known = here.iter().position(is);
        match known {
            Some(at) if hint.warmth.idle > 0 || hint.warmth.busy > 0 => here[at] = hint,
            Some(at) => {
                here.swap_remove(at);
            }
            None => {
                if let Some(at) = there.iter().position(is) {
                    there.swap_remove(at);
                }
                if hint.warmth.idle > 0 || hint.warmth.busy > 0 {
                    here.push(hint);
                }
            }
        }
    }

    pub fn used(&mut self, seat: Seat) {
        let is = |hint: &Hint| hint.seat == seat;
        if let Some(at) = self.idle.iter().position(is) {
            let Warmth { idle, busy, .. } = &mut self.idle[at].warmth;
            (*idle, *busy) = (*idle - 1, *busy + 1);
            if *idle == 0 {
                let hint = self.idle.swap_remove(at);
                self.busy.push(hint);
            }
        } else if let Some(hint) = self.busy.iter_mut().find(|hint| is(hint)) {
            hint.warmth.waiting += 1;
        }
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&Hint) -> bool) {
        self.idle.retain(&mut keep);
        self.busy.retain(&mut keep);
    }

    pub fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.busy.is_empty()
    }
}
