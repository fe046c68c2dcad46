//! HTTP for clients: Fn's direct invocation, its HTTP triggers and its [control] plane, CloudEvents ([events]), what [mless] has, and what AWS [lambda] has.

mod control;
mod cors;
mod events;
mod lambda;
mod later;
mod mless;
mod triggers;

use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyStream;
use hyper::body::Incoming;
use stoker_core::call::{CHUNK, is_hop_by_hop};
use stoker_core::error::{Code, Error, Retry};
use stoker_core::ids::CallId;
use stoker_proto::{status, v1};

pub use self::lambda::{Config as LambdaConfig, Lambda, Runtimes};
use super::{Door, http_trace};
use crate::auth::{CHALLENGE, Origin};
use crate::call::{Input, Pieces, Rest};
use crate::observe::{Asked, Watch};

/// What Fn's clients read the call's id from.
const CALL_ID: HeaderName = HeaderName::from_static("fn-call-id");

/// Which of the function's revisions ran a call.
const REVISION: HeaderName = HeaderName::from_static("stoker-revision");

/// How functions are invoked.
const ALLOWED: HeaderValue = HeaderValue::from_static("POST, OPTIONS");

/// The doors as what a connection wants.
#[derive(Clone)]
pub struct Served {
    door: Arc<Door>,
    origin: Arc<Origin>,
}

impl Served {
    pub fn new(door: Arc<Door>, origin: Arc<Origin>) -> Self {
        Self { door, origin }
    }
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let (door, origin) = (self.door.clone(), self.origin.clone());
        Box::pin(async move {
            let id = CallId::new();
            let trace = http_trace(request.headers());
            let asked = Asked {
                method: request.method(),
                path: request.uri().path(),
                version: request.version(),
                origin: &origin.facts,
            };
            let mut watch = door.observer.http(id, &asked, &trace);
            let way = Way::of(request.uri().path());
            let routed =
                (way == Way::Fn).then(|| triggers::route(&door, &request, request.method().as_str()));
            let cors = routed.as_ref().and_then(|routed| routed.as_ref().ok()?.cors.clone());
            let page = cors.map(|cors| cors::Page::new(cors, request.headers()));
            // Nobody shows who they are with it.
            if way == Way::Fn
                && let Some((page, permitted)) = triggers::preflight(&door, &request)
            {
                return Ok(permission(&page, permitted, id, watch));
            }
            if !door.guard.is_open() {
                match door.guard.identify(request.headers_mut(), &origin).await {
                    Ok(caller) => {
                        watch.by(caller.clone());
                        request.extensions_mut().insert(caller);
                    }
                    Err(error) => {
                        watch.end(Err(&error));
                        return Ok(match way {
                            Way::Mless => mless::failure(&error, id),
                            Way::Lambda => lambda::failure(error, id),
                            Way::Fn | Way::Control | Way::Event => {
                                let mut failure = failure(&error, id);
                                page.iter().for_each(|page| page.tell(failure.headers_mut()));
                                failure
                            }
                        });
                    }
                }
            }
            match way {
                Way::Lambda => return Ok(lambda::serve(door, id, request, watch).await),
                Way::Control => return Ok(control::serve(door, id, request, watch, origin.secure).await),
                Way::Fn | Way::Mless | Way::Event => {}
            }
            let mut allow = None;
            let handled = async {
                let look = || triggers::route(&door, &request, request.method().as_str());
                match way {
                    Way::Mless => mless::handle(&door, id, request, &mut watch).await,
                    Way::Event => events::handle(&door, id, request, &mut watch).await,
                    _ => match routed.unwrap_or_else(look) {
                        Ok(route) => handle(&door, id, request, route, &mut watch).await,
                        Err(nowhere) => {
                            allow = nowhere.allow;
                            Err(nowhere.error)
                        }
                    },
                }
            };
            let mut answer = match door.dispatch.fleet.panics.call(handled).await {
                Ok(answer) => answer,
                Err(error) => {
                    let revision = watch.revision();
                    watch.end(Err(&error));
                    let mut failure = match way {
                        Way::Mless => mless::failure(&error, id),
                        _ => failure(&error, id),
                    };
                    ran(failure.headers_mut(), revision);
                    if let Some(allow) = allow {
                        failure.headers_mut().insert(ALLOW, allow);
                    }
                    page.iter().for_each(|page| page.tell(failure.headers_mut()));
                    return Ok(failure);
                }
            };
            ran(answer.headers_mut(), watch.revision());
            page.iter().for_each(|page| page.tell(answer.headers_mut()));
            watch.http_status(answer.status().as_u16());
            answer.body_mut().watched(watch);
            Ok(answer)
        })
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
    let mut parts = path.split('%');
    let first = parts.next().unwrap_or_default();
    if first.len() == path.len() {
        return Ok(Cow::Borrowed(path));
    }
    let mut bytes = first.as_bytes().to_vec();
    for part in parts {
        let digits =
            part.as_bytes().first_chunk::<2>().filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|_| u8::from_str_radix(part.get(..2)?, 16).ok()).ok_or_else(|| {
            Error::new(Code::InvalidRequest, "the path has a % that no two hexadecimal digits follow")
        })?;
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    // What is not UTF-8 is the name of nothing, and is answered so.
    Ok(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

async fn handle(
    door: &Door,
    id: CallId,
    request: Request<Incoming>,
    route: triggers::Route,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
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
    route.tell(&mut headers);
    let head = v1::RequestHead {
        intent: intent.into(),
        method: parts.method.as_str().to_owned(),
        url: url(&parts.uri, &parts.headers),
        headers,
    };
    let length = body.size_hint().exact();
    door.dispatch.fits(&function.spec, length.unwrap_or_default())?;
    if intent == v1::Intent::Invoke && later::is_asked(&parts.headers) {
        let qualifier = super::later::qualifier(&decoded(parts.uri.path())?);
        return later::submit(door, id, function, qualifier, &parts, head, body, watch).await;
    }
    let format = function.spec.format;
    let call = door.admit(id, function, head, None, watch)?;
    let small = length.is_some_and(|length| length <= CHUNK as u64);
    let input = if body.is_end_stream() {
        Input::whole(Bytes::new())
    } else {
        // A client that is slow with a small body holds its place no longer than the call may take.
        let begun = tokio::time::timeout_at(call.deadline.0.into(), begin(pieces(body), small)).await;
        begun.map_err(|_| Error::new(Code::DeadlineExceeded, "the request's body did not come in time"))??
    };
    let answer = door.dispatch.call(call, input, watch).await?;
    let mut response = Response::new(AnswerBody::new(answer.first, answer.rest));
    // Whether a function decides about the status is a matter of its format and of the intent, and settled where those are known.
    *response.status_mut() = u16::try_from(answer.head.status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .filter(|status| !status.is_informational())
        .unwrap_or(StatusCode::OK);
    response_headers(response.headers_mut(), answer.head.headers);
    response.headers_mut().insert(CALL_ID, header(&id.to_string()));
    if lambda::direct::is_told(format, &parts, response.headers()) {
        lambda::direct::announce(response.headers_mut());
        response.body_mut().trailers = Some(lambda::direct::ending(Ok(())));
    }
    Ok(response)
}

/// The URL as the client meant it: in full where it named a host.
fn url(uri: &http::Uri, headers: &HeaderMap) -> String {
    if uri.scheme().is_some() {
        return uri.to_string();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    match headers.get(http::header::HOST).and_then(|host| host.to_str().ok()) {
        Some(host) if !host.bytes().any(|b| b <= b' ' || b == 0x7f) => format!("http://{host}{path}"),
        _ => path.to_owned(),
    }
}

/// Whether a header goes no further than to the neighbour. A body's length is told again by who sends it on.
fn stays_here(name: &str, named: &[String]) -> bool {
    is_hop_by_hop(name) || name == "content-length" || named.iter().any(|other| other == name)
}

/// What `Connection` names is between neighbours as well.
fn named<'a>(connection: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    connection
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect()
}

fn request_headers(headers: &HeaderMap) -> Vec<v1::Header> {
    let named = named(headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes));
    headers
        .iter()
        .filter(|(name, _)| !stays_here(name.as_str(), &named) && *name != CALL_ID)
        .map(|(name, value)| v1::Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
        .collect()
}

fn response_headers(to: &mut HeaderMap, headers: Vec<v1::Header>) {
    let connection = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let named = named(connection.map(|header| header.value.as_ref()));
    for v1::Header { name, value } in headers {
        let name = name.to_ascii_lowercase();
        if stays_here(&name, &named) {
            continue;
        }
        // The runner checked them; what HTTP still cannot carry is left out rather than the whole answer.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_maybe_shared(value)) {
            to.append(name, value);
        }
    }
}

fn pieces(body: Incoming) -> Pieces {
    Box::pin(BodyStream::new(body).filter_map(|frame| {
        std::future::ready(match frame {
            // Trailers are no part of a call.
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(broken(&error))),
        })
    }))
}

/// Why a request's body cannot be read to its end.
fn broken(error: &hyper::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    let mut causes =
        std::iter::successors(std::error::Error::source(error), |cause| std::error::Error::source(*cause));
    match causes.find_map(|cause| cause.downcast_ref::<std::io::Error>()) {
        Some(cause) if matches!(cause.kind(), InvalidInput | InvalidData) => {
            Error::new(Code::InvalidRequest, format!("the request's body is not valid HTTP: {cause}"))
        }
        _ => Error::new(Code::Cancelled, "the request's body broke off: the client went away"),
    }
}

/// The beginning of a body for the offer. A body that is known to be small is read whole; of another only what is there
/// already is taken, since a function may answer before its input has come.
pub async fn begin(mut pieces: Pieces, small: bool) -> Result<Input, Error> {
    let mut first = BytesMut::new();
    let mut single: Option<Bytes> = None;
    loop {
        let next = if small {
            pieces.next().await
        } else {
            match pieces.next().now_or_never() {
                Some(next) => next,
                None => break,
            }
        };
        let mut piece = match next {
            Some(piece) => piece?,
            None => {
                let first = single.unwrap_or_else(|| first.freeze());
                return Ok(Input::begun(first, None));
            }
        };
        // One piece that fits is passed on as it is, uncopied.
        if single.is_none() && first.is_empty() && piece.len() <= CHUNK {
            single = Some(piece);
            continue;
        }
        if let Some(single) = single.take() {
            first.extend_from_slice(&single);
        }
        let fits = piece.split_to(piece.len().min(CHUNK - first.len()));
        first.extend_from_slice(&fits);
        if !piece.is_empty() || first.len() == CHUNK {
            let left = futures_util::stream::iter((!piece.is_empty()).then_some(Ok(piece)));
            return Ok(Input::begun(first.freeze(), Some(Box::pin(left.chain(pieces)))));
        }
    }
    Ok(Input::begun(single.unwrap_or_else(|| first.freeze()), Some(pieces)))
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
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CALL_ID, header(&id.to_string()));
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

/// The body of an answer, as it comes. Dropping it cancels the call.
pub struct AnswerBody {
    /// What is there already.
    first: Bytes,
    rest: Option<Rest>,
    /// What the door itself puts at the end.
    last: Bytes,
    /// There until the end of what is streamed.
    watch: Option<Watch>,
    /// Where the pieces go out as events of a stream.
    events: Option<Box<lambda::stream::Events>>,
    /// Where the end is told by trailers: how it is if nothing happens.
    trailers: Option<HeaderMap>,
}

impl AnswerBody {
    fn whole(body: Bytes) -> Self {
        Self::new(body, None)
    }

    fn new(first: Bytes, rest: Option<Rest>) -> Self {
        Self { first, rest, last: Bytes::new(), watch: None, events: None, trailers: None }
    }

    /// The call ends where its answer does.
    fn watched(&mut self, watch: Watch) {
        match self.rest {
            Some(_) => self.watch = Some(watch),
            None => watch.end(self.events.as_ref().and_then(|events| events.failed()).map_or(Ok(()), Err)),
        }
    }

    fn ended(&mut self, outcome: Result<(), &Error>) {
        if let Some(watch) = self.watch.take() {
            watch.end(outcome);
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if let Some(frame) = self.events.as_mut().and_then(|events| events.next()) {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            let this = &mut *self;
            let piece = if !this.first.is_empty() {
                std::mem::take(&mut this.first)
            } else if let Some(rest) = this.rest.as_mut() {
                match std::task::ready!(futures_util::Stream::poll_next(Pin::new(rest), cx)) {
                    Some(Ok(piece)) => piece,
                    Some(Err(error)) => {
                        this.rest = None;
                        this.ended(Err(&error));
                        match (&mut this.events, &mut this.trailers) {
                            // The stream of events has words for it, and so have trailers.
                            (Some(events), _) => events.fail(&error),
                            (_, Some(trailers)) => *trailers = lambda::direct::ending(Err(&error)),
                            (None, None) => return Poll::Ready(Some(Err(error))),
                        }
                        continue;
                    }
                    None => {
                        this.rest = None;
                        this.ended(Ok(()));
                        continue;
                    }
                }
            } else if let Some(events) = &mut this.events {
                match std::task::ready!(events.poll_end(cx)) {
                    true => continue,
                    false => return Poll::Ready(None),
                }
            } else if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            } else {
                let last = std::mem::take(&mut this.last);
                return Poll::Ready((!last.is_empty()).then(|| Ok(Frame::data(last))));
            };
            match &mut this.events {
                Some(events) => events.piece(piece),
                None => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let said = self.first.is_empty() && self.rest.is_none() && self.last.is_empty();
        said && self.events.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.rest, &self.events, &self.trailers) {
            (None, None, None) => SizeHint::with_exact((self.first.len() + self.last.len()) as u64),
            _ => SizeHint::default(),
        }
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
    fn headers_between_neighbours_stay_there() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "x-mine, close"), ("x-mine", "1"), ("te", "trailers"), ("x-app", "2")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let names: Vec<_> = request_headers(&headers).into_iter().map(|h| h.name).collect();
        assert_eq!(names, ["x-app"]);
    }

    #[tokio::test]
    async fn a_body_begins_with_what_is_there() {
        let all =
            |parts: Vec<Bytes>| -> Pieces { Box::pin(futures_util::stream::iter(parts.into_iter().map(Ok))) };
        let input = begin(all(vec![Bytes::from_static(b"ab")]), true).await.expect("a body");
        assert!(input.first == "ab" && input.rest.is_none());
        let input = begin(all(vec![Bytes::from(vec![1; CHUNK + 5]), Bytes::from(vec![2; 9])]), false)
            .await
            .expect("a body");
        assert_eq!(input.first.len(), CHUNK);
        let rest: Vec<_> =
            input.rest.expect("more").map(|piece| piece.expect("a piece").len()).collect().await;
        assert_eq!(rest, [5, 9]);
        let input = begin(Box::pin(futures_util::stream::pending()), false).await.expect("a body");
        assert!(input.first.is_empty() && input.rest.is_some());
    }
}
