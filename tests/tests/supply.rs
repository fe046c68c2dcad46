//! What comes from others: licences, sources, versions, and what must not be among it, as `deny.toml` says.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What cargo-deny says of these parts of a configuration. Advisories are not asked for: they take the network.
fn deny(configuration: &Path) -> Option<Output> {
    let program =
        std::env::var_os("STOKER_TEST_KITS").map(|kits| PathBuf::from(kits).join("deny/bin/cargo-deny"));
    let Some(program) = program.filter(|program| program.is_file()) else {
        println!("left out: STOKER_TEST_KITS has no cargo-deny");
        return None;
    };
    let output = Command::new(program)
        .args(["--locked", "--config"])
        .arg(configuration)
        .args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .output();
    Some(output.unwrap())
}

#[test]
fn dependencies_are_as_deny_toml_has_them() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deny.toml");
    let Some(output) = deny(&file) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    // It would notice.
    let text = std::fs::read_to_string(&file).unwrap();
    let strict = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(strict.path(), text.replace("deny = [", "deny = [{ crate = \"tokio\" },")).unwrap();
    let output = deny(strict.path()).unwrap();
    assert!(!output.status.success(), "tokio may be forbidden and is there: {output:?}");
}
