//! The doors against a balancer that only echoes, strict about the rules of the session.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::Stream;
use hdrhistogram::Histogram;
use stoker_core::call::WINDOW;
use stoker_proto::v1::call_service_server::{CallService, CallServiceServer};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::bench::Tally;

struct Echo;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + std::marker::Send>>;

#[tonic::async_trait]
impl CallService for Echo {
    type InvokeStreamStream = Answers<v1::InvokeStreamResponse>;
    type SessionStream = Answers<v1::SessionResponse>;

    async fn invoke(
        &self,
        request: Request<v1::InvokeRequest>,
    ) -> Result<Response<v1::InvokeResponse>, Status> {
        Ok(Response::new(v1::InvokeResponse { body: request.into_inner().body, ..Default::default() }))
    }

    async fn invoke_stream(
        &self,
        _: Request<Streaming<v1::InvokeStreamRequest>>,
    ) -> Result<Response<Self::InvokeStreamStream>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, receiver) = mpsc::channel(16);
        // Ends with the client's stream.
        tokio::spawn(async move {
            let mut open: HashMap<u64, Vec<u8>> = HashMap::new();
            while let Ok(Some(v1::SessionRequest { call, frame: Some(frame) })) = requests.message().await {
                let complete = match frame {
                    Send::Start(start) => {
                        assert!(start.body.len() <= CHUNK, "the first piece is too long");
                        assert!(open.insert(call, start.body.to_vec()).is_none(), "call {call} runs already");
                        start.complete
                    }
                    Send::Body(piece) => {
                        assert!(piece.data.len() <= CHUNK, "a piece is too long");
                        let body = open.get_mut(&call).expect("a body belongs to a call");
                        body.extend_from_slice(&piece.data);
                        piece.last
                    }
                    Send::Credit(_) => continue,
                    Send::Cancel(_) => panic!("nothing is cancelled here"),
                };
                let frame = if complete {
                    let body = open.remove(&call).expect("it was there").into();
                    Receive::Finished(v1::SessionFinished { body, ..Default::default() })
                } else {
                    Receive::Credit(v1::SessionCredit { bytes: WINDOW })
                };
                if answers.send(Ok(v1::SessionResponse { call, frame: Some(frame) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn balancer() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = CallServiceServer::new(Echo).max_decoding_message_size(8 << 20);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    // Ends with the test's runtime.
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    format!("http://{address}")
}

fn load(concurrency: usize, size: usize) -> Load {
    let latencies = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
    Load {
        function: "demo/echo".to_owned(),
        body: vec![b'x'; size].into(),
        concurrency,
        until: Instant::now() + Duration::from_millis(200),
        tally: Rc::new(RefCell::new(Tally { latencies, cold: 0, bytes: 0, errors: BTreeMap::new() })),
    }
}

fn all_came_back(load: &Load) {
    let tally = load.tally.borrow();
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);
    assert!(tally.latencies.len() >= load.concurrency as u64);
    assert_eq!(tally.bytes, tally.latencies.len() * load.body.len() as u64);
}

#[tokio::test]
async fn a_session_carries_small_and_large_bodies() {
    let server = balancer().await;
    for size in [0, 1024, CHUNK, CHUNK + 1, 200_000] {
        let load = load(7, size);
        session(client::connect(&server).await.unwrap(), &load).await.unwrap();
        all_came_back(&load);
    }
}

#[tokio::test]
async fn unary_calls_come_back() {
    let server = balancer().await;
    let load = load(3, 100_000);
    invoke(client::connect(&server).await.unwrap(), &load).await.unwrap();
    all_came_back(&load);
}

#[tokio::test]
async fn a_balancer_that_is_away_is_told_in_words() {
    let failure = client::connect("http://127.0.0.1:1").await.unwrap_err();
    assert!(failure.what.contains("no balancer answers at http://127.0.0.1:1"), "{}", failure.what);
    let failure = http("127.0.0.1:1/x y", &load(1, 1)).await.unwrap_err();
    assert!(failure.what.contains("is not an HTTP address"), "{}", failure.what);
}
