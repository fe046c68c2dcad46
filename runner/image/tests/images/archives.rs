//! The forms in which an image lies in files.

use serde_json::json;
use stoker_image::{Fault, Source};

use crate::kit::{Made, Place, archive, directory, file, gzip, tree, write_all, zstd};

fn image() -> Made {
    let base = [directory("etc/"), file("etc/motd", "below"), file("etc/old", "old")];
    let upper = [file("etc/.wh.old", ""), file("app/run", "#!/bin/sh\n").mode(0o755)];
    Made::new(&[&base, &upper, &base, &upper])
        .set("Env", json!(["A=b=c", "PATH=/bin"]))
        .set("Entrypoint", json!(["/app/run"]))
        .set("Cmd", json!(["x", "y"]))
        .set("WorkingDir", json!("/app/data"))
        .set("User", json!("7:8"))
        .set("StopSignal", json!("SIGINT"))
}

#[tokio::test]
async fn every_form_of_an_image_is_the_same_image() {
    let image = image();
    let plain = |layer: &[u8]| layer.to_vec();
    let mut roots = Vec::new();
    let forms = [
        ("old docker save", image.old_archive()),
        ("old docker save, gzip", gzip(&image.old_archive())),
        ("new docker save", image.new_archive()),
        ("OCI archive", archive(&image.files(&plain))),
        ("OCI archive of gzip layers", archive(&image.files(&gzip))),
        ("OCI archive of zstd layers, zstd", zstd(&archive(&image.files(&zstd)))),
    ];
    for (form, bytes) in forms {
        // Each in a store of its own, so that each is unpacked.
        let place = Place::new();
        let source = Source::Archive(place.write("image.tar", &bytes));
        let prepared = place.store.prepare(&source).await.unwrap_or_else(|error| panic!("{form}: {error}"));
        roots.push((form, tree(&prepared.root), prepared.config, prepared.root));
        assert_eq!(place.names("tmp"), [""; 0], "{form}");
    }
    let place = Place::new();
    write_all(&place.path("layout"), &image.files(&gzip));
    let source = Source::OciLayout(place.path("layout"));
    let prepared = place.store.prepare(&source).await.unwrap();
    roots.push(("OCI layout", tree(&prepared.root), prepared.config.clone(), prepared.root.clone()));

    let (_, first, config, _) = &roots[0];
    for (form, files, other, root) in &roots {
        assert_eq!(files, first, "{form}");
        assert_eq!(other, config, "{form}");
        assert_eq!(root.file_name(), roots[0].3.file_name());
    }
    assert_eq!(first["etc/motd"], "644 0:0 \"below\"");
    assert!(!first.contains_key("etc/old"));
    assert_eq!(config.command(), ["/app/run", "x", "y"]);
    assert_eq!(config.env, [("A".into(), "b=c".into()), ("PATH".into(), "/bin".into())]);
    assert_eq!(config.user.as_ref().map(|user| (user.uid, user.gid)), Some((7, 8)));
    assert_eq!(config.workdir.to_str(), Some("/app/data"));
    assert_eq!(first["app/data"], "755 0:0 directory", "the work directory is made");
    assert_eq!(config.stop_signal, Some(2));
    assert_eq!(first["proc"], "755 0:0 directory", "what sandboxes mount over is there");
}

#[tokio::test]
async fn an_image_that_is_there_is_not_read_again_until_it_changes() {
    let place = Place::new();
    let path = place.write("image.tar", &image().old_archive());
    let source = Source::Archive(path.clone());
    let first = place.store.prepare(&source).await.unwrap();
    assert!(first.phases.bytes > 0 && !first.phases.fetch.is_zero());
    let again = place.store.prepare(&source).await.unwrap();
    assert_eq!((again.root, again.phases), (first.root.clone(), Default::default()));

    std::fs::rename(place.write("next.tar", &Made::new(&[&[file("new", "")]]).old_archive()), &path).unwrap();
    let changed = place.store.prepare(&source).await.unwrap();
    assert_ne!(changed.root, first.root);
    assert!(changed.root.join("new").exists());
}

#[tokio::test]
async fn what_is_no_image_is_the_authors_fault() {
    let place = Place::new();
    let image = image();
    let two = json!([
        {"Config": "a", "Layers": [], "RepoTags": ["team/a:1", "team/a:2"]},
        {"Config": "b", "Layers": [], "RepoTags": null},
    ]);
    let two = two.to_string();
    let mut lost = image.files(&gzip);
    let blob = lost.keys().find(|path| path.starts_with("blobs/")).unwrap().clone();
    lost.remove(&blob);
    let mut damaged = image.files(&gzip);
    for (path, bytes) in &mut damaged {
        if path.starts_with("blobs/") {
            *bytes.last_mut().unwrap() ^= 1;
        }
    }
    let cut = image.old_archive();
    let cut = &cut[..cut.len() / 2];
    let cases = [
        ("empty", vec![], "index.json"),
        ("text", b"#!/bin/sh\necho this is not an image\n".to_vec(), "archive"),
        ("gzip of nothing", gzip(b""), "index.json"),
        (
            "two",
            crate::kit::tar(&[file("manifest.json", &two)]),
            "holds 2 images (team/a:1), and a function has one",
        ),
        ("lost", archive(&lost), "missing"),
        ("damaged", archive(&damaged), "not sha256:"),
        ("cut", cut.to_vec(), ""),
    ];
    for (name, bytes, says) in cases {
        let path = place.write(name, &bytes);
        let error =
            place.store.prepare(&Source::Archive(path)).await.err().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(error.fault, Fault::Image, "{name}: {error}");
        assert!(error.message.contains(says), "{name}: {error}");
        assert!(error.message.contains(&format!("/{name}")), "{name}: it says which file: {error}");
    }
    let sources = [
        Source::Archive("/nowhere".into()),
        Source::OciLayout("/nowhere".into()),
        Source::Archive("/dev/null".into()),
    ];
    for source in sources {
        assert_eq!(place.store.prepare(&source).await.err().unwrap().fault, Fault::Image, "{source}");
    }
    assert_eq!(place.names("tmp"), [""; 0]);
    assert_eq!(place.names("roots"), [""; 0]);
}

#[tokio::test]
async fn one_store_has_one_process() {
    let place = Place::new();
    let config = stoker_image::Config::new(place.path("store"));
    let error = stoker_image::Store::open(config.clone()).err().unwrap();
    assert_eq!(error.fault, Fault::Store);
    assert!(error.message.contains("another process"), "{error}");
    let image =
        place.store.prepare(&Source::Archive(place.write("i", &image().old_archive()))).await.unwrap();
    let Place { store, directory } = place;
    drop(store);
    assert!(stoker_image::Store::open(config.clone()).is_err(), "an image of it is still in use");
    drop(image);
    stoker_image::Store::open(config).unwrap();
    drop(directory);
}

/// Named by mistake, a file or directory is told for what it is not, and nothing of it is repeated.
#[tokio::test]
async fn what_is_no_image_is_told_so() {
    let place = Place::new();
    let told = async |source: Source| {
        let error = place.store.prepare(&source).await.err().unwrap();
        assert_eq!(error.fault, Fault::Image, "{error}");
        error.message
    };
    let text = "app: demo\nfunctions:\n  - name: a-name-that-is-nobodys-business\n".repeat(40);
    let message = told(Source::Archive(place.write("functions.yaml", text.as_bytes()))).await;
    assert!(message.contains("it is no archive of an image") && !message.contains("business"), "{message}");
    std::fs::create_dir(place.path("root")).unwrap();
    let message = told(Source::OciLayout(place.path("root"))).await;
    assert!(message.contains("no index.json in it") && message.contains("`rootfs`"), "{message}");
}

/// What lies in a layout beside its image (signatures, statements) does not make it two.
#[tokio::test]
async fn a_layout_has_what_is_named_in_it() {
    let place = Place::new();
    let mut files = image().files(&gzip);
    let read = |files: &std::collections::BTreeMap<String, Vec<u8>>| {
        serde_json::from_slice::<serde_json::Value>(&files["index.json"]).unwrap()
    };
    let mut index = read(&files);
    let name = "org.opencontainers.image.ref.name";
    index["manifests"][0]["annotations"] = json!({name: "1.0"});
    let beside = Made::new(&[&[file("signature", "x")]]).manifest(&gzip).to_string().into_bytes();
    let beside = json!({"digest": crate::kit::digest(&beside), "size": beside.len(), "annotations": null});
    index["manifests"].as_array_mut().unwrap().push(beside);
    files.insert("index.json".into(), index.to_string().into_bytes());
    let there = place.store.prepare(&Source::Archive(place.write("named", &archive(&files)))).await.unwrap();
    assert!(!there.root.join("signature").exists());
    index["manifests"][1]["annotations"] = json!({name: "1.0.sig"});
    files.insert("index.json".into(), index.to_string().into_bytes());
    let error =
        place.store.prepare(&Source::Archive(place.write("both", &archive(&files)))).await.err().unwrap();
    assert!(error.message.contains("holds 2 images (1.0") && error.fault == Fault::Image, "{error}");
}
