//! The paths of extensions: their registration, their events, their end, and their subscriptions.

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
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

/// What one that registers is told, in AWS's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    function_name: &'a str,
    function_version: &'a str,
    handler: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

async fn register(shared: &Shared, headers: &HeaderMap, body: &mut Incoming) -> Result<Reply, Problem> {
    let name = header(headers, NAME).unwrap_or_default();
    let body = whole(body, MAX_ERROR).await?;
    let id = shared.lock().extensions.register(&name, &body)?;
    shared.changed.notify_waiters();
    let about = &shared.about;
    let features = header(headers, FEATURES).unwrap_or_default();
    let asked = features.split(',').any(|feature| feature.trim() == "accountId");
    let told = Told {
        function_name: &about.function,
        function_version: &about.version,
        handler: &about.handler,
        account_id: asked.then_some(&*about.account),
    };
    let told = serde_json::to_string(&told).expect("texts are JSON");
    let mut reply = json(StatusCode::OK, format!("{told}\n"));
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
