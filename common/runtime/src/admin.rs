//! The admin port: a small HTTP server for those who run the process.
//!
//! `/livez` answers as long as the process does, `/readyz` says whether it takes work and if not why, `/metrics` is for
//! Prometheus, `/config` shows the settings in effect; a program that has a page for people ([`Live`]) shows it at `/`, what is on it as JSON at
//! `/fleet`, and the same at every beat at `/events`. The first two answer everybody, all others those who may look ([`Viewers`]). Every connection
//! carries one request and has a limit of time, and there are only so many, so that nobody can hold anything here.

mod live;
#[cfg(test)]
mod tests;
mod viewers;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::live::Events;
pub use self::live::Live;
pub use self::viewers::Viewers;
use crate::config::kind::ADDRESS;
use crate::config::{Key, Settings};
use crate::lifecycle::Readiness;
use crate::metrics::{Form, Metrics};
use crate::tls::{self, Secured, Speaks, Tls};

/// Connections at once; those beyond wait to be accepted.
const CONNECTIONS: usize = 64;

/// How long one connection may last, whatever its client does.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same for one who watches the page; the browser comes back by itself.
const WATCH: Duration = Duration::from_secs(600);

/// How long to wait before accepting again when the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// Where the admin port is; each program has its own default.
#[must_use]
pub const fn listen(default: &'static str) -> Key<SocketAddr> {
    Key::new("admin_listen", ADDRESS, default, "Where /livez, /readyz, /metrics and /config are served")
}

/// What is shown.
pub struct Pages {
    pub readiness: Readiness,
    pub metrics: Metrics,
    /// The settings in effect, as JSON.
    config: Arc<ArcSwap<Bytes>>,
    live: Option<Arc<Live>>,
    viewers: Viewers,
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
        let config = Arc::new(ArcSwap::from_pointee(page(settings)));
        Self { readiness, metrics, config, live: None, viewers: Viewers::default() }
    }

    /// The page of the settings, for those who change them.
    #[must_use]
    pub fn shown(&self) -> Shown {
        Shown(self.config.clone())
    }

    /// And this page for people.
    #[must_use]
    pub fn live(self, live: Live) -> Self {
        Self { live: Some(Arc::new(live)), ..self }
    }

    /// For these to look at.
    #[must_use]
    pub fn viewers(self, viewers: Viewers) -> Self {
        Self { viewers, ..self }
    }

    /// `open`: not only those on this machine reach the port. `stay` is told where the answer goes on for long, which it does until `stop`.
    fn answer<B>(
        &self,
        request: &Request<B>,
        open: bool,
        stay: &CancellationToken,
        stop: &CancellationToken,
    ) -> Response<Either<Full<Bytes>, Events>> {
        let (status, kind, text) = match request.uri().path() {
            _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "write GET\n".into())
            }
            "/livez" => (StatusCode::OK, TEXT, "alive\n".into()),
            "/readyz" => match self.readiness.why_not() {
                None => (StatusCode::OK, TEXT, "ready\n".into()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {why}\n").into()),
            },
            "/metrics" => {
                let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
                let form = Form::accepted(accept.unwrap_or_default());
                (StatusCode::OK, form.media_type(), self.metrics.text_as(form).into())
            }
            "/config" => (StatusCode::OK, JSON, Bytes::clone(&self.config.load())),
            path => match &self.live {
                Some(live) if matches!(path, "/" | "/fleet" | "/events") => {
                    return watch(live, request, open, stay, stop);
                }
                Some(_) => (
                    StatusCode::NOT_FOUND,
                    TEXT,
                    "there are /, /fleet, /livez, /readyz, /metrics and /config\n".into(),
                ),
                None => {
                    (StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz, /metrics and /config\n".into())
                }
            },
        };
        let mut response = whole(status, kind, text);
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn whole(status: StatusCode, kind: &'static str, text: Bytes) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Left(Full::new(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The page for people and what belongs to it.
fn watch<B>(
    live: &Arc<Live>,
    request: &Request<B>,
    open: bool,
    stay: &CancellationToken,
    stop: &CancellationToken,
) -> Response<Either<Full<Bytes>, Events>> {
    if !open && !live::is_named_from_here(request.headers()) {
        let text = "this port is for this machine: call it localhost, or by its address\n";
        return whole(StatusCode::MISDIRECTED_REQUEST, TEXT, text.into());
    }
    let mut response = match request.uri().path() {
        "/" => whole(StatusCode::OK, "text/html; charset=utf-8", live.page()),
        "/fleet" => whole(StatusCode::OK, JSON, live.now()),
        // Without a body, that would hold a place for nothing.
        _ if *request.method() == Method::HEAD => whole(StatusCode::OK, EVENTS, Bytes::new()),
        _ => match live.events(stop.clone()) {
            Some(events) => {
                stay.cancel();
                let mut response = Response::new(Either::Right(events));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENTS));
                response
            }
            None => {
                let text = "as many watch as there is room for\n";
                whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, text.into())
            }
        },
    };
    live.guard(response.headers_mut());
    response
}

const EVENTS: &str = "text/event-stream";

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
        let port =
            Port { pages, tls, open: tls::open_to_others(address), calm: calm.clone(), now: now.clone() };
        tasks.spawn(Arc::new(port).accept(listener, tasks.clone()));
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

/// What every connection of the server needs.
struct Port {
    pages: Pages,
    tls: Option<Arc<Tls>>,
    /// Whoever is on another machine reaches it.
    open: bool,
    /// No connection is accepted any more; requests that run finish.
    calm: CancellationToken,
    /// Everything ends.
    now: CancellationToken,
}

impl Port {
    async fn accept(self: Arc<Self>, listener: TcpListener, tasks: TaskTracker) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let serve = async {
            // The semaphore is never closed.
            while let Ok(place) = room.clone().acquire_owned().await {
                let (stream, remote) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "the admin port cannot accept a connection");
                        tokio::time::sleep(NO_ROOM).await;
                        continue;
                    }
                };
                let port = self.clone();
                tasks.spawn(async move {
                    let stay = CancellationToken::new();
                    tokio::select! {
                        // A client that stays longer, or leaves in between, has its own reasons.
                        _ = port.connection(stream, remote, &stay) => {}
                        () = patience(&stay) => {}
                        () = port.now.cancelled() => {}
                    }
                    drop(place);
                });
            }
        };
        tokio::select! {
            () = serve => {}
            () = self.calm.cancelled() => {}
            () = self.now.cancelled() => {}
        }
    }

    /// Serves the one request of a connection. `stay` is cancelled where it is that of one who watches.
    async fn connection(
        self: &Arc<Self>,
        stream: TcpStream,
        remote: SocketAddr,
        stay: &CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = match &self.tls {
            Some(tls) => tls.accept(stream, Speaks::Http1).await?,
            None => Secured::plain(stream),
        };
        let (peer, remote) = (stream.peer().cloned(), remote.to_string());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (port, peer, remote, stay) = (self.clone(), peer.clone(), remote.clone(), stay.clone());
            async move {
                let (page, pages) = (request.uri().path(), &port.pages);
                if !matches!(page, "/livez" | "/readyz")
                    && let Err(refused) =
                        pages.viewers.let_in(page, request.headers(), peer.as_deref(), &remote).await
                {
                    let mut response = whole(refused.status, TEXT, refused.text.into());
                    refused.challenge(response.headers_mut());
                    return Ok(response);
                }
                Ok::<_, Infallible>(pages.answer(&request, port.open, &stay, &port.calm))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        tokio::select! {
            result = &mut connection => return Ok(result?),
            () = self.calm.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

/// Returns when a connection has lasted as long as it may.
async fn patience(stay: &CancellationToken) {
    tokio::time::sleep(PATIENCE).await;
    if stay.is_cancelled() {
        tokio::time::sleep(WATCH).await;
    }
}
