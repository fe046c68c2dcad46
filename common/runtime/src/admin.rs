//! The admin port: a small HTTP server for those who run the process.
//!
//! `/livez` answers as long as the process does, `/readyz` says whether it takes work and if not why, `/metrics` is for
//! Prometheus, `/config` shows the settings in effect. Every connection carries one request and has a limit of time, and there
//! are only so many, so that nobody can hold anything here.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::kind::ADDRESS;
use crate::config::{Key, Settings};
use crate::lifecycle::Readiness;
use crate::metrics::{MEDIA_TYPE, Metrics};
use crate::tls::{Secured, Speaks, Tls};

/// Connections at once; those beyond wait to be accepted.
const CONNECTIONS: usize = 64;

/// How long one connection may last, whatever its client does.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait before accepting again when the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Where the admin port is; each program has its own default.
#[must_use]
pub const fn listen(default: &'static str) -> Key<SocketAddr> {
    Key::new("admin_listen", ADDRESS, default, "Where /livez, /readyz, /metrics and /config are served")
}

/// What is shown.
#[derive(Debug)]
pub struct Pages {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// The settings in effect, as JSON.
    config: Arc<ArcSwap<Bytes>>,
}

/// Changes what the page of the settings shows.
#[derive(Debug, Clone)]
pub struct Shown(Arc<ArcSwap<Bytes>>);

impl Shown {
    /// These are in effect now.
    pub fn show(&self, settings: &Settings) {
        self.0.store(Arc::new(page(settings)));
    }
}

fn page(settings: &Settings) -> Bytes {
    format!("{:#}\n", settings.to_json()).into()
}

impl Pages {
    /// These settings, and what the others say at the time.
    #[must_use]
    pub fn new(readiness: Readiness, metrics: Metrics, settings: &Settings) -> Self {
        Self { readiness, metrics, config: Arc::new(ArcSwap::from_pointee(page(settings))) }
    }

    /// The page of the settings, for those who change them.
    #[must_use]
    pub fn shown(&self) -> Shown {
        Shown(self.config.clone())
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        const TEXT: &str = "text/plain; charset=utf-8";
        let (status, kind, text) = match request.uri().path() {
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "write GET\n".into())
            }
            "/livez" => (StatusCode::OK, TEXT, "alive\n".into()),
            "/readyz" => match self.readiness.why_not() {
                None => (StatusCode::OK, TEXT, "ready\n".into()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {why}\n").into()),
            },
            "/metrics" => (StatusCode::OK, MEDIA_TYPE, self.metrics.text().into()),
            "/config" => (StatusCode::OK, "application/json", Bytes::clone(&self.config.load())),
            _ => (StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz, /metrics and /config\n".into()),
        };
        let mut response = Response::new(Full::new(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// The server. Ends with [`Admin::stop`], at once when it is dropped.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    tasks: TaskTracker,
    calm: CancellationToken,
    now: DropGuard,
}

impl Admin {
    /// Listens and serves, in tasks of the current runtime.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(address: SocketAddr, pages: Pages, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (calm, now, tasks) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(listener, tls, Arc::new(pages), tasks.clone(), calm.clone(), now.clone()));
        Ok(Self { address, tasks, calm, now: now.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nobody any more, lets requests that run finish within `limit`, and cuts off what is left.
    pub async fn stop(self, limit: Duration) {
        self.calm.cancel();
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.ok();
        drop(self.now);
        self.tasks.wait().await;
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    pages: Arc<Pages>,
    tasks: TaskTracker,
    calm: CancellationToken,
    now: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let serve = async {
        // The semaphore is never closed.
        while let Ok(place) = room.clone().acquire_owned().await {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot accept a connection");
                    tokio::time::sleep(NO_ROOM).await;
                    continue;
                }
            };
            let (tls, pages, calm, now) = (tls.clone(), pages.clone(), calm.clone(), now.clone());
            tasks.spawn(async move {
                tokio::select! {
                    // A client that stays longer, or leaves in between, has its own reasons.
                    _ = tokio::time::timeout(PATIENCE, connection(stream, tls, pages, calm)) => {}
                    () = now.cancelled() => {}
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = serve => {}
        () = calm.cancelled() => {}
        () = now.cancelled() => {}
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    pages: Arc<Pages>,
    calm: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = match tls {
        Some(tls) => tls.accept(stream, Speaks::Http1).await?,
        None => Secured::plain(stream),
    };
    let answer = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(connection);
    tokio::select! {
        result = &mut connection => return Ok(result?),
        () = calm.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
