//! What comes from others: licences, sources, versions, what must not be among it, and what is known to be unsafe, as `deny.toml` says.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PARTS: [&str; 3] = ["bans", "licenses", "sources"];

fn kit(name: &str) -> Option<PathBuf> {
    let kits = std::env::var_os("STOKER_TEST_KITS")?;
    Some(Path::new(&kits).join(name)).filter(|path| path.exists())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The command that holds what is locked against these parts of a configuration.
fn deny(configuration: &Path, parts: &[&str]) -> Option<Command> {
    let Some(program) = kit("deny/bin/cargo-deny") else {
        println!("left out: STOKER_TEST_KITS has no cargo-deny");
        return None;
    };
    let mut command = Command::new(program);
    command.args(["--locked", "--config"]).arg(configuration).args(["check", "--hide-inclusion-graph"]);
    command.args(parts).current_dir(root());
    Some(command)
}

fn done(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The configuration with a database of advisories at this place.
fn with_database(place: &Path) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let here = format!("[advisories]\ndb-path = \"{}\"\n", place.display());
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text.replacen("[advisories]\n", &here, 1)).unwrap();
    file
}

#[test]
fn dependencies_are_as_deny_toml_has_them() {
    let file = root().join("deny.toml");
    let Some(mut command) = deny(&file, &PARTS) else { return };
    let output = done(&mut command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    // It would notice.
    let text = std::fs::read_to_string(&file).unwrap();
    let strict = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(strict.path(), text.replace("deny = [", "deny = [{ crate = \"tokio\" },")).unwrap();
    let output = done(&mut deny(strict.path(), &PARTS).unwrap());
    assert!(!output.status.success(), "tokio may be forbidden and is there: {output:?}");
}

/// RustSec's advisories, as `scripts/test` has fetched them where they can be reached.
#[test]
fn nothing_that_is_locked_is_known_to_be_unsafe() {
    let Some(database) = kit("advisories") else {
        println!(
            "left out: RustSec's advisories are not in STOKER_TEST_KITS: their database could not be reached"
        );
        return;
    };
    let file = with_database(&database);
    let Some(mut command) = deny(file.path(), &["--disable-fetch", "advisories"]) else { return };
    let output = done(&mut command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The same way, with a database of ours in the place of RustSec's: what it says of a version that is locked does not pass, and what it says of others does.
#[test]
fn an_advisory_about_a_locked_version_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (theirs, ours) = (directory.path().join("theirs"), directory.path().join("ours"));
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(&theirs)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(arguments);
        let output = done(&mut command);
        assert!(output.status.success(), "{command:?}: {output:?}");
    };
    std::fs::create_dir_all(theirs.join("crates/tokio")).unwrap();
    git(&["init", "--quiet", "--initial-branch=main"]);
    let home = directory.path().join("gitconfig");
    let instead = format!(
        "[url \"file://{}\"]\n\tinsteadOf = https://github.com/RustSec/advisory-db\n",
        theirs.display()
    );
    std::fs::write(&home, instead).unwrap();
    let file = with_database(&ours);
    for (patched, passes) in [(">= 999.0.0", false), (">= 1.0.0", true)] {
        let advisory = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2026-9001\"\npackage = \"tokio\"\ndate = \"2026-11-01\"\n\n[versions]\npatched = [\"{patched}\"]\n```\n\n\
             # It is only said to have a hole\n\nFor a test.\n"
        );
        std::fs::write(theirs.join("crates/tokio/RUSTSEC-2026-9001.md"), advisory).unwrap();
        git(&["add", "--all"]);
        git(&["commit", "--quiet", "--message=an advisory"]);
        let Some(mut command) = deny(file.path(), &["advisories"]) else { return };
        let output = done(command.env("GIT_CONFIG_GLOBAL", &home));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), passes, "{patched}: {said}");
        assert_eq!(said.contains("RUSTSEC-2026-9001"), !passes, "{patched}: {said}");
    }
}
