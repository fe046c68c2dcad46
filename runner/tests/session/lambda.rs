//! Functions of AWS Lambda: they ask for their calls themselves.

use stoker_core::call::CHUNK;
use stoker_core::function::{Format, FunctionName, FunctionSpec};
use stoker_sandbox::select::Choice;

use crate::kit::{self, python};

/// Asks for its invocations, always on the same connection, and answers each with what it was given, or with a MiB.
const RUNTIME: &str = r#"
import http.client, os
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
api.auto_open = 0
api.connect()
def ask(method, path, body=None):
    api.request(method, "/2018-06-01/runtime/invocation/" + path, body)
    answer = api.getresponse()
    return answer.headers["Lambda-Runtime-Aws-Request-Id"], answer.read()
while True:
    name, event = ask("GET", "next")
    if event == b'"crash"': os._exit(1)
    if event == b'"large"': event = b"7" * (1 << 20)
    ask("POST", name + "/response", event)
"#;

/// A function that asks for its calls itself.
pub fn lambda() -> FunctionSpec {
    let mut spec = python("");
    *spec.command.last_mut().unwrap() = RUNTIME.to_owned();
    (spec.name, spec.format) = (FunctionName::new("test", "lambda").unwrap(), Format::Lambda);
    spec
}

/// What came as a whole, and fits into a frame, is told in one: each more of them is a write, and perhaps somebody woken.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_answer_is_one_frame() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = lambda();
    session.call(&spec, "", b"1").await;
    for event in [&b"{\"small\":1}"[..], b"\"\"", &[b'7'; CHUNK]] {
        let answer = session.call(&spec, "", event).await;
        assert_eq!((answer.code(), &*answer.body, answer.frames), ("OK", event, 1), "{answer:?}");
        let headers = &answer.finished.head.as_ref().expect("a head beside its body").headers;
        assert_eq!((&*headers[0].name, &*headers[0].value), ("content-type", &b"application/json"[..]));
    }
    // The head of one that does not goes before it.
    let answer = session.call(&spec, "", b"\"large\"").await;
    assert_eq!((answer.code(), answer.body.len()), ("OK", 1 << 20), "{:?}", answer.finished);
    assert!(answer.finished.head.is_none() && answer.frames > 16, "{:?}", answer.finished);
    fleet.end().await;
}
