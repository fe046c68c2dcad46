//! `stoker logs` as a person uses it: what is kept, in order, and what comes, over containers, runners and balancers that come and go.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use stoker_tests::within;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::command::{Up, stoker};
use crate::relay::Relay;

/// A function that says what it is told, on both ways out.
const ECHO: &str = r#"
app: logs
functions:
  - name: echo
    command: ["sh", "-c", "read said; echo \"heard $said\" >&2; echo 'not a log'"]
  - name: other
    command: ["sh", "-c", "echo nobody asked >&2"]
"#;

async fn fleet(runners: &str) -> Up {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("echo.yaml");
    std::fs::write(&file, ECHO).unwrap();
    let words = ["--no-try", "--runners", runners, "--functions", &file.to_string_lossy()];
    Up::start_in(stoker(), directory, &words).await
}

struct Follow {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    said: Lines<BufReader<ChildStderr>>,
}

impl Follow {
    fn start(up: &Up, words: &[&str]) -> Self {
        let mut command = up.command(&["logs", "logs/echo", "--follow"]);
        let mut child = command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, said }
    }

    /// The next line, which must end in this.
    async fn expect(&mut self, end: &str) {
        let line = next(&mut self.lines).await;
        assert!(line.ends_with(end), "{line:?} and not {end:?}");
    }

    /// Ctrl-C, and what it had not shown by then.
    async fn stop(mut self) -> Vec<String> {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), Signal::INT).unwrap();
        let ended = within("the end of `stoker logs`", self.child.wait()).await.unwrap();
        // Nothing is to be put in order: it ends as any program does that is interrupted, and a shell says 130.
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&ended),
            Some(Signal::INT.as_raw()),
            "{ended:?}"
        );
        let mut rest = Vec::new();
        while let Some(line) = within("the rest", self.lines.next_line()).await.unwrap() {
            rest.push(line);
        }
        rest
    }
}

async fn next(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>) -> String {
    within("a line", lines.next_line()).await.unwrap().expect("there are more lines")
}

async fn call(up: &Up, text: &str) {
    up.good(&["call", "logs/echo", "--data", &format!("{text}\n")]).await;
}

#[tokio::test]
async fn logs_are_in_order_and_as_many_as_are_wanted() {
    let up = fleet("2").await;
    for text in ["one", "two", "three"] {
        call(&up, text).await;
    }
    up.good(&["call", "logs/other"]).await;
    let heard = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once(" heard ")).map(|(_, what)| what.to_owned()).collect()
    };
    let logs = async |words: &[&str]| heard(&up.good(&[&["logs", "logs/echo"], words].concat()).await);
    assert_eq!(logs(&[]).await, ["one", "two", "three"]);
    assert_eq!(logs(&["--tail", "2"]).await, ["two", "three"]);
    assert_eq!(logs(&["--source", "stderr", "--since", "10m"]).await, ["one", "two", "three"]);
    let nothing = up.run(&["logs", "logs/echo", "--source", "stdout"]).await;
    assert!(nothing.status.success() && nothing.stdout.is_empty(), "{nothing:?}");
    assert!(
        String::from_utf8_lossy(&nothing.stderr)
            .contains("No runner keeps a line of logs/echo that is wanted")
    );
    let json = up.good(&["logs", "logs/echo", "--tail", "1", "-o", "json"]).await;
    let line: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&line["text"], &line["source"]), (&"heard three".into(), &"stderr".into()));
    let since = line["time"].as_str().unwrap().to_owned();
    assert_eq!(logs(&["--since", &since]).await, ["three"]);
    let call_id = line["call_id"].as_str().unwrap().to_owned();
    assert_eq!(logs(&["--call", &call_id]).await, ["three"]);
    assert_eq!(up.run(&["logs", "logs/echo", "--since", "yesterday"]).await.status.code(), Some(2));
    up.stop().await;
}

#[tokio::test]
async fn logs_follow_over_containers_and_through_a_balancer_that_goes_away() {
    let up = fleet("2").await;
    call(&up, "before").await;
    let relay = Relay::to(&up.grpc).await;
    let mut follow = Follow::start(&up, &["--server", &relay.url]);
    follow.expect("heard before").await;
    // Each call of this format has a container of its own.
    for text in ["first", "second"] {
        call(&up, text).await;
        follow.expect(&format!("heard {text}")).await;
    }
    relay.cut();
    let said = next(&mut follow.said).await;
    assert!(said.ends_with("; asking again)"), "{said}");
    call(&up, "meanwhile").await;
    relay.lead(&up.grpc);
    assert_eq!(next(&mut follow.said).await, "(it is back)");
    // What was written meanwhile, and nothing twice.
    follow.expect("heard meanwhile").await;
    call(&up, "after").await;
    follow.expect("heard after").await;
    assert_eq!(follow.stop().await, Vec::<String>::new());
    up.stop().await;
}

#[tokio::test]
async fn who_follows_with_a_filter_gets_nothing_else() {
    let up = fleet("1").await;
    call(&up, "old").await;
    let mut follow = Follow::start(&up, &["--tail", "0", "--source", "stderr", "--output", "json"]);
    // It follows from a moment that cannot be seen from outside: lines are written until one comes.
    let first = tokio::select! {
        line = next(&mut follow.lines) => line,
        () = async { loop { call(&up, "new").await } } => unreachable!("it goes on"),
    };
    let first: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&first["text"], &first["source"]), (&"heard new".into(), &"stderr".into()));
    follow.stop().await;
    up.stop().await;
}
