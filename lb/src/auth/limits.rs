//! How much each may ask for: calls a second by a bucket of tokens, calls at once by counting them, and bytes of bodies a second.
//!
//! How many bytes a call has is known when they have passed. So bytes are paid for as they pass, on credit: a call that is let in may go to its end, and
//! no other is let in until what it took is paid off.
//!
//! A limit that is for many names has a measure for each. There are only so many: those that are full and unused make room, and when none is, further
//! names share one, so that inventing names wins nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_runtime::auth::Limit;

/// Measures of one balancer: some megabytes.
const MEASURES: usize = 50_000;

/// What is said to one whose calls of now must end first: nobody knows when.
const SOON: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Default)]
pub struct Limiter {
    /// By a hash of limit and names, whose key nobody knows outside.
    measures: Mutex<HashMap<u64, Measure>>,
    hasher: RandomState,
}

struct Measure {
    tokens: f64,
    /// Below nothing there is a debt.
    bytes: f64,
    at: Instant,
    running: u32,
}

/// The part of a call that runs; given back when dropped.
pub struct Share {
    limiter: Arc<Limiter>,
    /// Those that count calls at once.
    of: Vec<u64>,
    meter: Option<Meter>,
}

impl Share {
    /// What counts the bytes of the call's bodies, if they are limited.
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }
}

/// Counts bytes of one call.
#[derive(Clone)]
pub struct Meter {
    limiter: Arc<Limiter>,
    of: Arc<[u64]>,
}

impl Meter {
    /// So many bytes have passed.
    pub fn passed(&self, bytes: usize) {
        let mut measures = self.limiter.lock();
        for key in &*self.of {
            if let Some(measure) = measures.get_mut(key) {
                measure.bytes -= bytes as f64;
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut measures = self.limiter.lock();
        for key in &self.of {
            if let Some(measure) = measures.get_mut(key) {
                measure.running = measure.running.saturating_sub(1);
            }
        }
    }
}

impl Limiter {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Measure>> {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes from every limit that is for these names, or from none of them.
    ///
    /// # Errors
    /// After which time it is worth another try.
    pub fn enter(
        self: &Arc<Self>,
        limits: &[Limit],
        identity: &str,
        app: &str,
        now: Instant,
    ) -> Result<Option<Share>, Duration> {
        let covers = |limit: &&Limit| {
            limit.identity.as_ref().is_none_or(|pattern| pattern.covers(identity))
                && limit.app.as_ref().is_none_or(|pattern| pattern.covers(app))
        };
        if !limits.iter().any(|limit| covers(&limit)) {
            return Ok(None);
        }
        let mut measures = self.lock();
        let mut fitting = Vec::new();
        for (at, limit) in limits.iter().enumerate().filter(|(_, limit)| covers(limit)) {
            let names = (limit.identity.as_ref().map(|_| identity), limit.app.as_ref().map(|_| app));
            let mut key = self.hasher.hash_one((at, names));
            if !measures.contains_key(&key) && measures.len() >= MEASURES {
                measures.retain(|_, measure| {
                    measure.running > 0 || measure.bytes < 0.0 || now.duration_since(measure.at) < IDLE
                });
                if measures.len() >= MEASURES {
                    key = self.hasher.hash_one(at);
                }
            }
            let measure = measures.entry(key).or_insert(Measure {
                tokens: limit.burst,
                bytes: limit.bytes_burst,
                at: now,
                running: 0,
            });
            let passed = now.saturating_duration_since(measure.at).as_secs_f64();
            measure.at = now;
            if let Some(rate) = limit.bytes_per_second {
                measure.bytes = (measure.bytes + passed * rate).min(limit.bytes_burst);
            }
            if let Some(rate) = limit.calls_per_second {
                measure.tokens = (measure.tokens + passed * rate).min(limit.burst);
                if measure.tokens < 1.0 {
                    return Err(Duration::from_secs_f64((1.0 - measure.tokens) / rate));
                }
            }
            if let Some(rate) = limit.bytes_per_second
                && measure.bytes <= 0.0
            {
                // One byte more than the debt, so that whoever comes then is let in.
                return Err(Duration::from_secs_f64((1.0 - measure.bytes) / rate));
            }
            if limit.concurrent.is_some_and(|most| measure.running >= most) {
                return Err(SOON);
            }
            fitting.push((key, limit));
        }
        let (mut of, mut metered) = (Vec::new(), Vec::new());
        for (key, limit) in fitting {
            let Some(measure) = measures.get_mut(&key) else { continue };
            if limit.calls_per_second.is_some() {
                measure.tokens -= 1.0;
            }
            if limit.concurrent.is_some() {
                measure.running += 1;
                of.push(key);
            }
            if limit.bytes_per_second.is_some() {
                metered.push(key);
            }
        }
        drop(measures);
        let meter = (!metered.is_empty()).then(|| Meter { limiter: self.clone(), of: metered.into() });
        let held = meter.is_some() || !of.is_empty();
        Ok(held.then(|| Share { limiter: self.clone(), of, meter }))
    }
}

/// A measure that nobody used for so long is as good as a new one.
const IDLE: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_runtime::auth::Access;

    fn limits(text: &str) -> Vec<Limit> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Access::read(file.path()).unwrap().limits().to_vec()
    }

    #[test]
    fn a_second_gives_what_it_says_to_each_and_no_more() {
        let limits = limits("limits: [{identity: '*', calls_per_second: 10, burst: 5}]");
        let limiter = Arc::new(Limiter::default());
        let begin = Instant::now();
        let mut let_in = HashMap::new();
        // A hundred tries each in every tenth of a second, for ten seconds.
        for tenth in 0..100 {
            for who in ["a", "b"] {
                for _ in 0..100 {
                    let now = begin + Duration::from_millis(tenth * 100);
                    if limiter.enter(&limits, who, "app", now).is_ok() {
                        *let_in.entry(who).or_insert(0) += 1;
                    }
                }
            }
        }
        // Five at once and ten a second after that.
        assert_eq!(let_in, HashMap::from([("a", 104), ("b", 104)]));
        let wait = limiter.enter(&limits, "a", "app", begin + Duration::from_millis(9950)).err().unwrap();
        assert!(wait <= Duration::from_millis(100) && wait > Duration::ZERO, "{wait:?}");
    }

    #[test]
    fn calls_at_once_come_back_and_a_refusal_takes_nothing() {
        let limits = limits(
            "limits:\n  - {identity: a, concurrent: 2}\n  - {app: '*', calls_per_second: 1, burst: 3}\n",
        );
        let limiter = Arc::new(Limiter::default());
        let now = Instant::now();
        let first = limiter.enter(&limits, "a", "x", now).ok().flatten().unwrap();
        let _second = limiter.enter(&limits, "a", "x", now).ok().flatten().unwrap();
        for _ in 0..10 {
            assert!(limiter.enter(&limits, "a", "x", now).is_err());
        }
        drop(first);
        let _third = limiter.enter(&limits, "a", "x", now).expect("refusals took nothing of the other limit");
        assert!(limiter.enter(&limits, "b", "x", now).is_err(), "the app has had its three");
        assert!(limiter.enter(&limits, "b", "y", now).is_ok(), "another app has its own");
    }

    #[test]
    fn bytes_are_paid_for_as_they_pass_and_debts_by_waiting() {
        let limits = limits("limits: [{app: '*', bytes_per_second: 1000, bytes_burst: 5000}]");
        let limiter = Arc::new(Limiter::default());
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let enter = |app: &str, seconds: f64| limiter.enter(&limits, "a", app, at(seconds));
        let call = enter("x", 0.0).ok().flatten().unwrap();
        call.meter().unwrap().passed(4000);
        let second = enter("x", 0.0).ok().flatten().unwrap();
        second.meter().unwrap().passed(4000);
        let wait = enter("x", 0.0).err().unwrap();
        assert_eq!(wait, Duration::from_secs_f64(3.001), "3000 bytes of debt");
        assert!(enter("y", 0.0).is_ok(), "another app has its own");
        // What is under way goes on, and is paid for too.
        call.meter().unwrap().passed(1000);
        drop((call, second));
        assert!(enter("x", 3.5).is_err());
        assert!(enter("x", 4.1).is_ok());
        // A long rest gives no more than the burst.
        let rested = enter("x", 1000.0).ok().flatten().unwrap();
        rested.meter().unwrap().passed(5001);
        assert!(enter("x", 1000.0).is_err());
    }

    #[test]
    fn over_time_no_more_passes_than_what_is_allowed_and_one_call() {
        // Calls of any size, as often as they are let in.
        let limits = limits("limits: [{app: a, bytes_per_second: 1000, bytes_burst: 1000}]");
        let limiter = Arc::new(Limiter::default());
        let begin = Instant::now();
        let (mut seed, mut total) = (7_u64, 0);
        for step in 0..10_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = (seed >> 33) as usize % 3000;
            if let Ok(share) = limiter.enter(&limits, "", "a", begin + Duration::from_millis(step * 10)) {
                share.unwrap().meter().unwrap().passed(size);
                total += size;
            }
        }
        assert!((98_000..=104_000).contains(&total), "{total} in 100 seconds");
    }

    #[test]
    fn names_that_nobody_has_heard_of_share_what_is_left() {
        let limits = limits("limits: [{identity: '*', calls_per_second: 1, burst: 1}]");
        let limiter = Arc::new(Limiter::default());
        let now = Instant::now();
        let let_in = (0..MEASURES + 1000)
            .filter(|n| limiter.enter(&limits, &n.to_string(), "app", now).is_ok())
            .count();
        assert_eq!(let_in, MEASURES + 1, "the rest had one measure between them");
        assert!(limiter.lock().len() <= MEASURES + 1);
        let later = now + IDLE;
        assert!(limiter.enter(&limits, "new", "app", later).is_ok());
        assert!(limiter.lock().len() < 10, "those that nobody uses made room");
    }
}
