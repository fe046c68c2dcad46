//! `mless`: a startup message and its answer, then one request and one reply at a time, all JSON on STDIN and STDOUT.
//!
//! What the caller of a Lambda function tells besides the event travels in the headers that Lambda's own APIs have for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use stoker_core::call::Headers;
use stoker_core::moment::epoch_ms;
use stoker_core::{Code, ResponseHead};

use crate::json::{cut, from_base64};
use crate::jsontext::{self, Inlay};
use crate::reply::{Reply, Said, Whole, broken, excerpt, trim};
use crate::{Event, Fault, MAX_HEAD, MAX_REASON, Request};

/// The request id that the function is told, where it is not the call's own.
pub const REQUEST_ID: &str = "Lambda-Runtime-Aws-Request-Id";
/// What the function was called by.
pub const FUNCTION_ARN: &str = "Lambda-Runtime-Invoked-Function-Arn";
/// The client context as JSON.
pub const CLIENT_CONTEXT: &str = "Lambda-Runtime-Client-Context";
/// The client context as base64 of JSON, as Lambda's API takes it.
pub const CLIENT_CONTEXT_BASE64: &str = "X-Amz-Client-Context";
/// The identity as JSON.
pub const IDENTITY: &str = "Lambda-Runtime-Cognito-Identity";

/// The conversation before the first call.
#[derive(Debug)]
pub struct Startup {
    message: BytesMut,
    reply: Whole,
}

impl Startup {
    /// For a container of a function with this handler and environment.
    #[must_use]
    pub fn new(handler: &str, env: &BTreeMap<String, String>) -> Self {
        let mut message = BytesMut::from(&b"{\"handler\":"[..]);
        jsontext::string(handler.as_bytes(), &mut message);
        message.extend_from_slice(b",\"env\":{");
        for (at, (key, value)) in env.iter().enumerate() {
            message.extend_from_slice(if at == 0 { b"" } else { b"," });
            jsontext::string(key.as_bytes(), &mut message);
            message.extend_from_slice(b":");
            jsontext::string(value.as_bytes(), &mut message);
        }
        message.extend_from_slice(b"}}\n");
        Self { message, reply: Whole::default() }
    }

    /// Takes what the container is told, once.
    pub fn encode(&mut self) -> Bytes {
        self.message.split().freeze()
    }

    /// What it said: `Some(Ok(()))` when it takes calls, `None` when more must be read first. Some runtimes say so without having
    /// been asked.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Result<(), Fault>> {
        let failed = |why: String| Err(Fault::new(Code::FunctionInitFailed, why));
        let message = match self.reply.next(input, eof, true, MAX_HEAD) {
            Ok(None) => return None,
            Ok(Some(message)) => message,
            Err(fault) => return Some(failed(format!("at its start: {}", fault.message))),
        };
        let ok = jsontext::members(&message)
            .and_then(|members| members.filter(|m| m.key().eq_ignore_ascii_case("ok")).last())
            .map(|m| m.value);
        trim(input);
        Some(match ok {
            Some(b"true") if input.is_empty() => Ok(()),
            Some(b"true") => {
                failed(format!("the function wrote more than its startup answer: {}", excerpt(input)))
            }
            Some(b"false") => failed("runner initialization failed".to_owned()),
            _ => failed("the function's startup answer has no `ok` that is true or false".to_owned()),
        })
    }
}

/// What a reply says besides the result.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Of the request.
    pub request_id: String,
    /// The function's name for its error; empty where there is none.
    pub error_type: String,
    /// What the function says about its failure.
    pub failure: Option<String>,
    pub billing: Option<Billing>,
}

/// What a call cost, as the runtime counted it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Billing {
    /// Milliseconds.
    pub duration: f64,
    /// Megabytes that the function has, in the runtime's words.
    pub memory: String,
    /// Megabytes that it used at most.
    pub used: i64,
}

impl Report {
    /// The lines that end the call in the log, as the daemon of mless wrote them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let cost = self.billing.as_ref().map(|billing| {
            format!(
                "REPORT RequestId: {} Duration: {:.2} ms Billed Duration: {:.0} ms Memory Size: {} MB Max Memory Used: {} MB",
                self.request_id,
                billing.duration,
                100.0 * (1.0 + (billing.duration / 100.0).floor()),
                billing.memory,
                billing.used
            )
        });
        let failure = self.failure.as_ref().map(|text| match self.error_type.as_str() {
            "" => text.clone(),
            kind => format!("{text} ({kind})"),
        });
        cost.into_iter().chain(failure).collect()
    }
}

/// One call.
#[derive(Debug)]
pub struct Exchange {
    id: String,
    function: String,
    event: Inlay,
    written: bool,
    reply: Reply,
    report: Option<Report>,
}

impl Exchange {
    /// Before anything was written. `function`: its name, for an ARN where the caller gave none. `limit`: the most bytes of a
    /// reply.
    #[must_use]
    pub fn new(request: &Request<'_>, function: &str, limit: usize) -> Self {
        Self {
            id: id(request),
            function: function.to_owned(),
            event: Inlay::new(""),
            written: false,
            reply: Reply::new(limit),
            report: None,
        }
    }

    /// What the reply said besides the result, once it has come.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    /// See [`crate::Exchange::encode_head`].
    ///
    /// # Errors
    /// When a header that carries JSON carries something else.
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) -> Result<(), Fault> {
        let headers = &request.head.headers;
        out.extend_from_slice(b"{\"context\":{\"aws_request_id\":");
        jsontext::string(self.id.as_bytes(), out);
        out.extend_from_slice(b",\"client_context\":");
        client_context(headers, out)?;
        out.extend_from_slice(b",\"identity\":");
        identity(headers, out)?;
        out.extend_from_slice(b",\"invoked_function_arn\":");
        match headers.get(FUNCTION_ARN) {
            Some(arn) => jsontext::string(arn.as_bytes(), out),
            None => {
                let arn = format!("arn:aws:lambda:us-east-1:012345678912:function:{}", self.function);
                jsontext::string(arn.as_bytes(), out);
            }
        }
        _ = write!(out, "}},\"deadline\":{}", epoch_ms(request.deadline));
        for (key, value) in [("traceparent", &request.trace.parent), ("tracestate", &request.trace.state)] {
            if !value.is_empty() {
                _ = write!(out, ",\"{key}\":");
                jsontext::string(value.as_bytes(), out);
            }
        }
        out.extend_from_slice(b",\"event\":");
        Ok(())
    }

    /// See [`crate::Exchange::encode_body`].
    ///
    /// # Errors
    /// When the body is not JSON.
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        self.event.push(piece, out).map_err(not_json)
    }

    /// See [`crate::Exchange::encode_end`]. No event is an empty one, as on Lambda.
    ///
    /// # Errors
    /// As [`Self::encode_body`].
    pub fn encode_end(&mut self, out: &mut BytesMut) -> Result<(), Fault> {
        if !self.event.finish().map_err(not_json)? {
            out.extend_from_slice(b"{}");
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
        let (id, report) = (&self.id, &mut self.report);
        self.reply.decode(input, eof, self.written, |object| read(object, id, report))
    }
}

fn not_json(why: jsontext::Malformed) -> Fault {
    Fault::new(Code::InvalidRequest, format!("the request's body is not JSON, which an event must be: {why}"))
}

fn id(request: &Request<'_>) -> String {
    let told = request.head.headers.get(REQUEST_ID).filter(|id| (1..=256).contains(&id.len()));
    told.map_or_else(|| request.call.to_string(), str::to_owned)
}

fn object(header: &str, text: &[u8]) -> Result<BytesMut, Fault> {
    let invalid = |why: &str| {
        Fault::new(Code::InvalidRequest, format!("the header {header} is not a JSON object: {why}"))
    };
    let text = jsontext::compact(text).map_err(|why| invalid(&why.to_string()))?;
    if text.first() == Some(&b'{') || jsontext::is_null(&text) {
        Ok(text)
    } else {
        Err(invalid("it is another value"))
    }
}

fn client_context(headers: &Headers, out: &mut BytesMut) -> Result<(), Fault> {
    let text = match (headers.get(CLIENT_CONTEXT), headers.get(CLIENT_CONTEXT_BASE64)) {
        (Some(text), _) => object(CLIENT_CONTEXT, text.as_bytes())?,
        (None, Some(encoded)) => {
            let why = format!("the header {CLIENT_CONTEXT_BASE64} is not base64");
            let text =
                from_base64(encoded.as_bytes()).ok_or_else(|| Fault::new(Code::InvalidRequest, why))?;
            object(CLIENT_CONTEXT_BASE64, &text)?
        }
        (None, None) => BytesMut::from(&b"null"[..]),
    };
    out.extend_from_slice(&text);
    Ok(())
}

/// Lambda spells its keys in one way, mless in another.
fn identity(headers: &Headers, out: &mut BytesMut) -> Result<(), Fault> {
    let Some(text) = headers.get(IDENTITY) else {
        out.extend_from_slice(b"null");
        return Ok(());
    };
    let text = object(IDENTITY, text.as_bytes())?;
    let Some(members) = jsontext::members(&text) else {
        out.extend_from_slice(&text);
        return Ok(());
    };
    let members: Vec<_> = members.collect();
    let mut open = "{";
    for (key, other) in
        [("cognito_identity_id", "cognitoIdentityId"), ("cognito_identity_pool_id", "cognitoIdentityPoolId")]
    {
        let found = members
            .iter()
            .rev()
            .find(|m| m.key().eq_ignore_ascii_case(key) || m.key().eq_ignore_ascii_case(other));
        _ = write!(out, "{open}\"{key}\":");
        out.extend_from_slice(found.map_or(b"\"\"", |m| m.value));
        open = ",";
    }
    out.extend_from_slice(b"}");
    Ok(())
}

/// The keys are read in any case: the originals differ.
fn read(mut message: BytesMut, id: &str, report: &mut Option<Report>) -> Result<Said, Fault> {
    let invalid = |why: &str| broken("mless", why);
    let (mut result, mut error_type, mut invoke, mut errors, mut billing) = (None, None, None, None, None);
    for member in jsontext::members(&message).ok_or_else(|| invalid("it is no object"))? {
        let key = member.key();
        let slot = match () {
            () if key.eq_ignore_ascii_case("result") => {
                result = Some((member.at, member.value.len()));
                continue;
            }
            () if key.eq_ignore_ascii_case("errortype") => &mut error_type,
            () if key.eq_ignore_ascii_case("invokeid") => &mut invoke,
            () if key.eq_ignore_ascii_case("errors") => &mut errors,
            () if key.eq_ignore_ascii_case("billing") => &mut billing,
            () => continue,
        };
        *slot = Some(member.value).filter(|raw| !jsontext::is_null(raw));
    }
    let text = |raw: Option<&[u8]>, key: &str| match raw.map(jsontext::text) {
        None => Ok(String::new()),
        Some(Some(text)) => Ok(text.into_owned()),
        Some(None) => Err(invalid(&format!("{key} is not a string"))),
    };
    let answered = text(invoke, "invokeid")?;
    if answered != id {
        let shown = excerpt(answered.as_bytes());
        return Err(invalid(&format!("response ID {shown} does not match request: {id}")));
    }
    let errors = match errors {
        None | Some(b"false") => false,
        Some(b"true") => true,
        Some(_) => return Err(invalid("errors is neither true nor false")),
    };
    let mut error_type = text(error_type, "errortype")?;
    error_type.truncate(error_type.floor_char_boundary(MAX_REASON));
    let billing = billing.map(cost).transpose().map_err(invalid)?;
    let result = match result {
        None => Bytes::from_static(b"null"),
        Some((at, length)) => cut(&mut message, at, length).freeze(),
    };
    let failure = errors.then(|| {
        let text = String::from_utf8_lossy(&result);
        text[..text.floor_char_boundary(MAX_REASON)].to_owned()
    });
    *report = Some(Report { request_id: id.to_owned(), error_type, failure: failure.clone(), billing });
    if let Some(text) = failure {
        return Ok(Said::Failure(text));
    }
    let mut headers = Headers::default();
    headers.push("Content-Type", "application/json");
    Ok(Said::Answer(ResponseHead { status: 200, headers }, result))
}

fn cost(raw: &[u8]) -> Result<Billing, &'static str> {
    let mut billing = Billing::default();
    for member in jsontext::members(raw).ok_or("billing is no object")? {
        let key = member.key();
        let raw = member.value;
        let number =
            || std::str::from_utf8(raw).ok().and_then(|t| t.parse::<f64>().ok()).filter(|n| n.is_finite());
        if jsontext::is_null(raw) {
            continue;
        } else if key.eq_ignore_ascii_case("duration") {
            billing.duration = number().ok_or("billing.duration is not a number")?;
        } else if key.eq_ignore_ascii_case("used") {
            billing.used = number().ok_or("billing.used is not a number")? as i64;
        } else if key.eq_ignore_ascii_case("memory") {
            let text = jsontext::text(raw).or_else(|| number().map(|n| n.to_string().into()));
            let mut text = text.ok_or("billing.memory is neither a string nor a number")?.into_owned();
            text.truncate(text.floor_char_boundary(32));
            billing.memory = text;
        }
    }
    Ok(billing)
}
