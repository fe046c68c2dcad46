//! How much each may ask for: calls a second by a bucket of tokens, and calls at once by counting them.
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
    at: Instant,
    running: u32,
}

/// The part of a call that runs; given back when dropped.
pub struct Share {
    limiter: Arc<Limiter>,
    of: Vec<u64>,
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
                measures.retain(|_, measure| measure.running > 0 || now.duration_since(measure.at) < IDLE);
                if measures.len() >= MEASURES {
                    key = self.hasher.hash_one(at);
                }
            }
            let measure = measures.entry(key).or_insert(Measure { tokens: limit.burst, at: now, running: 0 });
            if let Some(rate) = limit.calls_per_second {
                let passed = now.saturating_duration_since(measure.at).as_secs_f64();
                measure.tokens = (measure.tokens + passed * rate).min(limit.burst);
                if measure.tokens < 1.0 {
                    measure.at = now;
                    return Err(Duration::from_secs_f64((1.0 - measure.tokens) / rate));
                }
            }
            measure.at = now;
            if limit.concurrent.is_some_and(|most| measure.running >= most) {
                return Err(SOON);
            }
            fitting.push((key, limit));
        }
        let mut of = Vec::new();
        for (key, limit) in fitting {
            let Some(measure) = measures.get_mut(&key) else { continue };
            if limit.calls_per_second.is_some() {
                measure.tokens -= 1.0;
            }
            if limit.concurrent.is_some() {
                measure.running += 1;
                of.push(key);
            }
        }
        drop(measures);
        Ok((!of.is_empty()).then(|| Share { limiter: self.clone(), of }))
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
