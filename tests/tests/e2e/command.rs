//! The `stoker` command as a person uses it: a fleet by `up`, calls, logs, what goes wrong and what it says then.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use stoker_registry::testing::Etcd;
use stoker_tests::left::{self, Ending, Process};
use stoker_tests::{program, within};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};

/// Functions of the shell, one for each way that a call can go.
const FUNCTIONS: &str = r#"
app: demo
functions:
  - name: hello
    command: ["sh", "-c", "echo said by hello >&2; printf 'Hello, %s!' \"$(cat)\""]
    triggers: [{http: /hello}]
  - name: fails
    command: ["sh", "-c", "echo last words >&2; exit 3"]
  - name: slow
    command: ["sh", "-c", "echo started >&2; read line; echo \"done: $line\""]
  - name: header
    command: ["sh", "-c", "printf %s \"$FN_HEADER_X_TONE\""]
"#;

pub fn stoker() -> Command {
    let mut command = Command::new(program("stoker"));
    command.env("NO_COLOR", "1").env_remove("STOKER_SERVER").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A fleet by `stoker up`.
pub struct Up {
    child: Child,
    /// Kept open: it may have more to say.
    _stdout: Lines<BufReader<ChildStdout>>,
    pub grpc: String,
    pub http: String,
    /// The page of the fleet.
    pub page: String,
    /// What it said until it served.
    said: String,
    /// Its temporary directory, functions file and state.
    directory: Option<tempfile::TempDir>,
    /// Every process below it when it was told to stop.
    family: Vec<Process>,
}

impl Up {
    /// With [`FUNCTIONS`] in a new directory.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("functions.yaml");
        std::fs::write(&file, FUNCTIONS).unwrap();
        Self::start_in(stoker(), directory, &["--no-try", "--functions", &file.to_string_lossy()]).await
    }

    pub async fn start_in(mut command: Command, directory: tempfile::TempDir, args: &[&str]) -> Self {
        let mut child = command
            .args(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--memory", "512MiB"])
            .args(args)
            .env("TMPDIR", directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        while !said.contains("Serving.") {
            match within("a line of `stoker up`", lines.next_line()).await.unwrap() {
                Some(line) => said.push_str(&format!("{line}\n")),
                None => {
                    let mut error = String::new();
                    child.stderr.take().unwrap().read_to_string(&mut error).await.unwrap();
                    panic!("`stoker up` ended: {said}{error}");
                }
            }
        }
        let address = |key: &str| {
            let line =
                said.lines().find_map(|line| line.trim().strip_prefix(key)).expect("it says its addresses");
            line.trim().to_owned()
        };
        let (grpc, http, page) = (address("gRPC"), address("HTTP"), address("page"));
        Self { child, _stdout: lines, grpc, http, page, said, directory: Some(directory), family: Vec::new() }
    }

    pub fn directory(&self) -> &Path {
        self.directory.as_ref().unwrap().path()
    }

    /// Ctrl-C.
    fn interrupt(&mut self) {
        self.signal(Signal::INT);
    }

    fn signal(&mut self, signal: Signal) {
        self.family.extend(left::descendants(self.child.id().unwrap() as i32));
        let pid = Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// A command against this fleet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = stoker();
        command.args(args).env("STOKER_SERVER", &self.grpc).current_dir(self.directory());
        command.env("STOKER_HTTP", &self.http);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Output {
        within(&format!("stoker {args:?}"), self.command(args).output()).await.unwrap()
    }

    /// The output of a command that succeeds.
    pub async fn good(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "stoker {args:?}: {output:?}");
        text(&output.stdout)
    }

    /// Ctrl-C, and everything that belongs to it ends.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.interrupt();
        self.ended(0).await
    }

    /// Waits for the end, whose status must be this, and looks for what is left.
    async fn ended(&mut self, status: i32) -> tempfile::TempDir {
        let pid = self.child.id().unwrap() as i32;
        let ending = Ending::of_processes(&self.family);
        let ended = within("the end of `stoker up`", self.child.wait()).await.unwrap();
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).await.unwrap();
        assert_eq!(ended.code(), Some(status), "{error}");
        ending.wait().await;
        let directory = self.directory.take().unwrap();
        let mut left = Vec::new();
        for runners in runner_directories(directory.path()) {
            if status == 0 {
                // A fleet on any free port has names, and so directories, that no other will have.
                let own = std::fs::read_dir(&runners).unwrap().flatten().map(|entry| entry.path());
                left.extend(own.map(|path| format!("directory {}", path.display())));
            }
            left.extend(left::behind(&format!("runner-p{pid}-"), &[format!("runner-p{pid}-1")], &runners));
        }
        // Calls for later that nobody asked to keep: one that leaves at once leaves them to the next of its kind, which forgets them.
        left.retain(|what| status == 0 || !what.contains("-queue/"));
        assert!(left.is_empty(), "left behind: {left:#?}");
        directory
    }
}

/// Where runners of `up` keep theirs: below the state directory, or the temporary one.
fn runner_directories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let is_ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("stoker-"));
    entries
        .map(|path| if is_ours(&path) { path } else { path.join("runners") })
        .filter(|path| path.is_dir())
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_serves_the_examples_until_ctrl_c() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/functions.yaml");
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start_in(stoker(), directory, &["--functions", &examples.to_string_lossy()]).await;
    // It has tried each whose program is there, and says what else is missing.
    for line in ["Stoker is up.", "demo/hello ", "First calls", "Hello, Ada", "stoker call demo/hello"] {
        assert!(up.said.contains(line), "{line:?} is missing in:\n{}", up.said);
    }
    assert!(up.good(&["call", "demo/hello", "--data", "Grace"]).await.contains("Grace"));
    let http = up.http.strip_prefix("http://").unwrap().parse().unwrap();
    let mut raw = stoker_tests::raw::Raw::connect(http).await;
    raw.write(
        b"POST /t/demo/hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nGrace",
    )
    .await
    .unwrap();
    let answer = text(&raw.to_the_end().await);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("Grace"), "{answer}");
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_works_as_an_ordinary_user() {
    let user = rustix::process::getuid();
    if !user.is_root() {
        println!("left out: all of these tests run as an ordinary user already");
        return;
    }
    let as_user = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program("stoker"));
        command.env("NO_COLOR", "1").env("HOME", "/").stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    if !as_user().arg("--version").output().await.is_ok_and(|output| output.status.success()) {
        println!(
            "left out: setpriv is missing, or an ordinary user cannot reach {}",
            program("stoker").display()
        );
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let file = directory.path().join("functions.yaml");
    std::fs::write(&file, FUNCTIONS).unwrap();
    let up = Up::start_in(as_user(), directory, &["--no-try", "--functions", &file.to_string_lossy()]).await;
    println!("{}", up.said);
    assert_eq!(up.good(&["call", "demo/hello", "--data", "Ada"]).await, "Hello, Ada!");
    assert_eq!(up.run(&["call", "demo/fails"]).await.status.code(), Some(1));
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_says_whose_fault_it_is() {
    let up = Up::start().await;
    assert_eq!(up.good(&["call", "demo/hello", "--data", "Ada"]).await, "Hello, Ada!");
    assert_eq!(up.good(&["call", "demo/header", "--header", "X-Tone=kind"]).await, "kind");
    std::fs::write(up.directory().join("body"), "a file").unwrap();
    assert_eq!(up.good(&["call", "demo/hello", "--data", "@body"]).await, "Hello, a file!");
    let output = up.run(&["call", "demo/hello", "--data", "Ada", "--show-timing"]).await;
    assert_eq!(text(&output.stdout), "Hello, Ada!", "times do not mix with the answer");
    assert!(text(&output.stderr).starts_with("call "), "{output:?}");
    // Where both are read together, as in a terminal, they begin on lines of their own.
    let together = up.directory().join("together");
    for (function, begins) in [("demo/hello", "Hello, Ada!\ncall "), ("demo/header", "call ")] {
        let file = std::fs::File::create(&together).unwrap();
        let mut command = up.command(&["call", function, "--data", "Ada", "--show-timing"]);
        command.stdout(file.try_clone().unwrap()).stderr(file);
        assert!(within("a call", command.status()).await.unwrap().success());
        let said = std::fs::read_to_string(&together).unwrap();
        assert!(said.starts_with(begins), "{said}");
    }
    let json = up.good(&["call", "demo/hello", "--data", "Ada", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["body"], "Hello, Ada!");
    // STDIN, as it comes.
    let mut child = up
        .command(&["call", "demo/hello", "--data", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"a pipe").await.unwrap();
    let output = within("a call from a pipe", child.wait_with_output()).await.unwrap();
    assert_eq!(text(&output.stdout), "Hello, a pipe!");
    // 1 the function, 2 the request, 3 the platform.
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (&["call", "demo/fails"], 1, &["at fault: the function", "status 3", "last words"]),
        (&["call", "demo/none"], 2, &["at fault: the request", "demo/none", "stoker functions"]),
        (&["call", "demo/hello", "--data", "@none"], 2, &["none cannot be read"]),
        (&["call", "demo/slow", "--data", "-", "--timeout", "soon"], 2, &["soon"]),
        (&["describe", "demo/none"], 2, &["demo/none"]),
        (&["call", "demo/hello", "--server", "http://127.0.0.1:1"], 3, &["no balancer answers", "stoker up"]),
    ];
    for (args, status, parts) in cases {
        let output = up.run(args).await;
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        let error = text(&output.stderr);
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing in what {args:?} says: {error}");
        }
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_see_and_change_functions() {
    let up = Up::start().await;
    let more = "app: more\nfunctions:\n  - {name: one, command: [cat]}\n  - {name: two, command: [cat]}\n";
    std::fs::write(up.directory().join("more.yaml"), more).unwrap();
    assert!(up.good(&["apply", "-f", "more.yaml"]).await.contains("more/one"));
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let listed = json(up.good(&["functions", "-o", "json"]).await);
    assert_eq!(
        listed.to_string().matches("\"more\"").count().max(listed.to_string().matches("more/").count()),
        2
    );
    assert!(up.good(&["functions"]).await.contains("demo/hello"));
    assert_eq!(up.good(&["call", "more/one", "--data", "x"]).await, "x");
    assert!(up.good(&["describe", "more/one"]).await.contains("cat"));
    up.good(&["delete", "more/one"]).await;
    assert_eq!(up.run(&["call", "more/one"]).await.status.code(), Some(2));
    assert_eq!(up.run(&["delete", "more/one"]).await.status.code(), Some(2));
    assert!(up.good(&["runners"]).await.contains("runner-p"));
    json(up.good(&["runners", "-o", "json"]).await);
    let bench = json(up.good(&["bench", "demo/hello", "-d", "1", "-c", "2", "-o", "json"]).await);
    assert!(bench.to_string().contains("p50"), "{bench}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(up.good(&["completions", shell]).await.contains("stoker"));
    }
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_follow_what_functions_write() {
    let up = Up::start().await;
    assert_eq!(up.run(&["call", "demo/fails"]).await.status.code(), Some(1));
    let mut follow = up.command(&["logs", "demo/fails", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    // What was written before, and what comes.
    let line = within("a line from before", lines.next_line()).await.unwrap().unwrap();
    assert!(line.contains("last words"), "{line}");
    assert_eq!(up.run(&["call", "demo/fails"]).await.status.code(), Some(1));
    let line = within("a line that comes", lines.next_line()).await.unwrap().unwrap();
    assert!(line.contains("last words"), "{line}");
    let pid = Pid::from_raw(follow.id().unwrap() as i32).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    within("the end of the follower", follow.wait()).await.unwrap();
    assert_eq!(up.good(&["call", "demo/hello"]).await, "Hello, !");
    assert!(up.good(&["logs", "demo/hello"]).await.contains("said by hello"));
    assert_eq!(up.run(&["logs", "demo/none"]).await.status.code(), Some(2));
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_keeps_functions_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (file, state) = (directory.path().join("functions.yaml"), directory.path().join("state"));
    std::fs::write(&file, FUNCTIONS).unwrap();
    let (file, state) = (file.to_string_lossy().into_owned(), state.to_string_lossy().into_owned());
    let up = Up::start_in(stoker(), directory, &["--functions", &file, "--state", &state]).await;
    up.good(&["delete", "demo/fails"]).await;
    let directory = up.stop().await;
    let up = Up::start_in(stoker(), directory, &["--state", &state]).await;
    assert_eq!(up.good(&["call", "demo/hello", "--data", "again"]).await, "Hello, again!");
    assert_eq!(up.run(&["call", "demo/fails"]).await.status.code(), Some(2), "it was deleted before");
    up.stop().await;
}

/// Starts a call that runs until its body ends, and returns once the function has begun.
async fn running(up: &Up) -> Child {
    assert_eq!(up.good(&["call", "demo/hello"]).await, "Hello, !");
    let mut logs = up.command(&["logs", "demo/slow", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let call = up
        .command(&["call", "demo/slow", "--data", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    let line = within("the function's first words", lines.next_line()).await.unwrap().unwrap();
    assert!(line.contains("started"), "{line}");
    call
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_lets_calls_finish() {
    let mut up = Up::start().await;
    let mut call = running(&up).await;
    up.interrupt();
    let mut stderr = BufReader::new(up.child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Stopping") {
        said.clear();
        assert!(within("a word about the end", stderr.read_line(&mut said)).await.unwrap() > 0);
    }
    up.child.stderr = Some(stderr.into_inner());
    call.stdin.take().unwrap().write_all(b"in time\n").await.unwrap();
    let output = within("the call's answer", call.wait_with_output()).await.unwrap();
    assert_eq!(text(&output.stdout), "done: in time\n", "{output:?}");
    up.ended(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_ctrl_c_leaves_at_once() {
    let mut up = Up::start().await;
    let call = running(&up).await;
    up.interrupt();
    let mut stderr = BufReader::new(up.child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Ctrl-C again leaves at once") {
        said.clear();
        assert!(within("a word about the end", stderr.read_line(&mut said)).await.unwrap() > 0);
    }
    up.child.stderr = Some(stderr.into_inner());
    up.interrupt();
    up.ended(130).await;
    let output = within("the call's end", call.wait_with_output()).await.unwrap();
    assert_ne!(output.status.code(), Some(0), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--grpc", "--http"] {
        let other = if flag == "--grpc" { "--http" } else { "--grpc" };
        let output = stoker().args(["up", flag, &address, other, "127.0.0.1:0"]).output();
        let output = within("the refusal", output).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let error = text(&output.stderr);
        for part in [address.as_str(), "in use", flag] {
            assert!(error.contains(part), "{part:?} is missing in {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_of_a_sandbox_is_the_one_that_was_named() {
    for (sandbox, flag, engine) in
        [("oci", "--oci-runtime", "/nowhere/crun"), ("docker", "--docker-socket", "/nowhere/docker.sock")]
    {
        if sandbox == "oci" && !rustix::process::getuid().is_root() {
            println!("left out: only root has containers of OCI runtimes");
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut command = stoker();
        command.args(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--sandbox", sandbox, flag, engine]).env("TMPDIR", directory.path());
        let output = within("the refusal", command.output()).await.unwrap();
        assert!(!output.status.success(), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains(engine), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mistake_of_a_file_is_reported_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("wrong.yaml");
    let wrong = "\
app: demo
functions:
  - name: one
    command: [\"true\"]
    memory: 12 parsecs
    colour: blue
  - name: two words
    command: []
    timeout: never
  - name: three
    command: [\"true\"]
    format: morse
";
    std::fs::write(&file, wrong).unwrap();
    let output = stoker().args(["up", "--functions"]).arg(&file).output();
    let output = within("the refusal", output).await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = text(&output.stderr);
    for place in ["5:13", "6:5", "7:11", "8:14", "9:14", "12:13"] {
        assert!(error.contains(&format!("wrong.yaml:{place}")), "{place} is missing in:\n{error}");
    }
    for part in ["parsecs", "colour", "two words", "never", "morse", "http-stream"] {
        assert!(error.contains(part), "{part:?} is missing in:\n{error}");
    }
}

/// Runs `args` with this on STDIN.
async fn fed(up: &Up, args: &[&str], stdin: &str) -> Output {
    let mut child =
        up.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
    within(&format!("stoker {args:?}"), child.wait_with_output()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_server_is_told_in_words() {
    let up = Up::start().await;
    let port = up.grpc.rsplit(':').next().unwrap();
    let by_name = format!("localhost:{port}");
    assert_eq!(up.good(&["call", "demo/hello", "--data", "x", "--server", &by_name]).await, "Hello, x!");
    let secure = format!("https://127.0.0.1:{port}");
    for (server, status, says) in [
        (secure.as_str(), 3, "cannot be spoken to by TLS"),
        (up.http.as_str(), 2, "the balancer's HTTP address"),
    ] {
        for args in [
            &["call", "demo/hello", "--data", "x"][..],
            &["functions"],
            &["runners"],
            &["bench", "demo/hello"],
        ] {
            let output = up.run(&[args, &["--server", server]].concat()).await;
            assert_eq!(output.status.code(), Some(status), "{server} {args:?}: {output:?}");
            assert!(text(&output.stderr).contains(says), "{server} {args:?}: {output:?}");
            assert!(output.stdout.is_empty(), "{server} {args:?}: {output:?}");
        }
    }
    // What is wrong on this side is nobody else's fault, also where no balancer is.
    for server in [secure.as_str(), "https://127.0.0.1:1"] {
        let output = up.run(&["runners", "--server", server, "--ca", "nowhere.pem"]).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{server}: {output:?}");
        assert!(said.contains("nowhere.pem") && said.contains("--ca"), "{server}: {output:?}");
    }
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_get_errors_as_json() {
    let up = Up::start().await;
    let cases: [(&[&str], i32, &str, &str); 4] = [
        (&["call", "demo/fails"], 1, "function", "FUNCTION_FAILED"),
        (&["call", "demo/none"], 2, "caller", "NOT_FOUND"),
        (&["apply", "-f", "nowhere.yaml"], 2, "caller", "INVALID_REQUEST"),
        (&["runners", "--server", "http://127.0.0.1:1"], 3, "platform", "UNAVAILABLE"),
    ];
    for (args, status, blame, code) in cases {
        let output = up.run(&[args, &["-o", "json"]].concat()).await;
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
        let error =
            &serde_json::from_slice::<serde_json::Value>(&output.stderr).expect("it is JSON")["error"];
        assert_eq!((error["blame"].as_str(), error["code"].as_str()), (Some(blame), Some(code)), "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty() && error["advice"].is_string(), "{error}");
    }
    // The deadline's error is the balancer's, which knows what the call was doing.
    let mut slow = up.command(&["call", "demo/slow", "--data", "-", "--timeout", "300ms", "-o", "json"]);
    let slow = slow.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut slow = slow;
    let _open = slow.stdin.take();
    let output = within("the end of a slow call", slow.wait_with_output()).await.unwrap();
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).expect("it is JSON");
    let error = &error["error"];
    assert_eq!(
        (output.status.code(), error["code"].as_str()),
        (Some(2), Some("DEADLINE_EXCEEDED")),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().starts_with("the deadline passed"), "{error}");
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said() {
    let up = Up::start().await;
    let said = async |args: &[&str]| {
        let output = up.run(args).await;
        assert!(output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
        text(&output.stderr)
    };
    assert!(said(&["functions", "--app", "nope"]).await.contains("no functions in the app `nope`"));
    assert!(said(&["logs", "demo/hello"]).await.contains("No runner keeps a line that demo/hello wrote"));
    let id = "0".repeat(32);
    assert!(said(&["logs", "demo/hello", "--call", &id]).await.contains("there was no such call"));
    assert_eq!(up.run(&["logs", "demo/hello", "--call", "zzz"]).await.status.code(), Some(2));
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_come_from_stdin_too() {
    let up = Up::start().await;
    let good = "app: piped\nfunctions: [{name: pwd, command: [pwd]}]\n";
    let output = fed(&up, &["apply", "-f", "-"], good).await;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "piped/pwd created\n"));
    // Paths are those of whoever typed it.
    let here = std::fs::canonicalize(up.directory()).unwrap();
    assert_eq!(up.good(&["call", "piped/pwd"]).await.trim(), here.to_string_lossy());
    let wrong = fed(&up, &["apply", "-f", "-"], "app: piped\nfunctions: [{name: pwd}]\n").await;
    assert!(text(&wrong.stderr).contains("STDIN:2:13"), "{wrong:?}");
    let nothing = fed(&up, &["apply", "-f", "-"], "app: piped\nfunctions: []\n").await;
    assert!(nothing.status.success() && text(&nothing.stderr).contains("nothing was done"), "{nothing:?}");
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_leaves_ends_the_command_quietly() {
    let up = Up::start().await;
    for args in [
        &["call", "demo/hello", "--data", "x"][..],
        &["call", "demo/hello", "-o", "json"],
        &["functions"],
        &["describe", "demo/hello"],
        &["runners", "-o", "json"],
        &["logs", "demo/hello"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            up.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
        let output = within(&format!("stoker {args:?}"), output).await.unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""), "{args:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = up.command(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output();
        let output = within(&format!("stoker {args:?}"), output).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains("cannot be written: No space left"), "{args:?}: {output:?}");
    }
    up.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_goes_lets_calls_finish() {
    let mut up = Up::start().await;
    let mut call = running(&up).await;
    let mut stderr = BufReader::new(up.child.stderr.take().unwrap());
    let mut said = String::new();
    // The one upgrades runners, and ends nothing here; the other ends the fleet.
    for (signal, word) in [(Signal::USR2, "SIGUSR2 is for runners"), (Signal::HUP, "Stopping")] {
        up.signal(signal);
        while !said.contains(word) {
            said.clear();
            assert!(within("a word about that", stderr.read_line(&mut said)).await.unwrap() > 0, "{word}");
        }
    }
    up.child.stderr = Some(stderr.into_inner());
    call.stdin.take().unwrap().write_all(b"in time\n").await.unwrap();
    let output = within("the call's answer", call.wait_with_output()).await.unwrap();
    assert_eq!(text(&output.stdout), "done: in time\n", "{output:?}");
    up.ended(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_fleet_is_told_and_cleaned_up_after() {
    let mut up = Up::start().await;
    let mut call = running(&up).await;
    let _open = call.stdin.take();
    let pid = up.child.id().unwrap();
    up.signal(Signal::KILL);
    let ending = Ending::of_processes(&up.family);
    let output = within("the call's end", call.wait_with_output()).await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = text(&output.stderr);
    for part in ["went away before it had answered", "at fault: the platform", "may have started"] {
        assert!(error.contains(part), "{part:?} is missing in {error}");
    }
    within("the end of `stoker up`", up.child.wait()).await.unwrap();
    ending.wait().await;
    // The next one takes over what was left, and leaves nothing.
    let directory = up.directory.take().unwrap();
    let up = Up::start_in(stoker(), directory, &[]).await;
    assert!(up.good(&["runners"]).await.contains(&format!("runner-p{pid}-1")));
    up.stop().await;
}

/// What `up` says on STDERR when it does not start, which must be with this status.
async fn refused(directory: &Path, args: &[&str], status: i32) -> String {
    let mut command = stoker();
    command.args(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(args);
    let output = within("the refusal", command.env("TMPDIR", directory).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    text(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_that_others_have_or_made_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let up = Up::start_in(stoker(), directory, &["--state", &state]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let error = refused(elsewhere.path(), &["--state", &state], 2).await;
    assert!(error.contains("another `stoker up` keeps its functions in"), "{error}");
    let directory = up.stop().await;
    std::fs::write(directory.path().join("state/functions.json"), "{").unwrap();
    let error = refused(elsewhere.path(), &["--state", &state], 2).await;
    assert!(error.contains("functions.json, or move it away"), "{error}");
    // The temporary directory is for everyone, and the name in it can be guessed.
    let user = rustix::process::getuid().as_raw();
    let squatted = elsewhere.path().join(format!("stoker-{user}"));
    std::fs::create_dir(&squatted).unwrap();
    std::fs::set_permissions(&squatted, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = refused(elsewhere.path(), &[], 2).await;
    assert!(error.contains("can be written by others"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_for_others_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = stoker()
        .args([
            "up",
            "--insecure",
            "--grpc",
            "0.0.0.0:0",
            "--http",
            "localhost:0",
            "--memory",
            "512MiB",
            "-vvv",
        ])
        .env("TMPDIR", directory.path())
        // What is for a terminal only does not go into a file.
        .env_remove("NO_COLOR")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("Serving.") {
        said += &within("a line of `stoker up`", lines.next_line()).await.unwrap().expect("it serves");
        said.push('\n');
    }
    let family = left::descendants(child.id().unwrap() as i32);
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
    let output = within("the end of `stoker up`", child.wait_with_output()).await.unwrap();
    Ending::of_processes(&family).wait().await;
    let error = text(&output.stderr);
    assert!(output.status.success(), "{error}");
    let warnings: Vec<_> = error.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(
        matches!(&warnings[..], [one] if one.contains("0.0.0.0:0") && one.contains("run programs")),
        "{error}"
    );
    assert!(said.contains("http://127.0.0.1:"), "what is shown can be called: {said}");
    assert!(error.contains("DEBUG") && !(said + &error).contains('\x1b'), "{error}");
}

/// One request; the answer, head and all.
async fn asked(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_ready_when_its_files_are_applied() {
    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    // A registry of images that takes its time: what is applied is not there before it has answered.
    let images = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("functions.yaml");
    let image = format!("  - {{name: imaged, image: \"{}/some:1\"}}\n", images.local_addr().unwrap());
    std::fs::write(&file, format!("{FUNCTIONS}{image}")).unwrap();
    // Known before it says so, and nobody else's.
    let [grpc, http, page] = ["127.0.83.1:7070", "127.0.83.1:7080", "127.0.83.1:7090"];
    let mut child = stoker()
        .args(["up", "--no-try", "--memory", "512MiB", "--grpc", grpc, "--http", http, "--admin", page])
        .arg("--functions")
        .arg(&file)
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (asking, _) = within("the question what the image is", images.accept()).await.unwrap();
    let mut asking = BufReader::new(asking);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(within("the question", asking.read_line(&mut line)).await.unwrap() > 0);
    }
    let ready = asked(page, "GET /readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("are being applied"), "{ready}");
    for request in ["POST /invoke/demo/hello", "GET /t/demo/hello"] {
        let early = asked(http, request).await;
        assert!(
            early.starts_with("HTTP/1.1 503") && early.contains("not all there yet"),
            "{request}: {early}"
        );
    }
    let answer = format!("HTTP/1.1 200 OK\r\ndocker-content-digest: {DIGEST}\r\ncontent-length: 0\r\n\r\n");
    asking.write_all(answer.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !within("a line of `stoker up`", lines.next_line()).await.unwrap().unwrap().contains("Serving.") {}
    let ready = asked(page, "GET /readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let called = asked(http, "GET /t/demo/hello").await;
    assert!(called.starts_with("HTTP/1.1 200") && called.ends_with("Hello, !"), "{called}");
    let none = asked(http, "POST /invoke/demo/nobody").await;
    assert!(none.starts_with("HTTP/1.1 404"), "{none}");
    let family = left::descendants(child.id().unwrap() as i32);
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(within("the end of `stoker up`", child.wait()).await.unwrap().success());
    Ending::of_processes(&family).wait().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleets_on_one_etcd_are_one_fleet() {
    let Some(etcd) = Etcd::start().await else {
        println!("left out: tests with etcd");
        return;
    };
    let start = async |file: Option<&str>| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("functions.yaml").to_string_lossy().into_owned();
        let endpoint = etcd.endpoint();
        let mut args = vec!["--no-try", "--etcd", &endpoint];
        if let Some(text) = file {
            std::fs::write(&path, text).unwrap();
            args.extend(["--functions", &path]);
        }
        Up::start_in(stoker(), directory, &args).await
    };
    let (one, two) = (start(Some(FUNCTIONS)).await, start(None).await);
    assert!(two.said.contains("demo/hello") && two.said.contains("kept in etcd"), "{}", two.said);
    assert_eq!(two.good(&["call", "demo/hello", "--data", "both"]).await, "Hello, both!");
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let fleet = json(two.good(&["runners", "-o", "json"]).await);
    let names: Vec<_> = fleet["runners"].as_array().unwrap().iter().map(|r| r["runner"].clone()).collect();
    assert_eq!(names.len(), 2, "{fleet}");
    // Its functions start in its directory.
    let _directory = one.stop().await;
    assert_eq!(two.good(&["call", "demo/hello", "--data", "one"]).await, "Hello, one!");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_runner_finishes_and_takes_nothing() {
    let up = Up::start().await;
    let mut call = running(&up).await;
    let fleet: serde_json::Value = serde_json::from_str(&up.good(&["runners", "-o", "json"]).await).unwrap();
    let runner = fleet["runners"][0]["runner"].as_str().unwrap().to_owned();
    assert_eq!(up.good(&["drain", &runner, "--no-wait"]).await, format!("{runner} draining\n"));
    let output = up.run(&["drain", &runner, "--timeout", "100ms"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("still has calls after 100ms"), "{output:?}");
    let waiting = up.command(&["drain", &runner]).stdout(Stdio::piped()).spawn().unwrap();
    let refused = up.run(&["call", "demo/hello", "--timeout", "200ms"]).await;
    assert_ne!(refused.status.code(), Some(0), "{refused:?}");
    call.stdin.take().unwrap().write_all(b"in time\n").await.unwrap();
    let output = within("the call's answer", call.wait_with_output()).await.unwrap();
    assert_eq!(text(&output.stdout), "done: in time\n", "{output:?}");
    let output = within("the end of the drain", waiting.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), format!("{runner} drained\n")));
    assert_eq!(up.good(&["uncordon", &runner]).await, format!("{runner} ready\n"));
    assert_eq!(up.good(&["call", "demo/hello", "--data", "back"]).await, "Hello, back!");
    let output = up.run(&["drain", "nobody"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("nobody") && error.contains("see `stoker runners`"), "{error}");
    up.stop().await;
}
