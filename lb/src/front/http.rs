//! HTTP for clients: Fn's direct invocation, its HTTP triggers and its [control] plane, CloudEvents ([events]), what [mless] has, and what AWS [lambda] has.

mod answer;
mod control;
mod cors;
mod events;
pub mod fields;
mod input;
mod lambda;
mod later;
mod mless;
mod triggers;
mod unread;

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use stoker_core::Format;
use stoker_core::call::CHUNK;
use stoker_core::error::{Code, Error, Retry};
use stoker_core::ids::CallId;
use stoker_core::text::unescape;
use stoker_proto::{status, v1};

use self::answer::AnswerBody;
use self::fields::{request_headers, response_headers};
pub use self::input::begin;
use self::input::pieces;
pub use self::lambda::{CodePlace as LambdaCode, Config as LambdaConfig, Lambda, Runtimes};
use self::unread::RequestBody;
use super::{Front, http_trace};
use crate::auth::{CHALLENGE, Caller, Origin};
use crate::call::{Input, Trailers};
use crate::observe::{Asked, Watch};

/// What Fn's clients read the call's id from.
const CALL_ID: HeaderName = HeaderName::from_static("fn-call-id");

/// The code of a call's error: by it, and by nothing that a function can write, an error is told from an answer of the function's.
const ERROR: HeaderName = HeaderName::from_static("stoker-error");

/// Which of the function's revisions ran a call.
const REVISION: HeaderName = HeaderName::from_static("stoker-revision");

/// How functions are invoked.
const ALLOWED: HeaderValue = HeaderValue::from_static("POST, OPTIONS");

/// The doors as what a connection wants.
#[derive(Clone)]
pub struct Served {
    front: Arc<Front>,
    origin: Arc<Origin>,
}

impl Served {
    pub fn new(front: Arc<Front>, origin: Arc<Origin>) -> Self {
        Self { front, origin }
    }
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Box::pin(serve(self.front.clone(), self.origin.clone(), request).map_ok(named))
    }
}

/// A function may answer with a status that no registry has a name for. Then there is none; the library would write one of its own.
fn named(mut answer: Response<AnswerBody>) -> Response<AnswerBody> {
    if answer.status().canonical_reason().is_none() && answer.extensions().get::<ReasonPhrase>().is_none() {
        answer.extensions_mut().insert(ReasonPhrase::from_static(b""));
    }
    answer
}

/// One request, to the head of its answer.
async fn serve(
    front: Arc<Front>,
    origin: Arc<Origin>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Infallible> {
    let version = request.version();
    let (mut head, body) = request.into_parts();
    if origin.secure {
        head.extensions.insert(ByTls);
    }
    let body = RequestBody::new(body, version, &head.headers);
    let mut request = Request::from_parts(head, body);
    let id = CallId::new();
    let trace = http_trace(request.headers());
    let (method, path) = (request.method(), request.uri().path());
    let way = Way::of(path);
    let mut watch = front.observer.http(id, &Asked { method, path, version, origin: &origin.facts }, &trace);
    let routed = (way == Way::Fn).then(|| triggers::route(&front, &request, request.method().as_str()));
    let cors = routed.as_ref().and_then(|routed| routed.as_ref().ok()?.cors.clone());
    let visit = Visit { id, way, page: cors.map(|cors| cors::Page::new(cors, request.headers())) };
    // Nobody shows who they are with it.
    if way == Way::Fn
        && let Some((page, permitted)) = triggers::preflight(&front, &request)
    {
        return Ok(permission(&page, permitted, id, watch));
    }
    match caller(&front, &origin, &mut request).await {
        Ok(None) => {}
        Ok(Some(caller)) => watch.by(caller),
        Err(error) => {
            watch.end(Err(&error));
            let mut failure = visit.failure(error);
            if origin.refused.is_some() && version < Version::HTTP_2 {
                failure.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return Ok(failure);
        }
    }
    // Every call pays for the size of what it might have been, so that this is held behind a pointer.
    match way {
        Way::Lambda => return Ok(Box::pin(lambda::serve(front, id, request, watch, origin.secure)).await),
        Way::Control => return Ok(Box::pin(control::serve(front, id, request, watch, origin.secure)).await),
        Way::Fn | Way::Mless | Way::Event => {}
    }
    let mut allow = None;
    let handled = async {
        let look = || triggers::route(&front, &request, request.method().as_str());
        match way {
            Way::Mless => Box::pin(mless::handle(&front, id, request, &mut watch)).await,
            Way::Event => Box::pin(events::handle(&front, id, request, &mut watch)).await,
            _ => match routed.unwrap_or_else(look) {
                Ok(route) => handle(&front, id, request, route, &origin, &mut watch).await,
                Err(nowhere) => {
                    allow = nowhere.allow;
                    Err(nowhere.error)
                }
            },
        }
    };
    let handled = front.dispatch.fleet.panics.call(pin!(handled)).await;
    let revision = watch.revision();
    let mut answer = match handled {
        Ok(mut answer) => {
            visit.page.iter().for_each(|page| page.tell(answer.headers_mut()));
            watch.http_status(answer.status().as_u16());
            answer.body_mut().watched(watch);
            answer
        }
        Err(error) => {
            watch.end(Err(&error));
            let mut failure = visit.failure(error);
            if let Some(allow) = allow {
                failure.headers_mut().insert(ALLOW, allow);
            }
            failure
        }
    };
    ran(answer.headers_mut(), revision);
    Ok(answer)
}

/// Who asks, where that matters; the rest of the request is told of it.
///
/// # Errors
/// Nobody who may come in, or a request that no door takes.
async fn caller(
    front: &Front,
    origin: &Arc<Origin>,
    request: &mut Request<RequestBody>,
) -> Result<Option<Caller>, Error> {
    if let Some(refused) = &origin.refused {
        return Err(refused.clone());
    }
    fields::is_sound(request.version(), request.headers())?;
    if front.guard.is_open() {
        return Ok(front.guard.counted(origin));
    }
    let caller = front.guard.identify(request.headers_mut(), origin).await?;
    request.extensions_mut().insert(caller.clone());
    Ok(Some(caller))
}

/// What every answer to a request needs to know of it.
struct Visit {
    id: CallId,
    way: Way,
    /// Where a page of another origin asked.
    page: Option<cors::Page>,
}

impl Visit {
    /// An error in the shape of the API that was asked.
    fn failure(&self, error: Error) -> Response<AnswerBody> {
        let mut failure = match self.way {
            Way::Mless => mless::failure(&error, self.id),
            Way::Lambda => lambda::failure(error, self.id),
            Way::Fn | Way::Control | Way::Event => failure(&error, self.id),
        };
        self.page.iter().for_each(|page| page.tell(failure.headers_mut()));
        failure
    }
}

/// Whose API a path belongs to: each has requests and errors of its own shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fn,
    Mless,
    Lambda,
    Control,
    Event,
}

impl Way {
    fn of(path: &str) -> Self {
        match path {
            mless::PATH => Way::Mless,
            _ if lambda::is_path(path) => Way::Lambda,
            _ if control::is_path(path) => Way::Control,
            _ if events::function_of(path).is_some() => Way::Event,
            _ => Way::Fn,
        }
    }
}

/// A path as Fn's router sees it: escapes are resolved before anything is compared, so that an escaped slash is a slash.
fn decoded(path: &str) -> Result<Cow<'_, str>, Error> {
    let digits = |part: &str| {
        part.as_bytes().first_chunk().is_some_and(|two: &[u8; 2]| two.iter().all(u8::is_ascii_hexdigit))
    };
    if !path.split('%').skip(1).all(digits) {
        let text = "the path has a % that no two hexadecimal digits follow";
        return Err(Error::new(Code::InvalidRequest, text));
    }
    Ok(match unescape(path) {
        Cow::Borrowed(_) => Cow::Borrowed(path),
        // What is not UTF-8 is the name of nothing, and is answered so.
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    })
}

async fn handle(
    front: &Front,
    id: CallId,
    request: Request<RequestBody>,
    route: triggers::Route,
    origin: &Origin,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    if let Some(config) = &route.url {
        return Box::pin(lambda::url::serve(front, id, request, route.known, config, origin, watch)).await;
    }
    let (parts, body) = request.into_parts();
    let (function, intent) = (route.known.clone(), route.intent);
    if intent == v1::Intent::Invoke {
        if parts.method == Method::OPTIONS {
            return Ok(allowed(StatusCode::NO_CONTENT, id));
        }
        if parts.method != Method::POST {
            let error = Error::new(Code::MethodNotAllowed, "functions are invoked with POST");
            return Err(error);
        }
    }
    let mut headers = request_headers(&parts.headers);
    let for_later = intent == v1::Intent::Invoke && later::is_asked(&parts.headers);
    // Its format has a place for what follows a body.
    let followed = !for_later && fields::is_followed(function.spec.format);
    if followed {
        fields::about_trailers(&parts.headers, &mut headers);
    }
    route.tell(&mut headers);
    if intent == v1::Intent::HttpRequest && function.spec.format == Format::Lambda {
        lambda::source::tell(&front.lambda, origin, &parts, &mut headers);
    }
    let head = v1::RequestHead {
        intent: intent.into(),
        method: parts.method.as_str().to_owned(),
        url: url(&parts),
        headers,
    };
    let length = body.size_hint().exact();
    front.dispatch.fits(&function.spec, length.unwrap_or_default())?;
    if for_later {
        let qualifier = super::later::qualifier(&decoded(parts.uri.path())?);
        let submit = later::submit(front, id, function, qualifier, &parts, head, body, watch);
        return Box::pin(submit).await;
    }
    let format = function.spec.format;
    let call = front.admit(id, function, head, None, watch)?;
    let small = length.is_some_and(|length| length <= CHUNK as u64);
    let input = if body.is_end_stream() {
        Input::whole(Bytes::new())
    } else {
        // A client that is slow with a small body holds its place no longer than the call may take.
        // Behind a body whose length was told HTTP/1.1 has no place for more.
        let trailers =
            (followed && (length.is_none() || parts.version == Version::HTTP_2)).then(Trailers::default);
        let begun = begin(input::followed(body, trailers.clone()), small);
        let begun = tokio::time::timeout_at(call.deadline.0.into(), begun).await;
        let late = |_| Error::new(Code::DeadlineExceeded, "the request's body did not come in time");
        begun.map_err(late)??.followed_by(trailers).of_length(length)
    };
    let answer = front.dispatch.call(call, input, watch).await?;
    let takes_trailers = fields::takes_trailers(&parts);
    let mut body = AnswerBody::new(answer.first, answer.rest).of_length(answer.length);
    // Room for those of the door as well: a map that grows is made anew.
    let mut headers = HeaderMap::with_capacity(answer.head.headers.len() + 4);
    response_headers(&mut headers, answer.head.headers, takes_trailers);
    headers.insert(CALL_ID, header(&id.to_string()));
    if lambda::direct::is_told(format, &parts, &headers) {
        lambda::direct::announce(&mut headers);
        body.with_ending();
    } else if takes_trailers {
        body.with_trailers(answer.end.trailers, &mut headers);
    }
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    *response.status_mut() = status_of(answer.head.status);
    Ok(response)
}

/// The status of an answer. Whether a function decides about it is a matter of its format and of the intent, and settled where those are known.
fn status_of(said: u32) -> StatusCode {
    let status = u16::try_from(said).ok().and_then(|status| StatusCode::from_u16(status).ok());
    status.filter(|status| !status.is_informational()).unwrap_or(StatusCode::OK)
}

/// A request that came by TLS. Put where the rest of it can see it.
#[derive(Clone, Copy)]
struct ByTls;

/// The URL as the client meant it: in full where it named a host. HTTP/1.1 names no scheme: that of the connection is it.
fn url(parts: &Parts) -> String {
    if parts.uri.scheme().is_some() {
        return parts.uri.to_string();
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let scheme = if parts.extensions.get::<ByTls>().is_some() { "https" } else { "http" };
    match parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()) {
        Some(host) if !host.bytes().any(|b| b <= b' ' || b == 0x7f) => format!("{scheme}://{host}{path}"),
        _ => path.to_owned(),
    }
}

/// Says which revision a call came to.
fn ran(headers: &mut HeaderMap, revision: Option<u64>) {
    if let Some(revision) = revision {
        headers.insert(REVISION, revision.into());
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
}

/// The answer to a page that asked whether it may.
fn permission(
    page: &cors::Page,
    permitted: Result<HeaderMap, Error>,
    id: CallId,
    mut watch: Watch,
) -> Response<AnswerBody> {
    match permitted {
        Ok(headers) => {
            watch.http_status(StatusCode::NO_CONTENT.as_u16());
            watch.end(Ok(()));
            let mut response = Response::new(AnswerBody::whole(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            *response.headers_mut() = headers;
            response.headers_mut().insert(CALL_ID, header(&id.to_string()));
            response
        }
        Err(error) => {
            watch.end(Err(&error));
            let mut failure = failure(&error, id);
            page.tell(failure.headers_mut());
            failure
        }
    }
}

fn allowed(status: StatusCode, id: CallId) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().insert(ALLOW, ALLOWED);
    response.headers_mut().insert(CALL_ID, header(&id.to_string()));
    response
}

/// An error as HTTP.
fn failure(error: &Error, id: CallId) -> Response<AnswerBody> {
    let row = status::row(error.code);
    let mut body = serde_json::json!({
        "message": error.message,
        "code": row.reason,
        "blame": error.blame().as_str(),
        "retry": error.retry.as_str(),
        "call_id": id.to_string(),
    });
    if error.may_have_started {
        body["may_have_started"] = true.into();
    }
    if !error.log_tail.is_empty() {
        body["log_tail"] = error.log_tail.as_str().into();
    }
    let mut response = Response::new(AnswerBody::whole(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(row.http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if error.code == Code::Cancelled {
        // No registry has its status, so that a library has no words for it.
        response.extensions_mut().insert(ReasonPhrase::from_static(b"Client Closed Request"));
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CALL_ID, header(&id.to_string()));
    headers.insert(ERROR, HeaderValue::from_static(row.reason));
    let kind = error.report.as_ref().filter(|report| !report.kind.is_empty());
    if let Some(kind) = kind.and_then(|report| HeaderValue::from_str(&report.kind).ok()) {
        headers.insert(lambda::direct::ERROR_TYPE, kind);
    }
    if error.code == Code::MethodNotAllowed {
        headers.insert(ALLOW, ALLOWED);
    }
    challenge(headers, error.code);
    retry_after(headers, error.retry);
    response
}

/// Says how to show who one is, to one whom nobody knows.
fn challenge(headers: &mut HeaderMap, code: Code) {
    if code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, CHALLENGE);
    }
}

fn retry_after(headers: &mut HeaderMap, retry: Retry) {
    if let Retry::After(wait) = retry {
        // Whole seconds, rounded up: sooner would be too soon.
        headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1000).max(1) as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_without_escapes() {
        for (path, is) in
            [("/a", Some("/a")), ("/%61%2fb%20c%c3%a9", Some("/a/b c\u{e9}")), ("/%ff", Some("/\u{fffd}"))]
        {
            assert_eq!(decoded(path).ok().as_deref(), is);
        }
        for wrong in ["/%", "/%6", "/%6g", "/%+1", "/a%%41", "/%é"] {
            assert_eq!(decoded(wrong).map_err(|error| error.code), Err(Code::InvalidRequest), "{wrong}");
        }
    }

    #[test]
    fn a_url_has_the_scheme_by_which_it_came() {
        let came = |uri: &str, host: Option<&str>, by_tls: bool| {
            let mut request = Request::builder().uri(uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            if by_tls {
                request = request.extension(ByTls);
            }
            url(&request.body(()).unwrap().into_parts().0)
        };
        for (uri, host, by_tls, is) in [
            ("/a?b=c", Some("fleet.example"), false, "http://fleet.example/a?b=c"),
            ("/a?b=c", Some("fleet.example"), true, "https://fleet.example/a?b=c"),
            // HTTP/2 says it.
            ("https://fleet.example/a", None, true, "https://fleet.example/a"),
            ("/a", None, true, "/a"),
            ("/a", Some("no host"), true, "/a"),
        ] {
            assert_eq!(came(uri, host, by_tls), is, "{uri} at {host:?}");
        }
    }
}
