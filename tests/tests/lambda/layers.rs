//! Layers: what a function has in `/opt`, where code is kept in a directory and where it is kept in a registry.

use serde_json::{Value, json};
use stoker_tests::fleet::Fleet;
use stoker_tests::registry::Registry;

use super::plain::{self, function, has};
use super::zips::{aws, right, shell, zipped};

const HANDLER: &str = r#"
import os
import subprocess

def handler(event, context):
    try:
        import tools
        version = tools.VERSION
    except ImportError:
        version = None
    seen = sorted(os.listdir("/opt")) if os.path.isdir("/opt") else []
    text = open("/opt/text").read() if "text" in seen else None
    ran = subprocess.run(["ours"], capture_output=True, text=True).stdout if "bin" in seen else None
    return {"tools": version, "seen": seen, "text": text, "ran": ran, "wrapped": os.environ.get("WRAPPED"),
            "registered": os.path.exists("/tmp/registered")}
"#;

/// A program to start a runtime with.
const WRAPPER: &[u8] = b"#!/bin/sh\nexport WRAPPED=\"$1\"\nexec \"$@\"\n";

/// An extension that writes down that it was let in.
const EXTENSION: &[u8] = br#"#!/usr/bin/env python3
import http.client, os
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
name = {"Lambda-Extension-Name": os.path.basename(__file__)}
api.request("POST", "/2020-01-01/extension/register", '{"events": ["INVOKE"]}', name)
answer = api.getresponse()
identity = {"Lambda-Extension-Identifier": answer.headers["Lambda-Extension-Identifier"]}
answer.read()
open("/tmp/registered", "w").close()
while True:
    api.request("GET", "/2020-01-01/extension/event/next", headers=identity)
    api.getresponse().read()
"#;

/// Makes a version of a layer; its ARN.
async fn publish(fleet: &Fleet, name: &str, files: &[(&str, &[u8])]) -> String {
    let path = format!("/2018-10-31/layers/{name}/versions");
    let body = json!({"Content": {"ZipFile": zipped(files)}, "CompatibleRuntimes": ["python3.11"]});
    let page = fleet.clients.page("POST", &path, &[], body.to_string()).await;
    let said: Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(page.status, 201, "{said}");
    said["LayerVersionArn"].as_str().unwrap().to_owned()
}

async fn seen(fleet: &Fleet, name: &str) -> Value {
    right(fleet, "POST", &format!("/{name}/invocations"), &json!({})).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_lie_on_each_other_in_opt() {
    if !has("python3") {
        return;
    }
    let (_directory, fleet) = plain::start().await;
    let tools = async |version: &str| {
        let module = format!("VERSION = {version:?}\n");
        let files: [(&str, &[u8]); 4] = [
            ("python/tools.py", module.as_bytes()),
            ("text", b"below"),
            ("bin/ours", b"#!/bin/sh\necho ran\n"),
            ("wrap", WRAPPER),
        ];
        publish(&fleet, "tools", &files).await
    };
    let below = tools("one").await;
    let above = publish(&fleet, "more", &[("text", b"above"), ("extensions/watcher", EXTENSION)]).await;

    let mut made =
        function("made", "python3.11", "func.handler", &zipped(&[("func.py", HANDLER.as_bytes())]));
    made["Layers"] = json!([below, above]);
    made["Environment"] = json!({"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrap"}});
    let made = right(&fleet, "POST", "", &made).await;
    assert_eq!(made["Layers"][1]["Arn"], json!(above), "{made}");
    let said = seen(&fleet, "made").await;
    assert_eq!(
        said,
        json!({"tools": "one", "seen": ["bin", "extensions", "python", "text", "wrap"], "text": "above", "ran": "ran\n",
            "wrapped": "python3", "registered": true})
    );

    // The other way round, and the next version of the one; a version that is deleted stays where it is used.
    let next = tools("two").await;
    assert!(next.ends_with(":tools:2"), "{next}");
    right(&fleet, "PUT", "/made/configuration", &json!({"Layers": [above, next]})).await;
    let path = "/2018-10-31/layers/tools/versions/2";
    assert_eq!(fleet.clients.page("DELETE", path, &[], "").await.status, 204);
    let changed = json!({"ZipFile": zipped(&[("func.py", HANDLER.as_bytes()), ("more", b"")])});
    right(&fleet, "PUT", "/made/code", &changed).await;
    let said = seen(&fleet, "made").await;
    assert_eq!((&said["tools"], &said["text"]), (&json!("two"), &json!("below")), "{said}");
    let (status, said) = aws(&fleet, "PUT", "/made/configuration", &json!({"Layers": [next]})).await;
    assert!(status == 400 && said["message"].as_str().unwrap().contains("does not exist"), "{said}");

    // None is none: the host has an /opt of its own.
    let bare = json!({"Layers": [], "Environment": {}});
    let bare = right(&fleet, "PUT", "/made/configuration", &bare).await;
    assert_eq!(bare["Layers"], Value::Null);
    let said = seen(&fleet, "made").await;
    assert_eq!((&said["tools"], &said["wrapped"]), (&Value::Null, &Value::Null), "{said}");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_may_come_as_a_layer() {
    if !has("python3") {
        return;
    }
    let (_directory, fleet) = plain::start().await;
    let bootstrap = br#"#!/usr/bin/env python3
import http.client, os
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
path = "/2018-06-01/runtime/invocation"
while True:
    api.request("GET", f"{path}/next")
    answer = api.getresponse()
    answer.read()
    text = open(os.environ["LAMBDA_TASK_ROOT"] + "/" + os.environ["_HANDLER"]).read()
    api.request("POST", f"{path}/{answer.headers['Lambda-Runtime-Aws-Request-Id']}/response", text)
    api.getresponse().read()
"#;
    let runtime = publish(&fleet, "runtime", &[("bootstrap", bootstrap)]).await;
    let mut made = function("made", "provided.al2023", "answer", &zipped(&[("answer", b"\"by a layer\"")]));
    made["Layers"] = json!([runtime]);
    right(&fleet, "POST", "", &made).await;
    assert_eq!(seen(&fleet, "made").await, json!("by a layer"));
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_layers_of_the_image_where_code_is_in_a_registry() {
    let Some(registry) = Registry::start() else { return };
    let Some(image) = shell(&registry).await else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("runtimes.json");
    let command = ["/bin/sh", "-c", "exec /bin/sh ./{handler}"];
    std::fs::write(&file, json!({"shell": {"image": image, "command": command}}).to_string()).unwrap();
    let fleet = super::zips::start(&registry, Some(&file)).await;
    let one = publish(&fleet, "one", &[("text", b"one"), ("only", b"here")]).await;
    let two = publish(&fleet, "two", &[("text", b"two")]).await;
    let files = r#"\"$(cat /opt/text /opt/only)\"}"#;
    let answers = include_str!("bootstrap.sh").replace("$(cat /tmp/event)}", files);
    let made = json!({"FunctionName": "made", "Runtime": "shell", "Role": "r", "Handler": "one.sh", "Timeout": 20,
        "Layers": [one, two], "Code": {"ZipFile": zipped(&[("one.sh", answers.as_bytes())])}});
    right(&fleet, "POST", "", &made).await;
    assert_eq!(seen(&fleet, "made").await, json!({"got": "twohere"}));
    // The code is taken over, and lies on other layers.
    right(&fleet, "PUT", "/made/configuration", &json!({"Layers": [two, one]})).await;
    assert_eq!(seen(&fleet, "made").await, json!({"got": "onehere"}));
    fleet.end().await;
}
