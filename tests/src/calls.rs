//! Ordinary clients: every door of a balancer, and one answer or error whichever was used.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use stoker_core::error::{Code, Error, Retry};
use stoker_core::machine::Listed as _;
use stoker_proto::v1::call_service_client::CallServiceClient;
use stoker_proto::v1::fleet_service_client::FleetServiceClient;
use stoker_proto::v1::function_service_client::FunctionServiceClient;
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_proto::{convert, status, v1};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::functions::APP;
use crate::within;

/// A way into the balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Invoke,
    Stream,
    Session,
    Http,
}

impl Door {
    pub const ALL: [Self; 4] = [Self::Invoke, Self::Stream, Self::Session, Self::Http];
}

/// A call to be.
#[derive(Debug, Clone)]
pub struct Call {
    pub function: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub timeout: Option<Duration>,
    /// `traceparent`, as each door takes it.
    pub trace: Option<String>,
}

impl Call {
    /// Of a function of the test's app (`app/function` names another).
    #[must_use]
    pub fn of(function: &str) -> Self {
        let function = if function.contains('/') { function.to_owned() } else { format!("{APP}/{function}") };
        Self { function, headers: Vec::new(), body: Bytes::new(), timeout: None, trace: None }
    }

    /// What the probe is to do with it.
    #[must_use]
    pub fn probe(self, word: &str) -> Self {
        self.header("Probe", word)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    #[must_use]
    pub fn trace(mut self, parent: &str) -> Self {
        self.trace = Some(parent.to_owned());
        self
    }

    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn head(&self) -> v1::RequestHead {
        let headers = self.headers.iter().map(|(name, value)| v1::Header {
            name: name.clone(),
            value: Bytes::from(value.clone().into_bytes()),
        });
        v1::RequestHead { headers: headers.collect(), ..Default::default() }
    }

    pub(crate) fn with_timeout<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        if let Some(trace) = &self.trace {
            request.metadata_mut().insert("traceparent", trace.parse().unwrap());
        }
        request
    }
}

/// An answer, through whichever door it came.
#[derive(Debug, Clone)]
pub struct Answer {
    pub call_id: String,
    pub status: u16,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
    /// Where the door tells them.
    pub timings: Option<v1::Timings>,
    pub runner: String,
}

impl Answer {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.text()))
    }

    fn of(
        call_id: String,
        head: Option<v1::ResponseHead>,
        body: Bytes,
        timings: Option<v1::Timings>,
    ) -> Self {
        let head = head.expect("an answer has a head");
        Self {
            call_id,
            status: head.status as u16,
            headers: head.headers.into_iter().map(|h| (h.name, h.value)).collect(),
            body,
            timings,
            runner: String::new(),
        }
    }
}

/// An answer of the HTTP door, as it came.
#[derive(Debug, Clone)]
pub struct Page {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Page {
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The error that it is. Everything that it says must fit together.
    #[must_use]
    pub fn error(&self) -> Error {
        assert_eq!(self.header("content-type"), "application/json", "{self:?}");
        let said: Value = serde_json::from_slice(&self.body).expect("an error is JSON");
        let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        let code = Code::ALL.iter().find(|code| status::row(**code).reason == text("code"));
        let code = *code.unwrap_or_else(|| panic!("no such code: {said}"));
        assert_eq!(self.status, status::row(code).http, "{said}");
        assert_eq!(text("blame"), code.blame().as_str(), "{said}");
        assert!(!text("message").is_empty(), "{said}");
        assert_eq!(self.header("fn-call-id"), text("call_id"), "{said}");
        assert!(!text("call_id").is_empty(), "{said}");
        let after = self.header("retry-after").parse().ok().map(Duration::from_secs);
        let retry = match text("retry").as_str() {
            "never" => Retry::Never,
            "elsewhere" => Retry::Elsewhere,
            "after" => Retry::After(after.expect("a time is named in Retry-After")),
            other => panic!("no such retry: {other}"),
        };
        assert!(matches!(retry, Retry::After(_)) || after.is_none(), "Retry-After without a reason: {said}");
        Error {
            code,
            message: text("message"),
            retry,
            may_have_started: said["may_have_started"].as_bool().unwrap_or_default(),
            log_tail: text("log_tail"),
            report: None,
        }
    }
}

/// Connections to one balancer.
#[derive(Debug, Clone)]
pub struct Clients {
    pub channel: Channel,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
}

impl Clients {
    /// Connects.
    pub async fn connect(grpc: SocketAddr, http: SocketAddr) -> Self {
        let channel = Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
        Self { channel, grpc, http }
    }

    #[must_use]
    pub fn calls(&self) -> CallServiceClient<Channel> {
        let most = stoker_proto::MAX_MESSAGE + (256 << 10);
        CallServiceClient::new(self.channel.clone())
            .max_decoding_message_size(most)
            .max_encoding_message_size(16 << 20)
    }

    #[must_use]
    pub fn functions(&self) -> FunctionServiceClient<Channel> {
        FunctionServiceClient::new(self.channel.clone())
    }

    #[must_use]
    pub fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone())
    }

    /// One call through one door, whole.
    ///
    /// # Errors
    /// The call's one error.
    pub async fn call(&self, door: Door, call: Call) -> Result<Answer, Error> {
        let what = format!("{door:?} {} {:?}", call.function, call.headers);
        let answer = async {
            match door {
                Door::Invoke => self.invoke(call).await,
                Door::Stream => self.stream(call).await,
                Door::Session => self.session(call).await,
                Door::Http => self.post(call).await,
            }
        };
        within(&what, answer).await
    }

    /// One unary call of the probe.
    ///
    /// # Panics
    /// When it fails.
    pub async fn probe(&self, function: &str, word: &str) -> Answer {
        self.call(Door::Invoke, Call::of(function).probe(word)).await.unwrap()
    }

    async fn invoke(&self, call: Call) -> Result<Answer, Error> {
        let message = v1::InvokeRequest {
            function: call.function.clone(),
            head: Some(call.head()),
            body: call.body.clone(),
            ..Default::default()
        };
        let answer = self.calls().invoke(call.with_timeout(message)).await;
        let v1::InvokeResponse { call_id, head, body, timings, runner, .. } =
            answer.map_err(|status| status::from_status(&status))?.into_inner();
        Ok(Answer { runner, ..Answer::of(call_id, head, body, timings) })
    }

    async fn stream(&self, call: Call) -> Result<Answer, Error> {
        let (send, opened) = self.open(&call);
        let feed = async {
            for piece in call.body.chunks(stoker_core::call::CHUNK) {
                let frame = v1::invoke_stream_request::Frame::Body(Bytes::copy_from_slice(piece));
                // A call that has ended takes no more of its body; its answer says why.
                if send.send(v1::InvokeStreamRequest { frame: Some(frame) }).await.is_err() {
                    break;
                }
            }
            drop(send);
        };
        let answer = async {
            let mut answers = opened.await.map_err(|status| status::from_status(&status))?;
            rest_of(&mut answers).await
        };
        tokio::join!(feed, answer).1
    }

    /// Starts a streamed call; the body is the caller's to send, dropping the sender ends it. The answer begins when the function
    /// says so, which may be before or after that.
    pub fn open(
        &self,
        call: &Call,
    ) -> (
        mpsc::Sender<v1::InvokeStreamRequest>,
        impl Future<Output = Result<Streaming<v1::InvokeStreamResponse>, Status>> + use<>,
    ) {
        let (send, frames) = mpsc::channel(4);
        let start = v1::CallStart { function: call.function.clone(), head: Some(call.head()) };
        let frame = v1::InvokeStreamRequest { frame: Some(v1::invoke_stream_request::Frame::Start(start)) };
        let frames = tokio_stream::once(frame).chain(ReceiverStream::new(frames));
        let request = call.with_timeout(frames);
        let mut calls = self.calls();
        let answers = async move { Ok(calls.invoke_stream(request).await?.into_inner()) };
        (send, answers)
    }

    async fn session(&self, call: Call) -> Result<Answer, Error> {
        let (send, frames) = mpsc::channel(64);
        let (complete, first) = (call.body.len() <= stoker_core::call::CHUNK, call.body.clone());
        let mut left = call.body.clone();
        let first = if complete { first } else { left.split_to(stoker_core::call::CHUNK) };
        let start = v1::SessionStart {
            function: call.function.clone(),
            head: Some(call.head()),
            body: first,
            complete,
            timeout_ms: call.timeout.map_or(0, |timeout| timeout.as_millis() as u64),
            traceparent: call.trace.clone().unwrap_or_default(),
            ..Default::default()
        };
        let frame = |frame| v1::SessionRequest { call: 1, frame: Some(frame) };
        send.send(frame(In::Start(start))).await.unwrap();
        let mut answers = self.calls().session(ReceiverStream::new(frames)).await.unwrap().into_inner();
        let (mut head, mut body, mut id, mut credit) = (None, Vec::new(), String::new(), 0usize);
        loop {
            let answer = answers.message().await.map_err(|status| status::from_status(&status))?;
            match answer.and_then(|answer| answer.frame) {
                Some(Out::Head(start)) => (head, id) = (start.head, start.call_id),
                Some(Out::Body(piece)) => {
                    body.extend_from_slice(&piece.data);
                    let taken = v1::SessionCredit { bytes: piece.data.len() as u32 };
                    // A session that has ended takes no credit; its end says why.
                    _ = send.send(frame(In::Credit(taken))).await;
                }
                Some(Out::Credit(more)) => {
                    credit += more.bytes as usize;
                    while credit > 0 && !(left.is_empty() || complete) {
                        let some = left.len().min(credit).min(stoker_core::call::CHUNK);
                        let data = left.split_to(some);
                        credit -= some;
                        let piece = v1::SessionBody { data, last: left.is_empty() };
                        _ = send.send(frame(In::Body(piece))).await;
                    }
                }
                Some(Out::Finished(end)) => {
                    if let Some(error) = end.error {
                        return Err(convert::call_error(error));
                    }
                    body.extend_from_slice(&end.body);
                    let id = if id.is_empty() { end.call_id } else { id };
                    let answer = Answer::of(id, head.or(end.head), body.into(), end.timings);
                    return Ok(Answer { runner: end.runner, ..answer });
                }
                None => panic!("the session ended without the end of its call"),
            }
        }
    }

    async fn post(&self, call: Call) -> Result<Answer, Error> {
        let mut headers = call.headers;
        headers.extend(call.trace.map(|trace| ("traceparent".to_owned(), trace)));
        let page = self.page("POST", &format!("/invoke/{}", call.function), &headers, call.body).await;
        if page.status != 200 {
            return Err(page.error());
        }
        Ok(Answer {
            call_id: page.header("fn-call-id").to_owned(),
            status: page.status,
            headers: page
                .headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
                .collect(),
            body: page.body,
            timings: None,
            runner: String::new(),
        })
    }

    /// One HTTP request on a connection of its own.
    pub async fn page(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: impl Into<Bytes>,
    ) -> Page {
        page_at(self.http, method, path, headers, body).await
    }
}

/// A request to whatever listens there.
pub async fn page_at(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: impl Into<Bytes>,
) -> Page {
    let request = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", "stoker.test");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let (parts, body) = send.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.expect("the body is whole").to_bytes();
        connection.abort();
        Page { status: parts.status.as_u16(), headers: parts.headers, body }
    };
    within(&format!("{method} {path}"), request).await
}

/// What is left of a streamed call.
///
/// # Errors
/// The call's one error.
pub async fn rest_of(answers: &mut Streaming<v1::InvokeStreamResponse>) -> Result<Answer, Error> {
    use v1::invoke_stream_response::Frame;
    let (mut start, mut body) = (v1::CallAnswer::default(), Vec::new());
    loop {
        let answer = answers.message().await.map_err(|status| status::from_status(&status))?;
        match answer.and_then(|answer| answer.frame) {
            Some(Frame::Answer(answer)) => start = answer,
            Some(Frame::Body(piece)) => body.extend_from_slice(&piece),
            Some(Frame::End(end)) => {
                let head = start.head.or(Some(v1::ResponseHead { status: 200, headers: Vec::new() }));
                let answer = Answer::of(start.call_id, head, body.into(), end.timings);
                return Ok(Answer { runner: end.runner, ..answer });
            }
            None => panic!("the stream ended without the end of its call"),
        }
    }
}
