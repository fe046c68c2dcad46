//! What a runtime says when something failed: the class of the error, its body, its cause.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest cause that is kept, in bytes: X-Ray's.
pub const MAX_CAUSE: usize = 64 * 1024;
/// The content type of an error body that carries its cause.
pub const CAUSE_TYPE: &str = "application/vnd.aws.lambda.error.cause+json";

/// The class of an error of a runtime as callers may see it: `Runtime.` or `Function.` and a name stay, all else becomes `Unknown`.
/// The whole text must be of that form, so that nothing rides along.
#[must_use]
pub fn scrub(said: &str) -> &str {
    match () {
        () if named(said, "Runtime.") || named(said, "Function.") => said,
        () if said.starts_with("Function.") => "Function.Unknown",
        () => "Runtime.Unknown",
    }
}

/// The same for what an extension says.
#[must_use]
pub fn scrub_extension(said: &str) -> &str {
    if named(said, "Extension.") { said } else { "Extension.Unknown" }
}

fn named(said: &str, prefix: &str) -> bool {
    said.strip_prefix(prefix).is_some_and(|name| {
        name.len() > 1
            && name.as_bytes()[0].is_ascii_uppercase()
            && name.bytes().all(|b| b.is_ascii_alphabetic())
    })
}

/// The body of the error of a process that ended, ran out of time and so on, in AWS's words. The order of the fields is
/// theirs.
#[must_use]
pub fn body(kind: &str, request_id: &str, message: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        error_type: &'a str,
        error_message: String,
    }
    let error_message = match request_id.is_empty() {
        true => format!("Error: {message}"),
        false => format!("RequestId: {request_id} Error: {message}"),
    };
    serde_json::to_vec(&Body { error_type: kind, error_message }).expect("text is JSON")
}

/// An error body without its cause, and the cause.
///
/// `None` when it is not what its content type says.
#[must_use]
pub fn split(text: &[u8]) -> Option<(Vec<u8>, Option<Cause>)> {
    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Whole<'a> {
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error_message: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        error_type: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stack_trace: Vec<String>,
        #[serde(borrow, default, skip_serializing)]
        error_cause: Option<&'a RawValue>,
    }
    let whole: Whole<'_> = serde_json::from_slice(text).ok()?;
    let cause = whole.error_cause.and_then(|cause| Cause::read(cause.get().as_bytes()));
    Some((serde_json::to_vec(&whole).ok()?, cause))
}

/// Why an invocation failed, for traces: `Lambda-Runtime-Function-XRay-Error-Cause`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    pub exceptions: Vec<Exception>,
    pub working_directory: String,
    pub paths: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// One error of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exception {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub stack: Vec<Frame>,
}

/// A place in a program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frame {
    pub path: String,
    pub line: i64,
    pub label: String,
}

impl Cause {
    /// Reads one; `None` when it is no cause or says nothing.
    #[must_use]
    pub fn read(text: &[u8]) -> Option<Self> {
        let cause: Self = serde_json::from_slice(text).ok()?;
        let empty = cause.exceptions.is_empty()
            && cause.working_directory.is_empty()
            && cause.paths.is_empty()
            && cause.message.is_empty();
        (!empty).then_some(cause)
    }

    /// As JSON of at most [`MAX_CAUSE`] bytes: what is too long loses the ends of its lists first.
    #[must_use]
    pub fn write(&self) -> String {
        let text = |cause: &Self| serde_json::to_string(cause).expect("a cause is JSON");
        let whole = text(self);
        if whole.len() <= MAX_CAUSE {
            return whole;
        }
        for fifths in [4, 3, 2, 1] {
            let mut less = self.clone();
            less.exceptions.truncate(less.exceptions.len() * fifths / 5);
            less.paths.truncate(less.paths.len() * fifths / 5);
            let less = text(&less);
            if less.len() <= MAX_CAUSE {
                return less;
            }
        }
        let half = (MAX_CAUSE - 4096) / 2;
        let mut bare = Self {
            working_directory: cropped(&self.working_directory, half),
            message: cropped(&self.message, half),
            ..Self::default()
        };
        // Escapes can make six bytes of one.
        while text(&bare).len() > MAX_CAUSE {
            bare.working_directory = cropped(&bare.working_directory, bare.working_directory.len() / 2);
            bare.message = cropped(&bare.message, bare.message.len() / 2);
        }
        text(&bare)
    }
}

fn cropped(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(most.saturating_sub(3));
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_scrubbed() {
        for kept in ["Runtime.ExitError", "Function.ResponseSizeTooLarge", "Runtime.Xy", "Function.Custom"] {
            assert_eq!(scrub(kept), kept);
        }
        let others = [
            ("", "Runtime.Unknown"),
            ("MyCustomError", "Runtime.Unknown"),
            ("MyCustomError.Error", "Runtime.Unknown"),
            ("xRuntime.FooBar;evil", "Runtime.Unknown"),
            ("Runtime.FooBar\r\nx: y", "Runtime.Unknown"),
            ("Function.lower", "Function.Unknown"),
            ("Function.", "Function.Unknown"),
            ("unhandled", "Runtime.Unknown"),
        ];
        for (said, seen) in others {
            assert_eq!(scrub(said), seen, "{said:?}");
        }
        assert_eq!(scrub_extension("Extension.ConfigInvalid"), "Extension.ConfigInvalid");
        assert_eq!(scrub_extension("Runtime.ExitError"), "Extension.Unknown");
    }

    #[test]
    fn bodies_are_aws_s() {
        let with = body("Runtime.ExitError", "id-1", "Runtime exited without providing a reason");
        assert_eq!(
            String::from_utf8(with).unwrap(),
            r#"{"errorType":"Runtime.ExitError","errorMessage":"RequestId: id-1 Error: Runtime exited without providing a reason"}"#
        );
        assert!(String::from_utf8(body("X", "", "m")).unwrap().contains(r#""errorMessage":"Error: m""#));
    }

    #[test]
    fn the_cause_leaves_the_body() {
        let text = br#"{"errorMessage":"m","errorType":"T","errorCause":{"message":"why","extra":1}}"#;
        let (body, cause) = split(text).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), r#"{"errorMessage":"m","errorType":"T"}"#);
        assert_eq!(cause.unwrap().message, "why");
        assert_eq!(split(br#"{"errorType":"T","errorCause":{}}"#).unwrap().1, None);
        assert_eq!(split(b"not json"), None);
    }

    #[test]
    fn a_cause_that_is_too_long_is_cut_and_stays_a_cause() {
        let exception = Exception { message: "x".repeat(1000), ..Exception::default() };
        let many = Cause { exceptions: vec![exception; 100], ..Cause::default() };
        let text = many.write();
        assert!(text.len() <= MAX_CAUSE);
        assert_eq!(Cause::read(text.as_bytes()).unwrap().exceptions.len(), 60);
        let long = Cause {
            message: "\u{1}ü".repeat(100_000),
            working_directory: "d".repeat(100_000),
            ..Cause::default()
        };
        let text = long.write();
        assert!(text.len() <= MAX_CAUSE);
        assert!(Cause::read(text.as_bytes()).unwrap().message.ends_with("..."));
        assert_eq!(Cause::read(b"{}"), None);
        assert_eq!(Cause::read(b"[]"), None);
    }
}
