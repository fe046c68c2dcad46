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
use super::{AnswerBody, CALL_ID, Door, begin, header, pieces};
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
    door: &Door,
    id: CallId,
    function: std::sync::Arc<Known>,
    qualifier: String,
    parts: &Parts,
    mut head: v1::RequestHead,
    body: RequestBody,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let text = |name: &str| {
        let value = parts.headers.get(name).map(|value| value.to_str());
        let wrong = |_| Error::new(Code::InvalidRequest, format!("{name}: its value is not text"));
        value.transpose().map_err(wrong).map(|value| value.unwrap_or_default().to_owned())
    };
    let delay = match text(DELAY)?.as_str() {
        "" => None,
        delay => Some(
            parse_duration(delay)
                .map_err(|why| Error::new(Code::InvalidRequest, format!("{DELAY}: {why}")))?,
        ),
    };
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
        let submit = Submit { function, qualifier, head, input, key: text(KEY)?, delay };
        door.later.submit(door, id, submit, watch).await
    };
    let accepted = tokio::time::timeout(BODY, submit).await;
    let late = |_| Error::new(Code::DeadlineExceeded, "the request's body did not come in time");
    let accepted = accepted.unwrap_or_else(|elapsed| Err(late(elapsed)))?;
    let mut response = Response::new(AnswerBody::whole(Bytes::new()));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CALL_ID, header(&accepted.id));
    Ok(response)
}
