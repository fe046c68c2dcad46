//! What the doors have to do with a function's format: which version takes a call, whose status an answer has, and `POST /invoke`
//! for the proxies of mless.

use stoker_core::Format;
use stoker_core::function::{CloudEvents, FormatOptions};

use crate::stage::*;

/// Tells what was defined and offered, and answers as `answer` says.
fn teller(
    tell: mpsc::Sender<(Vec<wire::Define>, wire::Offer)>,
    answer: impl Fn(&wire::Offer) -> wire::Finished + Send + Sync + 'static,
) -> Play {
    let answer = Arc::new(answer);
    play(move |mut s| {
        let (tell, answer) = (tell.clone(), answer.clone());
        async move {
            let mut defined = Vec::new();
            while let Some(frame) = s.next().await {
                match frame {
                    In::Define(define) => defined.push(*define),
                    In::Offer(offer) => {
                        let finished = answer(&offer);
                        tell.send((std::mem::take(&mut defined), offer)).await.expect("the test reads");
                        s.send(Out::Finished(Box::new(finished))).await;
                    }
                    other => panic!("{other:?} where an offer was due"),
                }
            }
        }
    })
}

fn finished(call: u64, status: u32, body: impl Into<Bytes>) -> wire::Finished {
    let head = Some(v1::ResponseHead { status, headers: Vec::new() });
    wire::Finished { call, head, body: body.into(), ..Default::default() }
}

fn spec(app: &str, name: &str) -> FunctionSpec {
    FunctionSpec::new(FunctionName::new(app, name).expect("a name"), vec!["/bin/true".into()], "/".into())
}

#[tokio::test]
async fn an_event_reaches_a_version_of_its_own_where_that_is_asked() {
    let (tell, mut told) = mpsc::channel(8);
    let stage = stage(config(), vec![teller(tell, |o| finished(o.call, 200, "x"))]).await;
    let options = FormatOptions {
        cloudevents: CloudEvents::V1_0,
        cloudevents_by_content_type: true,
        ..FormatOptions::default()
    };
    let forced = FunctionSpec { format: Format::Http, format_options: options, ..spec("a", "forced") };
    stage.registry.apply_functions(vec![forced.clone()]).await.expect("valid");
    let mut client = stage.client().await;
    let event = "Application/CloudEvents+JSON; charset=utf-8";
    let mut digests = Vec::new();
    for (function, kind, defines) in [
        ("a/forced", "text/plain", Some("http")),
        ("a/forced", event, Some("cloudevent")),
        ("a/forced", event, None),
        ("a/f", event, Some("default")),
    ] {
        let header = v1::Header { name: "Content-Type".into(), value: kind.into() };
        let head = v1::RequestHead { headers: vec![header], ..Default::default() };
        let ask = v1::InvokeRequest {
            function: function.into(),
            head: Some(head),
            body: "{}".into(),
            ..Default::default()
        };
        client.invoke(ask).await.expect("an answer");
        let (defined, offer) = told.recv().await.expect("an offer");
        let formats: Vec<_> =
            defined.iter().map(|d| d.function.as_ref().expect("a function").format.as_str()).collect();
        assert_eq!(formats, Vec::from_iter(defines), "{function} {kind}");
        for define in defined {
            // The runner checks it as any other, and finds the digest that it was told.
            let spec = convert::function(define.function.expect("a function")).expect("valid");
            assert_eq!(define.digest, spec.digest().0[..]);
            if spec.format == Format::CloudEvent {
                assert_eq!(spec.format_options.cloudevents, CloudEvents::V1_0);
            }
        }
        digests.push(offer.digest);
    }
    assert!(digests[0] != digests[1] && digests[1] == digests[2], "one version each");
    // Through HTTP as well.
    let post = "POST /invoke/a/forced HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n";
    stage.http(&format!("{post}content-type: application/cloudevents+json\r\n\r\n{{}}")).await;
    assert_eq!(told.recv().await.expect("an offer").1.digest, digests[1]);
}

#[tokio::test]
async fn an_answer_has_the_status_that_its_format_gave_it() {
    let (tell, mut told) = mpsc::channel(8);
    let status = |offer: &wire::Offer| {
        let url = &offer.head.as_ref().expect("a head").url;
        url.rsplit_once('=').and_then(|(_, n)| n.parse().ok()).expect("a status")
    };
    let stage = stage(config(), vec![teller(tell, move |o| finished(o.call, status(o), "text"))]).await;
    for path in ["/invoke/a/f", "/t/a/hello/x"] {
        for (said, seen) in
            [(200, 200), (201, 201), (404, 404), (500, 500), (101, 200), (0, 200), (70_000, 200)]
        {
            let request = format!("POST {path}?s={said} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let answer = stage.http(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {seen} ")), "{path} {said}: {answer}");
            assert!(answer.ends_with("text"), "it is an answer and no error of ours: {answer}");
            told.recv().await.expect("an offer");
        }
    }
}

/// A request as a proxy writes it.
fn proxied(function: &str, event: &str) -> String {
    format!(
        r#"{{"context":{{"aws_request_id":"r-1","client_context":{{"client":
            {{"app_title":"t"}}}},"identity":{{"cognito_identity_id":"i"}},"invoked_function_arn":"arn:x",
            "log_group_name":"g"}},"remaining":60000,
            "env":{{"AWS_LAMBDA_FUNCTION_NAME":"{function}","PATH":"/evil","SECRET":"s"}},"event":{event}}}"#
    )
}

async fn ask(stage: &Stage, line: &str, body: &str) -> (String, String) {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: h:1\r\nx-own: 1\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let answer = stage.http(&request).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn a_proxy_of_mless_is_served_as_its_daemon_did() {
    let (tell, mut told) = mpsc::channel(8);
    let stage = stage(config(), vec![teller(tell, |o| finished(o.call, 200, o.body.clone()))]).await;
    stage.registry.apply_functions(vec![spec("b", "only"), spec("b", "f")]).await.expect("valid");
    let event = r#"{"z":1.10,"a":[ 1 ]}"#;
    // By its own name where that is enough, else with its app; in whatever way it was sent.
    for (line, name) in [
        ("POST /invoke", "only"),
        ("POST /invoke?x=1", "b.only"),
        ("PUT /invoke", "b/only"),
        ("POST /invoke", "a.f"),
    ] {
        let (head, body) = ask(&stage, line, &proxied(name, event)).await;
        assert!(head.starts_with("http/1.1 200 "), "{name}: {head}");
        assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
        assert!(head.contains("fn-call-id: "), "{head}");
        assert_eq!(body, format!("{event}\n"));
        let (defined, offer) = told.recv().await.expect("an offer");
        assert_eq!(offer.body, event, "as it was written");
        assert!((50_000..=60_000).contains(&offer.remaining_ms), "{}", offer.remaining_ms);
        let head = offer.head.expect("a head");
        assert_eq!((head.intent(), head.method.as_str()), (v1::Intent::Invoke, "POST"));
        let headers: Vec<_> = head.headers.iter().map(|h| h.name.as_str()).collect();
        let wanted = [
            "content-type",
            "lambda-runtime-aws-request-id",
            "lambda-runtime-invoked-function-arn",
            "lambda-runtime-client-context",
            "lambda-runtime-cognito-identity",
        ];
        assert_eq!(headers, wanted, "the request's own headers were its proxy's");
        for define in defined {
            let function = define.function.expect("a function");
            assert!(function.env.is_empty(), "no caller sets the environment: {:?}", function.env);
        }
    }
    // Fn's door is where it was.
    let (head, body) = ask(&stage, "POST /invoke/a/f", "raw").await;
    assert!(head.starts_with("http/1.1 200 ") && body == "raw", "{head} {body}");
}

#[tokio::test]
async fn an_error_for_a_proxy_is_a_text_whatever_it_is() {
    let failing = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let call = offer.call;
            if offer.body == "\"status\"" {
                s.send(Out::Finished(Box::new(finished(call, 418, "tea")))).await;
                continue;
            }
            let error =
                stoker_core::Error::new(stoker_core::Code::FunctionFailed, r#"{"errorMessage":"no"}"#);
            let error = Some(convert::to_call_error(&error));
            s.send(Out::Finished(Box::new(wire::Finished { call, error, ..Default::default() }))).await;
        }
    });
    let stage = stage(config(), vec![failing]).await;
    stage.registry.apply_functions(vec![spec("b", "f")]).await.expect("valid");
    let expired = proxied("a.f", "1").replace("60000", "-1");
    let control = proxied("a.f", "1").replace("r-1", "r\\u0000");
    for (body, text) in [
        (proxied("a.f", "1").as_str(), r#"{"errorMessage":"no"}"#),
        (proxied("a.f", "\"status\"").as_str(), "tea"),
        (proxied("none", "1").as_str(), "no such function"),
        (proxied("", "1").as_str(), "no function name"),
        (proxied("f", "1").as_str(), "functions of several apps are called `f`: write app.f"),
        ("{}", "no function name"),
        ("rubbish", "the request is not what a proxy sends: "),
        ("", "the request is not what a proxy sends: EOF"),
        (&expired, "the deadline had passed before the call came in"),
        (&control, "headers: the value of header"),
    ] {
        let (head, said) = ask(&stage, "POST /invoke", body).await;
        assert!(head.starts_with("http/1.1 500 "), "{text}: {head}");
        assert!(head.contains("content-type: text/plain; charset=utf-8"), "{text}: {head}");
        assert!(head.contains("fn-call-id: "), "{text}: {head}");
        assert!(said.starts_with(text) && said.ends_with('\n'), "{text}: {said}");
    }
    // Too large by its own word, of which nothing is waited for; or without one.
    for rest in ["content-length: 12845057\r\n\r\n", "transfer-encoding: chunked\r\n\r\nc40001\r\n"] {
        let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
        socket
            .write_all(format!("POST /invoke HTTP/1.1\r\nhost: x\r\n{rest}").as_bytes())
            .await
            .expect("it reads");
        if rest.starts_with("transfer") {
            socket.write_all(&vec![b' '; 12_845_057]).await.expect("it reads");
        }
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, *b"HTTP/1.1 500");
    }
    // Others are told as everywhere: this shape is the proxies' alone.
    let (head, said) = ask(&stage, "POST /invoke/", "x").await;
    assert!(head.starts_with("http/1.1 404 ") && said.contains("\"code\":\"NOT_FOUND\""), "{head} {said}");
}

#[tokio::test]
async fn half_of_a_proxys_request_is_no_call_and_keeps_no_place() {
    let (tell, mut told) = mpsc::channel(8);
    let config = Config { max_calls: 1, ..config() };
    let stage = stage(config, vec![teller(tell, |o| finished(o.call, 200, "x"))]).await;
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let half =
        b"POST /invoke HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n{\"env\"";
    socket.write_all(half).await.expect("it reads");
    // It is being read: it has the one place.
    socket.read_exact(&mut [0; 25]).await.expect("it is asked for the rest");
    let (head, said) = ask(&stage, "POST /invoke", &proxied("a.f", "1")).await;
    assert!(head.starts_with("http/1.1 500 ") && head.contains("retry-after: 1"), "{head}");
    assert!(said.contains("has 1 calls already"), "{said}");
    // Given back when its client goes, which is seen before the next on the same connection would be.
    socket.shutdown().await.expect("a socket");
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.expect("it is closed");
    let (head, _) = ask(&stage, "POST /invoke", &proxied("f", "1")).await;
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert_eq!(told.recv().await.expect("an offer").1.body, "1");
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn of_functions_of_one_name_that_of_the_app_default_is_meant() {
    let (tell, mut told) = mpsc::channel(8);
    let stage = stage(config(), vec![teller(tell, |o| finished(o.call, 200, "x"))]).await;
    for (app, status) in [("b", "500"), ("default", "200"), ("z", "200")] {
        stage.registry.apply_functions(vec![spec(app, "f")]).await.expect("valid");
        let (head, said) = ask(&stage, "POST /invoke", &proxied("f", "1")).await;
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{app}: {head} {said}");
    }
    // It is defined at the first of its calls, and nothing else is.
    let (defined, first) = told.recv().await.expect("an offer");
    let names: Vec<_> = defined.into_iter().filter_map(|d| d.function).map(|f| (f.app, f.name)).collect();
    assert_eq!(names, [("default".to_owned(), "f".to_owned())]);
    let (defined, second) = told.recv().await.expect("an offer");
    assert!(defined.is_empty() && first.digest == second.digest);
}
