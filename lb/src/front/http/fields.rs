//! Headers and trailers between HTTP and a call: what goes on, and what stays between neighbours.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Version};
use stoker_core::Format;
use stoker_core::call::{
    Header, HeaderProblem, Headers, announced, is_hop_by_hop, may_trail, reads_trailers,
};
use stoker_core::error::{Code, Error};
use stoker_proto::{convert, v1};

use super::{CALL_ID, ERROR};

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

/// Whether a request is one that RFC 9112 has a server take, as far as the library that read it leaves that open.
///
/// # Errors
/// What it is instead.
pub fn is_sound(version: Version, headers: &HeaderMap) -> Result<(), Error> {
    names_host(version, headers)?;
    let codings = || headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) =
        codings().find(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
    {
        // The function would get the coded bytes for the body.
        let text = format!("the header Transfer-Encoding is {coding:?}, and only chunked is understood here");
        return Err(Error::new(Code::Unsupported, text));
    }
    // Several headers are one list, and chunks within chunks are nothing (RFC 9112, 6.1): a proxy before us may have read something else.
    if codings().nth(1).is_some() {
        return Err(Error::new(
            Code::InvalidRequest,
            "the request has more than one header Transfer-Encoding",
        ));
    }
    Ok(())
}

/// Whether it names the host that it is for: HTTP/1.1 once, and HTTP/1.0 not more often. Proxies before us and we could take a request that names two
/// for different ones.
fn names_host(version: Version, headers: &HeaderMap) -> Result<(), Error> {
    if version >= Version::HTTP_2 {
        return Ok(());
    }
    let wrong = |text: String| Err(Error::new(Code::InvalidRequest, text));
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version == Version::HTTP_11 => {
            wrong("the request has no header Host, which HTTP/1.1 asks for".to_owned())
        }
        (None, _) => Ok(()),
        (Some(_), Some(_)) => wrong("the request has more than one header Host".to_owned()),
        (Some(host), None) => {
            let named = host.to_str().is_ok_and(|host| {
                host.is_empty() || !host.contains('@') && host.parse::<http::uri::Authority>().is_ok()
            });
            if named { Ok(()) } else { wrong(format!("the header Host is {host:?}, which names no host")) }
        }
    }
}

/// The headers of a request that go on to the function.
pub fn request_headers(headers: &HeaderMap) -> Vec<v1::Header> {
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

/// The headers of an answer that go on to the caller. `trailers`: it reads what follows the body, and may be told what will.
pub fn response_headers(to: &mut HeaderMap, headers: Vec<v1::Header>, trailers: bool) {
    let connection = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let named = named(connection.map(|header| header.value.as_ref()));
    for v1::Header { name, value } in headers {
        // The runner checked them; what HTTP still cannot carry is left out rather than the whole answer.
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        if trailers && name == TRAILER {
            announced(&value).filter(|name| may_trail(name)).for_each(|name| announce(to, name));
            continue;
        }
        // What tells an error of the call is not a function's to say.
        if stays_here(name.as_str(), &named) || name == ERROR {
            continue;
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(value) {
            to.append(name, value);
        }
    }
}

/// Whether the one who asked with this head reads what follows the body of its answer: in HTTP/2 that has a place of its own, before that only who
/// says so looks for it.
pub fn takes_trailers(asked: &Parts) -> bool {
    asked.version == Version::HTTP_2
        || asked.version == Version::HTTP_11
            && asked.headers.get_all(TE).iter().any(|te| reads_trailers(te.as_bytes()))
}

/// Tells a function what its caller says of trailers: that it reads them, and which it will send.
pub fn about_trailers(asked: &HeaderMap, to: &mut Vec<v1::Header>) {
    for name in [TE, TRAILER] {
        let values = asked.get_all(&name).iter();
        to.extend(values.map(|value| v1::Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        }));
    }
}

/// What a caller said behind the body of its request, as far as it goes on.
///
/// # Errors
/// There is too much of it.
pub fn request_trailers(trailers: &HeaderMap) -> Result<Vec<v1::Header>, Error> {
    let all = trailers.iter().map(|(name, value)| v1::Header {
        name: name.as_str().to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    });
    said_behind(all.collect())
}

/// The same of a caller that has no HTTP.
///
/// # Errors
/// There is too much of it, or something in it is no header.
pub fn said_behind(trailers: Vec<v1::Header>) -> Result<Vec<v1::Header>, Error> {
    let kept = trailers.into_iter().filter(|trailer| may_trail(&trailer.name));
    let kept = Headers(kept.map(|v1::Header { name, value }| Header { name, value }).collect());
    let wrong = |problem| {
        let (code, why) = match problem {
            HeaderProblem::Invalid(why) => (Code::InvalidRequest, why),
            HeaderProblem::TooLarge(why) => (Code::HeadersTooLarge, why),
        };
        Error::new(code, format!("trailers: {why}"))
    };
    kept.check_trailers().map_err(wrong)?;
    Ok(convert::to_trailers(kept))
}

/// Whether functions of this format have a place for what is said behind a body.
pub fn is_followed(format: Format) -> bool {
    matches!(format, Format::Http | Format::HttpStream)
}

/// What a function said behind the body of its answer.
pub fn response_trailers(trailers: Vec<v1::Header>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for v1::Header { name, value } in trailers {
        if let (true, Ok(name), Ok(value)) =
            (may_trail(&name), HeaderName::try_from(name), HeaderValue::from_maybe_shared(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// Says that this will follow the body.
pub fn announce(to: &mut HeaderMap, name: &str) {
    if let Ok(name) = HeaderValue::from_str(name) {
        to.append(TRAILER, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_request_names_one_host() {
        for (version, hosts, good) in [
            (Version::HTTP_11, &["shop.example:8080"][..], true),
            (Version::HTTP_11, &["[::1]:80"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["a.example", "a.example"], false),
            (Version::HTTP_11, &["a b"], false),
            (Version::HTTP_11, &["user@a.example"], false),
            (Version::HTTP_11, &["a.example/path"], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &["a", "b"], false),
            (Version::HTTP_2, &[], true),
        ] {
            let mut headers = HeaderMap::new();
            hosts.iter().for_each(|host| _ = headers.append(HOST, HeaderValue::from_static(host)));
            let named = names_host(version, &headers);
            assert_eq!(named.is_ok(), good, "{version:?} {hosts:?} {named:?}");
        }
    }

    #[test]
    fn a_body_comes_in_chunks_and_in_no_other_coding() {
        for (codings, good) in [
            (&[][..], true),
            (&["Chunked"], true),
            (&["gzip, chunked"], false),
            (&["gzip", "chunked"], false),
            (&["chunked", "chunked"], false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("x"));
            codings
                .iter()
                .for_each(|coding| _ = headers.append(TRANSFER_ENCODING, HeaderValue::from_static(coding)));
            assert_eq!(is_sound(Version::HTTP_11, &headers).is_ok(), good, "{codings:?}");
        }
    }

    #[test]
    fn trailers_are_for_those_who_read_them() {
        let asked = |version, te: &'static str| {
            let request = http::Request::builder().version(version).header(TE, te);
            request.body(()).expect("a request").into_parts().0
        };
        for (version, te, takes) in [
            (Version::HTTP_11, "gzip, Trailers", true),
            (Version::HTTP_11, "gzip", false),
            (Version::HTTP_10, "trailers", false),
            (Version::HTTP_2, "", true),
        ] {
            assert_eq!(takes_trailers(&asked(version, te)), takes, "{version:?} {te}");
        }
        let head = || vec![v1::Header { name: "Trailer".into(), value: Bytes::from_static(b"X-Sum, Host") }];
        for (trailers, told) in [(true, Some("X-Sum")), (false, None)] {
            let mut headers = HeaderMap::new();
            response_headers(&mut headers, head(), trailers);
            assert_eq!(headers.get(TRAILER).map(|value| value.to_str().expect("text")), told);
        }
        let mut sent = HeaderMap::new();
        sent.insert("x-sum", HeaderValue::from_static("1"));
        sent.insert("fn-call-id", HeaderValue::from_static("forged"));
        let names = |sent: &HeaderMap| {
            request_trailers(sent).map(|all| all.into_iter().map(|h| h.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&sent), Ok(vec!["x-sum".to_owned()]));
        sent.insert("x-long", HeaderValue::from_str(&"x".repeat(20_000)).expect("a value"));
        assert_eq!(names(&sent).map_err(|error| error.code), Err(Code::HeadersTooLarge));
    }
}
