//! Zips as AWS's users have them: a handler and nothing else, whose runtime client is not in the zip but belongs to the platform.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use stoker_lb::{LambdaCode, LambdaConfig};
use stoker_tests::fleet::{Fleet, Plan};

use super::zips::{aws, right, zipped};

const PYTHON: &str = r#"
import logging
import time
from decimal import Decimal
logging.getLogger().setLevel("INFO")
def handler(event, context):
    logging.info("a record")
    print("a line")
    if "raise" in event:
        raise KeyError("lost" * event["raise"])
    if "lambda" in event:
        return lambda: 1
    if "odd" in event:
        raise type("Nötig\r\nx: y", (Exception,), {})("odd")
    if "back" in event:
        return {"came": len(event["text"]), "text": "x" * event["back"]}
    if "hang" in event:
        time.sleep(60)
    return {"got": event, "half": Decimal("0.5"), "umlaut": "ü", "version": context.function_version, "name": context.function_name,
            "client": context.client_context and context.client_context.custom, "time": context.get_remaining_time_in_millis() > 0,
            "identity": context.identity.cognito_identity_id}
"#;

const NODE: &str = r#"
exports.promised = async (event, context) => {
  if (event.throw) throw new TypeError('lost');
  return { got: event, version: context.functionVersion, time: context.getRemainingTimeInMillis() > 0 };
};
exports.called = (event, context, callback) => setImmediate(() => callback(event.bad ? new RangeError('far') : null, { got: event }));
exports.nothing = () => { setImmediate(() => {}); };
// As tools that wrap handlers see whether one streams.
exports.marked = async () => exports.streams[Symbol.for('aws.lambda.runtime.handler.streaming')];
exports.inner = { succeeds: (event, context) => context.succeed('done') };
exports.rejects = () => { Promise.reject(new Error('nobody waits')); return new Promise(() => {}); };
exports.large = async (event) => ({ came: event.text.length, text: 'x'.repeat(event.back) });
exports.odd = async () => { throw Object.assign(new Error('odd'), { name: 'N\u00f6tig\r\nx: y' }); };
exports.pieces = awslambda.streamifyResponse(async (event, stream) => {
  stream.setContentType('text/plain');
  for (const piece of ['one ', '', { two: 2 }, Buffer.from(' three '), String(stream.writableHighWaterMark)]) stream.write(piece);
  try { stream.setContentType('text/late'); } catch (error) { stream.write(` ${error.name}`); }
  await new Promise(setImmediate);
  if (event.fails) throw new RangeError('half');
  if (event.leaves) return stream.destroy();
  stream.end('.');
}, { highWaterMark: 4096 });
exports.streams = awslambda.streamifyResponse(async (event, stream, context) => {
  stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { 'x-made': 'by hand' } });
  for (const piece of ['one ', 'two ', context.functionName]) stream.write(piece);
  stream.end();
});
"#;

/// A runtime client that knows one answer.
const CLIENT: &str = r#"
const api = `http://${process.env.AWS_LAMBDA_RUNTIME_API}/2018-06-01/runtime/invocation`;
for (;;) {
  const next = await fetch(`${api}/next`);
  await next.text();
  await fetch(`${api}/${next.headers.get('lambda-runtime-aws-request-id')}/response`, { method: 'POST', body: '"its own"' });
}
"#;

pub async fn start() -> (tempfile::TempDir, Fleet) {
    let directory = tempfile::tempdir().unwrap();
    let mut plan = Plan::default();
    plan.resources.memory = 2 << 30;
    let code = Some(LambdaCode::Directory(directory.path().join("code")));
    plan.balancer.lambda = LambdaConfig { code, ..LambdaConfig::default() };
    (directory, plan.start([]).await)
}

pub fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("left out: {program} is missing");
    }
    there
}

pub fn function(name: &str, runtime: &str, handler: &str, zip: &str) -> Value {
    json!({"FunctionName": name, "Role": "r", "Runtime": runtime, "Handler": handler, "Timeout": 20, "Code": {"ZipFile": zip}})
}

/// What a function that failed says.
async fn failure(fleet: &Fleet, name: &str, event: &Value) -> (String, String) {
    let path = format!("/2015-03-31/functions/{name}/invocations");
    let page = fleet.clients.page("POST", &path, &[], event.to_string()).await;
    assert_eq!((page.status, page.header("x-amz-function-error")), (200, "Unhandled"), "{name}");
    let said: Value = serde_json::from_slice(&page.body).unwrap();
    let text = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
    (text("errorType"), text("errorMessage"))
}

/// An event that comes in many pieces, an answer that leaves in many, and one that is too long.
async fn long(fleet: &Fleet, name: &str) {
    let (path, text) = (format!("/{name}/invocations"), "ü".repeat(2 << 20));
    let said = right(fleet, "POST", &path, &json!({"text": text, "back": 5 << 20})).await;
    assert_eq!((&said["came"], said["text"].as_str().unwrap().len()), (&json!(2 << 20), 5 << 20));
    let (kind, text) = failure(fleet, name, &json!({"text": "", "back": 8 << 20})).await;
    assert_eq!(kind, "Function.ResponseSizeTooLarge", "{text}");
    let said = right(fleet, "POST", &path, &json!({"text": "once more", "back": 1})).await;
    assert_eq!(said, json!({"came": 9, "text": "x"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_python() {
    if !has("python3") {
        return;
    }
    let (_directory, fleet) = start().await;
    let zip = zipped(&[
        ("app/func.py", PYTHON.as_bytes()),
        ("broken.py", b"def f(:"),
        ("bad.py", b"import absent"),
    ]);
    right(&fleet, "POST", "", &function("good", "python3.12", "app/func.handler", &zip)).await;
    let said = right(&fleet, "POST", "/good/invocations", &json!({"a": [1, "ü"]})).await;
    let wanted = json!({"got": {"a": [1, "ü"]}, "half": 0.5, "umlaut": "ü", "version": "$LATEST", "name": "good", "client": null,
        "time": true, "identity": null});
    assert_eq!(said, wanted);
    assert_eq!(failure(&fleet, "good", &json!({"raise": 1})).await, ("KeyError".into(), "'lost'".into()));
    // An error has a limit of its own, and its handler goes on.
    let (kind, text) = failure(&fleet, "good", &json!({"raise": 1 << 20})).await;
    assert_eq!(kind, "Function.ResponseSizeTooLarge");
    assert!(text.ends_with("Error: The function's error has more than 1048576 bytes"), "{text}");
    let (kind, text) = failure(&fleet, "good", &json!({"lambda": 1})).await;
    assert_eq!(kind, "Runtime.MarshalError");
    assert!(text.contains("function is not JSON serializable"), "{text}");
    // It becomes a header, and its handler is asked again.
    assert_eq!(failure(&fleet, "good", &json!({"odd": 1})).await, ("Nötig\r\nx: y".into(), "odd".into()));
    long(&fleet, "good").await;
    // What it wrote before its time was over is in its log.
    right(&fleet, "PUT", "/good/configuration", &json!({"Timeout": 1})).await;
    let tail = [("x-amz-log-type".to_owned(), "Tail".to_owned())];
    let path = "/2015-03-31/functions/good/invocations";
    let page = fleet.clients.page("POST", path, &tail, r#"{"hang": 1}"#.to_owned()).await;
    let log = BASE64.decode(page.header("x-amz-log-result")).unwrap();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("a line") && log.contains("Task timed out after 1.00 seconds"), "{log}");
    for (at, (handler, kind, text)) in [
        ("broken.f", "Runtime.UserCodeSyntaxError", "Syntax error in module 'broken'"),
        ("bad.f", "Runtime.ImportModuleError", "Unable to import module 'bad': No module named 'absent'"),
        ("app/func.absent", "Runtime.HandlerNotFound", "Handler 'absent' missing on module 'app.func'"),
        ("plain", "Runtime.MalformedHandlerName", "Bad handler 'plain'"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("bad-{at}");
        right(&fleet, "POST", "", &function(&name, "python3.12", handler, &zip)).await;
        let (seen, said) = failure(&fleet, &name, &json!({})).await;
        assert!(seen == kind && said.contains(text), "{handler}: {seen}: {said}");
    }
    // Its place is taken.
    let taken = zipped(&[(".stoker/run.py", b"")]);
    let (status, said) = aws(&fleet, "PUT", "/good/code", &json!({"ZipFile": taken})).await;
    assert!(status == 400 && said["message"].as_str().unwrap().contains("no name for a file"), "{said}");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_node() {
    if !has("node") {
        return;
    }
    let (_directory, fleet) = start().await;
    let module = b"export const handler = async (event) => ({ module: event });";
    let zip = zipped(&[("dir/index.js", NODE.as_bytes()), ("new.mjs", module)]);
    for (name, handler) in [
        ("promised", "dir/index.promised"),
        ("called", "dir/index.called"),
        ("nothing", "dir/index.nothing"),
        ("succeeds", "dir/index.inner.succeeds"),
        ("rejects", "dir/index.rejects"),
        ("streams", "dir/index.streams"),
        ("large", "dir/index.large"),
        ("odd", "dir/index.odd"),
        ("pieces", "dir/index.pieces"),
        ("marked", "dir/index.marked"),
        ("new", "new.handler"),
        ("absent", "dir/index.absent"),
        ("nowhere", "nowhere.handler"),
    ] {
        right(&fleet, "POST", "", &function(name, "nodejs20.x", handler, &zip)).await;
    }
    for (name, wanted) in [
        ("promised", json!({"got": {"a": 1}, "version": "$LATEST", "time": true})),
        ("called", json!({"got": {"a": 1}})),
        ("nothing", Value::Null),
        ("succeeds", json!("done")),
        ("marked", json!("response")),
        ("new", json!({"module": {"a": 1}})),
    ] {
        for _ in 0..2 {
            let said = right(&fleet, "POST", &format!("/{name}/invocations"), &json!({"a": 1})).await;
            assert_eq!(said, wanted, "{name}");
        }
    }
    for (name, event, kind, text) in [
        ("promised", json!({"throw": 1}), "TypeError", "lost"),
        ("called", json!({"bad": 1}), "RangeError", "far"),
        ("rejects", json!({}), "Runtime.UnhandledPromiseRejection", "Error: nobody waits"),
        ("odd", json!({}), "Nötig\r\nx: y", "odd"),
        ("odd", json!({}), "Nötig\r\nx: y", "odd"),
        ("absent", json!({}), "Runtime.HandlerNotFound", "dir/index.absent is undefined or not exported"),
        ("nowhere", json!({}), "Runtime.ImportModuleError", "Error: Cannot find module 'nowhere'"),
    ] {
        let seen = failure(&fleet, name, &event).await;
        assert_eq!(seen, (kind.to_owned(), text.to_owned()), "{name}");
    }
    long(&fleet, "large").await;
    // After each its handler is asked again: in the same process, but for what was left in its midst.
    for (event, last) in [
        (json!({}), "application/json{}"),
        (json!({"fails": 1}), "RangeError"),
        (json!({"leaves": 1}), "Runtime.TruncatedResponse"),
        (json!({}), "application/json{}"),
    ] {
        let path = "/2021-11-15/functions/pieces/response-streaming-invocations";
        let page = fleet.clients.page("POST", path, &[], event.to_string()).await;
        let said = String::from_utf8_lossy(&page.body);
        // Pieces may come together or one by one.
        let all = [r#"one "#, r#"{"two":2}"#, " three ", "4096", " InvalidStreamingOperation", last];
        assert!(all.iter().all(|part| said.contains(part)), "{event}: {said:?}");
    }
    // Its head comes first, for those who understand it.
    let page = fleet.clients.page("POST", "/invoke/default/streams", &[], "{}".to_owned()).await;
    let body =
        [r#"{"statusCode":201,"headers":{"x-made":"by hand"}}"#, "one two streams"].join("\0\0\0\0\0\0\0\0");
    assert_eq!((page.status, &page.body[..]), (200, body.as_bytes()));
    // A zip that brings AWS's client has it run, wherever that version of it has its program.
    for (name, place) in [("version-3", "bin/index.mjs"), ("version-4", "index.mjs")] {
        let place = format!("node_modules/aws-lambda-ric/{place}");
        let zip = zipped(&[("index.js", NODE.as_bytes()), (&*place, CLIENT.as_bytes())]);
        right(&fleet, "POST", "", &function(name, "nodejs20.x", "index.promised", &zip)).await;
        let said = right(&fleet, "POST", &format!("/{name}/invocations"), &json!({})).await;
        assert_eq!(said, json!("its own"), "{place}");
    }
    fleet.end().await;
}
