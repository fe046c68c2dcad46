//! What layers do to each other, held against a model of it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use stoker_image::{Image, Source};

use crate::kit::{Entry, Kind, Made, Place, directory, entry, file, inode, is_root, link, symlink, tree};

async fn prepare(place: &Place, name: &str, image: &Made) -> Image {
    let source = Source::Archive(place.write(name, &image.old_archive()));
    place.store.prepare(&source).await.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Without what the store makes for sandboxes.
fn plain(mut files: BTreeMap<String, String>) -> BTreeMap<String, String> {
    for made in ["dev", "proc", "sys", "tmp", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        files.remove(made);
    }
    if !files.keys().any(|path| path.starts_with("etc/")) {
        files.remove("etc");
    }
    files
}

#[tokio::test]
async fn upper_layers_hide_replace_and_add() {
    let lower = [
        directory("etc/"),
        file("etc/keep", "lower"),
        file("etc/gone", "lower"),
        directory("opaque/").mode(0o700),
        file("opaque/old", "lower"),
        directory("was-directory/"),
        file("was-directory/x", "lower"),
        file("was-file", "lower"),
        directory("closed/").mode(0o711),
        file("closed/x", "lower"),
        file("twice", "lower"),
        symlink("bin", "usr/bin"),
        directory("usr/bin"),
    ];
    let upper = [
        file("etc/.wh.gone", ""),
        file("etc/.wh.never-was", ""),
        file("nowhere/.wh.x", ""),
        file("opaque/new", "upper"),
        file("opaque/.wh..wh..opq", ""),
        file("was-directory", "upper"),
        file("was-file/x", "upper"),
        file("closed/y", "upper"),
        file(".wh.twice", ""),
        file("twice", "upper"),
        file(".wh..wh.plnk", "bookkeeping of aufs"),
        file("bin/tool", "upper"),
        file("first", "one"),
        file("first", "two"),
    ];
    let place = Place::new();
    let image = prepare(&place, "image", &Made::new(&[&lower, &upper])).await;
    let files = plain(tree(&image.root));
    let expected = [
        ("bin", "755 0:0 directory"),
        ("bin/tool", "644 0:0 \"upper\""),
        ("closed", "711 0:0 directory"),
        ("closed/x", "644 0:0 \"lower\""),
        ("closed/y", "644 0:0 \"upper\""),
        ("etc", "755 0:0 directory"),
        ("etc/keep", "644 0:0 \"lower\""),
        ("first", "644 0:0 \"two\""),
        ("opaque", "755 0:0 directory"),
        ("opaque/new", "644 0:0 \"upper\""),
        ("twice", "644 0:0 \"upper\""),
        ("usr", "755 0:0 directory"),
        ("usr/bin", "755 0:0 directory"),
        ("was-directory", "644 0:0 \"upper\""),
        ("was-file", "755 0:0 directory"),
        ("was-file/x", "644 0:0 \"upper\""),
    ];
    let mut expected: BTreeMap<_, _> = expected.map(|(path, line)| (path.to_owned(), line.to_owned())).into();
    // The layer does not name it, so it stays what it was.
    expected.insert("opaque".into(), "700 0:0 directory".into());
    assert_eq!(files, expected);
}

#[tokio::test]
async fn what_a_file_is_comes_along_but_what_gives_power() {
    let big = "x".repeat(300_000);
    let layer = [
        directory("sticky/").mode(0o1777),
        directory("shared/").mode(0o2775).owner(0, 44),
        file("app", "a").mode(0o750).owner(1000, 1001),
        file("setuid", "s").mode(0o6755),
        file("capable", "c").xattr("security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        file("labelled", "l")
            .xattr("user.note", b"a\0b")
            .xattr("trusted.overlay.opaque", b"y")
            .xattr("user.overlay.opaque", b"y"),
        directory("dir-labelled/").xattr("user.note", b"dir"),
        link("app-too", "/app"),
        symlink("absolute", "/etc/passwd").owner(1000, 1001),
        symlink("dangling", "../../../../nowhere"),
        entry("pipe", Kind::Fifo).mode(0o640),
        entry("dev/null", Kind::Device),
        file("big", &big),
        file(&format!("long/{}/{}", "d".repeat(200), "f".repeat(200)), "long"),
    ];
    let place = Place::new();
    let image = prepare(&place, "image", &Made::new(&[&layer, &[link("late", "app")]])).await;
    let at = |name: &str| image.root.join(name).symlink_metadata().unwrap();
    if is_root() {
        assert_eq!((at("app").uid(), at("app").gid()), (1000, 1001));
        assert_eq!((at("absolute").uid(), at("absolute").gid()), (1000, 1001));
        assert_eq!(at("shared").gid(), 44);
    } else {
        let noted = xattr(&image.root.join("app"), c"user.stoker.owner");
        assert!(noted.is_none_or(|noted| noted == b"1000:1001:750"));
    }
    assert_eq!(at("app").mode() & 0o7777, 0o750);
    assert_eq!(at("setuid").mode() & 0o7777, 0o755);
    assert_eq!(at("sticky").mode() & 0o7777, 0o1777);
    assert_eq!(at("shared").mode() & 0o7777, 0o2775);
    for name in ["app", "sticky", "absolute", "pipe", "dir-labelled"] {
        assert_eq!(at(name).mtime(), 1_600_000_000, "{name}");
    }
    assert_eq!(at("app").ino(), at("app-too").ino(), "hard links stay one file");
    assert_eq!(at("app").ino(), at("late").ino(), "over layers too");
    assert_eq!(std::fs::read_link(image.root.join("absolute")).unwrap().to_str(), Some("/etc/passwd"));
    assert!(image.root.join("dangling").symlink_metadata().is_ok());
    assert!(!image.root.join("dev/null").exists());
    assert_eq!(std::fs::read_to_string(image.root.join("big")).unwrap(), big);
    assert_eq!(xattr(&image.root.join("labelled"), c"user.note").unwrap(), b"a\0b");
    assert_eq!(xattr(&image.root.join("dir-labelled"), c"user.note").unwrap(), b"dir");
    for (name, xattr_name) in [
        ("capable", c"security.capability"),
        ("labelled", c"trusted.overlay.opaque"),
        ("labelled", c"user.overlay.opaque"),
    ] {
        assert_eq!(xattr(&image.root.join(name), xattr_name), None, "{name}");
    }
}

/// As other readers have it, and as some writers of archives count on.
#[tokio::test]
async fn numbers_that_are_left_empty_are_zero() {
    let mut layer = crate::kit::tar(&[file("empty", "x").owner(5, 6)]);
    let header: &mut [u8; 512] = (&mut layer[..512]).try_into().unwrap();
    header[108..116].fill(0);
    header[116..124].fill(b' ');
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let place = Place::new();
    let image = prepare(&place, "image", &Made::of(vec![layer])).await;
    assert_eq!(tree(&image.root)["empty"], "644 0:0 \"x\"");
}

fn xattr(path: &std::path::Path, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[tokio::test]
async fn images_on_one_base_share_its_files() {
    let base = [file("lib/big", &"b".repeat(1 << 20)), file("lib/small", "s")];
    let place = Place::new();
    let one = prepare(&place, "one", &Made::new(&[&base, &[file("app", "one")]])).await;
    let alone = place.store.usage();
    let two = prepare(&place, "two", &Made::new(&[&base, &[file("app", "two")]])).await;
    assert_ne!(one.root, two.root);
    assert_eq!(inode(one.root.join("lib/big")), inode(two.root.join("lib/big")));
    assert_ne!(inode(one.root.join("app")), inode(two.root.join("app")));
    let both = place.store.usage();
    assert!(both.bytes - alone.bytes < 100_000, "{alone:?} {both:?}");
    assert_eq!((both.roots, both.roots_in_use, both.layers), (2, 2, 3));
    // The same layers with other settings are the same root.
    let three =
        prepare(&place, "three", &Made::new(&[&base, &[file("app", "two")]]).set("User", "5".into())).await;
    assert_eq!(three.root, two.root);
    assert_eq!(two.config.user, None);
    assert_eq!(three.config.user.as_ref().map(|user| user.uid), Some(5));
    assert_eq!(place.store.usage().roots, 2);
}

#[tokio::test]
async fn names_within_a_layer_follow_its_links() {
    let layer = [
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("absolute", "/usr/lib"),
        symlink("up", "../../../usr/lib"),
        symlink("chain", "absolute"),
        file("lib/a", "a"),
        file("absolute/b", "b"),
        file("up/c", "c"),
        file("chain/new/d", "d"),
        link("hard", "chain/a"),
    ];
    let place = Place::new();
    let image = prepare(&place, "image", &Made::new(&[&layer])).await;
    for name in ["a", "b", "c", "new/d"] {
        assert_eq!(
            std::fs::read_to_string(image.root.join("usr/lib").join(name)).unwrap(),
            &name[name.len() - 1..]
        );
    }
    assert_eq!(inode(image.root.join("hard")), inode(image.root.join("usr/lib/a")));
}

/// What the rules say that layers come to: paths, and what is there.
#[derive(Default)]
struct Model(BTreeMap<String, Option<String>>);

impl Model {
    fn remove(&mut self, path: &str) {
        let within = format!("{path}/");
        self.0.retain(|other, _| other != path && !other.starts_with(&within));
    }

    fn parents(&mut self, path: &str) {
        let mut so_far = String::new();
        let parts: Vec<_> = path.split('/').collect();
        for part in &parts[..parts.len() - 1] {
            so_far = if so_far.is_empty() { (*part).to_owned() } else { format!("{so_far}/{part}") };
            if !matches!(self.0.get(&so_far), Some(None)) {
                self.remove(&so_far);
                self.0.insert(so_far.clone(), None);
            }
        }
    }

    fn put(&mut self, path: &str, what: Option<String>) {
        self.parents(path);
        if what.is_some() || matches!(self.0.get(path), Some(Some(_))) {
            self.remove(path);
        }
        self.0.insert(path.to_owned(), what);
    }

    fn stack(&mut self, layer: &[Change]) {
        for change in layer {
            match change {
                Change::Hide(path) => self.remove(path),
                Change::Empty(path) => {
                    let within = format!("{path}/");
                    self.0.retain(|other, _| !other.starts_with(&within));
                }
                _ => {}
            }
        }
        // A layer by itself first: its later entries win over its earlier ones, and then all of it over what is below.
        let mut own = Model::default();
        for change in layer {
            match change {
                Change::File(path, content) => own.put(path, Some(content.clone())),
                Change::Directory(path) => own.put(path, None),
                Change::Empty(path) => own.put(&format!("{path}/inside"), Some(String::new())),
                Change::Hide(_) => {}
            }
        }
        for (path, what) in &own.0 {
            self.put(path, what.clone());
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    File(String, String),
    Directory(String),
    Hide(String),
    /// An opaque directory, with a file in it.
    Empty(String),
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["a", "b", "c"], 1..4).prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (path(), "[a-z]{0,3}").prop_map(|(path, content)| Change::File(path, content)),
        3 => path().prop_map(Change::Directory),
        2 => path().prop_map(Change::Hide),
        1 => path().prop_map(Change::Empty),
    ]
}

/// A change as entries of an archive. `None` where the layer contradicts itself: a file that is to have files in it.
fn entries(layer: &[Change]) -> Option<Vec<Entry>> {
    let mut seen = Model::default();
    let mut out = Vec::new();
    for change in layer {
        let (path, what, made) = match change {
            Change::File(path, content) => (path.clone(), Some(content.clone()), vec![file(path, content)]),
            Change::Directory(path) => (path.clone(), None, vec![directory(path)]),
            Change::Hide(path) => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let hidden =
                    if parent.is_empty() { format!(".wh.{name}") } else { format!("{parent}/.wh.{name}") };
                out.push(file(&hidden, ""));
                continue;
            }
            Change::Empty(path) => {
                let inside = format!("{path}/inside");
                (
                    inside.clone(),
                    Some(String::new()),
                    vec![file(&format!("{path}/.wh..wh..opq"), ""), file(&inside, "")],
                )
            }
        };
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        if parents.into_iter().any(|parent| matches!(seen.0.get(parent), Some(Some(_)))) {
            return None;
        }
        seen.put(&path, what);
        out.extend(made);
    }
    Some(out)
}

#[test]
fn stacks_of_layers_are_what_the_rules_say() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = Place::new();
    let n = std::cell::Cell::new(0);
    let layers = proptest::collection::vec(proptest::collection::vec(change(), 0..8), 1..5);
    TestRunner::new(Runs { cases: 100, ..Runs::default() })
        .run(&layers, |layers| {
            let Some(archives) = layers.iter().map(|layer| entries(layer)).collect::<Option<Vec<_>>>() else {
                return Ok(());
            };
            let mut model = Model::default();
            layers.iter().for_each(|layer| model.stack(layer));
            n.set(n.get() + 1);
            let made = Made::new(&archives.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let image = runtime.block_on(prepare(&place, &format!("{}", n.get()), &made));
            let files: BTreeMap<String, Option<String>> = plain(tree(&image.root))
                .into_iter()
                .map(|(path, line)| {
                    let what = line.split_once('"').map(|(_, rest)| rest.trim_end_matches('"').to_owned());
                    (path, what)
                })
                .collect();
            prop_assert_eq!(files, model.0);
            Ok(())
        })
        .unwrap();
}
