//! Spans as a collector sees them: rotel, an OTLP collector that is none of ours, receives and prints them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use stoker_core::TraceContext;
use stoker_runtime::metrics::Metrics;
use stoker_runtime::telemetry::{Config, Sampler, SpanKind, Telemetry, Value};

const LIMIT: Duration = Duration::from_secs(60);

/// A running collector.
struct Collector {
    child: Child,
    endpoint: String,
    lines: Receiver<String>,
}

impl Collector {
    /// `STOKER_TEST_TOOLS` names the Python environment that `scripts/test` installs it in.
    fn program() -> Option<PathBuf> {
        let tools = std::env::var_os("STOKER_TEST_TOOLS").map(PathBuf::from)?;
        let out = Command::new(tools.join("bin/python3"))
            .args([
                "-c",
                "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))",
            ])
            .output()
            .ok()?;
        let path = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
        path.is_file().then_some(path)
    }

    fn start() -> Option<Self> {
        let Some(program) = Self::program() else {
            println!("left out: STOKER_TEST_TOOLS names no Python with rotel");
            return None;
        };
        Some(Self::start_at(&program, own_place()))
    }

    fn start_at(program: &Path, (address, port): (Ipv4Addr, u16)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(program)
            .args([
                "start",
                "--exporter",
                "blackhole",
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
            ])
            .arg("--pid-file")
            .arg(directory.path().join("pid"))
            .arg(format!("--otlp-grpc-endpoint={address}:{port}"))
            .arg(format!("--otlp-http-endpoint={address}:{}", port + 1))
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the collector starts");
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, endpoint: format!("http://{address}:{port}"), lines }
    }
}

impl Collector {
    /// Ends it in its orderly way, and gives what it received.
    fn received(mut self) -> Vec<Received> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends");
        let mut spans: Vec<Received> = Vec::new();
        let mut service = String::new();
        for line in self.lines.iter() {
            let line = line.trim().trim_start_matches("-> ").to_owned();
            if line.starts_with("Span #") {
                spans.push(Received { service: service.clone(), lines: Vec::new() });
            } else if let Some(name) = line.strip_prefix("service.name: Str(") {
                service = name.trim_end_matches(')').to_owned();
            } else if let Some(span) = spans.last_mut().filter(|_| !line.starts_with("ResourceSpans")) {
                span.lines.push(line);
            }
        }
        spans
    }
}

/// A span as the collector prints it.
#[derive(Debug, Clone)]
struct Received {
    service: String,
    lines: Vec<String>,
}

impl Received {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|l| l == line)
    }

    /// What follows `key` and a colon, the first time.
    fn field(&self, key: &str) -> &str {
        let of_key = |line: &'_ String| line.split_once(':').is_some_and(|(k, _)| k.trim() == key);
        let line =
            self.lines.iter().find(|line| of_key(line)).unwrap_or_else(|| panic!("{key} in {self:#?}"));
        line.split_once(':').map_or("", |(_, value)| value.trim())
    }

    fn nanos(&self, key: &str) -> i128 {
        self.field(key).parse().expect("a time")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A loopback address that no other process has, as process ids are unique, and two ports on it that no other test has.
fn own_place() -> (Ipv4Addr, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, 64 | a, b, c), NEXT.fetch_add(2, Ordering::Relaxed))
}

fn config(endpoint: &str) -> Config {
    Config {
        endpoint: Some(endpoint.to_owned()),
        headers: BTreeMap::new(),
        timeout: Duration::from_secs(10),
        queue: 8192,
        sampler: Sampler::ParentOrRatio,
        ratio: 1.0,
        resource: BTreeMap::from([("service.name".to_owned(), "stoker-test".to_owned())]),
    }
}

#[tokio::test]
async fn one_trace_from_the_caller_through_two_processes() {
    let Some(collector) = Collector::start() else { return };
    let start = |service: &str| {
        let mut config = config(&collector.endpoint);
        config.resource.insert("service.name".to_owned(), service.to_owned());
        Telemetry::start(&config).expect("it starts")
    };
    let (lb, runner) = (start("stoker-lb"), start("stoker-runner"));
    let caller = TraceContext {
        parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        state: "vendor=1,other=2".to_owned(),
    };
    let began = Instant::now();
    let mut call = lb.tracer().start("stoker.v1.CallService/Invoke", SpanKind::Server, &caller, began);
    assert!(call.is_recorded() && call.exemplar().is_some());
    call.since(began - Duration::from_millis(50));
    call.set("faas.invoked_name", "demo/hello");
    call.set("stoker.attempts", 2_i64);
    call.set("stoker.long", "x".repeat(5000));
    call.event(began, "refused", &[("stoker.reason", Value::Text("full"))]);
    let mut offer = call.child("offer", SpanKind::Client, Instant::now());
    offer.fail("the runner was lost");
    let hop = offer.context();
    assert_eq!(hop.state, caller.state);
    let mut exec = runner.tracer().start("exec", SpanKind::Server, &hop, Instant::now());
    exec.link(&caller);
    exec.end_at(began + Duration::from_millis(20));
    offer.end_at(began + Duration::from_millis(30));
    call.end_at(began + Duration::from_millis(40));
    let metrics = Metrics::default();
    lb.measure(&metrics);
    let (lb, runner) = (lb.stop(LIMIT).await, runner.stop(LIMIT).await);
    assert!(lb && runner, "the collector takes all in time");
    assert!(
        metrics.text().contains("stoker_telemetry_spans_total{outcome=\"sent\"} 2"),
        "{}",
        metrics.text()
    );

    let spans = collector.received();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let of = |name: &str| spans.iter().find(|span| span.field("Name") == name).expect(name);
    let (call, offer, exec) = (of("stoker.v1.CallService/Invoke"), of("offer"), of("exec"));
    for span in [call, offer, exec] {
        assert_eq!(span.field("Trace ID"), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.field("TraceState"), "vendor=1,other=2");
    }
    assert_eq!(call.field("Parent ID"), "b7ad6b7169203331");
    assert_eq!(offer.field("Parent ID"), call.field("ID"));
    assert_eq!(exec.field("Parent ID"), offer.field("ID"));
    assert_eq!(
        (&*call.service, &*offer.service, &*exec.service),
        ("stoker-lb", "stoker-lb", "stoker-runner")
    );
    assert_eq!(
        (call.field("Kind"), offer.field("Kind"), exec.field("Kind")),
        ("SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_SERVER")
    );
    assert!(
        call.has("faas.invoked_name: Str(demo/hello)") && call.has("stoker.attempts: Int(2)"),
        "{call:#?}"
    );
    assert_eq!(call.field("stoker.long"), format!("Str({})", "x".repeat(1024)), "long texts are cut");
    assert!(call.has("SpanEvent #0") && call.has("stoker.reason: Str(full)"), "{call:#?}");
    assert!(exec.has("SpanLink #0"), "{exec:#?}");
    assert_eq!(call.field("Status code"), "STATUS_CODE_UNSET");
    assert_eq!(offer.field("Status code"), "STATUS_CODE_ERROR");
    assert_eq!(offer.field("Status message"), "the runner was lost");
    // Times were given by one clock, so that they differ by what was asked for exactly.
    assert_eq!(call.nanos("End time") - call.nanos("Start time"), 90_000_000);
    assert_eq!(call.nanos("Timestamp") - call.nanos("Start time"), 50_000_000);
    assert_eq!(call.nanos("End time") - offer.nanos("End time"), 10_000_000);
}

#[tokio::test]
async fn every_span_of_many_batches_arrives_once() {
    let Some(collector) = Collector::start() else { return };
    let telemetry = Telemetry::start(&config(&collector.endpoint)).expect("it starts");
    let tracer = telemetry.tracer();
    const MANY: usize = 5000;
    for number in 0..MANY {
        let mut span = tracer.start("call", SpanKind::Server, &TraceContext::default(), Instant::now());
        span.set("number", number as i64);
    }
    assert!(telemetry.stop(LIMIT).await);
    let spans = collector.received();
    let mut numbers: Vec<usize> = spans
        .iter()
        .map(|span| {
            span.field("number").trim_start_matches("Int(").trim_end_matches(')').parse().expect("a number")
        })
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..MANY).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_call_that_is_not_sampled_leaves_nothing() {
    let Some(collector) = Collector::start() else { return };
    let telemetry = Telemetry::start(&config(&collector.endpoint)).expect("it starts");
    let unsampled = TraceContext {
        parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned(),
        state: "vendor=1".to_owned(),
    };
    let tracer = telemetry.tracer();
    let mut span = tracer.start("call", SpanKind::Server, &unsampled, Instant::now());
    span.set("x", true);
    assert_eq!(span.child("offer", SpanKind::Client, Instant::now()).context(), unsampled);
    drop(span);
    drop(tracer.start("sampled", SpanKind::Server, &TraceContext::default(), Instant::now()));
    assert!(telemetry.stop(LIMIT).await);
    let spans = collector.received();
    assert_eq!(spans.iter().map(|span| span.field("Name")).collect::<Vec<_>>(), ["sampled"]);
}
