//! Revisions as a person moves calls between them, and functions that came as a zip by AWS's SDK.

use std::path::{Path, PathBuf};

use serde_json::Value;
use stoker_tests::within;

use crate::command::{Up, stoker};

/// One function, whose answer is the word.
fn says(directory: &Path, word: &str) -> String {
    let file = directory.join("says.yaml");
    let text =
        format!("app: demo\nfunctions:\n  - {{name: says, workdir: /, command: [\"printf\", \"{word}\"]}}\n");
    std::fs::write(&file, text).unwrap();
    file.to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_move_from_one_revision_to_the_next_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = says(directory.path(), "one");
    let up = Up::start_in(stoker(), directory, &["--no-try", "--functions", &file]).await;
    let calls = async |function: &str| up.good(&["call", function]).await;
    assert_eq!(calls("demo/says").await, "one");
    let held = up.run(&["apply", "-f", &says(up.directory(), "two"), "--hold"]).await;
    assert!(held.status.success(), "{held:?}");
    assert_eq!(String::from_utf8_lossy(&held.stdout), "demo/says updated\n");
    let note = String::from_utf8_lossy(&held.stderr).into_owned();
    assert!(note.contains("revision 2 now, and all calls go to revision 1"), "{note}");
    assert_eq!(calls("demo/says").await, "one");
    assert_eq!(calls("demo/says:2").await, "two");

    let said = up.good(&["rollout", "demo/says", "--to", "50%"]).await;
    assert_eq!(said, "demo/says: 50% of the calls go to revision 2, the others to revision 1\n");
    let seen: Value =
        serde_json::from_str(&up.good(&["revisions", "demo/says", "-o", "json"]).await).unwrap();
    assert_eq!(seen["traffic"], serde_json::json!({"main": 1, "other": {"revision": 2, "weight": 0.5}}));
    let shares: Vec<_> = seen["revisions"].as_array().unwrap().iter().map(|r| r["share"].clone()).collect();
    assert_eq!(shares, [5000, 5000]);
    let timing = up.run(&["call", "demo/says:1", "--show-timing"]).await;
    let timing = String::from_utf8_lossy(&timing.stderr).into_owned();
    let revision = timing.lines().find_map(|line| line.strip_prefix("revision")).map(str::trim);
    assert_eq!(revision, Some("1"), "{timing}");

    assert_eq!(up.good(&["rollback", "demo/says"]).await, "demo/says: all calls go to revision 1\n");
    assert_eq!(calls("demo/says").await, "one");
    up.good(&["rollout", "demo/says", "--promote"]).await;
    assert_eq!(calls("demo/says").await, "two");
    up.good(&["alias", "demo/says", "live", "--to", "1", "--description", "what is live"]).await;
    assert_eq!(calls("demo/says:live").await, "one");
    let table = up.good(&["revisions", "demo/says"]).await;
    assert!(table.contains("REVISION") && table.contains("live") && table.contains("100%"), "{table}");
    up.good(&["alias", "demo/says", "live", "--delete"]).await;
    for (wrong, status, text) in [
        (&["call", "demo/says:live"][..], 2, "no revision and no alias `live`"),
        (&["rollback", "demo/says", "--to", "9"], 2, "no revision 9"),
        (&["alias", "demo/says", "live", "--to", "9"], 2, "no revision 9"),
        (&["rollout", "demo/says", "--to", "20"], 2, "20%"),
        (&["revisions", "demo/none"], 2, "demo/none"),
    ] {
        let output = up.run(wrong).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{wrong:?}: {said}");
        assert!(said.contains(text), "{wrong:?}: {said}");
    }
    up.stop().await;
}

/// A directory of a kit that `scripts/test` installs, or `None` (said on STDOUT).
fn kit(name: &str) -> Option<PathBuf> {
    let all = std::env::var_os("STOKER_TEST_KITS").map(PathBuf::from);
    let all = all.unwrap_or_else(|| {
        stoker_tests::program("stoker").parent().unwrap().parent().unwrap().join("test-kits")
    });
    let directory = all.join(name);
    if directory.exists() {
        return Some(directory);
    }
    println!("left out: {} is not there: run scripts/test", directory.display());
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zip_runs_and_outlives_the_fleet_that_took_it() {
    let (Some(sdk), Some(client)) = (kit("aws/python"), kit("lambda-python")) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/zip.py");
    let run = async |up: &Up, phase: &str| {
        let mut command = tokio::process::Command::new(sdk.join("bin/python"));
        command.arg(&script).arg(&up.http).arg(&client).arg(phase);
        let output = within(phase, command.output()).await.unwrap();
        let (said, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.ends_with("done\n"), "{phase}: {said}\n{wrong}");
    };
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let up = Up::start_in(stoker(), directory, &["--no-try", "--state", &state]).await;
    run(&up, "create").await;
    let directory = up.stop().await;
    let up = Up::start_in(stoker(), directory, &["--no-try", "--state", &state]).await;
    run(&up, "again").await;
    up.stop().await;
}
