//! How many calls are made for later beside callers who wait: as many as make no difference to them, found by listening.
//!
//! What a call spends on its way, outside its function, is longer where processors and runners have more to do than they can do at once. While
//! somebody waits for answers, the calls that are made for later measure it on themselves: as long as it is what it is with little of them,
//! there may be more, and as soon as it is not there are fewer. Now and then one at a time is made, to learn what little costs by now. So a fleet that
//! idles is used, and one that is busy is left to those who wait.

use std::time::{Duration, Instant};

/// Callers are there for so long after they were last seen: who calls a thousand times a second is often between two calls.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What is listened to at once, at most.
const ROUND: usize = 32;

/// So much longer than with little is too long.
const FACTOR: f64 = 1.15;
const ALLOWANCE: Duration = Duration::from_micros(25);

/// After so many rounds it is found out anew what little costs, since that changes with what the others do.
const RENEWED: u32 = 64;

/// Calls that are made for it, alone.
const ALONE: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct BackgroundLimit {
    size: f64,
    most: usize,
    /// It never was too long yet: until then the number doubles from round to round.
    young: bool,
    /// On the way with little else there, in seconds.
    least: f64,
    heard: Vec<Duration>,
    rounds: u32,
    alone: Option<Alone>,
    until: Option<Instant>,
}

/// While it is found out what little costs.
#[derive(Debug)]
struct Alone {
    /// Calls that began before, and are not heard.
    before: usize,
    /// How many it goes on with.
    size: f64,
}

impl BackgroundLimit {
    pub fn new(most: usize) -> Self {
        let (heard, least) = (Vec::new(), f64::INFINITY);
        Self { size: 1.0, most, young: true, least, heard, rounds: 0, alone: None, until: None }
    }

    /// How many at once, beside this many callers; nothing: nobody waits, and all that there is room for may be used.
    pub fn most(&mut self, callers: usize, now: Instant) -> Option<usize> {
        if callers > 0 {
            self.until = Some(now + REMEMBERED);
        }
        if self.until.is_some_and(|until| now < until) {
            return Some(self.size as usize);
        }
        if self.until.take().is_some() {
            // Others come to other fleets: what was learned is not what they meet.
            *self = Self::new(self.most);
        }
        None
    }

    /// When callers will be forgotten, as far as is known.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// A call was made, and this was its way.
    pub fn made(&mut self, way: Duration) {
        if self.until.is_none() {
            return;
        }
        if let Some(Alone { before: before @ 1.., .. }) = &mut self.alone {
            *before -= 1;
            return;
        }
        self.heard.push(way);
        if self.heard.len() < (self.size as usize).clamp(ALONE, ROUND) {
            return;
        }
        self.heard.sort_unstable();
        let middle = self.heard[self.heard.len() / 2].as_secs_f64();
        self.heard.clear();
        if let Some(alone) = self.alone.take() {
            (self.least, self.size) = (middle, alone.size);
            return;
        }
        self.least = self.least.min(middle);
        if middle > self.least * FACTOR + ALLOWANCE.as_secs_f64() {
            self.young = false;
            self.size = (self.size * 0.7).max(1.0);
        } else {
            let step = if self.young { self.size } else { 1.0 };
            self.size = (self.size + step).min(self.most.max(1) as f64);
        }
        self.rounds += 1;
        if self.rounds >= RENEWED {
            self.rounds = 0;
            self.alone = Some(Alone { before: self.size as usize, size: self.size });
            self.size = 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fleet that carries `room` calls without delay, with `others` of those who wait in it.
    fn run(
        limit: &mut BackgroundLimit,
        now: &mut Instant,
        room: usize,
        others: usize,
        calls: usize,
    ) -> usize {
        let mut sum = 0;
        for _ in 0..calls {
            *now += Duration::from_millis(1);
            let size = limit.most(others, *now).expect("somebody waits");
            let load = (size + others) as f64 / room as f64;
            limit.made(Duration::from_micros(200).mul_f64(load.max(1.0)));
            sum += size;
        }
        sum / calls
    }

    #[test]
    fn a_fleet_that_idles_is_used_and_one_that_is_busy_is_left_alone() {
        let (mut limit, mut now) = (BackgroundLimit::new(64), Instant::now());
        assert_eq!(limit.most(0, now), None, "nobody waits");
        run(&mut limit, &mut now, 1000, 4, 400);
        assert_eq!(run(&mut limit, &mut now, 1000, 4, 100), 64);
        let mut limit = BackgroundLimit::new(64);
        run(&mut limit, &mut now, 24, 4, 1000);
        let few = run(&mut limit, &mut now, 24, 4, 3000);
        assert!((12..=36).contains(&few), "some twenty more fit: {few}");
        // More come who wait: what was too much no more is too much again.
        run(&mut limit, &mut now, 24, 22, 200);
        let fewer = run(&mut limit, &mut now, 24, 22, 500);
        assert!(fewer <= few / 2, "{fewer} after {few}");
    }

    #[test]
    fn callers_are_remembered_between_two_calls_and_forgotten_after_a_while() {
        let (mut limit, now) = (BackgroundLimit::new(8), Instant::now());
        assert_eq!(limit.most(1, now), Some(1));
        assert_eq!(limit.most(0, now + Duration::from_millis(900)), Some(1));
        for _ in 0..100 {
            limit.made(Duration::from_micros(100));
        }
        assert_eq!(limit.most(0, now + Duration::from_millis(950)), Some(8));
        assert_eq!(limit.most(0, now + Duration::from_millis(1000)), None);
        assert_eq!(limit.most(1, now + Duration::from_secs(9)), Some(1), "it begins anew");
    }
}
