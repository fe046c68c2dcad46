//! Function URLs, as they are called: a request is an event, an answer a response, by the rules of HTTP triggers. Where AWS gives each URL a
//! host of its own, these are paths: `/lambda-url/{app}.{function}`, or `…/{app}.{function}.{alias}`, and what the handler sees is what follows.
//!
//! Who may call is the access file's to say, as at every door; a URL can ask for more than that, not for less.

use std::sync::Arc;

use http::{HeaderMap, Request, Response};
use stoker_core::error::{Code, Error};
use stoker_core::function::FunctionName;
use stoker_core::ids::CallId;
use stoker_proto::v1;

use super::super::fields::{request_headers, response_headers};
use super::super::{AnswerBody, CALL_ID, Front, header, status_of, url};
use super::invoke::collected;
use super::urls::Config;
use super::{LARGEST_EVENT, REQUEST_ID, SLOWEST, claim, signature, source, whole};
use crate::auth::Origin;
use crate::call::Input;
use crate::directory::Known;
use crate::front::http::unread::RequestBody;
use crate::observe::Watch;

/// Where they are.
pub const PATH: &str = "/lambda-url/";

/// A URL as its callers write it.
pub fn written(base: &str, name: &FunctionName, alias: Option<&str>) -> String {
    let alias = alias.map(|alias| format!(".{alias}")).unwrap_or_default();
    format!("{base}{PATH}{}.{}{alias}/", name.app(), name.function())
}

/// What a path, decoded and without [`PATH`], leads to.
///
/// # Errors
/// To nothing.
pub fn find(front: &Front, path: &str) -> Result<(Arc<Known>, Config), Error> {
    let name = path.split_once('/').map_or(path, |(name, _)| name);
    let mut parts = name.splitn(3, '.');
    let (app, function, alias) =
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next());
    let found = || {
        let name = FunctionName::new(app, function)?;
        let functions = front.directory.functions();
        let config = Config::find(functions.releases.get(&name)?, alias)?;
        let known = match alias {
            None => front.directory.find(name.as_str()),
            Some(alias) => front.directory.qualified(&name, alias),
        };
        Some((known?, config))
    };
    found().ok_or_else(|| front.missing(|| format!("there is no function URL `{name}`")))
}

/// Calls the function.
///
/// # Errors
/// Its caller may not, or the call fails.
pub async fn serve(
    front: &Front,
    id: CallId,
    request: Request<RequestBody>,
    known: Arc<Known>,
    config: &Config,
    origin: &Origin,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let (mut parts, body) = request.into_parts();
    let claim = claim(front, &parts, watch).map_err(|refused| refused.error)?;
    if config.iam && !front.guard.is_open() && claim.is_none() && watch.caller().is_anybody() {
        if signature::is_there(&parts.headers) {
            return Err(signature::unknown().error);
        }
        let text =
            "this function URL is for callers who show who they are: sign the request, or bring a token";
        return Err(Error::new(Code::PermissionDenied, text));
    }
    // In memory as a whole from here on, as every event.
    let place = front.admission.enter(watch.caller())?;
    let body = whole(body, LARGEST_EVENT, SLOWEST).await.map_err(|refused| refused.error)?;
    if let Some((claim, secret, identity)) = claim {
        claim.verify(secret.reveal(), &body).map_err(|refused| refused.error)?;
        let caller = front.guard.signed(watch.caller(), identity);
        watch.by(caller);
        // It did its work, and is no function's business.
        parts.headers.remove(http::header::AUTHORIZATION);
    }
    let mut headers = request_headers(&parts.headers);
    source::tell(&front.lambda, origin, &parts, &mut headers);
    let head = v1::RequestHead {
        intent: v1::Intent::HttpRequest.into(),
        method: parts.method.as_str().to_owned(),
        url: url(&parts),
        headers,
    };
    let call = front.admit_to(place, id, known, head, None, watch)?;
    let answer = front.dispatch.call(call, Input::whole(body), watch).await?;
    let mut headers = HeaderMap::new();
    response_headers(&mut headers, answer.head.headers, false);
    headers.insert(CALL_ID, header(&id.to_string()));
    headers.insert(REQUEST_ID, header(&id.to_string()));
    let status = status_of(answer.head.status);
    let body = match config.streams {
        true => AnswerBody::new(answer.first, answer.rest).of_length(answer.length),
        false => AnswerBody::whole(collected(answer.first, answer.rest).await?),
    };
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    *response.status_mut() = status;
    Ok(response)
}
