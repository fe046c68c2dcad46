//! Calls for later, for gRPC clients: the methods of `CallService` that hold no stream open to a function.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_core::moment::now_ms;
use stoker_proto::frames::{Carries, Encoded};
use stoker_proto::{MAX_MESSAGE, status, v1};
use stoker_queue::{Attempt, Filter, Kept, State};
use stoker_runtime::auth::Permission;
use stoker_runtime::telemetry::names::{self, Name};
use tonic::Status;
use tonic::body::Body;

use super::grpc::{MESSAGE, message, refused, timeout};
use super::{Front, trace};
use crate::auth::Caller;
use crate::call::Input;
use crate::later::Submit;
use crate::observe::Watch;

/// Calls that are listed where nobody says how many, and at most.
const LISTED: u32 = 100;
const MOST_LISTED: u32 = 1000;

/// One request for a method that is served here.
///
/// # Errors
/// What the client is told in place of an answer.
pub async fn answer(front: &Arc<Front>, request: Request<Incoming>) -> Result<Body, Status> {
    let method = request.uri().path().rsplit_once('/').map_or("", |(_, method)| method);
    match method {
        "Submit" => unary(front, names::SUBMIT, request, submit).await,
        "GetCall" => unary(front, names::GET_CALL, request, get).await,
        "WaitCall" => unary(front, names::WAIT_CALL, request, wait).await,
        "CancelCall" => unary(front, names::CANCEL_CALL, request, cancel).await,
        "RedriveCall" => unary(front, names::REDRIVE_CALL, request, redrive).await,
        "ListCalls" => unary(front, names::LIST_CALLS, request, list).await,
        other => Err(Status::unimplemented(format!("there is no method {other:?}"))),
    }
}

/// Who asks.
struct Ask {
    front: Arc<Front>,
    id: CallId,
    watch: Watch,
}

type Answering<'a, A> = Pin<Box<dyn Future<Output = Result<A, Error>> + Send + 'a>>;

async fn within<A>(limit: Option<Duration>, work: Answering<'_, A>) -> Result<A, Error> {
    let Some(limit) = limit else { return work.await };
    let late = |_| Error::new(Code::DeadlineExceeded, "the deadline passed; the call goes on");
    tokio::time::timeout(limit, work).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

async fn unary<F, Q, A>(
    front: &Arc<Front>,
    name: Name,
    request: Request<Incoming>,
    work: F,
) -> Result<Body, Status>
where
    F: for<'a> FnOnce(&'a mut Ask, Q) -> Answering<'a, A>,
    Q: prost::Message + Default,
    A: Carries + Send + 'static,
{
    let (parts, body) = request.into_parts();
    let message = message(body, MESSAGE).await.map_err(|mut error| {
        if error.code == Code::RequestTooLarge {
            error.message.push_str(": HTTP takes larger bodies");
        }
        refused(&error, "")
    })?;
    let id = CallId::new();
    let mut watch = front.observer.about_later(name, id, &trace(&parts.headers));
    watch.by(Caller::of(&parts.extensions));
    let mut ask = Ask { front: front.clone(), id, watch };
    let answered = match timeout(&parts.headers) {
        Ok(limit) => front.dispatch.fleet.panics.call(within(limit, work(&mut ask, message))).await,
        Err(error) => Err(error),
    };
    ask.watch.end(answered.as_ref().map(|_| ()));
    let answer = answered.map_err(|error| status::to_status(&error, &id.to_string()))?;
    Ok(Body::new(Encoded::answer(futures_util::stream::iter([Ok(answer)]))))
}

fn submit(ask: &mut Ask, message: v1::SubmitRequest) -> Answering<'_, v1::SubmitResponse> {
    Box::pin(async move {
        let function = ask.front.named(&message.function)?;
        if message.body.len() > MAX_MESSAGE {
            let text = format!(
                "the body has {} bytes, at most {MAX_MESSAGE} go with Submit: use HTTP",
                message.body.len()
            );
            return Err(Error::new(Code::RequestTooLarge, text));
        }
        let delay = match message.when {
            None => None,
            Some(v1::submit_request::When::Delay(delay)) => {
                let negative = |_| Error::new(Code::InvalidRequest, "delay: is negative");
                Some(Duration::try_from(delay).map_err(negative)?)
            }
            Some(v1::submit_request::When::Due(due)) => {
                let seconds = u64::try_from(due.seconds).unwrap_or(0);
                let due = seconds.saturating_mul(1000).saturating_add(due.nanos.max(0) as u64 / 1_000_000);
                Some(Duration::from_millis(due.saturating_sub(now_ms())))
            }
        };
        let submit = Submit {
            qualifier: qualifier(&message.function),
            function,
            head: message.head.unwrap_or_default(),
            input: Input::whole(message.body),
            key: message.idempotency_key,
            delay,
        };
        let accepted = ask.front.later.submit(&ask.front, ask.id, submit, &mut ask.watch).await?;
        Ok(v1::SubmitResponse { call_id: accepted.id, repeated: accepted.repeated })
    })
}

/// The revision or the alias in a function's name.
pub fn qualifier(name: &str) -> String {
    name.split_once(':').map_or_else(String::new, |(_, qualifier)| qualifier.to_owned())
}

/// A call with its answer.
struct Told {
    call: v1::CallDescription,
    head: Option<v1::ResponseHead>,
    body: Bytes,
    body_dropped: bool,
    timings: Option<v1::Timings>,
}

async fn tell(front: &Front, kept: Kept) -> Result<Told, Error> {
    let body = front.later.answer(&kept).await?;
    let call = describe(&kept);
    let answer = kept.answer.unwrap_or_default();
    Ok(Told { call, head: answer.head, body, body_dropped: answer.dropped, timings: answer.timings })
}

fn get(ask: &mut Ask, message: v1::GetCallRequest) -> Answering<'_, v1::GetCallResponse> {
    Box::pin(async move {
        let kept = ask.front.later.get(&ask.front, &ask.watch, &message.call_id).await?;
        let Told { call, head, body, body_dropped, timings } = tell(&ask.front, kept).await?;
        Ok(v1::GetCallResponse { call: Some(call), head, body, body_dropped, timings })
    })
}

fn wait(ask: &mut Ask, message: v1::WaitCallRequest) -> Answering<'_, v1::WaitCallResponse> {
    Box::pin(async move {
        let kept = ask.front.later.wait(&ask.front, &ask.watch, &message.call_id).await?;
        let Told { call, head, body, body_dropped, timings } = tell(&ask.front, kept).await?;
        Ok(v1::WaitCallResponse { call: Some(call), head, body, body_dropped, timings })
    })
}

fn cancel(ask: &mut Ask, message: v1::CancelCallRequest) -> Answering<'_, v1::CancelCallResponse> {
    Box::pin(async move {
        let kept = ask.front.later.cancel(&ask.front, &ask.watch, &message.call_id).await?;
        Ok(v1::CancelCallResponse { call: Some(describe(&kept)) })
    })
}

fn redrive(ask: &mut Ask, message: v1::RedriveCallRequest) -> Answering<'_, v1::RedriveCallResponse> {
    Box::pin(async move {
        let (kept, redriven) = ask.front.later.redrive(&ask.front, &ask.watch, &message.call_id).await?;
        Ok(v1::RedriveCallResponse { call: Some(describe(&kept)), redriven })
    })
}

fn list(ask: &mut Ask, message: v1::ListCallsRequest) -> Answering<'_, v1::ListCallsResponse> {
    Box::pin(async move {
        let (front, caller) = (&ask.front, ask.watch.caller());
        let function = match message.function.as_str() {
            "" => {
                front.guard.allow_fleet(caller, Permission::Observe)?;
                String::new()
            }
            // A function that is gone may have left calls.
            name => {
                let name = match front.find(name) {
                    Ok(function) => function.spec.name.as_str().to_owned(),
                    Err(_) => name.to_owned(),
                };
                front.guard.allow(caller, Permission::Observe, name.split('/').next().unwrap_or_default())?;
                name
            }
        };
        let unknown = |_| {
            let text = format!("state: {} is none that this release knows", message.state);
            Error::new(Code::InvalidRequest, text)
        };
        let state = match v1::CallState::try_from(message.state).map_err(unknown)? {
            v1::CallState::Unspecified => None,
            v1::CallState::Queued => Some(State::Queued),
            v1::CallState::Running => Some(State::Running),
            v1::CallState::Done => Some(State::Done),
            v1::CallState::Dead => Some(State::Dead),
            v1::CallState::Cancelled => Some(State::Cancelled),
        };
        let limit = if message.limit == 0 { LISTED } else { message.limit.min(MOST_LISTED) } as usize;
        let page = front.later.list(Filter { function, state, limit, after: message.after }).await?;
        let (calls, more) = (page.calls.iter().map(describe).collect(), page.next.is_some());
        Ok(v1::ListCallsResponse { calls, more, next: page.next.unwrap_or_default() })
    })
}

/// A time; nothing where there is none.
fn time(ms: u64) -> Option<prost_types::Timestamp> {
    (ms > 0).then(|| (UNIX_EPOCH + Duration::from_millis(ms)).into())
}

/// A call for the wire.
fn describe(kept: &Kept) -> v1::CallDescription {
    let Kept { call, progress, .. } = kept;
    let state = match progress.is() {
        State::Queued => v1::CallState::Queued,
        State::Running => v1::CallState::Running,
        State::Done => v1::CallState::Done,
        State::Dead => v1::CallState::Dead,
        State::Cancelled => v1::CallState::Cancelled,
    };
    let attempt = |attempt: &Attempt| v1::CallAttempt {
        started: time(attempt.started_ms),
        ended: time(attempt.ended_ms),
        runner: attempt.runner.clone(),
        error: attempt.error.clone(),
        interrupted: attempt.interrupted,
        revision: attempt.revision,
    };
    v1::CallDescription {
        call_id: call.id.clone(),
        function: call.function.clone(),
        state: state.into(),
        submitted: time(call.submitted_ms),
        due: time(progress.due_ms),
        ended: time(progress.ended_ms),
        attempts: progress.attempts.iter().map(attempt).collect(),
        error: progress.error.clone(),
        body_bytes: call.body_bytes,
        idempotency_key: call.key.clone(),
        origin: call.origin.clone(),
        kept_until: time(progress.keep_until_ms),
        dead_letter: progress.dead_letter.clone(),
        redrives: progress.redrives,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_qualifiers() {
        assert_eq!(time(0), None);
        assert_eq!(time(1_500), Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!(qualifier("a/b:live"), "live");
        assert_eq!(qualifier("a/b"), "");
    }
}
