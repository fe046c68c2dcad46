//! Many calls of one client on one stream.

use crate::stage::*;

#[tokio::test]
async fn a_session_carries_many_calls_and_refuses_nonsense() {
    use v1::session_request::Frame as Ask;
    use v1::session_response::Frame as Say;
    let stage = stage(config(), vec![echo()]).await;
    let (send, requests) = mpsc::channel(64);
    let start = |call: u64, function: &str| v1::SessionRequest {
        call,
        frame: Some(Ask::Start(v1::SessionStart {
            function: function.into(),
            body: Bytes::from(call.to_string()),
            complete: true,
            ..Default::default()
        })),
    };
    let requests = ReceiverStream::new(requests);
    let mut answers = stage.client().await.session(requests).await.expect("a session").into_inner();
    for call in 1..=50 {
        send.send(start(call, if call == 7 { "a/none" } else { "a/f" })).await.expect("it is read");
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 50 {
        let message = answers.message().await.expect("no error").expect("more");
        let Some(Say::Finished(finished)) = message.frame else { panic!("one frame each") };
        assert!(seen.insert(message.call), "one outcome each");
        match finished.error {
            None => assert_eq!(finished.body, message.call.to_string()),
            Some(error) => assert_eq!((message.call, error.code()), (7, v1::ErrorCode::NotFound)),
        }
    }
    let body = Bytes::from(vec![0; 70_000]);
    let large = Ask::Start(v1::SessionStart { function: "a/f".into(), body, ..Default::default() });
    send.send(v1::SessionRequest { call: 99, frame: Some(large) }).await.expect("it is read");
    let (code, error) = reason(&answers.message().await.expect_err("a violation"));
    assert_eq!((code, error.may_have_started), (Code::InvalidArgument, false), "no call was under way");
}

#[tokio::test]
async fn a_session_that_ends_by_a_violation_says_that_calls_were_under_way() {
    let (tell, mut told) = mpsc::channel(1);
    let silent = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let Some(offer) = s.offer().await else { return };
            tell.send(offer.call).await.expect("the test reads");
            while s.next().await.is_some() {}
        }
    });
    let stage = stage(config(), vec![silent]).await;
    let mut client = Client::open(&stage).await;
    client.start(1, b"x", true).await;
    told.recv().await.expect("it was offered");
    client.start(1, b"x", true).await;
    let (code, error) = reason(&client.answers.message().await.expect_err("a violation"));
    assert_eq!((code, error.may_have_started), (Code::InvalidArgument, true), "{error:?}");
    assert!(error.message.contains("call 1 runs already"), "{error:?}");
}

/// What a method of a service says to bytes that are no request.
async fn said(stage: &Stage, method: &str, bytes: &'static [u8]) -> Status {
    let socket = TcpStream::connect(stage.balancer.grpc_address()).await.expect("it listens");
    let io = hyper_util::rt::TokioIo::new(socket);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://balancer/{method}"))
        .header("content-type", "application/grpc")
        .body(http_body_util::Full::new(Bytes::from_static(bytes)))
        .expect("a request");
    let answer = send.send_request(request).await.expect("an answer");
    let (head, body) = answer.into_parts();
    let behind = http_body_util::BodyExt::collect(body).await.expect("its end");
    Status::from_header_map(&head.headers)
        .or_else(|| Status::from_header_map(behind.trailers()?))
        .expect("a status")
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_the_callers_mistake_by_every_door() {
    use stoker_core::Code as Kind;
    let stage = stage(config(), vec![echo()]).await;
    let calls = ["Invoke", "Submit", "GetCall", "WaitCall", "CancelCall", "RedriveCall", "ListCalls"];
    let functions = [
        "ApplyFunctions",
        "GetFunction",
        "ListFunctions",
        "DeleteFunction",
        "ListRevisions",
        "RolloutFunction",
        "RollbackFunction",
        "SetAlias",
        "DeleteAlias",
    ];
    let fleet = [
        "ListRunners",
        "WatchFleet",
        "WatchActivity",
        "StreamLogs",
        "DrainRunner",
        "UncordonRunner",
        "ExplainCall",
    ];
    let of = |service: &str, methods: &[&str]| -> Vec<String> {
        methods.iter().map(|method| format!("{service}/{method}")).collect()
    };
    let whole = [
        of("stoker.v1.CallService", &calls),
        of("stoker.v1.FunctionService", &functions),
        of("stoker.v1.FleetService", &fleet),
    ];
    let whole = whole.concat();
    let doors = whole.iter().cloned().chain(of("stoker.v1.CallService", &["InvokeStream", "Session"]));
    // Compressed, longer than what is taken, no message.
    let wrong: [(&[u8], Code, Kind, &str); 3] = [
        (b"\x01\0\0\0\x01x", Code::Unimplemented, Kind::Unsupported, "leave grpc-encoding out"),
        (b"\0\x7f\xff\xff\xff", Code::OutOfRange, Kind::RequestTooLarge, "2147483647 bytes"),
        (b"\0\0\0\0\x01\xff", Code::InvalidArgument, Kind::InvalidRequest, "cannot be understood"),
    ];
    for method in doors {
        for (bytes, code, kind, text) in wrong {
            let told = said(&stage, &method, bytes).await;
            let (is, error) = reason(&told);
            assert_eq!((is, error.code), (code, kind), "{method}: {error:?}");
            assert!(error.message.contains(text), "{method}: {error:?}");
            if kind == Kind::Unsupported {
                let spoken = told.metadata().get("grpc-accept-encoding").expect("it is said what is spoken");
                assert_eq!(spoken, "identity", "{method}");
            }
        }
    }
    for method in &whole {
        let (is, error) = reason(&said(&stage, method, b"").await);
        assert_eq!((is, error.code), (Code::InvalidArgument, Kind::InvalidRequest), "{method}: {error:?}");
        assert_eq!(error.message, "there is no message", "{method}");
    }
    // Of the services that are not ours, in their library's words.
    for method in of("grpc.health.v1.Health", &["Check", "Watch"]) {
        for (bytes, code, kind) in [
            (&b"\x01\0\0\0\x01x"[..], Code::InvalidArgument, Kind::InvalidRequest),
            (b"\0\x7f\xff\xff\xff", Code::OutOfRange, Kind::RequestTooLarge),
            (b"\0\0\0\0\x01\xff", Code::InvalidArgument, Kind::InvalidRequest),
            (b"\0\0\0", Code::InvalidArgument, Kind::InvalidRequest),
            (b"", Code::InvalidArgument, Kind::InvalidRequest),
        ] {
            let (is, error) = reason(&said(&stage, &method, bytes).await);
            assert_eq!((is, error.code), (code, kind), "{method}: {error:?}");
            assert!(error.message.starts_with("the request cannot be read: "), "{method}: {error:?}");
        }
    }
    for method in ["CallService/Call", "FunctionService/Get", "FleetService/", "NoService/Get"] {
        let told = said(&stage, &format!("stoker.v1.{method}"), b"\0\0\0\0\0").await;
        assert!(told.code() == Code::Unimplemented && told.message().starts_with("there is no "), "{told:?}");
    }
}

type Ask = v1::session_request::Frame;
type Say = v1::session_response::Frame;

/// A client's end of a session.
struct Client {
    send: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
}

impl Client {
    async fn open(stage: &Stage) -> Self {
        let (send, requests) = mpsc::channel(64);
        let answers = stage.client().await.session(ReceiverStream::new(requests)).await.expect("a session");
        Self { send, answers: answers.into_inner() }
    }

    async fn ask(&self, call: u64, frame: Ask) {
        self.send.send(v1::SessionRequest { call, frame: Some(frame) }).await.expect("it is read");
    }

    async fn start(&self, call: u64, body: &[u8], complete: bool) {
        let body = Bytes::copy_from_slice(body);
        let start = v1::SessionStart { function: "a/f".into(), body, complete, ..Default::default() };
        self.ask(call, Ask::Start(start)).await;
    }

    async fn next(&mut self) -> (u64, Say) {
        let message = self.answers.message().await.expect("no error").expect("more");
        (message.call, message.frame.expect("a frame"))
    }
}

#[tokio::test]
async fn bodies_of_a_session_keep_to_credit_both_ways() {
    const PIECES: usize = 40;
    let stage = stage(config(), vec![streaming_echo()]).await;
    let mut client = Client::open(&stage).await;
    client.start(1, b"", false).await;
    let piece = Bytes::from(vec![9; 64 * 1024]);
    let (mut credit, mut sent, mut got, mut finished) = (0, 0, 0, false);
    while !finished {
        while sent < PIECES && credit >= piece.len() {
            credit -= piece.len();
            sent += 1;
            client.ask(1, Ask::Body(v1::SessionBody { data: piece.clone(), last: sent == PIECES })).await;
        }
        match client.next().await.1 {
            Say::Credit(more) => credit += more.bytes as usize,
            Say::Head(head) => assert_eq!(head.head, ok()),
            Say::Body(body) => {
                got += body.data.len();
                let bytes = body.data.len() as u32;
                client.ask(1, Ask::Credit(v1::SessionCredit { bytes })).await;
            }
            Say::Finished(end) => {
                assert_eq!(end.error, None);
                got += end.body.len();
                finished = true;
            }
        }
    }
    assert_eq!(got, PIECES * piece.len());
}

/// Sends to a call that echoes whatever it may, and gives no credit for its answer until the call ends so: the longest piece of the answer, how much came of it, and the
/// end. Time passes by itself whenever nothing moves.
async fn takes_nothing(client: &mut Client) -> (usize, usize, v1::SessionFinished) {
    let piece = Bytes::from(vec![9; 127 * 1024]);
    tokio::time::pause();
    let (mut credit, mut longest, mut got) = (0, 0, 0);
    let end = loop {
        while credit >= piece.len() {
            credit -= piece.len();
            client.ask(1, Ask::Body(v1::SessionBody { data: piece.clone(), last: false })).await;
        }
        match client.next().await.1 {
            Say::Credit(more) => credit += more.bytes as usize,
            Say::Head(_) => {}
            Say::Body(body) => (longest, got) = (body.data.len().max(longest), got + body.data.len()),
            Say::Finished(end) => break end,
        }
    };
    tokio::time::resume();
    (longest, got, *end)
}

#[tokio::test]
async fn an_answer_comes_in_the_window_that_its_client_gives() {
    const KIB: usize = 1024;
    for (window, longest, first) in [
        (0, 64 * KIB, 256 * KIB),
        (1000, 1000, 1000),
        (508 << 10, 127 * KIB, 508 * KIB),
        (u32::MAX, 127 * KIB, 508 * KIB),
    ] {
        let stage = stage(config(), vec![streaming_echo()]).await;
        let mut client = Client::open(&stage).await;
        let start = v1::SessionStart { function: "a/f".into(), window, ..Default::default() };
        client.ask(1, Ask::Start(start)).await;
        let (most, got, _) = takes_nothing(&mut client).await;
        assert_eq!((most, got), (longest, first), "{window}");
    }
}

/// Its client reads the session, and gives no more credit to one call.
#[tokio::test]
async fn a_call_whose_answer_is_left_is_cancelled() {
    let stage = stage(config(), vec![streaming_echo()]).await;
    let mut client = Client::open(&stage).await;
    client.start(1, b"", false).await;
    let (_, got, end) = takes_nothing(&mut client).await;
    let error = end.error.expect("it is cancelled");
    assert_eq!((got, error.code()), (256 * 1024, v1::ErrorCode::Cancelled));
    assert!(
        error.message.contains("took no more of the answer for 60s (`send_timeout`)"),
        "{}",
        error.message
    );
    client.start(2, b"hi", true).await;
    let (2, Say::Finished(end)) = client.next().await else { panic!("an end was due") };
    assert_eq!(end.body, "hi");
}

#[tokio::test]
async fn a_cancelled_call_ends_once_and_the_runner_learns_it() {
    let (tell, mut told) = mpsc::channel(4);
    let silent = play(move |mut s| {
        let tell = tell.clone();
        async move {
            let Some(_) = s.offer().await else { return };
            tell.send(None).await.expect("the test waits");
            let Some(In::Cancel(cancel)) = s.next().await else { panic!("no cancel") };
            tell.send(Some(cancel.reason())).await.expect("the test waits");
            s.finish(cancel.call, "late").await;
            while let Some(offer) = s.offer().await {
                s.finish(offer.call, "next").await;
            }
        }
    });
    let stage = stage(config(), vec![silent]).await;
    let mut client = Client::open(&stage).await;
    client.start(1, b"x", true).await;
    assert_eq!(told.recv().await, Some(None));
    client.ask(1, Ask::Cancel(v1::SessionCancel {})).await;
    let (call, Say::Finished(end)) = client.next().await else { panic!("an end was due") };
    assert_eq!((call, end.error.expect("cancelled").code()), (1, v1::ErrorCode::Cancelled));
    assert_eq!(told.recv().await, Some(Some(wire::CancelReason::CallerGone)));
    // Its number is free again, and the session goes on.
    client.start(1, b"x", true).await;
    let (1, Say::Finished(end)) = client.next().await else { panic!("an end was due") };
    assert_eq!(end.body, "next");
}

#[tokio::test]
async fn a_session_that_ends_in_the_middle_of_a_body_ends_the_call() {
    let starts = play(|mut s| async move {
        let Some(offer) = s.offer().await else { return };
        s.send(Out::Started(wire::Started { call: offer.call, container: "c".into() })).await;
        s.send(Out::Credit(wire::Credit { call: offer.call, bytes: 256 * 1024 })).await;
        while s.next().await.is_some() {}
    });
    let stage = stage(config(), vec![starts]).await;
    let mut client = Client::open(&stage).await;
    client.start(1, b"half", false).await;
    assert!(matches!(client.next().await, (1, Say::Credit(_))));
    let Client { send, mut answers } = client;
    drop(send);
    let message = answers.message().await.expect("no error").expect("an outcome");
    let Some(Say::Finished(end)) = message.frame else { panic!("an end was due") };
    let error = end.error.expect("no whole body");
    assert_eq!((error.code(), error.may_have_started), (v1::ErrorCode::Cancelled, true));
    assert_eq!(answers.message().await.expect("it ends well"), None);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_all_its_calls() {
    let (tell, mut told) = mpsc::channel(16);
    let silent = play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(frame) = s.next().await {
                match frame {
                    In::Offer(offer) => tell.send((offer.call, None)).await.expect("the test waits"),
                    In::Cancel(cancel) => {
                        tell.send((cancel.call, Some(cancel.reason()))).await.expect("the test waits");
                        s.finish(cancel.call, "").await;
                    }
                    _ => {}
                }
            }
        }
    });
    let stage = stage(config(), vec![silent]).await;
    let client = Client::open(&stage).await;
    for call in 1..=3 {
        client.start(call, b"x", true).await;
        assert_eq!(told.recv().await.map(|(_, cancelled)| cancelled), Some(None));
    }
    drop(client);
    for _ in 0..3 {
        let (_, reason) = told.recv().await.expect("a cancel");
        assert_eq!(reason, Some(wire::CancelReason::CallerGone));
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_asked_for_no_more_calls() {
    const CALLS: u64 = 4_000;
    let stage = stage(Config { max_calls: 10, ..config() }, vec![echo()]).await;
    let mut client = Client::open(&stage).await;
    let send = client.send.clone();
    let (done, mut all) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        for call in 0..CALLS {
            let start = v1::SessionStart {
                function: "a/f".into(),
                body: vec![1; 32 * 1024].into(),
                complete: true,
                ..Default::default()
            };
            send.send(v1::SessionRequest { call, frame: Some(Ask::Start(start)) }).await.expect("it is read");
        }
        done.send(()).expect("the test waits");
    });
    // 128 MB of calls do not fit into windows and buffers: the sender comes to its end only as answers are taken.
    for taken in 0..CALLS {
        if taken == CALLS / 2 {
            assert!(all.try_recv().is_err(), "everything was taken in at once");
        }
        assert!(matches!(client.next().await.1, Say::Finished(_)));
    }
    all.await.expect("all was sent");
}
