//! Every field of every message with what it must not hold: the answer names the field, and nothing happens.

use v1::call_service_client::CallServiceClient;
use v1::function_service_client::FunctionServiceClient;

use crate::stage::*;

/// A name that is one to nobody.
const NO_FUNCTIONS: [&str; 6] = ["", "a b", "a/", "/f", "a/f/g", "a/\u{e9}"];

/// A head, what it is answered with, and what the answer names.
fn heads() -> Vec<(v1::RequestHead, Code, &'static str)> {
    let header =
        |name: &str, value: &[u8]| v1::Header { name: name.into(), value: Bytes::copy_from_slice(value) };
    let head = v1::RequestHead::default;
    let with = |headers: Vec<v1::Header>| v1::RequestHead { headers, ..head() };
    let mut all = Vec::new();
    for method in ["G T", "GET\n", "\u{e9}", &"X".repeat(33)] {
        all.push((v1::RequestHead { method: method.into(), ..head() }, Code::InvalidArgument, "method"));
    }
    for url in ["/a b", "/a\nb", "/\u{7f}"] {
        all.push((v1::RequestHead { url: url.into(), ..head() }, Code::InvalidArgument, "url"));
    }
    all.push((v1::RequestHead { url: "u".repeat(16_385), ..head() }, Code::OutOfRange, "url"));
    for name in ["", "a b", "a:", "\u{e9}", "a\n"] {
        all.push((with(vec![header(name, b"x")]), Code::InvalidArgument, "headers"));
    }
    for value in [&b"a\nb"[..], b"a\rb", b"a\0b"] {
        all.push((with(vec![header("a", value)]), Code::InvalidArgument, "headers"));
    }
    all.push((with(vec![header("a", b"b"); 257]), Code::OutOfRange, "headers"));
    all.push((with(vec![header("a", &[b'x'; 65_536])]), Code::OutOfRange, "headers"));
    all
}

fn check(status: &Status, code: Code, names: &str) {
    let (seen, error) = reason(status);
    assert!(seen == code && error.message.contains(names), "{names}: {status:?}");
    assert_eq!((error.blame(), error.may_have_started), (stoker_core::Blame::Caller, false), "{status:?}");
}

#[tokio::test]
async fn invoke() {
    let stage = stage(config(), vec![echo()]).await;
    let mut client = stage.client().await;
    for function in NO_FUNCTIONS {
        let ask = v1::InvokeRequest { function: function.into(), ..Default::default() };
        check(&client.invoke(ask).await.expect_err(function), Code::InvalidArgument, "function");
    }
    let ask = v1::InvokeRequest { function: "a/none".into(), ..Default::default() };
    check(&client.invoke(ask).await.expect_err("none"), Code::NotFound, "a/none");
    for (head, code, names) in heads() {
        let ask = v1::InvokeRequest { function: "a/f".into(), head: Some(head), ..Default::default() };
        check(&client.invoke(ask).await.expect_err(names), code, names);
    }
    // Beside what a message may have, and beyond it.
    for size in [(4 << 20) + 1, 5 << 20] {
        let ask =
            v1::InvokeRequest { function: "a/f".into(), body: vec![0; size].into(), ..Default::default() };
        check(&client.invoke(ask).await.expect_err("too large"), Code::OutOfRange, "InvokeStream");
    }
    for timeout in ["", "5", "x", "123456789S", "-1S"] {
        let ask = v1::InvokeRequest { function: "a/f".into(), ..Default::default() };
        let mut ask = Request::new(ask);
        ask.metadata_mut().insert("grpc-timeout", timeout.parse().expect("a value"));
        check(&client.invoke(ask).await.expect_err(timeout), Code::InvalidArgument, "grpc-timeout");
    }
    let mut late = Request::new(v1::InvokeRequest { function: "a/f".into(), ..Default::default() });
    late.metadata_mut().insert("grpc-timeout", "0n".parse().expect("a value"));
    assert_eq!(client.invoke(late).await.expect_err("late").code(), Code::DeadlineExceeded);
    // And after all that the door works.
    stage.invoke("a/f", "x").await.expect("an answer");
}

#[tokio::test]
async fn invoke_stream() {
    use v1::invoke_stream_request::Frame as Ask;
    let stage = stage(config(), vec![streaming_echo()]).await;
    let client = stage.client().await;
    let call = |frames: Vec<Option<Ask>>| {
        let frames = frames.into_iter().map(|frame| v1::InvokeStreamRequest { frame });
        let mut client: CallServiceClient<Raw> = client.clone();
        async move {
            // The stream stays open: the client could still say more.
            let frames = tokio_stream::StreamExt::chain(
                tokio_stream::iter(frames.collect::<Vec<_>>()),
                tokio_stream::pending(),
            );
            let mut answer = client.invoke_stream(frames).await?.into_inner();
            while answer.message().await?.is_some() {}
            Ok::<_, Status>(())
        }
    };
    let start = |function: &str, head| Some(Ask::Start(v1::CallStart { function: function.into(), head }));
    for function in NO_FUNCTIONS {
        let status = call(vec![start(function, None)]).await.expect_err(function);
        check(&status, Code::InvalidArgument, "function");
    }
    for (head, code, names) in heads() {
        check(&call(vec![start("a/f", Some(head))]).await.expect_err(names), code, names);
    }
    let body = || Some(Ask::Body(Bytes::from_static(b"x")));
    for first in [None, body()] {
        let status = call(vec![first, start("a/f", None)]).await.expect_err("no start");
        check(&status, Code::InvalidArgument, "start");
    }
    // Found before the offer, or while the function reads: then it may have started.
    let large = Some(Ask::Body(Bytes::from(vec![0; 65_537])));
    for (frames, names) in [
        (vec![start("a/f", None), large], "65537"),
        (vec![start("a/f", None), body(), start("a/f", None)], "second `start`"),
    ] {
        let (code, error) = reason(&call(frames).await.expect_err(names));
        assert!(code == Code::InvalidArgument && error.message.contains(names), "{error}");
    }
}

#[tokio::test]
async fn session() {
    use v1::session_request::Frame as Ask;
    use v1::session_response::Frame as Say;
    let stage = stage(config(), vec![echo()]).await;
    let start =
        |function: &str| v1::SessionStart { function: function.into(), complete: true, ..Default::default() };
    // What is wrong with a call ends that call.
    let mut starts: Vec<_> = NO_FUNCTIONS
        .iter()
        .map(|function| (start(function), v1::ErrorCode::InvalidRequest, "function"))
        .collect();
    starts.push((start("a/none"), v1::ErrorCode::NotFound, "a/none"));
    for (head, code, names) in heads() {
        let code = match code {
            Code::OutOfRange => v1::ErrorCode::HeadersTooLarge,
            _ => v1::ErrorCode::InvalidRequest,
        };
        starts.push((v1::SessionStart { head: Some(head), ..start("a/f") }, code, names));
    }
    let (send, requests) = mpsc::channel(64);
    let mut answers =
        stage.client().await.session(ReceiverStream::new(requests)).await.expect("a session").into_inner();
    for (call, (start, code, names)) in (1..).zip(starts) {
        let ask = v1::SessionRequest { call, frame: Some(Ask::Start(start)) };
        send.send(ask).await.expect("it is read");
        let answer = answers.message().await.expect("no error").expect("more");
        let Some(Say::Finished(end)) = answer.frame else { panic!("{answer:?}") };
        let error = end.error.expect("an error");
        assert!(answer.call == call && error.code() == code && error.message.contains(names), "{error:?}");
        assert_eq!(error.blame(), v1::Blame::Caller);
    }
    // A trace that is too long is not carried, and nothing else happens; the longest time is as good as none.
    let long = "x".repeat(600);
    let ask = v1::SessionStart {
        traceparent: long.clone(),
        tracestate: long,
        timeout_ms: u64::MAX,
        ..start("a/f")
    };
    send.send(v1::SessionRequest { call: 1, frame: Some(Ask::Start(ask)) }).await.expect("it is read");
    let answer = answers.message().await.expect("no error").expect("more");
    assert!(matches!(answer.frame, Some(Say::Finished(end)) if end.error.is_none()));

    // What breaks the rules of the session ends the session, and names the frame.
    let body = |data: Vec<u8>| Ask::Body(v1::SessionBody { data: data.into(), last: false });
    let open = Ask::Start(v1::SessionStart { complete: false, ..start("a/f") });
    let silent = || play(|mut s| async move { while s.next().await.is_some() {} });
    let stage = crate::stage::stage(config(), vec![silent()]).await;
    for (frames, names) in [
        (vec![open.clone(), open.clone()], "start: call 1 runs already"),
        (vec![Ask::Start(v1::SessionStart { body: vec![0; 65_537].into(), ..start("a/f") })], "65537"),
        (vec![Ask::Start(start("a/f")), body(vec![1])], "body: the body of call 1 was complete"),
        (vec![open.clone(), body(vec![1])], "over its credit"),
    ] {
        let frames = frames.into_iter().map(|frame| v1::SessionRequest { call: 1, frame: Some(frame) });
        let frames: Vec<_> = frames.collect();
        let stream = tokio_stream::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending());
        let mut answers = stage.client().await.session(stream).await.expect("a session").into_inner();
        let status = answers.message().await.expect_err("a violation");
        assert!(status.code() == Code::InvalidArgument && status.message().contains(names), "{status:?}");
    }
}

#[tokio::test]
async fn functions() {
    let stage = stage(config(), vec![]).await;
    let mut client = FunctionServiceClient::new(stage.channel().await);
    let good = || v1::Function {
        app: "a".into(),
        name: "new".into(),
        command: vec!["/bin/true".into()],
        ..Default::default()
    };
    let long = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let trigger = |path: &str| vec![v1::Trigger { http: path.into(), ..Default::default() }];
    type Spoil = Box<dyn Fn(&mut v1::Function)>;
    let spoil = |spoil: fn(&mut v1::Function)| Box::new(spoil) as Spoil;
    let cases: Vec<(Spoil, &str)> = vec![
        (spoil(|f| f.app = "a b".into()), "name"),
        (spoil(|f| f.app = String::new()), "name"),
        (spoil(|f| f.name = "x".repeat(256)), "name"),
        (spoil(|f| f.command.clear()), "command"),
        (spoil(|f| f.command = vec!["a\0".into()]), "command"),
        (spoil(|f| f.command = vec!["a".into(); 300]), "command"),
        (spoil(|f| f.workdir = "relative".into()), "workdir"),
        (spoil(|f| f.rootfs = "relative".into()), "rootfs"),
        (spoil(|f| f.format = "xml".into()), "format"),
        (spoil(|f| f.memory = 5), "memory"),
        (spoil(|f| f.memory = u64::MAX), "memory"),
        (spoil(|f| f.cpu_millis = u32::MAX), "cpu"),
        (Box::new(move |f| f.timeout = long(-1)), "timeout"),
        (Box::new(move |f| f.timeout = long(i64::MAX)), "timeout"),
        (Box::new(move |f| f.init_timeout = long(0)), "init_timeout"),
        (Box::new(move |f| f.idle_timeout = long(i64::MAX)), "idle_timeout"),
        (spoil(|f| f.concurrency = 4), "concurrency"),
        (spoil(|f| f.concurrency = u32::MAX), "concurrency"),
        (spoil(|f| f.min_containers = u32::MAX), "min_containers"),
        (spoil(|f| f.max_containers = u32::MAX), "max_containers"),
        (spoil(|f| f.network = "some".into()), "network"),
        (spoil(|f| _ = f.env.insert("A=B".into(), String::new())), "env"),
        (spoil(|f| _ = f.env.insert("A".into(), "x".repeat(200_000))), "env"),
        (Box::new(move |f| f.triggers = trigger("no-slash")), "triggers"),
        (Box::new(move |f| f.triggers = trigger("/a?b")), "triggers"),
        (
            spoil(|f| f.triggers = vec![v1::Trigger { http: "/x".into(), ..Default::default() }; 65]),
            "triggers",
        ),
    ];
    for (spoil, field) in cases {
        let mut bad = good();
        spoil(&mut bad);
        // Behind one that is right, so that the answer must name the second, and must not have applied the first.
        let ask = v1::ApplyFunctionsRequest { functions: vec![good(), bad], hold: false };
        let status = client.apply_functions(ask).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        let details = tonic_types::StatusExt::get_error_details(&status);
        assert_eq!(details.error_info().expect("an ErrorInfo").reason, "INVALID_REQUEST");
        let wrong = &details.bad_request().expect("a BadRequest").field_violations;
        assert!(
            wrong.iter().any(|wrong| wrong.field == format!("functions[1].{field}")),
            "{field}: {wrong:?}"
        );
    }
    let ask = v1::ApplyFunctionsRequest { functions: vec![good(), good()], hold: false };
    let status = client.apply_functions(ask).await.expect_err("twice");
    assert!(tonic_types::StatusExt::get_error_details(&status).bad_request().is_some());
    assert_eq!(stage.registry.functions().borrow().by_name.len(), 3, "nothing was applied");

    for function in NO_FUNCTIONS {
        let ask = v1::GetFunctionRequest { function: function.into() };
        check(&client.get_function(ask).await.expect_err(function), Code::InvalidArgument, "function");
        let ask = v1::DeleteFunctionRequest { function: function.into() };
        check(&client.delete_function(ask).await.expect_err(function), Code::InvalidArgument, "function");
    }
    let ask = v1::GetFunctionRequest { function: "a/none".into() };
    check(&client.get_function(ask).await.expect_err("none"), Code::NotFound, "a/none");
    for app in ["a b", "a/f", &"x".repeat(256)] {
        let ask = v1::ListFunctionsRequest { app: app.into() };
        check(&client.list_functions(ask).await.expect_err(app), Code::InvalidArgument, "app");
    }
}

#[tokio::test]
async fn logs() {
    let stage = stage(config(), vec![echo()]).await;
    let mut client = FleetServiceClient::new(stage.channel().await);
    for function in NO_FUNCTIONS {
        let ask = v1::StreamLogsRequest { function: function.into(), ..Default::default() };
        check(&client.stream_logs(ask).await.expect_err(function), Code::InvalidArgument, "function");
    }
    let ask =
        v1::StreamLogsRequest { function: "a/f".into(), call_id: "nonsense".into(), ..Default::default() };
    check(&client.stream_logs(ask).await.expect_err("no id"), Code::InvalidArgument, "call_id");
}
