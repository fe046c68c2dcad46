//! What spans of a balancer say that is the same for many: written once, and copied.

use std::sync::LazyLock;

use stoker_core::FunctionSpec;
use stoker_core::capacity::Capacity;
use stoker_runtime::telemetry::names::{self, Name};
use stoker_runtime::telemetry::{Facts, SpanKind};

use super::{DOORS, Door};
use crate::auth::Origin;
use crate::explain::Why;

/// How the span of a call by this door is called; where one door has several methods, by the first of them.
pub(super) fn span(door: Door) -> (Name, SpanKind) {
    match door {
        Door::Invoke | Door::Http => (names::INVOKE, SpanKind::Server),
        Door::Stream => (names::INVOKE_STREAM, SpanKind::Server),
        Door::Session => (names::SESSION, SpanKind::Server),
        Door::Submit => (names::SUBMIT, SpanKind::Server),
        Door::Later => (names::PROCESS, SpanKind::Consumer),
    }
}

/// Of all calls by a door, in the order of [`DOORS`].
static CALLS: LazyLock<[Facts; DOORS.len()]> = LazyLock::new(|| {
    DOORS.map(|door| match door {
        Door::Http => Facts::default(),
        Door::Later => queued("process"),
        // Each of its calls says which method it is of.
        Door::Submit => Facts::default().with(names::RPC_SYSTEM, "grpc"),
        door => rpc(span(door).0),
    })
});

/// Of all offers.
pub(super) static OFFERS: LazyLock<Facts> =
    LazyLock::new(|| rpc(names::ENGAGE).with(names::FAAS_INVOKED_PROVIDER, "stoker"));

/// Of an offer by why that runner was asked, in the order of [`Why::LABELS`].
static CHOICES: LazyLock<[Facts; Why::LABELS.len()]> =
    LazyLock::new(|| Why::LABELS.map(|why| Facts::default().with(names::CHOICE, why)));

pub(super) fn of_choice(why: Why) -> &'static Facts {
    &CHOICES[why.at()]
}

/// Of all calls that are put into the queue.
pub(super) static SENT: LazyLock<Facts> = LazyLock::new(|| queued("send"));

/// Of all that succeeded by gRPC.
pub(super) static OK: LazyLock<Facts> = LazyLock::new(|| Facts::default().with(names::RPC_STATUS, "OK"));

pub(super) fn of_calls(door: Door) -> &'static Facts {
    &CALLS[door as usize]
}

fn rpc(method: Name) -> Facts {
    Facts::default().with(names::RPC_SYSTEM, "grpc").with(names::RPC_METHOD, method.as_str())
}

fn queued(operation: &str) -> Facts {
    Facts::default()
        .with(names::MESSAGING_SYSTEM, "stoker")
        .with(names::MESSAGING_OPERATION, operation)
        .with(names::MESSAGING_OPERATION_NAME, operation)
}

/// Of a function.
pub fn of_function(spec: &FunctionSpec, revision: u64) -> Facts {
    Facts::default()
        .with(names::FAAS_INVOKED_NAME, spec.name.as_str())
        .with(names::FAAS_VERSION, revision.to_string().as_str())
}

/// Of a runner that is asked.
pub fn of_runner(capacity: &Capacity) -> Facts {
    let uri = capacity.address.parse::<http::Uri>().unwrap_or_default();
    Facts::default()
        .with(names::RUNNER, capacity.runner.as_str())
        .with(names::SERVER_ADDRESS, uri.host().unwrap_or_default())
        .with(names::SERVER_PORT, i64::from(uri.port_u16().unwrap_or(80)))
}

/// Of a connection.
pub fn of_origin(origin: &Origin) -> Facts {
    let facts = Facts::default().with(names::URL_SCHEME, if origin.secure { "https" } else { "http" });
    match origin.remote.parse::<std::net::SocketAddr>() {
        Ok(remote) => facts
            .with(names::PEER_ADDRESS, remote.ip().to_canonical().to_string())
            .with(names::PEER_PORT, i64::from(remote.port())),
        Err(_) => facts,
    }
}

/// A status code's name on the wire.
pub(super) fn grpc_name(code: tonic::Code) -> &'static str {
    use tonic::Code as G;
    match code {
        G::Ok => "OK",
        G::Cancelled => "CANCELLED",
        G::Unknown => "UNKNOWN",
        G::InvalidArgument => "INVALID_ARGUMENT",
        G::DeadlineExceeded => "DEADLINE_EXCEEDED",
        G::NotFound => "NOT_FOUND",
        G::AlreadyExists => "ALREADY_EXISTS",
        G::PermissionDenied => "PERMISSION_DENIED",
        G::ResourceExhausted => "RESOURCE_EXHAUSTED",
        G::FailedPrecondition => "FAILED_PRECONDITION",
        G::Aborted => "ABORTED",
        G::OutOfRange => "OUT_OF_RANGE",
        G::Unimplemented => "UNIMPLEMENTED",
        G::Internal => "INTERNAL",
        G::Unavailable => "UNAVAILABLE",
        G::DataLoss => "DATA_LOSS",
        G::Unauthenticated => "UNAUTHENTICATED",
    }
}
