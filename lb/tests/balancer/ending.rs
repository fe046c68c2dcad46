//! The end of a balancer: what has a call finishes, and nothing else holds it.

use stoker_proto::v1::session_request::Frame as Ask;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::stage::*;

/// Longer than any test may take: who waits for it hangs.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn streams_without_a_call_do_not_hold_it() {
    let stage = stage(config(), vec![echo()]).await;
    let channel = stage.channel().await;
    let health = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await;
    let mut health = health.expect("a stream").into_inner();
    let first = health.message().await.expect("no error").expect("a first word");
    assert_eq!(first.status(), ServingStatus::Serving);
    let mut fleet =
        stage.fleet().await.watch_fleet(v1::WatchFleetRequest {}).await.expect("a stream").into_inner();
    fleet.message().await.expect("no error").expect("the fleet");
    let ask = v1::StreamLogsRequest { function: "a/f".into(), follow: true, ..Default::default() };
    let logs = stage.fleet().await.stream_logs(ask).await.expect("a stream").into_inner();
    // Streams that clients leave open on their side.
    let reflection = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::pending::<ServerReflectionRequest>())
        .await
        .expect("a stream");
    let mut client = stage.client().await;
    let mut session = client.session(tokio_stream::pending()).await.expect("a stream").into_inner();
    let mut unsaid = stage.client().await;
    let unsaid = tokio::spawn(async move {
        unsaid.invoke_stream(tokio_stream::pending::<v1::InvokeStreamRequest>()).await.map(|_| ())
    });
    let mut half = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    half.write_all(b"POST /invoke/a/f HTTP/1.1\r\nhost:").await.expect("it reads");
    let idle = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    stage.balancer.stop(FOR_EVER).await;
    // Health says so first, and then the stream ends.
    let mut last = None;
    while let Ok(Some(message)) = health.message().await {
        last = Some(message.status());
    }
    assert_eq!(last, Some(ServingStatus::NotServing));
    let said = session.message().await.expect_err("calls on their way to it were not started");
    let (code, error) = reason(&said);
    assert_eq!((code, error.retry), (Code::Unavailable, stoker_core::error::Retry::Elsewhere));
    let said = unsaid.await.expect("no panic").expect_err("there was no call");
    assert_eq!(said.code(), Code::Unavailable, "{said:?}");
    drop((fleet, logs, reflection, half, idle));
}

#[tokio::test]
async fn calls_of_every_door_finish_and_new_ones_of_a_session_go_elsewhere() {
    let (tell, mut told) = mpsc::channel(8);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = play(move |mut s| {
        let (tell, mut finished) = (tell.clone(), finished.clone());
        async move {
            let mut calls = Vec::new();
            while calls.len() < 4 {
                calls.push(s.offer().await.expect("an offer").call);
                tell.send(()).await.expect("the test reads");
            }
            finished.wait_for(|go| *go).await.expect("the test says so");
            for call in calls {
                s.finish(call, "done").await;
            }
            s.next().await;
        }
    });
    let stage = stage(config(), vec![slow]).await;
    let start = |call| v1::SessionRequest {
        call,
        frame: Some(Ask::Start(v1::SessionStart {
            function: "a/f".into(),
            complete: true,
            ..Default::default()
        })),
    };
    let (ask, asked) = mpsc::channel(4);
    ask.send(start(1)).await.expect("it reads");
    let mut client = stage.client().await;
    let mut session = client.session(ReceiverStream::new(asked)).await.expect("a stream").into_inner();
    let mut streamed = stage.client().await;
    let streamed = tokio::spawn(async move {
        use v1::invoke_stream_request::Frame;
        let start = v1::CallStart { function: "a/f".into(), ..Default::default() };
        let first = v1::InvokeStreamRequest { frame: Some(Frame::Start(start)) };
        let mut answer = streamed.invoke_stream(tokio_stream::once(first)).await?.into_inner();
        let mut frames = Vec::new();
        while let Some(message) = answer.message().await? {
            frames.extend(message.frame);
        }
        Ok::<_, Status>(frames)
    });
    let mut unary = stage.client().await;
    let unary = tokio::spawn(async move {
        unary.invoke(v1::InvokeRequest { function: "a/f".into(), ..Default::default() }).await
    });
    let mut http = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    http.write_all(b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await
        .expect("it reads");
    for _ in 0..4 {
        told.recv().await.expect("an offer");
    }
    let grpc = stage.balancer.grpc_address();
    let stopped = tokio::spawn(stage.balancer.stop(FOR_EVER));
    // Nobody listens any more: it has begun to stop.
    while TcpStream::connect(grpc).await.is_ok() {
        tokio::task::yield_now().await;
    }
    ask.send(start(2)).await.expect("it reads");
    let refused = session.message().await.expect("no error").expect("an outcome");
    assert_eq!(refused.call, 2, "{refused:?}");
    finish.send_replace(true);
    let done = session.message().await.expect("no error").expect("an outcome");
    assert_eq!(done.call, 1, "{done:?}");
    assert!(matches!(done.frame, Some(v1::session_response::Frame::Finished(f)) if f.body == "done"));
    assert_eq!(unary.await.expect("no panic").expect("an answer").into_inner().body, "done");
    let frames = streamed.await.expect("no panic").expect("an answer");
    assert!(matches!(frames.last(), Some(v1::invoke_stream_response::Frame::End(_))), "{frames:?}");
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.expect("it closes by itself");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    stopped.await.expect("no panic");
}

/// By HTTP/1.1 a request that crosses the end of its connection would be lost, and its client could not know whether it was made.
#[tokio::test]
async fn a_request_that_is_on_its_way_when_the_balancer_stops_is_answered_and_is_the_last() {
    let stage = stage(config(), vec![echo()]).await;
    let ask = |body: &str| format!("POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{body}");
    let mut resting = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    resting.write_all(ask("first").as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        let mut piece = [0; 1024];
        let length = resting.read(&mut piece).await.expect("it answers");
        assert!(length > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..length]);
    }
    assert!(!String::from_utf8_lossy(&answer).to_lowercase().contains("connection: close"));
    // Let in by the system, and not by the balancer, whose turn comes when we wait for the next thing.
    let mut new = std::net::TcpStream::connect(stage.balancer.http_address()).expect("it listens");
    let resting = resting.into_std().expect("it is one of the system's");
    let stopped = tokio::spawn(stage.balancer.stop(FOR_EVER));
    std::io::Write::write_all(&mut new, ask("third").as_bytes()).expect("there is room");
    std::io::Write::write_all(&mut &resting, ask("other").as_bytes()).expect("there is room");
    new.set_nonblocking(true).expect("it can be");
    for (client, body) in [(resting, "other"), (new, "third")] {
        let mut client = TcpStream::from_std(client).expect("it is one of the system's");
        let mut answer = String::new();
        let ended = client.read_to_string(&mut answer).await;
        assert!(ended.is_ok(), "{body}: {ended:?} after {answer:?}");
        let said = answer.to_lowercase();
        assert!(said.starts_with("http/1.1 200") && said.contains("connection: close"), "{answer:?}");
        assert!(answer.ends_with(body), "{answer:?}");
    }
    stopped.await.expect("no panic");
}

/// What a client sends behind its last request does not cost it the answer.
#[tokio::test]
async fn who_still_sends_when_its_connection_ends_hears_the_end() {
    let (tell, mut told) = mpsc::channel(1);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = play(move |mut s| {
        let (tell, mut finished) = (tell.clone(), finished.clone());
        async move {
            let call = s.offer().await.expect("an offer").call;
            tell.send(()).await.expect("the test reads");
            finished.wait_for(|go| *go).await.expect("the test says so");
            s.finish(call, "done").await;
            s.next().await;
        }
    });
    let stage = stage(config(), vec![slow]).await;
    let mut http = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    http.write_all(b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await
        .expect("it reads");
    told.recv().await.expect("an offer");
    let grpc = stage.balancer.grpc_address();
    let stopped = tokio::spawn(stage.balancer.stop(FOR_EVER));
    while TcpStream::connect(grpc).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // More than the balancer reads ahead, as much as the system takes.
    let next = b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n";
    http.write_all(next).await.expect("it reads");
    let piece = vec![b'x'; 1 << 20];
    while http.try_write(&piece).is_ok() {}
    finish.send_replace(true);
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.expect("it closes by itself");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    // A client that writes before it reads would learn nothing else.
    http.write_all(b"more").await.expect("it is read and thrown away");
    drop(http);
    stopped.await.expect("no panic");
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_off_after_the_grace() {
    let (tell, mut told) = mpsc::channel(1);
    let (gone, mut cancelled) = mpsc::channel(1);
    let never = play(move |mut s| {
        let (tell, gone) = (tell.clone(), gone.clone());
        async move {
            s.offer().await.expect("an offer");
            tell.send(()).await.expect("the test reads");
            gone.send(s.next().await).await.expect("the test reads");
        }
    });
    let stage = stage(config(), vec![never]).await;
    let mut client = stage.client().await;
    let call = tokio::spawn(async move {
        client.invoke(v1::InvokeRequest { function: "a/f".into(), ..Default::default() }).await
    });
    told.recv().await.expect("it runs");
    stage.balancer.stop(Duration::from_millis(1)).await;
    let (code, error) = reason(&call.await.expect("no panic").expect_err("it was cut off"));
    assert_eq!((code, error.retry), (Code::Aborted, stoker_core::Retry::Never));
    assert!(error.may_have_started && error.message.contains("this balancer stopped"), "{error:?}");
    let last = cancelled.recv().await.expect("the runner learns it");
    assert!(matches!(last, Some(In::Cancel(_)) | None), "{last:?}");
}

/// Nothing of a call that waits here has started: its client learns so, and may go elsewhere at once.
#[tokio::test]
async fn a_call_that_waits_when_the_grace_is_over_may_go_elsewhere() {
    let full = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            s.refuse(offer.call, wire::RefusalReason::Full).await;
        }
    });
    let stage = stage(config(), vec![full]).await;
    let mut client = stage.client().await;
    let mut watch =
        stage.fleet().await.watch_fleet(v1::WatchFleetRequest {}).await.expect("a stream").into_inner();
    let call = tokio::spawn(async move {
        client.invoke(v1::InvokeRequest { function: "a/f".into(), ..Default::default() }).await
    });
    while watch.message().await.expect("no error").expect("more").queued == 0 {}
    stage.balancer.stop(Duration::from_millis(1)).await;
    let (code, error) = reason(&call.await.expect("no panic").expect_err("it was cut off"));
    assert_eq!((code, error.retry), (Code::Unavailable, stoker_core::Retry::Elsewhere));
    assert!(!error.may_have_started && error.message.contains("this balancer is stopping"), "{error:?}");
}

#[tokio::test]
async fn a_balancer_that_has_not_read_the_functions_says_so() {
    use stoker_registry::etcd::{Config as Etcd, EtcdRegistry};
    // Nobody is there: a port that was free a moment ago.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let registry = EtcdRegistry::connect(Etcd::new(vec![format!("http://{gone}")])).expect("it is valid");
    let balancer = Balancer::start(config(), Arc::new(registry)).await.expect("it starts");
    let stage = Stage { balancer, registry: Arc::default(), registrations: Vec::new() };
    let (code, error) = reason(&stage.invoke("a/f", "x").await.expect_err("it knows nothing yet"));
    assert_eq!((code, error.retry), (Code::Unavailable, stoker_core::error::Retry::Elsewhere));
    let answer = stage.http("GET /t/a/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let health = HealthClient::new(stage.channel().await).check(HealthCheckRequest::default()).await;
    assert_eq!(health.expect("it answers").into_inner().status(), ServingStatus::NotServing);
    stage.balancer.stop(FOR_EVER).await;
}
