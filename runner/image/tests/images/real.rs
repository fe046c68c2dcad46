//! Whole systems: a Debian made by debootstrap, and Python and Node on it, pushed to a registry, pulled, and run.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stoker_image::Config;

use crate::kit::{Made, Place, is_root, zstd};
use crate::registry::{Registry, pull};

const MIRROR: &str = "http://deb.debian.org/debian";

fn run(what: &mut Command) -> Vec<u8> {
    let ran = what.stderr(Stdio::piped()).output().unwrap_or_else(|error| panic!("{what:?}: {error}"));
    assert!(ran.status.success(), "{what:?}: {}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

/// Two layers: the system, and what Python and Node add to it. Kept in a directory, where one is named, as making them takes minutes.
fn debian(directory: &Path) -> [Vec<u8>; 2] {
    let layers = [directory.join("base.tar"), directory.join("languages.tar")];
    if !layers[1].exists() {
        let root = directory.join("root");
        run(Command::new("debootstrap").args(["--variant=minbase", "bookworm"]).arg(&root).arg(MIRROR));
        let pack = |to: &Path, list: Option<&Path>| {
            let mut tar = Command::new("tar");
            tar.args(["--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--directory"])
                .arg(&root);
            match list {
                None => tar.args(["--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*", "."]),
                Some(list) => tar.args(["--no-recursion", "--null", "--files-from"]).arg(list),
            };
            run(tar.stdout(Stdio::piped()).arg("--file").arg(to));
        };
        let stamp = directory.join("stamp");
        File::create(&stamp).unwrap();
        pack(&layers[0], None);
        let install = "apt-get install -yq --no-install-recommends python3-minimal nodejs && apt-get clean";
        run(Command::new("chroot")
            .arg(&root)
            .args(["sh", "-c", install])
            .env("DEBIAN_FRONTEND", "noninteractive"));
        let newer = format!(
            "find . -path ./proc -prune -o -path ./sys -prune -o -path ./dev -prune -o -cnewer {} -print0 >{}",
            stamp.display(),
            directory.join("list").display()
        );
        run(Command::new("sh").args(["-c", &newer]).current_dir(&root));
        pack(&directory.join("part.tar"), Some(&directory.join("list")));
        std::fs::rename(directory.join("part.tar"), &layers[1]).unwrap();
    }
    layers.map(|path| std::fs::read(path).unwrap())
}

/// What is different, both ways.
fn differences(is: &Path, should: &Path) -> Vec<String> {
    let (is, should) = (listing(is), listing(should));
    let missing = should.difference(&is).map(|line| format!("missing: {line}"));
    // That is for sandboxes to mount over.
    let more = is.difference(&should).filter(|line| !line.ends_with(" etc/hosts -> "));
    missing.chain(more.map(|line| format!("too much: {line}"))).collect()
}

/// A line for each file: kind, mode, owner, links, size, time, path, target. Without what a store makes, and what it leaves out.
fn listing(root: &Path) -> BTreeSet<String> {
    let format = "%y %m %U:%G %n %s %T@ %P -> %l\\n";
    let found = run(Command::new("find").arg(root).args([
        "-mindepth",
        "1",
        "-path",
        "*/dev/*",
        "-prune",
        "-o",
        "-printf",
        format,
    ]));
    String::from_utf8_lossy(&found)
        .lines()
        .map(|line| {
            let mut parts: Vec<_> = line.splitn(7, ' ').map(str::to_owned).collect();
            // Files of a root have one link more for each root and layer; directories are as large as their history.
            parts[3].clear();
            if parts[0] == "d" {
                // Where a layer does not name it, tar gives it the time of the extraction.
                parts[4].clear();
                parts[5].clear();
            } else if parts[0] == "f" {
                let mode = u32::from_str_radix(&parts[1], 8).unwrap() & 0o1777;
                parts[1] = format!("{mode:o}");
            }
            // Whole seconds.
            let seconds = parts[5].split('.').next().unwrap_or_default().to_owned();
            parts[5] = seconds;
            parts.join(" ")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes and a network: makes a Debian with debootstrap"]
async fn python_and_node_on_debian() {
    let Some(registry) = Registry::start() else { return };
    if !is_root() || Command::new("debootstrap").arg("--version").output().is_err() {
        println!("left out: debootstrap is missing, or this is not root");
        return;
    }
    let kept = std::env::var_os("STOKER_TEST_DEBIAN").map(PathBuf::from);
    let fresh = tempfile::tempdir().unwrap();
    let directory = kept.unwrap_or_else(|| fresh.path().to_owned());
    std::fs::create_dir_all(&directory).unwrap();
    let [base, languages] = debian(&directory);

    // What tar itself makes of the two.
    let right = fresh.path().join("right");
    std::fs::create_dir(&right).unwrap();
    for layer in ["base.tar", "languages.tar"] {
        let layer = directory.join(layer);
        run(Command::new("tar")
            .args(["--extract", "--numeric-owner", "--directory"])
            .arg(&right)
            .arg("--file")
            .arg(layer));
    }

    registry.push("debian", "base", &Made::of(vec![base.clone()]));
    registry.push("debian", "gzip", &Made::of(vec![base.clone(), languages.clone()]));
    registry.push_as("debian", "zstd", &Made::of(vec![base, languages]), &zstd);
    let place = Place::new();
    for tag in ["base", "gzip"] {
        let image = pull(&place.store, &registry.image(&format!("debian:{tag}")), None).await.unwrap();
        println!("{tag}: {:?}", image.phases);
    }
    let image = pull(&place.store, &registry.image("debian:gzip"), None).await.unwrap();
    assert_eq!(place.store.usage().layers, 2, "the base is there once");
    assert_eq!(differences(&image.root, &right), [""; 0]);
    for (program, arguments) in [
        ("/usr/bin/python3", ["-Bc", "import os, sys; print([1, 2], sys.version_info[0])"]),
        ("/usr/bin/node", ["-e", "console.log(JSON.stringify([1, 2]), 3)"]),
    ] {
        let said = run(Command::new("chroot").arg(&image.root).arg(program).args(arguments));
        assert_eq!(String::from_utf8_lossy(&said).replace(' ', ""), "[1,2]3\n", "{program}");
    }

    let other = Place::with(|config| *config = Config { layers: 1, ..config.clone() });
    let image = pull(&other.store, &registry.image("debian:zstd"), None).await.unwrap();
    println!("zstd: {:?}", image.phases);
    assert_eq!(differences(&image.root, &right), [""; 0]);
}
