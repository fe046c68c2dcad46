//! The program: what it says of itself, its traces and numbers, how it waits for etcd, and how it ends.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::runner::v1::{self as wire, engage_response as res};
use stoker_proto::v1;
use stoker_registry::testing::Etcd;
use stoker_runtime::telemetry::names;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use crate::kit::{AMPLE, LIMIT, Session, python, shell};

/// A running `stoker-runner`, ended with this.
pub struct Program {
    pub child: Child,
    lines: mpsc::Receiver<String>,
    admin: String,
    address: String,
    state: tempfile::TempDir,
}

impl Program {
    /// Starts it and returns when it serves.
    pub async fn start(etcd: &str, more: &[(&str, &str)]) -> Self {
        Self::start_as(Path::new(env!("CARGO_BIN_EXE_stoker-runner")), etcd, more).await
    }

    /// The same, by another file.
    pub async fn start_as(program: &Path, etcd: &str, more: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut child = Command::new(program)
            .env_clear()
            .env("STOKER_ETCD", etcd)
            .env("STOKER_NAME", format!("p{}", std::process::id()))
            .env("STOKER_LISTEN", "127.0.0.1:0")
            .env("STOKER_ADMIN_LISTEN", "127.0.0.1:0")
            .env("STOKER_MEMORY", "512MiB")
            .env("STOKER_CPU", "4")
            .env("STOKER_STATE", state.path().join("runner"))
            .env("STOKER_LOG_FORMAT", "json")
            .env("STOKER_DRAIN_GRACE", "60s")
            .envs(more.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = mpsc::channel(1024);
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| send.blocking_send(line))
        });
        let mut program = Self { child, lines, admin: String::new(), address: String::new(), state };
        program.admin = program.says("\"starting\"").await["admin"].clone();
        program.address = program.says("\"serving\"").await["address"].clone();
        program
    }

    /// The fields of the next line of its log with this text.
    pub async fn says(&mut self, text: &str) -> HashMap<String, String> {
        let mut before = Vec::new();
        loop {
            let line = tokio::time::timeout(LIMIT, self.lines.recv()).await;
            let Ok(Some(line)) = line else { panic!("it never says {text}; it said {before:#?}") };
            if line.contains(text) {
                let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
                return fields.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
            }
            before.push(line);
        }
    }

    /// Status and body of an admin page, as a scraper asks that knows the newer form of metrics.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let accept = "application/openmetrics-text";
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub async fn client(&self) -> RunnerServiceClient<Channel> {
        RunnerServiceClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    pub async fn session(&self) -> Session {
        Session::open(self.client().await).await
    }

    /// The process of its spawner.
    pub fn spawner(&self) -> Pid {
        // Children are those of the thread that started them.
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let children =
            threads.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
        let children: Vec<i32> = children
            .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
            .collect();
        let spawner = children.into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"__stoker-spawner")
        });
        Pid::from_raw(spawner.unwrap()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ended, and what it left in its directory.
    pub async fn ended(mut self) -> (ExitStatus, usize) {
        let (status, state) = tokio::task::spawn_blocking(move || {
            let status = self.child.wait().unwrap();
            let state = std::mem::replace(&mut self.state, tempfile::tempdir().unwrap());
            (status, state)
        })
        .await
        .unwrap();
        (status, std::fs::read_dir(state.path()).unwrap().count())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// It starts without etcd, serves, and is ready once etcd knows it; and stays so when etcd goes again.
#[tokio::test(flavor = "multi_thread")]
async fn it_waits_for_etcd() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let endpoint = etcd.endpoint();
    etcd.kill();
    let mut program = Program::start(&endpoint, &[]).await;
    assert_eq!(program.page("/livez").0, 200);
    let (status, text) = program.page("/readyz");
    assert!(status == 503 && text.contains("waiting for etcd"), "{status} {text}");
    assert_eq!(program.session().await.call(&python(""), "echo", b"x").await.body, b"x");
    etcd.restart().await;
    program.says("\"ready\"").await;
    assert_eq!(program.page("/readyz").0, 200);
    let (status, config) = program.page("/config");
    assert!(status == 200 && config.contains("\"drain_grace\""), "{config}");
    etcd.kill();
    assert_eq!(program.page("/readyz").0, 200);
    assert_eq!(program.session().await.call(&python(""), "echo", b"x").await.body, b"x");
}

/// What is running finishes, and then nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_lets_calls_finish() {
    let Some(etcd) = Etcd::start().await else { return };
    let mut program = Program::start(&etcd.endpoint(), &[]).await;
    program.says("\"ready\"").await;
    let (mut session, idle) = (program.session().await, program.session().await);
    let spec = python("");
    let running = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(running).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    program.signal(Signal::TERM);
    session.until("it drains", |c| c.state() == v1::RunnerState::Draining).await;
    assert!(program.page("/readyz").1.contains("SIGTERM"));
    let new = session.offer(&spec, "echo", b"new", true, AMPLE).await;
    assert_eq!(session.outcome(new).await.refusal(), Some(wire::RefusalReason::Draining));
    session.body(running, b" and half", true).await;
    assert_eq!(session.outcome(running).await.body, b"half and half");
    let (status, left) = program.ended().await;
    assert_eq!((status.code(), left), (Some(0), 0), "{status}");
    drop(idle);
}

/// Whoever asks twice means it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_leaves_at_once() {
    let Some(etcd) = Etcd::start().await else { return };
    let program = Program::start(&etcd.endpoint(), &[("STOKER_DRAIN_GRACE", "24h")]).await;
    let mut session = program.session().await;
    let running = session.offer(&python(""), "echo", b"half", false, AMPLE).await;
    session.started(running).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    program.signal(Signal::INT);
    session.until("it drains", |c| c.state() == v1::RunnerState::Draining).await;
    program.signal(Signal::INT);
    assert_eq!(program.ended().await.0.code(), Some(130));
}

/// What dies with the spawner is not blamed on functions, and the next spawner serves.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_spawner_is_no_crash_of_the_function() {
    let Some(etcd) = Etcd::start().await else { return };
    for sandbox in ["auto", "process"] {
        let told = [("STOKER_SANDBOX", sandbox), ("STOKER_NAME", sandbox)];
        let program = Program::start(&etcd.endpoint(), &told).await;
        let mut session = program.session().await;
        let hot = session.offer(&python(""), "echo", b"half", false, AMPLE).await;
        session.started(hot).await;
        assert!(matches!(session.frame().await, res::Frame::Credit(_)));
        let once = session.offer(&shell("cat"), "", b"half", false, AMPLE).await;
        session.started(once).await;
        assert!(matches!(session.frame().await, res::Frame::Credit(_)));
        kill_process(program.spawner(), Signal::KILL).unwrap();
        for (call, answer) in session.outcomes([hot, once]).await {
            assert_eq!(answer.code(), "ERROR_CODE_RUNNER_LOST", "{sandbox} {call}: {answer:?}");
            assert!(answer.finished.error.unwrap().may_have_started);
        }
        // One launch may still meet the dead one.
        let first = session.call(&python(""), "echo", b"x").await;
        if first.refusal() != Some(wire::RefusalReason::LaunchFailed) {
            assert_eq!(first.body, b"x", "{first:?}");
        }
        assert_eq!(session.call(&python(""), "echo", b"x").await.body, b"x");
    }
}

/// What it was told wrong is told at once, with all its places.
#[test]
fn it_refuses_what_makes_no_sense() {
    let out = Command::new(env!("CARGO_BIN_EXE_stoker-runner"))
        .env_clear()
        .env("STOKER_SANDBOX", "natve")
        .args(["--listen", "0.0.0.0:0", "--advertise", "http://0.0.0.0:7170", "--state", "/tmp"])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{said}");
    for part in ["did you mean `native`?", "`etcd` is missing"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// One trace from the balancer's span to the function's own, and the numbers that go with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_can_be_followed() {
    let Some(etcd) = Etcd::start().await else { return };
    let collector = Collector::start();
    let endpoint = collector.as_ref().map_or("http://127.0.0.1:1", |collector| &collector.endpoint);
    let settings = [("STOKER_TELEMETRY_ENDPOINT", endpoint), ("STOKER_FREEZE_AFTER", "0s")];
    let program = Program::start(&etcd.endpoint(), &settings).await;
    let mut session = program.session().await;
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    session.trace = format!("00-{TRACE}-b7ad6b7169203331-01");
    let mut told = Vec::new();
    for spec in [python(""), shell("echo -n $TRACEPARENT"), python("")] {
        let answer = session.call(&spec, "trace", b"").await;
        assert_eq!(answer.code(), "OK", "{answer:?}");
        told.push(String::from_utf8(answer.body).unwrap());
    }
    assert_eq!(session.call(&python("exit"), "", b"").await.code(), "ERROR_CODE_FUNCTION_INIT_FAILED");
    assert_eq!(session.call(&python(""), "crash", b"").await.code(), "ERROR_CODE_FUNCTION_CRASHED");
    session.trace = format!("00-{TRACE}-b7ad6b7169203331-00");
    let unsampled = session.call(&python(""), "trace", b"").await;
    let told_so = String::from_utf8(unsampled.body).unwrap();
    assert!(told_so.starts_with(&session.trace[..36]) && told_so.ends_with("-00"), "{told_so}");
    // Processes of one call each, which end as they should, whoever sees it first.
    for _ in 0..10 {
        assert_eq!(session.call(&shell("echo -n $TRACEPARENT"), "", b"").await.code(), "OK");
    }

    // Gauges are as new as the record that every session gets.
    session.until("it is quiet", |c| c.in_flight == 0 && c.waiting == 0).await;
    let (status, metrics) = program.page("/metrics");
    assert_eq!(status, 200);
    for line in [
        "stoker_runner_calls_total{function=\"test/python\",code=\"OK\"} 3",
        "stoker_runner_calls_total{function=\"test/python\",code=\"FUNCTION_CRASHED\"} 1",
        "stoker_runner_calls_total{function=\"test/shell\",code=\"OK\"} 11",
        "stoker_runner_cold_starts_total{function=\"test/shell\",cause=\"first\"} 1",
        "stoker_runner_execution_seconds_count{function=\"test/python\"} 4",
        "stoker_runner_execution_seconds_count{function=\"test/shell\"} 11",
        "stoker_runner_launches_total{purpose=\"call\"}",
        "stoker_runner_launch_seconds_count{phase=\"create\"}",
        "stoker_runner_launch_seconds_count{phase=\"init\"}",
        "stoker_runner_launch_failures_total{blame=\"function\"} 1",
        "stoker_runner_containers{state=\"idle\"}",
        "stoker_runner_containers{state=\"busy\"} 0",
        "stoker_runner_memory_bytes{kind=\"total\"} 536870912",
        "stoker_runner_memory_bytes{kind=\"free\"}",
        "stoker_runner_memory_bytes{kind=\"used\"}",
        "stoker_runner_cpu_cores{kind=\"total\"} 4\n",
        "stoker_runner_cpu_cores{kind=\"free\"}",
        "stoker_runner_slots{kind=\"total\"}",
        "stoker_runner_calls_waiting 0",
        "stoker_runner_wait_seconds_count",
        "stoker_runner_containers_ended_total{why=\"evicted\"} 0",
        "stoker_runner_containers_ended_total{why=\"broken\"} 1\n",
        "stoker_etcd_interrupted{part=\"registration\"} 0",
        "stoker_runner_freezes_total",
        "stoker_runner_thaws_total",
        &format!("# {{trace_id=\"{TRACE}\"}}"),
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // Sooner or later a call finds its container frozen.
    const THAWED: &str = "1af7651916cd43dd8448eb211c80319c";
    session.trace = format!("00-{THAWED}-b7ad6b7169203331-01");
    let begun = std::time::Instant::now();
    while session.call(&python(""), "echo", b"x").await.finished.timings.unwrap().thaw_us == 0 {
        assert!(begun.elapsed() < LIMIT, "it is never found frozen");
    }
    program.signal(Signal::TERM);
    let (status, _) = program.ended().await;
    assert_eq!(status.code(), Some(0));

    let Some(collector) = collector else {
        println!("left out: STOKER_TEST_TOOLS names no Python with rotel");
        return;
    };
    let spans = collector.received();
    // Whatever they say is listed, and so are they.
    for line in spans.iter().flat_map(|span| &span.lines) {
        let Some((name, value)) = line.split_once(": ") else { continue };
        // What is said of the process stands among the lines.
        if ["host.", "service.", "telemetry."].iter().any(|own| name.starts_with(own)) {
            continue;
        }
        if ["Str(", "Int(", "Bool("].iter().any(|kind| value.starts_with(kind)) {
            assert!(names::ATTRIBUTES.iter().any(|one| one.name == name), "{line}");
        }
    }
    for span in &spans {
        assert!(names::SPANS.iter().any(|one| one.name == span.field("Name")), "{span:#?}");
    }
    // What is launched ahead of calls is a trace of its own.
    let (spans, others): (Vec<_>, Vec<_>) =
        spans.into_iter().partition(|span| span.field("Trace ID") == TRACE);
    let (thawed, ahead): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|span| span.field("Trace ID") == THAWED);
    for launch in ahead.iter().filter(|span| span.field("Parent ID").is_empty()) {
        assert_eq!((launch.field("Name"), launch.field("stoker.launch.cause")), ("launch", "Str(ahead)"));
    }
    let thaws = |span: &&Received| span.lines.iter().any(|line| line.contains("stoker.container.thaw"));
    let thawed: Vec<_> = thawed.iter().filter(thaws).collect();
    assert!(!thawed.is_empty() && thawed.iter().all(|span| span.field("Kind") == "SPAN_KIND_SERVER"));
    assert!(thawed[0].lines.iter().any(|line| line.contains("stoker.container.freeze")), "{thawed:#?}");
    let named = |name: &str| spans.iter().filter(|span| span.field("Name") == name).collect::<Vec<_>>();
    let below = |parent: &Received, name: &str| -> Vec<&Received> {
        named(name).into_iter().filter(|span| span.field("Parent ID") == parent.field("ID")).collect()
    };
    let served = named("stoker.runner.v1.RunnerService/Engage");
    assert_eq!(served.len(), 5);
    assert!(served.iter().all(|s| s.field("Parent ID") == "b7ad6b7169203331"));
    assert!(served.iter().all(|s| s.field("Kind") == "SPAN_KIND_SERVER" && s.service == "stoker-runner"));
    let executions = named("execution");
    assert_eq!(executions.len(), 4, "what never came up was not executed");
    for (told, cold) in told.iter().zip([true, true, false]) {
        // What the function was told is the id of its execution's span.
        let id = told.split('-').nth(2).unwrap();
        let execution =
            executions.iter().find(|span| span.field("ID") == id).unwrap_or_else(|| panic!("{told}"));
        assert_eq!(execution.field("Kind"), "SPAN_KIND_CLIENT");
        assert_eq!(execution.field("faas.coldstart"), format!("Bool({cold})"));
        assert_eq!(execution.field("faas.version"), "Str(7)", "what the balancer said of it");
        for name in [
            "faas.invocation_id",
            "faas.name",
            "faas.instance",
            "faas.trigger",
            "container.id",
            "peer.service",
        ] {
            assert!(!execution.field(name).is_empty());
        }
        // It points to the launch of its container.
        assert!(execution.lines.iter().any(|line| line.contains("SpanLink #0")), "{execution:#?}");
        let call = served.iter().find(|s| s.field("ID") == execution.field("Parent ID")).unwrap();
        assert_eq!(call.field("Status code"), "STATUS_CODE_UNSET");
        let waits = below(call, "wait");
        assert_eq!(waits.len(), usize::from(cold), "{spans:#?}");
        for wait in waits {
            let launches = below(wait, "launch");
            assert_eq!(launches.len(), 1);
            for name in ["faas.max_memory", "container.runtime.name", "container.id"] {
                assert!(!launches[0].field(name).is_empty(), "{name}");
            }
            assert_eq!(below(launches[0], "create").len(), 1);
            let hot = execution.field("faas.name").contains("python");
            assert_eq!(below(launches[0], "init").len(), usize::from(hot));
        }
    }
    let failed: Vec<_> = served.iter().filter(|s| s.field("Status code") == "STATUS_CODE_ERROR").collect();
    let mut types: Vec<_> = failed.iter().map(|s| s.field("error.type")).collect();
    types.sort_unstable();
    assert_eq!(types, ["Str(FUNCTION_CRASHED)", "Str(FUNCTION_INIT_FAILED)"]);
    assert!(failed.iter().all(|s| s.field("stoker.blame") == "Str(function)"));
    let crashed = executions.iter().find(|s| s.field("Status code") == "STATUS_CODE_ERROR").unwrap();
    assert_eq!(crashed.field("exception.type"), "Str(FUNCTION_CRASHED)");
    let waits = named("wait");
    let waited = waits.iter().find(|s| s.field("Status code") == "STATUS_CODE_ERROR").unwrap();
    assert_eq!(waited.field("error.type"), "Str(FUNCTION_INIT_FAILED)");
}

/// Lines of functions, with the place of their call in its trace, and those of the runner itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_collected() {
    let Some(etcd) = Etcd::start().await else { return };
    let Some(collector) = Collector::of("logs", 21_002) else {
        println!("left out: STOKER_TEST_TOOLS names no Python with rotel");
        return;
    };
    // Without traces of its own what is written hangs on the caller's span.
    let settings =
        [("STOKER_TELEMETRY_ENDPOINT", collector.endpoint.as_str()), ("STOKER_TELEMETRY_TRACES", "none")];
    let program = Program::start(&etcd.endpoint(), &settings).await;
    let mut session = program.session().await;
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    session.trace = format!("00-{TRACE}-b7ad6b7169203331-01");
    let answer = session.call(&shell("echo for the log >&2; echo -n x"), "", b"").await;
    assert_eq!((answer.code(), &answer.body[..]), ("OK", &b"x"[..]), "{answer:?}");
    program.signal(Signal::TERM);
    let (status, _) = program.ended().await;
    assert_eq!(status.code(), Some(0));
    let records = collector.received();
    let said = |text: &str| {
        let mut found = records.iter().filter(|record| record.lines.iter().any(|line| line.contains(text)));
        found.next().unwrap_or_else(|| panic!("{text} in {records:#?}"))
    };
    let (own, process) = (said("for the log"), said("source: Str(process)"));
    assert_eq!(own.field("stoker.log.source"), "Str(function)");
    assert_eq!(own.field("log.iostream"), "Str(stderr)");
    assert_eq!(own.field("faas.name"), "Str(test/shell)");
    assert!(!own.field("faas.invocation_id").is_empty() && !own.field("container.id").is_empty());
    let all = own.lines.join("\n");
    assert!(all.contains(TRACE) && all.contains("b7ad6b7169203331"), "{all}");
    assert_eq!(process.service, "stoker-runner");
    assert!(!process.field("stoker.log.target").is_empty());
}

/// An OTLP collector that is none of ours (rotel), in the Python environment that `STOKER_TEST_TOOLS` names.
struct Collector {
    child: Child,
    endpoint: String,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Collector {
    fn start() -> Option<Self> {
        Self::of("traces", 21_000)
    }

    /// Prints this signal; listens on this port and the one above.
    fn of(signal: &str, port: u16) -> Option<Self> {
        let tools = std::env::var_os("STOKER_TEST_TOOLS").map(PathBuf::from)?;
        let find = "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
        let out = Command::new(tools.join("bin/python3")).args(["-c", find]).output().ok()?;
        let program = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
        if !program.is_file() {
            return None;
        }
        // An address of the loopback that no other process has, as process ids are unique.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 64 | a, b, c);
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(program)
            .args(["start", "--exporter", "blackhole"])
            .args(["--debug-log", signal, "--debug-log-verbosity", "detailed"])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .arg(format!("--otlp-grpc-endpoint={address}:{port}"))
            .arg(format!("--otlp-http-endpoint={address}:{}", port + 1))
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Some(Self { child, endpoint: format!("http://{address}:{port}"), lines })
    }

    /// Ends it in its orderly way, and gives what it received.
    fn received(mut self) -> Vec<Received> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap();
        let (mut spans, mut service) = (Vec::<Received>::new(), String::new());
        for line in self.lines.iter() {
            let line = line.trim().trim_start_matches("-> ").to_owned();
            if line.starts_with("Span #") || line.starts_with("LogRecord #") {
                spans.push(Received { service: service.clone(), lines: Vec::new() });
            } else if let Some(name) = line.strip_prefix("service.name: Str(") {
                service = name.trim_end_matches(')').to_owned();
            } else if let Some(span) = spans.last_mut().filter(|_| !line.starts_with("Resource")) {
                span.lines.push(line);
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A span as the collector prints it.
#[derive(Debug)]
struct Received {
    service: String,
    lines: Vec<String>,
}

impl Received {
    /// What follows `key` and a colon, the first time.
    fn field(&self, key: &str) -> &str {
        let of_key = |line: &&String| line.split_once(':').is_some_and(|(k, _)| k.trim() == key);
        let line = self.lines.iter().find(of_key).unwrap_or_else(|| panic!("{key} in {self:#?}"));
        line.split_once(':').map_or("", |(_, value)| value.trim())
    }
}
