//! The clients on the page about gRPC, as a reader copies them, with the libraries that they name. `scripts/test` installs those; without them these tests
//! say that they were left out.

use std::path::PathBuf;
use std::process::Stdio;

use stoker_core::FunctionName;
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::function;
use tokio::process::Command;

use crate::page::{Note, Step, pages, root};

/// Where `scripts/test` put the kit, or `None`, said on STDOUT.
fn kit(name: &str, needs: &str) -> Option<PathBuf> {
    let kits = match std::env::var_os("STOKER_TEST_KITS") {
        Some(directory) => directory.into(),
        None => stoker_tests::program("probe").parent().unwrap().parent().unwrap().join("test-kits"),
    };
    let directory = kits.join(name);
    if directory.join(needs).exists() {
        return Some(directory);
    }
    println!("left out: the kit {name} is not in {}: run scripts/test", kits.display());
    None
}

/// A block of the page.
fn program(file: &str) -> String {
    let page = pages().into_iter().find(|page| page.name == "docs/grpc.md").unwrap();
    let named = Note::File(file.to_owned());
    let text = page.steps.into_iter().find_map(|step| match step {
        Step::Block { text, notes, .. } => notes.contains(&named).then_some(text),
        Step::Before { .. } => None,
    });
    text.unwrap()
}

/// A fleet with the function that the page calls.
async fn fleet() -> Fleet {
    let mut hello = function("hello", &["sh", "-c", "echo \"Hello, $(cat)!\""]);
    hello.name = FunctionName::new("demo", "hello").unwrap();
    Plan::default().start([hello]).await
}

async fn says(mut command: Command) -> String {
    let ran = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}{}", text(&ran.stdout), text(&ran.stderr));
    text(&ran.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python() {
    let Some(kit) = kit("grpc-python", ".venv/bin/python3") else { return };
    let fleet = fleet().await;
    let place = tempfile::tempdir().unwrap();
    let files = root().join("proto/proto");
    let mut generate = Command::new(kit.join(".venv/bin/python3"));
    generate.args(["-m", "grpc_tools.protoc", "--python_out=.", "--grpc_python_out=."]);
    generate.arg(format!("-I{}", files.display()));
    generate.args(
        ["call", "common", "fleet", "function"].map(|name| files.join(format!("stoker/v1/{name}.proto"))),
    );
    generate.current_dir(place.path());
    says(generate).await;
    std::fs::write(place.path().join("client.py"), program("client.py")).unwrap();
    let mut client = Command::new(kit.join(".venv/bin/python3"));
    client.arg("client.py").arg(fleet.clients.grpc.to_string()).current_dir(place.path());
    let said = says(client).await;
    assert_eq!(said, "200 Hello, Ada!\nHello, Ada Lovelace!\nNOT_FOUND NOT_FOUND caller never\n",);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_node() {
    let Some(kit) = kit("grpc-node", "node_modules/@grpc/grpc-js") else { return };
    let fleet = fleet().await;
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("proto"), place.path().join("proto")).unwrap();
    std::os::unix::fs::symlink(kit.join("node_modules"), place.path().join("node_modules")).unwrap();
    std::fs::write(place.path().join("client.js"), program("client.js")).unwrap();
    let mut client = Command::new("node");
    client.arg("client.js").arg(fleet.clients.grpc.to_string()).current_dir(place.path());
    let said = says(client).await;
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Hello, Ada!", "Hello, Edsger!", "Hello, Grace!"]);
    fleet.end().await;
}
