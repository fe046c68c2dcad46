//! The Engine API over its Unix socket: the few calls that containers take.
//!
//! One connection for each call: they are rare, and a daemon that was restarted in between is found again by itself.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::Error;

/// A daemon that takes longer than this for one call does not work.
const LIMIT: Duration = Duration::from_secs(60);
/// The largest answer: a list of many containers.
const LARGEST: usize = 32 << 20;

/// A daemon.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    /// What paths begin with: the newest version that the daemon speaks.
    version: String,
    /// It is Podman, which speaks the same and does not understand all of it.
    podman: bool,
}

/// What a call carries.
pub enum Content {
    Nothing,
    Json(Value),
    Tar(Vec<u8>),
}

impl Api {
    /// Finds out whether a daemon is there, and what it speaks.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when there is none.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let mut api = Self { socket: socket.to_path_buf(), version: String::new(), podman: false };
        let request = api.request(Method::GET, "/_ping", Content::Nothing)?;
        let answer = api
            .send(request)
            .await
            .map_err(|error| Error::Unsupported(format!("no Docker daemon answers: {error}")))?;
        api.podman = answer.headers().contains_key("libpod-api-version");
        let version = answer.headers().get("api-version").and_then(|version| version.to_str().ok());
        if let Some(version) = version {
            api.version = format!("/v{version}");
        }
        Ok(api)
    }

    /// Whether the daemon is Podman.
    pub fn is_podman(&self) -> bool {
        self.podman
    }

    /// One call; the JSON of its answer, or null.
    ///
    /// # Errors
    /// [`Error::Platform`] with the daemon's words.
    pub async fn call(&self, method: Method, path: &str, content: Content) -> Result<Value, Error> {
        let (status, body) = self.try_call(method, path, content).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(refusal(path, status, &body))
    }

    /// One call, whatever the daemon answers.
    ///
    /// # Errors
    /// [`Error::Platform`] when it does not.
    pub async fn try_call(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<(StatusCode, Value), Error> {
        let (status, body) = self.exchange(method, path, content).await?;
        // Progress is told in one object a line: the last one counts.
        let last = body.split(|byte| *byte == b'\n').rev().find(|line| !line.trim_ascii().is_empty());
        let value = last.and_then(|line| serde_json::from_slice(line).ok()).unwrap_or(Value::Null);
        Ok((status, value))
    }

    /// What a container has said, the end of it.
    ///
    /// # Errors
    /// [`Error::Platform`].
    pub async fn logs(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = format!("/containers/{name}/logs?stdout=true&stderr=true&tail=20");
        let (status, body) = self.exchange(Method::GET, &path, Content::Nothing).await?;
        if !status.is_success() {
            return Err(refusal(&path, status, &Value::Null));
        }
        Ok(said(&body))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        content: Content,
    ) -> Result<(StatusCode, Bytes), Error> {
        let platform = |source| Error::Platform { step: format!("ask the Docker daemon for {path}"), source };
        let request = self.request(method, &format!("{}{path}", self.version), content)?;
        let answer = self.send(request).await.map_err(platform)?;
        let status = answer.status();
        let body = tokio::time::timeout(LIMIT, Limited::new(answer.into_body(), LARGEST).collect())
            .await
            .map_err(|_| platform(io::ErrorKind::TimedOut.into()))?
            .map_err(|error| platform(io::Error::other(error)))?;
        Ok((status, body.to_bytes()))
    }

    fn request(&self, method: Method, path: &str, content: Content) -> Result<Request<Full<Bytes>>, Error> {
        let (kind, body) = match content {
            Content::Nothing => (None, Bytes::new()),
            Content::Json(value) => (Some("application/json"), Bytes::from(value.to_string())),
            Content::Tar(bytes) => (Some("application/x-tar"), Bytes::from(bytes)),
        };
        let mut request = Request::builder().method(method).uri(path).header("host", "docker");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        request.body(Full::new(body)).map_err(|error| Error::Platform {
            step: format!("ask the Docker daemon for {path}"),
            source: io::Error::other(error),
        })
    }

    async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> io::Result<hyper::Response<hyper::body::Incoming>> {
        let exchange = async {
            let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
                io::Error::new(error.kind(), format!("nobody listens on {}: {error}", self.socket.display()))
            })?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(io::Error::other)?;
            // Ends with the answer's last byte, or when the answer is dropped; what breaks it is told to the sender.
            tokio::spawn(async move { connection.await.ok() });
            sender.send_request(request).await.map_err(io::Error::other)
        };
        tokio::time::timeout(LIMIT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The text of both streams of a container: each piece has eight bytes before it, the last four of which say how long it is.
fn said(mut pieces: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    while let Some((&[_, _, _, _, a, b, c, d], rest)) = pieces.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let (piece, rest) = rest.split_at(length.min(rest.len()));
        text.extend_from_slice(piece);
        pieces = rest;
    }
    text
}

/// What the daemon said, as an error.
pub fn refusal(path: &str, status: StatusCode, body: &Value) -> Error {
    let said = body["message"].as_str().unwrap_or("no reason given");
    Error::Platform {
        step: format!("ask the Docker daemon for {path}"),
        source: io::Error::other(format!("{status}: {said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_both_streams_are_one_text() {
        let pieces = b"\x02\0\0\0\0\0\0\x04one\n\x01\0\0\0\0\0\0\x03two\x02\0\0\0\0\0\xff\xffcut";
        assert_eq!(said(pieces), b"one\ntwocut");
        assert!(said(b"short").is_empty());
    }
}
