//! `POST /invoke`: what the proxies of mless send, answered as their daemon did.
//!
//! A proxy stands in AWS Lambda and hands each of its calls on: the event, the context, and the environment, in which the function's
//! name is. What it knows of an answer is little: 200 is the result, anything else an error whose body is its text, so every
//! error is a 500 in plain text, whoever is to blame. The environment says which function is meant and goes no further: what a
//! function finds in its environment its owner has decided, and not whoever may call it.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use hyper::body::Body as _;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_proto::v1;

use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, ERROR, Front, challenge, header, pieces, retry_after, url};
use crate::call::{Input, Pieces};
use crate::directory::Named;
use crate::observe::Watch;

/// Where proxies send to.
pub const PATH: &str = "/invoke";

/// Most bytes of a request: Lambda's largest event, twice for what JSON makes longer, and room for context and environment.
const LARGEST: usize = (12 << 20) + (256 << 10);

/// How long a request may take to come: until it is there nobody knows how long its call may take.
const SLOWEST: Duration = Duration::from_secs(30);

/// As the daemon's server wrote it, for results and errors.
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The variable that names the function.
const NAME: &str = "AWS_LAMBDA_FUNCTION_NAME";

/// Serves one call.
pub async fn handle(
    front: &Front,
    id: CallId,
    request: Request<RequestBody>,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    // The method and the type of the body were never looked at.
    let (parts, body) = request.into_parts();
    let place = front.admission.enter(watch.caller())?;
    let length = body.size_hint().lower();
    let body = tokio::time::timeout(SLOWEST, whole(pieces(body), length))
        .await
        .map_err(|_| Error::new(Code::DeadlineExceeded, "the request did not come in time"))??;
    let asked = Asked::read(&body)?;
    let function = match front.directory.find_called(&asked.function) {
        Named::One(function) => function,
        Named::None => return Err(front.missing(|| "no such function".to_owned())),
        Named::Several => {
            let name = &asked.function;
            let text = format!("functions of several apps are called `{name}`: write app.{name}");
            return Err(Error::new(Code::InvalidRequest, text));
        }
    };
    front.dispatch.fits(&function.spec, asked.event.len() as u64)?;
    let head = v1::RequestHead {
        intent: v1::Intent::Invoke.into(),
        method: "POST".to_owned(),
        url: url(&parts),
        headers: asked.headers,
    };
    let call = front.admit_to(place, id, function, head, asked.remaining, watch)?;
    let answer = front.dispatch.call(call, Input::whole(asked.event), watch).await?;
    // A function of another format may say that it failed in its status.
    let failed = answer.head.status >= 400;
    let body = AnswerBody::new(answer.first, answer.rest).last(Bytes::from_static(b"\n"));
    Ok(plain(if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK }, body, id))
}

/// An error as the daemon wrote it.
pub fn failure(error: &Error, id: CallId) -> Response<AnswerBody> {
    let body = AnswerBody::whole(Bytes::from(format!("{}\n", error.message)));
    let status = match error.code {
        // The daemon asked nobody: those who do have their own.
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = plain(status, body, id);
    response
        .headers_mut()
        .insert(ERROR, HeaderValue::from_static(stoker_proto::status::row(error.code).reason));
    challenge(response.headers_mut(), error.code);
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    retry_after(response.headers_mut(), error.retry);
    response
}

fn plain(status: StatusCode, body: AnswerBody, id: CallId) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers: [(HeaderName, HeaderValue); 2] = [(CONTENT_TYPE, PLAIN), (CALL_ID, header(&id.to_string()))];
    response.headers_mut().extend(headers.map(|(name, value)| (Some(name), value)));
    response
}

/// All of a body, within the limit.
async fn whole(mut pieces: Pieces, length: u64) -> Result<Bytes, Error> {
    let fits = |length: usize| match length <= LARGEST {
        true => Ok(()),
        false => {
            let text = format!("the request has more than {LARGEST} bytes, which is the limit here");
            Err(Error::new(Code::RequestTooLarge, text))
        }
    };
    fits(usize::try_from(length).unwrap_or(usize::MAX))?;
    let mut body = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        fits(body.len() + piece.len())?;
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// What a proxy asks for.
#[derive(Debug)]
struct Asked {
    function: String,
    /// JSON, as it was written.
    event: Bytes,
    /// The context, where the format `mless` looks for it.
    headers: Vec<v1::Header>,
    remaining: Option<Duration>,
}

impl Asked {
    fn read(body: &Bytes) -> Result<Self, Error> {
        // One value is read, and what follows it ignored.
        let request = Members::deserialize(&mut serde_json::Deserializer::from_slice(body)).map_err(wrong)?;
        let mut environment = HashMap::new();
        if let Some(raw) = request.get("env") {
            let all: Option<HashMap<String, Option<String>>> = read(raw)?;
            environment = all.unwrap_or_default();
        }
        let function = environment.remove(NAME).flatten().unwrap_or_default();
        if function.is_empty() {
            return Err(Error::new(Code::InvalidRequest, "no function name"));
        }
        let remaining = match request.get("remaining") {
            Some(raw) => read::<Option<i64>>(raw)?.unwrap_or_default(),
            None => 0,
        };
        // None was said: the function's own timeout is what bounds it.
        let remaining =
            (remaining != 0).then(|| Duration::from_millis(u64::try_from(remaining).unwrap_or(0)));
        let mut headers = vec![told("content-type", Bytes::from_static(b"application/json"))];
        if let Some(raw) = request.get("context") {
            headers.extend(context(&read::<Members<'_>>(raw)?)?);
        }
        let event = request
            .get("event")
            .map_or(Bytes::from_static(b"null"), |raw| body.slice_ref(raw.get().as_bytes()));
        Ok(Self { function, event, headers, remaining })
    }
}

/// The headers that Lambda's own APIs have for what the context says. What else is in it the function finds in its environment.
fn context(context: &Members<'_>) -> Result<Vec<v1::Header>, Error> {
    let mut headers = Vec::new();
    for (key, name) in [
        ("aws_request_id", "lambda-runtime-aws-request-id"),
        ("invoked_function_arn", "lambda-runtime-invoked-function-arn"),
    ] {
        let text = context.get(key).map(read::<Option<String>>).transpose()?.flatten().unwrap_or_default();
        if !text.is_empty() {
            headers.push(told(name, Bytes::from(text)));
        }
    }
    for (key, name) in
        [("client_context", "lambda-runtime-client-context"), ("identity", "lambda-runtime-cognito-identity")]
    {
        if let Some(raw) = context.get(key)
            && raw.get() != "null"
        {
            // A line break is space in JSON, and nothing that a header can hold.
            headers.push(told(name, Bytes::from(raw.get().replace(['\r', '\n'], " "))));
        }
    }
    Ok(headers)
}

fn told(name: &str, value: Bytes) -> v1::Header {
    v1::Header { name: name.to_owned(), value }
}

fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, Error> {
    serde_json::from_str(raw.get()).map_err(wrong)
}

fn wrong(error: serde_json::Error) -> Error {
    Error::new(Code::InvalidRequest, format!("the request is not what a proxy sends: {error}"))
}

/// An object, whose keys are known in either spelling: `aws_request_id` as Python writes it, `awsRequestId` as Node does, and in any
/// case, as the daemon understood them.
#[derive(Debug, Default)]
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    /// The last value of `key`.
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        let same = |written: &str| {
            let letters = |text: &str| {
                text.bytes().filter(|b| *b != b'_').map(|b| b.to_ascii_lowercase()).collect::<Vec<_>>()
            };
            letters(written) == letters(key)
        };
        self.0.iter().rev().find(|(written, _)| same(written)).map(|(_, raw)| *raw)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Members::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_any(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked, String> {
        Asked::read(&Bytes::copy_from_slice(text.as_bytes())).map_err(|error| error.message)
    }

    #[test]
    fn a_request_is_understood_in_either_spelling() {
        for text in [
            r#"{"context":{"aws_request_id":"r1","client_context":{"client":{"app_title":"é"},
                "env":{}},"identity":null,"invoked_function_arn":"arn:x","memory_limit_in_mb":"128"},
                "remaining":1500,"env":{"AWS_LAMBDA_FUNCTION_NAME":"f","PATH":"/x"},"event":{"a": [1.10, 1e2]}}"#,
            r#"{"Event":0,"Context":{"awsRequestId":"r1","clientContext":{"client":{"app_title":"é"},
                "env":{}},"Identity":null,"invokedFunctionArn":"arn:x"},
                "REMAINING":1500,"Env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"event":{"a": [1.10, 1e2]}} trailing"#,
        ] {
            let asked = asked(text).expect(text);
            assert_eq!((asked.function.as_str(), asked.remaining), ("f", Some(Duration::from_millis(1500))));
            assert_eq!(asked.event, r#"{"a": [1.10, 1e2]}"#, "numbers and order as they were written");
            let headers: Vec<_> = asked.headers.iter().map(|h| (h.name.as_str(), &h.value[..])).collect();
            assert_eq!(
                headers[..3],
                [
                    ("content-type", &b"application/json"[..]),
                    ("lambda-runtime-aws-request-id", b"r1"),
                    ("lambda-runtime-invoked-function-arn", b"arn:x"),
                ]
            );
            assert_eq!((headers[3].0, headers.len()), ("lambda-runtime-client-context", 4));
            let client: serde_json::Value = serde_json::from_slice(headers[3].1).expect("it is JSON still");
            assert_eq!(client["client"]["app_title"], "é");
            assert!(!headers[3].1.contains(&b'\n'));
        }
    }

    #[test]
    fn what_is_missing_is_as_if_it_were_empty() {
        let asked = asked(r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"context":null}"#).expect("enough");
        assert_eq!((asked.event, asked.remaining), (Bytes::from_static(b"null"), None));
        assert_eq!(asked.headers.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "EOF"),
            ("3", "expected an object"),
            ("null", "no function name"),
            ("{}", "no function name"),
            (r#"{"env":null}"#, "no function name"),
            (r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":""}}"#, "no function name"),
            (r#"{"env":{"A":3}}"#, "expected a string"),
            (r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"remaining":1.5}"#, "expected i64"),
            (r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"context":[]}"#, "expected an object"),
            (
                r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"context":{"aws_request_id":7}}"#,
                "expected a string",
            ),
            (r#"{"event":{"#, "EOF"),
        ] {
            let said = asked(text).expect_err(text);
            assert!(said.contains(why), "{text}: {said}");
        }
        let late = asked(r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"f"},"remaining":-5}"#).expect("understood");
        assert_eq!(late.remaining, Some(Duration::ZERO));
    }
}
