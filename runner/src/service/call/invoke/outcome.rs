//! What became of an invocation, in words: errors for its caller, and the last line of its log.

use std::time::Duration;

use stoker_core::error::Report;
use stoker_core::{Code, Error};
use stoker_lambda::{Failure, Refused};

use super::Offer;
use crate::container::{Container, lambda};

/// More came than the caller takes, of an answer that was to be a whole.
pub(super) fn oversized(most: usize) -> Error {
    let kind = "Function.ResponseSizeTooLarge";
    let message = format!("Response payload size exceeded maximum allowed payload size ({most} bytes).");
    let body = format!(r#"{{"errorMessage":"{message}","errorType":"{kind}"}}"#);
    let text = format!("the function's answer is larger than the {most} bytes that its caller takes");
    let (kind, content_type) = (kind.to_owned(), "application/json".to_owned());
    Error::new(Code::ResponseTooLarge, text).may_have_started().report(Report {
        kind,
        content_type,
        body: body.into(),
    })
}

/// It is not what callers by HTTP can be given.
pub(super) fn no_response(why: &str) -> Error {
    let text = format!("the function's answer is no HTTP response: {why}");
    Error::new(Code::FunctionInvalidResponse, text).may_have_started()
}

/// Why it did not come to an invocation.
pub(super) fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Header(name) => Error::new(
            Code::InvalidRequest,
            format!("what is said for {name} has characters that no HTTP header can carry"),
        ),
        Refused::TooLarge => Error::new(Code::RequestTooLarge, "the event is too large"),
        Refused::Twice => {
            let text = "an invocation with this request id is under way in this container";
            let (kind, content_type) = ("Client.DuplicatedInvokeId".to_owned(), String::new());
            Error::new(Code::InvalidRequest, text).report(Report { kind, content_type, body: text.into() })
        }
        Refused::NotJson => Error::new(Code::InvalidRequest, "the event is not JSON"),
        Refused::Busy | Refused::NotReady => {
            Error::new(Code::Internal, "the container was given a call that it cannot take")
        }
    }
}

/// What the function, or what runs it, said of its end.
pub(super) fn failed(failure: Failure) -> Error {
    let told = failure.told();
    let error = match (failure.broken, &*failure.kind) {
        (true, "Extension.InitError" | "Extension.ExitError" | "Extension.Crash") => {
            Error::new(Code::FunctionCrashed, format!("an extension ended the function: {told}"))
        }
        (true, _) => Error::new(
            Code::FunctionInvalidResponse,
            format!("the function's runtime broke its contract: {told}"),
        ),
        (false, "Function.ResponseSizeTooLarge") => {
            Error::new(Code::ResponseTooLarge, format!("the function said too much at once: {told}"))
        }
        (false, _) => Error::new(Code::FunctionFailed, format!("the function failed: {told}")),
    };
    error.may_have_started().report(lambda::report(failure))
}

/// The most memory that is known of it, in MiB, begun ones included.
pub(super) fn used(container: &Container) -> u64 {
    container.used().map_or(0, |used| used.memory_peak.div_ceil(1 << 20))
}

/// What AWS's log says of an invocation at its end. `took`: from when the function was asked; `init`: how long its container took to initialise,
/// where it was the first.
pub(super) fn report_line(
    id: &str,
    offer: &Offer,
    took: Duration,
    init: Option<Duration>,
    container: &Container,
    error: Option<&Error>,
) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let used = used(container);
    let mut line = format!(
        "REPORT RequestId: {id}\tDuration: {:.2} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {used} MB",
        ms(took),
        took.as_nanos().div_ceil(1_000_000),
        offer.spec.memory >> 20,
    );
    if let Some(init) = init {
        line.push_str(&format!("\tInit Duration: {:.2} ms", ms(init)));
    }
    match error.map(|error| error.code) {
        None | Some(Code::FunctionFailed) => {}
        Some(Code::FunctionTimeout) => line.push_str("\tStatus: timeout"),
        Some(_) => {
            let kind = error.and_then(|e| e.report.as_ref()).map_or("Runtime.Unknown", |report| &report.kind);
            line.push_str(&format!("\tStatus: error\tError Type: {kind}"));
        }
    }
    line
}
