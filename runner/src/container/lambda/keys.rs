//! The keys of a function that starts as from a snapshot: it asks for them instead of finding them.

use std::time::{Duration, SystemTime};

use stoker_core::error::Report;
use stoker_core::{Code, Error};
use stoker_format::rfc3339_millis;
use stoker_lambda::Credentials;

/// What it would find in its environment.
const KEYS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
/// When they end, as AWS's tools name it.
const EXPIRY: &str = "AWS_CREDENTIAL_EXPIRATION";
/// How long they may be used, as the function is told where `env` says nothing of it. They are its own, and do not end with that.
const LAST: Duration = Duration::from_secs(6 * 3600);

/// Takes them out of the environment. Keys of which only a part is there, or a time that is none, are mistakes of the function.
pub(super) fn credentials(mut taken: impl FnMut(&str) -> String) -> Result<Credentials, Error> {
    let wrong = |kind: &str, text: String| {
        let (kind, content_type) = (kind.to_owned(), String::new());
        Error::new(Code::FunctionInitFailed, text.clone()).report(Report {
            kind,
            content_type,
            body: text.into(),
        })
    };
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
}
