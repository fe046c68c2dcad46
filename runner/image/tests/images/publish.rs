//! Images that are put into a registry, and pulled again.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::Full;
use serde_json::json;
use stoker_core::ImageRef;
use stoker_image::{Fault, Layer, LayerBuilder, Publisher, RegistryConfig, Top};

use crate::kit::{Made, Place, directory, file, tree};
use crate::registry::{Act, Asked, Gate, PASSWORD, Registry, USER, answer, credentials, empty, pull};

/// More than one request takes.
const LARGE: usize = 9 << 20;

fn layer(files: &[(&str, &[u8])]) -> Layer {
    let mut builder = LayerBuilder::new(64 << 20);
    builder.only_directory(Path::new("var/task")).unwrap();
    for (name, content) in files {
        let path = Path::new("var/task").join(name);
        builder.file(&path, content.len() as u64, name.ends_with(".sh"), *content).unwrap();
    }
    builder.link(Path::new("var/task/link"), Path::new("code")).unwrap();
    builder.finish().unwrap()
}

/// What no compressor makes smaller.
fn noise(bytes: usize) -> Vec<u8> {
    let mut seed = 1u64;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        out.extend(seed.to_le_bytes());
    }
    out
}

fn publisher(repository: &ImageRef, credentials: Option<(&Path, &str)>) -> Publisher {
    let config = RegistryConfig {
        credentials: credentials.map(|(directory, _)| directory.to_owned()),
        ..RegistryConfig::default()
    };
    Publisher::new(config, repository.clone(), credentials.map(|(_, name)| name.to_owned())).unwrap()
}

fn base() -> Made {
    let system = [file("bin/python", "an interpreter"), directory("var/task"), file("var/task/old", "of it")];
    Made::new(&[&system, &[file("etc/release", "base")]])
}

/// Requests that send bytes of a blob.
fn sent(gate: &Gate) -> usize {
    let all = gate.seen();
    all.iter().filter(|asked| asked.path.contains("/uploads/") && asked.method != "POST").count()
}

#[tokio::test]
async fn a_layer_alone_is_an_image_and_the_same_again_sends_nothing() {
    let Some(registry) = Registry::start() else { return };
    let gate = Gate::open(registry.address, |_| Act::Pass).await;
    let publisher = publisher(&gate.image("team/code"), None);
    let layer = layer(&[("code", b"1"), ("run.sh", b"#!")]);
    let image = publisher.publish(None, &[Top::New(&layer)]).await.unwrap();
    assert!(image.is_pinned() && image.tag().is_some(), "{image}");
    assert_eq!(sent(&gate), 2, "layer and configuration");
    let place = Place::new();
    let pulled = pull(&place.store, &image, None).await.unwrap();
    let task = pulled.root.join("var/task");
    assert_eq!(std::fs::read(task.join("link")).unwrap(), b"1");
    let mode = std::fs::metadata(task.join("run.sh")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o755);
    assert_eq!(publisher.publish(None, &[Top::New(&layer)]).await.unwrap(), image);
    assert_eq!(sent(&gate), 2, "it is there");
}

#[tokio::test]
async fn an_image_below_is_taken_over_within_its_registry_and_copied_from_another() {
    let (Some(registry), Some(other)) = (Registry::start(), Registry::start()) else { return };
    let made = base();
    registry.push("images/python", "3", &made);
    other.push("python", "3", &made);
    let layer = layer(&[("code", b"1")]);
    let mut images = Vec::new();
    for (repository, same) in [("near", true), ("far", false)] {
        let gate = Gate::open(registry.address, |_| Act::Pass).await;
        let below = if same { gate.image("images/python:3") } else { other.image("python:3") };
        let image = publisher(&gate.image(repository), None).publish(Some(&below), &[Top::New(&layer)]).await;
        // Its two layers only where they come from elsewhere; and the new one, and the configuration.
        assert_eq!(sent(&gate), if same { 2 } else { 4 }, "{repository}: {:?}", gate.seen());
        assert_eq!(gate.count("mount=") > 0, same);
        let image = image.unwrap();
        let place = Place::new();
        let files = tree(&pull(&place.store, &image, None).await.unwrap().root);
        for (name, there) in
            [("bin/python", true), ("etc/release", true), ("var/task/code", true), ("var/task/old", false)]
        {
            assert_eq!(files.keys().any(|path| path.ends_with(name)), there, "{repository}: {name}");
        }
        images.push(image.digest().unwrap().to_owned());
    }
    assert_eq!(images[0], images[1], "the same, wherever it came from");

    // What is there already on something else, without its bytes.
    let gate = Gate::open(registry.address, |_| Act::Pass).await;
    let near = publisher(&gate.image("near"), None);
    let before = gate.image(&format!("near@{}", images[0]));
    let image = near.publish(None, &[Top::Of(&before)]).await.unwrap();
    assert_eq!(sent(&gate), 1, "its configuration");
    let place = Place::new();
    let pulled = pull(&place.store, &image, None).await.unwrap();
    let root = &pulled.root;
    assert!(root.join("var/task/code").exists() && !root.join("bin/python").exists());
    let elsewhere = registry.image(&format!("images/python@{}", images[0]));
    let error = near.publish(None, &[Top::Of(&elsewhere)]).await.unwrap_err();
    assert_eq!(error.fault, Fault::Missing, "{error}");
    let gone = gate.image("images/python:4");
    let error = near.publish(Some(&gone), &[Top::New(&layer)]).await.unwrap_err();
    assert!(error.fault == Fault::Missing && error.message.contains("images/python:4"), "{error}");
}

#[tokio::test]
async fn a_large_layer_goes_in_parts_and_survives_what_breaks() {
    let Some(registry) = Registry::start() else { return };
    let content = noise(LARGE);
    let layer = layer(&[("code", &content)]);
    let parts = AtomicUsize::new(0);
    // A part fails, then an upload is forgotten, then all goes well.
    let gate = Gate::open(registry.address, move |asked: &Asked| match asked.method.as_str() {
        "PATCH" => match parts.fetch_add(1, Ordering::Relaxed) {
            0 => empty(answer(503)),
            1 => empty(answer(404)),
            _ => Act::Pass,
        },
        _ => Act::Pass,
    })
    .await;
    let image = publisher(&gate.image("code"), None).publish(None, &[Top::New(&layer)]).await.unwrap();
    let begun = gate.seen().iter().filter(|asked| asked.method == "POST").count();
    assert_eq!(begun, 4, "the layer three times, the configuration once");
    let place = Place::new();
    let pulled = pull(&place.store, &image, None).await.unwrap();
    assert_eq!(std::fs::read(pulled.root.join("var/task/code")).unwrap(), content);

    // What stands before a registry may take no such bodies, which no second try changes.
    let gate = Gate::open(registry.address, |asked: &Asked| match asked.method.as_str() {
        "PATCH" => empty(answer(413)),
        _ => Act::Pass,
    })
    .await;
    let error = publisher(&gate.image("other"), None).publish(None, &[Top::New(&layer)]).await.unwrap_err();
    assert!(error.fault == Fault::Registry && error.message.contains("no request of that size"), "{error}");
    assert_eq!(sent(&gate), 1);
}

#[tokio::test]
async fn only_who_may_write_writes() {
    let Some(registry) = Registry::with_password() else { return };
    let place = Place::new();
    let (keys, host) = (place.path("credentials"), registry.address.to_string());
    credentials(&keys, "right", &host, json!({"username": USER, "password": PASSWORD}));
    credentials(&keys, "wrong", &host, json!({"username": USER, "password": "wrong-battery"}));
    let (repository, layer) = (registry.image("code"), layer(&[("code", b"1")]));
    for (name, fault) in [(Some("wrong"), Fault::Denied), (None, Fault::Denied), (Some("no"), Fault::Image)] {
        let publisher = publisher(&repository, name.map(|name| (keys.as_path(), name)));
        let error = publisher.publish(None, &[Top::New(&layer)]).await.unwrap_err();
        assert_eq!(error.fault, fault, "{name:?}: {error}");
        assert!(error.message.contains("/code") && !format!("{error:?}").contains("battery"), "{error:?}");
    }
    let right = publisher(&repository, Some((&keys, "right")));
    let image = right.publish(None, &[Top::New(&layer)]).await.unwrap();
    let place = Place::with(|config| config.registries.credentials = Some(keys.clone()));
    pull(&place.store, &image, Some("right")).await.unwrap();

    // The image below may be another registry's, of which the credentials say nothing.
    let Some(open) = Registry::start() else { return };
    open.push("python", "3", &base());
    right.publish(Some(&open.image("python:3")), &[Top::New(&layer)]).await.unwrap();
}

/// A server of tokens is asked for what is to be done, not for what the registry had in mind when it was only looked at.
#[tokio::test]
async fn a_token_is_asked_for_that_may_write_there_and_read_below() {
    let Some(registry) = Registry::start() else { return };
    registry.push("images/python", "3", &base());
    let realm = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let told = std::sync::Arc::clone(&realm);
    let gate = Gate::open(registry.address, move |asked: &Asked| {
        if asked.path.starts_with("/token") {
            let token = json!({"token": "sesame"}).to_string();
            return Act::Answer(answer(200).body(Full::new(token.into())).unwrap());
        }
        if asked.authorization.is_some() {
            return Act::Pass;
        }
        let challenge = told.lock().unwrap();
        empty(answer(401).header("www-authenticate", challenge.as_str()))
    })
    .await;
    *realm.lock().unwrap() =
        format!(r#"Bearer realm="http://{}/token",service="r",scope="repository:x:pull""#, gate.address);
    let publisher = publisher(&gate.image("team/code"), None);
    publisher
        .publish(Some(&gate.image("images/python:3")), &[Top::New(&layer(&[("code", b"1")]))])
        .await
        .unwrap();
    let writes = "scope=repository%3Ateam%2Fcode%3Apull%2Cpush%20repository%3Aimages%2Fpython%3Apull";
    assert_eq!(gate.count(writes), 1, "{:?}", gate.seen());
}
