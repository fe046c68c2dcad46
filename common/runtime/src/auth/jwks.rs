//! Keeps the keys of issuers up to date that publish them at a URL: one task each, which asks now and then, and when somebody shows a token
//! whose key is not known. What cannot be read leaves the keys as they are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::jwt::{Issuer, Source};
use crate::tls::{self, Speaks};

/// Keys are asked for this often by themselves.
const OFTEN: Duration = Duration::from_secs(300);

/// And never more often than this, whatever tokens are shown. Tests have less patience.
const SELDOM: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 10_000 });

/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// And is no larger.
const LARGEST: usize = 1 << 20;

/// The tasks. They end when this is dropped.
#[derive(Debug)]
pub struct Keeper(#[expect(dead_code, reason = "ends the tasks when it is dropped")] DropGuard);

impl Keeper {
    /// Starts a task for each of these that needs one.
    #[must_use]
    pub fn start(issuers: &[Arc<Issuer>], tasks: &TaskTracker) -> Self {
        let stop = CancellationToken::new();
        for issuer in issuers.iter().filter(|issuer| matches!(issuer.source, Source::Url { .. })) {
            let (issuer, stop) = (issuer.clone(), stop.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = keep(&issuer) => {}
                }
            });
        }
        Self(stop.drop_guard())
    }
}

async fn keep(issuer: &Issuer) {
    loop {
        if let Err(why) = read(issuer).await {
            tracing::warn!(issuer = issuer.name(), why, "the keys of an issuer of tokens cannot be read");
            // Whoever waits need not wait longer.
            issuer.read.send_modify(|times| *times += 1);
        }
        tokio::time::sleep(SELDOM).await;
        tokio::select! {
            () = tokio::time::sleep(OFTEN) => {}
            () = issuer.wanted.notified() => {}
        }
    }
}

async fn read(issuer: &Issuer) -> Result<(), String> {
    let Source::Url { url, ca } = &issuer.source else { return Ok(()) };
    let answer = async {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let config = tls::client(ca.as_deref(), None, Speaks::Http1)?;
        let stream = TcpStream::connect((host, url.port_u16().unwrap_or(443))).await.map_err(text)?;
        let stream = tls::connect(Arc::new(config), host, stream).await.map_err(text)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let request = Request::get(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(HOST, url.authority().map_or(host, |authority| authority.as_str()))
            .header(ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(text)?;
        let ask = async {
            let answer = sender.send_request(request).await.map_err(text)?;
            if !answer.status().is_success() {
                return Err(format!("HTTP status {}", answer.status()));
            }
            let whole = Limited::new(answer.into_body(), LARGEST)
                .collect()
                .await
                .map_err(|error| error.to_string())?;
            Ok(whole.to_bytes())
        };
        tokio::pin!(ask, connection);
        tokio::select! {
            answer = &mut ask => answer,
            // However the connection ends, the answer may have come whole before.
            _ = &mut connection => ask.await,
        }
    };
    let answer =
        tokio::time::timeout(PATIENCE, answer).await.map_err(|_| format!("no answer in {PATIENCE:?}"))??;
    issuer.take(&answer)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
