//! What a runtime says: the answer to an invocation, an error instead of it, and that it cannot start.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use stoker_core::machine::Machine as _;
use tokio::sync::mpsc;

use super::{Problem, header, whole};
use crate::fault::{self, CAUSE_TYPE, Cause};
use crate::machine::Event;
use crate::shared::{Measured, Shared};
use crate::{Failure, MAX_ERROR, MAX_PAYLOAD, Said};

const MODE: &str = "lambda-runtime-function-response-mode";
const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
const CAUSE: &str = "lambda-runtime-function-xray-error-cause";

/// An invocation begins to be answered: whom to tell.
fn begin(shared: &Shared, id: &str, event: Event) -> Result<mpsc::Sender<Said>, Problem> {
    let mut inner = shared.lock();
    let say = match inner.current.iter().find(|work| work.id == id && !id.is_empty()) {
        Some(work) => work.say.clone(),
        None if inner.late.iter().any(|late| late == id) => return Err(Problem::Late),
        None => return Err(Problem::RequestId),
    };
    let several = shared.several();
    inner.step(id, event, several).map_err(|(from, event)| match several {
        true => Problem::Twice(from),
        false => Problem::State(from, event),
    })?;
    Ok(say)
}

pub(super) async fn response(
    shared: &Shared,
    id: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(), Problem> {
    let say = begin(shared, id, Event::Response)?;
    let first = Instant::now();
    let content_type = header(headers, "content-type");
    let streams = match headers.get(MODE).map(http::HeaderValue::as_bytes) {
        None | Some(b"") => false,
        Some(b"streaming") => true,
        Some(_) => {
            let failure = Failure::broken("Runtime.InvalidResponseModeHeader", Bytes::new());
            tell(shared, &say, id, Said::Failed(failure), None).await;
            return Err(Problem::Mode);
        }
    };
    let mut measured = Measured { first, bytes: 0, streams };
    let (last, done) = match streams {
        true => pass_on(&say, id, content_type, body, &mut measured).await,
        false => match whole(body, MAX_PAYLOAD).await {
            Ok(payload) => {
                measured.bytes = payload.len();
                _ = say.send(Said::Head { content_type, streams }).await;
                if !payload.is_empty() {
                    _ = say.send(Said::Piece(payload)).await;
                }
                (Said::End, Ok(()))
            }
            Err(Problem::TooLarge(most)) => {
                let message =
                    format!("Response payload size exceeded maximum allowed payload size ({most} bytes).");
                let text = serde_json::json!({ "errorMessage": message, "errorType": "Function.ResponseSizeTooLarge" });
                let failure = Failure::new("Function.ResponseSizeTooLarge", text.to_string().into());
                (Said::Failed(failure), Err(Problem::TooLarge(most)))
            }
            Err(problem) => (Said::Failed(cut_off(id)), Err(problem)),
        },
    };
    tell(shared, &say, id, last, Some(measured)).await;
    shared.sent(id)?;
    done
}

/// The last word on an invocation. Nobody listens any more when sending fails: the container is about to be ended, and what it gets to
/// hear matters little.
async fn tell(shared: &Shared, say: &mpsc::Sender<Said>, id: &str, last: Said, measured: Option<Measured>) {
    shared.runtime_done(id, &last, measured);
    _ = say.send(last).await;
}

/// What the runtime said ended in its midst.
fn cut_off(id: &str) -> Failure {
    let text = fault::body("Runtime.TruncatedResponse", id, "The runtime's response was cut off");
    Failure::broken("Runtime.TruncatedResponse", text.into())
}

/// An answer that comes as it is made. Gives its end.
async fn pass_on(
    say: &mpsc::Sender<Said>,
    id: &str,
    content_type: Option<String>,
    body: &mut Incoming,
    measured: &mut Measured,
) -> (Said, Result<(), Problem>) {
    _ = say.send(Said::Head { content_type, streams: true }).await;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (Said::Failed(cut_off(id)), Err(Problem::Truncated));
        };
        match frame.into_data() {
            Ok(piece) if piece.is_empty() => {}
            Ok(piece) => {
                measured.bytes += piece.len();
                _ = say.send(Said::Piece(piece)).await;
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let last = match trailers.get(ERROR_TYPE) {
        None => Said::End,
        Some(kind) => {
            let kind = fault::scrub(kind.to_str().unwrap_or_default());
            let text = trailers.get(ERROR_BODY).map(|text| STANDARD.decode(text)).and_then(Result::ok);
            Said::Failed(Failure::new(kind, text.unwrap_or_default().into()))
        }
    };
    (last, Ok(()))
}

pub(super) async fn error(
    shared: &Shared,
    id: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(), Problem> {
    let say = begin(shared, id, Event::Error)?;
    let (failure, done) = match failure(headers, body).await {
        Ok(failure) => (failure, Ok(())),
        Err(problem @ Problem::TooLarge(_)) => {
            let message = format!("The function's error has more than {MAX_ERROR} bytes");
            let text = fault::body("Function.ResponseSizeTooLarge", id, &message);
            (Failure::new("Function.ResponseSizeTooLarge", text.into()), Err(problem))
        }
        Err(problem) => (cut_off(id), Err(problem)),
    };
    tell(shared, &say, id, Said::Failed(failure), None).await;
    shared.sent(id)?;
    done
}

/// It cannot start, or a hook after its restore failed.
pub(super) async fn init_error(
    shared: &Shared,
    event: Event,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(), Problem> {
    let state = shared.lock().state;
    state.on(event).map_err(|_| (state, event))?;
    let mut failure = failure(headers, body).await?;
    failure.content_type = match serde_json::from_slice::<serde::de::IgnoredAny>(&failure.payload) {
        Ok(_) => "application/json".to_owned(),
        Err(_) => "application/octet-stream".to_owned(),
    };
    let mut inner = shared.lock();
    inner.state = inner.state.on(event).map_err(|_| (inner.state, event))?;
    inner.init_error = Some(failure);
    drop(inner);
    shared.changed.notify_waiters();
    Ok(())
}

/// What a runtime reports as an error.
async fn failure(headers: &HeaderMap, body: &mut Incoming) -> Result<Failure, Problem> {
    let payload = whole(body, MAX_ERROR).await?;
    let said = headers.get(ERROR_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let content_type = header(headers, "content-type").unwrap_or_else(|| "application/json".to_owned());
    let mut failure = Failure { content_type, ..Failure::new(fault::scrub(said), payload) };
    let cause = headers.get(CAUSE).and_then(|cause| Cause::read(cause.as_bytes()));
    failure.cause = cause.as_ref().map(Cause::write);
    if failure.content_type == CAUSE_TYPE {
        match fault::split(&failure.payload) {
            Some((body, cause)) => {
                failure.payload = body.into();
                failure.cause = cause.as_ref().map(Cause::write);
                failure.content_type = "application/json".to_owned();
            }
            None => {
                failure.payload = Bytes::from_static(b"\"Invalid error body\"");
                failure.content_type = "application/octet-stream".to_owned();
            }
        }
    }
    Ok(failure)
}
