//! Headers between the call and the wire: how Go spelled them, how JSON holds them.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use stoker_core::Code;
use stoker_core::call::{HeaderProblem, Headers, is_hop_by_hop};

use crate::{Fault, Request, jsontext};

pub fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|n| name.eq_ignore_ascii_case(n))
}

/// `x-two` → `X-Two`, as Go's HTTP server spelled every header before a function on STDIN saw it.
pub fn canonical(name: &str) -> Cow<'_, str> {
    let mut upper = true;
    let right = name.bytes().all(|b| {
        let fine = if upper { !b.is_ascii_lowercase() } else { !b.is_ascii_uppercase() };
        upper = b == b'-';
        fine
    });
    if right {
        return Cow::Borrowed(name);
    }
    let mut upper = true;
    let spelled = name.chars().map(|c| {
        let c = if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        upper = c == '-';
        c
    });
    Cow::Owned(spelled.collect())
}

/// The headers of a call that a function on STDIN is told: those of the client but the connection's, and the trace.
pub fn told<'a>(request: &Request<'a>) -> Vec<(Cow<'a, str>, &'a [u8])> {
    let traced = !request.trace.parent.is_empty();
    let mut told: Vec<(Cow<'_, str>, &[u8])> = Vec::with_capacity(request.head.headers.0.len() + 2);
    for header in &request.head.headers.0 {
        let framing = is_one_of(&header.name, &["content-length", "host"]);
        let trace = traced && is_one_of(&header.name, &["traceparent", "tracestate"]);
        if !framing && !trace && !is_hop_by_hop(&header.name) {
            told.push((canonical(&header.name), &header.value));
        }
    }
    if traced {
        told.push((Cow::Borrowed("Traceparent"), request.trace.parent.as_bytes()));
        if !request.trace.state.is_empty() {
            told.push((Cow::Borrowed("Tracestate"), request.trace.state.as_bytes()));
        }
    }
    told
}

/// Writes `{"Name":["value",…],…}`.
pub fn write(told: &[(Cow<'_, str>, &[u8])], out: &mut BytesMut) {
    out.extend_from_slice(b"{");
    let mut first = true;
    for (at, (name, _)) in told.iter().enumerate() {
        if told[..at].iter().any(|(before, _)| before == name) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.extend_from_slice(b",");
        }
        jsontext::string(name.as_bytes(), out);
        let mut open: &[u8] = b":[";
        for (_, value) in told[at..].iter().filter(|(other, _)| other == name) {
            out.extend_from_slice(open);
            jsontext::string(value, out);
            open = b",";
        }
        out.extend_from_slice(b"]");
    }
    out.extend_from_slice(b"}");
}

/// The headers of an answer, as a function gives them.
#[derive(Debug, Default)]
pub struct Given(Headers);

impl Given {
    /// Adds one, unless it is the platform's to say.
    pub fn push(&mut self, name: &str, value: impl Into<Bytes>) {
        if !is_hop_by_hop(name) && !name.eq_ignore_ascii_case("content-length") {
            self.0.push(name, value);
        }
    }

    /// Adds those of `{"name": "value" or ["value", …], …}`.
    ///
    /// # Errors
    /// When the raw value is something else.
    pub fn read(&mut self, raw: &[u8]) -> Result<(), String> {
        let Some(members) = jsontext::members(raw) else {
            return if jsontext::is_null(raw) { Ok(()) } else { Err("headers is not an object".to_owned()) };
        };
        // So that what is kept is bounded while it is read, not after.
        let add = |given: &mut Self, name: &str, raw: &[u8]| match jsontext::text(raw) {
            Some(_) if given.0.0.len() > stoker_core::call::MAX_HEADERS => Ok(()),
            Some(value) => {
                given.push(name, value.into_owned());
                Ok(())
            }
            None => Err(format!("header {name:?} is neither a string nor a list of strings")),
        };
        for member in members {
            let name = member.key();
            match jsontext::elements(member.value) {
                Some(mut values) => values.try_for_each(|raw| add(self, &name, raw))?,
                None if jsontext::is_null(member.value) => {}
                None => add(self, &name, member.value)?,
            }
        }
        Ok(())
    }

    /// Sets the one `Content-Type`, over any that was given.
    pub fn content_type(&mut self, value: impl Into<Bytes>) {
        self.0.0.retain(|h| !h.name.eq_ignore_ascii_case("content-type"));
        self.0.push("Content-Type", value);
    }

    /// All of them, if a client may see them.
    ///
    /// # Errors
    /// The function's fault.
    pub fn checked(self) -> Result<Headers, Fault> {
        match self.0.check() {
            Ok(()) => Ok(self.0),
            Err(HeaderProblem::Invalid(why)) => Err(Fault::new(
                Code::FunctionInvalidResponse,
                format!("the function's answer is not valid: {why}"),
            )),
            Err(HeaderProblem::TooLarge(why)) => {
                Err(Fault::new(Code::ResponseHeadersTooLarge, format!("the function's answer has {why}")))
            }
        }
    }
}

/// The status of an answer: `None` and 0 are 200.
///
/// # Errors
/// What it is instead.
pub fn status(raw: Option<&[u8]>) -> Result<u16, String> {
    let Some(raw) = raw.filter(|raw| !jsontext::is_null(raw)) else { return Ok(200) };
    match jsontext::whole(raw) {
        Some(0) => Ok(200),
        Some(status @ 200..=599) => Ok(status as u16),
        _ => {
            let shown = String::from_utf8_lossy(&raw[..raw.len().min(40)]);
            Err(format!("status_code is {shown}, which is no status from 200 to 599"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_as_go_spells_them() {
        for (name, spelled) in [
            ("x-two", "X-Two"),
            ("X-Two", "X-Two"),
            ("ETAG", "Etag"),
            ("fn_call_id", "Fn_call_id"),
            ("-a-", "-A-"),
        ] {
            assert_eq!(canonical(name), spelled);
        }
    }

    #[test]
    fn names_stand_once_with_their_values() {
        let mut out = BytesMut::new();
        let told: Vec<(_, &[u8])> =
            ["A", "B", "A"].iter().map(|n| (Cow::Borrowed(*n), &b"x\"\xff"[..])).collect();
        write(&told, &mut out);
        let text = "{\"A\":[\"x\\\"\u{fffd}\",\"x\\\"\u{fffd}\"],\"B\":[\"x\\\"\u{fffd}\"]}";
        assert_eq!(std::str::from_utf8(&out), Ok(text));
    }

    #[test]
    fn given_headers_are_checked() {
        let read = |text: &str| {
            let mut given = Given::default();
            given.read(text.as_bytes()).map_err(|_| Code::Internal)?;
            given.checked().map(|h| h.0.len()).map_err(|f| f.code)
        };
        assert_eq!(
            read(r#"{"A":["1","2"],"B":"3","C":null,"Connection":"close","Content-Length":"9"}"#),
            Ok(3)
        );
        assert_eq!(read("null"), Ok(0));
        assert_eq!(read("[]"), Err(Code::Internal));
        assert_eq!(read(r#"{"A":1}"#), Err(Code::Internal));
        assert_eq!(read(r#"{"A":["x\r\ny"]}"#), Err(Code::FunctionInvalidResponse));
        assert_eq!(read(r#"{"A B":"x"}"#), Err(Code::FunctionInvalidResponse));
        let many = format!(r#"{{"A":["x"{}]}}"#, r#","x""#.repeat(10_000));
        assert_eq!(read(&many), Err(Code::ResponseHeadersTooLarge));
    }

    #[test]
    fn statuses_are_those_of_answers() {
        for (raw, status_) in [
            ("null", Some(200)),
            ("0", Some(200)),
            ("404", Some(404)),
            ("503.0", Some(503)),
            ("100", None),
            ("\"200\"", None),
            ("600", None),
        ] {
            assert_eq!(status(Some(raw.as_bytes())).ok(), status_, "{raw}");
        }
        assert_eq!(status(None), Ok(200));
    }
}
