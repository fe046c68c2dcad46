//! Where a request goes that names a function or comes by a trigger, and what the function is told of the trigger.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::{HOST, HeaderValue};
use stoker_core::error::{Code, Error};
use stoker_core::function::Cors;
use stoker_core::text::escape_attribute;
use stoker_proto::v1;

use super::lambda::{self, UrlConfig};
use super::{Front, cors, decoded};
use crate::directory::{Asked, Found, Known, Triggered};

/// The trigger's path, where it has parameters or takes the rest of a path; and before the name of a parameter, what it stands for.
const TRIGGER: &str = "stoker-trigger";
const PARAMETER: &str = "stoker-path-";

/// What a request leads to.
pub struct Route {
    pub known: Arc<Known>,
    pub intent: v1::Intent,
    pub cors: Option<Arc<Cors>>,
    /// It is a function URL of AWS's.
    pub url: Option<UrlConfig>,
    trigger: Option<Found>,
}

/// Why a request leads nowhere.
pub struct Nowhere {
    pub error: Error,
    /// What `Allow` says, where the path takes other methods.
    pub allow: Option<HeaderValue>,
}

impl From<Error> for Nowhere {
    fn from(error: Error) -> Self {
        Self { error, allow: None }
    }
}

/// Finds it. `method` is the request's, or the one that it asks permission for.
pub fn route<B>(front: &Front, request: &Request<B>, method: &str) -> Result<Route, Nowhere> {
    let path = decoded(request.uri().path())?;
    if let Some(function) = path.strip_prefix("/invoke/") {
        let known = front.find(function)?;
        let cors = known.cors.clone();
        return Ok(Route { intent: v1::Intent::Invoke, cors, known, url: None, trigger: None });
    }
    if let Some(url) = path.strip_prefix(lambda::url::PATH) {
        let (known, config) = lambda::url::find(front, url)?;
        let cors = config.cors().map(Arc::new);
        let intent = v1::Intent::HttpRequest;
        return Ok(Route { intent, cors, known, url: Some(config), trigger: None });
    }
    let Some(trigger) = path.strip_prefix("/t/") else {
        let text = "there is nothing at this path: POST /invoke/{app}/{fn}, /invoke/{fn-id}, /invoke (mless), \
                    /ce/{app}/{fn}, /t/{app}/{path} or /lambda-url/{app}.{fn}";
        return Err(Error::new(Code::NotFound, text).into());
    };
    if method == "CONNECT" {
        // A client would take any success for an open way to somewhere else.
        let error = Error::new(Code::MethodNotAllowed, "there are no tunnels here: CONNECT is for proxies");
        let allow = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        return Err(Nowhere { error, allow: Some(allow) });
    }
    let (app, source) = trigger.split_once('/').unwrap_or((trigger, ""));
    // Its slash with it.
    let path = if source.is_empty() { "/" } else { &trigger[app.len()..] };
    let asked = Asked {
        path,
        segments: segments(request.uri().path())?,
        method,
        host: host(request),
        headers: request.headers(),
        query: request.uri().query().unwrap_or_default(),
    };
    match front.directory.find_trigger(app, &asked) {
        Triggered::Found(found) => Ok(Route {
            known: found.known.clone(),
            intent: v1::Intent::HttpRequest,
            cors: found.cors.clone(),
            url: None,
            trigger: Some(found),
        }),
        Triggered::Methods(methods) => Err(other(&methods)),
        Triggered::None => {
            let text =
                || format!("app `{app}` has no trigger at `{path}`, or none that takes such a request");
            Err(front.missing(text).into())
        }
    }
}

/// The segments behind `/t/{app}` of a path as it is written, where one of them has an escaped slash: that parts nothing.
fn segments(path: &str) -> Result<Option<Vec<String>>, Error> {
    if !path.contains("%2F") && !path.contains("%2f") {
        return Ok(None);
    }
    let segments = path.split('/').skip(3).map(|segment| decoded(segment).map(Cow::into_owned));
    segments.collect::<Result<_, _>>().map(Some)
}

/// What a page is to be told, by who may call what this leads to; and the answer, if it asked for permission only.
pub fn preflight<B>(
    front: &Front,
    request: &Request<B>,
) -> Option<(cors::Page, Result<http::HeaderMap, Error>)> {
    let method = cors::preflight(request.method(), request.headers())?;
    let cors = route(front, request, method).ok()?.cors?;
    let page = cors::Page::new(cors, request.headers());
    let permitted = page.permit(method, request.headers());
    Some((page, permitted))
}

fn other(methods: &BTreeSet<String>) -> Nowhere {
    let methods = methods.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let error = Error::new(Code::MethodNotAllowed, format!("this path takes {methods}"));
    Nowhere { error, allow: HeaderValue::from_str(&methods).ok() }
}

/// The host that the client meant, without a port.
fn host<B>(request: &Request<B>) -> &str {
    let named = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(http::uri::Authority::as_str).or_else(named).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    // With its dot at the end it is the same name, said in full.
    name.strip_suffix('.').unwrap_or(name)
}

impl Route {
    /// Tells the function of the trigger. What a client says of it is not handed on.
    pub fn tell(&self, headers: &mut Vec<v1::Header>) {
        let Some(found) = &self.trigger else { return };
        headers.retain(|header| header.name != TRIGGER && !header.name.starts_with(PARAMETER));
        let Some(pattern) = &found.pattern else { return };
        let header =
            |name: String, value: &str| v1::Header { name, value: Bytes::from(escape_attribute(value)) };
        headers.push(header(TRIGGER.to_owned(), pattern));
        let parameters = found.parameters.iter();
        headers.extend(
            parameters
                .map(|(name, value)| header(format!("{PARAMETER}{}", name.to_ascii_lowercase()), value)),
        );
    }
}
