//! AWS Lambda's HTTP API, for callers of its SDKs with another `endpoint_url`.
//!
//! Two rules of theirs are not ours. A function that failed is a success of the call: 200, with `X-Amz-Function-Error` and the
//! function's own words as the body, for callers would send it again otherwise. And everything else that a caller can do about
//! an error is in its name, which stands in a header.

mod absent;
mod change;
mod code;
pub mod direct;
mod draft;
mod emulator;
mod events;
mod functions;
mod intake;
mod invoke;
mod layers;
mod limits;
mod policy;
mod refused;
mod routes;
mod runtimes;
mod signature;
pub mod source;
pub mod stream;
mod target;
pub mod url;
mod urls;
mod versions;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use stoker_core::cidr::Cidr;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;

pub use self::code::CodePlace;
use self::code::Store;
use self::intake::{Intake, LARGEST_CODE, LARGEST_EVENT, SLOWEST, SLOWEST_CODE, whole};
use self::invoke::{Asked, Trail};
use self::refused::Refused;
pub use self::runtimes::Runtimes;
use self::target::{Target, split};
pub use self::urls::Config as UrlConfig;
use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, Front, decoded, header};
use crate::auth::{Caller, Permission};
use crate::directory::{DEFAULT_APP, Named};
use crate::observe::Watch;

/// The version that changes.
const LATEST: &str = "$LATEST";

/// Whose everything is, and where, in every ARN.
const ACCOUNT: &str = "012345678912";
const REGION: &str = "us-east-1";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What an operator says of this API.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Where code that comes as a zip is kept.
    pub code: Option<CodePlace>,
    pub runtimes: Runtimes,
    /// The function for which this balancer is what the Runtime Interface Emulator is for one.
    pub emulate: Option<String>,
    /// Proxies whose word counts on who their client is.
    pub trusted_proxies: Vec<Cidr>,
}

/// What this API needs besides.
pub struct Lambda {
    code: Option<Arc<Store>>,
    runtimes: Runtimes,
    emulate: Option<String>,
    trusted_proxies: Vec<Cidr>,
}

impl Lambda {
    pub fn new(config: Config) -> Self {
        let code = config.code.map(|place| Arc::new(Store::new(place)));
        let Config { runtimes, emulate, trusted_proxies, .. } = config;
        Self { code, runtimes, emulate, trusted_proxies }
    }
}

/// Whether a path is one of this API: they begin with the date of a version.
pub fn is_path(path: &str) -> bool {
    let date = path.as_bytes();
    date.len() > 12
        && date[..12].iter().zip(b"/0000-00-00/").all(|(is, shape)| match shape {
            b'0' => is.is_ascii_digit(),
            other => is == other,
        })
}

fn plain(status: u16, body: Bytes, id: CallId) -> Response<AnswerBody> {
    with_body(status, AnswerBody::whole(body), id)
}

fn with_body(status: u16, body: AnswerBody, id: CallId) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(REQUEST_ID, header(&request_id(id)));
    headers.insert(CALL_ID, header(&id.to_string()));
    response
}

/// A call's id as AWS writes ids.
fn request_id(id: CallId) -> String {
    let text = id.to_string();
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default()).join("-")
}

fn arn(name: &str, qualifier: Option<&str>) -> String {
    let end = qualifier.map(|qualifier| format!(":{qualifier}")).unwrap_or_default();
    format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}{end}")
}

/// What is said to one who is not let in.
pub fn failure(mut error: Error, id: CallId) -> Response<AnswerBody> {
    if error.code == Code::Unauthenticated {
        error.message.push_str(signature::ASKED);
    }
    Refused::from(error).response(id)
}

/// Serves one request.
pub async fn serve(
    front: Arc<Front>,
    id: CallId,
    request: Request<RequestBody>,
    mut watch: Watch,
    secure: bool,
) -> Response<AnswerBody> {
    if emulator::is_meant(&front, request.uri().path()) {
        return emulator::serve(front, id, request, watch).await;
    }
    let mut trail = Trail::default();
    let handled = handle(&front, id, request, &mut watch, &mut trail, secure);
    let handled = front.dispatch.fleet.panics.catch(handled).await;
    let revision = watch.revision();
    let mut response = match handled.unwrap_or_else(|panicked| Err(panicked.into())) {
        Ok(mut response) => {
            watch.http_status(response.status().as_u16());
            response.body_mut().watched(watch);
            response
        }
        Err(refused) => {
            let response = match invoke::is_of_function(&refused) {
                true => invoke::failed(&refused.error, id, &trail, &watch),
                false => refused.response(id),
            };
            watch.end(Err(&refused.error));
            response
        }
    };
    super::ran(response.headers_mut(), revision);
    response
}

async fn handle(
    front: &Arc<Front>,
    id: CallId,
    request: Request<RequestBody>,
    watch: &mut Watch,
    trail: &mut Trail,
    secure: bool,
) -> Result<Response<AnswerBody>, Refused> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let intake = Intake::of(&parts.method, &segments);
    let claim = claim(front, &parts, watch)?;
    if claim.is_none() {
        // It came as far as here because it could have been signed.
        if !front.guard.is_open() && watch.caller().name().is_empty() {
            return Err(signature::missing());
        }
        permitted(front, watch.caller(), &parts.method, &segments)?;
    }
    // In memory as a whole from here on: calls by their places, code by those of the store.
    let place = matches!(intake, Intake::Call).then(|| front.admission.enter(watch.caller())).transpose()?;
    let (most, time) = match intake {
        Intake::Code => (LARGEST_CODE, SLOWEST_CODE),
        Intake::Call | Intake::Other => (LARGEST_EVENT, SLOWEST),
    };
    let _of_code = match (&intake, &front.lambda.code) {
        (Intake::Code, Some(store)) => Some(store.place().await),
        _ => None,
    };
    let body = whole(body, most, time).await?;
    if let Some((claim, secret, identity)) = claim {
        claim.verify(secret.reveal(), &body)?;
        let caller = front.guard.signed(watch.caller(), identity);
        watch.by(caller);
        permitted(front, watch.caller(), &parts.method, &segments)?;
    }
    if let Some(place) = place {
        let target = |name: &str| Target::of(front, &parts, name);
        return match (&parts.method, &segments[..]) {
            (&Method::POST, ["2015-03-31", "functions", name, "invocations"]) => {
                let asked = Asked::new(target(name)?, &parts, None)?;
                invoke::invoke(front, id, &parts, place, body, asked, watch, trail).await
            }
            (&Method::POST, ["2014-11-13", "functions", name, "invoke-async"]) => {
                let asked = Asked::new(target(name)?, &parts, Some("Event"))?;
                invoke::invoke(front, id, &parts, place, body, asked, watch, trail).await
            }
            (&Method::POST, ["2021-11-15", "functions", name, "response-streaming-invocations"]) => {
                let asked = Asked::new(target(name)?, &parts, None)?;
                invoke::invoke_streaming(front, id, &parts, place, body, asked, watch).await
            }
            _ => Err(not_here(&parts)),
        };
    }
    let request = routes::Request { front, parts: &parts, body: &body, caller: watch.caller(), secure };
    // As large as the largest of all actions.
    let answered = Box::pin(request.answer(&segments)).await;
    if parts.method != Method::GET {
        let on: Vec<_> =
            segments.get(2).map(|name| (*name).to_owned()).or_else(|| named(&body)).into_iter().collect();
        let outcome = answered.as_ref().map(drop).map_err(|refused| &refused.error);
        front.guard.note(watch.caller(), &format!("{} {path}", parts.method), &on, outcome);
    }
    let (status, body) = answered?;
    Ok(plain(status, body.map_or_else(Bytes::new, |body| body.to_string().into()), id))
}

/// The function that a request is about whose path names none, such as one that makes it.
fn named(body: &[u8]) -> Option<String> {
    /// Most of a name that is noted: more than one may have.
    const LONGEST: usize = 256;
    #[derive(serde::Deserialize)]
    struct About {
        #[serde(rename = "FunctionName")]
        name: String,
    }
    let About { name } = serde_json::from_slice(body).ok()?;
    Some(name.chars().take(LONGEST).collect())
}

fn not_here(parts: &Parts) -> Refused {
    let text = format!("{} {} is not in this version of Stoker", parts.method, parts.uri.path());
    Refused::unsupported(text)
}

/// Whose signature a request bears, where somebody must be let in; what it says of itself is right so far.
type Signed = (signature::Claim, stoker_runtime::auth::Secret, Arc<stoker_runtime::auth::Identity>);

fn claim(front: &Front, parts: &Parts, watch: &mut Watch) -> Result<Option<Signed>, Refused> {
    if front.guard.is_open() || !signature::is_there(&parts.headers) {
        return Ok(None);
    }
    let claim = signature::Claim::read(parts, SystemTime::now())?;
    match front.guard.key(&claim.key) {
        Some((secret, identity)) => Ok(Some((claim, secret, identity))),
        None if watch.caller().is_anybody() => {
            let caller = front.guard.unproven(watch.caller());
            watch.by(caller);
            Ok(None)
        }
        // Whoever is let in otherwise may sign with what it likes.
        None if !watch.caller().name().is_empty() => Ok(None),
        None => Err(signature::unknown()),
    }
}

/// Whether a request that is no call may be made; calls are asked where they are let in.
fn permitted(front: &Front, caller: &Caller, method: &Method, segments: &[&str]) -> Result<(), Error> {
    if front.guard.is_open() || matches!(Intake::of(method, segments), Intake::Call) {
        return Ok(());
    }
    let permission = match *method {
        Method::GET | Method::HEAD => Permission::Observe,
        _ => Permission::Manage,
    };
    if let [_, "layers", ..] = segments {
        // Whose they are is asked where their names are read.
        return Ok(());
    }
    let name = segments.get(2).map(|name| decoded(name)).transpose()?;
    let Some(name) = name else {
        return match *method {
            // What is created has its name in its body, and is asked about where that is read.
            Method::POST => Ok(()),
            _ => front.guard.allow_fleet(caller, permission),
        };
    };
    let (name, _) = split(&name).map_err(|refused| refused.error)?;
    front.guard.allow(caller, permission, &app(front, &name))
}

/// The app of a function that is there, or would be created.
fn app(front: &Front, name: &str) -> String {
    match front.directory.find_called(name) {
        Named::One(known) => known.spec.name.app().to_owned(),
        _ => name.split_once('.').map_or(DEFAULT_APP, |(app, _)| app).to_owned(),
    }
}

/// A header as text; empty where there is none.
fn said<'p>(parts: &'p Parts, name: &str) -> &'p str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Parameters of the query with this name, decoded.
fn queries<'p>(parts: &'p Parts, key: &'p str) -> impl Iterator<Item = String> + 'p {
    let pairs = parts.uri.query().unwrap_or_default().split('&');
    let values = pairs.filter_map(move |pair| pair.strip_prefix(key)?.strip_prefix('='));
    values.filter_map(|value| decoded(&value.replace('+', " ")).ok().map(Cow::into_owned))
}

/// The first of them.
fn query(parts: &Parts, key: &str) -> Option<String> {
    queries(parts, key).next()
}

/// A part of a list by name, and the last name in it where there is more.
type Page<T> = (Vec<(String, T)>, Option<String>);

/// A page of a list by name: as many as are wanted behind the marker, and the name after which the next page begins.
fn page<T>(parts: &Parts, mut all: Vec<(String, T)>, usual: usize) -> Result<Page<T>, Refused> {
    let most = match query(parts, "MaxItems") {
        None => usual,
        Some(text) => text.parse().ok().filter(|most| (1..=10_000).contains(most)).ok_or_else(|| {
            Refused::parameter(format!("MaxItems is {text:?}: write a number from 1 to 10000"))
        })?,
    };
    let after = query(parts, "Marker");
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.retain(|(name, _)| after.as_ref().is_none_or(|after| name > after));
    let more = all.len() > most;
    all.truncate(most);
    let next = more.then(|| all.last().map(|(name, _)| name.clone())).flatten();
    Ok((all, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_api_begin_with_a_date() {
        for path in ["/2015-03-31/functions/", "/2021-11-15/functions/f/response-streaming-invocations"] {
            assert!(is_path(path), "{path}");
        }
        for path in ["/", "/invoke/a/f", "/t/2015-03-31/functions", "/2015-3-31/functions", "/2015-03-31/"] {
            assert!(!is_path(path), "{path}");
        }
    }
}
