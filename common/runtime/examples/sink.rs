//! A collector of traces that takes all and keeps nothing, for measurements: on the machine that is measured it costs next to
//! nothing, which a real one does not.
//!
//! Prints where it listens, and serves until it is killed.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// An empty message: all was taken.
const TAKEN: &[u8] = &[0, 0, 0, 0, 0];

async fn export(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let mut body = request.into_body();
    // A sender that breaks off gets no answer that it could read.
    while let Some(Ok(_)) = body.frame().await {}
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let answer = Full::new(Bytes::from_static(TAKEN)).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(answer);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            // Ends with its connection.
            tokio::spawn(async move {
                let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                server.initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 20);
                server.serve_connection(TokioIo::new(stream), service_fn(export)).await.ok();
            });
        }
    })
}
