//! `cloudevent`: CloudEvents in structured JSON on STDIN and STDOUT: 0.1 as Fn spoke it, or 1.0.
//!
//! A request that is an event already keeps its identity, and so does its answer: it is delivered in the mode in which the
//! request came. Any other request is wrapped into an event, and the data of the answer is the answer.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use stoker_core::call::media_type;
use stoker_core::function::CloudEvents;
use stoker_core::moment::rfc3339_millis;
use stoker_core::text::{escape_attribute, escape_blank};
use stoker_core::{Code, RequestHead, ResponseHead};

use crate::headers::{self, Given};
use crate::json::{self, Text, cut, from_base64, inside};
use crate::jsontext::{self, Inlay, Member};
use crate::reply::{Reply, Said, broken};
use crate::{Event, Fault, Request, url};

/// The media type of an event in structured JSON.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// What the platform tells in attributes of CloudEvents 1.0, and what a function may say in them.
const CALL: &str = "fncallid";
const DEADLINE: &str = "fndeadline";
const METHOD: &str = "fnmethod";
const URL: &str = "fnrequesturl";
const HEADERS: &str = "fnheaders";
const STATUS: &str = "fnstatuscode";

/// One call.
#[derive(Debug)]
pub struct Exchange {
    version: CloudEvents,
    mode: Mode,
    /// Most bytes of an event, in either direction.
    limit: usize,
    written: bool,
    /// The request's headers as the event has them: an answer that gives them back says nothing by it.
    told: BytesMut,
    reply: Reply,
}

/// How the request came.
#[derive(Debug)]
enum Mode {
    /// It is no event.
    Wrapped(Data),
    /// An event whose attributes are headers.
    Binary(Data),
    /// An event: kept until it is whole, since its attributes may stand anywhere. `ours` is what the platform adds.
    Structured { event: BytesMut, ours: BytesMut },
}

/// How the body becomes a member of the event.
#[derive(Debug)]
enum Data {
    Json(Inlay),
    String { text: Text, key: &'static str, open: bool },
}

impl Data {
    /// As CloudEvents 1.0 has it: JSON as it is, text as a string, all else as base64.
    fn of(kind: &str) -> Self {
        match Media::of(kind) {
            Media::Json => Data::Json(Inlay::new(",\"data\":")),
            Media::Text => Data::String { text: Text::new(false), key: ",\"data\":\"", open: false },
            Media::Other => Data::String { text: Text::new(true), key: ",\"data_base64\":\"", open: false },
        }
    }

    fn push(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        match self {
            Data::Json(inlay) => inlay.push(piece, out).map_err(not_json),
            Data::String { .. } if piece.is_empty() => Ok(()),
            Data::String { text, key, open } => {
                if !std::mem::replace(open, true) {
                    out.extend_from_slice(key.as_bytes());
                }
                if text.push(piece, out) { Ok(()) } else { Err(not_text()) }
            }
        }
    }

    fn finish(&mut self, out: &mut BytesMut) -> Result<(), Fault> {
        match self {
            Data::Json(inlay) => inlay.finish().map(|_| ()).map_err(not_json),
            Data::String { open: false, .. } => Ok(()),
            Data::String { text, .. } => {
                if !text.finish(out) {
                    return Err(not_text());
                }
                out.extend_from_slice(b"\"");
                Ok(())
            }
        }
    }
}

fn not_json(why: jsontext::Malformed) -> Fault {
    Fault::new(
        Code::InvalidRequest,
        format!("the request's body is not JSON, which the event's data must be: {why}"),
    )
}

fn not_text() -> Fault {
    Fault::new(Code::InvalidRequest, "the request's body is not the UTF-8 text that its Content-Type says")
}

fn no_event(why: &str) -> Fault {
    Fault::new(Code::InvalidRequest, format!("the request is not a valid CloudEvent: {why}"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Media {
    Json,
    Text,
    Other,
}

impl Media {
    fn of(content_type: &str) -> Self {
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let kind = kind.trim().to_ascii_lowercase();
        let charset = parameters
            .split(';')
            .filter_map(|p| p.trim().split_once('='))
            .find(|(name, _)| name.eq_ignore_ascii_case("charset"));
        let utf8 = charset.is_none_or(|(_, value)| {
            headers::is_one_of(value.trim_matches('"'), &["utf-8", "utf8", "us-ascii", "ascii"])
        });
        if kind == "application/json" || kind == "text/json" || kind.ends_with("+json") {
            Media::Json
        } else if kind.starts_with("text/") && utf8 {
            Media::Text
        } else {
            Media::Other
        }
    }
}

/// `application/cloudevents+json`, with any parameters.
fn is_structured(content_type: &str) -> bool {
    media_type(content_type).eq_ignore_ascii_case(STRUCTURED)
}

impl Exchange {
    /// Before anything was written. `limit`: the most bytes of an event, in either direction.
    #[must_use]
    pub fn new(version: CloudEvents, request: &Request<'_>, limit: usize) -> Self {
        let head = request.head;
        let kind = head.headers.get("content-type").unwrap_or_default();
        let mode = if is_structured(kind) {
            Mode::Structured { event: BytesMut::new(), ours: BytesMut::new() }
        } else if version == CloudEvents::V0_1 {
            Mode::Wrapped(Data::Json(Inlay::new(",\"data\":")))
        } else if head.headers.get("ce-specversion").is_some() {
            Mode::Binary(Data::of(kind))
        } else {
            Mode::Wrapped(Data::of(kind))
        };
        Self { version, mode, limit, written: false, told: BytesMut::new(), reply: Reply::new(limit) }
    }

    /// See [`crate::Exchange::encode_head`].
    ///
    /// # Errors
    /// When the request says that it is an event and is none that the function takes.
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<(), Fault> {
        let head = request.head;
        let kind = head.headers.get("content-type").unwrap_or_default();
        if self.version == CloudEvents::V1_0 {
            self.told = told(request, matches!(self.mode, Mode::Binary(_)));
        }
        match (&mut self.mode, self.version) {
            (Mode::Structured { ours, .. }, CloudEvents::V0_1) => extensions(request, ours),
            (Mode::Structured { ours, .. }, CloudEvents::V1_0) => attributes(request, &self.told, ours),
            (Mode::Binary(_), _) => {
                out.extend_from_slice(b"{");
                from_headers(head, out)?;
                content_type(kind, request, out);
                out.extend_from_slice(b",");
                attributes(request, &self.told, out);
            }
            (Mode::Wrapped(_), CloudEvents::V0_1) => {
                out.extend_from_slice(b"{\"cloudEventsVersion\":\"0.1\",");
                member("eventID", &request.call.to_string(), out);
                // Go wrote what it knew nothing of as well.
                out.extend_from_slice(b",\"eventType\":\"http\",\"eventTypeVersion\":\"\",");
                out.extend_from_slice(b"\"eventTime\":\"0001-01-01T00:00:00Z\",\"schemaURL\":\"\",");
                source(head, out);
                out.extend_from_slice(b",");
                member("contentType", kind, out);
                out.extend_from_slice(b",\"extensions\":{");
                extensions(request, out);
                out.extend_from_slice(b"}");
            }
            (Mode::Wrapped(_), CloudEvents::V1_0) => {
                out.extend_from_slice(b"{\"specversion\":\"1.0\",");
                member("id", &request.call.to_string(), out);
                out.extend_from_slice(b",\"type\":\"stoker.call\",");
                source(head, out);
                content_type(kind, request, out);
                out.extend_from_slice(b",");
                attributes(request, &self.told, out);
            }
        }
        Ok(())
    }

    /// See [`crate::Exchange::encode_body`].
    ///
    /// # Errors
    /// When the body cannot be the event's data, or a whole event is too large.
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        match &mut self.mode {
            Mode::Wrapped(data) | Mode::Binary(data) => data.push(piece, out),
            Mode::Structured { event, .. } if event.len() + piece.len() > self.limit => {
                let why = format!("the event exceeds {} bytes", self.limit);
                Err(Fault::new(Code::RequestTooLarge, why))
            }
            Mode::Structured { event, .. } => {
                event.extend_from_slice(piece);
                Ok(())
            }
        }
    }

    /// See [`crate::Exchange::encode_end`].
    ///
    /// # Errors
    /// As [`Self::encode_body`]; and when the request is no event.
    pub fn encode_end(&mut self, out: &mut BytesMut) -> Result<(), Fault> {
        match &mut self.mode {
            Mode::Wrapped(data) | Mode::Binary(data) => data.finish(out)?,
            Mode::Structured { event, ours } => {
                let text = jsontext::compact(&std::mem::take(event));
                let text = text.map_err(|why| no_event(&why.to_string()))?;
                out.reserve(text.len() + ours.len() + 32);
                out.extend_from_slice(b"{");
                match self.version {
                    CloudEvents::V0_1 => rewrite_0_1(&text, ours, out)?,
                    CloudEvents::V1_0 => rewrite_1_0(&text, ours, out)?,
                }
            }
        }
        out.extend_from_slice(b"}\n");
        self.written = true;
        Ok(())
    }

    /// See [`crate::Exchange::decode`].
    ///
    /// # Errors
    /// The function's fault.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        let (version, mode, told) = (self.version, &self.mode, &self.told);
        self.reply.decode(input, eof, self.written, |object| {
            let (head, body) = match version {
                CloudEvents::V0_1 => read_0_1(object, mode),
                CloudEvents::V1_0 => read_1_0(object, mode, told),
            }?;
            Ok(Said::Answer(head, body))
        })
    }
}

fn member(key: &str, value: &str, out: &mut BytesMut) {
    jsontext::string(key.as_bytes(), out);
    out.extend_from_slice(b":");
    jsontext::string(value.as_bytes(), out);
}

/// What Fn told in `extensions` of 0.1.
fn extensions(request: &Request<'_>, out: &mut BytesMut) {
    member("deadline", &rfc3339_millis(request.deadline), out);
    out.extend_from_slice(b",\"protocol\":{");
    json::protocol(request, out);
    out.extend_from_slice(b"}");
}

/// The same in 1.0, whose extensions are attributes of simple types.
fn attributes(request: &Request<'_>, told: &[u8], out: &mut BytesMut) {
    member(CALL, &request.call.to_string(), out);
    for (key, value) in [
        (DEADLINE, rfc3339_millis(request.deadline).as_str()),
        (METHOD, request.head.method.as_str()),
        (URL, request.head.url.as_str()),
        ("traceparent", request.trace.parent.as_str()),
        ("tracestate", request.trace.state.as_str()),
    ] {
        if !value.is_empty() {
            out.extend_from_slice(b",");
            member(key, value, out);
        }
    }
    out.extend_from_slice(b",\"fnheaders\":");
    jsontext::string(told, out);
}

/// The headers of a request as JSON. Those that are attributes of the event are not told twice.
fn told(request: &Request<'_>, binary: bool) -> BytesMut {
    let mut told = headers::told(request);
    told.retain(|(name, _)| {
        let attribute = binary && is_attribute_header(name);
        !(attribute || headers::is_one_of(name, &["traceparent", "tracestate"]))
    });
    let mut text = BytesMut::new();
    headers::write(&told, &mut text);
    text
}

fn is_attribute_header(name: &str) -> bool {
    name.get(..3).is_some_and(|p| p.eq_ignore_ascii_case("ce-"))
}

/// What the data is. Data of an unknown type is bytes, since no type would mean JSON.
fn content_type(kind: &str, request: &Request<'_>, out: &mut BytesMut) {
    let kind = if kind.is_empty() { "application/octet-stream" } else { kind };
    if request.length != Some(0) {
        out.extend_from_slice(b",");
        member("datacontenttype", kind, out);
    }
}

/// Where the event happened, for a request that is none: an event must say it, and it must be a URI.
fn source(head: &RequestHead, out: &mut BytesMut) {
    let source = escape_blank(&head.url);
    member("source", if source.is_empty() { "/" } else { &source }, out);
}

/// The attributes of an event in binary mode.
fn from_headers(head: &RequestHead, out: &mut BytesMut) -> Result<(), Fault> {
    let mut seen: Vec<String> = Vec::new();
    for header in &head.headers.0 {
        if !is_attribute_header(&header.name) {
            continue;
        }
        let name = header.name[3..].to_ascii_lowercase();
        let value = header_text(&header.value);
        check_attribute(&name, None).map_err(|why| no_event(&why))?;
        if name == "specversion" && value != "1.0" {
            return Err(no_event(&format!("its specversion is {value:?}, the function speaks 1.0")));
        }
        if seen.contains(&name) {
            return Err(no_event(&format!("{} stands twice", header.name)));
        }
        if is_ours(&name) || ["data", "datacontenttype"].contains(&name.as_str()) || value.is_empty() {
            continue;
        }
        if !seen.is_empty() {
            out.extend_from_slice(b",");
        }
        member(&name, &value, out);
        seen.push(name);
    }
    match ["specversion", "id", "source", "type"].iter().find(|n| !seen.iter().any(|s| s == *n)) {
        Some(missing) => Err(no_event(&format!("ce-{missing} is missing or empty"))),
        None => Ok(()),
    }
}

/// A value of CloudEvents' HTTP binding: quoted or not, then percent-encoded. Of kits that encode nothing it is UTF-8 or Latin-1.
fn header_text(value: &[u8]) -> String {
    let text = match std::str::from_utf8(value) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => value.iter().copied().map(char::from).collect(),
    };
    let value = text.trim();
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let unquoted = match quoted {
        None => value.to_owned(),
        Some(inside) => {
            let mut escaped = false;
            let inside = inside.chars();
            inside
                .filter(|c| {
                    escaped = *c == '\\' && !escaped;
                    !escaped
                })
                .collect()
        }
    };
    url::decode(&unquoted)
}

/// Attributes that only the platform, or only the function, says.
fn is_ours(name: &str) -> bool {
    [CALL, DEADLINE, METHOD, URL, HEADERS, STATUS].contains(&name)
}

fn rewrite_0_1(text: &[u8], ours: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
    let mut extensions = None;
    for member in jsontext::members(text).ok_or_else(|| no_event("it is no object"))? {
        let key = member.key();
        if key == "specversion" {
            return Err(no_event("it is of a later version, the function speaks 0.1"));
        }
        if key.eq_ignore_ascii_case("cloudEventsVersion")
            && jsontext::text(member.value).as_deref() != Some("0.1")
        {
            return Err(no_event("its cloudEventsVersion is not 0.1"));
        }
        if key.eq_ignore_ascii_case("extensions") {
            extensions = Some(member.value).filter(|raw| !jsontext::is_null(raw));
        } else {
            member.write(out);
            out.extend_from_slice(b",");
        }
    }
    out.extend_from_slice(b"\"extensions\":{");
    if let Some(raw) = extensions {
        for member in jsontext::members(raw).ok_or_else(|| no_event("its extensions are no object"))? {
            if !["deadline", "protocol"].contains(&member.key().as_ref()) {
                member.write(out);
                out.extend_from_slice(b",");
            }
        }
    }
    out.extend_from_slice(ours);
    out.extend_from_slice(b"}");
    Ok(())
}

fn rewrite_1_0(text: &[u8], ours: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
    let members = checked_1_0(text).map_err(|why| no_event(&why))?;
    let traced = ours.windows(13).any(|w| w == b"\"traceparent\"");
    for member in members {
        let key = member.key();
        if is_ours(&key) || (traced && (key == "traceparent" || key == "tracestate")) {
            continue;
        }
        member.write(out);
        out.extend_from_slice(b",");
    }
    out.extend_from_slice(ours);
    Ok(())
}

/// The members of an event of 1.0, if it is one.
fn checked_1_0(text: &[u8]) -> Result<Vec<Member<'_>>, String> {
    let members: Vec<_> =
        jsontext::members(text).ok_or("it is no object")?.take(MAX_ATTRIBUTES + 1).collect();
    if members.len() > MAX_ATTRIBUTES {
        return Err(format!("it has more than {MAX_ATTRIBUTES} attributes"));
    }
    let (mut seen, mut data) = ([false; 4], 0);
    for (at, member) in members.iter().enumerate() {
        let key = member.key();
        if members[..at].iter().any(|before| before.key() == key) {
            return Err(format!("{key:?} stands twice"));
        }
        if key == "data" || key == "data_base64" {
            data += usize::from(!jsontext::is_null(member.value));
            continue;
        }
        if key == "cloudEventsVersion" {
            return Err("it is of an earlier version, the function speaks 1.0".to_owned());
        }
        check_attribute(&key, Some(member.value))?;
        let Some(which) = ["specversion", "id", "source", "type"].iter().position(|n| *n == key) else {
            continue;
        };
        let text = jsontext::text(member.value).unwrap_or_default();
        if text.is_empty() {
            return Err(format!("{key} is not a string, or is empty"));
        }
        if which == 0 && text != "1.0" {
            return Err(format!("its specversion is {text:?}, the function speaks 1.0"));
        }
        seen[which] = true;
    }
    if data > 1 {
        return Err("it has both data and data_base64".to_owned());
    }
    match seen.iter().position(|s| !s) {
        Some(missing) => Err(format!("{} is missing", ["specversion", "id", "source", "type"][missing])),
        None => Ok(members),
    }
}

/// Most attributes of an event; also keeps the search for a name that stands twice short.
const MAX_ATTRIBUTES: usize = 256;

/// A name of small letters and digits, and a simple value.
fn check_attribute(name: &str, value: Option<&[u8]>) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(format!("{name:?} is no name of an attribute"));
    }
    if value.is_some_and(|raw| matches!(raw.first(), Some(b'{' | b'['))) {
        return Err(format!("{name} is neither a string, a number nor a truth value"));
    }
    Ok(())
}

/// Where a member's value stands.
type Place = (usize, usize);

/// The data of an answer as a body: JSON as it is, a string as what it means.
fn body(message: &mut BytesMut, place: Option<Place>, media: Media) -> Result<Bytes, Fault> {
    let Some((at, length)) = place else { return Ok(Bytes::new()) };
    let raw = cut(message, at, length);
    match media {
        Media::Json => Ok(raw.freeze()),
        _ if jsontext::is_null(&raw) => Ok(Bytes::new()),
        _ => inside(raw)
            .ok_or_else(|| broken("CloudEvents", "data is not a string, and its content type is not JSON")),
    }
}

fn read_0_1(mut message: BytesMut, mode: &Mode) -> Result<(ResponseHead, Bytes), Fault> {
    let invalid = |why: &str| broken("CloudEvents 0.1", why);
    let (mut kind, mut protocol, mut data) = (None, None, None);
    for member in jsontext::members(&message).ok_or_else(|| invalid("it is no object"))? {
        let key = member.key();
        // Go read these keys in any case.
        if key.eq_ignore_ascii_case("contentType") {
            kind = Some(member.value).filter(|raw| !jsontext::is_null(raw));
        } else if key.eq_ignore_ascii_case("data") {
            data = Some((member.at, member.value.len()));
        } else if key.eq_ignore_ascii_case("extensions") && !jsontext::is_null(member.value) {
            let mut inner =
                jsontext::members(member.value).ok_or_else(|| invalid("its extensions are no object"))?;
            protocol = inner.find(|m| m.key() == "protocol").map(|m| m.value);
        }
    }
    let mut given = Given::default();
    let status = json::read_protocol(protocol, &mut given).map_err(|why| invalid(&why))?;
    let kind = match kind.map(jsontext::text) {
        None => String::new(),
        Some(text) => text.ok_or_else(|| invalid("contentType is not a string"))?.into_owned(),
    };
    if let Mode::Structured { .. } = mode {
        given.content_type(STRUCTURED);
        return Ok((ResponseHead { status, headers: given.checked()? }, message.freeze()));
    }
    let media = if kind.is_empty() { Media::Json } else { Media::of(&kind) };
    if media == Media::Other {
        return Err(invalid(&format!("its contentType {kind:?} is neither JSON nor text")));
    }
    given.content_type(if kind.is_empty() { "application/json".to_owned() } else { kind });
    let head = ResponseHead { status, headers: given.checked()? };
    Ok((head, body(&mut message, data, media)?))
}

fn read_1_0(mut message: BytesMut, mode: &Mode, told: &[u8]) -> Result<(ResponseHead, Bytes), Fault> {
    let invalid = |why: &str| broken("CloudEvents 1.0", why);
    let members = checked_1_0(&message).map_err(|why| invalid(&why))?;
    let mut given = Given::default();
    let (mut kind, mut status, mut data, mut encoded) = (String::new(), None, None, None);
    for member in &members {
        let key = member.key();
        let value = || jsontext::text(member.value);
        match key.as_ref() {
            _ if jsontext::is_null(member.value) && key != "data" => {}
            "data" => data = Some((member.at, member.value.len())),
            "data_base64" => encoded = Some((member.at, member.value.len())),
            "datacontenttype" => {
                kind = value().ok_or_else(|| invalid("datacontenttype is not a string"))?.into_owned();
            }
            STATUS => status = Some(member.value),
            HEADERS => {
                let text = value().ok_or_else(|| invalid("fnheaders is not a string of JSON"))?;
                if text.as_bytes() == told {
                    continue;
                }
                let text = jsontext::compact(text.as_bytes())
                    .map_err(|why| invalid(&format!("fnheaders: {why}")))?;
                given.read(&text).map_err(|why| invalid(&format!("fnheaders: {why}")))?;
            }
            // A function may give the event back that it got.
            name if is_ours(name) => {}
            name => {
                if let Mode::Binary(_) = mode {
                    let text = value().map_or_else(
                        || String::from_utf8_lossy(member.value).into_owned(),
                        |text| escape_attribute(&text),
                    );
                    given.push(&format!("ce-{name}"), text);
                }
            }
        }
    }
    let status = headers::status(status).map_err(|why| invalid(&why))?;
    if let Mode::Structured { .. } = mode {
        given.content_type(STRUCTURED);
        return Ok((ResponseHead { status, headers: given.checked()? }, message.freeze()));
    }
    let media = if kind.is_empty() { Media::Json } else { Media::of(&kind) };
    if data.is_some() || encoded.is_some() {
        given.content_type(if kind.is_empty() { "application/json".to_owned() } else { kind });
    }
    let head = ResponseHead { status, headers: given.checked()? };
    let body = match encoded {
        None => body(&mut message, data, media)?,
        Some(place) => {
            let text = body(&mut message, Some(place), Media::Other)?;
            from_base64(&text).ok_or_else(|| invalid("data_base64 is not base64"))?
        }
    };
    Ok((head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_in_headers_are_read_as_kits_write_them() {
        for (value, text) in [
            (&b"gr%C3%BC%C3%9Fe%20%25"[..], "grüße %"),
            ("grüße 100% ".as_bytes(), "grüße 100%"),
            (b"gr\xfc\xdfe", "grüße"),
            (b"\"a \\\"b\\\"\"", "a \"b\""),
            (b"\"a", "\"a"),
            (b"\"", "\""),
        ] {
            assert_eq!(header_text(value), text);
        }
    }
}
