//! What a call failed with, and why it was refused.

use stoker_core::Blame;
use stoker_core::error::{Code, Error, Refusal, Report, Retry};

use super::{duration, to_duration};
use crate::{runner, v1};

macro_rules! same_names {
    ($($name:ident),+ $(,)?) => {
        fn to_code(code: Code) -> v1::ErrorCode {
            match code { $(Code::$name => v1::ErrorCode::$name),+ }
        }
        fn code(code: v1::ErrorCode) -> Code {
            match code {
                v1::ErrorCode::Unspecified => Code::Internal,
                $(v1::ErrorCode::$name => Code::$name),+
            }
        }
    };
}
same_names!(
    InvalidRequest,
    NotFound,
    RequestTooLarge,
    HeadersTooLarge,
    MethodNotAllowed,
    Unsupported,
    Unauthenticated,
    PermissionDenied,
    RateLimited,
    Cancelled,
    DeadlineExceeded,
    ResourcesImpossible,
    Overloaded,
    Unavailable,
    RunnerLost,
    Internal,
    FunctionTimeout,
    FunctionFailed,
    FunctionInvalidResponse,
    FunctionCrashed,
    FunctionOutOfMemory,
    FunctionInitFailed,
    FunctionInitTimeout,
    ResponseTooLarge,
    ResponseHeadersTooLarge,
);

/// A call's error. A code of a newer peer counts as internal.
#[must_use]
pub fn call_error(e: v1::CallError) -> Error {
    let retry = match v1::Retry::try_from(e.retry) {
        Ok(v1::Retry::Elsewhere) => Retry::Elsewhere,
        Ok(v1::Retry::After) => Retry::After(e.retry_after.map(duration).unwrap_or_default()),
        _ => Retry::Never,
    };
    Error {
        code: v1::ErrorCode::try_from(e.code).map_or(Code::Internal, code),
        message: e.message,
        retry,
        may_have_started: e.may_have_started,
        log_tail: e.log_tail,
        report: e
            .report
            .map(|r| Box::new(Report { kind: r.kind, content_type: r.content_type, body: r.body })),
    }
}

/// A call's error for the wire.
#[must_use]
pub fn to_call_error(e: &Error) -> v1::CallError {
    let (retry, retry_after) = match e.retry {
        Retry::Never => (v1::Retry::Never, None),
        Retry::Elsewhere => (v1::Retry::Elsewhere, None),
        Retry::After(wait) => (v1::Retry::After, Some(to_duration(wait))),
    };
    let blame = match e.blame() {
        Blame::Caller => v1::Blame::Caller,
        Blame::Function => v1::Blame::Function,
        Blame::Platform => v1::Blame::Platform,
    };
    v1::CallError {
        code: to_code(e.code).into(),
        message: e.message.clone(),
        blame: blame.into(),
        retry: retry.into(),
        retry_after,
        may_have_started: e.may_have_started,
        log_tail: e.log_tail.clone(),
        report: e.report.as_ref().map(|report| v1::ErrorReport {
            kind: report.kind.clone(),
            content_type: report.content_type.clone(),
            body: report.body.clone(),
        }),
    }
}

/// A refusal's reason; one of a newer peer counts as full.
#[must_use]
pub fn refusal(reason: i32) -> Refusal {
    use runner::v1::RefusalReason as R;
    match R::try_from(reason) {
        Ok(R::Draining) => Refusal::Draining,
        Ok(R::TooLarge) => Refusal::TooLarge,
        Ok(R::Expired) => Refusal::Expired,
        Ok(R::LaunchFailed) => Refusal::LaunchFailed,
        Ok(R::NoneIdle) => Refusal::NoneIdle,
        Ok(R::Full | R::Unspecified) | Err(_) => Refusal::Full,
    }
}

/// A refusal's reason for the wire.
#[must_use]
pub fn to_refusal(reason: Refusal) -> runner::v1::RefusalReason {
    use runner::v1::RefusalReason as R;
    match reason {
        Refusal::Full => R::Full,
        Refusal::Draining => R::Draining,
        Refusal::TooLarge => R::TooLarge,
        Refusal::Expired => R::Expired,
        Refusal::LaunchFailed => R::LaunchFailed,
        Refusal::NoneIdle => R::NoneIdle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use stoker_core::machine::Listed as _;

    #[test]
    fn errors_survive_the_way() {
        for code in Code::ALL {
            let error = Error::new(*code, "m")
                .retry(Retry::After(Duration::from_millis(7)))
                .log_tail("t".into())
                .report(Report {
                    kind: "Function.X".into(),
                    content_type: "text/x".into(),
                    body: "b".into(),
                });
            assert_eq!(call_error(to_call_error(&error)), error);
        }
        for reason in Refusal::ALL {
            assert_eq!(refusal(to_refusal(*reason).into()), *reason);
        }
        assert_eq!(call_error(v1::CallError { code: 9999, ..Default::default() }).code, Code::Internal);
    }
}
