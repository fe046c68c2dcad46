//! HTTP: paths, methods, headers, limits, clients that are slow or leave; and what is served beside the calls.

use crate::stage::*;

#[tokio::test]
async fn http_doors() {
    let stage = stage(config(), vec![echo()]).await;
    let id = FunctionName::new("a", "f").expect("a name").id();
    let by_id = format!("POST /invoke/{id}");
    for (line, body, status, text) in [
        ("POST /invoke/a/f", "hi", "200", "hi"),
        (&by_id, "hi", "200", "hi"),
        ("PUT /t/a/hello/x?q=1", "ho", "200", "ho"),
        ("GET /invoke/a/f", "", "405", "METHOD_NOT_ALLOWED"),
        ("HEAD /invoke/a/f", "", "405", "allow: POST, OPTIONS"),
        ("OPTIONS /invoke/a/f", "", "204", "allow: POST, OPTIONS"),
        ("GET /", "", "200", "hello"),
        ("POST /invoke/", "", "404", "NOT_FOUND"),
        ("POST /invoke/a/f/g", "", "404", "NOT_FOUND"),
        ("HEAD /t/a/hello/x", "", "200", "fn-call-id"),
        ("POST /invoke/a/none", "", "404", "\"blame\":\"caller\""),
        ("POST /t/a/none", "", "404", "NOT_FOUND"),
        ("POST /invoke/a/large", "", "400", "RESOURCES_IMPOSSIBLE"),
    ] {
        let request = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = stage.http(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text),
            "{request} -> {answer}"
        );
        assert!(answer.to_lowercase().contains("fn-call-id: "), "{answer}");
    }
}

#[tokio::test]
async fn an_error_is_json_with_five_fields_and_a_time_to_retry() {
    let config = Config { max_wait: Duration::from_millis(1), ..config() };
    let stage = stage(config, vec![refusing(wire::RefusalReason::Full)]).await;
    let answer = stage.http("POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let head = head.to_lowercase();
    assert!(head.starts_with("http/1.1 503") && head.contains("retry-after: "), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    assert!(head.contains("stoker-error: overloaded"), "{head}");
    let json: serde_json::Value = serde_json::from_str(body).expect("it is JSON");
    let id = json["call_id"].as_str().expect("an id");
    assert!(head.contains(&format!("fn-call-id: {id}")), "{head}");
    assert_eq!(
        (&json["code"], &json["blame"], &json["retry"]),
        (&"OVERLOADED".into(), &"platform".into(), &"after".into())
    );
    assert!(json["message"].is_string());
}

/// Tells what it was offered, and answers with headers that must not all pass.
fn mirror(tell: mpsc::Sender<wire::Offer>) -> Play {
    play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(offer) = s.offer().await {
                let header = |name: &str, value: &'static str| v1::Header {
                    name: name.into(),
                    value: Bytes::from_static(value.as_bytes()),
                };
                let headers = vec![
                    header("X-Out", "1"),
                    header("x-out", "2"),
                    header("Connection", "x-private"),
                    header("X-Private", "no"),
                    header("Transfer-Encoding", "chunked"),
                    header("Content-Length", "77"),
                    header("Fn-Call-Id", "forged"),
                    header("Stoker-Error", "forged"),
                ];
                let head = Some(v1::ResponseHead { status: 418, headers });
                let done = wire::Finished { call: offer.call, head, ..Default::default() };
                tell.send(offer).await.expect("the test reads");
                s.send(Out::Finished(Box::new(done))).await;
            }
        }
    })
}

#[tokio::test]
async fn headers_pass_but_for_those_between_neighbours() {
    let (tell, mut told) = mpsc::channel(1);
    let stage = stage(config(), vec![mirror(tell)]).await;
    let headers = "host: h:1\r\nconnection: close, x-mine\r\nX-Mine: 1\r\nX-App: 2\r\nx-app: 3\r\nte: trailers\r\n\
        Fn-Call-Id: forged\r\ntraceparent: 00-1-2-01\r\ncontent-type: text/x";
    for (line, intent, method, url) in [
        ("POST /invoke/a/f?q=1", v1::Intent::Invoke, "POST", "http://h:1/invoke/a/f?q=1"),
        ("PATCH /t/a/hello/x?q=1", v1::Intent::HttpRequest, "PATCH", "http://h:1/t/a/hello/x?q=1"),
    ] {
        let answer = stage.http(&format!("{line} HTTP/1.1\r\n{headers}\r\n\r\n")).await.to_lowercase();
        let offer = told.recv().await.expect("an offer");
        let head = offer.head.expect("a head");
        assert_eq!((head.intent(), head.method.as_str(), head.url.as_str()), (intent, method, url));
        let seen: Vec<_> = head.headers.iter().map(|h| (h.name.as_str(), &h.value[..])).collect();
        for wanted in [("x-app", &b"2"[..]), ("x-app", b"3"), ("content-type", b"text/x"), ("host", b"h:1")] {
            assert!(seen.contains(&wanted), "{wanted:?} in {seen:?}");
        }
        let private = ["connection", "x-mine", "te", "fn-call-id", "content-length"];
        assert!(!seen.iter().any(|(name, _)| private.contains(name)), "{seen:?}");
        assert_eq!(offer.traceparent, "00-1-2-01");
        assert!(answer.starts_with("http/1.1 418"), "{answer}");
        assert!(answer.contains("x-out: 1") && answer.contains("x-out: 2"), "{answer}");
        for no in ["x-private", "chunked", "forged", "length: 77"] {
            assert!(!answer.contains(no), "{no} in {answer}");
        }
    }
}

#[tokio::test]
async fn bodies_of_every_shape() {
    let stage = stage(config(), vec![echo()]).await;
    let post = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    // Whole, in one packet; the echo answers what the offer carried.
    assert!(stage.http(&format!("{post}content-length: 2\r\n\r\nhi")).await.ends_with("hi"));
    // Expect: the balancer asks for the body, and not before it knows the function.
    for (path, expected) in [("a/f", "HTTP/1.1 100 Continue\r\n\r\n"), ("a/none", "HTTP/1.1 404")] {
        let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
        let head = format!(
            "POST /invoke/{path} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.expect("it reads");
        let mut seen = vec![0; expected.len()];
        socket.read_exact(&mut seen).await.expect("an answer");
        assert_eq!(String::from_utf8_lossy(&seen), expected);
    }
    // A small body that comes in drops is waited for.
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    for part in [post, "content-length: 4\r\n\r\n", "d", "ro", "p"] {
        socket.write_all(part.as_bytes()).await.expect("it reads");
        socket.flush().await.expect("it reads");
    }
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.ends_with("drop"), "{answer}");
}

#[tokio::test]
async fn a_status_that_nobody_registered_has_no_reason() {
    let play = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let head = Some(v1::ResponseHead { status: 299, headers: Vec::new() });
            let body = offer.body;
            let finished = wire::Finished { call: offer.call, head, body, ..Default::default() };
            s.send(Out::Finished(Box::new(finished))).await;
        }
    });
    let stage = stage(config(), vec![play]).await;
    let post = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nb";
    let answer = stage.http(post).await;
    assert!(answer.starts_with("HTTP/1.1 299 \r\n") && answer.ends_with("\r\n\r\nb"), "{answer}");
}

/// Many clients by HTTP/1.1 look for no answer before they have sent all of a body.
#[tokio::test]
async fn who_sends_all_before_he_reads_finds_the_answer_however_early_it_was() {
    let stage = stage(config(), vec![echo()]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let piece = vec![b'x'; 1 << 20];
    // The second time on the same connection, which goes on.
    for path in ["/invoke/a/none", "/t/a/none"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 40 << 20);
        socket.write_all(head.as_bytes()).await.expect("it reads");
        for _ in 0..40 {
            socket.write_all(&piece).await.expect("it reads");
        }
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert!(socket.read_buf(&mut answer).await.expect("an answer") > 0, "it ended");
        }
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("NOT_FOUND"), "{answer}");
    }
}

/// One that was told to send its body sends it, whatever the function has answered meanwhile.
#[tokio::test]
async fn a_body_that_was_asked_for_is_read_though_its_function_has_answered() {
    let (answered, mut early) = mpsc::channel(4);
    let play = play(move |mut s| {
        let answered = answered.clone();
        async move {
            if let Some(offer) = s.offer().await {
                s.finish(offer.call, "no need").await;
                answered.send(()).await.ok();
            }
            // What it did not need comes all the same, or the word that it will not.
            while s.next().await.is_some() {}
        }
    });
    let stage = stage(config(), vec![play]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let (length, go_on) = (6 << 20, "HTTP/1.1 100 Continue\r\n\r\n");
    let head = format!(
        "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("it reads");
    let mut told = vec![0; go_on.len()];
    socket.read_exact(&mut told).await.expect("the word to send");
    assert_eq!(String::from_utf8_lossy(&told), go_on);
    early.recv().await.expect("the function answers");
    socket.write_all(&vec![b'x'; length]).await.expect("it is read");
    let mut answer = Vec::new();
    while !answer.ends_with(b"no need") {
        assert!(socket.read_buf(&mut answer).await.expect("an answer") > 0, "it ended");
    }
    // And its connection goes on.
    socket.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it reads");
    let mut next = Vec::new();
    assert!(socket.read_buf(&mut next).await.expect("an answer") > 0, "it ended");
    assert!(next.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&next));
}

#[tokio::test]
async fn half_a_body_is_no_call() {
    let (tell, mut told) = mpsc::channel(4);
    let stage = stage(config(), vec![mirror(tell)]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let half = b"POST /invoke/a/f HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf";
    socket.write_all(half).await.expect("it reads");
    drop(socket);
    // And one that still listens is told.
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    socket.write_all(half).await.expect("it reads");
    socket.shutdown().await.expect("it is connected");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 499 Client Closed Request\r\n"), "{answer}");
    stage.invoke("a/f", "whole").await.expect("an answer");
    assert_eq!(told.recv().await.expect("an offer").body, "whole");
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn limits_are_named() {
    let stage = stage(Config { max_body: 1000, ..config() }, vec![streaming_echo()]).await;
    let many: String = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(70_000));
    let url = format!("/invoke/a/f?{}", "q".repeat(17_000));
    let text = "x".repeat(1001);
    let chunked = format!("transfer-encoding: chunked\r\n\r\n3e9\r\n{text}\r\n0\r\n\r\n");
    for (path, rest, status, text) in [
        ("/invoke/a/f", format!("content-length: 1001\r\n\r\n{text}"), "413", "more than 1000 bytes"),
        ("/invoke/a/f", chunked, "413", "more than 1000 bytes"),
        ("/invoke/a/f", format!("{many}\r\n"), "431", "at most 256"),
        ("/invoke/a/f", format!("{large}\r\n"), "431", "at most 65536"),
        (url.as_str(), "\r\n".to_owned(), "431", "16384"),
    ] {
        let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{rest}");
        let answer = stage.http(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text), "{answer}");
        assert!(answer.to_lowercase().contains("fn-call-id: "), "{answer}");
    }
}

#[tokio::test]
async fn both_ports_speak_what_they_should() {
    use http_body_util::{BodyExt as _, Full};
    let stage = stage(config(), vec![echo()]).await;
    // HTTP/2 without TLS on the HTTP port.
    let socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let (mut send, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(socket),
    )
    .await
    .expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post("http://x/invoke/a/f").body(Full::new(Bytes::from_static(b"two")));
    let answer = send.send_request(request.expect("a request")).await.expect("an answer");
    assert!(answer.headers().contains_key("fn-call-id"));
    assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "two");
}

#[tokio::test]
async fn operators_see_functions_fleet_and_logs() {
    use v1::function_service_client::FunctionServiceClient;
    let stage = stage(config(), vec![echo(), echo()]).await;
    stage.invoke("a/f", "x").await.expect("an answer");
    let mut functions = FunctionServiceClient::new(stage.channel().await);
    let bad =
        v1::Function { app: "a".into(), name: "no name".into(), format: "x".into(), ..Default::default() };
    let ask = v1::ApplyFunctionsRequest { functions: vec![bad], hold: false };
    let status = functions.apply_functions(ask).await.expect_err("it is wrong");
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert!(details.bad_request().expect("details").field_violations.len() >= 3);
    let command = vec!["/bin/true".into()];
    let good = v1::Function { app: "a".into(), name: "new".into(), command, ..Default::default() };
    functions
        .apply_functions(v1::ApplyFunctionsRequest { functions: vec![good], hold: false })
        .await
        .expect("applied");
    stage.invoke("a/new", "x").await.expect("it is there for the very next call");
    let gone = v1::DeleteFunctionRequest { function: "a/new".into() };
    functions.delete_function(gone).await.expect("deleted");
    assert_eq!(stage.invoke("a/new", "x").await.expect_err("gone").code(), Code::NotFound);
    assert_eq!(stage.registry.functions().borrow().by_name.len(), 3);
    stage.linked(2).await;
    let mut fleet = FleetServiceClient::new(stage.channel().await);
    let ask = v1::StreamLogsRequest { function: "a/f".into(), ..Default::default() };
    let logs = fleet.stream_logs(ask).await.expect("a stream").into_inner();
    let lines: Vec<_> = logs.map(|message| message.expect("no error").lines.len()).collect().await;
    assert_eq!(lines, [1, 1]);
}

#[tokio::test]
async fn health_and_reflection_answer() {
    use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    use tonic_reflection::pb::{v1, v1alpha};
    let stage = stage(config(), vec![]).await;
    let mut health = HealthClient::new(stage.channel().await);
    for service in ["", "stoker.v1.CallService", "stoker.v1.FunctionService", "stoker.v1.FleetService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.expect("known");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
    }
    let unknown = health.check(HealthCheckRequest { service: "x".into() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);

    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(stage.channel().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::once(ask)).await.expect("served").into_inner();
    let answer = answers.message().await.expect("no error").expect("one").message_response;
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let (reflection, older) =
        ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection");
    let ours = ["stoker.v1.CallService", "stoker.v1.FleetService", "stoker.v1.FunctionService"];
    assert_eq!(names, [&["grpc.health.v1.Health", reflection, older][..], &ours].concat());
    let mut runner = RunnerServiceClient::new(stage.channel().await);
    let none = runner.get_status(wire::GetStatusRequest {}).await.expect_err("it is not served here");
    assert_eq!(none.code(), Code::Unimplemented);
    assert!(none.message().contains("stoker.runner.v1.RunnerService"), "{none:?}");

    let symbol = "stoker.v1.CallService".to_owned();
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            symbol,
        )),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(stage.channel().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::once(ask)).await.expect("served").into_inner();
    let answer = answers.message().await.expect("no error").expect("one").message_response;
    use v1alpha::server_reflection_response::MessageResponse as Old;
    assert!(matches!(answer, Some(Old::FileDescriptorResponse(_))), "{answer:?}");
}

#[tokio::test]
async fn one_who_follows_hears_runners_that_come_later() {
    let stage = stage(config(), vec![]).await;
    let mut fleet = FleetServiceClient::new(stage.channel().await);
    let ask = v1::StreamLogsRequest { function: "a/f".into(), follow: true, ..Default::default() };
    let mut logs = fleet.stream_logs(ask).await.expect("a stream").into_inner();
    for n in 0..2 {
        let _registration = runner(&stage.registry, n, 1, echo()).await;
        let lines = logs.message().await.expect("no error").expect("lines").lines;
        assert_eq!(lines[0].runner, format!("r{n}"));
    }
}

#[tokio::test]
async fn paths_match_as_fn_matches_them() {
    let stage = stage(config(), vec![echo()]).await;
    for (line, status) in [
        ("POST /invoke/%61/f", "200"),
        ("POST /invoke/a%2ff", "200"),
        ("PUT /t/a/hel%6Co/x?q=%zz", "200"),
        ("PUT /t/a%2Fhello/x", "200"),
        ("PUT /t/a/hello/%58", "404"),
        ("POST /invoke/%ff/f", "404"),
        ("POST /invoke/a/f%2", "400"),
        ("POST /invoke/a/%zzf", "400"),
    ] {
        let answer = stage.http(&format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line} -> {answer}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_http_is_the_callers_mistake() {
    // One who reads to the end before it answers, and so never answers this.
    let reader = play(|mut s| async move {
        while let Some(frame) = s.next().await {
            if let In::Offer(wire::Offer { call, .. }) = frame {
                s.send(Out::Started(wire::Started { call, container: "c".into() })).await;
                s.send(Out::Credit(wire::Credit { call, bytes: 256 * 1024 })).await;
            }
        }
    });
    let stage = stage(config(), vec![reader]).await;
    let post =
        "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    for chunk in ["xyz\r\nhi\r\n0\r\n\r\n", "2\r\nhiho\r\n0\r\n\r\n", "ffffffffffffffffffff\r\nhi"] {
        let answer = stage.http(&format!("{post}{chunk}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("INVALID_REQUEST"),
            "{chunk:?} -> {answer}"
        );
        assert!(answer.contains("\"blame\":\"caller\""), "{answer}");
    }
}

#[tokio::test]
async fn one_call_too_many_is_refused_and_the_next_is_not() {
    let (tell, mut told) = mpsc::channel(4);
    let (finish, finished) = tokio::sync::watch::channel(false);
    let slow = play(move |mut s| {
        let (tell, mut finished) = (tell.clone(), finished.clone());
        async move {
            let mut held = Vec::new();
            for _ in 0..2 {
                held.push(s.offer().await.expect("an offer"));
                tell.send(()).await.expect("the test reads");
            }
            finished.wait_for(|go| *go).await.expect("the test says so");
            for offer in held {
                s.finish(offer.call, "held").await;
            }
            while let Some(offer) = s.offer().await {
                s.finish(offer.call, "later").await;
            }
        }
    });
    let stage = stage(Config { max_calls: 2, ..config() }, vec![slow]).await;
    let post = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let ((), first, second) = tokio::join!(
        async {
            for _ in 0..2 {
                told.recv().await.expect("an offer");
            }
            let refused = stage.http(post).await.to_lowercase();
            assert!(refused.starts_with("http/1.1 503") && refused.contains("overloaded"), "{refused}");
            assert!(refused.contains("retry-after: 1"), "{refused}");
            let (code, error) = reason(&stage.invoke("a/f", "x").await.expect_err("it is full"));
            assert_eq!((code, error.code), (Code::ResourceExhausted, stoker_core::Code::Overloaded));
            finish.send_replace(true);
        },
        stage.http(post),
        stage.http(post)
    );
    assert!(first.ends_with("held") && second.ends_with("held"), "{first} {second}");
    assert!(stage.http(post).await.ends_with("later"));
}

#[tokio::test]
async fn a_request_that_no_server_is_to_take_is_refused() {
    let stage = stage(config(), vec![echo()]).await;
    for (hosts, good) in
        [("host: x:80\r\n", true), ("", false), ("host: x\r\nhost: y\r\n", false), ("host: a b\r\n", false)]
    {
        let request =
            format!("POST /invoke/a/f HTTP/1.1\r\n{hosts}connection: close\r\ncontent-length: 2\r\n\r\nhi");
        let answer = stage.http(&request).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), good, "{hosts:?}: {answer}");
        assert!(good || answer.starts_with("HTTP/1.1 400") && answer.contains("Host"), "{hosts:?}: {answer}");
    }
    let coded = "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
        transfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let answer = stage.http(coded).await;
    assert!(answer.starts_with("HTTP/1.1 501") && answer.contains("only chunked is understood"), "{answer}");
    let old = "POST /invoke/a/f HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi";
    assert!(stage.http(old).await.starts_with("HTTP/1.0 200"));
}
