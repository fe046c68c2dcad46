//! A server on a port: accepts, serves each connection, stops gracefully up to a limit.
//!
//! Ours and not tonic's, because tonic answers an expired `grpc-timeout` by itself and with the wrong status, and waits for ever
//! for open streams when it is told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use stoker_proto::stream_window;
use stoker_runtime::cork::Corked;
use stoker_runtime::tls::{self, Incoming as Connections, Tls};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

/// Two ways to end: `calm` takes no new connections and no new requests on the old ones; `now` drops what is left.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    pub calm: CancellationToken,
    pub now: CancellationToken,
}

/// Most bytes of the headers of one request, whatever they are for.
const HEADERS: usize = 256 << 10;

/// Bytes that may be on the way to us on a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves until told to stop. Each connection is a task of `tasks` and ends with either of `stops`; `service` makes what serves it.
pub async fn serve<F, S, B>(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    service: F,
    speaks: Speaks,
    tasks: TaskTracker,
    stops: Stops,
) where
    F: Fn(Arc<Origin>) -> S,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Send
        + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Wider than the limits on a call's headers, so that going over those is answered in our words.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .max_headers(1024)
        .max_buf_size(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(stoker_proto::HTTP2_FRAME)
        .max_concurrent_streams(10_000)
        .max_header_list_size(HEADERS as u32);
    if speaks == Speaks::Http2 {
        // Nobody who speaks gRPC reads the date.
        builder.http2().auto_date_header(false);
        builder = builder.http2_only();
    }
    let protocol = match speaks {
        Speaks::Http2 => tls::Speaks::Http2,
        Speaks::Both => tls::Speaks::Both,
    };
    let mut connections = Connections::new(listener, tls, protocol);
    loop {
        let accepted = tokio::select! {
            () = stops.calm.cancelled() => return,
            accepted = connections.next() => accepted,
        };
        // A port has no last connection.
        let Some(accepted) = accepted else { return };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, or a client that left at once: the next may do better, though not in this instant.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (mut builder, service, stops) = (builder.clone(), service(Origin::of(&stream)), stops.clone());
        builder.http2().initial_stream_window_size(stream_window(stream.remote()));
        tasks.spawn(async move {
            let stream = Corked::new(stream);
            let connection = builder.serve_connection(TokioIo::new(stream.clone()), service);
            let mut connection = std::pin::pin!(connection);
            let ended = tokio::select! {
                ended = stream.drive(connection.as_mut()) => ended,
                () = stops.calm.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = stream.drive(connection.as_mut()) => ended,
                        () = stops.now.cancelled() => return,
                    }
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}
