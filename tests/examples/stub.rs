//! Runners without containers, for measurements of a balancer alone: each registers with etcd, takes every call and answers with what it
//! was given, as an idle container would. `stub ETCD [RUNNERS]`; writes a line once they are registered and ends with its STDIN.
//!
//! One thread for all, and nothing on the way from a frame to its answer but the frame's codec.

use std::convert::Infallible;
use std::io::Read as _;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use stoker_core::{Capacity, Resources};
use stoker_proto::frames::{Decoded, Encoded};
use stoker_proto::runner::v1::engage_request::Frame as In;
use stoker_proto::runner::v1::engage_response::Frame as Out;
use stoker_proto::runner::v1::{self as wire, EngageRequest, EngageResponse};
use stoker_proto::{HTTP2_FRAME, MAX_FRAME, SESSION_VERSION, convert, v1};
use stoker_registry::{EtcdRegistry, Registry as _, conformance, etcd};
use tokio::net::TcpListener;

/// Calls that start at once, by a runner's word: more than anybody makes.
const IDLE: u32 = 10_000;

/// A runner's answer to a frame, if it has one.
fn answer(record: &Capacity, frame: EngageRequest) -> Option<EngageResponse> {
    let frame = match frame.frame? {
        In::Hello(_) => Out::Welcome(Box::new(wire::Welcome {
            version: SESSION_VERSION,
            capacity: Some(convert::to_capacity(record)),
            software: "stub".to_owned(),
        })),
        In::Offer(offer) => Out::Finished(Box::new(wire::Finished {
            call: offer.call,
            head: Some(v1::ResponseHead { status: 200, ..Default::default() }),
            body: offer.body,
            timings: Some(v1::Timings { first_byte_us: 20, execution_us: 25, ..Default::default() }),
            usage: Some(wire::Usage { memory_peak: 1 << 20, cpu_us: 1 }),
            container: "0123456789abcdef-1".to_owned(),
            warmth: Some(v1::Warmth { digest: offer.digest, idle: IDLE, busy: 1, waiting: 0 }),
            ..Default::default()
        })),
        In::Ping(ping) => Out::Pong(wire::Pong { number: ping.number }),
        _ => return None,
    };
    Some(EngageResponse { frame: Some(frame) })
}

async fn serve(listener: TcpListener, record: Capacity) {
    loop {
        let (stream, _) = listener.accept().await.expect("a balancer connects");
        stream.set_nodelay(true).expect("it is TCP");
        let record = record.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let record = record.clone();
            let frames = Decoded::<_, EngageRequest>::request(request.into_body(), MAX_FRAME);
            let answers = frames.filter_map(move |frame| {
                let answer = frame.map(|frame| answer(&record, frame)).transpose();
                std::future::ready(answer)
            });
            let mut response = Response::new(Encoded::answer(answers));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(HTTP2_FRAME)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended: {error}");
            }
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let endpoint = arguments.first().expect("the address of etcd").clone();
    let runners = arguments.get(1).map_or(1, |word| word.parse().expect("a number of runners"));
    let registry = EtcdRegistry::connect(etcd::Config::new(vec![endpoint])).expect("the address is right");
    let mut registrations = Vec::new();
    for n in 0..runners {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let total = Resources { memory: 1 << 40, cpu_millis: 1_000_000, slots: 2 * IDLE };
        let address = format!("http://{}", listener.local_addr()?);
        let record = Capacity { total, free: total, address, ..conformance::runner(&format!("stub-{n:04}")) };
        registrations.push(registry.register(record.clone()).await.expect("it can be registered"));
        tokio::spawn(serve(listener, record));
    }
    for registration in &registrations {
        let mut known = registration.known();
        let known = tokio::time::timeout(Duration::from_secs(30), known.wait_for(|known| *known)).await;
        known.expect("etcd answers").expect("the registration lives");
    }
    println!("{runners} registered");
    let over = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    over.await.expect("nobody panics")?;
    Ok(())
}
