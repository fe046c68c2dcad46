//! What the Runtime Interface Emulator is for one function, for people who test against it: one path, whatever the method, and its words.
//!
//! There is no `X-Amz-Function-Error`, no log and no `Event` in it, and every answer is text. Unlike it, two calls at once are two calls.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use stoker_core::error::{Blame, Code, Error};
use stoker_core::ids::CallId;

use super::super::{AnswerBody, Front, ran};
use super::{LARGEST_EVENT, SLOWEST, Target, invoke, said};
use crate::call::Input;
use crate::front::http::unread::RequestBody;
use crate::observe::Watch;

/// The one path that it has.
const PATH: &str = "/2015-03-31/functions/function/invocations";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Whether a request is one to the emulator.
pub fn is_meant(front: &Front, path: &str) -> bool {
    path == PATH && front.lambda.emulate.is_some()
}

/// Serves one request.
pub async fn serve(
    front: Arc<Front>,
    id: CallId,
    request: Request<RequestBody>,
    mut watch: Watch,
) -> Response<AnswerBody> {
    let handled = front.dispatch.fleet.panics.catch(handle(&front, id, request, &mut watch)).await;
    let handled = handled.unwrap_or_else(Err);
    let revision = watch.revision();
    let (status, body) = match handled {
        Ok(body) => {
            watch.http_status(200);
            watch.end(Ok(()));
            (StatusCode::OK, body)
        }
        Err(error) => {
            watch.end(Err(&error));
            answer(&error)
        }
    };
    let says = !body.is_empty();
    let mut response = Response::new(AnswerBody::whole(body));
    *response.status_mut() = status;
    if says {
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
    }
    ran(response.headers_mut(), revision);
    response
}

async fn handle(
    front: &Front,
    id: CallId,
    request: Request<RequestBody>,
    watch: &mut Watch,
) -> Result<Bytes, Error> {
    let (parts, body) = request.into_parts();
    let context = BASE64.decode(said(&parts, "x-amz-client-context"));
    let context = context.map_err(|_| Error::new(Code::Internal, "the client context is not base64"))?;
    let name = front.lambda.emulate.as_deref().unwrap_or_default();
    let known = front.find(name)?;
    let target =
        Target { name: known.spec.name.function().to_owned(), qualifier: None, known: known.clone() };
    let mut headers = invoke::told(&parts, &target, &context);
    headers.extend(invoke::buffered(&known.spec));
    let place = front.admission.enter(watch.caller())?;
    let event = super::whole(body, LARGEST_EVENT, SLOWEST).await.map_err(|refused| refused.error)?;
    let head = invoke::head(id, &parts, headers);
    let call = front.admit_to(place, id, known, head, None, watch)?;
    let answer = front.dispatch.call(call, Input::whole(event), watch).await?;
    invoke::whole(answer).await
}

/// What the emulator answers when a call has no result: a handler's own error is one for it.
fn answer(error: &Error) -> (StatusCode, Bytes) {
    let report = invoke::report(error);
    match error.code {
        Code::FunctionFailed | Code::ResponseTooLarge => (StatusCode::OK, report.body),
        Code::FunctionTimeout => {
            let text = String::from_utf8_lossy(&report.body);
            let text = text.split("Error: ").last().and_then(|text| text.split('"').next());
            let said = text.filter(|text| text.starts_with("Task timed out"));
            (StatusCode::OK, said.unwrap_or("Task timed out").to_owned().into())
        }
        Code::FunctionInvalidResponse if report.kind == "Runtime.InvalidResponseModeHeader" => {
            (StatusCode::BAD_GATEWAY, Bytes::new())
        }
        _ if error.blame() == Blame::Function => (StatusCode::BAD_GATEWAY, report.body),
        // One call at a time is what the emulator takes; here it is as many as there is room for.
        Code::Overloaded | Code::RateLimited => (StatusCode::BAD_REQUEST, error.message.clone().into()),
        Code::InvalidRequest | Code::RequestTooLarge | Code::HeadersTooLarge => {
            (StatusCode::BAD_REQUEST, error.message.clone().into())
        }
        Code::Unauthenticated | Code::PermissionDenied => {
            (StatusCode::FORBIDDEN, error.message.clone().into())
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, error.message.clone().into()),
    }
}

#[cfg(test)]
mod tests {
    use stoker_core::error::Report;

    use super::*;

    #[test]
    fn failures_have_the_emulators_words() {
        let with = |code, kind: &str, body: &str| {
            let report = Report {
                kind: kind.to_owned(),
                content_type: "application/json".to_owned(),
                body: Bytes::copy_from_slice(body.as_bytes()),
            };
            let (status, body) = answer(&Error::new(code, "x").report(report));
            (status.as_u16(), String::from_utf8_lossy(&body).into_owned())
        };
        let timeout = r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: 1 Error: Task timed out after 1.00 seconds"}"#;
        for (code, kind, body, expected) in [
            (Code::FunctionFailed, "E", "own", (200, "own")),
            (Code::FunctionTimeout, "Sandbox.Timedout", timeout, (200, "Task timed out after 1.00 seconds")),
            (Code::FunctionTimeout, "?", "?", (200, "Task timed out")),
            (Code::FunctionInvalidResponse, "Runtime.InvalidResponseModeHeader", "x", (502, "")),
            (Code::FunctionCrashed, "Runtime.ExitError", "exit", (502, "exit")),
            (Code::FunctionInitFailed, "E", "init", (502, "init")),
            (Code::ResponseTooLarge, "Function.ResponseSizeTooLarge", "large", (200, "large")),
        ] {
            assert_eq!(with(code, kind, body), (expected.0, expected.1.to_owned()), "{code:?}");
        }
        assert_eq!(answer(&Error::new(Code::Internal, "x")).0, 500);
        assert_eq!(answer(&Error::new(Code::Overloaded, "x")).0, 400);
    }
}
