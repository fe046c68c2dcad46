//! Spans and lines of logs as a collector sees them: rotel, an OTLP collector that is none of ours, receives and prints them.

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
use stoker_runtime::telemetry::{
    Config, Labels, Protocol, Record, Severity, SpanKind, Spot, Telemetry, Trust, Value, names,
};
use stoker_runtime::tls::{Asks, Files, Speaks, Tls};

const LIMIT: Duration = Duration::from_secs(60);

/// A running collector.
struct Collector {
    child: Child,
    place: (Ipv4Addr, u16),
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
        Self::of("traces")
    }

    /// Prints this signal.
    fn of(signal: &str) -> Option<Self> {
        let Some(program) = Self::program() else {
            println!("left out: STOKER_TEST_TOOLS names no Python with rotel");
            return None;
        };
        Some(Self::start_at(&program, own_place(), signal))
    }

    fn start_at(program: &Path, (address, port): (Ipv4Addr, u16), signal: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child = Command::new(program)
            .args([
                "start",
                "--exporter",
                "blackhole",
                "--debug-log",
                signal,
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
        Self { child, place: (address, port), endpoint: format!("http://{address}:{port}"), lines }
    }

    /// Where it takes OTLP by HTTP.
    fn http(&self) -> String {
        let (address, port) = self.place;
        format!("http://{address}:{}", port + 1)
    }
}

impl Collector {
    /// Ends it in its orderly way, and gives what it received.
    fn received(mut self) -> Vec<Received> {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it runs");
        self.child.wait().expect("it ends");
        let of = |line: &str| line.starts_with("Span #") || line.starts_with("LogRecord #");
        let mut spans: Vec<Received> = Vec::new();
        let mut service = String::new();
        for line in self.lines.iter() {
            let line = line.trim().trim_start_matches("-> ").to_owned();
            if of(&line) {
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
        resource: BTreeMap::from([("service.name".to_owned(), "stoker-test".to_owned())]),
        ..Config::default()
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
    let mut call = lb.tracer().start(names::INVOKE, SpanKind::Server, &caller, began);
    assert!(call.is_recorded() && call.exemplar().is_some());
    call.since(began - Duration::from_millis(50));
    call.set(names::FAAS_INVOKED_NAME, "demo/hello");
    call.set(names::OFFERS, 2_i64);
    call.set(names::URL_PATH, "x".repeat(5000));
    call.event(began, names::ACCEPTED, &[(names::REFUSED, Value::Text("full"))]);
    let mut offer = call.child(names::ENGAGE, SpanKind::Client, Instant::now());
    offer.fail("the runner was lost");
    let hop = offer.context();
    assert_eq!(hop.state, caller.state);
    let mut exec = runner.tracer().start(names::EXECUTION, SpanKind::Server, &hop, Instant::now());
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
    let of = |name: names::Name| {
        let found = spans.iter().find(|span| span.field("Name") == name.as_str());
        found.unwrap_or_else(|| panic!("{name:?} in {spans:#?}"))
    };
    let (call, offer, exec) = (of(names::INVOKE), of(names::ENGAGE), of(names::EXECUTION));
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
    assert!(call.has("faas.invoked_name: Str(demo/hello)") && call.has("stoker.offers: Int(2)"), "{call:#?}");
    assert_eq!(call.field("url.path"), format!("Str({})", "x".repeat(1024)), "long texts are cut");
    assert!(call.has("SpanEvent #0") && call.has("stoker.refused: Str(full)"), "{call:#?}");
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
        let mut span =
            tracer.start(names::INVOKE, SpanKind::Server, &TraceContext::default(), Instant::now());
        span.set(names::OFFER, number as i64);
    }
    assert!(telemetry.stop(LIMIT).await);
    let spans = collector.received();
    let mut numbers: Vec<usize> = spans
        .iter()
        .map(|span| {
            span.field("stoker.offer")
                .trim_start_matches("Int(")
                .trim_end_matches(')')
                .parse()
                .expect("a number")
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
    let mut span = tracer.start(names::INVOKE, SpanKind::Server, &unsampled, Instant::now());
    span.set(names::MOVED, true);
    assert_eq!(span.child(names::ENGAGE, SpanKind::Client, Instant::now()).context(), unsampled);
    drop(span);
    drop(tracer.start(names::SESSION, SpanKind::Server, &TraceContext::default(), Instant::now()));
    assert!(telemetry.stop(LIMIT).await);
    let spans = collector.received();
    assert_eq!(
        spans.iter().map(|span| span.field("Name")).collect::<Vec<_>>(),
        ["stoker.v1.CallService/Session"]
    );
}

/// Two batches, each of one span, as the collector got them.
async fn sent_by(config: &Config, collector: Collector) {
    let telemetry = Telemetry::start(config).expect("it starts");
    let metrics = Metrics::default();
    telemetry.measure(&metrics);
    let tracer = telemetry.tracer();
    for name in [names::INVOKE, names::SESSION] {
        drop(tracer.start(name, SpanKind::Server, &TraceContext::default(), Instant::now()));
    }
    assert!(telemetry.stop(LIMIT).await, "the collector takes all in time");
    let text = metrics.text();
    assert!(text.contains("stoker_telemetry_spans_total{outcome=\"sent\"} 2"), "{text}");
    let spans = collector.received();
    let mut seen: Vec<_> = spans.iter().map(|span| (span.field("Name"), span.service.as_str())).collect();
    seen.sort_unstable();
    let service = "stoker-test";
    assert_eq!(seen, [("stoker.v1.CallService/Invoke", service), ("stoker.v1.CallService/Session", service)]);
}

/// Small batches, so that a connection is used again.
fn one_by_one(mut config: Config) -> Config {
    config.bounds.batch = 1;
    config
}

#[tokio::test]
async fn spans_go_by_http_too() {
    let Some(collector) = Collector::start() else { return };
    let config = Config { protocol: Protocol::HttpProtobuf, ..one_by_one(config(&collector.http())) };
    sent_by(&config, collector).await;
}

#[tokio::test]
async fn lines_of_logs_arrive_with_the_place_of_their_call() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let Some(collector) = Collector::of("logs") else { return };
        let endpoint = if protocol == Protocol::Grpc { collector.endpoint.clone() } else { collector.http() };
        let telemetry = Telemetry::start(&Config { protocol, ..config(&endpoint) }).expect("it starts");
        let metrics = Metrics::default();
        telemetry.measure(&metrics);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned();
        let spot = Spot::of(&TraceContext { parent, state: String::new() });
        let labels = Labels::default().with(names::FAAS_NAME, "demo/hello").field("odd", 7_i64);
        let at = std::time::SystemTime::now();
        let recorder = telemetry.recorder();
        recorder.put(&Record { at, severity: Severity::Warn, text: "a line", spot }, &[&labels]);
        assert!(telemetry.stop(LIMIT).await);
        let text = metrics.text();
        assert!(text.contains("stoker_telemetry_log_records_total{outcome=\"sent\"} 1"), "{text}");
        let records = collector.received();
        let [record] = &records[..] else { panic!("{records:#?}") };
        let all = record.lines.join("\n");
        for part in [
            "0af7651916cd43dd8448eb211c80319c",
            "b7ad6b7169203331",
            "a line",
            "WARN",
            "faas.name: Str(demo/hello)",
            "stoker.log.odd: Int(7)",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
    }
}

/// An authority with a certificate for `localhost`, as files.
fn signed(directory: &Path) -> Files {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let ca = write("ca.pem", params.self_signed(&key).expect("an authority").pem());
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(["localhost".to_owned()]).expect("names");
    let certificate = certificate.signed_by(&own, &issuer).expect("a certificate");
    Files {
        certificate: write("own.pem", certificate.pem()),
        key: write("own.key", own.serialize_pem()),
        ca: Some(ca),
        client_ca: None,
    }
}

/// Takes TLS off what comes, and hands it to the collector: who came first showed a certificate, or not.
async fn behind_tls(files: Files, speaks: Speaks, to: String) -> (u16, tokio::sync::oneshot::Receiver<bool>) {
    let tls = Tls::load(files, Asks::Anybody).expect("files");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut tell = Some(tell);
        // Ends with the test.
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut inside = tls.accept(stream, speaks).await.expect("a handshake");
            tell.take().map(|tell| tell.send(inside.peer().is_some()));
            let to = to.trim_start_matches("http://").to_owned();
            tokio::spawn(async move {
                // The collector may not listen yet: then this connection is lost, and another is made.
                let Ok(mut out) = tokio::net::TcpStream::connect(to).await else { return };
                tokio::io::copy_bidirectional(&mut inside, &mut out).await.ok();
            });
        }
    });
    (port, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_with_tls_is_known_by_its_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = signed(directory.path());
    for (protocol, speaks, shows) in
        [(Protocol::Grpc, Speaks::Http2, false), (Protocol::HttpProtobuf, Speaks::Http1, true)]
    {
        let Some(collector) = Collector::start() else { return };
        let to = if protocol == Protocol::Grpc { collector.endpoint.clone() } else { collector.http() };
        let (port, showed) = behind_tls(files.clone(), speaks, to).await;
        let own = |path: &PathBuf| shows.then(|| path.clone());
        let trust =
            Trust { ca: files.ca.clone(), certificate: own(&files.certificate), key: own(&files.key) };
        let config = config(&format!("https://localhost:{port}"));
        sent_by(&one_by_one(Config { protocol, trust, ..config }), collector).await;
        assert_eq!(showed.await, Ok(shows));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_nobody_trusts_gets_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = tempfile::tempdir().expect("a directory");
    let (files, stranger) = (signed(directory.path()), signed(other.path()));
    let tls = Tls::load(files, Asks::Anybody).expect("files");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        tls.accept(stream, Speaks::Http1).await.map(|_| ())
    });
    let trust = Trust { ca: stranger.ca, ..Trust::default() };
    let config = config(&format!("https://localhost:{port}"));
    let protocol = Protocol::HttpProtobuf;
    let telemetry =
        Telemetry::start(&Config { protocol, trust, timeout: Duration::from_millis(50), ..config });
    let telemetry = telemetry.expect("it starts");
    let metrics = Metrics::default();
    telemetry.measure(&metrics);
    let context = TraceContext::default();
    drop(telemetry.tracer().start(names::INVOKE, SpanKind::Server, &context, Instant::now()));
    assert!(telemetry.stop(LIMIT).await);
    assert!(server.await.expect("no panic").is_err(), "the handshake");
    let text = metrics.text();
    assert!(text.contains("stoker_telemetry_spans_total{outcome=\"failed\"} 1"), "{text}");
}
