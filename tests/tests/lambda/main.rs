//! AWS's own runtime clients, from their registries and unchanged, as functions of a real fleet. `scripts/test` installs them; without
//! them these tests say that they were left out.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod emulator;
mod extensions;
mod kits;
mod layers;
mod lifecycle;
mod plain;
mod urls;
mod versions;
mod zips;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_core::error::{Blame, Code, Error, Report};
use stoker_core::function::FunctionName;
use stoker_core::{Format, FunctionSpec};
use stoker_proto::v1::StreamLogsRequest;
use stoker_sandbox::select::Choice;
use stoker_tests::calls::{Answer, Call, Door};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{APP, Change as _, function};
use stoker_tests::within;

/// Bytes of a payload: AWS's limit.
const MOST: usize = 6 * 1024 * 1024 + 100;

/// Where `scripts/test` installs kits.
fn kits_directory() -> PathBuf {
    let all = std::env::var_os("STOKER_TEST_KITS").map(PathBuf::from);
    all.unwrap_or_else(|| {
        stoker_tests::program("probe").parent().unwrap().parent().unwrap().join("test-kits")
    })
}

/// A handler of these tests with a kit, or `None` (said on STDOUT) where the kit is not installed. Its file is copied to where the kit
/// is: a function sees no other directory.
fn kit(kit: &str, needs: &str, name: &str, handler: &str, command: &[&str]) -> Option<FunctionSpec> {
    let directory = kits_directory().join(kit);
    if !directory.join(needs).exists() {
        println!("left out: the kit {kit} is not in {}: run scripts/test", directory.display());
        return None;
    }
    for file in ["kit.py", "kit.js", "kit_extension.py", "kit_init.py", "prober.py"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda").join(file);
        // Tests side by side write the same: each in one step. An ordinary user finds it there already.
        let beside = directory.join(format!(".{}-{file}", stoker_core::CallId::new()));
        if std::fs::copy(&from, &beside).is_ok() {
            std::fs::rename(&beside, directory.join(file)).unwrap();
        }
    }
    let mut spec = function(name, command).with_memory(256);
    spec.workdir = directory;
    spec.format = Format::Lambda;
    spec.format_options.handler = handler.to_owned();
    Some(spec)
}

fn python(name: &str, handler: &str) -> Option<FunctionSpec> {
    let command = [".venv/bin/python", "-m", "awslambdaric", handler];
    kit("lambda-python", ".venv/bin/python", name, handler, &command)
}

fn node(name: &str, handler: &str) -> Option<FunctionSpec> {
    let command = ["node_modules/.bin/aws-lambda-ric", handler];
    kit("lambda-node", "node_modules/.bin/aws-lambda-ric", name, handler, &command)
}

/// The version that needs a newer Node, which is beside it.
fn newer_node(name: &str, handler: &str) -> Option<FunctionSpec> {
    let command = ["node_modules/.bin/node", "node_modules/aws-lambda-ric/index.mjs", handler];
    kit("lambda-node4", "node_modules/.bin/node", name, handler, &command)
}

fn rust(name: &str, handler: &str) -> Option<FunctionSpec> {
    kit("lambda-rust", "lambda-kit", name, handler, &["./lambda-kit"])
}

async fn fleet(sandbox: Choice, functions: impl IntoIterator<Item = FunctionSpec>) -> Fleet {
    let mut plan = Plan::default().sandbox(sandbox);
    plan.resources.memory = 2 << 30;
    plan.start(functions).await
}

async fn ask(fleet: &Fleet, name: &str, event: Value) -> Result<Answer, Error> {
    let call = Call::of(name).header("Content-Type", "application/json").body(event.to_string());
    fleet.clients.call(Door::Session, call).await
}

/// The error, and the body that AWS's callers get.
async fn fails(fleet: &Fleet, name: &str, event: Value) -> (Error, Report, Value) {
    let error = ask(fleet, name, event).await.unwrap_err();
    let report = error.report.as_deref().unwrap_or_else(|| panic!("no report: {error:?}")).clone();
    let body = serde_json::from_slice(&report.body).unwrap_or_else(|_| panic!("no JSON: {report:?}"));
    (error, report, body)
}

/// A named pipe beside the handlers.
struct Fifo(PathBuf);

impl Fifo {
    fn new(directory: &Path) -> Self {
        let path = directory.join(format!("gate-{}", stoker_core::CallId::new()));
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        Self(path)
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

/// Waits until the log of this call has all that belongs there, each line with its id. Gives the last.
async fn writes(fleet: &Fleet, function: &FunctionSpec, call: &str, said: &[&str]) -> String {
    let request = StreamLogsRequest {
        function: function.name.to_string(),
        call_id: call.to_owned(),
        follow: true,
        ..Default::default()
    };
    let mut log = fleet.clients.fleet().stream_logs(request).await.unwrap().into_inner();
    let mut missing: Vec<_> =
        ["START RequestId: ", "END RequestId: ", "REPORT RequestId: "].iter().chain(said).copied().collect();
    let mut report = String::new();
    within("all lines of a call", async {
        while !missing.is_empty() {
            for line in log.message().await.unwrap().expect("the log goes on").lines {
                let text = String::from_utf8_lossy(&line.text).into_owned();
                assert_eq!(line.call_id, call, "{text}");
                missing.retain(|part| !text.contains(&format!("{part}{call}")));
                if text.starts_with("REPORT") {
                    report = text;
                }
            }
        }
    })
    .await;
    report
}

/// Everything that does not depend on the language.
async fn a_handler_is_at_home(sandbox: Choice) {
    let Some(main) = python("main", "kit.handler") else { return };
    // One container each: what comes while it starts its function again waits for it, and has no other.
    let main = main.with_env("GREETING", "4=4").with_max_containers(1);
    let brief =
        python("brief", "kit.handler").unwrap().with_timeout(Duration::from_secs(1)).with_max_containers(1);
    let absent = python("absent", "kit.absent").unwrap();
    let fleet = fleet(sandbox, [main.clone(), brief.clone(), absent]).await;

    // One container serves calls through every door.
    let mut ids = Vec::new();
    for (calls, door) in (1..).zip(Door::ALL) {
        // Plain processes see the host's /tmp, which is no place for tests.
        let event = if sandbox == Choice::Process { "{}" } else { r#"{"do":"tmp"}"# };
        let call = Call::of("main").header("Content-Type", "application/json").body(event);
        let answer = fleet.clients.call(door, call).await.unwrap();
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
        let report = answer.json();
        assert_eq!(report["calls"], calls, "{report}");
        assert!(report["seen"].is_null() || report["seen"] == calls, "/tmp stays: {report}");
        assert_eq!(report["request_id"], answer.call_id.as_str());
        // Nobody makes a trace, and it is told of one, as on AWS.
        let id = &answer.call_id;
        let trace = format!("Root=1-{}-{};Parent={};Sampled=0", &id[..8], &id[8..], &id[16..]);
        assert_eq!(report["trace"], trace);
        ids.push(answer.call_id);
    }
    // How long it took to come up is told of the call that waited for it.
    for (call, waited) in ids.iter().zip([true, false]) {
        let report = writes(&fleet, &main, call, &[]).await;
        assert_eq!(report.contains(" MB\tInit Duration: "), waited, "{report}");
    }

    // What it is told.
    let call = Call::of("main")
        .header("Content-Type", "application/json")
        .header("lambda-runtime-aws-request-id", "my-own-id")
        .header("lambda-runtime-client-context", r#"{"custom":{"foo":"bar","baz":123}}"#)
        .header(
            "lambda-runtime-cognito-identity",
            r#"{"cognitoIdentityId":"me","cognitoIdentityPoolId":"pool"}"#,
        )
        .header("lambda-runtime-aws-tenant-id", "blue")
        .header(
            "x-amzn-trace-id",
            "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1",
        )
        .body("{}");
    let report = fleet.clients.call(Door::Session, call).await.unwrap().json();
    assert_eq!(report["request_id"], "my-own-id");
    assert_eq!(report["custom"], json!({ "foo": "bar", "baz": 123 }));
    assert_eq!((&report["identity"], &report["tenant"]), (&json!("me"), &json!("blue")));
    assert_eq!(report["trace"], "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1");
    assert_eq!(report["arn"], "arn:aws:lambda:us-east-1:012345678912:function:main");
    assert_eq!((&report["name"], &report["memory"]), (&json!("main"), &json!("256")));
    let remaining = report["remaining"].as_u64().unwrap();
    assert!((10_000..=20_000).contains(&remaining), "{remaining} of 20 s");
    let env = &report["env"];
    let told = [
        ("GREETING", "4=4"),
        ("_HANDLER", "kit.handler"),
        ("AWS_LAMBDA_FUNCTION_NAME", "main"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/main"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("TZ", ":UTC"),
    ];
    for (key, value) in told {
        assert_eq!(env[key], value, "{key}");
    }
    // A caller's deadline that is nearer is the function's.
    let call = Call::of("main").body("{}").timeout(Duration::from_secs(8));
    let remaining =
        fleet.clients.call(Door::Session, call).await.unwrap().json()["remaining"].as_u64().unwrap();
    assert!(remaining <= 8000, "{remaining} of 8 s");

    // What it writes is the call's.
    let answer = ask(&fleet, "main", json!({ "do": "log" })).await.unwrap();
    writes(&fleet, &main, &answer.call_id, &["printed ", "complained "]).await;

    // Payloads of every size that is allowed, both ways, and no other.
    let nothing = ask(&fleet, "main", json!({ "do": "nothing" })).await.unwrap();
    assert_eq!(nothing.text(), "null");
    for size in [100_000, MOST - 40] {
        let text = "x".repeat(size);
        let answer = ask(&fleet, "main", json!({ "do": "echo", "text": text })).await.unwrap();
        assert_eq!(answer.json()["text"].as_str().map(str::len), Some(size));
    }
    let before = ask(&fleet, "main", json!({})).await.unwrap().json();
    let error = ask(&fleet, "main", json!({ "text": "x".repeat(MOST) })).await.unwrap_err();
    assert_eq!((error.code, error.blame()), (Code::RequestTooLarge, Blame::Caller), "{error:?}");
    let after = ask(&fleet, "main", json!({})).await.unwrap().json();
    assert_eq!(after["pid"], before["pid"], "the function has seen nothing of what was too large");
    let (error, report, body) = fails(&fleet, "main", json!({ "do": "large", "size": MOST })).await;
    assert_eq!((error.code, &*report.kind), (Code::ResponseTooLarge, "Function.ResponseSizeTooLarge"));
    assert_eq!(
        body["errorMessage"],
        "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
    );

    // An error of the handler: its words, and its process stays. (This runtime ended itself over the answer that was too large.)
    let before = ask(&fleet, "main", json!({})).await.unwrap().json();
    let (error, report, body) = fails(&fleet, "main", json!({ "do": "throw" })).await;
    assert_eq!((error.code, error.blame()), (Code::FunctionFailed, Blame::Function), "{error:?}");
    assert!(error.message.contains("ValueError: thrown on purpose"), "{error:?}");
    assert_eq!(
        (&body["errorType"], &body["errorMessage"]),
        (&json!("ValueError"), &json!("thrown on purpose"))
    );
    assert!(body["stackTrace"].is_array(), "{body}");
    assert_eq!(report.content_type, "application/json");
    assert_eq!(ask(&fleet, "main", json!({})).await.unwrap().json()["pid"], before["pid"]);

    // An end of its process: AWS's words, and the next call has another.
    let ends = [
        (json!({ "do": "exit", "status": 0 }), "Runtime exited without providing a reason"),
        (json!({ "do": "exit", "status": 3 }), "Runtime exited with error: exit status 3"),
        (json!({ "do": "segfault" }), "Runtime exited with error: signal: segmentation fault"),
    ];
    for (event, text) in ends {
        let (error, report, body) = fails(&fleet, "main", event).await;
        assert_eq!((error.code, &*report.kind), (Code::FunctionCrashed, "Runtime.ExitError"), "{error:?}");
        let message = body["errorMessage"].as_str().unwrap();
        assert!(
            message.starts_with("RequestId: ") && message.ends_with(&format!("Error: {text}")),
            "{message}"
        );
        assert_eq!(ask(&fleet, "main", json!({})).await.unwrap().json()["calls"], 1);
    }

    // Its time.
    let (error, report, body) = fails(&fleet, "brief", json!({ "do": "hang" })).await;
    assert_eq!((error.code, &*report.kind), (Code::FunctionTimeout, "Sandbox.Timedout"), "{error:?}");
    let message = body["errorMessage"].as_str().unwrap();
    assert!(message.ends_with("Error: Task timed out after 1.00 seconds"), "{message}");
    assert_eq!(ask(&fleet, "brief", json!({})).await.unwrap().json()["calls"], 1);

    // One that cannot initialise says why.
    let (error, report, body) = fails(&fleet, "absent", json!({})).await;
    assert_eq!(error.code, Code::FunctionInitFailed, "{error:?}");
    assert_eq!(
        (&*report.kind, &body["errorType"]),
        ("Runtime.HandlerNotFound", &json!("Runtime.HandlerNotFound"))
    );
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_python_is_at_home() {
    a_handler_is_at_home(Choice::Auto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_python_is_at_home_in_plain_processes() {
    a_handler_is_at_home(Choice::Process).await;
}

/// The first of these as a user who is nobody, where that is possible.
#[test]
fn a_handler_in_python_is_at_home_with_an_ordinary_user() {
    let own = std::env::current_exe().unwrap();
    let as_user = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&own).args(arguments);
        command.env("HOME", "/").current_dir("/");
        command
    };
    if !as_user(&["--list"]).output().is_ok_and(|output| output.status.success()) {
        println!("left out: setpriv is missing, or an ordinary user cannot reach {}", own.display());
        return;
    }
    let status = as_user(&["--exact", "a_handler_in_python_is_at_home", "--nocapture"]).status().unwrap();
    assert!(status.success(), "as an ordinary user: {status}");
}

/// The examples, which need no kit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_of_one_file_run_handlers() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/lambda").canonicalize().unwrap();
    for (name, command) in [("python", ["python3", "bootstrap.py"]), ("node", ["node", "bootstrap.js"])] {
        if !Command::new(command[0]).arg("--version").output().is_ok_and(|output| output.status.success()) {
            println!("left out: {} is missing", command[0]);
            continue;
        }
        let mut spec = function(name, &command).with_memory(128);
        spec.workdir = examples.join(name);
        spec.format = Format::Lambda;
        spec.format_options.handler = "func.handler".to_owned();
        let mut broken = spec.clone();
        broken.name = FunctionName::new(APP, "broken").unwrap();
        broken.format_options.handler = "absent.handler".to_owned();
        let fleet = fleet(Choice::Auto, [spec, broken]).await;
        for _ in 0..3 {
            let answer = ask(&fleet, name, json!({ "name": "Ada" })).await.unwrap();
            assert_eq!(answer.json(), json!({ "message": format!("Hello, Ada, from {name}!") }));
        }
        let (error, _, body) = fails(&fleet, name, json!({ "name": "nobody" })).await;
        assert_eq!((error.code, &body["errorMessage"]), (Code::FunctionFailed, &json!("nobody is there")));
        let error = ask(&fleet, "broken", json!({})).await.unwrap_err();
        assert_eq!(error.code, Code::FunctionInitFailed, "{error:?}");
        fleet.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_containers_run_at_once_wherever_they_listen() {
    let Some(meets) = python("meets", "kit.handler") else { return };
    for sandbox in [Choice::Auto, Choice::Process] {
        let fleet = fleet(sandbox, [meets.clone()]).await;
        let gate = Fifo::new(&meets.workdir);
        // Each returns only when the other is under way.
        let calls = ["r", "w"].map(|mode| {
            let (clients, event) =
                (fleet.clients.clone(), json!({ "do": "meet", "gate": gate.0, "mode": mode }));
            let call = Call::of("meets").body(event.to_string());
            tokio::spawn(async move { clients.call(Door::Session, call).await })
        });
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().json()["calls"], 1, "{sandbox:?}");
        }
        fleet.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stands_still_between_invocations_and_goes_on() {
    let Some(cool) = python("cool", "kit.handler") else { return };
    let mut plan = Plan::default().freeze_after(Duration::ZERO);
    plan.resources.memory = 1 << 30;
    let fleet = plan.start([cool]).await;
    let first = ask(&fleet, "cool", json!({})).await.unwrap().json();
    let begun = Instant::now();
    loop {
        // It is frozen as soon as it is idle, so one of the next calls finds it so.
        let answer = ask(&fleet, "cool", json!({})).await.unwrap();
        assert_eq!(answer.json()["pid"], first["pid"], "another container");
        if answer.timings.unwrap().thaw_us > 0 {
            break;
        }
        assert!(begun.elapsed() < stoker_tests::LIMIT, "it was never frozen");
    }
    fleet.end().await;
}
