//! The doors against a balancer that only echoes, strict about the rules of the session.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::pin::Pin;
use std::time::Duration;

use clap::Parser as _;
use futures_util::Stream;
use stoker_core::call::{LEAST_WINDOW, PIECE};
use stoker_proto::v1::call_service_server::{CallService, CallServiceServer};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::args::{Cli, Command};

/// Gives so much credit at first, and then as much again for each piece.
struct Echo {
    window: u32,
}

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

    async fn submit(&self, _: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn get_call(
        &self,
        _: Request<v1::GetCallRequest>,
    ) -> Result<Response<v1::GetCallResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn wait_call(
        &self,
        _: Request<v1::WaitCallRequest>,
    ) -> Result<Response<v1::WaitCallResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn cancel_call(
        &self,
        _: Request<v1::CancelCallRequest>,
    ) -> Result<Response<v1::CancelCallResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn redrive_call(
        &self,
        _: Request<v1::RedriveCallRequest>,
    ) -> Result<Response<v1::RedriveCallResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn list_calls(
        &self,
        _: Request<v1::ListCallsRequest>,
    ) -> Result<Response<v1::ListCallsResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let window = self.window;
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
                        assert!(piece.data.len() <= longest_piece(window), "a piece is too long");
                        let body = open.get_mut(&call).expect("a body belongs to a call");
                        body.extend_from_slice(&piece.data);
                        piece.last
                    }
                    Send::Credit(_) => continue,
                    Send::Cancel(_) | Send::Trailers(_) => {
                        panic!("nothing is cancelled here, and nothing follows")
                    }
                };
                let frame = if complete {
                    let body = open.remove(&call).expect("it was there").into();
                    Receive::Finished(Box::new(v1::SessionFinished { body, ..Default::default() }))
                } else {
                    Receive::Credit(v1::SessionCredit { bytes: window })
                };
                if answers.send(Ok(v1::SessionResponse { call, frame: Some(frame) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn balancer(window: u32) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = CallServiceServer::new(Echo { window }).max_decoding_message_size(8 << 20);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    // Ends with the test's runtime.
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    format!("http://{address}")
}

fn load(concurrency: usize, size: usize, pause: u64) -> Load {
    let (size, pause) = (size.to_string(), format!("{pause}ms"));
    let words =
        ["stoker", "bench", "demo/echo", "-c", &concurrency.to_string(), "-s", &size, "--pause", &pause];
    let Command::Bench(args) = Cli::try_parse_from(words).unwrap().command else { panic!("it is a bench") };
    Load::new(&args, &args.function, Duration::from_millis(200))
}

fn all_came_back(load: &Load) {
    let tally = load.tally.borrow();
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);
    assert!(tally.latencies.len() >= load.concurrency as u64);
    assert_eq!(tally.bytes, tally.latencies.len() * load.body.len() as u64);
}

#[tokio::test]
async fn a_session_carries_small_and_large_bodies() {
    // The first as a balancer of an earlier release does, which takes no longer pieces.
    for window in [LEAST_WINDOW, WINDOW] {
        let server = balancer(window).await;
        for size in [0, 1024, CHUNK, CHUNK + 1, CHUNK + PIECE, 300_000] {
            let load = load(7, size, 0);
            session(Connection::open(&server).await.ok().unwrap(), &load).await.unwrap();
            all_came_back(&load);
        }
    }
}

#[tokio::test]
async fn unary_calls_come_back() {
    let server = balancer(WINDOW).await;
    let load = load(3, 100_000, 0);
    invoke(Connection::open(&server).await.ok().unwrap(), &load).await.unwrap();
    all_came_back(&load);
}

#[tokio::test]
async fn callers_that_rest_come_back_too() {
    let server = balancer(WINDOW).await;
    let resting = load(5, 10, 20);
    session(Connection::open(&server).await.ok().unwrap(), &resting).await.unwrap();
    all_came_back(&resting);
    let resting = load(2, 10, 20);
    invoke(Connection::open(&server).await.ok().unwrap(), &resting).await.unwrap();
    all_came_back(&resting);
}

/// A function of one connection at a time: answers with the body, and insists on what a runner says.
fn function(listener: &std::os::unix::net::UnixListener) {
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        let mut seen = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = connection.read(&mut piece) {
            seen.extend_from_slice(&piece[..count]);
            let Some(head) = seen.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let text = String::from_utf8(seen[..head].to_vec()).unwrap().to_lowercase();
            assert!(text.starts_with("post /call http/1.1") && text.contains("fn-deadline: "), "{text}");
            let length = text.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
            let length: usize = length.parse().unwrap();
            if seen.len() < head + 4 + length {
                continue;
            }
            let body = seen.split_off(head + 4);
            write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").unwrap();
            connection.write_all(&body).unwrap();
            seen.clear();
        }
    }
}

#[tokio::test]
async fn a_function_is_called_at_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lsnr.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || function(&listener));
    for size in [0, 1024, 100_000] {
        let load = load(1, size, 0);
        http(&Target::socket(path.clone()), &load).await.unwrap();
        all_came_back(&load);
    }
    let failure = http(&Target::socket("/nowhere/x.sock".into()), &load(1, 1, 0)).await.unwrap_err();
    assert!(failure.what().contains("no function listens on /nowhere/x.sock"), "{}", failure.what());
}

#[tokio::test]
async fn what_is_no_http_address_is_told_in_words() {
    for wrong in ["127.0.0.1:1/x y", "ftp://127.0.0.1:1"] {
        assert!(Target::balancer(wrong, Door::Http, "demo/echo").is_err(), "{wrong}");
    }
    for good in ["127.0.0.1:1", "http://127.0.0.1:1/", "https://127.0.0.1:1"] {
        assert_eq!(Target::balancer(good, Door::Http, "demo/echo").ok().unwrap().host, "127.0.0.1:1");
    }
}

#[test]
fn errors_of_the_balancer_are_told_from_what_functions_answer() {
    let load = load(1, 0, 0);
    let head = |status: u16, headers: &[(&'static str, &'static str)]| {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    };
    let ours = br#"{"message": "full", "code": "OVERLOADED", "blame": "platform"}"#;
    refused(&load, &head(503, &[]), ours);
    refused(&load, &head(418, &[]), b"{\"code\": 7}");
    refused(&load, &head(200, &[(FUNCTION_ERROR, "Unhandled")]), b"{\"errorType\": \"E\"}");
    refused(&load, &head(404, &[(ERROR_TYPE, "ResourceNotFoundException")]), b"{}");
    let tally = load.tally.borrow();
    let seen: Vec<_> =
        tally.errors.iter().map(|(reason, (_, error))| (reason.as_str(), error.code)).collect();
    let expected = [
        ("HTTP 418", Code::FunctionFailed),
        ("OVERLOADED", Code::Overloaded),
        ("ResourceNotFoundException", Code::InvalidRequest),
        ("Unhandled", Code::FunctionFailed),
    ];
    assert_eq!(seen, expected);
}
