//! What follows a body: from the caller into the function, and from the function to callers that read it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use stoker_core::{Format, FunctionSpec};
use stoker_proto::v1;
use stoker_proto::v1::invoke_stream_response::Frame as Streamed;
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_tests::calls::Clients;
use stoker_tests::fleet::Plan;
use stoker_tests::functions::{APP, Change as _, function};
use stoker_tests::within;
use tokio::net::TcpStream;

/// The function over its socket, and over its pipes.
fn functions() -> [FunctionSpec; 2] {
    [("socket", Format::HttpStream), ("pipes", Format::Http)].map(|(name, format)| {
        let mut spec = function(name, &["python3", "trailers.py"]);
        spec.format = format;
        spec.with_workdir(&directory()).with_trigger(&format!("/{name}"))
    })
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("functions")
}

/// What a caller says.
#[derive(Debug, Clone, Copy)]
struct Asks {
    http2: bool,
    /// It reads what follows the answer.
    reads: bool,
    /// It says something behind its own body.
    says: bool,
    size: usize,
}

/// What it hears.
#[derive(Debug)]
struct Heard {
    headers: HeaderMap,
    /// What the function was told.
    told: Value,
    /// How much of the body came back.
    size: usize,
    trailers: HeaderMap,
}

async fn ask(clients: &Clients, path: &str, asks: Asks) -> Heard {
    let mut said = HeaderMap::new();
    if asks.says {
        for (name, value) in [("x-client", "of the caller"), ("fn-deadline", "forged")] {
            said.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    let pieces = vec![b'x'; asks.size];
    let data = pieces.chunks(20_000).map(|piece| Frame::data(Bytes::copy_from_slice(piece)));
    let frames = data.chain((!said.is_empty()).then(|| Frame::trailers(said))).map(Ok::<_, std::io::Error>);
    let body = StreamBody::new(stream::iter(frames.collect::<Vec<_>>()));
    let mut request = Request::post(format!("http://{}{path}", clients.http));
    if !asks.http2 {
        request = request.header("host", clients.http.to_string());
        request = request.header("trailer", "x-client, fn-deadline");
    }
    if asks.reads {
        request = request.header("te", "trailers");
    }
    let request = request.body(body).unwrap();
    let stream = TokioIo::new(TcpStream::connect(clients.http).await.unwrap());
    let (answer, connection) = if asks.http2 {
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        let connection = tokio::spawn(async move { _ = connection.await });
        (within("an answer", send.send_request(request)).await.unwrap(), connection)
    } else {
        let (mut send, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move { _ = connection.await });
        (within("an answer", send.send_request(request)).await.unwrap(), connection)
    };
    let (head, body) = answer.into_parts();
    let body = within("the rest of it", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = body.to_bytes();
    connection.abort();
    let end = body.iter().position(|b| *b == b'\n').unwrap_or_else(|| panic!("{head:?} {body:?}"));
    let told = serde_json::from_slice(&body[..end]).unwrap();
    Heard { headers: head.headers, told, size: body.len() - end - 1, trailers }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_go_both_ways_where_http_has_a_place_for_them() {
    let fleet = Plan::default().start(functions()).await;
    for name in ["socket", "pipes"] {
        for path in [format!("/invoke/{APP}/{name}"), format!("/t/{APP}/{name}")] {
            // Headers of an HTTP client are marked as such where the format has its own.
            let prefix = if name == "socket" && path.starts_with("/t/") { "Fn-Http-H-" } else { "" };
            let of = |http2, reads, says, size| Asks { http2, reads, says, size };
            for asks in [
                of(false, true, true, 3),
                of(false, true, false, 3),
                of(false, false, true, 3),
                of(false, true, true, 300_000),
                of(true, false, true, 3),
                of(true, true, true, 300_000),
                of(true, false, true, 0),
            ] {
                let heard = ask(&fleet.clients, &path, asks).await;
                let about = format!("{path} {asks:?}: {heard:?}");
                assert_eq!(heard.size, asks.size, "{about}");
                // To the function.
                assert_eq!(heard.told["te"] == "trailers", asks.reads, "{about}");
                let said = match asks.says {
                    true => json!([[format!("{prefix}x-client"), "of the caller"]]),
                    false => json!([]),
                };
                assert_eq!(heard.told["trailers"], said, "{about}");
                if !asks.http2 {
                    assert_eq!(heard.told["trailer"], format!("{prefix}x-client"), "{about}");
                }
                // And back. HTTP/1.1 lets through what was announced.
                let reads = asks.reads || asks.http2;
                let size = asks.size.to_string();
                assert_eq!(text(&heard.trailers, "x-sum"), reads.then_some(size.as_str()), "{about}");
                assert_eq!(text(&heard.trailers, "x-late"), asks.http2.then_some("1"), "{about}");
                for never in ["content-length", "set-cookie", "fn-call-id", "host"] {
                    assert!(!heard.trailers.contains_key(never), "{about}");
                }
                let announced = text(&heard.headers, "trailer").map(str::to_ascii_lowercase);
                assert_eq!(announced.as_deref(), reads.then_some("x-sum"), "{about}");
            }
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_every_kind_see_the_trailers_of_an_answer() {
    let fleet = Plan::default().start(functions()).await;
    let url = format!("http://{}/t/{APP}/socket", fleet.clients.http);
    for (te, sees) in [("TE: trailers", true), ("TE: gzip", false)] {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["-sS", "--raw", "--max-time", "30", "-d", "abc", "-H", te, &url]).stderr(Stdio::inherit());
        let output = within("curl", curl.output()).await.expect("curl is there");
        let raw = String::from_utf8_lossy(&output.stdout);
        assert_eq!(raw.to_ascii_lowercase().ends_with("\r\n0\r\nx-sum: 3\r\n\r\n"), sees, "{raw:?}");
        assert_eq!(raw.to_ascii_lowercase().contains("x-sum"), sees, "{raw:?}");
    }
    // By gRPC they are a field of the answer.
    let sum = |trailers: &[v1::Header]| {
        let found = trailers.iter().find(|trailer| trailer.name.eq_ignore_ascii_case("x-sum"));
        found.map(|trailer| String::from_utf8_lossy(&trailer.value).into_owned())
    };
    for (name, size) in [("socket", 3usize), ("pipes", 200_000)] {
        let (body, function) = (Bytes::from(vec![b'x'; size]), format!("{APP}/{name}"));
        let message =
            v1::InvokeRequest { function: function.clone(), body: body.clone(), ..Default::default() };
        let answer = fleet.clients.calls().invoke(message).await.unwrap().into_inner();
        assert_eq!(sum(&answer.trailers), Some(size.to_string()), "{answer:?}");

        let start = v1::CallStart { function: function.clone(), head: None };
        let frame = v1::invoke_stream_request::Frame::Start(start);
        let frames = vec![v1::InvokeStreamRequest { frame: Some(frame) }];
        let mut answers =
            fleet.clients.calls().invoke_stream(stream::iter(frames)).await.unwrap().into_inner();
        let mut end = None;
        while let Some(message) = within("a frame", answers.message()).await.unwrap() {
            if let Some(Streamed::End(last)) = message.frame {
                end = Some(last);
            }
        }
        assert_eq!(sum(&end.expect("an end").trailers), Some("0".to_owned()));

        let first = body.slice(..size.min(1000));
        let start = v1::SessionStart { function, body: first.clone(), complete: true, ..Default::default() };
        let frames = vec![v1::SessionRequest { call: 1, frame: Some(In::Start(start)) }];
        let mut answers = fleet.clients.calls().session(stream::iter(frames)).await.unwrap().into_inner();
        let finished = loop {
            let message = within("a frame", answers.message()).await.unwrap().expect("it is not over");
            if let Some(Out::Finished(finished)) = message.frame {
                break finished;
            }
        };
        assert_eq!(sum(&finished.trailers), Some(first.len().to_string()), "{finished:?}");
    }
    fleet.end().await;
}

/// What a caller says behind its body, of which one name has no place there.
fn said() -> Vec<v1::Header> {
    let header = |name: &str, value: &'static str| v1::Header { name: name.into(), value: value.into() };
    vec![header("x-client", "of the caller"), header("content-length", "7")]
}

/// What the function was told of it, and how much of the body came back.
fn told(answer: &[u8]) -> (Value, usize) {
    let end = answer.iter().position(|b| *b == b'\n').unwrap_or_else(|| panic!("{answer:?}"));
    let told: Value = serde_json::from_slice(&answer[..end]).unwrap();
    (told["trailers"].clone(), answer.len() - end - 1)
}

async fn streamed(
    clients: &Clients,
    function: &str,
    frames: Vec<v1::invoke_stream_request::Frame>,
) -> Result<Vec<u8>, tonic::Status> {
    let start = v1::CallStart { function: function.to_owned(), head: None };
    let start = std::iter::once(v1::invoke_stream_request::Frame::Start(start));
    let frames = start.chain(frames).map(|frame| v1::InvokeStreamRequest { frame: Some(frame) });
    let frames = stream::iter(frames.collect::<Vec<_>>());
    let mut answers = clients.calls().invoke_stream(frames).await?.into_inner();
    let mut body = Vec::new();
    while let Some(message) = within("a frame", answers.message()).await? {
        if let Some(Streamed::Body(piece)) = message.frame {
            body.extend_from_slice(&piece);
        }
    }
    Ok(body)
}

/// One call in a session of its own: begun with a part of its body, and ended with what is said behind it.
async fn in_session(
    clients: &Clients,
    function: &str,
    body: &[u8],
    trailers: Vec<v1::Header>,
) -> Result<Vec<u8>, v1::CallError> {
    let (send, frames) = tokio::sync::mpsc::channel(64);
    let say = async |frame| send.send(v1::SessionRequest { call: 1, frame: Some(frame) }).await.unwrap();
    let (first, rest) = body.split_at(body.len().min(1000));
    let start = v1::SessionStart {
        function: function.to_owned(),
        body: Bytes::copy_from_slice(first),
        ..Default::default()
    };
    say(In::Start(start)).await;
    if rest.is_empty() {
        // Nothing is left that would wait for credit.
        say(In::Trailers(v1::CallTrailers { trailers: trailers.clone() })).await;
    }
    let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
    let mut answers = clients.calls().session(frames).await.unwrap().into_inner();
    let (mut answer, mut rest) = (Vec::new(), Some(rest).filter(|rest| !rest.is_empty()));
    loop {
        let message = within("a frame", answers.message()).await.unwrap().expect("it is not over");
        match message.frame.expect("a frame") {
            Out::Credit(credit) => {
                let Some(rest) = rest.take() else { continue };
                assert!(rest.len() <= credit.bytes as usize, "one window is enough for this test");
                for piece in rest.chunks(60_000) {
                    say(In::Body(v1::SessionBody { data: Bytes::copy_from_slice(piece), last: false })).await;
                }
                say(In::Trailers(v1::CallTrailers { trailers: trailers.clone() })).await;
            }
            Out::Head(_) => {}
            Out::Body(piece) => answer.extend_from_slice(&piece.data),
            Out::Finished(finished) => {
                answer.extend_from_slice(&finished.body);
                return finished.error.map_or(Ok(answer), Err);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_by_grpc_say_something_behind_a_body() {
    use stoker_proto::v1::invoke_stream_request::Frame;
    let fleet = Plan::default().start(functions()).await;
    let clients = &fleet.clients;
    let expected = json!([["x-client", "of the caller"]]);
    let trailers = || Frame::Trailers(v1::CallTrailers { trailers: said() });
    for name in ["socket", "pipes"] {
        let function = format!("{APP}/{name}");
        for size in [0, 3, 200_000] {
            let body = vec![b'x'; size];
            let message = v1::InvokeRequest {
                function: function.clone(),
                body: Bytes::copy_from_slice(&body),
                trailers: said(),
                ..Default::default()
            };
            let answer = clients.calls().invoke(message).await.unwrap().into_inner();
            assert_eq!(told(&answer.body), (expected.clone(), size), "Invoke of {name}");
            let pieces = body.chunks(60_000).map(|piece| Frame::Body(Bytes::copy_from_slice(piece)));
            let answer = streamed(clients, &function, pieces.chain([trailers()]).collect()).await.unwrap();
            assert_eq!(told(&answer), (expected.clone(), size), "InvokeStream of {name}");
            let answer = in_session(clients, &function, &body, said()).await.unwrap();
            assert_eq!(told(&answer), (expected.clone(), size), "Session of {name}");
        }
    }
    // The body has ended with them.
    let function = format!("{APP}/socket");
    let more = vec![trailers(), Frame::Body("more".into())];
    let refused = streamed(clients, &function, more).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused:?}");
    // Too much of them, and what is none: this call fails, and says why.
    for (name, size, says) in [("x-long", 20 << 10, "20"), ("x client", 1, "x client")] {
        let wrong = vec![v1::Header { name: name.into(), value: vec![b'x'; size].into() }];
        let failed = in_session(clients, &function, b"abc", wrong.clone()).await.unwrap_err();
        assert!(failed.message.contains("trailers: ") && failed.message.contains(says), "{failed:?}");
        assert_eq!(failed.blame(), v1::Blame::Caller, "{failed:?}");
        let message = v1::InvokeRequest { function: function.clone(), trailers: wrong, ..Default::default() };
        let refused = clients.calls().invoke(message).await.unwrap_err();
        assert!(refused.message().contains("trailers: "), "{refused:?}");
    }
    fleet.end().await;
}
