//! What a function that starts as from a snapshot says of it in its environment: its keys, which it asks for instead of finding them, and the time
//! that its hooks have.

use std::time::{Duration, SystemTime};

use stoker_core::error::Report;
use stoker_core::moment::rfc3339_millis;
use stoker_core::{Code, Error};
use stoker_lambda::Credentials;

/// What it would find in its environment.
const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
/// When they end, as AWS's tools name it.
const EXPIRY: &str = "AWS_CREDENTIAL_EXPIRATION";
/// How long they may be used, as the function is told where `env` says nothing of it. They are its own, and do not end with that.
const LAST: Duration = Duration::from_secs(6 * 3600);

/// How many milliseconds hooks may take.
const HOOKS: &str = "AWS_LAMBDA_RESTORE_HOOK_TIMEOUT_MS";
/// The same where `env` says nothing of it: AWS's; and the most that it may say.
pub(super) const HOOKS_TAKE: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(600);

fn wrong(kind: &str, text: String) -> Error {
    let (kind, content_type) = (kind.to_owned(), String::new());
    Error::new(Code::FunctionInitFailed, text.clone()).report(Report {
        kind,
        content_type,
        body: text.into(),
    })
}

/// The time of hooks, out of the environment.
pub(super) fn hooks(mut taken: impl FnMut(&str) -> String) -> Result<Duration, Error> {
    let text = taken(HOOKS);
    if text.is_empty() {
        return Ok(HOOKS_TAKE);
    }
    let time = text.parse().ok().map(Duration::from_millis).filter(|time| !time.is_zero() && *time <= MOST);
    time.ok_or_else(|| {
        let text = format!("{HOOKS} is {text:?}, not a number from 1 to {}", MOST.as_millis());
        wrong("errCannotParseRestoreHookTimeoutMs", text)
    })
}

/// Takes them out of the environment. Keys of which only a part is there, or a time that is none, are mistakes of the function.
pub(super) fn credentials(mut taken: impl FnMut(&str) -> String) -> Result<Credentials, Error> {
    let [access, secret, session] = KEYS.map(&mut taken);
    let expiry = taken(EXPIRY);
    if access.is_empty() != secret.is_empty() || (access.is_empty() && !session.is_empty()) {
        let text = format!("of {} only a part is in `env`: write the first two, or none", KEYS.join(", "));
        return Err(wrong("errMissingRestoreCredentials", text));
    }
    let until = match &*expiry {
        "" => rfc3339_millis(SystemTime::now() + LAST),
        text if chrono::DateTime::parse_from_rfc3339(text).is_ok() => expiry,
        text => {
            let text = format!("{EXPIRY} is {text:?}, not a time like 2026-01-02T03:04:05Z");
            return Err(wrong("errCannotParseCredentialsExpiry", text));
        }
    };
    Ok(Credentials::new(access, secret, session, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_whole_and_end_at_a_time() {
        let keys = |words: [&str; 3], expiry: &str| {
            let made = credentials(|name| {
                let at = KEYS.iter().position(|key| *key == name);
                at.map_or(expiry, |at| words[at]).to_owned()
            });
            let kind = |error: Error| error.report.map(|report| report.kind).unwrap_or_default();
            made.map(|keys| keys.expiration).map_err(kind)
        };
        let time = "2026-01-02T03:04:05Z";
        assert_eq!(keys(["a", "b", "c"], time).as_deref(), Ok(time));
        assert!(keys(["a", "b", ""], "").is_ok_and(|until| *until > *time));
        assert!(keys(["", "", ""], "").is_ok());
        for part in [["a", "", ""], ["", "b", ""], ["", "", "c"], ["a", "", "c"]] {
            assert_eq!(keys(part, time).unwrap_err(), "errMissingRestoreCredentials", "{part:?}");
        }
        assert_eq!(keys(["a", "b", ""], "tomorrow").unwrap_err(), "errCannotParseCredentialsExpiry");
    }

    #[test]
    fn hooks_have_the_time_that_is_said() {
        let time = |said: &str| hooks(|name| if name == HOOKS { said.to_owned() } else { String::new() });
        assert_eq!(time("").ok(), Some(HOOKS_TAKE));
        assert_eq!(time("1500").ok(), Some(Duration::from_millis(1500)));
        for said in ["0", "soon", "-1", "1.5", "600001", "10s"] {
            let kind = time(said).unwrap_err().report.map(|report| report.kind);
            assert_eq!(kind.as_deref(), Some("errCannotParseRestoreHookTimeoutMs"), "{said}");
        }
    }
}
