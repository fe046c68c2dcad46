//! What is said of a function that failed, in AWS's words.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::process::Signal;
use stoker_core::error::{Code, Error, Report};
use stoker_core::moment::rfc3339_millis;
use stoker_lambda::Failure;
use stoker_sandbox::{Exit, ExitCause};

pub(super) fn extension_launch(text: String) -> Error {
    let (kind, content_type) = ("Extension.LaunchError".to_owned(), String::new());
    let error = Error::new(Code::FunctionInitFailed, text.clone());
    error.report(Report { kind, content_type, body: text.into() })
}

pub(super) fn extension_exit(cause: ExitCause) -> String {
    match cause {
        ExitCause::Code(0) => "exit code 0".to_owned(),
        ExitCause::Code(code) => format!("exit status {code}"),
        ExitCause::Signal(signal) => format!("signal: {}", signal_name(signal)),
        ExitCause::Lost => "it was lost".to_owned(),
    }
}

pub(super) fn init_error(failure: Failure) -> Error {
    let message = format!("the function could not initialise: {}", failure.told());
    Error::new(Code::FunctionInitFailed, message).report(report(failure))
}

/// A failure as its report.
pub fn report(failure: Failure) -> Report {
    Report { kind: failure.kind, content_type: failure.content_type, body: failure.payload }
}

/// The word on a process that ended. Who knows the invocation [completes](complete) it.
pub fn exited(exit: Exit) -> Report {
    let message = match exit.cause {
        ExitCause::Code(0) => "Runtime exited without providing a reason".to_owned(),
        ExitCause::Code(code) => format!("Runtime exited with error: exit status {code}"),
        ExitCause::Signal(signal) => format!("Runtime exited with error: signal: {}", signal_name(signal)),
        ExitCause::Lost => return Report { kind: "Sandbox.Failure".to_owned(), ..Report::default() },
    };
    Report { kind: "Runtime.ExitError".to_owned(), content_type: String::new(), body: message.into() }
}

/// As Go's runtime, in which AWS's is written, names them.
fn signal_name(signal: i32) -> String {
    let names = [
        (Signal::HUP, "hangup"),
        (Signal::INT, "interrupt"),
        (Signal::QUIT, "quit"),
        (Signal::ILL, "illegal instruction"),
        (Signal::TRAP, "trace/breakpoint trap"),
        (Signal::ABORT, "aborted"),
        (Signal::BUS, "bus error"),
        (Signal::FPE, "floating point exception"),
        (Signal::KILL, "killed"),
        (Signal::USR1, "user defined signal 1"),
        (Signal::SEGV, "segmentation fault"),
        (Signal::USR2, "user defined signal 2"),
        (Signal::PIPE, "broken pipe"),
        (Signal::ALARM, "alarm clock"),
        (Signal::TERM, "terminated"),
    ];
    let name = names.iter().find(|(known, _)| known.as_raw() == signal);
    name.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}

/// What the log has of an invocation that was ended and did not end by itself, before its `END`.
pub fn last(error: &Error, request_id: &str, timeout: Duration, now: SystemTime) -> Option<String> {
    match (&error.report, error.code) {
        (None, Code::FunctionTimeout) => {
            let time = rfc3339_millis(now);
            Some(format!("{time} {request_id} Task timed out after {:.2} seconds\n", timeout.as_secs_f64()))
        }
        // One with a type of its content is the function's own word.
        (Some(report), _) if report.content_type.is_empty() => {
            let text = String::from_utf8_lossy(&report.body);
            Some(format!("RequestId: {request_id} Error: {text}\n{}", report.kind))
        }
        _ => None,
    }
}

/// An error with the body that callers of AWS Lambda know: a report without a type is a message about an invocation that was not
/// known yet.
pub fn complete(mut error: Error, request_id: &str, timeout: Duration) -> Error {
    let message = match (&error.report, error.code) {
        (Some(report), _) if !report.content_type.is_empty() => return error,
        (Some(report), _) => (report.kind.clone(), String::from_utf8_lossy(&report.body).into_owned()),
        (None, Code::FunctionTimeout | Code::FunctionInitTimeout) => {
            let text = format!("Task timed out after {:.2} seconds", timeout.as_secs_f64());
            ("Sandbox.Timedout".to_owned(), text)
        }
        (None, Code::FunctionInvalidResponse) => {
            ("Runtime.TruncatedResponse".to_owned(), error.message.clone())
        }
        (None, Code::FunctionInitFailed) => ("Runtime.InvalidEntrypoint".to_owned(), error.message.clone()),
        (None, _) => return error,
    };
    let (kind, text) = message;
    let body = Bytes::from(stoker_lambda::fault::body(&kind, request_id, &text));
    error.report = Some(Box::new(Report { kind, content_type: "application/json".to_owned(), body }));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_an_invocation_was_ended() {
        let said = |error: Error| last(&error, "ID", Duration::from_millis(1500), SystemTime::UNIX_EPOCH);
        let timeout = said(Error::new(Code::FunctionTimeout, "x"));
        assert_eq!(
            timeout.as_deref(),
            Some("1970-01-01T00:00:00.000Z ID Task timed out after 1.50 seconds\n")
        );
        let ended = |cause| {
            let exit = Exit { cause, out_of_memory: false };
            said(Error::new(Code::FunctionCrashed, "x").report(exited(exit)))
        };
        let text = |why: &str| Some(format!("RequestId: ID Error: Runtime exited {why}\nRuntime.ExitError"));
        assert_eq!(ended(ExitCause::Code(0)), text("without providing a reason"));
        assert_eq!(ended(ExitCause::Code(4)), text("with error: exit status 4"));
        assert_eq!(ended(ExitCause::Signal(2)), text("with error: signal: interrupt"));
        assert_eq!(ended(ExitCause::Signal(40)), text("with error: signal: signal 40"));
        let own = Report { kind: "E".into(), content_type: "application/json".into(), body: "{}".into() };
        assert_eq!(
            said(Error::new(Code::FunctionFailed, "x").report(own)),
            None,
            "the function said it itself"
        );
    }
}
