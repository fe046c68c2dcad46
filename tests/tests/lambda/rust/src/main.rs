//! Handlers for AWS's runtime client for Rust; `_HANDLER` says which.

use lambda_http::{Body, Request, RequestExt as _, Response};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    if std::env::var_os("KIT_GRACEFUL").is_some() {
        lambda_runtime::spawn_graceful_shutdown_handler(|| async {}).await;
    }
    match std::env::var("_HANDLER").as_deref() {
        Ok("http") => lambda_http::run(service_fn(http)).await,
        _ => lambda_runtime::run(service_fn(event)).await,
    }
}

async fn event(event: LambdaEvent<Value>) -> Result<Value, Error> {
    match event.payload["do"].as_str() {
        Some("fail") => Err("failed on purpose".into()),
        Some("panic") => panic!("panicked on purpose"),
        Some("exit") => std::process::exit(3),
        _ => Ok(
            json!({ "request_id": event.context.request_id, "arn": event.context.invoked_function_arn, "event": event.payload }),
        ),
    }
}

async fn http(request: Request) -> Result<Response<Body>, Error> {
    let name = request.query_string_parameters().first("name").unwrap_or("nobody").to_owned();
    let body = String::from_utf8_lossy(request.body().as_ref()).into_owned();
    let text = format!("{} {} {name} {body}", request.method(), request.uri().path());
    Ok(Response::builder()
        .status(202)
        .header("x-kit", "rust")
        .header("set-cookie", "a=1")
        .header("set-cookie", "b=2")
        .body(text.into())?)
}
