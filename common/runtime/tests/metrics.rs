//! Whether others can read our metrics: Prometheus' own linter, and the parser of its Python client.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use stoker_runtime::metrics::{Counter, Counts, Def, Form, Gauge, Histogram, Metrics, Read};
use stoker_runtime::telemetry::TraceId;

static REFUSALS: Def<Counter> = Def::counter("stoker_refusals", "Offers that a runner refused");
static WAITING: Def<Gauge> = Def::gauge("stoker_waiting_calls", "Calls that wait");
static FREE: Read = Read::gauge("stoker_free_memory_bytes", "Memory to give out");
static SPANS: Read =
    Read::counter("stoker_spans", "Spans by outcome").label(&[("outcome", "what became of them")]);
static TRIES: Def<Counts> = Def::counts("stoker_tries", "Runners that were asked");
static CALLS: Def<Counter> = Def::counter("stoker_calls", "Calls").labels(&[("function", "whose")]);
static BUSY: Def<Gauge> =
    Def::gauge("stoker_busy_containers", "Containers with a call").labels(&[("function", "whose")]);
static TIMES: Def<Histogram> =
    Def::times("stoker_call_duration_seconds", "Whole calls").labels(&[("function", "whose")]);
static NOTHING: Def<Counter> =
    Def::counter("stoker_nothing", "What has no series yet").labels(&[("kind", "any")]);

fn metrics() -> Metrics {
    let metrics = Metrics::default();
    metrics.describe_process("stoker-test", "1.2.3");
    metrics.one(&REFUSALS).add(3);
    let _inside = metrics.one(&WAITING).enter();
    metrics.read(&FREE, || 1.5e9);
    metrics.read_each(
        &SPANS,
        [("sent", 7.0), ("dropped", 0.0)].map(|(outcome, spans)| (outcome, move || spans)),
    );
    metrics.one(&TRIES).observe(2);
    let (calls, busy, times) = (metrics.labelled(&CALLS), metrics.labelled(&BUSY), metrics.labelled(&TIMES));
    let _none = metrics.labelled(&NOTHING);
    for name in ["demo/hello", "odd \"name\"\\ with\nlines"] {
        calls.with(&[name]).add_one();
        busy.with(&[name]).set(2);
        let trace = Some(TraceId::from_bytes([0x0a; 16]));
        times.with(&[name]).observe_time(Duration::from_micros(300), trace);
    }
    metrics
}

fn feed(command: &mut Command, text: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Python with the packages that `scripts/test` installs.
fn python() -> Option<PathBuf> {
    let tools = std::env::var_os("STOKER_TEST_TOOLS").map(PathBuf::from)?;
    Some(tools.join("bin/python3")).filter(|python| python.is_file())
}

#[test]
fn promtool_has_nothing_to_say() {
    let Some(promtool) = on_path("promtool") else {
        println!("left out: promtool (package prometheus) is missing");
        return;
    };
    let text = metrics().text_as(Form::Prometheus);
    let out = feed(Command::new(promtool).args(["check", "metrics"]), &text);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn the_python_client_reads_every_series() {
    let Some(python) = python() else {
        println!("left out: STOKER_TEST_TOOLS names no Python with prometheus_client");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_metrics.py");
    let out = feed(Command::new(python).arg(script), &metrics().text());
    assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), metrics().text());
    let read: serde_json::Value = serde_json::from_slice(&out.stdout).expect("the script writes JSON");
    let value =
        |series: &str| read[series]["value"].as_f64().unwrap_or_else(|| panic!("{series} in {read:#}"));
    for (series, expected) in [
        ("stoker_build_info{program=stoker-test,version=1.2.3}", 1.0),
        ("stoker_refusals_total{}", 3.0),
        ("stoker_waiting_calls{}", 0.0),
        ("stoker_free_memory_bytes{}", 1.5e9),
        ("stoker_spans_total{outcome=sent}", 7.0),
        ("stoker_spans_total{outcome=dropped}", 0.0),
        ("stoker_tries_bucket{le=2.0}", 1.0),
        ("stoker_calls_total{function=demo/hello}", 1.0),
        ("stoker_calls_total{function=odd \"name\"\\ with\nlines}", 1.0),
        ("stoker_busy_containers{function=demo/hello}", 2.0),
        ("stoker_call_duration_seconds_count{function=demo/hello}", 1.0),
        ("stoker_call_duration_seconds_bucket{function=demo/hello,le=0.0003}", 1.0),
        ("stoker_call_duration_seconds_bucket{function=demo/hello,le=0.0002}", 0.0),
    ] {
        assert!((value(series) - expected).abs() < 1e-9, "{series} is {}", value(series));
    }
    let exemplar = &read["stoker_call_duration_seconds_bucket{function=demo/hello,le=0.0003}"]["exemplar"];
    assert_eq!(exemplar["trace_id"], "0a".repeat(16), "{read:#}");
    for process in ["process_resident_memory_bytes{}", "process_open_fds{}", "process_start_time_seconds{}"] {
        assert!(value(process) > 0.0, "{process}");
    }
    assert!(value("process_cpu_seconds_total{}") >= 0.0);
}
