//! Fn's control plane: apps, functions and triggers as Fn's API has them, on the registry that serves every door.
//!
//! What Fn knows of a function and the fleet does not (its annotations, what of its variables is its own and what its app's, the names of its
//! triggers) goes with the function's revision as a note; what it knows of an app is the app's record. A function that came in by another
//! door is shown as what it is, under the same id. Errors have Fn's status and text, and the fields of our own errors beside it.

mod annotations;
mod apps;
mod fns;
mod objects;
mod triggers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value, json};
use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_core::function::FunctionName;
use stoker_core::ids::CallId;
use stoker_registry::Functions;
use stoker_registry::apps::Apps;

use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, challenge, header, retry_after};
use crate::auth::Caller;
use crate::front::Front;
use crate::observe::Watch;

/// Objects of one page, where the caller does not say how many, and at most.
const PAGE: usize = 30;
const LARGEST_PAGE: usize = 100;

/// Bytes of a request.
const LARGEST: usize = 1 << 20;

/// How long a request's body may take, and the registry to be read for the first time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a path is one of this API.
pub fn is_path(path: &str) -> bool {
    matches!(path, "/" | "/version" | "/v1" | "/v2") || path.starts_with("/v2/") || path.starts_with("/v1/")
}

/// What this API answers when it does not do what it was asked.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    error: Error,
}

impl Refused {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        let code = match status {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
            _ => Code::InvalidRequest,
        };
        Self { status, error: Error::new(code, text) }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = StatusCode::from_u16(stoker_proto::status::row(error.code).http);
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
    }
}

impl From<stoker_registry::Error> for Refused {
    fn from(error: stoker_registry::Error) -> Self {
        use stoker_registry::revisions::Refusal::{Changed, FunctionExists, NoFunction};
        use stoker_registry::{Error as Registry, apps::Refusal};
        let told = Error::from(&error);
        if told.blame() == Blame::Platform {
            tracing::error!(%error, "the registry failed");
        }
        match error {
            Registry::App(Refusal::Exists(_)) => conflict("App already exists"),
            Registry::Refused(FunctionExists(_)) => conflict("Fn with specified name already exists"),
            Registry::Refused(NoFunction(_)) => Self::new(StatusCode::NOT_FOUND, "Fn not found"),
            Registry::TriggerTaken { .. } => {
                conflict("Trigger with the same type and source exists on this app")
            }
            Registry::App(Refusal::Changed(_)) | Registry::Refused(Changed(_)) => {
                let told = told.retry(Retry::After(Duration::from_secs(1)));
                Self { status: StatusCode::CONFLICT, error: told }
            }
            _ => told.into(),
        }
    }
}

fn wrong(text: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, text)
}

fn conflict(text: &str) -> Refused {
    Refused::new(StatusCode::CONFLICT, text)
}

/// Serves one request.
pub async fn serve(
    front: Arc<Front>,
    id: CallId,
    request: Request<RequestBody>,
    mut watch: Watch,
    secure: bool,
) -> Response<AnswerBody> {
    let handled = front.dispatch.fleet.panics.catch(handle(&front, request, &watch, secure)).await;
    let mut response = match handled.unwrap_or_else(|panicked| Err(panicked.into())) {
        Ok(answer) => {
            watch.http_status(answer.status.as_u16());
            watch.end(Ok(()));
            let body = answer.body.map_or_else(Bytes::new, |body| body.to_string().into());
            let mut response = Response::new(AnswerBody::whole(body));
            *response.status_mut() = answer.status;
            response
        }
        Err(Refused { status, error }) => {
            watch.end(Err(&error));
            failure(status, &error, id)
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CALL_ID, header(&id.to_string()));
    response
}

fn failure(status: StatusCode, error: &Error, id: CallId) -> Response<AnswerBody> {
    let body = json!({
        "message": error.message,
        "code": stoker_proto::status::row(error.code).reason,
        "blame": error.blame().as_str(),
        "retry": error.retry.as_str(),
        "call_id": id.to_string(),
    });
    let mut response = Response::new(AnswerBody::whole(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    challenge(response.headers_mut(), error.code);
    retry_after(response.headers_mut(), error.retry);
    response
}

struct Answer {
    status: StatusCode,
    body: Option<Value>,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body: Some(body) }
    }

    fn gone() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: None }
    }
}

/// One request on what the registry has now.
struct Asked<'a> {
    front: &'a Front,
    caller: &'a Caller,
    functions: Arc<Functions>,
    apps: Arc<Apps>,
    /// Where the client reached this balancer.
    base: String,
    query: BTreeMap<String, String>,
}

async fn handle(
    front: &Front,
    request: Request<RequestBody>,
    watch: &Watch,
    secure: bool,
) -> Result<Answer, Refused> {
    let (parts, body) = request.into_parts();
    let path = super::decoded(parts.uri.path())?.into_owned();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let body = match parts.method {
        Method::POST | Method::PUT => read(body).await?,
        _ => Bytes::new(),
    };
    match segments[..] {
        [""] if parts.method == Method::GET => {
            return Ok(Answer::ok(json!({"goto": env!("CARGO_PKG_REPOSITORY"), "hello": "world!"})));
        }
        ["version"] => return Ok(Answer::ok(json!({"version": env!("CARGO_PKG_VERSION")}))),
        // What Fn had once and has no more.
        ["v1", ..] | ["v2", "fns", _, "calls", ..] | ["v2", "apps", _, "calls", ..] => {
            let text =
                "this part of Fn's API is gone: calls and logs are at `stoker calls` and `stoker logs`";
            return Err(Refused::new(StatusCode::GONE, text));
        }
        _ => {}
    }
    let asked = Asked {
        front,
        caller: watch.caller(),
        functions: front.directory.functions(),
        apps: apps(front).await?,
        base: base(&parts, secure),
        query: query(parts.uri.query().unwrap_or_default()),
    };
    if !asked.functions.known {
        let text = "this balancer has not read the functions yet";
        return Err(Error::new(Code::Unavailable, text).retry(Retry::Elsewhere).into());
    }
    let segments = match segments[..] {
        // A slash behind a list is no other path.
        [.., ""] => &segments[..segments.len() - 1],
        _ => &segments[..],
    };
    match (&parts.method, segments) {
        (&Method::GET, ["v2", "apps"]) => asked.list_apps(),
        (&Method::POST, ["v2", "apps"]) => asked.create_app(object(&body)?).await,
        (&Method::GET, ["v2", "apps", id]) => asked.get_app(id),
        (&Method::PUT, ["v2", "apps", id]) => asked.update_app(id, object(&body)?).await,
        (&Method::DELETE, ["v2", "apps", id]) => asked.delete_app(id).await,
        (&Method::GET, ["v2", "fns"]) => asked.list_fns(),
        (&Method::POST, ["v2", "fns"]) => asked.create_fn(object(&body)?).await,
        (&Method::GET, ["v2", "fns", id]) => asked.get_fn(id),
        (&Method::PUT, ["v2", "fns", id]) => asked.update_fn(id, object(&body)?).await,
        (&Method::DELETE, ["v2", "fns", id]) => asked.delete_fn(id).await,
        (&Method::GET, ["v2", "triggers"]) => asked.list_triggers(),
        (&Method::POST, ["v2", "triggers"]) => asked.create_trigger(object(&body)?).await,
        (&Method::GET, ["v2", "triggers", id]) => asked.get_trigger(id),
        (&Method::PUT, ["v2", "triggers", id]) => asked.update_trigger(id, object(&body)?).await,
        (&Method::DELETE, ["v2", "triggers", id]) => asked.delete_trigger(id).await,
        (_, ["v2", "apps" | "fns" | "triggers"] | ["v2", "apps" | "fns" | "triggers", _]) => {
            Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"))
        }
        _ => Err(Refused::new(StatusCode::NOT_FOUND, "Path not found")),
    }
}

/// The records of apps, once they have been read.
pub async fn apps(front: &Front) -> Result<Arc<Apps>, Error> {
    let mut apps = front.registry.apps();
    let unknown = || {
        let text = "this balancer has not read the apps yet";
        Error::new(Code::Unavailable, text).retry(Retry::Elsewhere)
    };
    let known = tokio::time::timeout(PATIENCE, apps.wait_for(|apps| apps.known)).await;
    Ok(known.map_err(|_| unknown())?.map_err(|_| unknown())?.clone())
}

async fn read(body: RequestBody) -> Result<Bytes, Refused> {
    let read = tokio::time::timeout(PATIENCE, Limited::new(body, LARGEST).collect()).await;
    let read =
        read.map_err(|_| Error::new(Code::DeadlineExceeded, "the request's body did not come in time"))?;
    let body = read.map_err(|error| {
        let (code, text) = match error.is::<http_body_util::LengthLimitError>() {
            true => (Code::RequestTooLarge, format!("the request has more than {LARGEST} bytes")),
            false => (Code::Cancelled, "the request's body broke off: the client went away".to_owned()),
        };
        Error::new(code, text)
    })?;
    Ok(body.to_bytes())
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Refused> {
    serde_json::from_slice(body).map_err(|_| wrong("Invalid JSON"))
}

/// The scheme and host by which the client came.
pub fn base(parts: &Parts, secure: bool) -> String {
    let host = parts.uri.authority().map(ToString::to_string);
    let host = host.or_else(|| Some(parts.headers.get(HOST)?.to_str().ok()?.to_owned())).unwrap_or_default();
    format!("{}://{host}", if secure { "https" } else { "http" })
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((key.to_owned(), super::decoded(&value.replace('+', " ")).ok()?.into_owned()))
        })
        .collect()
}

impl Asked<'_> {
    /// The app of an id.
    fn app_of(&self, id: &str) -> Option<String> {
        self.app_names().into_iter().find(|name| FunctionName::app_id_of(name) == id)
    }

    /// All that are there: those with a record, and those with a function.
    fn app_names(&self) -> Vec<String> {
        let own = self.apps.by_name.keys().cloned();
        let mut all: Vec<_> =
            own.chain(self.functions.by_name.keys().map(|name| name.app().to_owned())).collect();
        all.sort();
        all.dedup();
        all
    }

    /// A page of what is named, in the order of the names.
    fn page<T>(&self, mut all: Vec<(String, T)>, show: impl Fn(&T) -> Value) -> Result<Answer, Refused> {
        let text = |key: &str| self.query.get(key).map(String::as_str).filter(|text| !text.is_empty());
        // As Fn has it, what is no number is as if it were not there.
        let most =
            text("per_page").and_then(|text| text.parse().ok()).filter(|most| *most > 0).unwrap_or(PAGE);
        let most = most.min(LARGEST_PAGE);
        let after = text("cursor").map(|cursor| URL_SAFE_NO_PAD.decode(cursor)).transpose();
        let after = after.map_err(|_| wrong("cursor: it is none that a list gave out"))?;
        if let Some(name) = text("name") {
            all.retain(|(is, _)| is == name);
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let rest = all
            .iter()
            .skip_while(|(name, _)| after.as_ref().is_some_and(|after| name.as_bytes() <= &after[..]));
        let page: Vec<_> = rest.take(most).collect();
        let last = page.last().filter(|_| page.len() == most);
        let next = last.map(|(name, _)| URL_SAFE_NO_PAD.encode(name)).unwrap_or_default();
        let items: Vec<Value> = page.iter().map(|(_, one)| show(one)).collect();
        Ok(Answer::ok(json!({"next_cursor": next, "items": items})))
    }
}

/// A text of an object; `None` where it is not there, or empty, which to Fn is the same.
fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, Refused> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        // Fn cannot decode it.
        Some(_) => Err(wrong("Invalid JSON")),
    }
}

/// A number of an object; `None` where it is not there, or 0, which to Fn is the same.
fn number(object: &Map<String, Value>, key: &str) -> Result<Option<i64>, Refused> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_i64().ok_or_else(|| wrong("Invalid JSON"))?;
            Ok(Some(number).filter(|number| *number != 0))
        }
    }
}
