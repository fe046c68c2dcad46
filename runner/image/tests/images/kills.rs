//! A process that is killed while it pulls leaves a store that the next one can use.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::ImageRef;
use stoker_core::backoff::split_mix;
use stoker_image::{Config, Source, Store};
use tokio::process::Command;
use tokio::sync::Notify;

use crate::kit::{Kind, Made, entry, file, tree};
use crate::registry::{Act, Gate, Registry, pull};

const ROUNDS: u32 = 16;
/// What the killed process is told.
const STORE: &str = "STOKER_TEST_STORE";
const IMAGES: &str = "STOKER_TEST_IMAGES";
/// Room for about two of the images: so it evicts too.
const BUDGET: u64 = 2_500_000;

fn image(n: usize) -> Made {
    let layer = |name: String| -> Vec<_> {
        let small = (0..25).map(|k| file(&format!("{name}/{k}/file"), &format!("{name} {k}")));
        let big = entry(&format!("{name}/big"), Kind::File(name.repeat(20_000).into_bytes()));
        small.chain([big, file(&format!("{}/.wh.0", "base"), "")]).collect()
    };
    let layers = [layer("base".into()), layer(format!("own{n}")), layer(format!("top{n}"))];
    Made::new(&layers.each_ref().map(Vec::as_slice))
}

async fn prepare(store: &Store, image: &ImageRef) -> stoker_image::Image {
    let source = Source::Registry { image: image.clone(), credentials: None };
    store.prepare(&source).await.unwrap()
}

fn config(directory: &std::path::Path) -> Config {
    Config { budget: BUDGET, ..Config::new(directory.to_owned()) }
}

/// The process that is killed: not a test by itself.
#[tokio::test]
#[ignore = "started by the test below"]
async fn pulls_until_it_is_killed() {
    let (Ok(directory), Ok(images)) = (std::env::var(STORE), std::env::var(IMAGES)) else { return };
    let store = Store::open(config(directory.as_ref())).unwrap();
    for image in images.split(' ').cycle() {
        prepare(&store, &ImageRef::parse(image).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pull_leaves_a_store_that_is_whole() {
    let Some(registry) = Registry::start() else { return };
    let requests = Arc::new(AtomicU64::new(0));
    let (due, reached) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(Notify::new()));
    let rule = {
        let (requests, due, reached) = (Arc::clone(&requests), Arc::clone(&due), Arc::clone(&reached));
        move |_: &crate::registry::Asked| {
            if requests.fetch_add(1, Ordering::Relaxed) == due.load(Ordering::Relaxed) {
                reached.notify_one();
            }
            Act::Pass
        }
    };
    let gate = Gate::open(registry.address, rule).await;
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("store");

    // What is right, from a store that nobody killed.
    let mut pinned = Vec::new();
    let mut right: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let calm = Store::open(Config::new(directory.path().join("calm"))).unwrap();
    for n in 0..4 {
        registry.push("app", &n.to_string(), &image(n));
        pinned.push(calm.resolve(&gate.image(&format!("app:{n}")), None).await.unwrap());
        let prepared = pull(&calm, &gate.image(&format!("app:{n}")), None).await.unwrap();
        right.insert(name(&prepared.root), tree(&prepared.root));
    }
    let images: Vec<_> = pinned.iter().map(ToString::to_string).collect();

    let mut seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut seen = BTreeMap::<&str, u32>::new();
    for round in 0..ROUNDS {
        // Somewhere between two requests, or some time after one.
        requests.store(0, Ordering::Relaxed);
        due.store(split_mix(&mut seed) % 24, Ordering::Relaxed);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills::pulls_until_it_is_killed", "--ignored"])
            .env(STORE, &at)
            .env(IMAGES, images.join(" "))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        tokio::select! {
            () = reached.notified() => {}
            end = child.wait() => panic!("round {round}: it ended by itself: {end:?}"),
        }
        // A moment that nothing else would choose: within the work that follows a request.
        tokio::time::sleep(Duration::from_micros(split_mix(&mut seed) % 40_000)).await;
        child.kill().await.unwrap();
        for (part, kind) in [("tmp", "half-done"), ("roots", "roots"), ("layers", "layers")] {
            if std::fs::read_dir(at.join(part)).is_ok_and(|entries| entries.count() > 0) {
                *seen.entry(kind).or_default() += 1;
            }
        }

        let store = Store::open(config(&at)).unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert_eq!(std::fs::read_dir(at.join("tmp")).unwrap().count(), 0, "round {round}");
        for root in std::fs::read_dir(at.join("roots")).unwrap() {
            let root = root.unwrap().path();
            let files = root.join("files");
            assert_eq!(tree(&files), right[&name(&files)], "round {round}: {}", root.display());
        }
        let usage = store.usage();
        assert!(usage.bytes <= BUDGET && usage.roots_in_use == 0, "round {round}: {usage:?}");
        let n = (split_mix(&mut seed) % 4) as usize;
        let prepared = prepare(&store, &pinned[n]).await;
        assert_eq!(tree(&prepared.root), right[&name(&prepared.root)], "round {round}");
        drop((prepared, store));
        if split_mix(&mut seed).is_multiple_of(4) {
            std::fs::remove_dir_all(&at).unwrap();
        }
    }
    println!("found after kills: {seen:?}");
    assert!(
        seen.get("half-done").is_some_and(|times| *times > 0),
        "the kills came at no bad moment: {seen:?}"
    );
}

/// The root's own, whichever store it is in.
fn name(files: &std::path::Path) -> String {
    files.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}
