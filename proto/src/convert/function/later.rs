//! What a function says about its asynchronous calls.

use std::time::Duration;

use stoker_core::later::{Later, Target};

use crate::convert::{duration, to_duration};
use crate::v1;

/// Reads it; what is wrong with its texts is said to `bad`. Its numbers are checked with the function.
pub(super) fn read(l: v1::Later, mut bad: impl FnMut(String)) -> Later {
    let default = Later::default();
    let ms = |value: Option<prost_types::Duration>, default| {
        value.map_or(default, |value| u64::try_from(duration(value).as_millis()).unwrap_or(u64::MAX))
    };
    let mut target = |key: &str, text: String| {
        let read = (!text.is_empty()).then(|| Target::parse(&text))?;
        read.map_err(|why| bad(format!("{key}: {why}"))).ok()
    };
    Later {
        max_attempts: if l.max_attempts == 0 { default.max_attempts } else { l.max_attempts },
        backoff_ms: ms(l.backoff, default.backoff_ms),
        max_age_ms: ms(l.max_age, default.max_age_ms),
        result_ttl_ms: ms(l.result_ttl, default.result_ttl_ms),
        delay_ms: ms(l.delay, default.delay_ms),
        dead_letter: target("dead_letter", l.dead_letter),
        on_success: target("on_success", l.on_success),
        on_failure: target("on_failure", l.on_failure),
    }
}

/// And the other way.
pub(super) fn write(l: &Later) -> v1::Later {
    let ms = |ms| Some(to_duration(Duration::from_millis(ms)));
    let text = |target: &Option<Target>| target.as_ref().map(Target::to_string).unwrap_or_default();
    v1::Later {
        max_attempts: l.max_attempts,
        backoff: ms(l.backoff_ms),
        max_age: ms(l.max_age_ms),
        result_ttl: ms(l.result_ttl_ms),
        delay: ms(l.delay_ms),
        dead_letter: text(&l.dead_letter),
        on_success: text(&l.on_success),
        on_failure: text(&l.on_failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_the_way_and_mistakes_are_named() {
        let later = Later {
            max_attempts: 7,
            backoff_ms: 20,
            delay_ms: 3_000,
            dead_letter: Target::parse("a/b").ok(),
            on_failure: Target::parse("nats:x.y").ok(),
            ..Later::default()
        };
        assert_eq!(read(write(&later), |wrong| panic!("{wrong}")), later);
        let mut wrong = Vec::new();
        let text = v1::Later { dead_letter: "nowhere".into(), ..Default::default() };
        assert_eq!(read(text, |text| wrong.push(text)), Later::default());
        assert!(wrong.len() == 1 && wrong[0].starts_with("dead_letter: `nowhere`"), "{wrong:?}");
    }
}
