//! The paths of extensions: their registration, their events, their end, and their subscriptions.

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;
use uuid::Uuid;

use super::{Problem, Reply, accepted, header, json, whole};
use crate::extensions::Event;
use crate::telemetry::Api;
use crate::{MAX_ERROR, Shared};

const NAME: &str = "lambda-extension-name";
pub(crate) const ID: &str = "lambda-extension-identifier";
const EVENT_ID: &str = "lambda-extension-event-identifier";
const FEATURES: &str = "lambda-extension-accept-feature";
const ERROR_TYPE: &str = "lambda-extension-function-error-type";

pub(super) enum Asked {
    Register,
    Next,
    Fail(Event),
    Subscribe(Api),
}

pub(super) fn asked(path: &str) -> Option<(Method, Asked)> {
    Some(match path {
        "/2020-01-01/extension/register" => (Method::POST, Asked::Register),
        "/2020-01-01/extension/event/next" => (Method::GET, Asked::Next),
        "/2020-01-01/extension/init/error" => (Method::POST, Asked::Fail(Event::InitError)),
        "/2020-01-01/extension/exit/error" => (Method::POST, Asked::Fail(Event::ExitError)),
        "/2022-07-01/telemetry" => (Method::PUT, Asked::Subscribe(Api::Telemetry)),
        "/2020-08-15/logs" => (Method::PUT, Asked::Subscribe(Api::Logs)),
        _ => return None,
    })
}

pub(super) async fn answer(
    shared: &Shared,
    asked: Asked,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let id = header(headers, ID);
    let id = id.as_deref();
    match asked {
        Asked::Register => register(shared, headers, body).await,
        Asked::Next => next(shared, id).await,
        Asked::Fail(event) => {
            whole(body, MAX_ERROR).await?;
            shared.lock().extensions.fails(id, event, header(headers, ERROR_TYPE).as_deref())?;
            shared.fall().await;
            Ok(accepted())
        }
        Asked::Subscribe(api) => {
            let body = whole(body, MAX_ERROR).await?;
            let name = shared.lock().extensions.known(id)?.name.clone();
            shared.telemetry.subscribe(&name, api, &body).map_err(Problem::Subscription)?;
            Ok(json(StatusCode::OK, "\"OK\"".to_owned()))
        }
    }
}

async fn register(shared: &Shared, headers: &HeaderMap, body: &mut Incoming) -> Result<Reply, Problem> {
    let name = header(headers, NAME).unwrap_or_default();
    let body = whole(body, MAX_ERROR).await?;
    let id = shared.lock().extensions.register(&name, &body)?;
    shared.changed.notify_waiters();
    let about = &shared.about;
    let mut told = json!({
        "functionName": about.function, "functionVersion": about.version, "handler": about.handler
    });
    let features = header(headers, FEATURES).unwrap_or_default();
    if features.split(',').any(|feature| feature.trim() == "accountId") {
        told["accountId"] = json!(about.account);
    }
    let mut reply = json(StatusCode::OK, told.to_string());
    reply.headers_mut().insert(ID, HeaderValue::from_str(&id).expect("an identifier is ASCII"));
    Ok(reply)
}

/// Waits for an event. It leaves the shelf in the moment in which it is written.
async fn next(shared: &Shared, id: Option<&str>) -> Result<Reply, Problem> {
    shared.lock().extensions.next(id)?;
    shared.changed.notify_waiters();
    let event = shared.until(|inner| inner.extensions.take(id).transpose()).await?;
    shared.changed.notify_waiters();
    let mut reply = Reply::new(Full::new(event));
    reply.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let id = HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("an identifier is ASCII");
    reply.headers_mut().insert(EVENT_ID, id);
    Ok(reply)
}
