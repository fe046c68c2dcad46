//! Who is let in at which door, for what, and for how much; and what is noted of it.

use std::path::PathBuf;

use stoker_core::error::Retry;
use stoker_lb::Config;
use stoker_proto::v1::function_service_client::FunctionServiceClient;
use stoker_runtime::audit::Audit;
use stoker_runtime::auth::{hash, new_token};
use tonic::metadata::MetadataValue;

use crate::stage::*;

/// An access file and what is in it.
struct Site {
    directory: tempfile::TempDir,
    /// By name: may invoke `a`; may invoke `b` alone; may everything; may observe `a`.
    caller: String,
    stranger: String,
    operator: String,
    watcher: String,
}

fn entry(name: &str, token: &str, grants: &str) -> String {
    let hash: String = hash(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("  - {{name: {name}, sha256: {hash}, {grants}}}\n")
}

impl Site {
    fn new(more: &str) -> Self {
        let token = || new_token().expect("random numbers").0;
        let site = Self {
            directory: tempfile::tempdir().expect("a directory"),
            caller: token(),
            stranger: token(),
            operator: token(),
            watcher: token(),
        };
        site.write(
            &[
                entry("caller", &site.caller, "invoke: [a]"),
                entry("stranger", &site.stranger, "invoke: [b], manage: [b], observe: [b]"),
                entry("operator", &site.operator, "invoke: ['*'], manage: ['*'], observe: ['*']"),
                entry("watcher", &site.watcher, "observe: [a]"),
            ]
            .concat(),
            more,
        );
        site
    }

    fn write(&self, tokens: &str, more: &str) {
        std::fs::write(self.access(), format!("tokens:\n{tokens}{more}")).expect("a file");
    }

    fn access(&self) -> PathBuf {
        self.directory.path().join("access.yaml")
    }

    fn config(&self) -> Config {
        Config { access: Some(self.access()), ..config() }
    }
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().expect("a header");
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn invoke(stage: &Stage, token: &str, function: &str) -> Result<v1::InvokeResponse, Status> {
    let request = v1::InvokeRequest { function: function.into(), ..Default::default() };
    stage.client().await.invoke(with(token, request)).await.map(Response::into_inner)
}

/// A balancer behind an access file, with a runner whose link is seen by one who may.
async fn guarded(config: Config, site: &Site, play: Play) -> Stage {
    let stage = set(config, vec![(1, play)]).await;
    let mut fleet = stage.fleet().await;
    let watch = fleet
        .watch_fleet(with(&site.operator, v1::WatchFleetRequest {}))
        .await
        .expect("the operator sees it");
    let mut watch = watch.into_inner();
    while !watch
        .message()
        .await
        .expect("no error")
        .expect("more")
        .runners
        .iter()
        .any(|r| r.link() == v1::LinkState::Ready)
    {}
    stage
}

#[tokio::test]
async fn every_http_door_asks_and_answers_in_its_own_words() {
    let site = Site::new("");
    let (tell, mut offers) = mpsc::channel(16);
    let mirror = play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(offer) = s.offer().await {
                let call = offer.call;
                tell.send(offer).await.expect("the test reads");
                s.finish(call, "ok").await;
            }
        }
    });
    let stage = guarded(site.config(), &site, mirror).await;
    let mless = r#"{"env":{"AWS_LAMBDA_FUNCTION_NAME":"a/f"},"event":{}}"#;
    let doors = [
        (
            "POST /invoke/a/f",
            "",
            "401",
            "\"code\":\"UNAUTHENTICATED\"",
            "403",
            "\"code\":\"PERMISSION_DENIED\"",
        ),
        ("GET /t/a/hello/x", "", "401", "\"blame\":\"caller\"", "403", "\"blame\":\"caller\""),
        ("POST /invoke", mless, "401", "text/plain", "403", "text/plain"),
        (
            "POST /2015-03-31/functions/f/invocations",
            "{}",
            "403",
            "UnrecognizedClientException",
            "403",
            "AccessDeniedException",
        ),
        (
            "GET /2015-03-31/functions/f",
            "",
            "403",
            "UnrecognizedClientException",
            "403",
            "AccessDeniedException",
        ),
        (
            "DELETE /2015-03-31/functions/f",
            "",
            "403",
            "UnrecognizedClientException",
            "403",
            "AccessDeniedException",
        ),
    ];
    for (line, body, nobody, says, denied, says_denied) in doors {
        let ask = async |authorization: &str| {
            let length = body.len();
            let head =
                format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n");
            let answer = stage.http(&format!("{head}{authorization}\r\n{body}")).await;
            assert!(!answer.contains("stk_"), "no token is repeated: {answer}");
            answer
        };
        for nothing in [
            "",
            "authorization: Bearer stk_wrong\r\n",
            "authorization: Basic YTpi\r\n",
            "authorization: x\r\n",
        ] {
            let answer = ask(nothing).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {nobody}")) && answer.contains(says),
                "{line}: {answer}"
            );
            assert!(answer.contains("www-authenticate: Bearer"), "{answer}");
        }
        let answer = ask(&format!("authorization: Bearer {}\r\n", site.stranger)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {denied}")) && answer.contains(says_denied),
            "{line}: {answer}"
        );
        let twice = format!("authorization: Bearer {0}\r\nauthorization: Bearer {0}\r\n", site.caller);
        assert!(ask(&twice).await.starts_with("HTTP/1.1 400") || line == "POST /invoke", "{line}");
        if line.contains("DELETE") || line.contains("functions/f") && !line.contains("invocations") {
            continue;
        }
        let answer = ask(&format!("Authorization: bearer {}\r\nx-mine: 1\r\n", site.caller)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("ok"), "{line}: {answer}");
        let offer = offers.recv().await.expect("it was offered");
        let seen = format!("{:?}", offer.head);
        assert!(
            !seen.contains("authorization") && !seen.contains("stk_"),
            "a function sees no token of ours: {seen}"
        );
    }
    assert!(offers.try_recv().is_err(), "nothing else reached a runner");
}

#[tokio::test]
async fn every_method_of_grpc_asks() {
    let site = Site::new("");
    let stage = guarded(site.config(), &site, echo()).await;
    let code =
        |answer: Result<_, Status>| answer.map(|_: ()| Code::Ok).unwrap_or_else(|status| status.code());
    for (token, expected) in [
        ("", Code::Unauthenticated),
        ("stk_wrong", Code::Unauthenticated),
        (&site.stranger, Code::PermissionDenied),
        (&site.watcher, Code::PermissionDenied),
        (&site.caller, Code::Ok),
        (&site.operator, Code::Ok),
    ] {
        assert_eq!(code(invoke(&stage, token, "a/f").await.map(drop)), expected);
        let start = v1::InvokeStreamRequest {
            frame: Some(v1::invoke_stream_request::Frame::Start(v1::CallStart {
                function: "a/f".into(),
                head: None,
            })),
        };
        let mut client = stage.client().await;
        let streamed = match client.invoke_stream(with(token, tokio_stream::once(start))).await {
            Ok(answer) => answer.into_inner().message().await.map(drop),
            Err(status) => Err(status),
        };
        assert_eq!(code(streamed), expected);
    }
    let (code_of, error) = reason(&invoke(&stage, "", "a/f").await.expect_err("nobody"));
    assert_eq!(
        (code_of, error.code, error.retry),
        (Code::Unauthenticated, stoker_core::Code::Unauthenticated, Retry::Never)
    );

    let mut functions = FunctionServiceClient::new(stage.channel().await);
    let mut fleet = stage.fleet().await;
    let named = |function: &str| v1::GetFunctionRequest { function: function.into() };
    let apply = || v1::ApplyFunctionsRequest {
        functions: vec![v1::Function {
            app: "a".into(),
            name: "new".into(),
            command: vec!["/bin/true".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    for (token, get, list, change, see, drain) in [
        (
            "",
            Code::Unauthenticated,
            None,
            Code::Unauthenticated,
            Code::Unauthenticated,
            Code::Unauthenticated,
        ),
        (
            &site.caller,
            Code::PermissionDenied,
            Some(3),
            Code::PermissionDenied,
            Code::PermissionDenied,
            Code::PermissionDenied,
        ),
        (
            &site.stranger,
            Code::PermissionDenied,
            Some(0),
            Code::PermissionDenied,
            Code::PermissionDenied,
            Code::PermissionDenied,
        ),
        (
            &site.watcher,
            Code::Ok,
            Some(3),
            Code::PermissionDenied,
            Code::PermissionDenied,
            Code::PermissionDenied,
        ),
        (&site.operator, Code::Ok, Some(3), Code::Ok, Code::Ok, Code::Ok),
    ] {
        assert_eq!(code(functions.get_function(with(token, named("a/f"))).await.map(drop)), get);
        let listed = functions.list_functions(with(token, v1::ListFunctionsRequest::default())).await;
        assert_eq!(listed.ok().map(|list| list.into_inner().functions.len()), list);
        assert_eq!(code(functions.apply_functions(with(token, apply())).await.map(drop)), change);
        let delete = v1::DeleteFunctionRequest { function: "a/new".into() };
        assert_eq!(code(functions.delete_function(with(token, delete)).await.map(drop)), change);
        let logs = v1::StreamLogsRequest { function: "a/f".into(), ..Default::default() };
        assert_eq!(code(fleet.stream_logs(with(token, logs)).await.map(drop)), get);
        assert_eq!(code(fleet.list_runners(with(token, v1::ListRunnersRequest {})).await.map(drop)), see);
        assert_eq!(code(fleet.watch_fleet(with(token, v1::WatchFleetRequest {})).await.map(drop)), see);
        let one = v1::DrainRunnerRequest { runner: "r0".into() };
        assert_eq!(code(fleet.drain_runner(with(token, one)).await.map(drop)), drain);
        let one = v1::UncordonRunnerRequest { runner: "r0".into() };
        assert_eq!(code(fleet.uncordon_runner(with(token, one)).await.map(drop)), drain);
    }
    // What says nothing of anybody is everybody's.
    let mut health = tonic_health::pb::health_client::HealthClient::new(stage.channel().await);
    assert!(
        health.check(tonic_health::pb::HealthCheckRequest::default()).await.is_ok(),
        "probes have no token"
    );
}

#[tokio::test]
async fn a_session_lives_longer_than_a_token_and_its_calls_do_not() {
    let site = Site::new("");
    let stage = guarded(site.config(), &site, echo()).await;
    let (send, frames) = mpsc::channel(8);
    let mut client = stage.client().await;
    let session = client.session(with(&site.caller, ReceiverStream::new(frames))).await.expect("it opens");
    let mut answers = session.into_inner();
    let mut call = async |number: u64, function: &str| {
        let start = v1::SessionStart { function: function.into(), complete: true, ..Default::default() };
        let frame = Some(v1::session_request::Frame::Start(start));
        send.send(v1::SessionRequest { call: number, frame }).await.expect("it is open");
        let message = answers.message().await.expect("no error").expect("an answer");
        let Some(v1::session_response::Frame::Finished(finished)) = message.frame else {
            panic!("{message:?}")
        };
        finished.error.map(convert::call_error).map(|error| error.code)
    };
    use stoker_core::Code as C;
    assert_eq!(call(1, "a/f").await, None);
    assert_eq!(call(2, "b/f").await, Some(C::NotFound));
    site.write(&entry("caller", &site.caller, "invoke: [b]"), "");
    stage.balancer.reload(10).expect("a good file");
    assert_eq!(call(3, "a/f").await, Some(C::PermissionDenied), "it may something else now");
    site.write(&entry("operator", &site.operator, "invoke: ['*']"), "");
    stage.balancer.reload(10).expect("a good file");
    assert_eq!(call(4, "a/f").await, Some(C::Unauthenticated), "it is nobody now");
    assert!(invoke(&stage, &site.caller, "a/f").await.is_err());
    std::fs::write(site.access(), "tokens: [nonsense").expect("a file");
    assert!(stage.balancer.reload(10).is_err());
    assert!(invoke(&stage, &site.operator, "a/f").await.is_ok(), "a file with mistakes changes nothing");
}

#[tokio::test]
async fn one_who_has_had_its_share_is_told_when_to_come_again() {
    let site = Site::new("limits:\n  - {identity: caller, calls_per_second: 0.01, burst: 3}\n");
    let stage = guarded(site.config(), &site, echo()).await;
    for _ in 0..3 {
        invoke(&stage, &site.caller, "a/f").await.expect("its share");
    }
    let (code, error) = reason(&invoke(&stage, &site.caller, "a/f").await.expect_err("no more"));
    assert_eq!((code, error.code), (Code::ResourceExhausted, stoker_core::Code::RateLimited));
    assert_eq!(error.blame(), stoker_core::Blame::Caller);
    assert!(matches!(error.retry, Retry::After(wait) if wait > Duration::from_secs(50)), "{error:?}");
    let token = &site.caller;
    let line = format!(
        "POST /invoke/a/f HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    let answer = stage.http(&line).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 429") && answer.contains("retry-after: "), "{answer}");
    let line = line.replace("/invoke/a/f", "/2015-03-31/functions/f/invocations");
    let answer = stage.http(&line).await;
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("TooManyRequestsException"), "{answer}");
    invoke(&stage, &site.operator, "a/f").await.expect("another has its own");
}

#[tokio::test]
async fn one_who_has_sent_more_than_its_share_of_bytes_pays_it_off_first() {
    let site = Site::new("limits:\n  - {app: a, bytes_per_second: 10, bytes_burst: 1500}\n");
    let stage = guarded(site.config(), &site, echo()).await;
    let send = |size: usize| {
        let request =
            v1::InvokeRequest { function: "a/f".into(), body: vec![b'x'; size].into(), ..Default::default() };
        let request = with(&site.caller, request);
        async { stage.client().await.invoke(request).await }
    };
    // The answer is as long as the request.
    send(500).await.expect("within its share");
    send(1000).await.expect("it is let in while anything is left");
    let (code, error) = reason(&send(0).await.expect_err("it has a debt"));
    assert_eq!((code, error.code), (Code::ResourceExhausted, stoker_core::Code::RateLimited));
    // 1,500 bytes of debt, ten a second.
    assert!(matches!(error.retry, Retry::After(wait) if wait > Duration::from_secs(100)), "{error:?}");
    invoke(&stage, &site.operator, "a/f").await.expect_err("the app's share is everybody's");
}

#[tokio::test]
async fn anybody_may_what_is_for_anybody_and_its_headers_are_the_functions() {
    let site = Site::new("anybody: {invoke: [a]}\n");
    let (tell, mut offers) = mpsc::channel(4);
    let mirror = play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(offer) = s.offer().await {
                let call = offer.call;
                tell.send(offer).await.expect("the test reads");
                s.finish(call, "ok").await;
            }
        }
    });
    let stage = guarded(site.config(), &site, mirror).await;
    let line = "GET /t/a/hello/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer of-the-function\r\n\r\n";
    assert!(stage.http(line).await.starts_with("HTTP/1.1 200"));
    let head = format!("{:?}", offers.recv().await.expect("it was offered").head);
    assert!(head.contains("of-the-function"), "{head}");
    let mut functions = FunctionServiceClient::new(stage.channel().await);
    let delete = v1::DeleteFunctionRequest { function: "a/f".into() };
    let status = functions.delete_function(delete).await.expect_err("anybody may not");
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn changes_and_refusals_are_noted_with_who_it_was_and_without_what_they_showed() {
    let site = Site::new("");
    let path = site.directory.path().join("audit.jsonl");
    let (audit, keeper) = Audit::into_file(&path).expect("a file");
    let stage = guarded(Config { audit, ..site.config() }, &site, echo()).await;
    let mut functions = FunctionServiceClient::new(stage.channel().await);
    let delete = |function: &str| v1::DeleteFunctionRequest { function: function.into() };
    functions.delete_function(with(&site.operator, delete("a/again"))).await.expect("it may");
    functions.delete_function(with(&site.operator, delete("a/none"))).await.expect_err("there is none");
    functions.delete_function(with(&site.stranger, delete("a/f"))).await.expect_err("it may not");
    functions.delete_function(with("stk_forged", delete("a/f"))).await.expect_err("it is nobody");
    let one = v1::DrainRunnerRequest { runner: "r0".into() };
    stage.fleet().await.drain_runner(with(&site.operator, one)).await.expect("it may");
    // By the other doors: of which function, whatever its path says.
    let send = async |path: &str, body: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}",
            site.operator
        );
        let answer = stage.http(&format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
        let json = answer.split_once("\r\n\r\n").expect("a body").1.to_owned();
        let json: serde_json::Value =
            serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {answer}"));
        json["id"].as_str().unwrap_or_default().to_owned()
    };
    let app = send("/v2/apps", r#"{"name": "made"}"#).await;
    let function =
        format!(r#"{{"app_id": "{app}", "name": "one", "image": "nowhere/x@sha256:{}"}}"#, "0".repeat(64));
    let function = send("/v2/fns", &function).await;
    let trigger =
        format!(r#""app_id": "{app}", "fn_id": "{function}", "name": "t", "type": "http", "source": "/t""#);
    send("/v2/triggers", &format!("{{{trigger}}}")).await;
    send("/2015-03-31/functions", r#"{"FunctionName": "lambda", "Code": {}}"#).await;
    drop(stage);
    keeper.stop(Duration::from_secs(10));
    let text = std::fs::read_to_string(&path).expect("it is there");
    assert!(!text.contains("stk_"), "{text}");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |line: &serde_json::Value| {
        let part = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let on = line["on"][0].as_str().unwrap_or_default().to_owned();
        assert!(part("remote").starts_with("127.0.0.1:") && part("time").ends_with('Z'), "{line}");
        [part("what"), part("identity"), on, part("outcome")]
    };
    let noted: Vec<_> = lines.iter().map(of).collect();
    for expected in [
        ["delete", "operator", "a/again", "ok"],
        ["delete", "operator", "a/none", "NOT_FOUND"],
        ["manage", "stranger", "a", "PERMISSION_DENIED"],
        ["authenticate", "", "", "UNAUTHENTICATED"],
        ["drain", "operator", "r0", "ok"],
        ["create_app", "operator", "made", "ok"],
        ["create_fn", "operator", "made/one", "ok"],
        ["create_trigger", "operator", "made/one", "ok"],
        ["POST /2015-03-31/functions", "operator", "lambda", "INVALID_REQUEST"],
    ] {
        assert!(noted.iter().any(|line| line == &expected), "{expected:?} in {noted:?}");
    }
}
