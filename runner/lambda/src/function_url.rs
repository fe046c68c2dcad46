//! HTTP requests as events, and answers as HTTP responses, in the form of function URLs (payload format 2.0): what handlers of the
//! web expect. Pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use stoker_core::call::{Headers, RequestHead, ResponseHead, SOURCE_IP, is_hop_by_hop};
use stoker_core::moment::{epoch_ms, rfc3339_seconds};
use stoker_format::url;

/// Streamed answers of this type begin with a head of their own.
pub const WITH_HEAD: &str = "application/vnd.awslambda.http-integration-response";
/// Between that head and the body.
const BETWEEN: [u8; 8] = [0; 8];
/// Longest such head, in bytes.
const MAX_HEAD: usize = 128 * 1024;

/// A request, and what the event says beside it.
#[derive(Debug)]
pub struct Request<'a> {
    pub head: &'a RequestHead,
    pub request_id: &'a str,
    pub account: &'a str,
    /// Stands for the URL's own id.
    pub api: &'a str,
    pub at: SystemTime,
    pub body: &'a [u8],
}

impl Request<'_> {
    /// The event, as JSON.
    #[must_use]
    pub fn event(&self) -> Vec<u8> {
        let (host, _) = url::split(&self.head.url);
        let host = host.unwrap_or_default();
        let path = path(&self.head.url);
        let query = self.head.url.split('#').next().and_then(|u| u.split_once('?')).map_or("", |(_, q)| q);
        let mut headers = BTreeMap::<String, String>::new();
        let mut cookies = Vec::new();
        for header in &self.head.headers.0 {
            let value = String::from_utf8_lossy(&header.value);
            match header.name.to_ascii_lowercase() {
                name if name == "cookie" => cookies.extend(value.split("; ").map(str::to_owned)),
                name if name == SOURCE_IP => {}
                name => join(&mut headers, name, &value),
            }
        }
        let (body, base64) = match std::str::from_utf8(self.body) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (STANDARD.encode(self.body), true),
        };
        let said = |name: &str| self.head.headers.get(name).unwrap_or_default().to_owned();
        let mut event = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": path,
            "rawQueryString": query,
            "headers": headers,
            "requestContext": {
                "accountId": self.account,
                "apiId": self.api,
                "domainName": host,
                "domainPrefix": host.split('.').next().unwrap_or_default(),
                "http": {
                    "method": self.head.method,
                    "path": path,
                    "protocol": "HTTP/1.1",
                    "sourceIp": said(SOURCE_IP),
                    "userAgent": said("user-agent"),
                },
                "requestId": self.request_id,
                "routeKey": "$default",
                "stage": "$default",
                "time": log_time(self.at),
                "timeEpoch": epoch_ms(self.at),
            },
            "isBase64Encoded": base64,
        });
        if !self.body.is_empty() {
            event["body"] = json!(body);
        }
        if !cookies.is_empty() {
            event["cookies"] = json!(cookies);
        }
        let mut parameters = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| url::decode(&text.replace('+', " "));
            join(&mut parameters, decode(name), &decode(value));
        }
        if !parameters.is_empty() {
            event["queryStringParameters"] = json!(parameters);
        }
        event.to_string().into_bytes()
    }
}

/// What stands several times is one text.
fn join(all: &mut BTreeMap<String, String>, name: String, value: &str) {
    match all.get_mut(&name) {
        Some(before) => {
            before.push(',');
            before.push_str(value);
        }
        None => _ = all.insert(name, value.to_owned()),
    }
}

/// Below the app's own part of the URL, `/t/{app}`, or that of a function URL, `/lambda-url/{name}`: a function's routes are its own.
fn path(whole: &str) -> &str {
    let path = url::path(whole);
    let below = |own: &str| path.strip_prefix(own).map(|rest| rest.find('/').map_or("", |at| &rest[at..]));
    let below = match below("/lambda-url/") {
        Some(below) => below,
        None => below("/t/").filter(|below| !below.is_empty()).unwrap_or(path),
    };
    match below {
        "" => "/",
        path => path,
    }
}

/// `12/Mar/2020:19:03:58 +0000`.
fn log_time(at: SystemTime) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let text = rfc3339_seconds(at);
    let month = text[5..7].parse::<usize>().map_or("", |month| MONTHS[(month - 1) % 12]);
    format!("{}/{month}/{}:{} +0000", &text[8..10], &text[..4], &text[11..19])
}

/// What a function answers a request with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    status_code: Status,
    #[serde(default)]
    headers: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    multi_value_headers: Option<BTreeMap<String, Vec<Value>>>,
    #[serde(default)]
    cookies: Option<Vec<String>>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Status {
    Number(u16),
    Text(String),
}

impl Answer {
    fn head(&self) -> Result<ResponseHead, String> {
        let status = match &self.status_code {
            Status::Number(status) => *status,
            Status::Text(text) => text.parse().map_err(|_| format!("its statusCode is {text:.32}"))?,
        };
        if !(200..=599).contains(&status) {
            return Err(format!("its statusCode is {status}, and an answer has 200 to 599"));
        }
        let mut headers = Headers::default();
        let one = |value: &Value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            _ => Err(()),
        };
        let several =
            self.multi_value_headers.iter().flatten().flat_map(|(k, all)| all.iter().map(move |v| (k, v)));
        for (name, value) in self.headers.iter().flatten().chain(several) {
            if is_hop_by_hop(name) || name.eq_ignore_ascii_case("content-length") {
                continue;
            }
            let value = one(value).map_err(|()| format!("its header {name:.64} is no text"))?;
            headers.push(name.to_ascii_lowercase(), value);
        }
        for cookie in self.cookies.iter().flatten() {
            headers.push("set-cookie", cookie.clone());
        }
        headers.check().map_err(|problem| match problem {
            stoker_core::call::HeaderProblem::Invalid(why) => why,
            stoker_core::call::HeaderProblem::TooLarge(why) => why,
        })?;
        Ok(ResponseHead { status, headers })
    }
}

/// An answer that came whole, as a response. What names no status is one as it is, as function URLs have it.
///
/// # Errors
/// What is wrong with it.
pub fn response(content_type: Option<&str>, payload: Bytes) -> Result<(ResponseHead, Bytes), String> {
    let plain = |content_type: &str, body: Bytes| {
        let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
        head.headers.push("content-type", content_type.to_owned());
        Ok((head, body))
    };
    match serde_json::from_slice::<Value>(&payload) {
        Err(_) => plain(content_type.unwrap_or("application/octet-stream"), payload),
        Ok(Value::String(text)) => plain("application/json", text.into()),
        Ok(Value::Object(object)) if object.contains_key("statusCode") => {
            let answer: Answer =
                serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())?;
            let mut head = answer.head()?;
            let body = answer.body.unwrap_or_default();
            let body = match answer.is_base64_encoded {
                Some(true) => STANDARD.decode(body).map_err(|_| "its body is no base64".to_owned())?,
                _ => body.into_bytes(),
            };
            if head.headers.get("content-type").is_none() && !body.is_empty() {
                head.headers.push("content-type", "application/json");
            }
            Ok((head, body.into()))
        }
        Ok(_) => plain("application/json", payload),
    }
}

/// The head that a streamed answer begins with, once it is whole; what stays in `input` is the body.
///
/// # Errors
/// What is wrong with it.
pub fn streamed_head(input: &mut BytesMut) -> Option<Result<ResponseHead, String>> {
    let Some(at) = input.windows(BETWEEN.len()).position(|window| window == BETWEEN) else {
        let most = format!("its head has more than {MAX_HEAD} bytes");
        return (input.len() > MAX_HEAD).then_some(Err(most));
    };
    let head = input.split_to(at);
    input.advance(BETWEEN.len());
    let answer =
        serde_json::from_slice::<Answer>(&head).map_err(|error| format!("its head is none: {error}"));
    Some(answer.and_then(|answer| answer.head()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn event(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Value {
        let mut head = RequestHead { method: "PUT".into(), url: url.into(), ..RequestHead::default() };
        headers.iter().for_each(|(k, v)| head.headers.push(*k, v.to_string()));
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_583_348_638_390);
        let request =
            Request { head: &head, request_id: "id", account: "012345678912", api: "api", at, body };
        serde_json::from_slice(&request.event()).unwrap()
    }

    #[test]
    fn a_request_is_an_event() {
        let headers = [
            ("Header1", "value1"),
            ("header1", "value2"),
            ("Cookie", "a=1; b=2"),
            ("User-Agent", "agent"),
            ("X-Forwarded-For", "1.2.3.4, 5.6.7.8"),
            (SOURCE_IP, "5.6.7.8"),
        ];
        let url = "http://fleet.example:7080/t/demo/my/path?p=v1&p=v2&q=a%20b+c";
        let event = event(url, &headers, b"Hello");
        let expected = json!({
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": "/my/path",
            "rawQueryString": "p=v1&p=v2&q=a%20b+c",
            "cookies": ["a=1", "b=2"],
            "headers": { "header1": "value1,value2", "user-agent": "agent", "x-forwarded-for": "1.2.3.4, 5.6.7.8" },
            "queryStringParameters": { "p": "v1,v2", "q": "a b c" },
            "requestContext": {
                "accountId": "012345678912", "apiId": "api", "domainName": "fleet.example:7080",
                "domainPrefix": "fleet",
                "http": {
                    "method": "PUT", "path": "/my/path", "protocol": "HTTP/1.1", "sourceIp": "5.6.7.8",
                    "userAgent": "agent"
                },
                "requestId": "id", "routeKey": "$default", "stage": "$default",
                "time": "04/Mar/2020:19:03:58 +0000", "timeEpoch": 1_583_348_638_390_u64
            },
            "body": "Hello",
            "isBase64Encoded": false
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn bytes_are_base64_and_nothing_is_left_out() {
        let bytes = event("http://h/t/demo", &[], b"\xff\xfe");
        assert_eq!((&bytes["body"], &bytes["isBase64Encoded"]), (&json!("//4="), &json!(true)));
        assert_eq!(bytes["rawPath"], "/t/demo");
        for (url, path) in [("demo.f", "/"), ("demo.f/", "/"), ("demo.f.live/a/b", "/a/b")] {
            assert_eq!(event(&format!("http://h/lambda-url/{url}?q=1"), &[], b"")["rawPath"], path, "{url}");
        }
        let none = event("", &[], b"");
        assert_eq!((&none["rawPath"], none.get("body")), (&json!("/"), None));
    }

    #[test]
    fn answers_are_responses() {
        let read = |text: &str| response(None, Bytes::copy_from_slice(text.as_bytes()));
        let names = |head: &ResponseHead| {
            let all =
                head.headers.0.iter().map(|h| format!("{}: {}", h.name, String::from_utf8_lossy(&h.value)));
            all.collect::<Vec<_>>()
        };
        let (head, body) = read(
            r#"{"statusCode":201,"headers":{"X-A":"1","content-length":"9","x-n":7},"multiValueHeaders":{"x-m":["a","b"]},
                "cookies":["c=1","d=2"],"body":"aGk=","isBase64Encoded":true}"#,
        )
        .unwrap();
        assert_eq!((head.status, &body[..]), (201, &b"hi"[..]));
        let expected = [
            "x-a: 1",
            "x-n: 7",
            "x-m: a",
            "x-m: b",
            "set-cookie: c=1",
            "set-cookie: d=2",
            "content-type: application/json",
        ];
        assert_eq!(names(&head), expected);
        for (text, body) in
            [("\"hi\"", "hi"), ("{\"a\":1}", "{\"a\":1}"), ("null", "null"), ("not json", "not json")]
        {
            let (head, got) = read(text).unwrap();
            assert_eq!((head.status, &got[..]), (200, body.as_bytes()), "{text}");
        }
        let wrong = [
            r#"{"statusCode":99}"#,
            r#"{"statusCode":"x"}"#,
            r#"{"statusCode":200,"headers":{"a b":"c"}}"#,
            r#"{"statusCode":200,"headers":{"a":"b\r\nc"}}"#,
            r#"{"statusCode":200,"headers":{"a":{}}}"#,
            r#"{"statusCode":200,"body":"?","isBase64Encoded":true}"#,
            r#"{"statusCode":200,"body":{}}"#,
        ];
        for text in wrong {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_streamed_head_comes_in_pieces() {
        let whole =
            b"{\"statusCode\":203,\"headers\":{\"x-a\":\"1\"},\"cookies\":[\"c=1\"]}\0\0\0\0\0\0\0\0body";
        let mut input = BytesMut::new();
        for byte in &whole[..whole.len() - 5] {
            input.extend_from_slice(&[*byte]);
            assert!(streamed_head(&mut input).is_none());
        }
        input.extend_from_slice(&whole[whole.len() - 5..]);
        let head = streamed_head(&mut input).unwrap().unwrap();
        assert_eq!(
            (head.status, head.headers.get("set-cookie"), &input[..]),
            (203, Some("c=1"), &b"body"[..])
        );
        let mut wrong = BytesMut::from(&b"nothing\0\0\0\0\0\0\0\0"[..]);
        assert!(streamed_head(&mut wrong).unwrap().is_err());
        let mut long = BytesMut::from(&vec![b'x'; MAX_HEAD + 1][..]);
        assert!(streamed_head(&mut long).unwrap().is_err());
    }
}
