//! The end of an answer as AWS's direct invoke tells it: by trailers, which say whether what came is all of it, to callers that can read
//! them. To others an answer that is not whole breaks off.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{HeaderName, HeaderValue, TE, TRAILER};
use http::request::Parts;
use http::{HeaderMap, Version};
use stoker_core::Format;
use stoker_core::call::reads_trailers;
use stoker_core::error::{Code, Error};

/// What a runner puts on the answers of such invokes, and on no others of this format.
const TOKEN: &str = "reservation-token";

/// The class of a failure.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("error-type");

const END: HeaderName = HeaderName::from_static("end-of-response");
const FAILED: HeaderName = HeaderName::from_static("lambda-runtime-function-error-type");
const BODY: HeaderName = HeaderName::from_static("lambda-runtime-function-error-body");

/// Bytes of a failure's own words in a trailer: kits read no more than so much of all trailers together.
const LONGEST: usize = 12 * 1024;

/// Whether an answer with these headers ends with trailers for the one who asked with that head.
pub fn is_told(format: Format, asked: &Parts, answer: &HeaderMap) -> bool {
    // In HTTP/2, too, only to one who says so: another would take a part for the whole.
    let reads = || {
        let mut said = asked.headers.get_all(TE).iter();
        asked.version >= Version::HTTP_11 && said.any(|te| reads_trailers(te.as_bytes()))
    };
    format == Format::Lambda && answer.contains_key(TOKEN) && reads()
}

/// Names what will come at the end.
pub fn announce(answer: &mut HeaderMap) {
    for name in [END, FAILED, BODY] {
        answer.append(TRAILER, HeaderValue::from(name));
    }
}

/// How an answer ended: a function that fails in its midst has said all that it had to say.
pub fn ending(outcome: Result<(), &Error>) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let Err(error) = outcome else {
        trailers.insert(END, HeaderValue::from_static("Complete"));
        return trailers;
    };
    let (end, kind) = match error.code {
        Code::FunctionFailed => ("Complete", "Runtime.Unknown"),
        Code::ResponseTooLarge => ("Oversized", "Function.ResponseSizeTooLarge"),
        Code::FunctionTimeout | Code::DeadlineExceeded => ("Truncated", "Sandbox.Timeout"),
        Code::FunctionInvalidResponse => ("Truncated", "Runtime.TruncatedResponse"),
        _ => ("Truncated", "Sandbox.Failure"),
    };
    trailers.insert(END, HeaderValue::from_static(end));
    let report = error.report.as_deref().filter(|report| !report.kind.is_empty());
    let own = report.and_then(|report| HeaderValue::from_str(&report.kind).ok());
    trailers.insert(FAILED, own.unwrap_or(HeaderValue::from_static(kind)));
    if let Some(report) = report.filter(|report| (1..=LONGEST).contains(&report.body.len()))
        && let Ok(body) = HeaderValue::from_str(&BASE64.encode(&report.body))
    {
        trailers.insert(BODY, body);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use stoker_core::error::Report;

    use super::*;

    #[test]
    fn trailers_are_for_those_who_read_them() {
        let asked = |version, te| {
            let request = http::Request::builder().version(version).header(TE, te);
            request.body(()).expect("a request").into_parts().0
        };
        let asks = asked(Version::HTTP_11, "gzip, Trailers");
        let direct = HeaderMap::from_iter([(HeaderName::from_static(TOKEN), HeaderValue::from_static("1"))]);
        assert!(is_told(Format::Lambda, &asks, &direct));
        assert!(!is_told(Format::HttpStream, &asks, &direct), "a header of the function's own");
        assert!(!is_told(Format::Lambda, &asked(Version::HTTP_11, "gzip"), &direct));
        assert!(!is_told(Format::Lambda, &asked(Version::HTTP_10, "trailers"), &direct));
        assert!(!is_told(Format::Lambda, &asks, &HeaderMap::new()));
    }

    #[test]
    fn every_end_has_its_words() {
        let of = |outcome: Result<(), &Error>| {
            let trailers = ending(outcome);
            let get =
                |name: HeaderName| trailers.get(name).map(|value| value.to_str().expect("text").to_owned());
            (get(END).expect("always there"), get(FAILED), get(BODY))
        };
        assert_eq!(of(Ok(())), ("Complete".to_owned(), None, None));
        let own = |kind: &str, body: &'static [u8]| {
            let (kind, content_type) = (kind.to_owned(), String::new());
            Error::new(Code::FunctionFailed, "x").report(Report { kind, content_type, body: body.into() })
        };
        let (end, kind, body) = of(Err(&own("Function.Mine", b"{}")));
        assert_eq!(
            (&*end, kind.as_deref(), body.as_deref()),
            ("Complete", Some("Function.Mine"), Some("e30="))
        );
        let (end, kind, body) = of(Err(&own("a\nb", &[b'x'; LONGEST + 1])));
        assert_eq!((&*end, kind.as_deref(), body), ("Complete", Some("Runtime.Unknown"), None));
        for (code, expected) in [
            (Code::ResponseTooLarge, ("Oversized", "Function.ResponseSizeTooLarge")),
            (Code::FunctionTimeout, ("Truncated", "Sandbox.Timeout")),
            (Code::FunctionInvalidResponse, ("Truncated", "Runtime.TruncatedResponse")),
            (Code::FunctionCrashed, ("Truncated", "Sandbox.Failure")),
            (Code::RunnerLost, ("Truncated", "Sandbox.Failure")),
        ] {
            let (end, kind, _) = of(Err(&Error::new(code, "x")));
            assert_eq!((&*end, kind.as_deref()), (expected.0, Some(expected.1)), "{code:?}");
        }
    }
}
