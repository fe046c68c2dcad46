//! Kits of others, from their registries and unchanged: Fn's own development kits, those of its formats on STDIN, and the kits of
//! CloudEvents. `scripts/test` installs them; without them these tests say
//! that they were left out.

use std::path::PathBuf;

use stoker_core::error::{Blame, Code};
use stoker_core::function::CloudEvents;
use stoker_core::{Format, FunctionSpec};
use stoker_tests::calls::{Answer, Call, Door};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{Change as _, function, probe};

/// Where `scripts/test` put the kits: `STOKER_TEST_KITS`, or beside the build.
pub fn kits() -> PathBuf {
    match std::env::var_os("STOKER_TEST_KITS") {
        Some(directory) => directory.into(),
        None => stoker_tests::program("probe").parent().unwrap().parent().unwrap().join("test-kits"),
    }
}

/// A function of this repository with a kit, or `None` (said on STDOUT) where the kit is not installed. Its file is copied to where the
/// kit is: a function sees no other directory.
fn with_kit(kit: &str, needs: &str, name: &str, source: &str, command: &[&str]) -> Option<FunctionSpec> {
    let directory = kits().join(kit);
    if !directory.join(needs).exists() {
        println!("left out: the kit {kit} is not in {}: run scripts/test", directory.display());
        return None;
    }
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(source);
    let file = directory.join(from.file_name().unwrap());
    // Tests side by side write the same: each in one step.
    let beside = directory.join(format!(".{}-{}", std::process::id(), file.file_name().unwrap().display()));
    std::fs::copy(&from, &beside).unwrap();
    std::fs::rename(&beside, &file).unwrap();
    let mut spec = function(name, command).with_memory(256).with_trigger(&format!("/{name}"));
    spec.workdir = directory;
    spec.format = Format::HttpStream;
    Some(spec)
}

fn python(source: &str) -> Option<FunctionSpec> {
    let file = source.rsplit('/').next().unwrap();
    with_kit("python", ".venv/bin/fdk", "python", source, &[".venv/bin/fdk", file, "handler"])
}

fn node(source: &str) -> Option<FunctionSpec> {
    let file = source.rsplit('/').next().unwrap();
    with_kit("node", "node_modules/@fnproject/fdk", "node", source, &["node", file])
}

async fn fleet(function: FunctionSpec) -> Fleet {
    let mut plan = Plan::default();
    plan.resources.memory = 1 << 30;
    plan.start([function, probe("other")]).await
}

async fn ask(fleet: &Fleet, door: Door, name: &str, what: &str) -> Result<Answer, stoker_core::Error> {
    let call = Call::of(name).header("Content-Type", "application/json").header("X-Any", "thing");
    fleet.clients.call(door, call.body(format!(r#"{{"do": "{what}"}}"#))).await
}

/// What both kits do alike.
async fn a_kit_is_at_home(function: FunctionSpec) {
    let name = function.name.function().to_owned();
    let fleet = fleet(function).await;
    for (calls, door) in (1..).zip(Door::ALL) {
        let answer = ask(&fleet, door, &name, "report").await.unwrap();
        assert_eq!(answer.status, 200);
        let report = answer.json();
        assert_eq!(report["calls"], calls, "one container serves them all: {report}");
        assert_eq!(report["call_id"], answer.call_id.as_str(), "{report}");
        assert!(report["deadline"].as_str().is_some_and(|text| text.starts_with("20")), "{report}");
        assert_eq!(report["header"], "thing", "{report}");
        assert_eq!(report["app"], stoker_tests::functions::APP, "{report}");
        assert!(
            answer.header("fn-fdk-version").is_some_and(|version| version.starts_with("fdk-")),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    }
    // One after the other in one container, however many.
    for calls in 5..30 {
        let answer = ask(&fleet, Door::Invoke, &name, "report").await.unwrap();
        assert_eq!(answer.json()["calls"], calls);
    }
    // A handler that throws: the function's fault, in its words; the container stays.
    for door in [Door::Invoke, Door::Http] {
        let error = ask(&fleet, door, &name, "throw").await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::FunctionFailed, Blame::Function), "{error:?}");
        assert!(error.may_have_started, "{error:?}");
    }
    assert_eq!(ask(&fleet, Door::Invoke, &name, "report").await.unwrap().json()["calls"], 32);
    // An HTTP trigger: status and headers are the client's.
    let headers = [("Content-Type".to_owned(), "application/json".to_owned())];
    let path = format!("/t/t/{name}");
    let page = fleet.clients.page("PUT", &format!("{path}?a=1"), &headers, r#"{"do": "status"}"#).await;
    assert_eq!(page.status, 201, "{page:?}");
    assert_eq!(page.header("x-kit"), "seen", "{page:?}");
    let said: serde_json::Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(said["method"], "PUT");
    assert!(said["url"].as_str().is_some_and(|url| url.ends_with("?a=1")), "{said}");
    // A process that ends in a call: its exit status, and a new container for the next.
    let error = ask(&fleet, Door::Http, &name, "exit").await.unwrap_err();
    assert_eq!(error.code, Code::FunctionCrashed, "{error:?}");
    assert!(error.message.contains("status 3"), "{error:?}");
    assert_eq!(ask(&fleet, Door::Invoke, &name, "report").await.unwrap().json()["calls"], 1);
    // Bodies of some size, both ways.
    let body = format!(r#"{{"do": "echo", "text": "{}"}}"#, "x".repeat(300_000));
    let call = Call::of(&name).header("Content-Type", "application/json").body(body);
    for door in Door::ALL {
        let answer = fleet.clients.call(door, call.clone()).await.unwrap();
        assert_eq!(answer.json()["text"].as_str().map(str::len), Some(300_000), "{door:?}");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fns_kit_for_python_runs_unchanged() {
    if let Some(function) = python("tests/functions/kit.py") {
        a_kit_is_at_home(function).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fns_kit_for_node_runs_unchanged() {
    if let Some(function) = node("tests/functions/kit.js") {
        a_kit_is_at_home(function).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_with_fns_kits_answer() {
    for function in
        [python("examples/fdk-python/func.py"), node("examples/fdk-node/func.js")].into_iter().flatten()
    {
        let name = function.name.function().to_owned();
        let fleet = fleet(function).await;
        for (body, greeting) in [(r#"{"name": "Ada"}"#, "Hello, Ada!"), ("{}", "Hello, world!")] {
            let call = Call::of(&name).header("Content-Type", "application/json").body(body);
            let answer = fleet.clients.call(Door::Http, call).await.unwrap();
            assert_eq!(answer.json()["message"], greeting);
            assert_eq!(answer.header("content-type"), Some("application/json"));
        }
        fleet.end().await;
    }
}

/// A process that dies of an answer that it cannot send (a known mistake of that kit): the next call finds another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_function_that_returns_nothing_is_its_own_fault() {
    let Some(function) = node("tests/functions/kit.js") else { return };
    let fleet = fleet(function).await;
    let error = ask(&fleet, Door::Http, "node", "nothing").await.unwrap_err();
    assert_eq!((error.code, error.blame()), (Code::FunctionCrashed, Blame::Function), "{error:?}");
    assert!(error.log_tail.contains("TypeError"), "{error:?}");
    assert_eq!(ask(&fleet, Door::Http, "node", "report").await.unwrap().json()["calls"], 1);
    fleet.end().await;
}

/// A function with a kit of the time of STDIN.
fn old(kit: &str, name: &str, format: Format) -> Option<FunctionSpec> {
    let command = [".venv/bin/python", "old_kit.py"];
    let mut spec = with_kit(kit, ".venv/bin/python", name, "tests/functions/old_kit.py", &command)?;
    spec.format = format;
    Some(spec)
}

/// Calls of one function with an old kit; `echo` is what it makes of `{"a":[1,"u"]}`, called for the n-th time. The kits of json read byte by
/// byte and understand no others than those of ASCII.
async fn an_old_kit_is_at_home(function: FunctionSpec, echo: impl Fn(u32) -> String) {
    let name = function.name.function().to_owned();
    let fleet = fleet(function).await;
    let json = |body: &str| Call::of(&name).header("Content-Type", "application/json").body(body.to_owned());
    for (calls, door) in (1..).zip(Door::ALL) {
        let answer = fleet.clients.call(door, json(r#"{"a":[1,"u"]}"#)).await.unwrap();
        assert_eq!(answer.text(), echo(calls), "{door:?}: one container serves them all");
    }
    // Its exceptions are answers with a status: its own, not the platform's.
    let thrown = fleet.clients.call(Door::Invoke, json(r#"{"do":"throw"}"#)).await.unwrap();
    assert_eq!(thrown.status, 500, "{thrown:?}");
    assert!(thrown.text().contains("thrown by the handler"), "{thrown:?}");
    let answer = fleet.clients.call(Door::Invoke, json(r#"{"a":[1,"u"]}"#)).await.unwrap();
    assert_eq!(answer.text(), echo(6));
    fleet.end().await;
}

fn echo(calls: u32) -> String {
    format!(r#"{{"calls":{calls},"echo":{{"a":[1,"u"]}}}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_kit_in_json_runs_unchanged() {
    if let Some(function) = old("fdk-json", "old-json", Format::Json) {
        an_old_kit_is_at_home(function, echo).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_kit_in_cloudevents_runs_unchanged() {
    if let Some(function) = old("fdk-json", "old-event", Format::CloudEvent) {
        // It puts JSON in a string, and gets a string delivered.
        an_old_kit_is_at_home(function, |calls| serde_json::to_string(&echo(calls)).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_kit_in_http_runs_unchanged() {
    if let Some(function) = old("fdk-http", "old-http", Format::Http) {
        an_old_kit_is_at_home(function, echo).await;
    }
}

/// A function of the format `cloudevent` whose kit reads every call and writes every answer, in each way in which a call may be an event
/// or become one.
async fn a_kit_of_events_is_at_home(mut function: FunctionSpec) {
    function.format = Format::CloudEvent;
    function.format_options.cloudevents = CloudEvents::V1_0;
    let name = function.name.function().to_owned();
    let fleet = fleet(function).await;
    let call = |kind: &str, body: &[u8]| Call::of(&name).header("Content-Type", kind).body(body.to_vec());
    let invoke = async |call: Call| fleet.clients.call(Door::Invoke, call).await.unwrap();
    // No event: one is made around it.
    let answer = invoke(call("application/json", br#"{"a":1}"#)).await;
    let told = answer.json();
    assert_eq!((&told["id"], &told["kind"]), (&answer.call_id.as_str().into(), &"dict".into()), "{told}");
    assert_eq!((&told["type"], &told["data"]["a"]), (&"stoker.call".into(), &1.into()), "{told}");
    let told = invoke(call("text/plain", "grüße".as_bytes())).await.json();
    assert_eq!((&told["kind"], &told["data"]), (&"str".into(), &"grüße".into()), "{told}");
    let told = invoke(call("image/png", b"\x89\0\xff")).await.json();
    assert_eq!(
        (&told["kind"], told["data"].to_string()),
        (&"bytes".into(), "[137,0,255]".to_owned()),
        "{told}"
    );
    // An event, as a whole: so is the answer.
    let event = br#"{"specversion":"1.0","id":"e-1","source":"/there","type":"x.y","data":{"a":2}}"#;
    let answer = invoke(call("application/cloudevents+json", event)).await;
    assert_eq!(answer.header("content-type"), Some("application/cloudevents+json"));
    let whole = answer.json();
    let told = &whole["data"];
    assert_eq!((&whole["specversion"], &whole["type"]), (&"1.0".into(), &"kit.answer".into()), "{whole}");
    assert_eq!((&told["id"], &told["data"]["a"]), (&"e-1".into(), &2.into()), "{whole}");
    // An event whose attributes are headers.
    let headers = [("ce-specversion", "1.0"), ("ce-id", "e-2"), ("ce-source", "/there"), ("ce-type", "x.y")];
    let binary =
        headers.iter().fold(call("application/json", b"[3]"), |call, (name, value)| call.header(name, value));
    let answer = invoke(binary).await;
    assert_eq!(answer.header("ce-type"), Some("kit.answer"), "{answer:?}");
    let told = answer.json();
    assert_eq!(
        (&told["calls"], &told["id"], &told["data"][0]),
        (&5.into(), &"e-2".into(), &3.into()),
        "{told}"
    );
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloudevents_kit_for_python_runs_unchanged() {
    let command = [".venv/bin/python", "event_kit.py"];
    let source = "tests/functions/event_kit.py";
    if let Some(function) =
        with_kit("cloudevents-python", ".venv/bin/python", "event-python", source, &command)
    {
        a_kit_of_events_is_at_home(function).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cloudevents_kit_for_node_runs_unchanged() {
    let source = "tests/functions/event_kit.js";
    let needs = "node_modules/cloudevents";
    if let Some(function) =
        with_kit("cloudevents-node", needs, "event-node", source, &["node", "event_kit.js"])
    {
        a_kit_of_events_is_at_home(function).await;
    }
}
