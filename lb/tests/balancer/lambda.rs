//! AWS Lambda's HTTP API: names, headers, errors that SDKs understand and do not send again, answers in a stream of events.

use std::path::{Path, PathBuf};

use stoker_core::Format;
use stoker_core::error::{Code as Why, Error, Report, Retry};
use stoker_core::function::FormatOptions;

use crate::stage::*;

fn spec(app: &str, name: &str) -> FunctionSpec {
    FunctionSpec::new(FunctionName::new(app, name).expect("a name"), vec!["/bin/true".into()], "/".into())
}

/// An answer: its status, its head in lower case, its body.
struct Seen {
    status: u16,
    head: String,
    body: String,
}

impl Seen {
    fn has(&self, header: &str) -> bool {
        self.head.contains(&format!("\r\n{header}"))
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn ask(stage: &Stage, line: &str, headers: &str, body: &str) -> Seen {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: h:1\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    let answer = stage.http(&request).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let (head, body) = (head.to_lowercase(), body.to_owned());
    assert!(head.contains("\r\nx-amzn-requestid: ") && head.contains("\r\nfn-call-id: "), "{head}");
    Seen { status, head, body }
}

const INVOKE: &str = "POST /2015-03-31/functions/only/invocations";

/// Tells its offers, and answers with what the body asks for.
fn actor(tell: mpsc::Sender<wire::Offer>) -> Play {
    play(move |mut s| {
        let tell = tell.clone();
        async move {
            while let Some(offer) = s.offer().await {
                let call = offer.call;
                let fail = |error: Error| {
                    let error = Some(convert::to_call_error(&error));
                    Out::Finished(Box::new(wire::Finished { call, error, ..Default::default() }))
                };
                let report = |body: &'static str| Report {
                    kind: "T".into(),
                    content_type: "application/json".into(),
                    body: Bytes::from_static(body.as_bytes()),
                };
                let after = Retry::After(Duration::from_secs(3));
                match &offer.body[..] {
                    b"\"error\"" => {
                        let error = Error::new(Why::FunctionFailed, "no").may_have_started();
                        s.send(fail(error.report(report(r#"{"errorMessage":"own"}"#)))).await;
                    }
                    b"\"crash\"" => s.send(fail(Error::new(Why::FunctionCrashed, "it fell"))).await,
                    b"\"lost\"" => s.send(fail(Error::new(Why::RunnerLost, "gone").may_have_started())).await,
                    b"\"full\"" => s.send(fail(Error::new(Why::Overloaded, "full").retry(after))).await,
                    b"\"away\"" => s.send(fail(Error::new(Why::Unavailable, "away").retry(after))).await,
                    b"\"bad\"" => s.send(fail(Error::new(Why::InvalidRequest, "bad"))).await,
                    b"\"status\"" => {
                        let head = Some(v1::ResponseHead { status: 418, headers: Vec::new() });
                        let body = Bytes::from_static(b"tea");
                        s.send(Out::Finished(Box::new(wire::Finished {
                            call,
                            head,
                            body,
                            ..Default::default()
                        })))
                        .await;
                    }
                    b"\"pieces\"" | b"\"broken\"" => {
                        s.send(Out::Head(wire::Head { call, head: ok(), length: None })).await;
                        for data in ["one ", "two "] {
                            let data = Bytes::from_static(data.as_bytes());
                            s.send(Out::Body(wire::Body { call, data, last: false, ..Default::default() }))
                                .await;
                        }
                        match &offer.body[..] {
                            b"\"pieces\"" => s.finish(call, "three").await,
                            _ => s.send(fail(Error::new(Why::FunctionCrashed, "fell over"))).await,
                        }
                    }
                    _ => s.finish(call, offer.body.clone()).await,
                }
                // Nobody reads where only the answer matters.
                tell.try_send(offer).ok();
            }
        }
    })
}

async fn set_up() -> (Stage, mpsc::Receiver<wire::Offer>) {
    let (tell, told) = mpsc::channel(64);
    let stage = stage(config(), vec![actor(tell)]).await;
    stage.registry.apply_functions(vec![spec("b", "only"), spec("b", "f")]).await.expect("valid");
    (stage, told)
}

#[tokio::test]
async fn an_invocation_brings_its_context_and_takes_its_answer() {
    let (stage, mut told) = set_up().await;
    // {"custom":{"a":1}}
    let headers = "X-Amz-Client-Context: eyJjdXN0b20iOnsiYSI6MX19\r\nX-Amz-Tenant-Id: t1\r\nX-Amzn-Trace-Id: Root=1-2-3\r\n\
        Authorization: AWS4-HMAC-SHA256 secret\r\n";
    let seen = ask(&stage, INVOKE, headers, r#"{"a": 1.10}"#).await;
    assert_eq!((seen.status, seen.body.as_str()), (200, r#"{"a": 1.10}"#));
    assert!(seen.has("x-amz-executed-version: $latest") && seen.has("content-type: application/json"));
    assert!(!seen.has("x-amz-function-error") && !seen.has("x-amz-log-result"));
    let offer = told.recv().await.expect("an offer");
    let head = offer.head.expect("a head");
    let said: Vec<_> =
        head.headers.iter().map(|h| format!("{}: {}", h.name, String::from_utf8_lossy(&h.value))).collect();
    let id = stoker_core::CallId::from_slice(&offer.call_id).expect("an id").to_string();
    let uuid = format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]);
    assert_eq!(
        said,
        [
            "content-type: application/json",
            "lambda-runtime-invoked-function-arn: arn:aws:lambda:us-east-1:012345678912:function:only",
            r#"lambda-runtime-client-context: {"custom":{"a":1}}"#,
            "lambda-runtime-aws-tenant-id: t1",
            "x-amzn-trace-id: Root=1-2-3",
            &format!("lambda-runtime-aws-request-id: {uuid}"),
        ],
        "and no signature"
    );
    assert!(seen.has(&format!("x-amzn-requestid: {uuid}")));
    // Every way to name it; nothing is an empty object; a dry run runs nothing.
    for name in [
        "b.only",
        "only:$LATEST",
        "012345678912:function:only",
        "arn%3Aaws%3Alambda%3Ar%3A1%3Afunction%3Aonly",
        "only?Qualifier=$LATEST",
    ] {
        let line = match name.split_once('?') {
            Some((name, query)) => format!("POST /2015-03-31/functions/{name}/invocations?{query}"),
            None => format!("POST /2015-03-31/functions/{name}/invocations"),
        };
        let seen = ask(&stage, &line, "", "").await;
        assert_eq!((seen.status, seen.body.as_str()), (200, "{}"), "{name}");
        told.recv().await.expect("an offer");
    }
    let dry = ask(&stage, INVOKE, "x-amz-invocation-type: DryRun\r\n", "").await;
    assert_eq!((dry.status, dry.body.as_str()), (204, ""));
    assert!(told.try_recv().is_err());
    // What the function wrote.
    let seen = ask(&stage, INVOKE, "x-amz-log-type: Tail\r\n", "1").await;
    // `line of only`, in base64 and, like the whole head here, in lower case.
    let log = "bGluZSBvZiBvbmx5Cg==".to_lowercase();
    assert!(seen.has(&format!("x-amz-log-result: {log}")), "{}", seen.head);
}

#[tokio::test]
async fn a_function_that_failed_is_a_call_that_succeeded() {
    let (stage, _told) = set_up().await;
    for (body, said) in [
        ("\"error\"", r#"{"errorMessage":"own"}"#),
        ("\"crash\"", r#"{"errorMessage":"it fell","errorType":"Stoker.FUNCTION_CRASHED"}"#),
        ("\"status\"", "tea"),
    ] {
        let seen = ask(&stage, INVOKE, "x-amz-log-type: Tail\r\n", body).await;
        assert_eq!((seen.status, seen.body.as_str()), (200, said));
        assert!(seen.has("x-amz-function-error: unhandled") && seen.has("x-amz-executed-version: $latest"));
        assert!(seen.has("x-amz-log-result: "), "{}", seen.head);
    }
    let seen = ask(&stage, INVOKE, "", "\"pieces\"").await;
    assert_eq!((seen.status, seen.body.as_str()), (200, "one two three"));
    let seen = ask(&stage, INVOKE, "", "\"broken\"").await;
    assert!(seen.status == 200 && seen.has("x-amz-function-error: ") && seen.body.contains("fell over"));
}

#[tokio::test]
async fn everything_else_has_a_name_that_kits_know() {
    let (stage, _told) = set_up().await;
    let large = format!("\"{}\"", "x".repeat(20));
    let named = |name: &str| format!("POST /2015-03-31/functions/{name}/invocations");
    for (line, headers, body, status, kind, text) in [
        (
            named("none"),
            "",
            "{}",
            404,
            "ResourceNotFoundException",
            "Function not found: arn:aws:lambda:us-east-1:012345678912:function:none:$LATEST",
        ),
        (named("only:7"), "", "{}", 404, "ResourceNotFoundException", "function:only:7"),
        (named("f"), "", "{}", 400, "InvalidParameterValueException", "write app.f"),
        (named("a%20b"), "", "{}", 400, "InvalidParameterValueException", "FunctionName"),
        (
            named("only"),
            "",
            "{",
            400,
            "InvalidRequestContentException",
            "Could not parse request body into json",
        ),
        (
            named("only"),
            "x-amz-invocation-type: Event\r\n",
            "{}",
            400,
            "InvalidParameterValueException",
            "keeps no calls",
        ),
        (
            named("only"),
            "x-amz-invocation-type: Later\r\n",
            "{}",
            400,
            "InvalidParameterValueException",
            "Later",
        ),
        (named("only"), "x-amz-log-type: All\r\n", "{}", 400, "InvalidParameterValueException", "All"),
        (named("only"), "x-amz-client-context: ?\r\n", "{}", 400, "InvalidRequestContentException", "Base64"),
        (
            named("only"),
            "x-amz-client-context: MQ==\r\n",
            "{}",
            400,
            "InvalidRequestContentException",
            "Base64",
        ),
        (named("only"), "", "\"bad\"", 400, "InvalidParameterValueException", "bad"),
        (named("only"), "", "\"full\"", 429, "TooManyRequestsException", "Rate Exceeded."),
        (named("only"), "", "\"away\"", 503, "ServiceException", "away"),
        // It may have run: no status that kits take as a reason to send it again.
        (named("only"), "", "\"lost\"", 409, "InvocationMayHaveStartedException", "gone"),
        (
            "POST /2014-11-13/functions/only/invoke-async/".to_owned(),
            "",
            "{}",
            400,
            "InvalidParameterValueException",
            "keeps no calls",
        ),
        (
            "POST /2015-03-31/functions".to_owned(),
            "",
            "{}",
            400,
            "InvalidParameterValueException",
            "FunctionName",
        ),
        (
            "GET /2025-11-30/capacity-providers".to_owned(),
            "",
            &large,
            501,
            "NotImplementedException",
            "not in this version",
        ),
    ] {
        let seen = ask(&stage, &line, headers, body).await;
        assert_eq!(seen.status, status, "{line} {headers} {body}: {}", seen.body);
        assert!(seen.has(&format!("x-amzn-errortype: {}", kind.to_lowercase())), "{line}: {}", seen.head);
        let json = seen.json();
        assert!(json["message"].as_str().is_some_and(|said| said.contains(text)), "{line}: {json}");
        assert_eq!(json["Type"], if status < 500 { "User" } else { "Service" });
        let waits = ["\"full\"", "\"away\""].contains(&body);
        assert_eq!(seen.has("retry-after: 3"), waits, "{line}: {}", seen.head);
    }
    // Too large by its own word.
    let mut socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
    let head = format!("{INVOKE} HTTP/1.1\r\nhost: x\r\ncontent-length: 6291457\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("it reads");
    let mut answer = [0; 12];
    socket.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, *b"HTTP/1.1 413");
}

/// The events of a stream: their types and payloads, with lengths and checksums looked at.
fn events(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (event, rest) = bytes.split_at(number(bytes));
        let headers = number(&event[4..]);
        let text = String::from_utf8_lossy(&event[12..12 + headers]).into_owned();
        let kind = ["PayloadChunk", "InvokeComplete"].into_iter().find(|kind| text.contains(kind));
        events.push((kind.expect("a kind").to_owned(), event[12 + headers..event.len() - 4].to_vec()));
        bytes = rest;
    }
    events
}

#[tokio::test]
async fn a_streamed_answer_is_a_stream_of_events() {
    use http_body_util::{BodyExt as _, Full};
    let (stage, _told) = set_up().await;
    for (body, pieces, end) in [
        ("\"pieces\"", "one two three", "{}"),
        ("\"plain\"", "\"plain\"", "{}"),
        (
            "\"broken\"",
            "one two ",
            r#"{"ErrorCode":"Unhandled","ErrorDetails":"{\"errorMessage\":\"fell over\",\"errorType\":\"Stoker.FUNCTION_CRASHED\"}"}"#,
        ),
        ("\"error\"", "", r#"{"ErrorCode":"Unhandled","ErrorDetails":"{\"errorMessage\":\"own\"}"}"#),
    ] {
        let socket = TcpStream::connect(stage.balancer.http_address()).await.expect("it listens");
        let io = hyper_util::rt::TokioIo::new(socket);
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.expect("it speaks HTTP");
        tokio::spawn(connection);
        let request = http::Request::post("/2021-11-15/functions/only/response-streaming-invocations")
            .header("host", "x")
            .body(Full::new(Bytes::from_static(body.as_bytes())));
        let answer = send.send_request(request.expect("a request")).await.expect("an answer");
        assert_eq!(answer.status(), 200, "{body}");
        assert_eq!(answer.headers()["content-type"], "application/vnd.amazon.eventstream");
        assert_eq!(answer.headers()["x-amz-executed-version"], "$LATEST");
        let bytes = answer.into_body().collect().await.expect("to its end").to_bytes();
        let mut events = events(&bytes);
        let (kind, last) = events.pop().expect("an end");
        assert_eq!(
            (kind.as_str(), String::from_utf8_lossy(&last).as_ref()),
            ("InvokeComplete", end),
            "{body}"
        );
        assert!(events.iter().all(|(kind, _)| kind == "PayloadChunk"));
        let joined: Vec<u8> = events.into_iter().flat_map(|(_, data)| data).collect();
        assert_eq!(String::from_utf8_lossy(&joined), pieces, "{body}");
    }
    let seen = ask(&stage, "POST /2021-11-15/functions/none/response-streaming-invocations", "", "{}").await;
    assert_eq!(seen.status, 404);
}

#[tokio::test]
async fn functions_are_described_and_changed_as_aws_does() {
    let (stage, _told) = set_up().await;
    let mut spec = FunctionSpec { format: Format::Mless, ..spec("b", "handled") };
    spec.format_options = FormatOptions { handler: "f.h".into(), ..FormatOptions::default() };
    spec.env.insert("A".into(), "1".into());
    stage.registry.apply_functions(vec![spec]).await.expect("valid");
    let functions = "/2015-03-31/functions";
    let seen = ask(&stage, &format!("GET {functions}/handled"), "", "").await.json();
    let configuration = &seen["Configuration"];
    for (key, value) in [
        ("FunctionName", "handled"),
        ("FunctionArn", "arn:aws:lambda:us-east-1:012345678912:function:handled"),
        ("State", "Active"),
        ("LastUpdateStatus", "Successful"),
        ("Version", "$LATEST"),
        ("Handler", "f.h"),
    ] {
        assert_eq!(configuration[key], value, "{key}");
    }
    assert_eq!((&configuration["Timeout"], &configuration["MemorySize"]), (&30.into(), &128.into()));
    // Pages.
    let (mut names, mut marker) = (Vec::new(), String::new());
    loop {
        let page = ask(&stage, &format!("GET {functions}/?MaxItems=2{marker}"), "", "").await.json();
        let list = page["Functions"].as_array().expect("a list");
        assert!(list.len() <= 2);
        names.extend(list.iter().map(|f| f["FunctionName"].as_str().expect("a name").to_owned()));
        match page["NextMarker"].as_str() {
            Some(next) => marker = format!("&Marker={next}"),
            None => break,
        }
    }
    assert_eq!(names, ["a.f", "again", "b.f", "handled", "large", "only"]);
    assert_eq!(ask(&stage, &format!("GET {functions}?MaxItems=0"), "", "").await.status, 400);
    // Changes.
    let put = format!("PUT {functions}/handled/configuration");
    let revision = configuration["RevisionId"].as_str().expect("a revision").to_owned();
    let change = format!(
        r#"{{"Timeout":7,"MemorySize":256,"Handler":"g.h","Environment":{{"Variables":{{"B":"2"}}}},"RevisionId":"{revision}","Role":"r"}}"#
    );
    let changed = ask(&stage, &put, "", &change).await;
    assert_eq!((changed.status, &changed.json()["Timeout"]), (200, &7.into()));
    let now = ask(&stage, &format!("GET {functions}/handled/configuration"), "", "").await.json();
    assert_eq!((&now["MemorySize"], &now["Handler"]), (&256.into(), &"g.h".into()));
    assert_eq!(now["Environment"]["Variables"], serde_json::json!({"B": "2"}));
    for (body, status, text) in [
        (change.as_str(), 412, "RevisionId"),
        (r#"{"Layers":["l"]}"#, 400, "at 'layers'"),
        (r#"{"Timeout":"soon"}"#, 400, "Timeout"),
        (r#"{"Timeout":0}"#, 400, "timeout"),
        (r#"{"MemorySize":0,"Timeout":0}"#, 400, "memory"),
        ("[]", 400, "UpdateFunctionConfiguration"),
    ] {
        let seen = ask(&stage, &put, "", body).await;
        assert_eq!(seen.status, status, "{body}: {}", seen.body);
        assert!(seen.body.contains(text), "{body}: {}", seen.body);
    }
    assert_eq!(ask(&stage, &format!("DELETE {functions}/handled"), "", "").await.status, 204);
    assert_eq!(ask(&stage, &format!("DELETE {functions}/handled"), "", "").await.status, 404);
}

/// A file of a kit, or `None` (said on STDOUT) where the kit is not installed.
pub fn installed(kit: &str, file: &str) -> Option<PathBuf> {
    let kits = std::env::var_os("STOKER_TEST_KITS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-kits"), PathBuf::from);
    let path = kits.join(kit).join(file);
    let there = path.exists();
    if !there {
        println!("left out: {} is not there: run scripts/test", path.display());
    }
    there.then_some(path)
}

/// The folder of the SDK for JavaScript.
pub fn installed_node() -> Option<PathBuf> {
    let package = installed("aws", "node/node_modules/@aws-sdk/client-lambda/package.json")?;
    package.ancestors().nth(4).map(Path::to_owned)
}

/// Runs a caller against a balancer of its own.
async fn called(program: &Path, script: &str, kit: Option<&Path>) {
    let (stage, _told) = set_up().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdks").join(script);
    let endpoint = format!("http://{}", stage.balancer.http_address());
    let out = tokio::process::Command::new(program).arg(script).args(kit).arg(endpoint).output().await;
    let out = out.expect("it runs");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.ends_with("done\n"), "{said}\n{complained}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_finds_what_it_expects() {
    if let Some(python) = installed("aws", "python/bin/python") {
        called(&python, "boto3_caller.py", None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_sdk_finds_what_it_expects() {
    if let Some(kit) = installed_node() {
        called(Path::new("node"), "javascript_caller.mjs", Some(&kit)).await;
    }
}
