//! Calls for later: what a function's author says about its asynchronous calls, and when it is called by itself.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use serde::{Deserialize, Serialize};

use crate::function::FunctionName;
use crate::units::format_duration;

/// `async` in the function file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Later {
    /// Starts of one call at most; a call that could not be started has not used one up.
    pub max_attempts: u32,
    /// Milliseconds before the second attempt; twice that before the third, and so on.
    pub backoff_ms: u64,
    /// Milliseconds from the time a call was due after which it is not started any more.
    pub max_age_ms: u64,
    /// Milliseconds that a call and its result are kept after its end.
    pub result_ttl_ms: u64,
    /// Milliseconds before the first attempt, where the caller says nothing.
    pub delay_ms: u64,
    /// Where a call goes that is given up: with its own head and body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Target>,
    /// Where a report goes about every call that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Target>,
    /// Where a report goes about every call that was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Target>,
}

impl Default for Later {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            backoff_ms: 1_000,
            max_age_ms: 6 * HOUR_MS,
            result_ttl_ms: 24 * HOUR_MS,
            delay_ms: 0,
            dead_letter: None,
            on_success: None,
            on_failure: None,
        }
    }
}

const HOUR_MS: u64 = 3_600_000;

/// Most attempts.
pub const MAX_ATTEMPTS: u32 = 100;
/// Longest time between two attempts.
pub const MAX_BACKOFF: Duration = Duration::from_secs(3600);
/// Longest age and longest delay, in milliseconds.
pub const MAX_AGE_MS: u64 = 7 * 24 * HOUR_MS;
/// Schedules of one function.
pub const MAX_SCHEDULES: usize = 32;
/// Bytes of a schedule's body.
pub const MAX_SCHEDULE_BODY: usize = 64 * 1024;
/// Bytes of an idempotency key.
pub const MAX_KEY: usize = 256;

impl Later {
    /// Nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How long to wait before attempt `next`, which is at least the second: doubling, spread by a quarter either way so that
    /// calls that failed together do not come back together.
    #[must_use]
    pub fn backoff(&self, next: u32, seed: u64) -> Duration {
        let first = Duration::from_millis(self.backoff_ms);
        let step = usize::try_from(next.saturating_sub(2).min(32)).unwrap_or(32);
        crate::backoff::Backoff::new(first, MAX_BACKOFF, seed).nth(step).unwrap_or(MAX_BACKOFF)
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self, own: &FunctionName) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=MAX_ATTEMPTS).contains(&self.max_attempts) {
            problems.push(format!("max_attempts: {} is not between 1 and {MAX_ATTEMPTS}", self.max_attempts));
        }
        let most = MAX_BACKOFF.as_millis() as u64;
        for (key, value, least, most) in [
            ("backoff", self.backoff_ms, 1, most),
            ("max_age", self.max_age_ms, 1_000, MAX_AGE_MS),
            ("result_ttl", self.result_ttl_ms, 0, MAX_AGE_MS),
            ("delay", self.delay_ms, 0, MAX_AGE_MS),
        ] {
            if !(least..=most).contains(&value) {
                let [value, least, most] =
                    [value, least, most].map(|ms| format_duration(Duration::from_millis(ms)));
                problems.push(format!("{key}: {value} is not between {least} and {most}"));
            }
        }
        for (key, target) in [
            ("dead_letter", &self.dead_letter),
            ("on_success", &self.on_success),
            ("on_failure", &self.on_failure),
        ] {
            if matches!(target, Some(Target::Function(name)) if name == own) {
                problems.push(format!("{key}: a function's calls cannot go to itself, that would never end"));
            }
        }
        problems
    }
}

/// Where calls and reports go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Another function, called for later.
    Function(FunctionName),
    /// A subject of the queue's NATS.
    Subject(String),
}

impl Target {
    /// Reads `app/function` or `nats:subject`.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("nats:") {
            Some(subject) if is_subject(subject) => Ok(Target::Subject(subject.to_owned())),
            Some(_) => Err(format!("`{text}` is not a subject: write it like nats:orders.failed")),
            None => FunctionName::parse(text).map(Target::Function).ok_or_else(|| {
                format!("`{text}` is no target: write app/function, or nats:subject for a subject of NATS")
            }),
        }
    }
}

/// A subject to publish to: words with dots between, no wildcards, and not one of Stoker's or NATS's own.
fn is_subject(text: &str) -> bool {
    let word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && !b"*>".contains(&b));
    text.len() <= 255 && text.split('.').all(word) && !text.starts_with('$') && !text.starts_with("stoker.")
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Function(name) => name.fmt(f),
            Target::Subject(subject) => write!(f, "nats:{subject}"),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

/// One entry of `schedules` in the function file: when the function is called by itself, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields of cron, in UTC.
    pub cron: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

impl Schedule {
    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.body.len() > MAX_SCHEDULE_BODY {
            return Some(format!("body: has more than {MAX_SCHEDULE_BODY} bytes"));
        }
        match Times::parse(&self.cron) {
            Err(why) => Some(why),
            Ok(times) if times.after(0).is_none() => Some(format!("cron: `{}` never comes", self.cron)),
            Ok(_) => None,
        }
    }
}

/// The times that a schedule means.
#[derive(Debug, Clone)]
pub struct Times(Cron);

impl Times {
    /// Reads minute, hour, day of the month, month and day of the week.
    ///
    /// # Errors
    /// A sentence that says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: String| {
            format!(
                "cron: `{text}` {why}: write minute, hour, day, month and day of the week, like `0 4 * * 1-5`"
            )
        };
        if text.len() > 256 {
            return Err(wrong("is too long".to_owned()));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        parser.parse(text).map(Self).map_err(|error| wrong(format!("is not understood ({error})")))
    }

    /// The first of them after a time; both in milliseconds since 1970.
    #[must_use]
    pub fn after(&self, ms: u64) -> Option<u64> {
        let from: DateTime<Utc> = DateTime::from_timestamp_millis(i64::try_from(ms).ok()?)?;
        let next = self.0.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> FunctionName {
        FunctionName::new("demo", "hello").unwrap()
    }

    #[test]
    fn silence_is_valid_and_stays_silent() {
        assert_eq!(Later::default().problems(&own()), Vec::<String>::new());
        let read: Later = serde_json::from_str(r#"{"max_attempts":1}"#).unwrap();
        assert_eq!(read, Later { max_attempts: 1, ..Later::default() });
        assert!(serde_json::from_str::<Later>(r#"{"attempts":1}"#).is_err());
    }

    #[test]
    fn every_limit_is_checked() {
        let later = Later {
            max_attempts: 0,
            backoff_ms: 0,
            max_age_ms: 0,
            result_ttl_ms: MAX_AGE_MS + 1,
            delay_ms: MAX_AGE_MS + 1,
            dead_letter: Some(Target::Function(own())),
            ..Later::default()
        };
        let keys: Vec<_> = later
            .problems(&own())
            .iter()
            .map(|p| p.split(':').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(keys, ["max_attempts", "backoff", "max_age", "result_ttl", "delay", "dead_letter"]);
    }

    #[test]
    fn waits_double_up_to_an_hour() {
        let later = Later::default();
        for (next, base) in [(2, 1.0), (3, 2.0), (5, 8.0), (40, 3600.0)] {
            let wait = later.backoff(next, 7).as_secs_f64();
            assert!((base * 0.75..=base * 1.25).contains(&wait), "attempt {next}: {wait}");
        }
    }

    #[test]
    fn targets_are_functions_or_subjects() {
        assert_eq!(Target::parse("a/b").unwrap(), Target::Function(FunctionName::new("a", "b").unwrap()));
        assert_eq!(Target::parse("nats:a.b").unwrap(), Target::Subject("a.b".into()));
        for wrong in
            ["", "a", "nats:", "nats:a..b", "nats:a.*", "nats:>", "nats:$JS.API", "nats:stoker.x", "nats:a b"]
        {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
        let text = serde_json::to_string(&Target::parse("nats:a.b").unwrap()).unwrap();
        assert_eq!(text, r#""nats:a.b""#);
    }

    #[test]
    fn schedules_say_when() {
        let times = Times::parse("*/5 * * * *").unwrap();
        assert_eq!(times.after(0), Some(300_000));
        assert_eq!(times.after(300_000), Some(600_000));
        assert_eq!(Times::parse("0 4 * * 1-5").unwrap().after(0), Some(4 * HOUR_MS));
        for wrong in ["", "* * * *", "* * * * * *", "61 * * * *", "soon"] {
            assert!(Times::parse(wrong).is_err(), "{wrong}");
        }
        let never = Schedule { cron: "0 0 31 2 *".into(), body: String::new() };
        assert!(never.problem().is_some_and(|why| why.contains("never")));
    }
}
