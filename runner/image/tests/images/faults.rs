//! Registries and networks as they are on bad days, and registries that lie.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::Full;
use stoker_core::{Blame, Retry};
use stoker_image::{Config, Fault, Phases, Source, Store};

use crate::kit::{Kind, Made, Place, entry, file, gzip, is_root};
use crate::registry::{Act, Asked, Gate, Registry, answer, empty, pull};

/// Of a size that does not fit into a few packets, and that cannot be compressed.
fn image() -> &'static Made {
    static IMAGE: OnceLock<Made> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut state = 7u64;
        let noise = (0..400_000).map(|_| (stoker_core::backoff::split_mix(&mut state) >> 56) as u8).collect();
        Made::new(&[&[entry("noise", Kind::File(noise))]])
    })
}

fn is_layer(asked: &Asked) -> bool {
    static LAYER: OnceLock<String> = OnceLock::new();
    let layer = || image().manifest(&gzip)["layers"][0]["digest"].as_str().unwrap().to_owned();
    asked.path.ends_with(LAYER.get_or_init(layer))
}

/// Does this to the first requests for a layer, and then nothing.
fn first(times: usize, rule: fn(usize) -> Act) -> impl Fn(&Asked) -> Act + Send + Sync {
    let seen = AtomicUsize::new(0);
    move |asked| {
        let n = if is_layer(asked) { seen.fetch_add(1, Ordering::Relaxed) } else { times };
        if n < times { rule(n) } else { Act::Pass }
    }
}

#[tokio::test]
async fn a_registry_that_cannot_answer_now_is_asked_again() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let refusals: fn(usize) -> Act = |n| match n {
        0 => empty(answer(503)),
        1 => empty(answer(429).header("retry-after", "0")),
        _ => empty(answer(500)),
    };
    let gate = Gate::open(registry.address, first(3, refusals)).await;
    pull(&Place::new().store, &gate.image("app:1"), None).await.unwrap();
    assert_eq!(gate.seen().iter().filter(|asked| is_layer(asked)).count(), 4);
}

#[tokio::test]
async fn a_layer_that_broke_off_goes_on_where_it_stopped() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate = Gate::open(registry.address, first(3, |n| Act::Cut(50_000 * (n + 1)))).await;
    let place = Place::new();
    let prepared = pull(&place.store, &gate.image("app:1"), None).await.unwrap();
    assert_eq!(std::fs::metadata(prepared.root.join("noise")).unwrap().len(), 400_000);
    let ranges: Vec<_> = gate.seen().into_iter().filter(is_layer).map(|asked| asked.range).collect();
    assert_eq!(ranges[..1], [None]);
    assert!(ranges.len() == 4 && ranges[1..].iter().all(Option::is_some), "{ranges:?}");

    // Whoever knows no ranges starts again, and what is known already is passed over.
    let seen = AtomicUsize::new(0);
    let gate = Gate::open(registry.address, move |asked| match is_layer(asked) {
        true if seen.fetch_add(1, Ordering::Relaxed) == 0 => Act::Cut(100_000),
        true => Act::Whole,
        false => Act::Pass,
    })
    .await;
    pull(&Place::new().store, &gate.image("app:1"), None).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_wants_to_be_left_alone_is() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate = Gate::open(registry.address, |asked| match asked.path.contains("/manifests/1") {
        true => empty(answer(429).header("retry-after", "3600")),
        false => Act::Pass,
    })
    .await;
    let error = pull(&Place::new().store, &gate.image("app:1"), None).await.err().unwrap();
    assert_eq!(
        (error.fault, error.retry_after),
        (Fault::Registry, Some(Duration::from_secs(3600))),
        "{error}"
    );
    let call = error.of_a_call();
    assert_eq!((call.blame(), call.retry), (Blame::Platform, Retry::After(Duration::from_secs(3600))));
}

/// Who asks what a tag leads to waits for the answer: that comes at once, with the registry's wish in it.
#[tokio::test]
async fn who_asks_for_a_tag_hears_of_a_registrys_wish() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate = Gate::open(registry.address, |asked| match asked.path.contains("/manifests/1") {
        true => empty(answer(429).header("retry-after", "9")),
        false => Act::Pass,
    })
    .await;
    let error = Place::new().store.resolve(&gate.image("app:1"), None).await.unwrap_err();
    assert_eq!((error.fault, error.retry_after), (Fault::Registry, Some(Duration::from_secs(9))), "{error}");
    assert!(error.message.ends_with("and wants to be left alone for 9 s"), "{error}");
    let asked = gate.seen().into_iter().filter(|asked| asked.path.contains("/manifests/1")).count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn whose_fault_it_is_is_said() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let place = Place::new();
    let missing = ["app:2", "nothing:1"];
    for name in missing {
        let error = pull(&place.store, &registry.image(name), None).await.err().unwrap();
        assert!(error.fault == Fault::Missing && error.message.contains("does not have it"), "{error}");
        assert_eq!(error.of_a_call().blame(), Blame::Function);
    }
    // A port where nobody is.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nowhere = stoker_core::ImageRef::parse(&format!("{nobody}/app:1")).unwrap();
    let error = pull(&place.store, &nowhere, None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn what_takes_too_long_is_given_up() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate =
        Gate::open(registry.address, |asked| if is_layer(asked) { Act::Hang } else { Act::Pass }).await;
    let late = async |gate: &Gate, limit| {
        let image = Place::new().store.resolve(&gate.image("app:1"), None).await.unwrap();
        let place = Place::with(|config| config.pull_timeout = limit);
        let error = place.store.prepare(&Source::Registry { image, credentials: None }).await.err().unwrap();
        assert_eq!(error.fault, Fault::Registry, "{error}");
        error.message
    };
    let message = late(&gate, Duration::from_secs(1)).await;
    let says = format!("it was not here within 1 s: {} did not answer", gate.address);
    assert!(message.ends_with(&says), "{message}");

    // Part of it came: that is told, as it tells a slow registry from one that is gone.
    let gate = Gate::open(registry.address, |asked| match is_layer(asked) {
        true if asked.range.is_some() => Act::Hang,
        true => Act::Cut(100_000),
        false => Act::Pass,
    })
    .await;
    let message = late(&gate, Duration::from_secs(5)).await;
    let says = format!("within 5 s: {} broke off in the middle of a layer: ", gate.address);
    assert!(message.contains(&says) && message.ends_with(" bytes of it had come by then"), "{message}");
}

/// A balancer that applies a function waits for some seconds only: by then a runner has said who held it up.
#[tokio::test]
async fn who_asks_for_a_tag_hears_who_did_not_answer() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate = Gate::open(registry.address, |_| Act::Hang).await;
    let place = Place::with(|config| config.pull_timeout = Duration::from_millis(500));
    let error = place.store.resolve(&gate.image("app:1"), None).await.unwrap_err();
    let says = format!("was not known within 0.5 s: {} did not answer", gate.address);
    assert!(error.fault == Fault::Registry && error.message.ends_with(&says), "{error}");
}

#[tokio::test]
async fn what_a_registry_says_is_passed_on() {
    let Some(registry) = Registry::start() else { return };
    let place = Place::new();
    let error = pull(&place.store, &registry.image("app:2"), None).await.err().unwrap();
    assert!(error.message.contains("does not have it: it says \"manifest unknown\""), "{error}");
    let gate = Gate::open(registry.address, |_| {
        let said = r#"{"errors":[{"code":"DENIED","message":"images must be signed\u001b[2J"}]}"#;
        Act::Answer(answer(403).body(Full::from(said)).unwrap())
    })
    .await;
    let error = pull(&place.store, &gate.image("app:1"), None).await.err().unwrap();
    assert_eq!(error.fault, Fault::Denied, "{error}");
    assert!(
        error.message.ends_with(r#"(403 Forbidden): it says "images must be signed\u{1b}[2J""#),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_kept_elsewhere_and_not_in_the_registry_is_told() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let mut manifest = image().manifest(&gzip);
    manifest["layers"][0]["urls"] = serde_json::json!(["https://elsewhere.example/layer"]);
    let manifest = manifest.to_string();
    // Registries take such a manifest where their operator has allowed the address.
    let gate = async |missing: bool| {
        let manifest = manifest.clone();
        let rule = move |asked: &Asked| match asked.method.as_str() {
            _ if missing && is_layer(asked) => empty(answer(404)),
            "HEAD" => empty(answer(405)),
            _ if asked.path.contains("/manifests/") => {
                Act::Answer(answer(200).body(Full::from(manifest.clone())).unwrap())
            }
            _ => Act::Pass,
        };
        Gate::open(registry.address, rule).await
    };
    let there = gate(false).await;
    pull(&Place::new().store, &there.image("app:urls"), None).await.expect("it is here all the same");
    let gate = gate(true).await;
    let error = pull(&Place::new().store, &gate.image("app:urls"), None).await.err().unwrap();
    assert_eq!(error.fault, Fault::Missing, "{error}");
    assert!(
        error.message.contains("from the other addresses that its image names nothing is fetched"),
        "{error}"
    );
}

/// Every answer to such a request is another one.
async fn lying(registry: &Registry, part: &'static str, body: Vec<u8>) -> Gate {
    let body = Arc::new(body);
    Gate::open(registry.address, move |asked| {
        if asked.method == "GET" && asked.path.contains(part) {
            let answer = answer(200).body(Full::from(body.as_ref().clone())).unwrap();
            return Act::Answer(answer);
        }
        Act::Pass
    })
    .await
}

#[tokio::test]
async fn lies_are_found_out() {
    let Some(registry) = Registry::start() else { return };
    let good = image();
    registry.push("app", "1", good);
    let other = Made::new(&[&[file("x", "evil")]]);
    let layer = gzip(&good.layers[0]);
    let same_size = [&layer[..layer.len() - 1], &[layer[layer.len() - 1] ^ 1]].concat();
    let longer = [&layer[..], b"more"].concat();
    let cases = [
        ("/manifests/", other.manifest(&gzip).to_string().into_bytes(), "for its manifest, not"),
        ("/manifests/", vec![b' '; 5 << 20], "longer than"),
        ("/blobs/", other.config_bytes(), "for its configuration, not"),
    ];
    for (part, body, says) in cases {
        let place = Place::new();
        let gate = lying(&registry, part, body).await;
        let error =
            pull(&place.store, &gate.image("app:1"), None).await.err().unwrap_or_else(|| panic!("{says}"));
        assert!(error.fault == Fault::Registry && error.message.contains(says), "{says}: {error}");
    }
    for (body, says) in [(same_size, ""), (longer, "gave more than"), (gzip(&other.layers[0]), "")] {
        let place = Place::new();
        let body = Arc::new(body);
        let gate = Gate::open(registry.address, move |asked| match is_layer(asked) {
            true => Act::Answer(answer(200).body(Full::from(body.as_ref().clone())).unwrap()),
            false => Act::Pass,
        })
        .await;
        let error = pull(&place.store, &gate.image("app:1"), None).await.err().unwrap();
        assert!(error.message.contains(says), "{error}");
        for part in ["tmp", "layers", "roots", "images"] {
            assert_eq!(place.names(part), [""; 0], "{error}");
        }
        assert_eq!(place.store.usage().bytes, 0);
    }
}

#[tokio::test]
async fn hops_have_an_end() {
    let Some(registry) = Registry::start() else { return };
    registry.push("app", "1", image());
    let gate = Gate::open(registry.address, |asked| match is_layer(asked) {
        true => empty(answer(302).header("location", asked.path.as_str())),
        false => Act::Pass,
    })
    .await;
    let error = pull(&Place::new().store, &gate.image("app:1"), None).await.err().unwrap();
    assert!(error.fault == Fault::Registry && error.message.contains("circle"), "{error}");
}

#[tokio::test]
async fn registries_that_say_little_are_understood() {
    let Some(registry) = Registry::start() else { return };
    let digest = registry.push("app", "1", image());
    let place = Place::new();
    // What stands before a registry and has a page for everybody: who applies a function hears of it.
    let gate = Gate::open(registry.address, |_| {
        let page = http::Response::builder().header("content-type", "text/html; charset=utf-8");
        Act::Answer(page.body(Full::from("<html>")).unwrap())
    })
    .await;
    let error = place.store.resolve(&gate.image("app:1"), None).await.unwrap_err();
    assert!(error.fault == Fault::Registry && error.message.contains("a page for browsers"), "{error}");
    // No HEAD, and no digest in headers.
    for status in [405, 501, 200] {
        let gate = Gate::open(registry.address, move |asked| match asked.method.as_str() {
            "HEAD" => empty(answer(status)),
            _ => Act::Pass,
        })
        .await;
        let pinned = place.store.resolve(&gate.image("app:1"), None).await.unwrap();
        assert_eq!(pinned.digest(), Some(digest.as_str()));
        let asked = gate.seen().into_iter().filter(|asked| asked.method == "HEAD").count();
        assert_eq!(asked, 1, "{status}");
        place.store.prepare(&Source::Registry { image: pinned, credentials: None }).await.unwrap();
    }
}

/// The disk, of which the budget knows nothing, is full.
#[test]
fn a_full_disk_is_relieved_of_what_nobody_uses() {
    if !is_root() {
        println!("left out: only root can mount a small disk");
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=3m none \"$0\" && exec \"$@\"";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "/bin/sh", "-c", script])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::on_a_small_disk", "--ignored", "--nocapture"])
        .env(DISK, disk.path())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

const DISK: &str = "STOKER_TEST_DISK";

#[tokio::test]
#[ignore = "started on a disk of its own"]
async fn on_a_small_disk() {
    let Ok(disk) = std::env::var(DISK) else { return };
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(Config::new(std::path::Path::new(&disk).join("store"))).unwrap();
    // Two of them fill it.
    let source = |name: &str| {
        let layers =
            ["base", name].map(|name| vec![entry(name, Kind::File(name.repeat(150_000).into_bytes()))]);
        let path = place.path().join(name);
        std::fs::write(&path, Made::new(&layers.each_ref().map(Vec::as_slice)).new_archive()).unwrap();
        Source::Archive(path)
    };
    let sources = ["first_", "second", "third_"].map(source);
    for source in &sources {
        store.prepare(source).await.unwrap();
    }
    let used = [store.prepare(&sources[1]).await.unwrap(), store.prepare(&sources[2]).await.unwrap()];
    assert!(used.iter().all(|image| image.phases == Phases::default()), "they are there: {used:?}");
    let error = store.prepare(&sources[0]).await.unwrap_err();
    assert_eq!(error.fault, Fault::Full, "{error}");
    assert!(error.message.contains("disk is full"), "{error}");
    // What it had of it is kept for when there is room, the base being that of the others.
    assert_eq!(store.usage().roots, 2);
    drop(used);
    store.prepare(&sources[0]).await.unwrap();
}
