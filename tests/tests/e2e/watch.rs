//! `stoker up --watch`: what an author writes is what calls find, and nothing else is disturbed.

use std::time::Instant;

use stoker_tests::LIMIT;

use crate::command::{Up, stoker};

const FILE: &str = r#"
app: mine
functions:
  - name: word
    workdir: f
    command: ["python3", "func.py"]
    format: json
    env: {MARK: "!"}
  - name: other
    workdir: g
    command: ["sh", "-c", "while read line; do n=$((n + 1)); echo \"{\\\"body\\\": \\\"$n\\\"}\"; done"]
    format: json
"#;

const FUNCTION: &str = r#"
import json, os, sys
sys.path.insert(0, "lib")
import word
for line in sys.stdin:
    print(json.dumps({"body": word.WORD + os.environ["MARK"]}), flush=True)
"#;

/// Calls until the answer is this, and was nothing but the former one before.
async fn until_it_says(up: &Up, former: &str, now: &str) {
    let begun = Instant::now();
    loop {
        match up.good(&["call", "mine/word"]).await {
            said if said == now => return,
            said => assert_eq!(said, former),
        }
        assert!(begun.elapsed() < LIMIT, "calls never say {now}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_what_the_next_calls_find() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    std::fs::create_dir_all(at("f/lib")).unwrap();
    std::fs::create_dir_all(at("g")).unwrap();
    std::fs::write(at("functions.yaml"), FILE).unwrap();
    std::fs::write(at("f/func.py"), FUNCTION).unwrap();
    std::fs::write(at("f/lib/word.py"), "WORD = 'first'").unwrap();
    let (file, word) = (at("functions.yaml"), at("f/lib/word.py"));
    let args = ["--no-try", "--watch", "--functions", &*file.to_string_lossy()];
    let up = Up::start_in(stoker(), directory, &args).await;
    assert_eq!(up.good(&["call", "mine/word"]).await, "first!");
    assert_eq!(up.good(&["call", "mine/other"]).await, "1");
    // A module of the function, put in place of the former as editors do.
    std::fs::write(word.with_extension("new"), "WORD = 'second'").unwrap();
    std::fs::rename(word.with_extension("new"), &word).unwrap();
    until_it_says(&up, "first!", "second!").await;
    // The function file; what is wrong with it changes nothing.
    std::fs::write(&file, FILE.replace("app: mine", "ap: mine")).unwrap();
    std::fs::write(&file, FILE.replace("\"!\"", "\"?\"")).unwrap();
    until_it_says(&up, "second!", "second?").await;
    // Others go on with the container that they have.
    assert_eq!(up.good(&["call", "mine/other"]).await, "2");
    up.stop().await;
}
