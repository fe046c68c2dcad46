//! What a registry says about a refusal, for whoever has to mend it: that a limit of pulls was reached, or which policy denies an image.

use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use serde::Deserialize;
use tokio::time::timeout;

use super::http;

/// Bytes of an answer that are looked at.
const ANSWER: u64 = 64 << 10;
/// How long a registry may take to say it: the status alone is answer enough.
const LIMIT: Duration = Duration::from_secs(2);
/// Characters that are passed on.
const LONGEST: usize = 300;

/// The first of the errors that an answer names, in quotes, unless it is secret. Pages for browsers say nothing that could be passed on.
pub(super) async fn of(body: Incoming, secret: impl Fn(&str) -> bool) -> Option<String> {
    if body.is_end_stream() {
        return None;
    }
    let bytes = timeout(LIMIT, http::whole(body, ANSWER)).await.ok()?.ok()?;
    first(&bytes, secret)
}

fn first(bytes: &[u8], secret: impl Fn(&str) -> bool) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Said>,
    }
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let said = serde_json::from_slice::<Answer>(bytes).ok()?.errors.into_iter().next()?;
    let text = if said.message.trim().is_empty() { said.code } else { said.message };
    // Looked at before it is cut: half a password is one, too.
    if secret(&text) {
        return None;
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = text.chars().take(LONGEST).collect();
    (!short.is_empty()).then(|| format!("{short:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_passed_on_and_nothing_that_steers_a_terminal() {
        let cases = [
            (
                r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#,
                Some("\"pull rate limit\""),
            ),
            (r#"{"errors":[{"code":"DENIED"},{"code":"X","message":"y"}]}"#, Some("\"DENIED\"")),
            (
                "{\"errors\":[{\"message\":\"a\\u001b[2J\\nb\",\"detail\":{\"x\":1}}]}",
                Some("\"a\\u{1b}[2J b\""),
            ),
            (r#"{"errors":[{"code":"","message":" "}]}"#, None),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
            ("", None),
        ];
        for (answer, said) in cases {
            assert_eq!(first(answer.as_bytes(), |_| false).as_deref(), said, "{answer}");
        }
        let long = serde_json::json!({"errors": [{"message": "x".repeat(1000)}]}).to_string();
        assert_eq!(first(long.as_bytes(), |_| false).map(|said| said.len()), Some(LONGEST + 2));
        let cut = format!("{}secret", "x".repeat(LONGEST - 3));
        let cut = serde_json::json!({"errors": [{"message": cut}]}).to_string();
        assert_eq!(first(cut.as_bytes(), |text| text.contains("secret")), None);
    }
}
