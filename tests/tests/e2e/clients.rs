//! Clients, good and bad: every door, large bodies, and those that vanish, stall, send half or ask for nonsense.

use std::time::Duration;

use bytes::Bytes;
use stoker_core::error::{Blame, Code, Retry};
use stoker_core::function::FunctionSpec;
use stoker_proto::v1;
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{APP, Change as _, probe, shell};
use stoker_tests::raw::Raw;
use stoker_tests::within;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes that differ from place to place, so that a piece that is lost, doubled or moved is seen.
fn pattern(length: usize) -> Bytes {
    let block: Vec<u8> = (0..251u8).collect();
    let mut bytes = Vec::with_capacity(length + 2 * block.len());
    for n in 0u64.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend_from_slice(&n.to_le_bytes());
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(length);
    bytes.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_door_carries_every_size() {
    let fleet = Plan::default().start([probe("hot"), shell("cold", "cat")]).await;
    for size in [0, 1, 65_535, 65_536, 65_537, 262_144, 1 << 20, 3 << 20] {
        let body = pattern(size);
        for door in Door::ALL {
            for function in ["hot", "cold"] {
                let call = Call::of(function).header("X-Any", "thing").body(body.clone());
                let answer = fleet.clients.call(door, call).await.unwrap();
                assert!(
                    answer.body == body,
                    "{size} bytes of {function} through {door:?}: {}",
                    answer.body.len()
                );
                assert_eq!(answer.call_id.len(), 32, "{answer:?}");
            }
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_known_by_name_and_id() {
    let function = probe("named");
    let id = function.name.id();
    let fleet = Plan::default().start([function.with_trigger("/hook")]).await;
    let page = fleet.clients.page("POST", &format!("/invoke/{id}"), &[], "by id").await;
    assert_eq!((page.status, &page.body[..]), (200, &b"by id"[..]));
    let message = v1::InvokeRequest { function: id, body: "by id".into(), ..Default::default() };
    assert_eq!(fleet.clients.calls().invoke(message).await.unwrap().into_inner().body, "by id");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_is_http_both_ways() {
    let fleet = Plan::default().start([probe("web").with_trigger("/hook").with_trigger("/deep/hook")]).await;
    let headers = [("X-Mine".to_owned(), "1".to_owned()), ("Content-Type".to_owned(), "text/odd".to_owned())];
    for (method, path) in [("GET", "/t/t/hook?a=1&b=%20"), ("PUT", "/t/t/deep/hook"), ("DELETE", "/t/t/hook")]
    {
        let page = fleet.clients.page(method, path, &headers, r#"{"do": "report"}"#).await;
        assert_eq!(page.status, 200, "{page:?}");
        let report: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
        let header = |name: &str| {
            let all = report["headers"].as_array().unwrap();
            let found = all.iter().find(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name));
            found.map(|pair| pair[1].as_str().unwrap().to_owned()).unwrap_or_default()
        };
        assert_eq!(header("Fn-Http-Method"), method);
        assert_eq!(header("Fn-Http-Request-Url"), format!("http://stoker.test{path}"));
        assert_eq!(header("Fn-Intent"), "httprequest");
        assert_eq!(header("Fn-Http-H-X-Mine"), "1");
        assert_eq!(header("X-Mine"), "", "a header of the client must not pass for one of ours");
        assert_eq!(header("Content-Type"), "text/odd");
        assert_eq!(header("Fn-Call-Id"), page.header("fn-call-id"));
        assert!(header("Fn-Deadline").ends_with('Z'), "{report}");
    }
    let page = fleet.clients.page("POST", "/t/t/hook", &[], r#"{"do": "http-status:418"}"#).await;
    assert_eq!(page.status, 418);
    assert_eq!(page.header("x-probe"), "seen");
    assert_eq!(page.header("x-plain"), "", "what is no Fn-Http-H-… stays inside");
    // An error of the function is no answer of the function.
    let page = fleet.clients.page("POST", "/t/t/hook", &[], r#"{"do": "exit:1"}"#).await;
    assert_eq!(page.error().code, Code::FunctionCrashed);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_the_callers_fault() {
    let fleet = Plan::default().start([probe("here").with_trigger("/hook")]).await;
    for door in Door::ALL {
        for function in ["t/nowhere", "nowhere/here"] {
            let error = fleet.clients.call(door, Call::of(function)).await.unwrap_err();
            assert_eq!((error.code, error.blame()), (Code::NotFound, Blame::Caller), "{door:?} {error:?}");
            assert_eq!(error.retry, Retry::Never);
        }
    }
    for path in ["/t/t/nowhere", "/t/nowhere/hook", "/t/t", "/invoke/", "/invoke/a/b/c", "/", "//"] {
        let page = fleet.clients.page("POST", path, &[], "").await;
        assert_eq!(page.error().code, Code::NotFound, "{path}");
    }
    // A path is what it says once it is decoded, as Fn reads it.
    assert_eq!(fleet.clients.page("POST", "/invoke/t%2Fhere", &[], "").await.status, 200);
    let page = fleet.clients.page("GET", "/invoke/t/here", &[], "").await;
    assert_eq!(page.error().code, Code::MethodNotAllowed);
    assert!(page.header("allow").contains("POST"));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_in_the_past_start_nothing() {
    let fleet = Plan::default().start([probe("late"), probe("other")]).await;
    // By hand, since a client library would give up by itself before it sends anything.
    for timeout in ["0n", "0m", "0S", "1n"] {
        let status = raw_grpc(&fleet.clients, &[("grpc-timeout", timeout)], "t/late").await;
        assert_eq!(status, tonic::Code::DeadlineExceeded as u32, "{timeout}");
    }
    assert_eq!(fleet.clients.probe("other", "echo").await.status, 200);
    assert_eq!(
        fleet.warmth(&probe("late")),
        (0, 0, 0),
        "a call that was over before it began started something"
    );
    assert_eq!(fleet.clients.probe("late", "report").await.json()["calls"], 1);
    fleet.end().await;
}

/// The status of one unary call with these headers, over HTTP/2 as such.
async fn raw_grpc(clients: &Clients, headers: &[(&str, &str)], function: &str) -> u32 {
    use http_body_util::BodyExt as _;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = tokio::net::TcpStream::connect(clients.grpc).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    // A message of one field, the first, as text.
    let message = [&[0x0a, function.len() as u8], function.as_bytes()].concat();
    let frame = [&[0], &(message.len() as u32).to_be_bytes()[..], &message].concat();
    let mut request = http::Request::post(format!("http://{}/stoker.v1.CallService/Invoke", clients.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(Bytes::from(frame));
    let answer = send.send_request(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    connection.abort();
    let status = trailers.get("grpc-status").or(parts.headers.get("grpc-status")).unwrap();
    status.to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_ends_the_call_in_the_container() {
    let fleet = Plan::default().start([probe("hangs")]).await;
    for door in [Door::Session, Door::Stream, Door::Invoke] {
        let calls = fleet.clients.probe("hangs", "report").await.json()["calls"].as_u64().unwrap();
        let call = Call::of("hangs").probe("hang").timeout(Duration::from_millis(500));
        let error = fleet.clients.call(door, call).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Caller);
        fleet.until_quiet().await;
        let next = fleet.clients.probe("hangs", "report").await.json()["calls"].as_u64().unwrap();
        if door == Door::Session {
            assert_eq!(error.code, Code::DeadlineExceeded, "{error:?}");
            // Either it was in the container and took it along, or it never came there.
            assert_eq!(next, if error.may_have_started { 1 } else { calls + 1 }, "{error:?}");
        } else {
            // A client library may notice first, and say so in its own words.
            assert!(matches!(error.code, Code::DeadlineExceeded | Code::Cancelled), "{door:?} {error:?}");
            assert!(next == 1 || next == calls + 1, "{door:?}: {next} after {calls}");
        }
    }
    fleet.end().await;
}

/// What a call that vanishes leaves: nothing runs any more, its container is gone, and the next call has another.
async fn vanished(fleet: &Fleet, function: &FunctionSpec, how: &str) {
    fleet.until_quiet().await;
    let name = function.name.function();
    let report = fleet.clients.probe(name, "report").await.json();
    assert_eq!(report["calls"], 1, "{how}: the call went on in its container: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_cancel_their_calls_into_the_container() {
    let function = probe("long");
    let fleet = Plan::default().start([function.clone()]).await;
    let mut log = fleet.log(&function).await;
    for door in Door::ALL {
        for size in [0, 200_000] {
            let clients = Clients::connect(fleet.clients.grpc, fleet.clients.http).await;
            let call = Call::of("long").probe("hang").body(pattern(size));
            let going = tokio::spawn(async move { clients.call(door, call).await });
            log.until("hanging").await;
            going.abort();
            assert!(going.await.unwrap_err().is_cancelled());
            vanished(&fleet, &function, &format!("{door:?} with {size} bytes")).await;
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_vanish_while_they_wait_leave_the_line() {
    let fleet = Plan::default().room(1).start([probe("busy"), probe("other")]).await;
    let (send, answers) = fleet.clients.open(&Call::of("busy").probe("early"));
    let mut running = within("the head", answers).await.unwrap();
    let waiting: Vec<_> = Door::ALL
        .into_iter()
        .flat_map(|door| [(door, "busy"), (door, "other")])
        .map(|(door, function)| {
            let clients = fleet.clients.clone();
            tokio::spawn(async move { clients.call(door, Call::of(function)).await })
        })
        .collect();
    let mut watch = fleet.clients.fleet().watch_fleet(v1::WatchFleetRequest {}).await.unwrap().into_inner();
    let mut until_waiting = async |what: &str, count: u32| {
        within(what, async {
            loop {
                let seen = watch.message().await.unwrap().unwrap();
                let there: u32 =
                    seen.runners.iter().filter_map(|r| r.capacity.as_ref()).map(|c| c.waiting).sum();
                if seen.queued + there == count {
                    return;
                }
            }
        })
        .await;
    };
    until_waiting("eight calls that wait", 8).await;
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until_waiting("an empty line", 0).await;
    drop(send);
    assert_eq!(stoker_tests::calls::rest_of(&mut running).await.unwrap().text(), "early, then 0 bytes");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_half() {
    let function = probe("half");
    let fleet = Plan::default().start([function.clone()]).await;
    let head = |framing: &str| {
        format!("POST /invoke/t/half HTTP/1.1\r\nHost: x\r\nProbe: report\r\n{framing}\r\n\r\n")
    };
    let large = "Content-Length: 1000000";
    let small = "Content-Length: 1000";
    let chunked = "Transfer-Encoding: chunked";
    // Half a small body (which is not offered before it is there), half of what is too large for one piece, half a chunk.
    for (framing, part, starts) in [
        (small, pattern(10), false),
        (large, pattern(100_000), true),
        (chunked, Bytes::from("10\r\nabc"), true),
    ] {
        let mut raw = Raw::connect(fleet.clients.http).await;
        raw.write(head(framing).as_bytes()).await.unwrap();
        raw.write(&part).await.unwrap();
        if starts {
            fleet.until_busy(&function, 1).await;
        }
        drop(raw);
        vanished(&fleet, &function, framing).await;
    }
    // Half a head.
    let mut raw = Raw::connect(fleet.clients.http).await;
    raw.write(b"POST /invoke/t/half HTTP/1.1\r\nHo").await.unwrap();
    drop(raw);
    // A streamed call that breaks off in its body.
    let clients = Clients::connect(fleet.clients.grpc, fleet.clients.http).await;
    let (send, answers) = clients.open(&Call::of("half").probe("report"));
    let opening = tokio::spawn(answers);
    let body = v1::invoke_stream_request::Frame::Body(pattern(1000));
    send.send(v1::InvokeStreamRequest { frame: Some(body) }).await.unwrap();
    fleet.until_busy(&function, 1).await;
    opening.abort();
    drop((send, clients));
    fleet.until_quiet().await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_heads_are_refused_by_name() {
    let fleet = Plan::default().start([probe("head")]).await;
    let large = "v".repeat(70_000);
    for door in Door::ALL {
        let error = fleet.clients.call(door, Call::of("head").header("X-Large", &large)).await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::HeadersTooLarge, Blame::Caller), "{door:?} {error:?}");
        let mut many = Call::of("head");
        for n in 0..300 {
            many = many.header(&format!("X-{n}"), "v");
        }
        // A server may have a bound of its own on their number, lower or at the door itself: never a 200, never a 5xx.
        if door == Door::Http {
            let page = fleet.clients.page("POST", "/invoke/t/head", &many.headers, "").await;
            assert_eq!(page.status, 431, "{page:?}");
            continue;
        }
        let error = fleet.clients.call(door, many).await.unwrap_err();
        assert_eq!(error.code, Code::HeadersTooLarge, "{door:?} {error:?}");
    }
    // Within the limit they arrive.
    let fits = "v".repeat(30_000);
    for door in Door::ALL {
        let call = Call::of("head").header("X-Fits", &fits).probe("report");
        let report = fleet.clients.call(door, call).await.unwrap().text();
        assert!(report.contains(&fits), "{door:?}");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversize_bodies_of_unary_calls_are_refused() {
    let fleet = Plan::default().start([probe("body")]).await;
    let most = stoker_proto::MAX_MESSAGE;
    let error = fleet.clients.call(Door::Invoke, Call::of("body").body(pattern(most + 1))).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Caller, "{error:?}");
    let error =
        fleet.clients.call(Door::Invoke, Call::of("body").probe(&format!("large:{}", most + 1))).await;
    let error = error.unwrap_err();
    assert_eq!((error.code, error.blame()), (Code::ResponseTooLarge, Blame::Function), "{error:?}");
    // The doors that stream carry both.
    let call = Call::of("body").body(pattern(most + 1));
    assert_eq!(fleet.clients.call(Door::Http, call).await.unwrap().body.len(), most + 1);
    fleet.end().await;
}

/// Megabytes of one body.
const LARGE: usize = 64 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_stall_nobody_else() {
    let function = probe("large").with_timeout(Duration::from_secs(300));
    let fleet = Plan::default().start([function.clone(), probe("small")]).await;
    let large = format!("large:{LARGE}");
    // One that reads nothing at each door: HTTP, a stream of its own, a call in a session.
    let mut raw = Raw::connect(fleet.clients.http).await;
    let request =
        format!("POST /invoke/t/large HTTP/1.1\r\nHost: x\r\nProbe: {large}\r\nContent-Length: 0\r\n\r\n");
    raw.write(request.as_bytes()).await.unwrap();
    let (send, answers) = fleet.clients.open(&Call::of("large").probe(&large));
    drop(send);
    let mut stalled = within("the head", answers).await.unwrap();
    let (frames, receiver) = mpsc::channel(64);
    let start = |call, function: &str, probe: &str| {
        let header = v1::Header { name: "Probe".to_owned(), value: Bytes::from(probe.to_owned()) };
        let head = Some(v1::RequestHead { headers: vec![header], ..Default::default() });
        let function = format!("{APP}/{function}");
        let start = v1::SessionStart { function, head, complete: true, ..Default::default() };
        v1::SessionRequest { call, frame: Some(In::Start(start)) }
    };
    frames.send(start(1, "large", &large)).await.unwrap();
    let mut session =
        fleet.clients.calls().session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    fleet.until_busy(&function, 3).await;
    // Everybody else is served, on the same connection and on the same stream.
    for call in 2..50 {
        frames.send(start(call, "small", "echo")).await.unwrap();
        within("a call beside a stalled one", async {
            loop {
                let answer = session.message().await.unwrap().unwrap();
                if let (true, Some(Out::Finished(end))) = (answer.call == call, answer.frame) {
                    assert_eq!(end.error, None);
                    return;
                }
            }
        })
        .await;
        for door in [Door::Invoke, Door::Http] {
            fleet.clients.call(door, Call::of("small")).await.unwrap();
        }
    }
    fleet.until_busy(&function, 3).await;
    // Who begins to read gets all of it.
    let (mut raw_length, mut buffer) = (0, vec![0; 1 << 20]);
    while raw_length < LARGE {
        let n = within("more of the answer", raw.0.read(&mut buffer)).await.unwrap();
        assert!(n > 0, "the answer broke off after {raw_length} bytes");
        raw_length += n;
    }
    let rest = within("the rest", stoker_tests::calls::rest_of(&mut stalled)).await.unwrap();
    assert_eq!(rest.body.len(), LARGE);
    // And who goes instead ends its call.
    drop((frames, session));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_64_mib_pass_through_a_balancer_that_does_not_hold_them() {
    let function = probe("echo");
    let fleet = Plan::default().start([function.clone()]).await;
    let balancer =
        stoker_tests::member::Member::balancer(&fleet.mark, &fleet.records(), &[fleet.marked(function)]);
    let clients = Clients::connect(balancer.address("grpc"), balancer.address("http")).await;
    let body = pattern(LARGE);
    for door in Door::ALL {
        clients.call(door, Call::of("echo").body("warm")).await.unwrap();
    }
    let (_, idle) = balancer.memory();
    for door in [Door::Stream, Door::Session, Door::Http] {
        let calls = [(); 3].map(|()| {
            let (clients, call) = (clients.clone(), Call::of("echo").body(body.clone()));
            tokio::spawn(async move { clients.call(door, call).await })
        });
        for call in calls {
            let answer = call.await.unwrap().unwrap();
            assert!(answer.body == body, "{door:?}: {} bytes, or others", answer.body.len());
        }
        let (peak, _) = balancer.memory();
        println!("{door:?}: {} MiB over idle", (peak - idle) >> 20);
        assert!(peak - idle < 64 << 20, "{door:?}: the balancer grew by {} MiB", (peak - idle) >> 20);
    }
    drop(clients);
    balancer.stop().await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_many_calls_and_cancels_one() {
    let function = probe("many").with_concurrency(16);
    let fleet = Plan::default().start([function, probe("hangs")]).await;
    let (frames, receiver) = mpsc::channel(256);
    let start = |call: u64, function: &str, probe: &str| {
        let header = v1::Header { name: "Probe".to_owned(), value: Bytes::from(probe.to_owned()) };
        let head = Some(v1::RequestHead { headers: vec![header], ..Default::default() });
        let body = Bytes::from(format!("call {call}"));
        let function = format!("{APP}/{function}");
        let start = v1::SessionStart { function, head, body, complete: true, ..Default::default() };
        v1::SessionRequest { call, frame: Some(In::Start(start)) }
    };
    for call in 1..=100 {
        frames.send(start(call, "many", "echo")).await.unwrap();
    }
    let mut log = fleet.log(&probe("hangs")).await;
    frames.send(start(200, "hangs", "hang")).await.unwrap();
    let mut session =
        fleet.clients.calls().session(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeMap::new();
    while seen.len() < 100 {
        let answer = within("an answer", session.message()).await.unwrap().unwrap();
        let Some(Out::Finished(end)) = answer.frame else { continue };
        assert_eq!(end.error, None);
        assert!(seen.insert(answer.call, end.body).is_none(), "call {} ended twice", answer.call);
    }
    assert!(seen.iter().all(|(call, body)| *body == format!("call {call}")));
    log.until("hanging").await;
    let cancel = v1::SessionRequest { call: 200, frame: Some(In::Cancel(v1::SessionCancel {})) };
    frames.send(cancel).await.unwrap();
    let end = within("the end of what was cancelled", session.message()).await.unwrap().unwrap();
    let Some(Out::Finished(end)) = end.frame else { panic!("{end:?}") };
    let error = stoker_proto::convert::call_error(end.error.unwrap());
    assert_eq!(error.code, Code::Cancelled, "{error:?}");
    // A call after that on the same stream; then the stream's own end, which is an orderly one.
    frames.send(start(201, "many", "echo")).await.unwrap();
    let end = within("one more", session.message()).await.unwrap().unwrap();
    assert!(matches!(end.frame, Some(Out::Finished(ref end)) if end.body == "call 201"), "{end:?}");
    drop(frames);
    assert!(within("the end of the session", session.message()).await.unwrap().is_none());
    vanished(&fleet, &probe("hangs"), "a cancelled call of a session").await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_without_runners_says_so() {
    let fleet = Plan::default().runners(0).start([probe("alone")]).await;
    for door in Door::ALL {
        let error = fleet.clients.call(door, Call::of("alone")).await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::Unavailable, Blame::Platform), "{error:?}");
        assert!(matches!(error.retry, Retry::After(_)) && !error.may_have_started, "{error:?}");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_of_runners_that_come_later_are_followed() {
    let function = probe("later");
    let mut fleet = Plan::default().runners(0).start([function.clone()]).await;
    let mut log = fleet.log(&function).await;
    fleet.add_process(None).await;
    let error = fleet.clients.call(Door::Invoke, Call::of("later").probe("exit:5")).await.unwrap_err();
    assert_eq!(error.code, Code::FunctionCrashed, "{error:?}");
    log.until("exiting with 5").await;
    drop(log);
    fleet.end().await;
}
