//! Collectors that have no room now, or go away in the middle, and what is sent to them again.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Mutex;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;
use crate::telemetry::export::Exporter;
use crate::telemetry::settings::Protocol;

/// How long after the first try the collector wants the second.
const AFTER: Duration = Duration::from_millis(300);

/// What a collector answers at each try; the last holds from then on.
type Answers = Vec<fn() -> Response<Body>>;

/// Sends a batch to a collector that answers so. What came of it, and when each try came.
async fn tried(protocol: Protocol, answers: Answers) -> (Result<usize, String>, Vec<Instant>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = format!("http://{}", listener.local_addr().unwrap());
    let tries = Arc::new(Mutex::new(Vec::new()));
    let (answers, noted) = (Arc::new(answers), tries.clone());
    let collector = async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (answers, noted) = (answers.clone(), noted.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                let (answers, noted) = (answers.clone(), noted.clone());
                async move {
                    request.into_body().collect().await.unwrap();
                    let mut tries = noted.lock().unwrap();
                    tries.push(Instant::now());
                    Ok::<_, Infallible>(answers[tries.len().min(answers.len()) - 1]())
                }
            });
            let stream = TokioIo::new(stream);
            tokio::spawn(async move {
                match protocol {
                    Protocol::Grpc => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(stream, answer).await.ok();
                    }
                    Protocol::HttpProtobuf => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(stream, answer).await.ok();
                    }
                }
            });
        }
    };
    let config = Config { protocol, timeout: Duration::from_secs(60), ..Config::default() };
    let mut exporter = Exporter::new(&config, Signal::Traces, to).unwrap();
    let nothing = Arc::default();
    let sent = tokio::select! {
        sent = exporter.export(&nothing) => sent.map_err(|failed| failed.why),
        never = pin!(collector) => match never {},
    };
    let tries = std::mem::take(&mut *tries.lock().unwrap());
    (sent, tries)
}

/// gRPC's words for `code`, with when to come again.
fn refused(code: Code, after: Option<Duration>) -> Response<Body> {
    let mut details = ErrorDetails::new();
    if after.is_some() {
        details.set_retry_info(after);
    }
    Status::with_error_details(code, "no room", details).into_http()
}

/// An answer by gRPC to a batch that was taken.
fn taken() -> Response<Body> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async move { Some(Ok(trailers)) });
    Response::new(Body::new(body))
}

fn http(status: u16, retry_after: Option<&str>) -> Response<Body> {
    let mut answer = Response::builder().status(status);
    if let Some(after) = retry_after {
        answer = answer.header("retry-after", after);
    }
    answer.body(Body::empty()).unwrap()
}

/// An answer that ends before its end.
fn broken() -> Response<Body> {
    let body = futures_util::stream::iter([
        Ok(hyper::body::Frame::data(Bytes::from_static(b"\0\0"))),
        Err(Status::internal("the connection ends")),
    ]);
    Response::new(Body::new(http_body_util::StreamBody::new(body)))
}

#[tokio::test]
async fn a_collector_is_asked_again_when_it_says() {
    let by_grpc: [Answers; 2] = [
        vec![|| refused(Code::ResourceExhausted, Some(AFTER)), taken],
        vec![|| refused(Code::Unavailable, Some(AFTER)), taken],
    ];
    for answers in by_grpc {
        let (sent, tries) = tried(Protocol::Grpc, answers).await;
        assert_eq!((sent, tries.len()), (Ok(0), 2));
        assert!(tries[1] - tries[0] >= AFTER, "it came {:?} later", tries[1] - tries[0]);
    }
    let answers: Answers = vec![|| http(429, Some("1")), || http(503, None), || http(200, None)];
    let (sent, tries) = tried(Protocol::HttpProtobuf, answers).await;
    assert_eq!((sent, tries.len()), (Ok(0), 3));
    assert!(tries[1] - tries[0] >= Duration::from_secs(1), "it came {:?} later", tries[1] - tries[0]);
}

#[tokio::test]
async fn what_ends_in_the_middle_is_sent_again_and_what_is_refused_is_not() {
    let (sent, tries) = tried(Protocol::Grpc, vec![broken, taken]).await;
    assert_eq!((sent, tries.len()), (Ok(0), 2));
    let (sent, tries) = tried(Protocol::HttpProtobuf, vec![broken, || http(200, None)]).await;
    assert_eq!((sent, tries.len()), (Ok(0), 2));
    for (protocol, answer) in [
        (Protocol::Grpc, (|| refused(Code::ResourceExhausted, None)) as fn() -> Response<Body>),
        (Protocol::Grpc, || refused(Code::Unauthenticated, None)),
        (Protocol::HttpProtobuf, || http(401, None)),
        (Protocol::HttpProtobuf, || http(500, None)),
    ] {
        let (sent, tries) = tried(protocol, vec![answer]).await;
        assert!(sent.is_err() && tries.len() == 1, "{sent:?} after {} tries", tries.len());
    }
}

#[tokio::test]
async fn a_connection_without_an_answer_is_not_used_again() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("http://{}", listener.local_addr().unwrap());
        let limit = Duration::from_millis(500);
        let config = Config { protocol, timeout: limit, ..Config::default() };
        let mut exporter = Exporter::new(&config, Signal::Traces, to).unwrap();
        let nothing = Arc::default();
        let (lost, first) = tokio::join!(exporter.export(&nothing), listener.accept());
        assert_eq!(lost.unwrap_err().why, "the collector took too long");
        let (_silent, second) = (first.unwrap(), listener.accept());
        let (lost, second) =
            tokio::join!(exporter.export(&nothing), tokio::time::timeout(limit * 10, second));
        assert!(lost.is_err() && second.is_ok(), "{protocol:?}: the next batch takes another connection");
    }
}
