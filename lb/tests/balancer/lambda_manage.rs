//! AWS Lambda's HTTP API for whoever manages functions, by the SDKs that people have; who is let in; and the emulator.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use stoker_core::error::{Code as Why, Error, Report};

use crate::lambda::{installed, installed_node};
use crate::stage::*;

fn spec(app: &str, name: &str) -> FunctionSpec {
    FunctionSpec::new(FunctionName::new(app, name).expect("a name"), vec!["/bin/true".into()], "/".into())
}

/// Runs a script of a kit; gives what it said.
async fn run(program: &Path, script: &str, arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdks").join(script);
    let out = tokio::process::Command::new(program).arg(script).args(arguments).output().await;
    let out = out.expect("it runs");
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.ends_with("done\n"), "{said}\n{complained}");
    said.into_owned()
}

/// A balancer that keeps code.
async fn set_up(code: &Path) -> (Stage, String) {
    let mut config = config();
    config.lambda.code = Some(stoker_lb::LambdaCode::Directory(code.join("code")));
    let stage = stage(config, vec![echo()]).await;
    stage.registry.apply_functions(vec![spec("b", "only"), spec("b", "f")]).await.expect("valid");
    let endpoint = format!("http://{}", stage.balancer.http_address());
    (stage, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_manages_functions() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (stage, endpoint) = set_up(directory.path()).await;
    run(&python, "boto3_manager.py", &[&endpoint]).await;
    assert_eq!(stage.registry.functions().borrow().by_name.len(), 5, "all that it made is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_manages_layers_and_policies() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (_stage, endpoint) = set_up(directory.path()).await;
    run(&python, "boto3_layers.py", &[&endpoint]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_sdk_manages_functions() {
    let Some(kit) = installed_node() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (_stage, endpoint) = set_up(directory.path()).await;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("index.js", zip::write::SimpleFileOptions::default()).expect("a file");
    std::io::Write::write_all(&mut zip, b"exports.handler = async () => 1").expect("it takes it");
    let zip = zip.finish().expect("a zip").into_inner();
    let zip = base64::engine::general_purpose::STANDARD.encode(zip);
    let kit = kit.to_string_lossy().into_owned();
    run(Path::new("node"), "javascript_manager.mjs", &[&kit, &zip, &endpoint]).await;
}

const KEY: &str = "AKIDCALLER";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// A balancer that asks who is there, and lets one key in.
async fn guarded(directory: &Path, more: &str) -> (Stage, String) {
    std::fs::write(directory.join("secret"), SECRET).expect("it can be written");
    let access = format!(
        "access_keys:\n  - {{name: caller, id: {KEY}, secret_file: secret, invoke: [b, public], manage: [b, public], observe: [b, public]}}\n{more}"
    );
    let file = directory.join("access.yaml");
    std::fs::write(&file, access).expect("it can be written");
    let config = Config { access: Some(file), ..config() };
    // Nobody is let in who could see when the runner is linked; calls wait for it.
    let stage = set(config, vec![(1, echo())]).await;
    stage.registry.apply_functions(vec![spec("b", "only")]).await.expect("valid");
    let endpoint = format!("http://{}", stage.balancer.http_address());
    (stage, endpoint)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_is_let_in_by_its_signature() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (_stage, endpoint) = guarded(directory.path(), "").await;
    run(&python, "boto3_signed.py", &[&endpoint, KEY, SECRET]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_manages_function_urls() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (_stage, endpoint) = set_up(directory.path()).await;
    run(&python, "boto3_urls.py", &[&endpoint]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn function_urls_ask_who_is_there() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (stage, endpoint) = guarded(directory.path(), "anybody: {invoke: [public]}\n").await;
    stage.registry.apply_functions(vec![spec("public", "f")]).await.expect("valid");
    run(&python, "boto3_urls.py", &[&endpoint, KEY, SECRET]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_javascript_sdk_is_let_in_by_its_signature() {
    let Some(kit) = installed_node() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let (_stage, endpoint) = guarded(directory.path(), "").await;
    let kit = kit.to_string_lossy().into_owned();
    run(Path::new("node"), "javascript_signed.mjs", &[&kit, &endpoint, KEY, SECRET]).await;
}

/// Calls that boto3 leaves behind are kept on a disk and made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_leaves_calls_behind() {
    let Some(python) = installed("aws", "python/bin/python") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let queue =
        stoker_queue::disk::Config { reserve: 0, ..stoker_queue::disk::Config::new(directory.path()) };
    let stage = stage(Config { later: stoker_lb::CallQueue::Disk(queue), ..config() }, vec![echo()]).await;
    stage.registry.apply_functions(vec![spec("b", "only")]).await.expect("valid");
    let endpoint = format!("http://{}", stage.balancer.http_address());
    let said = run(&python, "boto3_events.py", &[&endpoint]).await;
    let ids: Vec<String> =
        said.lines().filter(|line| line.contains('-')).map(|id| id.replace('-', "")).collect();
    let mut bodies = Vec::new();
    for id in &ids {
        let mut request = Request::new(v1::WaitCallRequest { call_id: id.clone() });
        request.set_timeout(Duration::from_secs(60));
        let ended = stage.client().await.wait_call(request).await.expect("it ends").into_inner();
        assert_eq!(ended.call.expect("a call").state(), v1::CallState::Done);
        bodies.push(ended.body);
    }
    assert_eq!(bodies, ["{\"a\": 1}", "{}", "{\"old\": 1}"]);
}

#[tokio::test]
async fn code_without_a_place_and_code_that_is_gone_are_said_so() {
    let stage = stage(config(), vec![echo()]).await;
    let body = r#"{"FunctionName":"x","Role":"r","Runtime":"python3.12","Handler":"f.h","Code":{"ZipFile":"UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="}}"#;
    let ask = |line: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = stage.http(&ask("POST /2015-03-31/functions", body)).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("lambda.code"), "{answer}");
    let directory = tempfile::tempdir().expect("a directory");
    let (stage, _) = set_up(directory.path()).await;
    let answer = stage.http(&ask("POST /2015-03-31/functions", body)).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    // A new handler needs the code once more, to be started with it.
    let handler = ask("PUT /2015-03-31/functions/x/configuration", r#"{"Handler":"g.h"}"#);
    assert!(stage.http(&handler).await.starts_with("HTTP/1.1 200 "));
    std::fs::remove_dir_all(directory.path().join("code")).expect("it is there");
    let handler = ask("PUT /2015-03-31/functions/x/configuration", r#"{"Handler":"h.h"}"#);
    let answer = stage.http(&handler).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("UpdateFunctionCode"), "{answer}");
}

#[tokio::test]
async fn one_function_is_that_of_the_emulator() {
    let play = play(|mut s| async move {
        while let Some(offer) = s.offer().await {
            let (call, headers) = (offer.call, offer.head.expect("a head").headers);
            let fail = |code, kind: &str, body: &'static str| {
                let report = Report {
                    kind: kind.into(),
                    content_type: "application/json".into(),
                    body: Bytes::from_static(body.as_bytes()),
                };
                let error = Error::new(code, "x").may_have_started().report(report);
                let error = Some(convert::to_call_error(&error));
                Out::Finished(Box::new(wire::Finished { call, error, ..Default::default() }))
            };
            match &offer.body[..] {
                b"\"raise\"" => s.send(fail(Why::FunctionFailed, "E", r#"{"errorMessage":"own"}"#)).await,
                b"\"late\"" => {
                    let body = r#"{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: 1 Error: Task timed out after 1.00 seconds"}"#;
                    s.send(fail(Why::FunctionTimeout, "Sandbox.Timedout", body)).await;
                }
                b"\"exit\"" => s.send(fail(Why::FunctionCrashed, "Runtime.ExitError", "exited")).await,
                _ => {
                    let told = |name: &str| headers.iter().find(|h| h.name == name).map(|h| h.value.clone());
                    let arn = told("lambda-runtime-invoked-function-arn").unwrap_or_default();
                    let context = told("lambda-runtime-client-context").unwrap_or_default();
                    s.finish(call, [&arn[..], b" ", &context[..]].concat()).await;
                }
            }
        }
    });
    let mut config = config();
    config.lambda.emulate = Some("a/f".into());
    let stage = stage(config, vec![play]).await;
    let ask = async |headers: &str, body: &str| {
        let request = format!(
            "POST /2015-03-31/functions/function/invocations HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = stage.http(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(!head.to_lowercase().contains("x-amz"), "{head}");
        assert!(head.contains("text/plain"), "{head}");
        (head.split(' ').nth(1).expect("a status").to_owned(), body.to_owned())
    };
    let arn = "arn:aws:lambda:us-east-1:012345678912:function:f";
    // {"custom":{"foo":"bar"}}
    let context =
        "x-amz-client-context: eyJjdXN0b20iOnsiZm9vIjoiYmFyIn19\r\nx-amz-invocation-type: Event\r\n";
    let answered = format!(r#"{arn} {{"custom":{{"foo":"bar"}}}}"#);
    for (headers, body, status, said) in [
        (context, "{}", "200", answered.as_str()),
        ("", "\"raise\"", "200", r#"{"errorMessage":"own"}"#),
        ("", "\"late\"", "200", "Task timed out after 1.00 seconds"),
        ("", "\"exit\"", "502", "exited"),
        ("x-amz-client-context: ?\r\n", "{}", "500", "the client context is not base64"),
    ] {
        assert_eq!(ask(headers, body).await, (status.to_owned(), said.to_owned()), "{body}");
    }
    // Other names are those of functions.
    let other =
        stage.http("GET /2015-03-31/functions/a.f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(other.contains("application/json"), "{other}");
}

#[tokio::test]
async fn rules_of_a_runtime_are_read_from_a_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file: PathBuf = directory.path().join("runtimes.json");
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("bin")).expect("a root");
    std::fs::write(root.join("bin/python"), "x").expect("a file");
    let text = serde_json::json!({"python3.12": {"rootfs": root, "command": ["/bin/python", "{handler}"], "env": {"P": "1"}}});
    std::fs::write(&file, text.to_string()).expect("a file");
    let mut config = config();
    config.lambda.code = Some(stoker_lb::LambdaCode::Directory(directory.path().join("code")));
    config.lambda.runtimes = stoker_lb::LambdaRuntimes::read(&file).expect("it is right");
    let stage = stage(config, vec![echo()]).await;
    let body = r#"{"FunctionName":"x","Role":"r","Runtime":"python3.12","Handler":"f.h","Code":{"ZipFile":"UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="}}"#;
    let request = format!(
        "POST /2015-03-31/functions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = stage.http(&request).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let functions = stage.registry.functions().borrow().clone();
    let spec = functions.find("default/x").expect("it is there");
    assert_eq!(
        (spec.command.join(" "), spec.workdir.as_path()),
        ("/bin/python f.h".into(), Path::new("/var/task"))
    );
    assert_eq!(spec.env["P"], "1");
    let stoker_core::function::Root::Rootfs(rooted) = &spec.root else { panic!("{:?}", spec.root) };
    assert!(rooted.join("bin/python").is_file() && rooted.join("var/task").is_dir());
}
