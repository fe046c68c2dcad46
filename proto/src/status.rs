//! The one table: what happened → gRPC status, HTTP status. And an error's way into gRPC details and back.

use std::time::Duration;

use stoker_core::error::{Code, Error, Retry};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

/// `ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "stoker";

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// `ErrorInfo.reason`, and `code` in HTTP bodies.
    pub reason: &'static str,
    pub grpc: tonic::Code,
    /// HTTP status; where Fn has the same error it is Fn's.
    pub http: u16,
}

/// The table. A function's fault never looks like the platform's: gRPC `UNKNOWN` is the function's, `INTERNAL`,
/// `UNAVAILABLE`, `RESOURCE_EXHAUSTED` and `ABORTED` are ours; a caller over its own quota has `RESOURCE_EXHAUSTED` too, and the reason
/// tells it from a fleet that is full.
#[must_use]
pub fn row(code: Code) -> Row {
    use tonic::Code as G;
    let (reason, grpc, http) = match code {
        Code::InvalidRequest => ("INVALID_REQUEST", G::InvalidArgument, 400),
        Code::NotFound => ("NOT_FOUND", G::NotFound, 404),
        Code::RequestTooLarge => ("REQUEST_TOO_LARGE", G::OutOfRange, 413),
        Code::HeadersTooLarge => ("HEADERS_TOO_LARGE", G::OutOfRange, 431),
        Code::MethodNotAllowed => ("METHOD_NOT_ALLOWED", G::Unimplemented, 405),
        Code::Unsupported => ("UNSUPPORTED", G::Unimplemented, 501),
        Code::Unauthenticated => ("UNAUTHENTICATED", G::Unauthenticated, 401),
        Code::PermissionDenied => ("PERMISSION_DENIED", G::PermissionDenied, 403),
        Code::RateLimited => ("RATE_LIMITED", G::ResourceExhausted, 429),
        Code::Cancelled => ("CANCELLED", G::Cancelled, 499),
        Code::DeadlineExceeded => ("DEADLINE_EXCEEDED", G::DeadlineExceeded, 504),
        Code::ResourcesImpossible => ("RESOURCES_IMPOSSIBLE", G::FailedPrecondition, 400),
        Code::Overloaded => ("OVERLOADED", G::ResourceExhausted, 503),
        Code::Unavailable => ("UNAVAILABLE", G::Unavailable, 503),
        Code::RunnerLost => ("RUNNER_LOST", G::Aborted, 502),
        Code::Internal => ("INTERNAL", G::Internal, 500),
        Code::FunctionTimeout => ("FUNCTION_TIMEOUT", G::DeadlineExceeded, 504),
        Code::FunctionFailed => ("FUNCTION_FAILED", G::Unknown, 502),
        Code::FunctionInvalidResponse => ("FUNCTION_INVALID_RESPONSE", G::Unknown, 502),
        Code::FunctionCrashed => ("FUNCTION_CRASHED", G::Unknown, 502),
        Code::FunctionOutOfMemory => ("FUNCTION_OUT_OF_MEMORY", G::Unknown, 502),
        Code::FunctionInitFailed => ("FUNCTION_INIT_FAILED", G::Unknown, 502),
        Code::FunctionInitTimeout => ("FUNCTION_INIT_TIMEOUT", G::DeadlineExceeded, 504),
        Code::ResponseTooLarge => ("RESPONSE_TOO_LARGE", G::Unknown, 502),
        Code::ResponseHeadersTooLarge => ("RESPONSE_HEADERS_TOO_LARGE", G::Unknown, 502),
    };
    Row { reason, grpc, http }
}

/// The error as a gRPC status with `ErrorInfo` and, where a retry may help, `RetryInfo`.
#[must_use]
pub fn to_status(error: &Error, call_id: &str) -> Status {
    let row = row(error.code);
    let mut metadata = std::collections::HashMap::from([
        ("blame".to_owned(), error.blame().as_str().to_owned()),
        ("retry".to_owned(), error.retry.as_str().to_owned()),
        ("may_have_started".to_owned(), error.may_have_started.to_string()),
    ]);
    if !call_id.is_empty() {
        metadata.insert("call_id".to_owned(), call_id.to_owned());
    }
    if !error.log_tail.is_empty() {
        metadata.insert("log_tail".to_owned(), error.log_tail.clone());
    }
    let mut details = ErrorDetails::with_error_info(row.reason, DOMAIN, metadata);
    match error.retry {
        Retry::Never => {}
        Retry::Elsewhere => _ = details.set_retry_info(Some(Duration::ZERO)),
        Retry::After(wait) => _ = details.set_retry_info(Some(wait)),
    }
    Status::with_error_details(row.grpc, error.message.clone(), details)
}

/// The error that a status carries: ours with all its parts, a foreign one by its gRPC code.
#[must_use]
pub fn from_status(status: &Status) -> Error {
    use stoker_core::machine::Listed as _;
    let details = status.get_error_details();
    let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) else {
        return foreign(status);
    };
    let Some(code) = Code::ALL.iter().copied().find(|code| row(*code).reason == info.reason) else {
        return foreign(status);
    };
    let after = details.retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
    let retry = match info.metadata.get("retry").map(String::as_str) {
        Some("elsewhere") => Retry::Elsewhere,
        Some("after") => Retry::After(after),
        _ => Retry::Never,
    };
    let text = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
    Error {
        code,
        message: status.message().to_owned(),
        retry,
        may_have_started: text("may_have_started") == "true",
        log_tail: text("log_tail"),
        report: None,
    }
}

/// Which call a status of ours is about; empty where it is about none, or is not ours.
#[must_use]
pub fn call_id(status: &Status) -> String {
    let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
    info.and_then(|mut info| info.metadata.remove("call_id")).unwrap_or_default()
}

fn foreign(status: &Status) -> Error {
    let (code, retry) = match status.code() {
        tonic::Code::Unavailable => (Code::Unavailable, Retry::Elsewhere),
        tonic::Code::Cancelled => (Code::Cancelled, Retry::Never),
        tonic::Code::DeadlineExceeded => (Code::DeadlineExceeded, Retry::Never),
        tonic::Code::InvalidArgument => (Code::InvalidRequest, Retry::Never),
        tonic::Code::NotFound => (Code::NotFound, Retry::Never),
        tonic::Code::Unauthenticated => (Code::Unauthenticated, Retry::Never),
        tonic::Code::PermissionDenied => (Code::PermissionDenied, Retry::Never),
        _ => (Code::Internal, Retry::Never),
    };
    Error::new(code, status.message()).retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::machine::Listed as _;

    #[test]
    fn every_code_has_its_own_reason_and_survives_the_way() {
        let mut reasons = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(reasons.insert(row(*code).reason), "{code:?}");
            assert!((400..600).contains(&row(*code).http), "no error is a success");
            for retry in [Retry::Never, Retry::Elsewhere, Retry::After(Duration::from_millis(1500))] {
                let mut error = Error::new(*code, "what happened").log_tail("a\nb".into()).retry(retry);
                error.may_have_started = retry == Retry::Never;
                assert_eq!(from_status(&to_status(&error, "id")), error);
            }
        }
    }

    #[test]
    fn only_the_platform_looks_like_the_platform() {
        use stoker_core::Blame;
        for code in Code::ALL {
            let ours = matches!(
                row(*code).grpc,
                tonic::Code::Internal
                    | tonic::Code::Unavailable
                    | tonic::Code::ResourceExhausted
                    | tonic::Code::Aborted
            );
            let expected = code.blame() == Blame::Platform || *code == Code::RateLimited;
            assert_eq!(ours, expected, "{code:?}");
        }
    }

    #[test]
    fn foreign_statuses_keep_their_meaning() {
        assert_eq!(from_status(&Status::unavailable("x")).code, Code::Unavailable);
        assert_eq!(from_status(&Status::data_loss("x")).code, Code::Internal);
    }
}
