//! Who may depend on whom: the borders that the compiler checks, held against the list that people agreed on.

use std::collections::BTreeMap;
use std::process::Command;

/// Crate, and the crates of this workspace that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("stoker-core", &[]),
    ("stoker-policy", &["stoker-core"]),
    ("stoker-simulate", &["stoker-core", "stoker-policy"]),
    ("stoker-proto", &["stoker-core"]),
    ("stoker-runtime", &["stoker-core"]),
    ("stoker-registry", &["stoker-core", "stoker-proto"]),
    ("stoker-queue", &["stoker-core", "stoker-proto"]),
    ("stoker-format", &["stoker-core"]),
    ("stoker-lambda", &["stoker-core", "stoker-format"]),
    ("stoker-image", &["stoker-core"]),
    ("stoker-sandbox", &["stoker-core"]),
    (
        "stoker-lb",
        &[
            "stoker-core",
            // For the client of registries alone: code that comes as a zip is put into one.
            "stoker-image",
            "stoker-policy",
            "stoker-proto",
            "stoker-queue",
            "stoker-registry",
            "stoker-runtime",
        ],
    ),
    (
        "stoker-runner",
        &[
            "stoker-core",
            "stoker-format",
            "stoker-lambda",
            "stoker-image",
            "stoker-policy",
            "stoker-proto",
            "stoker-registry",
            "stoker-runtime",
            "stoker-sandbox",
        ],
    ),
    (
        "stoker",
        &[
            "stoker-core",
            "stoker-format",
            "stoker-lambda",
            "stoker-lb",
            "stoker-policy",
            "stoker-proto",
            "stoker-queue",
            "stoker-registry",
            "stoker-runner",
            "stoker-runtime",
            "stoker-sandbox",
            "stoker-simulate",
        ],
    ),
    ("hello-rust", &[]),
];

/// A crate, and the only one of ours that may name it.
const NAMED_ONCE: &[(&str, &str)] = &[
    ("etcd-client", "stoker-registry"),
    ("async-nats", "stoker-queue"),
    ("bollard", "stoker-sandbox"),
    ("opentelemetry", "stoker-runtime"),
];

fn packages() -> Vec<serde_json::Value> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("packages are a list").clone()
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("it is a string")
}

#[test]
fn crates_use_only_what_they_may() {
    let packages = packages();
    let names: Vec<&str> = packages.iter().map(|p| text(&p["name"])).collect();
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = text(&package["name"]);
        for dependency in package["dependencies"].as_array().expect("dependencies are a list") {
            let used = text(&dependency["name"]);
            // A crate may use itself with other features, in its tests.
            if name == "stoker-tests" || name == used || !names.contains(&used) {
                continue;
            }
            match allowed.get(name) {
                None => wrong.push(format!("{name} is not in the list")),
                Some(may) if !may.contains(&used) => wrong.push(format!("{name} must not use {used}")),
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn foreign_clients_are_named_in_one_place() {
    for package in packages() {
        let name = text(&package["name"]);
        for dependency in package["dependencies"].as_array().expect("dependencies are a list") {
            for (foreign, owner) in NAMED_ONCE {
                assert!(
                    text(&dependency["name"]) != *foreign || name == *owner,
                    "{name} must not name {foreign}"
                );
            }
        }
    }
}
