//! `Fn-Invoke-Type: detached`: the call is kept for later, and answered with 202 once it is on disk.

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use stoker_core::call::CHUNK;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_core::units::parse_duration;
use stoker_proto::v1;

use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, Front, begin, header, pieces};
use crate::call::Input;
use crate::directory::Known;
use crate::later::Submit;
use crate::observe::Watch;

/// By which a repetition of the same request is known.
const KEY: &str = "idempotency-key";

/// How long to wait before the first attempt.
const DELAY: &str = "stoker-delay";

/// A client may take this long to send the body.
const BODY: Duration = Duration::from_secs(300);

/// Whether a request asks for this.
pub fn is_asked(headers: &HeaderMap) -> bool {
    let kind = headers.get("fn-invoke-type");
    kind.is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"detached"))
}

/// Keeps a call.
pub async fn submit(
    front: &Front,
    id: CallId,
    function: std::sync::Arc<Known>,
    qualifier: String,
    parts: &Parts,
    mut head: v1::RequestHead,
    body: RequestBody,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let wrong = |name: &str, why: &str| Error::new(Code::InvalidRequest, format!("{name}: {why}"));
    // An empty one is a variable that was forgotten: without its delay or its key the call would be another than was meant.
    let text = |name: &str| match parts.headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok("")) => Err(wrong(name, "it is empty: say something, or leave it out")),
        Some(Ok(value)) => Ok(Some(value.to_owned())),
        Some(Err(_)) => Err(wrong(name, "its value is not text")),
    };
    let delay =
        text(DELAY)?.map(|delay| parse_duration(&delay).map_err(|why| wrong(DELAY, &why.to_string())));
    let delay = delay.transpose()?;
    let key = text(KEY)?.unwrap_or_default();
    head.headers.retain(|header| {
        let name = header.name.to_ascii_lowercase();
        name != "fn-invoke-type" && name != KEY && name != DELAY
    });
    let small = body.size_hint().exact().is_some_and(|length| length <= CHUNK as u64);
    let submit = async {
        let input = match body.is_end_stream() {
            true => Input::whole(Bytes::new()),
            false => begin(pieces(body), small).await?,
        };
        let submit = Submit { function, qualifier, head, input, key, delay };
        front.later.submit(front, id, submit, watch).await
    };
    let accepted = tokio::time::timeout(BODY, submit).await;
    let late = |_| Error::new(Code::DeadlineExceeded, "the request's body did not come in time");
    let accepted = accepted.unwrap_or_else(|elapsed| Err(late(elapsed)))?;
    let mut response = Response::new(AnswerBody::whole(Bytes::new()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CALL_ID, header(&accepted.id));
    Ok(response)
}
