//! The Debian package: built from the programs that are here, installed, upgraded, removed and purged by dpkg in a root of its own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use stoker_tests::{deploy, program};

use crate::{checked, is_content};

/// A root directory with dpkg's database in it.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["info", "updates", "triggers", "parts"] {
            std::fs::create_dir_all(root.path().join("var/lib/dpkg").join(directory)).unwrap();
        }
        for file in ["status", "available"] {
            std::fs::write(root.path().join("var/lib/dpkg").join(file), "").unwrap();
        }
        Self(root)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// What dpkg says to that. The scripts of the package run outside of this root, which has no shell, and are told where it is.
    fn dpkg(&self, words: &[&str]) -> Output {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", self.0.path().display()));
        command.args(["--force-script-chrootless", "--force-depends", "--force-confold", "--log=/dev/null"]);
        command.args(words).env("DEBIAN_FRONTEND", "noninteractive").output().unwrap()
    }

    fn done(&self, words: &[&str]) -> String {
        let output = self.dpkg(words);
        is_content(&output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All files, but those of dpkg itself.
    fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![self.0.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path == self.path("var/lib/dpkg") {
                    continue;
                } else if path.is_dir() {
                    directories.push(path);
                } else {
                    found.push(path.strip_prefix(self.0.path()).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

/// Small programs: a package of what tests are built with would have half a gigabyte. The command is asked for what it says of itself.
fn programs(directory: &Path) {
    let command = program("stoker");
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", command.display());
    std::fs::write(directory.join("stoker"), script).unwrap();
    std::fs::set_permissions(directory.join("stoker"), std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["stoker-lb", "stoker-runner"] {
        std::fs::copy(program("stoker-test-function"), directory.join(name)).unwrap();
    }
}

#[test]
fn a_package_is_installed_upgraded_removed_and_purged() {
    if !rustix::process::geteuid().is_root() {
        println!("left out: only root can install packages");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    programs(directory.path());
    let build = |version: &[&str]| {
        let mut command = Command::new(deploy::path("debian/build.sh"));
        command.arg(directory.path()).arg(directory.path()).args(version);
        // Nobody sends this one anywhere.
        checked(command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").env("SOURCE_DATE_EPOCH", "1700000000"))
    };
    if checked(Command::new("dpkg-deb").arg("--version")).is_none() {
        return;
    }
    let path = |output: Output| {
        is_content(&output);
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    };
    let first = path(build(&[]).unwrap());
    let content = std::fs::read(&first).unwrap();
    assert_eq!(path(build(&[]).unwrap()), first);
    assert!(content == std::fs::read(&first).unwrap(), "the same programs give the same package");
    let version = env!("CARGO_PKG_VERSION");
    assert!(first.contains(&format!("stoker_{version}_")), "{first}");
    let next = path(build(&["99.0"]).unwrap());

    let root = Root::new();
    root.done(&["--install", &first]);
    let installed = root.files();
    for file in [
        "usr/bin/stoker",
        "usr/bin/stoker-lb",
        "usr/bin/stoker-runner",
        "lib/systemd/system/stoker-lb.service",
        "lib/systemd/system/stoker-runner.service",
        "etc/stoker/lb.yaml",
        "etc/stoker/runner.yaml",
        "usr/share/bash-completion/completions/stoker",
        "usr/share/doc/stoker/copyright",
        "usr/share/doc/stoker/README.md",
        "usr/share/doc/stoker/docs/access.md",
    ] {
        assert!(installed.iter().any(|path| path == file), "{file}: {installed:#?}");
    }
    let unit = std::fs::read_to_string(root.path("lib/systemd/system/stoker-lb.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/bin/stoker-lb --config /etc/stoker/lb.yaml"), "{unit}");
    assert!(!unit.contains("/usr/local"), "{unit}");
    // The command works where it is.
    let said = Command::new(root.path("usr/bin/stoker")).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains(version), "{said:?}");

    // What somebody has written stays over an upgrade, and so does what they have put beside it.
    std::fs::write(root.path("etc/stoker/lb.yaml"), "etcd: [\"https://mine:2379\"]\n").unwrap();
    std::fs::write(root.path("etc/stoker/access.yaml"), "tokens: []\n").unwrap();
    std::fs::create_dir_all(root.path("var/lib/stoker/images")).unwrap();
    root.done(&["--install", &next]);
    assert!(root.done(&["--status", "stoker"]).contains("Version: 99.0"));
    let kept = std::fs::read_to_string(root.path("etc/stoker/lb.yaml")).unwrap();
    assert_eq!(kept, "etcd: [\"https://mine:2379\"]\n");
    // And back.
    root.done(&["--install", &first]);
    assert!(root.done(&["--status", "stoker"]).contains(&format!("Version: {version}")));
    assert_eq!(std::fs::read_to_string(root.path("etc/stoker/lb.yaml")).unwrap(), kept);

    root.done(&["--remove", "stoker"]);
    assert_eq!(root.files(), ["etc/stoker/access.yaml", "etc/stoker/lb.yaml", "etc/stoker/runner.yaml"]);
    assert!(root.path("var/lib/stoker").is_dir(), "only a purge takes what a runner keeps");
    let said = root.done(&["--purge", "stoker"]);
    assert!(said.contains("left in /etc/stoker") && said.contains("access.yaml"), "{said}");
    assert_eq!(root.files(), ["etc/stoker/access.yaml"], "nobody's but its owner's");
    assert!(!root.path("var/lib/stoker").exists() && !root.path("usr/bin").exists());
}
