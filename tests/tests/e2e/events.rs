//! CloudEvents' kits as clients of the door for events: what they make reaches functions of every format, and what comes back they read.

use std::process::Stdio;

use serde_json::{Value, json};
use stoker_core::function::CloudEvents;
use stoker_core::{Format, FunctionSpec};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::function;
use stoker_tests::{program, within};
use tokio::process::Command;

use crate::kits::kits;

/// What a function sends back: it echoes what it takes for the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// The data of an event.
    Data,
    /// The same, in an event of its own.
    AnEvent,
    /// The event as a whole.
    TheWhole,
}

/// The test function in every format.
fn functions() -> Vec<(FunctionSpec, Sees)> {
    let of = |name: &str, format: Format, sees: Sees| {
        let mut spec = function(name, &[&program("stoker-test-function").to_string_lossy()]);
        spec.format = format;
        if matches!(format, Format::Lambda | Format::Mless) {
            spec.format_options.handler = "function.handler".to_owned();
        }
        (spec, sees)
    };
    let mut all = vec![
        of("default", Format::Default, Sees::Data),
        of("http", Format::Http, Sees::Data),
        of("json", Format::Json, Sees::Data),
        of("json-http", Format::JsonHttp, Sees::Data),
        of("http-stream", Format::HttpStream, Sees::Data),
        of("event-01", Format::CloudEvent, Sees::Data),
        of("event-10", Format::CloudEvent, Sees::AnEvent),
        of("lambda", Format::Lambda, Sees::TheWhole),
        of("mless", Format::Mless, Sees::TheWhole),
    ];
    all[6].0.format_options.cloudevents = CloudEvents::V1_0;
    all
}

/// What a kit says of each answer, in the order of what it sent.
async fn told(kit: &str, needs: &str, source: &str, interpreter: &str) -> Option<(Vec<Value>, Vec<Sees>)> {
    let directory = kits().join(kit);
    if !directory.join(needs).exists() {
        println!("left out: the kit {kit} is not in {}: run scripts/test", directory.display());
        return None;
    }
    let functions = functions();
    let (specs, sees): (Vec<_>, Vec<_>) = functions.into_iter().unzip();
    let names: Vec<_> = specs.iter().map(|spec| spec.name.to_string()).collect();
    let fleet = Plan::default().room(12).start(specs).await;
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("functions").join(source);
    let interpreter = match directory.join(interpreter) {
        own if own.exists() => own,
        _ => interpreter.into(),
    };
    let run = Command::new(interpreter)
        .arg(script)
        .arg(format!("http://{}", fleet.clients.http))
        .args(&names)
        // Where Node looks besides the script's directory.
        .env("NODE_PATH", directory.join("node_modules"))
        .current_dir(&directory)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = within("the kit's client", run).await.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let lines = String::from_utf8(output.stdout).expect("text");
    let told = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    fleet.end().await;
    Some((told, sees))
}

/// Whether an event that went through is the one that was sent.
fn same(event: &Value, kit: &str, number: u64) {
    for (name, is) in [
        ("specversion", json!("1.0")),
        ("id", json!(format!("{kit}-{number}"))),
        ("source", json!("/kit")),
        ("type", json!("kit.sent")),
        ("subject", json!("s é 100% \"q\"")),
        ("myext", json!("x")),
        ("data", json!({"number": number})),
    ] {
        assert_eq!(event[name], is, "{name} of {event}");
    }
}

fn a_kit_is_at_home(kit: &str, told: Option<(Vec<Value>, Vec<Sees>)>) {
    let Some((told, sees)) = told else { return };
    assert_eq!(told.len(), sees.len() * 3 + 1);
    for (told, sees) in told.chunks_exact(3).zip(&sees) {
        for (one, mode) in told.iter().zip(["binary", "structured", "batch"]) {
            assert_eq!((&one["mode"], &one["status"]), (&json!(mode), &json!(200)), "{one}");
        }
        for one in &told[..2] {
            let body =
                || -> Value { serde_json::from_str(one["body"].as_str().expect("text")).expect("JSON") };
            match sees {
                Sees::Data => {
                    assert_eq!((body(), &one["event"]), (json!({"number": 1}), &Value::Null), "{one}")
                }
                Sees::AnEvent => assert_eq!(one["event"]["data"], json!({"number": 1}), "{one}"),
                Sees::TheWhole => same(&body(), kit, 1),
            }
        }
        let batch: Vec<Value> = serde_json::from_str(told[2]["body"].as_str().expect("text")).expect("JSON");
        assert_eq!(batch.len(), 2, "{batch:?}");
        for (one, number) in batch.iter().zip(1u64..) {
            assert_eq!(
                (&one["status"], &one["id"]),
                (&json!(200), &json!(format!("{kit}-{number}"))),
                "{one}"
            );
            match sees {
                Sees::AnEvent => assert_eq!(one["event"]["data"], json!({"number": number}), "{one}"),
                // Where it says by its type that it is one.
                Sees::TheWhole if !one["event"].is_null() => same(&one["event"], kit, number),
                _ => assert_eq!(one["event"], Value::Null, "it answered with no event: {one}"),
            }
        }
    }
    // Where the kits take what the standard does not, they do not count.
    let last = told.last().expect("it was sent");
    assert!(last["status"] == 400 && last["body"].to_string().contains("not a valid CloudEvent"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_the_kit_for_python_reach_every_format() {
    let told = told("cloudevents-python", ".venv/bin/python", "event_client.py", ".venv/bin/python").await;
    a_kit_is_at_home("py", told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_the_kit_for_node_reach_every_format() {
    let told = told("cloudevents-node", "node_modules/cloudevents", "event_client.js", "node").await;
    a_kit_is_at_home("js", told);
}
