//! OTLP by HTTP/1.1, in protobuf.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use prost::Message as _;

use super::dial::Dial;
use super::{AGENT, ANSWER, Failed, Message, Taken};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// A connection to the collector: made when it is needed, and again when it broke.
pub(super) struct Way {
    dial: Dial,
    headers: HeaderMap,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Way {
    pub fn new(dial: Dial, mut headers: HeaderMap) -> Self {
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(CONTENT_TYPE, PROTOBUF);
        Self { dial, headers, connection: None }
    }

    pub async fn send(&mut self, message: Message) -> Result<usize, Failed> {
        let mut body = message.head();
        body.extend_from_slice(&message.items);
        let mut request = Request::post(self.dial.path.as_str())
            .header(HOST, self.dial.authority.as_str())
            .body(Full::new(Bytes::from(body)))
            .map_err(Failed::for_good)?;
        request.headers_mut().extend(self.headers.clone());
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await.map_err(Failed::passing)?;
        let (parts, body) = answer.into_parts();
        let after = parts.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(body, ANSWER).collect().await.map_err(Failed::passing)?.to_bytes();
        if parts.status.is_success() {
            self.connection = Some(connection);
            let taken = Taken::decode(body);
            return taken
                .map(|taken| taken.refused())
                .map_err(|error| Failed::for_good(format!("the answer is no OTLP: {error}")));
        }
        let passing = matches!(
            parts.status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let why = format!("HTTP status {}", parts.status);
        Err(Failed { why, passing, after: Duration::from_secs(after.unwrap_or(0)) })
    }

    /// One that stands, or a new one.
    async fn connection(&mut self) -> Result<SendRequest<Full<Bytes>>, Failed> {
        if let Some(mut connection) = self.connection.take()
            && connection.ready().await.is_ok()
        {
            return Ok(connection);
        }
        let stream = self.dial.connect().await.map_err(Failed::passing)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await.map_err(Failed::passing)?;
        // Ends with the connection, which ends when it is dropped here. What it may say is said to the request too.
        tokio::spawn(async move { driver.await.ok() });
        Ok(connection)
    }
}
