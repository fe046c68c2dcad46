//! Pulls that go well: tags, digests, machines, and how little is fetched.

use serde_json::json;
use stoker_image::{Config, Fault, Source, Store};

use crate::kit::{Made, Place, directory, file, gzip, tree, zstd};
use crate::registry::{Act, Gate, Registry, pull};

fn app(name: &str) -> Made {
    let base = [directory("etc/"), file("etc/os-release", "base"), file("lib/big", &"b".repeat(200_000))];
    Made::new(&[&base, &[file("app", name).mode(0o755)]]).set("Entrypoint", json!(["/app"]))
}

#[tokio::test]
async fn a_tag_becomes_a_digest_becomes_a_root() {
    let Some(registry) = Registry::start() else { return };
    for (form, store) in [
        ("plain", &(|layer: &[u8]| layer.to_vec()) as &dyn Fn(&[u8]) -> Vec<u8>),
        ("gzip", &gzip),
        ("zstd", &zstd),
    ] {
        let image = app(form);
        let pushed = registry.push_as("team/app", form, &image, store);
        let place = Place::new();
        let pinned = place.store.resolve(&registry.image(&format!("team/app:{form}")), None).await.unwrap();
        assert_eq!(pinned.digest(), Some(pushed.as_str()));
        assert_eq!(pinned.tag(), Some(form));
        let prepared =
            place.store.prepare(&Source::Registry { image: pinned, credentials: None }).await.unwrap();
        assert_eq!(std::fs::read_to_string(prepared.root.join("app")).unwrap(), form);
        assert_eq!(prepared.config.command(), ["/app", "/bin/true"]);
        let size: usize = image.layers.iter().map(|layer| store(layer).len()).sum();
        assert_eq!(prepared.phases.bytes, size as u64);
        assert!(
            !prepared.phases.resolve.is_zero()
                && !prepared.phases.fetch.is_zero()
                && !prepared.phases.flatten.is_zero()
        );
    }
}

#[tokio::test]
async fn a_tag_that_moved_is_another_image_and_a_digest_is_not() {
    let Some(registry) = Registry::start() else { return };
    let place = Place::new();
    let tag = registry.image("app:1");
    registry.push("app", "1", &app("old"));
    let old = place.store.resolve(&tag, None).await.unwrap();
    registry.push("app", "1", &app("new"));
    let new = place.store.resolve(&tag, None).await.unwrap();
    assert_ne!(old, new);
    for (pinned, content) in [(old, "old"), (new, "new")] {
        let prepared =
            place.store.prepare(&Source::Registry { image: pinned, credentials: None }).await.unwrap();
        assert_eq!(std::fs::read_to_string(prepared.root.join("app")).unwrap(), content);
    }
    let error = place.store.prepare(&Source::Registry { image: tag, credentials: None }).await.err().unwrap();
    assert!(error.fault == Fault::Image && error.message.contains("no digest"), "{error}");
}

#[tokio::test]
async fn this_machines_image_is_taken_from_an_index() {
    let Some(registry) = Registry::start() else { return };
    let ours = app("ours");
    let mut other = app("other");
    other.config["architecture"] = json!("pdp11");
    let describe = |image: &Made, architecture: &serde_json::Value| {
        let manifest = image.manifest(&gzip);
        let digest = registry.push("many", "part", image);
        json!({
            "mediaType": manifest["mediaType"], "digest": digest, "size": manifest.to_string().len(),
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let manifests = json!([
        describe(&other, &json!("pdp11")),
        describe(&app("attestation"), &json!("unknown")),
        describe(&ours, &ours.config["architecture"]),
    ]);
    let kinds = [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    for kind in kinds {
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        let digest = registry.push_manifest("many", "1", &index);
        let place = Place::new();
        let pinned = place.store.resolve(&registry.image("many:1"), None).await.unwrap();
        assert_eq!(pinned.digest(), Some(digest.as_str()), "the index is pinned, for runners of every kind");
        let prepared =
            place.store.prepare(&Source::Registry { image: pinned, credentials: None }).await.unwrap();
        assert_eq!(std::fs::read_to_string(prepared.root.join("app")).unwrap(), "ours");
    }
    let index = json!({"schemaVersion": 2, "mediaType": kinds[0], "manifests": [manifests[0]]});
    registry.push_manifest("many", "other", &index);
    let error = pull(&Place::new().store, &registry.image("many:other"), None).await.err().unwrap();
    assert!(error.fault == Fault::Image && error.message.contains("linux/pdp11"), "{error}");
}

#[tokio::test]
async fn dockers_own_manifests_are_understood() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "parts", &app("docker"));
    let mut manifest = app("docker").manifest(&gzip);
    manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
    registry.push_manifest("app", "docker", &manifest);
    let place = Place::new();
    let prepared = pull(&place.store, &registry.image("app:docker"), None).await.unwrap();
    assert_eq!(std::fs::read_to_string(prepared.root.join("app")).unwrap(), "docker");
}

#[tokio::test]
async fn many_who_want_one_image_fetch_it_once() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &app("one"));
    registry.push("app", "2", &app("two"));
    let gate = Gate::open(registry.address, |_| Act::Pass).await;
    let place = Place::new();
    let mut pulls = tokio::task::JoinSet::new();
    let mut pinned = Vec::new();
    for tag in ["app:1", "app:2"] {
        pinned.push(place.store.resolve(&gate.image(tag), None).await.unwrap());
    }
    for n in 0..40 {
        let (store, image) = (place.store.clone(), pinned[n % 2].clone());
        pulls.spawn(async move {
            store.prepare(&Source::Registry { image, credentials: None }).await.unwrap().root
        });
    }
    let mut roots = pulls.join_all().await;
    roots.sort();
    roots.dedup();
    assert_eq!(roots.len(), 2);
    // Two configurations and three layers, of which both have one.
    assert_eq!(gate.count("/blobs/"), 5, "{:#?}", gate.seen());
    assert_eq!(place.store.usage().layers, 3);
}

#[tokio::test]
async fn what_is_there_is_used_without_the_registry_by_the_next_process_too() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &app("one"));
    let Place { store, directory } = Place::new();
    let pinned = store.resolve(&registry.image("app:1"), None).await.unwrap();
    let source = Source::Registry { image: pinned, credentials: None };
    let first = store.prepare(&source).await.unwrap();
    let before = (first.root.clone(), first.config.clone(), tree(&first.root));
    let usage = store.usage();
    drop((first, store, registry));
    let store = Store::open(Config::new(directory.path().join("store"))).unwrap();
    let again = store.prepare(&source).await.unwrap();
    assert_eq!((again.root.clone(), again.config.clone(), tree(&again.root)), before);
    assert_eq!(again.phases, Default::default());
    assert_eq!(store.usage(), usage);
}

#[tokio::test]
async fn what_was_not_used_for_the_longest_time_goes() {
    let Some(registry) = Registry::start() else { return };
    let made = |name: &str| Made::new(&[&[file("content", &name.repeat(1 << 20)), file("name", name)]]);
    // Four of them are more than the budget.
    let place = Place::with(|config| config.budget = 3_500_000);
    let mut sources = Vec::new();
    for name in ["a", "b", "c", "d"] {
        registry.push("app", name, &made(name));
        let image = place.store.resolve(&registry.image(&format!("app:{name}")), None).await.unwrap();
        sources.push(Source::Registry { image, credentials: None });
    }
    let [a, b, c, d] = &sources[..] else { panic!("there are four") };
    let root_of = async |source| place.store.prepare(source).await.unwrap().root;
    let (root_a, root_b) = (root_of(a).await, root_of(b).await);
    let root_c = root_of(c).await;
    // Now `b` is the oldest.
    root_of(a).await;
    let root_d = root_of(d).await;
    assert!(root_a.exists() && !root_b.exists() && root_c.exists() && root_d.exists());
    let usage = place.store.usage();
    assert!(usage.bytes <= usage.budget, "{usage:?}");

    // In use, nothing goes, and what finds no room says so.
    let held = [
        place.store.prepare(a).await.unwrap(),
        place.store.prepare(c).await.unwrap(),
        place.store.prepare(d).await.unwrap(),
    ];
    let error = place.store.prepare(b).await.err().unwrap();
    assert_eq!(error.fault, Fault::Full, "{error}");
    assert!(held.iter().all(|image| image.root.join("name").exists()));
    assert_eq!(place.names("tmp"), [""; 0]);
    assert_eq!(place.store.usage(), stoker_image::Usage { roots_in_use: 3, ..usage });
    drop(held);
    place.store.prepare(b).await.unwrap();
    assert!(!root_a.exists(), "of the three, it was let go first");
    assert!(place.store.usage().bytes <= 3_500_000);
}

#[tokio::test]
async fn work_that_nobody_waits_for_ends() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &app("one"));
    let big = app("one").manifest(&gzip)["layers"][0]["digest"].as_str().unwrap().to_owned();
    let stopped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let rule = {
        let stopped = std::sync::Arc::clone(&stopped);
        move |asked: &crate::registry::Asked| {
            let hang = asked.path.ends_with(&big) && stopped.load(std::sync::atomic::Ordering::Relaxed);
            if hang { Act::Hang } else { Act::Pass }
        }
    };
    let gate = Gate::open(registry.address, rule).await;
    let place = Place::new();
    let image = place.store.resolve(&gate.image("app:1"), None).await.unwrap();
    let source = Source::Registry { image, credentials: None };
    let ask = || {
        let (store, source) = (place.store.clone(), source.clone());
        tokio::spawn(async move { store.prepare(&source).await.map(|image| image.root) })
    };
    let (one, two) = (ask(), ask());
    gate.hanging(1, 0).await;
    one.abort();
    assert!(one.await.is_err());
    assert_eq!(gate.hung(), (1, 0), "another still waits");
    two.abort();
    gate.hanging(0, 1).await;
    stopped.store(false, std::sync::atomic::Ordering::Relaxed);
    let root = ask().await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(root.join("app")).unwrap(), "one");
}

#[tokio::test]
async fn what_a_crash_of_the_machine_may_have_damaged_is_fetched_again() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", &app("one"));
    let Place { store, directory } = Place::new();
    let config = Config::new(directory.path().join("store"));
    let pinned = store.resolve(&registry.image("app:1"), None).await.unwrap();
    let source = Source::Registry { image: pinned, credentials: None };
    let root = store.prepare(&source).await.unwrap().root;
    drop(store);
    // As if this had been another boot; the files that say so are all that tells.
    let another_boot = |safe: bool| {
        for part in ["layers", "roots"] {
            for entry in std::fs::read_dir(config.directory.join(part)).unwrap() {
                let facts = entry.unwrap().path().join("facts.json");
                let mut text: serde_json::Value =
                    serde_json::from_slice(&std::fs::read(&facts).unwrap()).unwrap();
                text["boot"] = json!("another");
                std::fs::remove_file(&facts).unwrap();
                std::fs::write(&facts, text.to_string()).unwrap();
                let mode = if safe { 0o400 } else { 0o600 };
                std::fs::set_permissions(&facts, std::fs::Permissions::from_mode(mode)).unwrap();
            }
        }
    };
    another_boot(true);
    let store = Store::open(config.clone()).unwrap();
    assert_eq!((store.usage().roots, store.usage().layers), (1, 2), "it was on disk");
    drop(store);
    another_boot(false);
    std::fs::write(root.join("app"), "").unwrap();
    let store = Store::open(config.clone()).unwrap();
    assert_eq!((store.usage().roots, store.usage().layers, store.usage().bytes), (0, 0, 0));
    let again = store.prepare(&source).await.unwrap();
    assert_eq!(std::fs::read_to_string(again.root.join("app")).unwrap(), "one");
}
