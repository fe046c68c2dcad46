//! The APIs over real connections: what runtimes and extensions send and get, and what the runner is told.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod api;
mod concurrency;
mod extensions;
mod fuzz;
mod handover;
mod restore;
mod telemetry;

use std::net::SocketAddr;
use std::sync::Arc;

use stoker_lambda::{About, Failure, Invocation, Kind, RuntimeApi, Said};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn api() -> (RuntimeApi, SocketAddr) {
    api_of(about(&[]))
}

fn api_of(about: About) -> (RuntimeApi, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (RuntimeApi::serve(listener, about).unwrap(), address)
}

/// Subscribers listen on the loopback device of the test.
fn about(external: &[&str]) -> About {
    About {
        function: "f".into(),
        version: "$LATEST".into(),
        handler: "kit.handler".into(),
        account: "012345678912".into(),
        log_stream: "stream".into(),
        memory: 128 << 20,
        kind: Kind::OnDemand,
        again: false,
        concurrency: 1,
        external: external.iter().map(ToString::to_string).collect(),
        no_extensions: false,
        credentials: None,
        connect: Arc::new(|port| Box::pin(TcpStream::connect(("127.0.0.1", port)))),
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|l| l.split_once(": "))
            .find(|(k, _)| k.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    fn is(&self, status: u16, kind: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(json["errorType"], kind, "{self:?}");
    }
}

/// One connection of a runtime.
struct Runtime(TcpStream);

impl Runtime {
    async fn new(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(k, v)| text += &format!("{k}: {v}\r\n"));
        text += "\r\n";
        self.0.write_all(text.as_bytes()).await.unwrap();
        self.0.write_all(body).await.unwrap();
    }

    async fn read(&mut self) -> Reply {
        let mut bytes = Vec::new();
        let at = loop {
            if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            assert!(self.0.read_buf(&mut bytes).await.unwrap() > 0, "closed: {bytes:?}");
        };
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Reply { status, head, body: bytes[at + 4..].to_vec() };
        let length: usize = reply.header("content-length").unwrap().parse().unwrap();
        while reply.body.len() < length {
            assert!(self.0.read_buf(&mut reply.body).await.unwrap() > 0);
        }
        reply
    }

    async fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send(method, path, headers, body).await;
        self.read().await
    }

    async fn next(&mut self) -> Reply {
        self.call("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await
    }

    async fn answer(&mut self, id: &str, body: &[u8]) -> Reply {
        self.call("POST", &format!("/2018-06-01/runtime/invocation/{id}/response"), &[], body).await
    }

    async fn fail(&mut self, id: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.call("POST", &format!("/2018-06-01/runtime/invocation/{id}/error"), headers, body).await
    }
}

fn invocation(id: &str) -> Invocation {
    Invocation { request_id: id.into(), payload: "{}".into(), ..Invocation::default() }
}

async fn all(mut answer: stoker_lambda::Answer) -> Vec<Said> {
    let mut all = Vec::new();
    while let Some(said) = answer.next().await {
        all.push(said);
    }
    all
}

fn head(content_type: Option<&str>, streams: bool) -> Said {
    Said::Head { content_type: content_type.map(str::to_owned), streams }
}

fn failed(said: Vec<Said>) -> Failure {
    match said.into_iter().next_back() {
        Some(Said::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}
