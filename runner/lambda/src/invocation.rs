//! An invocation and what comes of it: what a runtime is told, what it says, and what its caller's side makes of that.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use stoker_core::moment::epoch_ms;
use tokio::sync::mpsc;

use crate::extensions::Fatal;
use crate::fault;
use crate::shape::{Bandwidth, Shaper};
use crate::telemetry::tracing;

/// One invocation, as the runtime shall see it. Empty texts are not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Invocation {
    pub request_id: String,
    /// When the function is stopped, by the wall clock.
    pub deadline: Option<SystemTime>,
    /// The function's ARN as the caller named it.
    pub arn: String,
    /// `Root=…;Parent=…;Sampled=…`.
    pub trace: String,
    /// JSON.
    pub client_context: String,
    /// JSON with `cognitoIdentityId` and `cognitoIdentityPoolId`.
    pub identity: String,
    pub tenant: String,
    /// Empty: `application/json`.
    pub content_type: String,
    /// JSON, at most [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    pub payload: Bytes,
    /// How fast a streamed answer may go; `None`: as fast as it is read.
    pub bandwidth: Option<Bandwidth>,
}

/// What came of an invocation, in this order: a head, pieces, an end; or a failure at any point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The answer begins.
    Head {
        /// As the runtime said.
        content_type: Option<String>,
        /// It comes as it is made; else it came as a whole.
        streams: bool,
    },
    /// A piece of it.
    Piece(Bytes),
    /// It is complete. Last.
    End,
    /// The function failed, or its runtime broke the contract. Last.
    Failed(Failure),
}

/// An error that the function reported, or that stands for what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class, scrubbed: see [`fault::scrub`].
    pub kind: String,
    /// The body for the caller, byte for byte as the function gave it where it gave one.
    pub payload: Bytes,
    pub content_type: String,
    /// Why, for traces; JSON.
    pub cause: Option<String>,
    /// The runtime did what no runtime may: its container cannot be trusted any more.
    pub broken: bool,
}

impl Failure {
    /// An extension ended the function.
    pub(crate) fn extension(fatal: &Fatal, request_id: &str) -> Self {
        let message = format!("the extension {} failed: {}", fatal.extension, fatal.said);
        let payload = fault::body(fatal.kind, request_id, &message).into();
        let (kind, content_type) = (fatal.kind.to_owned(), "application/json".to_owned());
        Self { kind, payload, content_type, cause: None, broken: true }
    }

    pub(crate) fn new(kind: &str, payload: Bytes) -> Self {
        let content_type = "application/json".to_owned();
        Self { kind: kind.to_owned(), payload, content_type, cause: None, broken: false }
    }

    pub(crate) fn broken(kind: &str, payload: Bytes) -> Self {
        Self { broken: true, ..Self::new(kind, payload) }
    }

    /// It in one line: its class, and the message in its body where that is what runtimes write.
    #[must_use]
    pub fn told(&self) -> String {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            error_message: String,
            #[serde(default)]
            error_type: String,
        }
        match serde_json::from_slice::<Body>(&self.payload) {
            Ok(body) if !body.error_message.is_empty() => {
                let kind = if body.error_type.is_empty() { &self.kind } else { &body.error_type };
                let most = body.error_message.floor_char_boundary(1024);
                format!("{kind}: {}", &body.error_message[..most])
            }
            _ => self.kind.clone(),
        }
    }
}

/// The end of an invocation, as its caller's side saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Over {
    /// The class of the error, and what AWS's callers are told, where there is one.
    pub error: Option<(String, String)>,
    /// It did not end in its time.
    pub timeout: bool,
    pub duration: Duration,
    /// MiB.
    pub memory_used: u64,
    /// How long the container took to initialise, where this was its first invocation.
    pub init: Option<Duration>,
    /// How long a streamed answer was held back, where that may be.
    pub throttled: Option<Duration>,
}

/// Why an invocation cannot be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There are as many as it takes. The runner's mistake.
    Busy,
    /// One of this name is under way.
    Twice,
    /// The runtime said that it cannot start.
    NotReady,
    /// This field holds what no HTTP header can carry.
    Header(&'static str),
    /// The payload is over [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    TooLarge,
    /// The payload is not JSON: some runtime clients end themselves over one that is not.
    NotJson,
}

/// What comes of one invocation.
#[derive(Debug)]
pub struct Answer {
    said: mpsc::Receiver<Said>,
    ended: bool,
    bandwidth: Option<Bandwidth>,
    /// There while an answer streams that may not go at any speed.
    shaper: Option<Shaper>,
}

impl Answer {
    pub(crate) fn new(said: mpsc::Receiver<Said>, bandwidth: Option<Bandwidth>) -> Self {
        Self { said, ended: false, bandwidth, shaper: None }
    }

    /// The next of it; `None` after the last, or when the API is gone. The function is held back while nobody reads. Nothing is lost
    /// when it is given up.
    pub async fn next(&mut self) -> Option<Said> {
        if let Some(shaper) = self.shaper.as_mut().filter(|shaper| shaper.holds()) {
            return Some(Said::Piece(shaper.next().await));
        }
        if self.ended {
            return None;
        }
        let said = self.said.recv().await;
        self.ended = !matches!(said, Some(Said::Head { .. } | Said::Piece(_)));
        match (said, &mut self.shaper) {
            (Some(Said::Piece(piece)), Some(shaper)) => {
                shaper.hold(piece);
                Some(Said::Piece(shaper.next().await))
            }
            (said @ Some(Said::Head { streams: true, .. }), _) => {
                self.shaper = self.bandwidth.map(Shaper::new);
                said
            }
            (said, _) => said,
        }
    }

    /// How long it was held back, where it may be.
    #[must_use]
    pub fn throttled(&self) -> Option<Duration> {
        self.shaper.as_ref().map(Shaper::throttled)
    }
}

/// What may name an invocation: it is a part of paths and a header.
#[must_use]
pub fn is_request_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && !b"/?#%".contains(&b))
}

/// What extensions are told of an invocation, in AWS's order.
pub(crate) fn invoke_event(invocation: &Invocation) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct InvokeEvent<'a> {
        event_type: &'static str,
        deadline_ms: u64,
        request_id: &'a str,
        invoked_function_arn: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        tracing: Option<serde_json::Value>,
    }
    let event = InvokeEvent {
        event_type: "INVOKE",
        deadline_ms: invocation.deadline.map_or(0, epoch_ms),
        request_id: &invocation.request_id,
        invoked_function_arn: &invocation.arn,
        tracing: (!invocation.trace.is_empty()).then(|| tracing(&invocation.trace)),
    };
    serde_json::to_vec(&event).expect("texts are JSON").into()
}

/// What extensions are told of the end, in AWS's order.
pub(crate) fn shutdown_event(deadline: SystemTime, reason: &str) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct ShutdownEvent<'a> {
        event_type: &'static str,
        deadline_ms: u64,
        shutdown_reason: &'a str,
    }
    let event =
        ShutdownEvent { event_type: "SHUTDOWN", deadline_ms: epoch_ms(deadline), shutdown_reason: reason };
    serde_json::to_vec(&event).expect("texts are JSON").into()
}

pub(crate) fn headers_of(invocation: &Invocation) -> Result<HeaderMap, &'static str> {
    let deadline = invocation.deadline.map(|at| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        since.as_millis().to_string()
    });
    let kind = match invocation.content_type.as_str() {
        "" => "application/json",
        kind => kind,
    };
    let all = [
        ("lambda-runtime-aws-request-id", invocation.request_id.as_str()),
        ("lambda-runtime-deadline-ms", deadline.as_deref().unwrap_or_default()),
        ("lambda-runtime-invoked-function-arn", &invocation.arn),
        ("lambda-runtime-trace-id", &invocation.trace),
        ("lambda-runtime-client-context", &invocation.client_context),
        ("lambda-runtime-cognito-identity", &invocation.identity),
        ("lambda-runtime-aws-tenant-id", &invocation.tenant),
        ("content-type", kind),
    ];
    let mut headers = HeaderMap::with_capacity(all.len());
    for (name, value) in all {
        if !value.is_empty() {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| name)?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(headers)
}
