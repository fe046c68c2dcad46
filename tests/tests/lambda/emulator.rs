//! AWS's own Runtime Interface Emulator beside what stands for it here: the same handlers, the same requests, and what both say, byte for byte
//! but for what is another at each call. Where they differ on purpose a test says how, and docs/lambda.md says why.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_core::FunctionSpec;
use stoker_lb::LambdaConfig;
use stoker_proto::v1::StreamLogsRequest;
use stoker_tests::calls::page_at;
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::functions::Change as _;
use stoker_tests::{LIMIT, within};

use crate::{MOST, kit, kits_directory, python};

/// Of a call, which there begins with the start of its function, however busy the machine is.
const TIMEOUT: Duration = Duration::from_secs(10);

const PATH: &str = "/2015-03-31/functions/function/invocations";

/// What every request says, so that both tell a function of the same trace.
const TRACE: (&str, &str) =
    ("X-Amzn-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1");

/// What a runtime and its extensions are told otherwise, by the steps of `prober.py`.
const DIFFERENCES: [&str; 8] = [
    // It keeps the trace from the runtime.
    "next",
    "next once more",
    // It has no account.
    "an extension",
    // The words are those of another reader of JSON.
    "an extension without JSON",
    // It answers that it has no logs and no telemetry.
    "logs of nobody",
    "telemetry of nobody",
    "telemetry",
    "telemetry too late",
];

/// AWS's program with one function.
struct Theirs {
    child: Child,
    address: SocketAddr,
    lines: Receiver<String>,
}

impl Theirs {
    /// `None`, and it is said, where `scripts/test` could not fetch it.
    async fn start(spec: &FunctionSpec) -> Option<Self> {
        let program = kits_directory().join("lambda-rie/aws-lambda-rie");
        if !program.exists() {
            println!("left out: AWS's emulator is not in {}: run scripts/test", program.display());
            return None;
        }
        // Of an address of its own, from which nobody connects: no connection takes a port that is about to be listened on.
        let free = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap());
        let [address, api] = free.map(|listener| listener.local_addr().unwrap());
        let mut command = Command::new(program);
        command.args(["--log-level", "error", "--runtime-interface-emulator-address", &address.to_string()]);
        command.args(["--runtime-api-address", &api.to_string()]).args(&spec.command);
        command.current_dir(&spec.workdir).envs(&spec.env).process_group(0);
        command.env("AWS_LAMBDA_FUNCTION_NAME", spec.name.function());
        command.env("_HANDLER", &spec.format_options.handler);
        command.env("AWS_LAMBDA_FUNCTION_TIMEOUT", (spec.timeout_ms / 1000).to_string());
        command.env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (spec.memory >> 20).to_string());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let theirs = Self { child, address, lines };
        within("the emulator", async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        Some(theirs)
    }

    /// The next line that it, or its function, writes.
    fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("it writes")
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        self.child.wait().unwrap();
        // Its function, which has a group of its own, ends where nobody hands it work any more: the last that could write.
        while self.lines.recv_timeout(LIMIT).is_ok() {}
    }
}

/// Both, with the same function.
struct Both {
    theirs: Theirs,
    ours: Fleet,
}

impl Both {
    async fn start(spec: FunctionSpec) -> Option<Self> {
        let spec = spec.with_max_containers(1);
        let theirs = Theirs::start(&spec).await?;
        let mut plan = Plan::default();
        plan.resources.memory = 1 << 30;
        let emulate = Some(spec.name.to_string());
        plan.balancer.lambda = LambdaConfig { emulate, ..LambdaConfig::default() };
        let ours = plan.start([spec]).await;
        Some(Self { theirs, ours })
    }

    /// What each says to this.
    async fn ask(&self, method: &str, headers: &[(&str, &str)], body: &str) -> [Said; 2] {
        let headers: Vec<_> =
            headers.iter().chain([&TRACE]).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let ask = async |address| {
            let page = page_at(address, method, PATH, &headers, body.to_owned()).await;
            let told = |name: &&http::HeaderName| !PASSING.contains(&name.as_str());
            let headers = page.headers.keys().filter(told);
            let headers = headers.map(|name| (name.to_string(), page.header(name.as_str()).to_owned()));
            Said { status: page.status, headers: headers.collect(), body: plain(&page.body) }
        };
        tokio::join!(ask(self.theirs.address), ask(self.ours.clients.http)).into()
    }

    /// The same of both.
    async fn agree(&self, event: Value) {
        let [theirs, ours] = self.ask("POST", &[], &event.to_string()).await;
        assert_eq!(ours, theirs, "{event}");
    }

    async fn end(self) {
        drop(self.theirs);
        self.ours.end().await;
    }
}

/// Headers that say how an answer travels, and which revision it is of.
const PASSING: [&str; 4] = ["content-length", "transfer-encoding", "date", "stoker-revision"];

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Said {
    /// The fields of a body in JSON, in whatever order.
    fn fields(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A text without what is another at each call: ids, times in milliseconds since 1970, and what was measured.
fn plain(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let is_id = |part: &&str| {
        let mut each = part.bytes().enumerate();
        each.all(|(at, b)| if [8, 13, 18, 23].contains(&at) { b == b'-' } else { b.is_ascii_hexdigit() })
    };
    let mut plain = String::new();
    let mut rest = &*text;
    while let Some(first) = rest.chars().next() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (word, length) = match rest.get(..36).filter(is_id) {
            Some(id) => ("ID", id.len()),
            None if digits == 13 => ("TIME", digits),
            None => (&rest[..digits.max(first.len_utf8())], digits.max(first.len_utf8())),
        };
        plain.push_str(word);
        rest = &rest[length..];
    }
    plain
}

/// What a front says to the same requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_python_answers_as_in_awss_emulator() {
    let Some(spec) = python("f", "kit.handler") else { return };
    let Some(both) = Both::start(spec.with_timeout(TIMEOUT)).await else { return };
    let nothing = json!({ "do": "nothing" }).to_string();
    for (method, headers) in [
        ("POST", &[][..]),
        ("GET", &[]),
        ("PUT", &[]),
        // {"custom":{"a":1}}
        ("POST", &[("X-Amz-Client-Context", "eyJjdXN0b20iOnsiYSI6MX19")]),
        ("POST", &[("X-Amz-Invocation-Type", "Event")]),
        ("POST", &[("X-Amz-Log-Type", "Tail")]),
    ] {
        let [theirs, ours] = both.ask(method, headers, &nothing).await;
        assert_eq!((ours.status, &*ours.body), (200, "null"));
        assert_eq!(ours, theirs, "{method} {headers:?}");
    }
    for event in [
        json!({ "do": "echo", "ü": "ß" }),
        json!({ "do": "echo", "text": "x".repeat(100_000) }),
        json!({ "do": "throw" }),
        json!({ "do": "exit", "status": 0 }),
        json!({ "do": "exit", "status": 3 }),
        json!({ "do": "segfault" }),
        json!({ "do": "echo", "again": 1 }),
        json!({ "do": "hang" }),
        json!({ "do": "echo", "again": 2 }),
    ] {
        both.agree(event).await;
    }

    // AWS's client ends over an answer that is too large: it waits for that, we do not.
    let [theirs, ours] = both.ask("POST", &[], &json!({ "do": "large", "size": MOST }).to_string()).await;
    assert_eq!((theirs.status, ours.status), (502, 200));
    assert_eq!(ours.fields(), theirs.fields());
    both.agree(json!({ "do": "echo", "again": 3 })).await;
    // What is no event is a handler's matter there, and nothing is nothing.
    for (event, status, says) in [
        ("{", 400, "the event is not JSON"),
        (&"1".repeat(MOST + 1), 400, "6291456 bytes"),
        ("", 200, "\"calls\""),
    ] {
        let [theirs, ours] = both.ask("POST", &[], event).await;
        assert_eq!(theirs.status, 200, "{theirs:?}");
        assert_eq!((ours.status, ours.body.contains(says)), (status, true), "{ours:?}");
    }
    let [theirs, ours] = both.ask("POST", &[("X-Amz-Client-Context", "%%%")], &nothing).await;
    assert_eq!((theirs.status, &*theirs.body), (500, ""));
    assert_eq!((ours.status, &*ours.body), (500, "the client context is not base64"));
    both.end().await;
}

fn prober(init: &str) -> Option<FunctionSpec> {
    let spec =
        kit("lambda-python", ".venv/bin/python", "f", "prober.py", &[".venv/bin/python", "prober.py"])?;
    Some(spec.with_timeout(TIMEOUT).with_env("INIT", init))
}

/// What is told to a runtime that asks for everything, and to its extensions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_is_told_the_same_as_by_awss_emulator() {
    let Some(spec) = prober("") else { return };
    let Some(both) = Both::start(spec).await else { return };
    let tell = async || {
        let said = both.ask("POST", &[], &json!({ "do": "tell" }).to_string()).await;
        said.map(|said| {
            assert_eq!(said.status, 200, "{said:?}");
            let mut told: BTreeMap<String, Value> = serde_json::from_str(&said.body).unwrap();
            for told in told.values_mut().filter_map(|told| told.get_mut("headers")?.as_object_mut()) {
                told.remove("content-length");
            }
            told
        })
    };
    let [mut theirs, mut ours] = tell().await;
    let cause = "application/vnd.aws.lambda.error.cause+json";
    let caused = r#"{"errorMessage":"m","errorType":"T","errorCause":{"message":"x"}}"#;
    let error_trailer = "Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n";
    let error =
        "Lambda-Runtime-Function-Error-Type: Function.Y\r\nLambda-Runtime-Function-Error-Body: e30=\r\n";
    for event in [
        json!({ "do": "error", "body": r#"{"errorMessage":"m","errorType":"T"}"#, "type": "Function.X" }),
        json!({ "do": "error", "body": "no JSON", "as": "text/x" }),
        json!({ "do": "error", "body": "", "type": "Function.X" }),
        json!({ "do": "error", "body": caused, "as": cause }),
        json!({ "do": "error", "body": "no JSON", "as": cause }),
        json!({ "do": "answer", "body": "" }),
        json!({ "do": "answer", "body": "no JSON <&>", "headers": { "Content-Type": "text/html" } }),
        json!({ "do": "stream" }),
    ] {
        both.agree(event).await;
    }
    // It does not look at the trailers of a stream.
    let fails = json!({ "do": "stream", "trailer": error_trailer, "trailers": error });
    let [theirs_failed, ours_failed] = both.ask("POST", &[], &fails.to_string()).await;
    assert_eq!((theirs_failed.status, &*theirs_failed.body), (200, "onetwo"));
    assert_eq!((ours_failed.status, &*ours_failed.body), (200, "{}"));
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs.0, ours.0, "a step is another");
    }
    let large = json!({ "do": "large", "size": MOST + 1 }).to_string();
    let [their_large, our_large] = both.ask("POST", &[], &large).await;
    // AWS has another order.
    assert_eq!((our_large.status, our_large.fields()), (their_large.status, their_large.fields()));
    both.agree(json!({ "do": "answer", "body": "next" })).await;
    let [their_last, our_last] = tell().await;
    theirs.extend(their_last);
    ours.extend(our_last);
    let differ: Vec<_> = theirs.iter().filter(|(step, told)| ours.get(*step) != Some(told)).collect();
    for (step, told) in &differ {
        let expected = DIFFERENCES.contains(&step.as_str());
        assert!(expected, "{step}: told by the emulator\n{told}\nand here\n{:?}", ours.get(*step));
    }
    assert_eq!(differ.len(), DIFFERENCES.len(), "{differ:#?}");
    assert_eq!(theirs.len(), ours.len());

    // Its client ends over what it is told then.
    let mode = json!({ "Lambda-Runtime-Function-Response-Mode": "odd" });
    for event in [
        json!({ "do": "answer", "body": "x", "headers": mode }),
        json!({ "do": "answer", "body": "after a mode that there is not" }),
        json!({ "do": "exit", "status": 4 }),
        json!({ "do": "answer", "body": "after an exit" }),
    ] {
        both.agree(event).await;
    }
    // There the program panics over an answer that is cut off, and is silent; here the runtime is told, and the caller.
    let [theirs, ours] = both.ask("POST", &[], &json!({ "do": "cut" }).to_string()).await;
    assert_eq!((theirs.status, ours.status), (502, 502));
    assert!(theirs.body.contains("Runtime.ExitError"), "{theirs:?}");
    assert!(ours.body.contains("Runtime.TruncatedResponse"), "{ours:?}");
    both.agree(json!({ "do": "answer", "body": "after a cut" })).await;
    both.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_that_fails_is_told_as_by_awss_emulator() {
    for init in ["error", "exit"] {
        let Some(spec) = prober(init) else { return };
        let Some(both) = Both::start(spec).await else { return };
        for _ in 0..2 {
            let [theirs, ours] = both.ask("POST", &[], "{}").await;
            assert_eq!((theirs.status, ours.status), (502, 502), "{init}");
            if init == "error" {
                assert_eq!(ours, theirs);
                continue;
            }
            // It says nothing of an end in the init, and AWS does.
            assert_eq!(theirs.body, "");
            let text = "RequestId: ID Error: Runtime exited with error: exit status 7";
            let expected = format!(r#"{{"errorType":"Runtime.ExitError","errorMessage":"{text}"}}"#);
            assert_eq!(ours.body, expected);
        }
        both.end().await;
    }
}

/// The lines around what a function writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_logged_as_by_awss_emulator() {
    let Some(spec) = python("f", "kit.handler") else { return };
    let Some(both) = Both::start(spec.clone()).await else { return };
    for _ in 0..2 {
        both.agree(json!({ "do": "nothing" })).await;
    }
    let theirs: Vec<_> = (0..6).map(|_| both.theirs.line()).collect();
    let request = StreamLogsRequest { function: spec.name.to_string(), follow: true, ..Default::default() };
    let mut log = both.ours.clients.fleet().stream_logs(request).await.unwrap().into_inner();
    let mut ours = Vec::new();
    within("both calls are in the log", async {
        while ours.len() < theirs.len() {
            let lines = log.message().await.unwrap().expect("the log goes on").lines;
            ours.extend(lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()));
        }
    })
    .await;
    // The fields are in AWS's order, which is another, and the number is what each measured.
    let fields = |line: &String| {
        let line = plain(line.as_bytes());
        let parts = line.split('\t').map(str::trim_end).filter(|part| !part.is_empty());
        let mut parts: Vec<_> =
            parts.map(|part| part.replace(|c: char| c.is_ascii_digit() || c == '.', "")).collect();
        parts.sort();
        parts
    };
    let [theirs, ours] = [&theirs, &ours].map(|lines| lines.iter().map(fields).collect::<Vec<_>>());
    assert_eq!(ours, theirs);
    both.end().await;
}
