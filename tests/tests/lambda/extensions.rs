//! Extensions: inside the function's process, and as processes of their own.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_core::error::Code;
use stoker_core::function::Root;
use stoker_core::{Format, FunctionSpec};
use stoker_proto::v1::{LogLine, LogSource, StreamLogsRequest, StreamLogsResponse};
use stoker_sandbox::select::Choice;
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::{Change as _, function};
use stoker_tests::{busybox, within};

use crate::{ask, fails, fleet, kits_directory, python};

/// The lines of a function, each seen once.
struct Lines {
    stream: tonic::Streaming<StreamLogsResponse>,
    read: std::collections::VecDeque<LogLine>,
}

impl Lines {
    async fn of(fleet: &Fleet, function: &FunctionSpec) -> Self {
        let request =
            StreamLogsRequest { function: function.name.to_string(), follow: true, ..Default::default() };
        let stream = fleet.clients.fleet().stream_logs(request).await.unwrap().into_inner();
        Self { stream, read: std::collections::VecDeque::new() }
    }

    /// The next line with this in it, past those before it.
    async fn until(&mut self, part: &str) -> LogLine {
        within(&format!("{part:?} in the log"), async {
            loop {
                match self.read.pop_front() {
                    Some(line) if String::from_utf8_lossy(&line.text).contains(part) => return line,
                    Some(_) => {}
                    None => {
                        self.read.extend(self.stream.message().await.unwrap().expect("the log goes on").lines)
                    }
                }
            }
        })
        .await
    }
}

fn shell_extension() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda/extension.sh")
}

/// The runtime of a few lines in such a root.
fn in_root(name: &str, root: &Path) -> FunctionSpec {
    let mut spec = function(name, &["/var/task/bootstrap"]).with_max_containers(1);
    spec.root = Root::Rootfs(root.to_owned());
    spec.workdir = "/var/task".into();
    spec.format = Format::Lambda;
    spec.format_options.handler = "bootstrap".to_owned();
    spec
}

/// An extension, and its telemetry, which has to find its way into the sandbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_is_told_what_happens() {
    let Some(watched) = python("watched", "kit_extension.handler") else { return };
    for sandbox in [Choice::Auto, Choice::Process] {
        let fleet = fleet(sandbox, [watched.clone()]).await;
        let kinds = |told: &Value| -> Vec<String> {
            told.as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
        };
        let first = ask(&fleet, "watched", json!({ "until": "platform.start" })).await.unwrap();
        let second = ask(&fleet, "watched", json!({ "until": "platform.report" })).await.unwrap().json();
        for kind in [
            "platform.initStart",
            "platform.telemetrySubscription",
            "platform.extension",
            "platform.initRuntimeDone",
            "platform.initReport",
            "platform.start",
            "function",
            "platform.runtimeDone",
            "platform.report",
            "event",
        ] {
            assert!(kinds(&second).contains(&kind.to_owned()), "{sandbox:?} {kind}: {second}");
        }
        let of = |kind: &str| {
            second.as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap()["record"].clone()
        };
        assert_eq!(of("platform.start")["requestId"], first.call_id.as_str());
        assert_eq!(of("function"), "a line of the function");
        assert_eq!(of("platform.runtimeDone")["status"], "success");
        assert!(of("platform.report")["metrics"]["initDurationMs"].as_f64().is_some_and(|ms| ms > 0.0));
        assert_eq!(
            (&of("event")["eventType"], &of("event")["requestId"]),
            (&json!("INVOKE"), &json!(first.call_id))
        );
        fleet.end().await;
    }
}

/// A root directory with a shell, a runtime in it, and an extension that is a process of its own.
fn root_with(extension: &Path) -> Option<tempfile::TempDir> {
    let busybox = busybox()?;
    let root = tempfile::Builder::new().prefix("stoker-root-").tempdir().unwrap();
    for directory in ["bin", "opt/extensions", "var/task", "tmp", "proc", "dev", "sys", "etc"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lambda");
    let files = [
        (busybox, "bin/busybox"),
        (sources.join("bootstrap.sh"), "var/task/bootstrap"),
        (extension.to_owned(), "opt/extensions/outside"),
    ];
    for (from, to) in files {
        std::fs::copy(from, root.path().join(to)).unwrap();
        std::fs::set_permissions(root.path().join(to), Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["sh", "wget", "grep", "sed", "tr", "cat", "sleep", "echo"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).unwrap();
    }
    std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    Some(root)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_is_a_process_of_its_own() {
    let Some(root) = root_with(&shell_extension()) else { return };
    let spec = in_root("outside", root.path()).with_idle_timeout(Duration::from_millis(500));
    let fleet = fleet(Choice::Native, [spec.clone()]).await;
    let mut log = Lines::of(&fleet, &spec).await;
    for _ in 0..2 {
        let answer = ask(&fleet, "outside", json!({ "n": 1 })).await.unwrap();
        assert_eq!(answer.json(), json!({ "got": { "n": 1 } }));
        let line = log.until(&format!("INVOKE {}", answer.call_id)).await;
        assert_eq!(line.source(), LogSource::Extension);
    }
    // Idle for long enough, they are told of the end: the runtime first.
    assert_eq!(log.until("the runtime was told").await.source(), LogSource::Stderr);
    log.until("SHUTDOWN spindown").await;
    fleet.end().await;
}

/// A call that fails ends the extension, too, which is told why; both are started again where they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_is_told_why_it_ends_and_starts_again() {
    let Some(root) = root_with(&shell_extension()) else { return };
    let spec = in_root("outside", root.path()).with_timeout(Duration::from_secs(2));
    let fleet = fleet(Choice::Native, [spec.clone()]).await;
    let mut log = Lines::of(&fleet, &spec).await;
    let first = ask(&fleet, "outside", json!({ "n": 1 })).await.unwrap();
    log.until(&format!("INVOKE {}", first.call_id)).await;
    let (error, report, _) = fails(&fleet, "outside", json!("exit")).await;
    assert_eq!((error.code, &*report.kind), (Code::FunctionCrashed, "Runtime.ExitError"), "{error:?}");
    log.until("SHUTDOWN failure").await;
    log.until("the extension begins, 2 starts were here").await;
    let (error, report, _) = fails(&fleet, "outside", json!("hang")).await;
    assert_eq!((error.code, &*report.kind), (Code::FunctionTimeout, "Sandbox.Timedout"), "{error:?}");
    log.until("SHUTDOWN timeout").await;
    log.until("the extension begins, 3 starts were here").await;
    let last = ask(&fleet, "outside", json!({ "n": 2 })).await.unwrap();
    assert_eq!(last.json(), json!({ "got": { "n": 2 } }));
    log.until(&format!("INVOKE {}", last.call_id)).await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_extension_is_the_end_of_the_call() {
    let Some(root) = root_with(&shell_extension()) else { return };
    let spec = in_root("outside", root.path()).with_env("EXTENSION", "exits");
    let fleet = fleet(Choice::Native, [spec]).await;
    for _ in 0..2 {
        let (error, report, body) = fails(&fleet, "outside", json!("hang")).await;
        assert_eq!((error.code, &*report.kind), (Code::FunctionCrashed, "Extension.Crash"), "{error:?}");
        let message = body["errorMessage"].as_str().unwrap();
        assert!(message.ends_with("the extension outside failed: exit status 3"), "{message}");
    }
    fleet.end().await;
}

/// What has answered stands still as soon as it can, but not before its extension is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stands_still_before_an_extension_is_done() {
    let Some(root) = root_with(&shell_extension()) else { return };
    let spec = in_root("outside", root.path()).with_env("EXTENSION", "works");
    let mut plan = Plan::default().sandbox(Choice::Native).freeze_after(Duration::ZERO);
    plan.resources.memory = 1 << 30;
    let fleet = plan.start([spec.clone()]).await;
    let mut log = Lines::of(&fleet, &spec).await;
    ask(&fleet, "outside", json!({ "n": 1 })).await.unwrap();
    log.until("the extension has done its work").await;
    fleet.end().await;
}

/// A library's extension, as a static program, in a root where there is nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_of_a_kit_is_at_home() {
    let extension = kits_directory().join("lambda-rust/kit-extension");
    if !extension.exists() {
        println!("left out: the kit lambda-rust has no {}: run scripts/test", extension.display());
        return;
    }
    let Some(root) = root_with(&extension) else { return };
    let spec = in_root("outside", root.path()).with_idle_timeout(Duration::from_millis(500));
    let fleet = fleet(Choice::Native, [spec.clone()]).await;
    let mut log = Lines::of(&fleet, &spec).await;
    let answer = ask(&fleet, "outside", json!({ "n": 1 })).await.unwrap();
    let line = log.until(&format!("kit: INVOKE {}", answer.call_id)).await;
    assert_eq!(line.source(), LogSource::Extension);
    log.until("kit: telemetry platform.report").await;
    log.until("kit: SHUTDOWN spindown").await;
    fleet.end().await;
}
