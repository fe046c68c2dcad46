//! A server on a port: accepts, serves each connection, stops gracefully up to a limit.
//!
//! Ours and not tonic's, because tonic answers an expired `grpc-timeout` by itself and with the wrong status, and waits for ever
//! for open streams when it is told to stop.

mod answers;
mod client_progress;
mod connections;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use stoker_proto::stream_window;
use stoker_runtime::cork::Corked;
use stoker_runtime::net;
use stoker_runtime::tls::{self, Tls};
use tokio::io::AsyncRead;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answers::{Answers, Offering};
use self::client_progress::{ClientProgress, ProgressStream};
use self::connections::{ConnectionGuard, Port};
pub use self::connections::{Connections, possible, usual};
use crate::auth::Origin;

/// Listens on `address`.
pub async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} for {what}"))?;
    let bound = listener.local_addr().with_context(|| format!("cannot listen on {address} for {what}"))?;
    Ok((listener, bound))
}

/// Which HTTP versions a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 alone: gRPC.
    Http2,
    Both,
}

/// Two ways to end: `calm` takes no new connections, and tells those that there are to end, see [`PARTING`]; `now` drops what is left.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    pub calm: CancellationToken,
    pub now: CancellationToken,
}

/// Most bytes of the headers of one request, whatever they are for.
const HEADERS: usize = 256 << 10;

/// A client has so long to say what it wants: for what it begins with, and for the head of each request by HTTP/1.
const HEAD: Duration = Duration::from_secs(30);

/// How long a connection lasts of which there is one too many: its client is told so, and that it should go.
const TELLING: Duration = Duration::from_secs(2);

/// By HTTP/1 nobody can be told that a request which is on its way to us was not taken: its client finds the connection closed, and cannot know. So a
/// connection that rests when all are to end is kept for so long, and who asks meanwhile is told by the answer that it is the last one. Who was let in by
/// the system and has not come to us yet has as long.
const PARTING: Duration = Duration::from_millis(500);

/// What a client sends after we closed breaks the connection under what it has not read yet. So it may read for so long, and what it sends is thrown away.
const HEARING: Duration = Duration::from_secs(1);

/// Bytes that may be on the way to us on a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves until told to stop. Each connection is a task of `tasks` and ends with either of `stops`; `service` makes what serves it, which must not serve one
/// whose [`Origin`] is refused.
pub async fn serve<F, S, B>(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    service: F,
    speaks: Speaks,
    mut port: Port,
    tasks: TaskTracker,
    stops: Stops,
) where
    F: Fn(Arc<Origin>) -> S,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Send
        + 'static,
    S::Future: Send + Unpin,
    B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + Unpin,
{
    let protocol = match speaks {
        Speaks::Http2 => tls::Speaks::Http2,
        Speaks::Both => tls::Speaks::Both,
    };
    if let Err(error) = net::gives_up_after(&listener, port.patience()) {
        tracing::warn!(%error, "who takes nothing of an answer cannot be given up");
    }
    let mut connections = tls::Incoming::new(listener, tls, protocol).counting(port.handshakes());
    let parted = async {
        stops.calm.cancelled().await;
        tokio::time::sleep(PARTING).await;
    };
    let mut parted = std::pin::pin!(parted);
    loop {
        let ends = stops.calm.is_cancelled();
        // Those that the system has let in are served: their requests may be here.
        if ends && !connections.is_expecting() {
            return;
        }
        let accepted = tokio::select! {
            biased;
            () = stops.now.cancelled() => return,
            () = parted.as_mut() => return,
            () = stops.calm.cancelled(), if !ends => continue,
            accepted = connections.next() => accepted,
        };
        // A port has no last connection.
        let Some(accepted) = accepted else { return };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or a client that left at once: the next may do better, though not in this instant.
                port.cannot_accept(&error);
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Some(guard) = port.enter(&stream) else { continue };
        let (remote, stops, patience) = (stream.remote(), stops.clone(), port.patience());
        let service = service(Origin::of(&stream, guard.address().cloned(), guard.refusal()));
        tasks.spawn(async move {
            let (stream, progress) = ProgressStream::new(stream);
            let stream = Corked::new(stream);
            let service = Offering { service, holds: stream.holds(), progress: progress.clone() };
            let answers = Answers::new(progress.clone(), patience, guard.deaf().clone());
            let builder = builder(speaks, remote, answers);
            let connection = builder.serve_connection(TokioIo::new(stream.clone()), service);
            let mut connection = std::pin::pin!(connection);
            let served = async {
                tokio::select! {
                    ended = stream.drive(connection.as_mut()) => return ended,
                    () = leave(&stops.calm, &guard, TELLING) => {}
                }
                if stops.calm.is_cancelled() && speaks == Speaks::Both && !progress.is_http2() {
                    progress.part();
                    tokio::select! {
                        biased;
                        ended = stream.drive(connection.as_mut()) => return ended,
                        () = stops.now.cancelled() => return Ok(()),
                        () = tokio::time::sleep(PARTING) => {}
                    }
                }
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = stream.drive(connection.as_mut()) => ended,
                    () = leave(&stops.now, &guard, TELLING) => Ok(()),
                }
            };
            let ended = tokio::select! {
                ended = served => ended,
                () = silence(&progress) => {
                    guard.was_silent();
                    return;
                }
            };
            if let Err(error) = ended {
                if progress.is_deaf() {
                    guard.was_deaf();
                } else if progress.has_begun() && is_timeout(&*error) {
                    guard.was_silent();
                }
                tracing::debug!(%error, "a connection ended");
            } else if stops.calm.is_cancelled() {
                tokio::select! {
                    () = stops.now.cancelled() => {}
                    () = hear_out(stream) => {}
                }
            }
        });
    }
}

/// How a connection from there is served.
fn builder(speaks: Speaks, remote: Option<SocketAddr>, answers: Answers) -> auto::Builder<Answers> {
    let mut builder = auto::Builder::new(answers);
    // Wider than the limits on a call's headers, so that going over those is answered in our words.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(1024)
        .max_buf_size(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .initial_stream_window_size(stream_window(remote))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(stoker_proto::HTTP2_FRAME)
        .max_concurrent_streams(10_000)
        .max_header_list_size(HEADERS as u32);
    if speaks == Speaks::Http2 {
        // Nobody who speaks gRPC reads the date.
        builder.http2().auto_date_header(false);
        builder = builder.http2_only();
    }
    builder
}

/// Returns when a connection should end: all do, or there is one too many and it has had its `time`.
async fn leave(stop: &CancellationToken, guard: &ConnectionGuard, time: Duration) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time), if guard.is_beyond() => {}
    }
}

/// Lets a client read what was said last, see [`HEARING`]. Our side is closed.
async fn hear_out(mut client: impl AsyncRead + Unpin) {
    tokio::time::timeout(HEARING, tokio::io::copy(&mut client, &mut tokio::io::sink())).await.ok();
}

/// Returns when it is not clear what a client speaks though it had its time to say so. A protocol that has begun has limits of its own.
async fn silence(progress: &ClientProgress) {
    tokio::time::sleep(HEAD).await;
    if progress.is_clear() {
        std::future::pending().await
    }
}

/// Whether a connection ended since the head of a request took too long.
fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout)
}
