//! What became of every call of a load, held against what functions recorded.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use stoker_core::error::{Code, Retry};

use super::{Attempt, Failure};
use crate::cluster::starts::Start;

/// What a check found, for those who want to know more.
#[derive(Debug, Default)]
pub struct Sums {
    pub calls: usize,
    pub answered: usize,
    /// Attempts that were made again.
    pub repeated: usize,
    /// Calls whose last attempt failed.
    pub failed: Vec<Attempt>,
    /// Attempts that reached a function more than once: of idempotent ones this is no mistake.
    pub twice: usize,
}

/// Holds the outcomes of all attempts against what functions recorded: the promises of one outcome, of no second start, and of errors
/// that say whether the call may have started.
///
/// # Panics
/// When a promise is broken.
#[must_use]
pub fn check(attempts: &[Attempt], starts: &HashMap<String, Vec<Start>>, idempotent: bool) -> Sums {
    let mut sums = Sums::default();
    let mut keys = HashSet::new();
    let mut last: HashMap<usize, &Attempt> = HashMap::new();
    for attempt in attempts {
        let Attempt { key, .. } = attempt;
        assert!(keys.insert(key), "{key} has two outcomes");
        let started = starts.get(key).map_or(0, Vec::len);
        assert!(started <= 1 || idempotent, "{key} was started {started} times: {:?}", starts[key]);
        sums.twice += usize::from(started > 1);
        match &attempt.outcome {
            Ok(_) => assert!(started > 0, "{key} was answered by nobody: {attempt:?}"),
            Err(Failure::Said(error)) => {
                let safe = error.retry != Retry::Never;
                assert!(
                    !(safe && error.may_have_started),
                    "{key}: safe, though it may have started: {error:?}"
                );
                let silent = matches!(error.code, Code::RunnerLost | Code::Unavailable | Code::Overloaded);
                if safe || (silent && !error.may_have_started) {
                    assert_eq!(
                        started, 0,
                        "{key} was started, though its error says that it was not: {error:?}"
                    );
                }
            }
            Err(Failure::Unsent(why)) => assert_eq!(started, 0, "{key} was started, though {why}"),
            Err(Failure::Broken(_) | Failure::Left) => {}
        }
        let newest = last.entry(attempt.call).or_insert(attempt);
        if attempt.attempt > newest.attempt {
            *newest = attempt;
        }
        sums.repeated += usize::from(attempt.attempt > 0);
    }
    sums.calls = last.len();
    let (answered, failed): (Vec<&Attempt>, Vec<&Attempt>) =
        last.into_values().partition(|attempt| attempt.outcome.is_ok());
    sums.answered = answered.len();
    sums.failed = failed.into_iter().cloned().collect();
    sums
}

/// The longest time between two answers that began after `since`: how long nobody was served.
#[must_use]
pub fn longest_silence(attempts: &[Attempt], since: Instant) -> Duration {
    let mut times: Vec<_> =
        attempts.iter().filter(|a| a.outcome.is_ok() && a.at >= since).map(|a| a.at).collect();
    times.push(since);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use stoker_core::error::Error;

    use super::*;

    fn attempt(key: &str, outcome: Result<(String, String), Failure>) -> Attempt {
        let key = key.to_owned();
        Attempt { key, call: 0, attempt: 0, balancer: 0, outcome, at: Instant::now() }
    }

    fn started(times: usize) -> HashMap<String, Vec<Start>> {
        let start = Start { key: "k".to_owned(), by: "1-1".to_owned(), version: "-".to_owned() };
        if times == 0 { HashMap::new() } else { HashMap::from([("k".to_owned(), vec![start; times])]) }
    }

    fn answered() -> Result<(String, String), Failure> {
        Ok((String::new(), String::new()))
    }

    fn said(error: Error) -> Result<(String, String), Failure> {
        Err(Failure::Said(error))
    }

    fn lost() -> Error {
        Error::new(Code::RunnerLost, "lost")
    }

    #[test]
    fn what_fits_is_taken() {
        for (outcome, starts) in [
            (answered(), 1),
            (said(lost().may_have_started()), 1),
            (said(lost().may_have_started()), 0),
            (said(Error::new(Code::Unavailable, "stops").retry(Retry::Elsewhere)), 0),
            (Err(Failure::Unsent(String::new())), 0),
            (Err(Failure::Broken(String::new())), 1),
            (Err(Failure::Left), 1),
            (Err(Failure::Left), 0),
        ] {
            let failed = usize::from(outcome.is_err());
            let sums = check(&[attempt("k", outcome)], &started(starts), false);
            assert_eq!((sums.calls, sums.failed.len()), (1, failed));
        }
        assert_eq!(check(&[attempt("k", answered())], &started(2), true).twice, 1);
    }

    #[test]
    fn every_broken_promise_is_seen() {
        for (outcomes, starts) in [
            (vec![answered()], 0),
            (vec![answered()], 2),
            (vec![answered(), said(lost().may_have_started())], 1),
            (vec![said(Error::new(Code::Unavailable, "stops").retry(Retry::Elsewhere))], 1),
            (vec![said(Error::new(Code::Overloaded, "full").retry(Retry::After(Duration::ZERO)))], 1),
            (vec![said(lost())], 1),
            (vec![said(lost().may_have_started().retry(Retry::Elsewhere))], 0),
            (vec![Err(Failure::Unsent(String::new()))], 1),
            (vec![Err(Failure::Left)], 2),
        ] {
            let what = format!("{outcomes:?}, {starts} starts");
            let attempts: Vec<_> = outcomes.into_iter().map(|outcome| attempt("k", outcome)).collect();
            let seen = std::panic::catch_unwind(|| check(&attempts, &started(starts), false));
            assert!(seen.is_err(), "nobody minds {what}");
        }
    }
}
