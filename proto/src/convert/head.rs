//! Heads of requests and answers, and what follows a body.

use stoker_core::call::{Header, HeaderProblem, Headers, Intent, RequestHead, ResponseHead};
use stoker_core::error::{Code, Error};

use crate::v1;

/// Checks a request's head.
///
/// # Errors
/// `InvalidRequest` or `HeadersTooLarge`, the caller's fault.
pub fn request_head(head: v1::RequestHead) -> Result<RequestHead, Error> {
    let method = if head.method.is_empty() { "POST".to_owned() } else { head.method };
    if method.len() > 32 || !method.bytes().all(|b| b.is_ascii_alphabetic() || b == b'-' || b == b'_') {
        return Err(Error::new(Code::InvalidRequest, "method: 1 to 32 letters, `-` or `_` are one"));
    }
    if head.url.len() > 16 * 1024 {
        return Err(Error::new(Code::HeadersTooLarge, "url: longer than 16384 bytes"));
    }
    if head.url.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(Error::new(Code::InvalidRequest, "url: has a blank or a control character"));
    }
    let intent = match v1::Intent::try_from(head.intent) {
        Ok(v1::Intent::HttpRequest) => Intent::HttpRequest,
        _ => Intent::Invoke,
    };
    let headers = headers(head.headers);
    headers.check().map_err(|problem| match problem {
        HeaderProblem::Invalid(text) => Error::new(Code::InvalidRequest, format!("headers: {text}")),
        HeaderProblem::TooLarge(text) => Error::new(Code::HeadersTooLarge, format!("headers: {text}")),
    })?;
    Ok(RequestHead { intent, method, url: head.url, headers })
}

/// A request's head for the wire.
#[must_use]
pub fn to_request_head(head: RequestHead) -> v1::RequestHead {
    let intent = match head.intent {
        Intent::Invoke => v1::Intent::Invoke,
        Intent::HttpRequest => v1::Intent::HttpRequest,
    };
    v1::RequestHead {
        intent: intent.into(),
        method: head.method,
        url: head.url,
        headers: to_headers(head.headers),
    }
}

/// An answer's head, from a runner that we trust to have checked it.
#[must_use]
pub fn response_head(head: v1::ResponseHead) -> ResponseHead {
    ResponseHead {
        status: u16::try_from(head.status).ok().filter(|s| (100..1000).contains(s)).unwrap_or(200),
        headers: headers(head.headers),
    }
}

/// An answer's head for the wire.
#[must_use]
pub fn to_response_head(head: ResponseHead) -> v1::ResponseHead {
    v1::ResponseHead { status: head.status.into(), headers: to_headers(head.headers) }
}

/// What follows a body.
///
/// # Errors
/// What is wrong with it.
pub fn trailers(list: Vec<v1::Header>) -> Result<Headers, String> {
    let trailers = headers(list);
    match trailers.check_trailers() {
        Ok(()) => Ok(trailers),
        Err(HeaderProblem::Invalid(text) | HeaderProblem::TooLarge(text)) => Err(format!("trailers: {text}")),
    }
}

/// What follows a body, for the wire.
#[must_use]
pub fn to_trailers(trailers: Headers) -> Vec<v1::Header> {
    to_headers(trailers)
}

fn headers(list: Vec<v1::Header>) -> Headers {
    Headers(list.into_iter().map(|h| Header { name: h.name, value: h.value }).collect())
}

fn to_headers(headers: Headers) -> Vec<v1::Header> {
    headers.0.into_iter().map(|h| v1::Header { name: h.name, value: h.value }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn request_heads_survive_the_way(
            http in any::<bool>(), method in "[A-Z]{1,10}", url in "/[a-z0-9/?=&]{0,40}",
            headers in prop::collection::vec(("[a-zA-Z-]{1,12}", "[ -~]{0,20}"), 0..10),
        ) {
            let mut head = RequestHead {
                intent: if http { Intent::HttpRequest } else { Intent::Invoke }, method, url, ..Default::default()
            };
            headers.into_iter().for_each(|(k, v)| head.headers.push(k, v));
            prop_assert_eq!(request_head(to_request_head(head.clone())), Ok(head));
        }
    }
}
