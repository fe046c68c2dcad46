//! Code that comes as a zip and is kept in a real registry: nothing but that registry is between the balancer that takes it and the runner.

use std::io::{Cursor, Write as _};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use stoker_core::ImageRef;
use stoker_image::{LayerBuilder, Publisher, RegistryConfig, Top};
use stoker_lb::{LambdaCode, LambdaConfig, LambdaRuntimes};
use stoker_tests::busybox;
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::registry::Registry;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A runtime in shell, as the tests of extensions have it.
const SHELL: &str = include_str!("bootstrap.sh");

/// A zip with these files, in the words of a request.
pub fn zipped(files: &[(&str, &[u8])]) -> String {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
        zip.write_all(content).unwrap();
    }
    BASE64.encode(zip.finish().unwrap().into_inner())
}

fn repository(registry: &Registry, name: &str) -> Publisher {
    let repository = ImageRef::parse(&format!("{}/{name}", registry.address)).unwrap();
    Publisher::new(RegistryConfig::default(), repository, None).unwrap()
}

/// An image with a shell in it, and code of its own that is not to be seen.
pub async fn shell(registry: &Registry) -> Option<ImageRef> {
    let content = std::fs::read(busybox()?).unwrap();
    let mut layer = LayerBuilder::new(16 << 20);
    layer.file(Path::new("bin/busybox"), content.len() as u64, true, &*content).unwrap();
    for name in ["sh", "wget", "grep", "sed", "tr", "cat", "sleep", "echo", "ls"] {
        layer.link(&Path::new("bin").join(name), Path::new("busybox")).unwrap();
    }
    layer.file(Path::new("var/task/old"), 3, false, &b"old"[..]).unwrap();
    let layer = layer.finish().unwrap();
    Some(repository(registry, "images/shell").publish(None, &[Top::New(&layer)]).await.unwrap())
}

pub async fn start(registry: &Registry, runtimes: Option<&Path>) -> Fleet {
    let mut plan = Plan::default();
    plan.resources.memory = 2 << 30;
    plan.balancer.lambda = LambdaConfig {
        code: Some(LambdaCode::Registry(Arc::new(repository(registry, "stoker/code")))),
        runtimes: runtimes.map(|path| LambdaRuntimes::read(path).unwrap()).unwrap_or_default(),
        ..LambdaConfig::default()
    };
    plan.start([]).await
}

/// One request to AWS's API: its status, and what it says.
pub async fn aws(fleet: &Fleet, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let page = fleet.clients.page(method, &format!("/2015-03-31/functions{path}"), &[], body).await;
    (page.status, serde_json::from_slice(&page.body).unwrap_or_default())
}

pub async fn right(fleet: &Fleet, method: &str, path: &str, body: &Value) -> Value {
    let (status, said) = aws(fleet, method, path, body).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_is_laid_on_the_image_of_its_runtime() {
    let Some(registry) = Registry::start() else { return };
    let Some(image) = shell(&registry).await else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("runtimes.json");
    // Which files there are is a part of each answer.
    let command = ["/bin/sh", "-c", "ls /var/task >&2; exec /bin/sh ./{handler}"];
    std::fs::write(&file, json!({"shell": {"image": image, "command": command}}).to_string()).unwrap();
    let fleet = start(&registry, Some(&file)).await;

    let answer = |text: &str| SHELL.replace("got", text);
    let first = zipped(&[("one.sh", answer("first").as_bytes()), ("two.sh", answer("other").as_bytes())]);
    let made = json!({"FunctionName": "made", "Runtime": "shell", "Role": "r", "Handler": "one.sh", "Publish": true,
        "Timeout": 20, "Code": {"ZipFile": first}});
    let made = right(&fleet, "POST", "", &made).await;
    assert_eq!((&made["PackageType"], &made["Version"]), (&json!("Zip"), &json!("1")), "{made}");
    let said = right(&fleet, "POST", "/made/invocations", &json!({"n": 1})).await;
    assert_eq!(said, json!({"first": {"n": 1}}));

    // Another handler of the same zip, which nobody sends again.
    right(&fleet, "PUT", "/made/configuration", &json!({"Handler": "two.sh"})).await;
    assert_eq!(right(&fleet, "POST", "/made/invocations", &json!(2)).await, json!({"other": 2}));

    let second = zipped(&[("two.sh", answer("second").as_bytes())]);
    let updated = right(&fleet, "PUT", "/made/code", &json!({"ZipFile": second})).await;
    assert_ne!(updated["CodeSha256"], made["CodeSha256"]);
    assert_eq!(right(&fleet, "POST", "/made/invocations", &json!(3)).await, json!({"second": 3}));
    let old = right(&fleet, "POST", "/made/invocations?Qualifier=1", &json!(4)).await;
    assert_eq!(old, json!({"first": 4}), "what was published stays");
    let seen = right(&fleet, "GET", "/made", &Value::Null).await;
    let at = seen["Code"]["Location"].as_str().unwrap();
    assert!(at.contains("/stoker/code:") && at.contains("@sha256:"), "{seen}");

    let (status, said) = aws(&fleet, "PUT", "/made/code", &json!({"ImageUri": image})).await;
    assert_eq!(status, 400, "it is a zip: {said}");
    let hidden = zipped(&[(".wh.two.sh", b"")]);
    let (status, said) = aws(&fleet, "PUT", "/made/code", &json!({"ZipFile": hidden})).await;
    assert!(status == 400 && said["message"].as_str().unwrap().contains("no name for a file"), "{said}");
    let python = json!({"FunctionName": "py", "Runtime": "python3.12", "Role": "r", "Handler": "f.h", "Code": {"ZipFile": first}});
    let (status, said) = aws(&fleet, "POST", "", &python).await;
    assert!(status == 400 && said["message"].as_str().unwrap().contains("lambda.runtimes"), "{said}");
    right(&fleet, "DELETE", "/made", &Value::Null).await;
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_needs_nothing_is_an_image_by_itself() {
    let (Some(busybox), Some(registry)) = (busybox(), Registry::start()) else { return };
    let busybox = std::fs::read(busybox).unwrap();
    let fleet = start(&registry, None).await;
    let names = ["wget", "grep", "sed", "tr", "cat", "sleep"];
    let by_itself = names.map(|name| format!("{name}() {{ /var/task/busybox {name} \"$@\"; }}\n")).concat();
    let bootstrap = format!("#!/var/task/busybox sh\n{by_itself}{SHELL}");
    let code = json!({"ZipFile": zipped(&[("bootstrap", bootstrap.as_bytes()), ("busybox", &busybox)])});
    let made = json!({"FunctionName": "made", "Runtime": "provided.al2023", "Role": "r", "Handler": "x",
        "Timeout": 20, "Code": code});
    right(&fleet, "POST", "", &made).await;
    let said = right(&fleet, "POST", "/made/invocations", &json!({"a": 1})).await;
    assert_eq!(said, json!({"got": {"a": 1}}));
    right(&fleet, "DELETE", "/made", &Value::Null).await;

    // Without its registry nothing is kept, and that is no mistake of who asked.
    drop(registry);
    let (status, said) = aws(&fleet, "POST", "", &made).await;
    assert!(status == 503 && said["message"].as_str().unwrap().contains("not stored"), "{status} {said}");
    fleet.end().await;
}
