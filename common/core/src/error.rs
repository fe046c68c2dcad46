//! The one error of a call: what happened, whose fault it is, whether a retry is safe.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::listed;

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Whoever sent the call.
    Caller,
    /// Whoever wrote the function.
    Function,
    /// Whoever runs Stoker.
    Platform,
}

impl Blame {
    /// `caller`, `function`, `platform`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Blame::Caller => "caller",
            Blame::Function => "function",
            Blame::Platform => "platform",
        }
    }
}

/// Whether the same call may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It would fail again, or it may already have had an effect.
    Never,
    /// It surely had no effect; at once, on another runner or balancer.
    Elsewhere,
    /// It surely had no effect; not before this time has passed.
    After(Duration),
}

impl Retry {
    /// `never`, `elsewhere`, `after`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Retry::Never => "never",
            Retry::Elsewhere => "elsewhere",
            Retry::After(_) => "after",
        }
    }
}

/// What happened. The table in `stoker_proto::status` gives each its gRPC and HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request cannot be understood.
    InvalidRequest,
    /// No such function, trigger or runner.
    NotFound,
    /// The request's body is over a limit.
    RequestTooLarge,
    /// The request's headers are over a limit.
    HeadersTooLarge,
    /// The method is not the one that this door takes.
    MethodNotAllowed,
    /// The request asks for a part of its protocol that is not spoken here.
    Unsupported,
    /// Nobody is known by what the request shows.
    Unauthenticated,
    /// Whoever asks is known, and may not.
    PermissionDenied,
    /// Whoever asks has had its share for now.
    RateLimited,
    /// The caller went away or cancelled.
    Cancelled,
    /// The caller's deadline passed before the function had finished.
    DeadlineExceeded,
    /// No machine of this fleet could ever hold the function.
    ResourcesImpossible,
    /// Every runner is full and the queue, or the caller's patience, ended.
    Overloaded,
    /// There is no runner to ask.
    Unavailable,
    /// The runner went away; the message says whether the call may have started.
    RunnerLost,
    /// A mistake of ours.
    Internal,
    /// The function took longer than its `timeout`.
    FunctionTimeout,
    /// The function says that it failed.
    FunctionFailed,
    /// The function's answer breaks its format.
    FunctionInvalidResponse,
    /// The function's process ended before it had answered.
    FunctionCrashed,
    /// The function needed more than its `memory`.
    FunctionOutOfMemory,
    /// The function's process ended, or could not be started, before it was ready.
    FunctionInitFailed,
    /// The function was not ready within its `init_timeout`.
    FunctionInitTimeout,
    /// The function's answer is over a limit.
    ResponseTooLarge,
    /// The headers of the function's answer are over a limit.
    ResponseHeadersTooLarge,
}

listed!(Code: InvalidRequest, NotFound, RequestTooLarge, HeadersTooLarge, MethodNotAllowed, Unsupported,
    Unauthenticated, PermissionDenied, RateLimited, Cancelled, DeadlineExceeded,
    ResourcesImpossible, Overloaded, Unavailable, RunnerLost, Internal, FunctionTimeout, FunctionFailed,
    FunctionInvalidResponse, FunctionCrashed, FunctionOutOfMemory, FunctionInitFailed, FunctionInitTimeout,
    ResponseTooLarge, ResponseHeadersTooLarge);

impl Code {
    /// Whose fault it is: follows from what happened.
    #[must_use]
    pub fn blame(self) -> Blame {
        use Code::*;
        match self {
            InvalidRequest | NotFound | RequestTooLarge | HeadersTooLarge | MethodNotAllowed
            | Unsupported | Unauthenticated | PermissionDenied | RateLimited | Cancelled
            | DeadlineExceeded => Blame::Caller,
            Overloaded | Unavailable | RunnerLost | Internal => Blame::Platform,
            ResourcesImpossible
            | FunctionTimeout
            | FunctionFailed
            | FunctionInvalidResponse
            | FunctionCrashed
            | FunctionOutOfMemory
            | FunctionInitFailed
            | FunctionInitTimeout
            | ResponseTooLarge
            | ResponseHeadersTooLarge => Blame::Function,
        }
    }
}

/// The one error of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What happened.
    pub code: Code,
    /// One sentence for people: what was attempted, what went wrong, what would be right. No secrets, no internals.
    pub message: String,
    /// Whether a retry is safe.
    pub retry: Retry,
    /// The function may have seen some of this call.
    pub may_have_started: bool,
    /// The last lines that the container wrote, where they help to understand; at most [`MAX_LOG_TAIL`] bytes.
    pub log_tail: String,
    /// What the function itself says of its failure, in formats that have that.
    pub report: Option<Box<Report>>,
}

/// A function's own word on its failure, for doors that pass it on as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The class of the error, like `Runtime.ExitError`.
    pub kind: String,
    /// Of `body`.
    pub content_type: String,
    /// At most [`MAX_REPORT`] bytes.
    pub body: Bytes,
}

/// Bytes of [`Report::body`].
pub const MAX_REPORT: usize = 1024 * 1024;

/// Bytes of [`Error::log_tail`].
pub const MAX_LOG_TAIL: usize = 4096;

impl Error {
    /// An error that allows no retry and left no trace.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry: Retry::Never,
            may_have_started: false,
            log_tail: String::new(),
            report: None,
        }
    }

    /// With the advice to retry.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The function may have seen some of it, so that no retry is safe.
    #[must_use]
    pub fn may_have_started(mut self) -> Self {
        self.may_have_started = true;
        self.retry = Retry::Never;
        self
    }

    /// With the container's last lines.
    #[must_use]
    pub fn log_tail(mut self, tail: String) -> Self {
        self.log_tail = tail;
        self
    }

    /// With the function's own word on it.
    #[must_use]
    pub fn report(mut self, report: Report) -> Self {
        self.report = Some(Box::new(report));
        self
    }

    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        self.code.blame()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Why a runner did not take a call. A promise: no byte of it reached the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No room now, nothing to evict, and its waiting line is full or too slow for the deadline.
    Full,
    /// It is stopping.
    Draining,
    /// This machine could never hold the function.
    TooLarge,
    /// The remaining time is over.
    Expired,
    /// The function is not wanted here any more (its container could not be started for a reason that is the platform's).
    LaunchFailed,
    /// It was to start at once or not at all, and no container is idle.
    NoneIdle,
}

listed!(Refusal: Full, Draining, TooLarge, Expired, LaunchFailed, NoneIdle);
