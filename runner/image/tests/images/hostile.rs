//! What must not work: archives made to write elsewhere, to fill the disk, the memory or the time.

use std::path::Path;

use serde_json::json;
use stoker_image::{Fault, Limits, Source};

use crate::kit::{Entry, Kind, Made, Place, directory, entry, file, link, symlink, tar, tree};

/// Everything beside the store that an escape would change.
fn outside(place: &Place) -> Vec<(String, String)> {
    let seen = tree(place.directory.path());
    seen.into_iter().filter(|(path, _)| path.starts_with("outside")).collect()
}

fn guarded() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("outside")).unwrap();
    std::fs::write(place.path("outside/file"), "untouched").unwrap();
    place
}

async fn refused(place: &Place, image: &Made, says: &str) {
    let source = Source::Archive(place.write("hostile.tar", &image.old_archive()));
    let error = place.store.prepare(&source).await.err().unwrap_or_else(|| panic!("{says}: it was taken"));
    assert_eq!(error.fault, Fault::Image, "{says}: {error}");
    assert!(error.message.contains(says), "{says}: {error}");
    for part in ["tmp", "layers", "roots"] {
        assert_eq!(place.names(part), [""; 0], "{says}: {part}");
    }
    assert_eq!(place.store.usage().bytes, 0, "{says}");
}

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    let place = guarded();
    let before = outside(&place);
    let out = "../".repeat(12) + "outside/file";
    let cases: Vec<(Vec<Entry>, &str)> = vec![
        (vec![file("../x", "evil")], "leads out"),
        (vec![file("a/../../x", "evil")], "leads out"),
        (vec![file(&out, "evil")], "leads out"),
        (vec![directory("..")], "leads out"),
        (vec![link("x", "../../../etc/passwd")], "leads out"),
        (vec![entry("a/..", Kind::Symlink(b"x".to_vec()))], "leads out"),
        (vec![file(".wh...", "")], "removes nothing"),
        (vec![file("a/.wh.", "")], "removes nothing"),
        (vec![file("a", "file"), file("a/b", "in a file")], "not a directory"),
        (vec![entry("", Kind::File(b"x".to_vec()))], "root of an image"),
        (vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")], "circle"),
        (vec![directory("d"), link("x", "d")], "hard link to a directory"),
        (vec![file(&"x".repeat(256), "")], "255 bytes"),
        (vec![file(&"d/".repeat(129), "")], "128 parts"),
        (vec![entry("x", Kind::Symlink(vec![b'x'; 5000]))], "too far"),
    ];
    for (entries, says) in &cases {
        refused(&place, &Made::new(&[entries]), says).await;
    }
    // Only all layers together show this one.
    let source =
        Source::Archive(place.write("link.tar", &Made::new(&[&[link("x", "nowhere")]]).old_archive()));
    let error = place.store.prepare(&source).await.err().unwrap();
    assert!(error.fault == Fault::Image && error.message.contains("no layer has"), "{error}");
    assert_eq!((place.names("tmp"), place.names("roots")), (vec![], vec![]));
    assert_eq!(outside(&place), before);
}

#[tokio::test]
async fn names_that_seem_to_lead_out_stay_inside() {
    let place = guarded();
    let before = outside(&place);
    let target = place.path("outside");
    let target = target.to_str().unwrap();
    let layer = [
        file("/absolute", "inside"),
        file("//etc//./twice", "inside"),
        symlink("escape", target),
        symlink("up", &("../".repeat(20) + target)),
        file("escape/file", "inside"),
        file("up/second", "inside"),
        symlink("replaced", &format!("{target}/file")),
        file("replaced", "inside"),
        link("hard", &format!("{target}/file")),
    ];
    let whiteouts = [symlink("trap", target), file("trap/.wh.second", ""), file("escape/.wh.third", "")];
    let source = Source::Archive(place.write("a.tar", &Made::new(&[&layer, &whiteouts]).old_archive()));
    let image = place.store.prepare(&source).await.unwrap();
    assert_eq!(outside(&place), before);
    let inside = image.root.join(target.trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(inside.join("file")).unwrap(), "inside");
    assert!(!inside.join("second").exists(), "hidden by the next layer, there and nowhere else");
    assert_eq!(std::fs::read_to_string(image.root.join("absolute")).unwrap(), "inside");
    assert_eq!(std::fs::read_to_string(image.root.join("replaced")).unwrap(), "inside");
    assert_eq!(std::fs::read_to_string(image.root.join("hard")).unwrap(), "inside");
}

#[tokio::test]
async fn work_directories_and_users_are_looked_for_inside() {
    let place = guarded();
    let before = outside(&place);
    let target = place.path("outside");
    let layer = [
        symlink("work", target.to_str().unwrap()),
        symlink("etc", "/"),
        symlink("passwd", "/proc/self/environ"),
    ];
    let image = Made::new(&[&layer]).set("WorkingDir", json!("/srv/made")).set("User", json!("root"));
    let source = Source::Archive(place.write("a.tar", &image.old_archive()));
    let error = place.store.prepare(&source).await.err().unwrap();
    assert_eq!(error.fault, Fault::Image, "{error}");
    assert_eq!(outside(&place), before);
    let up = Made::new(&[&layer]).set("WorkingDir", json!("../../x"));
    let source = Source::Archive(place.write("b.tar", &up.old_archive()));
    assert!(place.store.prepare(&source).await.err().unwrap().message.contains("`..`"));
}

#[tokio::test]
async fn bombs_are_refused() {
    let limits = Limits { bytes: 100 << 20, entries: 1000 };
    let place = Place::with(|config| config.limits = limits);
    let many: Vec<_> = (0..1001).map(|n| directory(&format!("d{n}"))).collect();
    refused(&place, &Made::new(&[&many]), "more than 1000 files").await;
    let implied: Vec<_> = (0..600).map(|n| file(&format!("d{n}/x"), "")).collect();
    refused(&place, &Made::new(&[&implied]), "more than 1000 files").await;
    // Files of two layers, each of which is fine.
    let half: Vec<_> = (0..600).map(|n| file(&format!("f{n}"), "")).collect();
    let other: Vec<_> = (0..600).map(|n| file(&format!("g{n}"), "")).collect();
    let source = Source::Archive(place.write("two.tar", &Made::new(&[&half, &other]).old_archive()));
    let error = place.store.prepare(&source).await.err().unwrap();
    assert!(error.fault == Fault::Image && error.message.contains("more than 1000 files"), "{error}");

    let small = Place::with(|config| config.limits.bytes = 1 << 20);
    refused(&small, &Made::new(&[&[file("big", &"x".repeat((1 << 20) + 1))]]), "1048576 bytes").await;
    let layers = vec![tar(&[file("x", "")]); 300];
    refused(&small, &Made::of(layers), "300 layers").await;
}

/// A name of 3 MiB, which a reader would keep in memory: it might as well be one of 3 GiB.
#[tokio::test]
async fn long_names_are_not_believed() {
    let place = Place::new();
    let mut layer = Vec::new();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_path("././@LongLink").unwrap();
    header.set_size(3 << 20);
    header.set_cksum();
    layer.extend_from_slice(header.as_bytes());
    layer.resize(512 + (3 << 20), b'a');
    layer.extend_from_slice(&tar(&[file("x", "")]));
    refused(&place, &Made::of(vec![layer.clone()]), "1 MiB").await;
    // The same by the other kind of header.
    let mut pax = Vec::new();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_cksum();
    pax.extend_from_slice(header.as_bytes());
    pax.extend_from_slice(&layer[512..]);
    refused(&place, &Made::of(vec![pax]), "1 MiB").await;
    // And in the archive that an image is in.
    let error = place.store.prepare(&Source::Archive(place.write("outer.tar", &layer))).await.err().unwrap();
    assert!(error.fault == Fault::Image && error.message.contains("1 MiB"), "{error}");
}

#[tokio::test]
async fn depth_cannot_be_had_by_links() {
    // Each link leads deeper, and the next begins there: without a limit on where names really are, no tree would be too deep to make,
    // and none like that could be removed.
    let deep = "d/".repeat(120);
    let mut layer = vec![directory(&deep)];
    let mut at = deep.clone();
    for n in 0..20 {
        layer.push(symlink(&format!("l{n}"), &format!("/{at}")));
        at = format!("l{n}/{}", "e/".repeat(100));
        layer.push(directory(&at));
    }
    refused(&Place::new(), &Made::new(&[&layer]), "deeper").await;
}

#[tokio::test]
async fn content_that_is_not_what_was_promised_is_refused() {
    let place = Place::new();
    let image = Made::new(&[&[file("x", "good")]]);
    let mut other = image.clone();
    other.layers[0] = tar(&[file("x", "evil")]);
    refused(&place, &other, "content is sha256:").await;
    let mut cut = image.clone();
    cut.layers[0].truncate(600);
    refused(&place, &cut, "").await;
    let mut long = image.clone();
    long.layers[0].extend_from_slice(b"more");
    refused(&place, &long, "content is sha256:").await;
    let mut configuration = image;
    configuration.config["rootfs"]["diff_ids"] = json!([]);
    refused(&place, &configuration, "0 layers").await;
}

/// Archives that are noise, or good ones with noise in them: nothing is written beside the store, nothing is left in it, nothing panics.
#[test]
fn damaged_archives_leave_nothing() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = guarded();
    let before = outside(&place);
    let good = tar(&[
        directory("a/"),
        file("a/b", "content").xattr("user.x", b"y"),
        symlink("l", "a"),
        file("l/c", "through"),
        link("h", "a/b"),
        file("a/.wh.x", ""),
        file(&"n".repeat(150), "long"),
    ]);
    let damage = proptest::collection::vec((0..good.len(), any::<u8>()), 1..6);
    let noise = proptest::collection::vec(any::<u8>(), 0..2000);
    let layer = prop_oneof![
        8 => damage.prop_map(move |damage| {
            let mut layer = good.clone();
            damage.into_iter().for_each(|(at, byte)| layer[at] = byte);
            // Headers of which the sum is wrong go no further than that.
            for header in layer.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                let sum: u32 = header[..148].iter().chain(&header[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
                header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            layer
        }),
        1 => noise,
    ];
    let n = std::cell::Cell::new(0);
    TestRunner::new(Config { cases: 400, ..Config::default() })
        .run(&layer, |layer| {
            n.set(n.get() + 1);
            let source =
                Source::Archive(place.write(&format!("n{}", n.get()), &Made::of(vec![layer]).old_archive()));
            let result = runtime.block_on(place.store.prepare(&source));
            if let Err(error) = &result {
                prop_assert_eq!(error.fault, Fault::Image, "{}", error);
            }
            drop(result);
            prop_assert_eq!(place.names("tmp"), [""; 0]);
            std::fs::remove_file(place.path(&format!("n{}", n.get())))?;
            Ok(())
        })
        .unwrap();
    assert_eq!(outside(&place), before);
    assert!(!Path::new("/x").exists());
}
